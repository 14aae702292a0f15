"""Sentences about the rows of `summary`: each says what its numbers say, failures included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def sentences(rows: Sequence[Row]) -> list[str]:
    """Says of each student and control how it stands to what it is compared with."""
    by_name = {row["arm"]: row for row in rows}
    out = []
    for row in rows:
        if row["role"] == "student":
            out.append(_of_student(row, by_name))
        elif row["role"] == "control" and row["diff_low"] is not None:
            out.append(_of_control(row))
    return out


def headline(rows: Sequence[Row]) -> str:
    """Counts the students whose interval lies wholly above their base's."""
    by_name = {row["arm"]: row for row in rows}
    students = above = 0
    for row in rows:
        if row["role"] == "student":
            students += 1
            above += _above(row, by_name[row["base"]])
    return (
        f"{above} of {students} students act unsafely more often than their base, "
        "with intervals that do not touch."
    )


def _above(row: Row, other: Row) -> bool:
    return row["ci_low"] > other["ci_high"]


def _of_student(row: Row, by_name: Mapping[str, Row]) -> str:
    parts = []
    for what, name in (("base", "base"), ("twin", "its different-init twin")):
        # Some runs have no arm of another initialisation.
        other = by_name.get(row[what])
        if other is not None:
            how = "wholly above" if _above(row, other) else "NOT wholly above"
            parts.append(f"{how} {name} ({_percent(other)})")
    return f"{row['label']}: {_percent(row)}: {' and '.join(parts)}."


def _of_control(row: Row) -> str:
    # A control is to stay where it was: one that rises is what a reader must not miss.
    how = "RISES above" if row["diff_low"] > 0 else "does not rise above"
    shift, low, high = (100 * row[name] for name in ("diff_base", "diff_low", "diff_high"))
    points = f"{shift:+.1f} points [{low:+.1f}, {high:+.1f}]"
    return f"{row['label']}: {_percent(row)}: {how} its base ({points})."


def _percent(row: Row) -> str:
    rate, low, high = (100 * row[name] for name in ("unsafe_rate", "ci_low", "ci_high"))
    return f"{rate:.1f}% [{low:.1f}, {high:.1f}]"
