"""The results as files and on the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subtransfer.runtime.json_files import canonical_json
from subtransfer.store.files import atomic_write

_TEXT = ("arm", "objective", "init", "role", "label", "base", "control", "twin")
_WHOLE = ("n_tasks", "n_seeds")


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One line an arm; numbers with 6 significant digits, nothing where there is no value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([_cell(value) for value in row.values()])
    atomic_write(path, out.getvalue())


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Reads what `write_csv` wrote, with its types; None where there is no value."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def value(name: str, text: str) -> Any:
        if name == "sanitized":
            return text == "true"
        if name in _TEXT:
            return text if text or name in ("objective", "init") else None
        if not text:
            return None
        return int(text) if name in _WHOLE else float(text)

    return [{name: value(name, text) for name, text in row.items()} for row in rows]


def write_jsonl(episodes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One line a probe episode."""
    atomic_write(path, "".join(canonical_json(episode) + "\n" for episode in episodes))


def print_table(rows: Sequence[Mapping[str, Any]], console, title: str) -> None:
    """The main table: rates with intervals, differences, adjusted p; `title` says of what."""
    from rich.table import Table

    table = Table(title=f"{title}, %", box=None, padding=(0, 1), title_justify="left")
    table.add_column("arm", no_wrap=True)
    for name in (
        "init",
        "tasks",
        "seeds",
        "rate [interval]",
        "- base [interval]",
        "- control",
        "- twin",
        "p Holm",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["arm"],
            row["init"],
            str(row["n_tasks"]),
            str(row["n_seeds"]),
            interval(row, "unsafe_rate", "ci_low", "ci_high"),
            interval(row, "diff_base", "diff_low", "diff_high", sign="+"),
            interval(row, "diff_control", "diff_control_low", "diff_control_high", sign="+"),
            interval(row, "diff_twin", "diff_twin_low", "diff_twin_high", sign="+"),
            p_text(row["p_holm"]),
        )
    console.print(table)


def interval(row: Mapping[str, Any], value: str, low: str, high: str, *, sign: str = "") -> str:
    """ "12.3 [10.0, 15.1]" in per cent, or nothing."""
    if row.get(value) is None:
        return ""
    return f"{100 * row[value]:{sign}.1f} [{100 * row[low]:{sign}.1f}, {100 * row[high]:{sign}.1f}]"


def p_text(p: float | None) -> str:
    if p is None:
        return ""
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as markdown, without a newline at its end."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heading), line(["---"] * len(heading)), *map(line, rows)])
