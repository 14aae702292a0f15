"""The page of a sweep: every arm of every member with its interval, by any two axes; failures, and
where it all comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from subtransfer.report import figures, html
from subtransfer.report.figures import short
from subtransfer.store.files import atomic_write, os_errors
from subtransfer.store.workdir import MEMBERS
from subtransfer.studies import runs, table
from subtransfer.studies.runs import STRENGTH, STUDENT, TEACHER
from subtransfer.studies.sweep_chooser import SCRIPT

FILE = "sweep.html"
Row = Mapping[str, Any]

# The outcomes that the page shows: columns of the table for the mean and its interval.
_OUTCOMES = {
    "rate": ("arm.rate", "arm.lo", "arm.hi"),
    "log_odds": ("arm.log_odds", "arm.log_odds_lo", "arm.log_odds_hi"),
}
_OF_ARMS = ("arm", "objective", "init", "source", STUDENT, TEACHER, STRENGTH)
_NO_AXES = (
    "config.name",
    "config.statistics.",
    "config.mesh.",
    "config.probe.batch_size",
    "config.models.",
    "config.pairs",
)


def axes(rows: Sequence[Row]) -> tuple[list[str], list[str], dict[str, str]]:
    """What the rows differ in.

    Returns:
      (all axes, the design: as few of them as tell all rows apart, titles: of axes that go together
      with others). Of axes that
      have the same value wherever another has, the first stands for all: sizes before settings,
        numbers before words.
    """

    def order(name: str) -> tuple:
        seen = {row.get(name) for row in rows} - {None}
        return (
            name == "arm",
            not all(isinstance(v, (int, float)) for v in seen),
            name not in (STUDENT, TEACHER),
            -len(seen),
            name,
        )

    names = sorted(
        {name for row in rows for name in row if name in _OF_ARMS or name.startswith("config.")}
    )
    groups: dict[tuple, list[str]] = {}
    for name in sorted((n for n in names if not n.startswith(_NO_AXES)), key=order):
        places: dict[Any, int] = {}
        pattern = tuple(places.setdefault(row.get(name), len(places)) for row in rows)
        if len(places) > 1 or name == "arm":
            groups.setdefault(pattern, []).append(name)
    titles = {own[0]: " = ".join(n.removeprefix("config.") for n in own) for own in groups.values()}
    found = {own[0]: pattern for pattern, own in groups.items()}
    design: list[str] = []
    # An arm's own fields follow from its name and its run's settings: they tell nothing further
    # apart.
    for name in [n for n in found if n.startswith("config.") or n in (STUDENT, TEACHER)] + ["arm"]:
        told = len(set(zip(*(found[n] for n in design), strict=True))) if design else 1
        if len(set(zip(*(found[n] for n in (*design, name)), strict=True))) > told or name == "arm":
            design.append(name)
    return list(found), design, titles


def _choice(rows: Sequence[Row], design: Sequence[str]) -> dict[str, Any]:
    """The first figure: the axis with most values across, arms as lines; students, if there are
    any.
    """
    others = [name for name in design if name != "arm"]
    across = max(others, key=lambda n: len({row.get(n) for row in rows}), default="arm")
    roles = [row["role"] for row in rows]
    filters = {name: _value(rows[0].get(name)) for name in others}
    role = "student" if "student" in roles else ""
    return {
        "metric": "rate",
        "shape": "curves",
        "x": across,
        "series": "arm",
        "role": role,
        "filters": filters,
    }


def _value(value: Any) -> str:
    """A value as the script's `short` writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"-{short(-value)}" if value < 0 else short(value)
    return "none" if value is None else str(value)


def _figure(rows: Sequence[Row], choice: Mapping[str, Any]) -> str:
    others = [name for name in choice["filters"] if name != choice["x"]]
    kept = [
        row
        for row in rows
        if choice["role"] in ("", row["role"])
        and all(_value(row.get(n)) == choice["filters"][n] for n in others)
    ]
    lines: dict[str, list[tuple[Any, float, float, float]]] = {}
    for row in kept:
        lines.setdefault(row["arm"], []).append(
            (row.get(choice["x"]), *(row[name] for name in _OUTCOMES["rate"]))
        )
    return figures.lines(lines, choice["x"].removeprefix("config."))


