"""The page of a sweep: every arm of every member with its interval, by any two axes.

It also shows the members that failed, and where everything comes from.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from subtransfer.report import figures, pages, tables
from subtransfer.report.figures import short
from subtransfer.store.files import atomic_write, os_errors
from subtransfer.store.workdir import MEMBERS
from subtransfer.studies import runs, table
from subtransfer.studies.runs import STRENGTH, STUDENT, TEACHER

FILE = "sweep.html"
Row = Mapping[str, Any]

# The outcomes that the page shows: columns of the table for the mean and its interval.
_OUTCOMES = {
    "rate": ("arm.rate", "arm.lo", "arm.hi"),
    "log_odds": ("arm.log_odds", "arm.log_odds_lo", "arm.log_odds_hi"),
}
_RATE_OF = operator.itemgetter(*_OUTCOMES["rate"])
# Facts of an arm that can be an axis, beside the config's fields.
_OF_ARMS = ("arm", "objective", "init", "source", STUDENT, TEACHER, STRENGTH)
# Fields that say nothing of the outcome, or that follow from others.
_NO_AXES = (
    "config.name",
    "config.statistics.",
    "config.mesh.",
    "config.probe.batch_size",
    "config.models.",
    "config.pairs",
)
_DARKEST = 0.6  # how much colour a cell of 100% has


def axes(rows: Sequence[Row]) -> tuple[list[str], list[str], dict[str, str]]:
    """Finds what the rows differ in.

    Of axes that have the same value wherever another has, the first stands for all: sizes before
    settings, numbers before words.

    Args:
      rows: of the table, one an arm of a run.

    Returns:
      (all axes, the design: as few of them as tell all rows apart, titles: of each axis, with the
      names of those that go together with it).
    """
    titles = {}
    patterns = {}
    for pattern, names in _alike(rows).items():
        # The first name is the preferred one; the others are shown beside it.
        titles[names[0]] = " = ".join(map(_without_prefix, names))
        patterns[names[0]] = pattern
    design: list[str] = []
    # Greedy, in the order of preference: an axis is taken if it tells apart what those before it
    # do not.
    for name in patterns:
        # An arm's own fields follow from its name and its run's settings: they tell nothing
        # further apart.
        if not name.startswith("config.") and name not in (STUDENT, TEACHER):
            continue
        if _told_apart(patterns, [*design, name]) > _told_apart(patterns, design):
            design.append(name)
    return list(patterns), [*design, "arm"], titles


def _without_prefix(name: str) -> str:
    return name.removeprefix("config.")


def _values(rows: Iterable[Row], name: str) -> set[Any]:
    """The different values of a column; None stands for rows that lack it."""
    return {row.get(name) for row in rows}


def _alike(rows: Sequence[Row]) -> dict[tuple[int, ...], list[str]]:
    """Possible axes by their pattern: which rows have the same value; the preferred one first."""

    def order(name: str) -> tuple[Any, ...]:
        seen = _values(rows, name) - {None}
        numbers = all(isinstance(value, (int, float)) for value in seen)
        # False sorts first. The arm comes last: it tells almost all rows apart, and would hide
        # what else does. The name at the end makes the order the same in every process.
        return name == "arm", not numbers, name not in (STUDENT, TEACHER), -len(seen), name

    names: set[str] = set()
    for row in rows:
        names.update(row)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(names, key=order):
        possible = name in _OF_ARMS or name.startswith("config.")
        if not possible or name.startswith(_NO_AXES):
            continue
        # Values are numbered as they come, so that axes that go together have one pattern.
        numbers: dict[Any, int] = {}
        pattern = []
        for row in rows:
            pattern.append(numbers.setdefault(row.get(name), len(numbers)))
        # What is the same everywhere is no axis. Arms are shown even where there is only one.
        if len(numbers) > 1 or name == "arm":
            groups.setdefault(tuple(pattern), []).append(name)
    return groups


def _told_apart(patterns: Mapping[str, tuple[int, ...]], names: Sequence[str]) -> int:
    """How many kinds of rows some axes tell apart."""
    if not names:
        return 1
    chosen = map(patterns.__getitem__, names)
    return len(set(zip(*chosen, strict=True)))


def _choice(rows: Sequence[Row], design: Sequence[str]) -> dict[str, Any]:
    """What the first figure shows: the axis with most values across, arms as lines.

    Of the arms only students, if there are any.
    """
    others = list(design)
    others.remove("arm")
    across = max(others, key=lambda name: len(_values(rows, name)), default="arm")
    # Bases and teachers lie far apart from students, who are what a sweep is about.
    role = "student" if "student" in _values(rows, "role") else ""
    return {
        "metric": "rate",
        "shape": "curves",
        "x": across,
        "series": "arm",
        "role": role,
        # The first row's values: whichever is held, some rows have it.
        "filters": {name: _value(rows[0].get(name)) for name in others},
    }


def _value(value: Any) -> str:
    """A value as the script's `short` writes it."""
    # The script compares these texts with its own to find the rows that are held at a value.
    # Booleans first, as they are numbers to Python.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"-{short(-value)}" if value < 0 else short(value)
    return "none" if value is None else str(value)


