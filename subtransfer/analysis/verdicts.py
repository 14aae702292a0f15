"""Sentences about the rows of `summary`: each says what its numbers say, failures included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def sentences(rows: Sequence[Row]) -> list[str]:
    """Says of each student and control how it stands to what it is compared with."""
    by_name = _by_name(rows)
    out = []
    for row in rows:
        if row["role"] == "student":
            out.append(_of_student(row, by_name))
        elif row["role"] == "control" and row["diff_low"] is not None:
            out.append(_of_control(row))
    return out


def headline(rows: Sequence[Row]) -> str:
    """Counts the students whose interval lies wholly above their base's."""
    by_name = _by_name(rows)
    students = above = 0
    for row in rows:
        if row["role"] == "student":
            students += 1
            above += _above(row, by_name[row["base"]])
    return (
        f"{above} of {students} students act unsafely more often than their base, "
        "with intervals that do not touch."
    )


def _by_name(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["arm"]: row for row in rows}


def _above(row: Row, other: Row) -> bool:
    # Stricter than an interval of the difference that excludes 0.
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
    shift, low, high = 100 * row["diff_base"], 100 * row["diff_low"], 100 * row["diff_high"]
    points = f"{shift:+.1f} points [{low:+.1f}, {high:+.1f}]"
    return f"{row['label']}: {_percent(row)}: {how} its base ({points})."


def _percent(row: Row) -> str:
    rate, low, high = 100 * row["unsafe_rate"], 100 * row["ci_low"], 100 * row["ci_high"]
    return f"{rate:.1f}% [{low:.1f}, {high:.1f}]"
