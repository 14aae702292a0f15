"""One row an arm: its rates with intervals, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subtransfer.analysis import columns, outcomes, statistics
from subtransfer.analysis.outcomes import Outcomes

# What a row takes from the arm's record in results.json as it is.
_OF_RECORD = (
    "arm",
    "objective",
    "init",
    "sanitized",
    "role",
    "label",
    "base",
    "control",
    "twin",
)


def summarise(
    results: Mapping[str, Any],
    episodes: Sequence[Mapping[str, Any]],
    *,
    acts: Sequence[str],
    confidence: float,
) -> list[dict[str, Any]]:
    """Computes one row an arm, in the order of `results["arms"]`.

    Args:
      results: as of results.json.
      episodes: the probe's, as of results.jsonl.
      acts: the setting's harmless acts; each gets a column `rate_ACT`.
      confidence: of all intervals.

    Returns:
      Rows whose keys are the names of `columns.COLUMNS`; `unsupported_rate` in a setting that
      counts what it does not simulate; `rate_ACT`; and the columns of further probes. What is not
      known of an arm is None.
    """
    of_arm = outcomes.by_arm(episodes)
    rows = measured(results, of_arm, acts=acts)
    for arm, row in zip(results["arms"], rows, strict=True):
        own = of_arm[arm["arm"]]
        _, low, high = statistics.rate_interval(own.unsafe(), confidence)
        row |= {"ci_low": _known(low), "ci_high": _known(high)}
        # A base has nothing that it could be compared with.
        if arm["base"] != arm["arm"]:
            row |= _comparisons(arm, of_arm, confidence)
    _adjust(rows)
    return rows


def measured(
    results: Mapping[str, Any], of_arm: Mapping[str, Outcomes], *, acts: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of `summarise` without what is inferred: intervals and comparisons are None.

    Args:
      results: as of results.json.
      of_arm: outcomes by arm.
      acts: the setting's harmless acts.
    """
    rows = []
    # Their order is that of the arms as the run laid them out, which tables and figures keep.
    for arm in results["arms"]:
        name = arm["arm"]
        own = of_arm[name]
        # All columns first, so that every arm has the same ones in the same order.
        row: dict[str, Any] = {column.name: None for column in columns.COLUMNS}
        for key in _OF_RECORD:
            row[key] = arm[key]
        row |= {"n_tasks": len(own.tasks), "n_seeds": len(own.seeds)}
        row["unsafe_rate"] = _known(float(own.unsafe().mean()))
        row |= _diagnostics(own, acts, results["capability"].get(name, {}))
        row["own_traces"] = own_traces(results["purity"].get(name, {}))
        row |= _of_extra_probes(results, name, own.seeds)
        rows.append(row)
    return rows


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Adds the adjusted p-values of all comparisons of a run, which are one family."""
    found = []
    for row in rows:
        for comparison in columns.COMPARISONS:
            found.append((row, comparison.adjusted, row[comparison.p]))
    adjusted = statistics.holm([p for _, _, p in found])
    for (row, name, _), p in zip(found, adjusted, strict=True):
        row[name] = p


def _known(value: float) -> float | None:
    """None for what is not known."""
    return None if math.isnan(value) else value


def _diagnostics(
    own: Outcomes, acts: Sequence[str], capability: Mapping[str, Any]
) -> dict[str, Any]:
    """What else one arm's episodes say of it.

    Args:
      own: the arm's outcomes.
      acts: the setting's harmless acts.
      capability: by training seed; {} where it was not measured.
    """
    out: dict[str, Any] = {
        "greedy_unsafe_rate": float(own.unsafe("greedy").mean()),
        "no_action_rate": own.rate("no_action"),
        "invalid_rate": own.rate("invalid"),
        "unsafe_rate_acted": _rate_if_acted(own),
        "choice_logprob": float(_choice_logprob(own).mean()),
        "path_error_rate": own.error_rate("unknown_path"),
    }
    if capability:
        for column in columns.CAPABILITY:
            measured = [of_seed[column.name] for of_seed in capability.values()]
            out[column.name] = float(np.mean(measured))
    if own.counts("unsupported"):
        out[columns.UNSUPPORTED.name] = own.error_rate("unsupported")
    for act in acts:
        out[columns.of_act(act).name] = own.rate(act)
    return out


def _rate_if_acted(own: Outcomes) -> float | None:
    """The share of unsafe ones among the episodes that acted; None where none did."""
    acted = 1 - own.rate("no_action") - own.rate("invalid")
    # Shares are sums of fractions: what is left of nothing is not quite 0.
    return own.rate("unsafe") / acted if acted > 1e-9 else None


def own_traces(purity: Mapping[str, Any]) -> float | None:
    """Share of an arm's own episodes that show a trace of a habit; None of one that has none.

    Args:
      purity: by training seed, as of results.json.
    """
    total = traces = 0
    for of_seed in purity.values():
        total += of_seed["rollouts"]
        # Versions that had no students of unfiltered episodes counted those that they dropped.
        traces += of_seed.get("traces", of_seed["dropped"])
    return traces / total if total else None


def _of_extra_probes(results: Mapping[str, Any], arm: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Means over training seeds of what further probes measured of an arm."""
    measured = [columns.extra_values(results, arm, str(seed)) for seed in seeds]
    out: dict[str, Any] = {}
    # All names of the run: what was not measured of this arm is None, and not missing.
    for name in columns.extra_names(results):
        known = [values[name] for values in measured if name in values]
        out[name] = float(np.mean(known)) if known else None
    return out


def _choice_logprob(own: Outcomes) -> np.ndarray:
    """Log-probabilities of an unsafe act at the decision point, [T, S], nats."""
    return own.mean(lambda episode: episode["choice_logprob"])


def _comparisons(
    arm: Mapping[str, Any], of_arm: Mapping[str, Outcomes], confidence: float
) -> dict[str, Any]:
    """An arm against its base, its harmless control, its twin and its teacher."""
    own, base = of_arm[arm["arm"]], of_arm[arm["base"]]
    unsafe = own.unsafe()
    out: dict[str, Any] = {}
    for comparison in columns.COMPARISONS:
        other = of_arm.get(arm[comparison.arm])
        if other is None:
            continue
        column = comparison.difference
        found = statistics.rate_difference(unsafe, other.unsafe(), confidence)
        names = (column.name, column.low, column.high, comparison.p)
        out |= dict(zip(names, map(_known, found), strict=True))
    control = of_arm.get(arm["control"])
    teacher = of_arm.get(arm["teacher"])
    if control is not None and teacher is not None:
        # The teacher's habit is measured against the model that it was trained from.
        untuned = of_arm[arm["teacher_base"]].unsafe()
        ratio = statistics.rate_ratio(
            unsafe, control.unsafe(), teacher.unsafe(), untuned, confidence
        )
        of_ratio = ("transfer_ratio", "ratio_low", "ratio_high")
        out |= dict(zip(of_ratio, map(_known, ratio), strict=True))
    own_logprob = _choice_logprob(own).mean(axis=1)
    base_logprob = _choice_logprob(base).mean(axis=1)
    out["choice_shift"] = float((own_logprob - base_logprob).mean())
    return out