def _figure(rows: Sequence[Row], choice: Mapping[str, Any]) -> Markup:
    """The first figure, which is also what a reader without JavaScript sees."""
    across = choice["x"]
    lines: dict[str, list[tuple[Any, float, float | None, float | None]]] = {}
    # The axes that are not shown are held at a value.
    held = dict(choice["filters"])
    held.pop(across, None)
    for row in rows:
        there = {name: _value(row.get(name)) for name in held}
        if there == held and choice["role"] in ("", row["role"]):
            mean, low, high = _RATE_OF(row)
            lines.setdefault(row["arm"], []).append((row.get(across), mean, low, high))
    name = across.removeprefix("config.")
    return figures.lines(lines, name, title=f"share of unsafe decisions by {name}")


def _grid(
    rows: Sequence[Row], states: Mapping[str, Mapping[str, Any]], arms: Sequence[str]
) -> list[dict[str, Any]]:
    """Members by arms: each with its link and its cells, None where it has no such arm."""
    by_run: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_run.setdefault(row["run"], {})[row["arm"]] = row
    out = []
    for run, of_arms in by_run.items():
        cells = []
        for arm in arms:
            cells.append(_cell(of_arms[arm]) if arm in of_arms else None)
        # sweep.json need not know a run: an earlier sweep may have made it in this workdir.
        results = states[run]["results"] if run in states else f"{MEMBERS}/{run}"
        out.append({"name": run, "results": results, "cells": cells})
    return out


def _cell(row: Row) -> dict[str, str]:
    value, low, high = _RATE_OF(row)
    shade = _DARKEST * (100 * value)
    interval = tables.NO_INTERVAL
    if low is not None:
        interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
    return {"text": f"{100 * value:.1f} {interval}", "shade": f"{shade:.0f}"}


def _data(rows: Sequence[Row], every: Sequence[str]) -> list[dict[str, Any]]:
    """What the page's script draws from: each row's place on every axis, and its outcomes."""
    out = []
    for row in rows:
        entry = {"run": row["run"], "role": row["role"]}
        entry["at"] = dict(zip(every, map(row.get, every), strict=True))
        for outcome, columns in _OUTCOMES.items():
            entry[outcome] = list(map(row.__getitem__, columns))
        out.append(entry)
    return out


def render(
    rows: Sequence[Row], members: Sequence[Mapping[str, Any]], origin: Mapping[str, str]
) -> str:
    """Returns the page as text.

    Args:
      rows: of the table, one an arm of a run.
      members: of sweep.json; [] for a workdir without one.
      origin: as of `runs.origin`.
    """
    every, design, titles = axes(rows)
    choice = _choice(rows, design)
    # A dict keeps the rows' order, which is that of reports; a set would not.
    arms: dict[str, None] = {}
    for row in rows:
        arms[row["arm"]] = None
    states = {}
    failed = []
    for member in members:
        states[member["name"]] = member
        if member["state"] == "failed":
            failed.append(member)
    return pages.render(
        "sweep",
        name=", ".join(sorted(_values(rows, "config.name"))),
        progress=_progress(_values(rows, "run"), members),
        differ_in=", ".join(titles.get(axis, axis) for axis in design),
        figure=_figure(rows, choice),
        failed=failed,
        arms=list(arms),
        grid=_grid(rows, states, list(arms)),
        origin=origin,
        data={
            "axes": every,
            "design": design,
            "titles": titles,
            "choice": choice,
            "rows": _data(rows, every),
        },
    )


def _progress(finished: set[str], members: Sequence[Mapping[str, Any]]) -> str:
    """How many members have finished, failed, and are left."""
    failed = left = 0
    for member in members:
        failed += member["state"] == "failed"
        left += member["state"] != "failed" and member["name"] not in finished
    text = f"{len(finished)} run{'s' if len(finished) > 1 else ''} finished"
    if failed:
        text += f", {failed} failed"
    if left:
        text += f", {left} to do"
    return text + "."


def write(workdir: str | Path) -> Path:
    """Writes WORKDIR/sweep.html, drawn from WORKDIR/table.parquet and sweep.json.

    Returns:
      Its path.

    Raises:
      UserError: there is no table, or the workdir cannot be written.
    """
    workdir = Path(workdir)
    # All training seeds of an arm have the same numbers of the arm: one row stands for them.
    rows = {}
    for row in table.read(workdir):
        rows[row["run"], row["arm"]] = row
    page = render(list(rows.values()), runs.members(workdir), runs.origin(rows.values()))
    with os_errors(workdir):
        atomic_write(workdir / FILE, page)
    return workdir / FILE
