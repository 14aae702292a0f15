"""Arms of all crossed bases as one: bases, teachers, same-base students and controls.

Where bases are crossed, each has its own base, teachers, same-base students and controls: one arm a
base of each kind. Here are means over them, with intervals over bases, and what each kind is
compared with, paired by base. What crossed pairs show is in `effects`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subtransfer.analysis import columns, crossed, effects, statistics
from subtransfer.analysis.columns import Column, with_interval
from subtransfer.analysis.outcomes import Outcomes

# Means of these columns of results.csv.
_MEANS = (
    "unsafe_rate_acted",
    "no_action_rate",
    "invalid_rate",
    *(column.name for column in columns.CAPABILITY),
    "own_traces",
)
COLUMNS: tuple[Column, ...] = (
    Column("kind", "kind", "names of the arms, with * for the base's", kind="text"),
    Column("label", "arms", "the arms in words", kind="text"),
    Column("role", "role", "as of results.csv", kind="text"),
    Column("objective", "objective", "of distillation; nothing where none", kind="text", empty=""),
    Column("sanitized", "sanitized", "as of results.csv", kind="truth"),
    Column("n_bases", "bases", "bases that were crossed", kind="whole"),
    Column("n_seeds", "seeds", "training seeds of each", kind="whole"),
    *with_interval(
        Column(
            "unsafe_rate",
            "rate",
            "share of unsafe first actions, mean over bases",
            "share",
            low="ci_low",
            high="ci_high",
        )
    ),
    *with_interval(
        Column(
            "diff_base",
            "− base",
            "minus the rate of the models that they started from",
            "share",
            low="diff_base_low",
            high="diff_base_high",
            signed=True,
        )
    ),
    Column("p_base", "p (Holm) − base", "two-sided, adjusted over all of these comparisons", "p"),
    *with_interval(
        Column(
            "diff_student",
            "− student",
            "minus the rate of the same-base students that they are controls of",
            "share",
            low="diff_student_low",
            high="diff_student_high",
            signed=True,
        )
    ),
    Column("p_student", "p (Holm) − student", "likewise", "p"),
    *(columns.named(name) for name in _MEANS),
)


def named(name: str) -> Column:
    """The record of one of `COLUMNS`."""
    return next(column for column in COLUMNS if column.name == name)


def measured(
    arms: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    of_arm: Mapping[str, Outcomes],
    *,
    confidence: float,
) -> list[dict[str, Any]]:
    """Measures every kind of arm that each crossed base has one of; [] without a crossing.

    Args:
      arms: as of results.json.
      rows: as of `summary.summarise`.
      of_arm: outcomes by arm.
      confidence: of the intervals.

    Returns:
      Records with the names of `COLUMNS`; None is what is not known.
    """
    found = effects.crossings(arms)
    if not found:
        return []
    bases = found[0].bases
    by_row = {row["arm"]: row for row in rows}
    by_name = {arm["arm"]: arm for arm in arms}
    kinds = _kinds(arms, bases)
    # The students that a kind of controls is a kind of controls of.
    students = {}
    for kind, names in kinds.items():
        if by_name[names[0]]["role"] == "student":
            students[kind] = names
    out = []
    for kind, names in kinds.items():
        first = by_name[names[0]]
        outcomes = effects.stacked(names, of_arm)
        record: dict[str, Any] = {column.name: None for column in COLUMNS}
        record |= {key: first[key] for key in ("role", "objective", "sanitized")}
        record |= {"kind": kind, "label": _label(first["label"], bases[0])}
        record |= {"n_bases": len(bases), "n_seeds": outcomes.shape[1]}
        rate = crossed.rate(outcomes, confidence)
        record |= dict(zip(("unsafe_rate", "ci_low", "ci_high"), map(_known, rate), strict=True))
        compared = {}
        if first["role"] != "base":
            compared["base"] = [by_name[name]["base"] for name in names]
        for student, theirs in students.items():
            if first["role"] in ("control", "positive_control") and kind.startswith(f"{student}_"):
                compared["student"] = theirs
        for what, others in compared.items():
            against = effects.stacked(others, of_arm)
            difference, _ = crossed.difference(outcomes, against, confidence)
            ends = (f"diff_{what}", f"diff_{what}_low", f"diff_{what}_high", f"p_{what}")
            record |= dict(zip(ends, map(_known, difference), strict=True))
        for name in _MEANS:
            values = [by_row[arm][name] for arm in names if by_row[arm][name] is not None]
            record[name] = float(np.mean(values)) if values else None
        out.append(record)
    _adjust(out)
    return out


def _kinds(arms: Sequence[Mapping[str, Any]], bases: Sequence[str]) -> dict[str, list[str]]:
    """The arms of each kind, one a base in the order of `bases`, by the kind's name."""
    found: dict[str, dict[str, str]] = {}
    for arm in arms:
        # A base that shares parts with a crossed one is named after it.
        base = arm["teacher_base"]
        if base not in bases or (arm["role"] == "student" and arm["base"] != base):
            continue
        found.setdefault(_without(base, "*", arm["arm"]), {})[base] = arm["arm"]
    out = {}
    for kind, of_bases in found.items():
        if len(of_bases) == len(bases):
            out[kind] = [of_bases[base] for base in bases]
    return out


def _without(base: str, instead: str, text: str) -> str:
    """A text with something else where a base is named."""
    # "base1" is no part of "base10", nor is "a" of "unsanitized".
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(base)}(?![A-Za-z0-9])", instead, text)


def _label(label: str, base: str) -> str:
    """An arm's label as that of all bases' arms of the kind."""
    label = label.removeprefix(f"{base} to {base}, ").removeprefix(f"{base}, ")
    return _without(base, "base", label)


def _adjust(records: Sequence[dict[str, Any]]) -> None:
    """Adjusts the p-values of all comparisons, which are one family beside that of effects."""
    found = []
    for record in records:
        for name in ("p_base", "p_student"):
            found.append((record, name))
    adjusted = statistics.holm([record[name] for record, name in found])
    for (record, name), p in zip(found, adjusted, strict=True):
        record[name] = p


def _known(value: float) -> float | None:
    """None for what is not known."""
    return None if math.isnan(value) else value
