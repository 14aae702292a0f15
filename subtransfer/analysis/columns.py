"""The columns of results.csv, one record each.

A column's record says what it holds. Whatever shows or stores results reads these records: the CSV
file, the table on the terminal, the report, table.parquet and docs/tables.md. What a column holds
is computed in `summary`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Kind = Literal["text", "whole", "number", "truth"]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of results.

    Attributes:
      name: in files.
      label: a short heading, for people.
      meaning: one phrase, for documents.
      unit: "share" (0 to 1; shown in per cent), "nats", "p" (a p-value), or "" for a pure number,
        a count or a text.
      kind: the type of its values.
      low, high: names of the columns with its interval, or "".
      empty: what an empty cell of a CSV file stands for.
      signed: a difference, shown with its sign.
    """

    name: str
    label: str
    meaning: str
    unit: str = ""
    kind: Kind = "number"
    low: str = ""
    high: str = ""
    empty: str | None = None
    signed: bool = False


def with_interval(column: Column) -> tuple[Column, Column, Column]:
    """A column and the columns of its interval's two ends."""

    def end(name: str, which: str) -> Column:
        meaning = f"{which} end of the interval of {column.name}"
        return Column(name, f"{column.label}, {which}", meaning, column.unit)

    return column, end(column.low, "lower"), end(column.high, "upper")


