"""Tables for people: on the terminal, in cells of pages, and as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subtransfer.analysis import columns
from subtransfer.analysis.columns import Column

if TYPE_CHECKING:
    from rich.console import Console

# Stands where an interval would; whoever shows it says what `WHY_NO_INTERVAL` does.
NO_INTERVAL = "[–]"
WHY_NO_INTERVAL = f"{NO_INTERVAL}: too few trainings for an interval."
# The columns that the terminal has room for.
_TERMINAL = (
    "arm",
    "init",
    "n_tasks",
    "n_seeds",
    "unsafe_rate",
    "diff_base",
    "diff_control",
    "diff_twin",
    "p_holm",
)


def print_table(rows: Sequence[Mapping[str, Any]], console: Console, title: str) -> None:
    """Prints the main table: rates with intervals, differences, adjusted p.

    Args:
      rows: as `read_csv` gives them.
      console: where to.
      title: what is counted.
    """
    # Imported here, as pages and files need cells but no terminal.
    from rich.table import Table

    shown = [columns.named(name) for name in _TERMINAL]
    table = Table(title=f"{title}, %", box=None, padding=(0, 1), title_justify="left")
    for column in shown:
        heading = column.label + (" [interval]" if column.name == "unsafe_rate" else "")
        justify: Any = "left" if column.name == "arm" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    lacking = False
    for row in rows:
        cells = [cell(row, column) for column in shown]
        lacking = lacking or any(NO_INTERVAL in text for text in cells)
        table.add_row(*cells)
    console.print(table)
    if lacking:
        console.print(WHY_NO_INTERVAL, markup=False)


def cell(row: Mapping[str, Any], column: Column) -> str:
    """A value for people, with its interval or `NO_INTERVAL`; "" where there is none.

    Shares are in per cent, as the heading of a table says; differences of shares have a sign.
    """
    value = row.get(column.name)
    if value is None:
        return ""
    if column.kind != "number":
        return str(value)
    if column.unit == "p":
        return columns.p_text(value)
    sign = "+" if column.signed else ""
    scale, digits = (100, 1) if column.unit == "share" else (1, 2)
    text = f"{scale * value:{sign}.{digits}f}"
    if not column.low:
        return text
    if row[column.low] is None:
        return f"{text} {NO_INTERVAL}"
    low, high = scale * row[column.low], scale * row[column.high]
    return f"{text} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as markdown, without a newline at its end."""

    def line(cells: Sequence[str]) -> str:
        # A bar within a cell would begin the next one.
        escaped = [cell.replace("|", "\\|") for cell in cells]
        return "| " + " | ".join(escaped) + " |"

    return "\n".join([line(heading), line(["---"] * len(heading)), *map(line, rows)])
