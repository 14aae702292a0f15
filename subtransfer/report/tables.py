"""Tables for people: on the terminal, in cells of pages, and as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
    "own_traces",
)


class Table(NamedTuple):
    """A table for people: a heading, and rows of cells."""

    heading: list[str]
    rows: list[list[str]]


def print_cells(table: Table, console: Console, title: str) -> None:
    """Prints a table of ready cells, and what `NO_INTERVAL` stands for where it is in one.

    Args:
      table: the first column stands left, the others right.
      console: where to.
      title: of the table.
    """
    # Imported here, as pages and files need cells but no terminal.
    from rich.table import Table as Printed

    printed = Printed(title=title, box=None, padding=(0, 1), title_justify="left")
    for place, heading in enumerate(table.heading):
        printed.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for cells in table.rows:
        printed.add_row(*cells)
    console.print(printed)
    if any(NO_INTERVAL in cell for cells in table.rows for cell in cells):
        console.print(WHY_NO_INTERVAL, markup=False)


def print_table(rows: Sequence[Mapping[str, Any]], console: Console, title: str) -> None:
    """Prints the main table: rates with intervals, differences, adjusted p.

    Args:
      rows: as `read_csv` gives them.
      console: where to.
      title: what is counted.
    """
    shown = [columns.named(name) for name in _TERMINAL]
    heading = []
    for column in shown:
        heading.append(column.label + (" [interval]" if column.name == "unsafe_rate" else ""))
    cells = [[cell(row, column) for column in shown] for row in rows]
    print_cells(Table(heading, cells), console, f"{title}, %")


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
