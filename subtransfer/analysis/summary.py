"""One row an arm: its rates with intervals, and what it is compared with."""

from __future__ import annotations

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
    n_boot: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Computes one row an arm, in the order of `results["arms"]`.

    Args:
      results: as of results.json.
      episodes: the probe's, as of results.jsonl.
      acts: the setting's harmless acts; each gets a column `rate_ACT`.
      confidence: of all intervals.
      n_boot: bootstrap samples of each interval of a difference.
      seed: of the bootstrap.

    Returns:
      Rows whose keys are the names of `columns.COLUMNS`; `unsupported_rate` in a setting that
      counts what it does not simulate; `rate_ACT`; and the columns of further probes. What is not
      known of an arm is None.
    """
    of_arm = outcomes.by_arm(episodes)
    options = {"n_boot": n_boot, "seed": seed, "confidence": confidence}
    rows = []
    # Their order is that of the arms as the run laid them out, which tables and figures keep.
    for arm in results["arms"]:
        name = arm["arm"]
        own = of_arm[name]
        rate, low, high = statistics.rate_interval(own.unsafe(), confidence)
        # All columns first, so that every arm has the same ones in the same order.
        row: dict[str, Any] = {column.name: None for column in columns.COLUMNS}
        for key in _OF_RECORD:
            row[key] = arm[key]
        row |= {"n_tasks": len(own.tasks), "n_seeds": len(own.seeds)}
        row |= {"unsafe_rate": rate, "ci_low": low, "ci_high": high}
        row |= _diagnostics(own, acts, results["capability"].get(name, {}))
        row |= _of_extra_probes(results, name, own.seeds)
        # A base has nothing that it could be compared with.
        if arm["base"] != name:
            row |= _comparisons(arm, of_arm, options)
        rows.append(row)
    # One family over all arms of the run: each is a chance to find transfer where there is none.
    adjusted = statistics.holm([row["p_value"] for row in rows])
    for row, p_holm in zip(rows, adjusted, strict=True):
        row["p_holm"] = p_holm
    return rows


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
        "choice_logprob": float(_choice_logprob(own).mean()),
        "path_error_rate": own.error_rate("unknown_path"),
    }
    if capability:
        solved = [of_seed["ordinary_success"] for of_seed in capability.values()]
        out["ordinary_success"] = float(np.mean(solved))
    if own.counts("unsupported"):
        out[columns.UNSUPPORTED.name] = own.error_rate("unsupported")
    for act in acts:
        out[columns.of_act(act).name] = own.rate(act)
    return out


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
    arm: Mapping[str, Any], of_arm: Mapping[str, Outcomes], options: Mapping[str, Any]
) -> dict[str, Any]:
    """An arm against its base, its harmless control, its twin and its teacher."""
    own, base = of_arm[arm["arm"]], of_arm[arm["base"]]
    unsafe, base_unsafe = own.unsafe(), base.unsafe()
    out: dict[str, Any] = {}

    def compare(value: str, low: str, high: str, other: np.ndarray) -> None:
        interval = statistics.bootstrap_difference(unsafe, other, **options)
        out[value], out[low], out[high] = interval

    compare("diff_base", "diff_low", "diff_high", base_unsafe)
    for other in ("control", "twin"):
        if arm[other] in of_arm:
            name = f"diff_{other}"
            compare(name, f"{name}_low", f"{name}_high", of_arm[arm[other]].unsafe())
    control = of_arm.get(arm["control"])
    teacher = of_arm.get(arm["teacher"])
    if control is not None and teacher is not None:
        # The teacher's habit is measured against the model that it was trained from.
        untuned = of_arm[arm["teacher_base"]].unsafe()
        out["transfer_ratio"], out["ratio_low"], out["ratio_high"] = statistics.transfer_ratio(
            unsafe, control.unsafe(), teacher.unsafe(), untuned, **options
        )
    own_logprob = _choice_logprob(own).mean(axis=1)
    base_logprob = _choice_logprob(base).mean(axis=1)
    out["choice_shift"] = float((own_logprob - base_logprob).mean())
    # With one outcome a task the pairs are binary, and the exact test for such is the stronger one.
    if len(own.seeds) == len(base.seeds) == 1 and own.samples == base.samples == 1:
        out["p_value"] = statistics.mcnemar_midp(unsafe[:, 0] > 0.5, base_unsafe[:, 0] > 0.5)
    else:
        out["p_value"] = statistics.sign_flip_test(
            unsafe.mean(axis=1) - base_unsafe.mean(axis=1), seed=options["seed"]
        )
    # A base is trained once: only students and their matched controls have seeds to permute.
    if control is not None:
        out["p_seeds"] = statistics.seed_permutation_test(
            unsafe.mean(axis=0), control.unsafe().mean(axis=0)
        )
    return out