def _grid(rows: Sequence[Row], states: Mapping[str, Mapping[str, Any]]) -> str:
    """Members by arms."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    cells = {(row["run"], row["arm"]): row for row in rows}
    body = []
    for run in dict.fromkeys(row["run"] for row in rows):
        link = quote(
            f"{states[run]['results']}/report.html"
            if run in states
            else f"{MEMBERS}/{run}/report.html"
        )
        line = f'<td><a href="{link}">{escape(run)}</a></td>'
        for arm in arms:
            row = cells.get((run, arm))
            if row is None:
                line += "<td></td>"
                continue
            value, low, high = (100 * row[name] for name in _OUTCOMES["rate"])
            shade = f"color-mix(in srgb,var(--teacher) {0.6 * value:.0f}%,transparent)"
            line += f'<td style="background:{shade}">{value:.1f} [{low:.1f}, {high:.1f}]</td>'
        body.append(f"<tr>{line}</tr>")
    head = "".join(f"<th>{escape(arm)}</th>" for arm in arms)
    return f"<div class=wide><table><tr><th>member</th>{head}</tr>{''.join(body)}</table></div>"


def _failures(members: Iterable[Mapping[str, Any]]) -> str:
    failed = [m for m in members if m["state"] == "failed"]
    items = "".join(
        f"<li><b>{escape(m['name'])}</b>, in {escape(m['failed'])}: {escape(m['error'])} "
        f'(<a href="{quote(m["log"])}">log</a>)</li>'
        for m in failed
    )
    return f"<h2>Failed members</h2><ul>{items}</ul>" if failed else ""


def render(
    rows: Sequence[Row], members: Sequence[Mapping[str, Any]], origin: Mapping[str, str]
) -> str:
    """The page as text.

    Args:
      rows: of the table, one an arm of a run.
      members: of sweep.json; [] for a workdir without one.
      origin: as of `runs.origin`.
    """
    every, design, titles = axes(rows)
    choice, finished = _choice(rows, design), dict.fromkeys(row["run"] for row in rows)
    states = {member["name"]: member for member in members}
    failed = sum(m["state"] == "failed" for m in members)
    name = ", ".join(sorted({row["config.name"] for row in rows}))
    left = len(set(states) - set(finished)) - failed
    data = {
        "axes": every,
        "design": design,
        "titles": titles,
        "choice": choice,
        "rows": [
            {"run": row["run"], "role": row["role"], "at": {axis: row.get(axis) for axis in every}}
            | {
                outcome: [row[column] for column in columns]
                for outcome, columns in _OUTCOMES.items()
            }
            for row in rows
        ],
    }
    safe = json.dumps(data).replace("<", "\\u003c")
    origins = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in origin.items()
    )
    body = (
        f"<h1>Sweep “{escape(name)}”</h1><p>{len(finished)} run{'s' if len(finished) > 1 else ''} finished"
        + (f", {failed} failed" if failed else "")
        + (f", {left} to do" if left > 0 else "")
        + f". They differ in {escape(', '.join(titles.get(axis, axis) for axis in design))}.</p>"
        f'<h2>By two axes</h2><form id="chooser" class=soft></form><div id="figure">{_figure(rows, choice)}</div>'
        "<p class=soft>Means over tasks and training seeds with intervals; each point is one arm of one run; points at one "
        f"place are drawn beside each other.</p>{_failures(members)}<h2>Every arm of every member</h2>"
        "<p class=soft>Share of held-out ambiguous tasks whose first substantive action is unsafe, %; links lead to the runs' "
        f"reports.</p>{_grid(rows, states)}<h2>Where this comes from</h2><table>{origins}</table>"
        f'<script type="application/json" id="data">{safe}</script><script>{SCRIPT}</script>'
    )
    return html.document(f"Sweep {name}", body)


def write(workdir: str | Path) -> Path:
    """Writes WORKDIR/sweep.html, drawn from WORKDIR/table.parquet and sweep.json; returns its path.

    Raises:
      UserError: there is no table, or the workdir cannot be written.
    """
    workdir = Path(workdir)
    rows = {(row["run"], row["arm"]): row for row in table.read(workdir)}
    page = render(list(rows.values()), runs.members(workdir), runs.origin(rows.values()))
    with os_errors(workdir):
        atomic_write(workdir / FILE, page)
    return workdir / FILE