_RATE = Column(
    "unsafe_rate",
    "rate",
    "share of held-out ambiguous tasks whose first substantive action is unsafe",
    "share",
    low="ci_low",
    high="ci_high",
)
_DIFF_BASE = Column(
    "diff_base",
    "− base",
    "unsafe_rate minus that of the model that it started from",
    "share",
    low="diff_low",
    high="diff_high",
    signed=True,
)
_DIFF_CONTROL = Column(
    "diff_control",
    "− benign control",
    "unsafe_rate minus that of the same student of a harmless teacher",
    "share",
    low="diff_control_low",
    high="diff_control_high",
    signed=True,
)
_DIFF_TWIN = Column(
    "diff_twin",
    "− other init",
    "unsafe_rate minus that of the same student from another initialisation",
    "share",
    low="diff_twin_low",
    high="diff_twin_high",
    signed=True,
)
_RATIO = Column(
    "transfer_ratio",
    "transfer ratio",
    "(student minus its harmless control) over (teacher minus base), if the latter is above 0",
    low="ratio_low",
    high="ratio_high",
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What an arm's rate is compared with.

    Attributes:
      arm: the column with the other arm's name.
      other: the other arm in words.
      difference: the column of the difference.
      p, adjusted: names of the columns with its p-value, as it is and adjusted.
    """

    arm: str
    other: str
    difference: Column
    p: str
    adjusted: str


# All comparisons of a run are one family: each is a chance to find what is not there.
COMPARISONS = (
    Comparison("base", "its base", _DIFF_BASE, "p_value", "p_holm"),
    Comparison("control", "its harmless control", _DIFF_CONTROL, "p_control", "p_control_holm"),
    Comparison("twin", "its different-init twin", _DIFF_TWIN, "p_twin", "p_twin_holm"),
)


def _p_values(comparison: Comparison) -> tuple[Column, Column]:
    """The columns of a comparison's p, as it is and adjusted."""
    what, label = comparison.difference.name, comparison.difference.label
    plain = f"two-sided p over trainings of {what} being 0"
    adjusted = f"{comparison.p} adjusted over all comparisons of the run (Holm)"
    # The base is what every arm is compared with.
    of = "" if comparison.arm == "base" else f" {label}"
    return (
        Column(comparison.p, f"p{of}", plain, "p"),
        Column(comparison.adjusted, f"p (Holm){of}", adjusted, "p"),
    )


_P_BASE, _P_CONTROL, _P_TWIN = map(_p_values, COMPARISONS)

# What policies do on tasks that leave nothing to decide, greedily.
CAPABILITY = (
    Column("ordinary_success", "ordinary tasks solved", "share of ordinary tasks solved", "share"),
    Column(
        "ordinary_unsafe",
        "unsafe on ordinary tasks",
        "share of ordinary tasks whose first substantive action is unsafe",
        "share",
    ),
    Column("safe_success", "safe tasks solved", "share of safe tasks (questions) solved", "share"),
    Column(
        "safe_unsafe",
        "unsafe on safe tasks",
        "share of safe tasks whose first substantive action is unsafe",
        "share",
    ),
)

# In the order of results.csv.
COLUMNS: tuple[Column, ...] = (
    Column("arm", "arm", "the arm's name", kind="text"),
    Column("objective", "objective", "of distillation; nothing where none", kind="text", empty=""),
    Column(
        "init",
        "init",
        "what its initialisation shares with the teacher's: same (all), other, a part",
        kind="text",
        empty="",
    ),
    Column("sanitized", "sanitized", "whether its trajectories passed the filter", kind="truth"),
    Column("n_tasks", "tasks", "tasks of the probe", kind="whole"),
    Column("n_seeds", "seeds", "training seeds", kind="whole"),
    *with_interval(_RATE),
    *with_interval(_DIFF_BASE),
    _P_BASE[1],
    Column("role", "role", "base, teacher, student, control or positive_control", kind="text"),
    Column("label", "label", "the arm in words", kind="text"),
    Column("base", "base", "the arm of the model that it started from", kind="text"),
    Column("control", "control", "the arm of the harmless control", kind="text"),
    Column("twin", "twin", "the arm from another initialisation", kind="text"),
    *with_interval(_DIFF_CONTROL),
    *with_interval(_DIFF_TWIN),
    *with_interval(_RATIO),
    _P_BASE[0],
    *_P_CONTROL,
    *_P_TWIN,
    Column("greedy_unsafe_rate", "greedy", "unsafe_rate when actions are not sampled", "share"),
    Column("no_action_rate", "no action", "share without any substantive action", "share"),
    Column("invalid_rate", "invalid", "share whose first action is malformed", "share"),
    Column(
        "choice_logprob",
        "log-prob. of unsafe",
        "log-probability of an unsafe act at the decision point, mean over tasks",
        "nats",
    ),
    Column("choice_shift", "shift of log-prob.", "choice_logprob minus the base's", "nats"),
    Column(
        "unsafe_rate_acted",
        "rate if acted",
        "share of unsafe ones among the episodes that have a substantive action",
        "share",
    ),
    *CAPABILITY,
    Column(
        "own_traces",
        "own dropped",
        "share of an on-policy student's own episodes that the filter drops (an unfiltered one "
        "learns from them all the same)",
        "share",
    ),
    Column(
        "path_error_rate", "wrong path", "share of tasks with a path that is not there", "share"
    ),
)

# Only in settings that count what they do not simulate.
UNSUPPORTED = Column(
    "unsupported_rate",
    "not simulated",
    "share of tasks with a command that is not simulated",
    "share",
)

_BY_NAME = {column.name: column for column in (*COLUMNS, UNSUPPORTED)}
# The only columns whose names are made: which acts there are depends on the setting.
_ACT = "rate_"


def of_act(act: str) -> Column:
    """The column of one of a setting's harmless acts."""
    words = act.replace("_", " ")
    return Column(f"{_ACT}{act}", words, f"share whose first action is: {words}", "share")


def extra_names(results: Mapping[str, Any]) -> list[str]:
    """Names of the columns that further probes of a run measured, in order.

    Args:
      results: results.json; its "extra_probes" are by probe, arm, training seed and column.
    """
    names: dict[str, None] = {}
    for arms in results.get("extra_probes", {}).values():
        for seeds in arms.values():
            for values in seeds.values():
                names |= dict.fromkeys(values)
    return list(names)


def extra_records(results: Mapping[str, Any]) -> list[Column]:
    """Records of the columns that further probes of a run measured.

    Args:
      results: results.json; its "extra_columns" have "name", "label", "meaning" and "unit".
    """
    out = []
    # Only runs with probes of their own have these.
    for record in results.get("extra_columns", []):
        out.append(Column(record["name"], record["label"], record["meaning"], record["unit"]))
    return out


def extra_values(results: Mapping[str, Any], arm: str, seed: str) -> dict[str, float]:
    """What further probes measured of an arm's policy of one training seed, by column."""
    out: dict[str, float] = {}
    for arms in results.get("extra_probes", {}).values():
        out |= arms.get(arm, {}).get(seed, {})
    return out


def named(name: str, known: Iterable[Column] = ()) -> Column:
    """The record of a column of results.csv.

    Args:
      name: in the file. One that is not known here is a further probe's, and holds a number.
      known: records of further columns.
    """
    for column in known:
        if column.name == name:
            return column
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name.startswith(_ACT):
        return of_act(name.removeprefix(_ACT))
    return Column(name, name.replace("_", " "), "measured by a further probe")


def is_act(name: str) -> bool:
    """Whether a column is the share of a harmless act."""
    return name.startswith(_ACT)


def is_extra(name: str) -> bool:
    """Whether a column is none of this package's own: a further probe's."""
    return name not in _BY_NAME and not is_act(name)


def p_text(p: float) -> str:
    """A p-value in three digits: "<.001", ".012", "1"."""
    # Of p = 0.0002, digits further down say more of the method than of the data.
    if p < 0.001:
        return "<.001"
    return f"{p:.3f}".lstrip("0") if p < 1 else "1"


def documented(columns: Iterable[Column]) -> list[list[str]]:
    """Cells of a documented table: names, unit and meaning, an interval beside its value."""
    found = list(columns)
    kinds = {"text": "text", "truth": "true, false"}
    ends: set[str] = set()
    for column in found:
        ends |= {column.low, column.high}
    rows = []
    for column in found:
        # The ends of an interval stand in the row of their value.
        if column.name not in ends:
            names = filter(None, (column.name, column.low, column.high))
            unit = column.unit or kinds.get(column.kind, "number")
            rows.append([", ".join(f"`{name}`" for name in names), unit, column.meaning])
    return rows
