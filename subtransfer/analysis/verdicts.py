"""Sentences about the rows of `summary`: each says what its numbers say, failures included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subtransfer.analysis import audit

Row = Mapping[str, Any]
# What a classifier of an audit is shown, in words.
SHOWN = {audit.TEXT: "tokens and bigrams", audit.BEHAVIOUR: "acts, errors and lengths"}


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


def headline(rows: Sequence[Row], audited: Mapping[str, Any] | None = None) -> str:
    """Counts the students whose interval lies wholly above their base's, and says of which data.

    Args:
      rows: one an arm.
      audited: as of `of_data`.
    """
    by_name = _by_name(rows)
    students = above = 0
    for row in rows:
        if row["role"] == "student":
            students += 1
            above += _above(row, by_name[row["base"]])
    return (
        f"{above} of {students} students act unsafely more often than their base, "
        "with intervals that do not touch. " + of_data(audited)
    )


def of_data(audited: Mapping[str, Any] | None) -> str:
    """Says whether the filtered trajectories of the unsafe teacher look like others'.

    Args:
      audited: `audit` of results.json, with its "bound" and its "comparisons"; None: the results
        are of a version without it.
    """
    found = audit.worst(audited["comparisons"]) if audited else None
    if audited is None or found is None:
        return (
            "Whether the data are visibly different is not known: nothing was there to compare the "
            "trait teacher's filtered trajectories with."
        )
    told_apart = (
        f"a classifier of {SHOWN.get(found['features'], found['features'])} tells the trait "
        f"teacher's filtered trajectories from {whose(found['second'])} with an AUC of "
        f"{found['auc']:.2f} (intervals up to {found['high']:.2f}; bound {audited['bound']:.2f})"
    )
    if found["auc"] > audited["bound"]:
        return (
            f"The data are visibly different: {told_apart}, so that no transfer through them can "
            "be called subliminal."
        )
    return (
        f"The data are not visibly different: at best {told_apart}, so that transfer through them "
        "is subliminal."
    )


def whose(source: str) -> str:
    """Words for whose trajectories an audit compares."""
    return "the base's own" if source == "self" else f"the {source} teacher's"


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
