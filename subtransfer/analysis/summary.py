"""From probe episodes to one row an arm, and to sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subtransfer.analysis import statistics

COLUMNS = (
    "arm", "objective", "init", "sanitized", "n_tasks", "n_seeds", "unsafe_rate", "ci_low", "ci_high", "diff_base",
    "diff_low", "diff_high", "p_holm", "role", "label", "base", "control", "twin", "diff_control", "diff_control_low",
    "diff_control_high", "diff_twin", "diff_twin_low", "diff_twin_high", "transfer_ratio", "ratio_low", "ratio_high",
    "p_value", "p_seeds", "greedy_unsafe_rate", "no_action_rate", "invalid_rate", "choice_logprob", "choice_shift",
    "ordinary_success", "path_error_rate",
)  # fmt: skip


class Outcomes:
    """The episodes of one arm, as arrays [T, S] of tasks by training seeds (repeated samples
    averaged).
    """

    def __init__(self, episodes: Sequence[Mapping[str, Any]]):
        self.tasks = sorted({e["task_id"] for e in episodes})
        self.seeds = sorted({e["seed"] for e in episodes})
        self._task = {t: i for i, t in enumerate(self.tasks)}
        self._seed = {s: i for i, s in enumerate(self.seeds)}
        self._modes = {m: [e for e in episodes if e["mode"] == m] for m in ("sampled", "greedy")}
        self.samples = max(e["sample"] for e in self._modes["sampled"]) + 1

    def mean(self, value, mode: str = "sampled") -> np.ndarray:
        """[T, S] means of `value(episode)`; NaN where an episode is missing."""
        total = np.zeros((len(self.tasks), len(self.seeds)))
        count = np.zeros_like(total)
        for e in self._modes[mode]:
            at = self._task[e["task_id"]], self._seed[e["seed"]]
            total[at] += value(e)
            count[at] += 1
        with np.errstate(invalid="ignore"):
            return total / np.where(count, count, np.nan)

    def unsafe(self, mode: str = "sampled") -> np.ndarray:
        return self.mean(lambda e: e["outcome"] == "unsafe", mode)

    def counts(self, error: str) -> bool:
        """Whether these episodes count that kind of error."""
        return all(error in e["errors"] for e in self._modes["sampled"])

    def rate(self, outcome: str) -> float:
        return float(np.nanmean(self.mean(lambda e: e["outcome"] == outcome)))


def summarise(
    results: Mapping[str, Any],
    episodes: Sequence[Mapping[str, Any]],
    *,
    acts: Sequence[str],
    confidence: float,
    n_boot: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One row an arm, in the order of `results["arms"]`; keys are `COLUMNS`, `rate_ACT` for each
    benign act, and `unsupported_rate` in a setting that counts what it does not simulate.
    """
    groups: dict[str, list] = {}
    for e in episodes:
        groups.setdefault(e["arm"], []).append(e)
    outcomes = {arm: Outcomes(group) for arm, group in groups.items()}
    options = {"n_boot": n_boot, "seed": seed, "confidence": confidence}
    rows = []
    for arm in results["arms"]:
        own = outcomes[arm["arm"]]
        rate, low, high = statistics.rate_interval(own.unsafe(), confidence)
        row: dict[str, Any] = {column: None for column in COLUMNS}
        row |= {
            k: arm[k]
            for k in (
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
        }
        row |= {"n_tasks": len(own.tasks), "n_seeds": len(own.seeds)}
        row |= {"unsafe_rate": rate, "ci_low": low, "ci_high": high}
        row |= _diagnostics(own, acts, results["capability"].get(arm["arm"], {}))
        if arm["base"] != arm["arm"]:
            row |= _comparisons(arm, outcomes, options)
        rows.append(row)
    for row, adjusted in zip(rows, statistics.holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


def _diagnostics(
    own: Outcomes, acts: Sequence[str], capability: Mapping[str, Any]
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "greedy_unsafe_rate": float(own.unsafe("greedy").mean()),
        "no_action_rate": own.rate("no_action"),
        "invalid_rate": own.rate("invalid"),
        "choice_logprob": float(own.mean(lambda e: e["choice_logprob"]).mean()),
        "path_error_rate": float(own.mean(lambda e: e["errors"]["unknown_path"] > 0).mean()),
    }
    if capability:
        out["ordinary_success"] = float(
            np.mean([c["ordinary_success"] for c in capability.values()])
        )
    if own.counts("unsupported"):
        out["unsupported_rate"] = float(own.mean(lambda e: e["errors"]["unsupported"] > 0).mean())
    return out | {f"rate_{act}": own.rate(act) for act in acts}


def _comparisons(
    arm: Mapping[str, Any], outcomes: Mapping[str, Outcomes], options: Mapping[str, Any]
) -> dict[str, Any]:
    own, base = outcomes[arm["arm"]], outcomes[arm["base"]]
    out: dict[str, Any] = {}
    mine, theirs = own.unsafe(), base.unsafe()
    out["diff_base"], out["diff_low"], out["diff_high"] = statistics.bootstrap_difference(
        mine, theirs, **options
    )
    for what in ("control", "twin"):
        other = outcomes.get(arm[what]) if arm[what] else None
        if other is not None:
            values = statistics.bootstrap_difference(mine, other.unsafe(), **options)
            out |= dict(
                zip((f"diff_{what}", f"diff_{what}_low", f"diff_{what}_high"), values, strict=True)
            )
    control = outcomes.get(arm["control"]) if arm["control"] else None
    teacher = outcomes.get(arm["teacher"]) if arm["teacher"] else None
    if control is not None and teacher is not None:
        untuned = outcomes[
            arm["teacher_base"]
        ].unsafe()  # what the teacher's habit is measured against
        values = statistics.transfer_ratio(
            mine, control.unsafe(), teacher.unsafe(), untuned, **options
        )
        out |= dict(zip(("transfer_ratio", "ratio_low", "ratio_high"), values, strict=True))
    logprob = [o.mean(lambda e: e["choice_logprob"]).mean(axis=1) for o in (own, base)]
    out["choice_shift"] = float((logprob[0] - logprob[1]).mean())
    if len(own.seeds) == len(base.seeds) == 1 and own.samples == base.samples == 1:
        out["p_value"] = statistics.mcnemar_midp(mine[:, 0] > 0.5, theirs[:, 0] > 0.5)
    else:
        out["p_value"] = statistics.sign_flip_test(
            mine.mean(axis=1) - theirs.mean(axis=1), seed=options["seed"]
        )
    # A base is trained once: only students and their matched controls have seeds to permute.
    if control is not None:
        out["p_seeds"] = statistics.seed_permutation_test(
            mine.mean(axis=0), control.unsafe().mean(axis=0)
        )
    return out


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table says about each student and control, in plain sentences; failures are named as
    such.
    """
    by_name = {row["arm"]: row for row in rows}
    out = []
    for row in rows:
        own = f"{row['label']}: {_percent(row)}"
        if row["role"] == "student":
            parts = []
            for what in ("base", "twin"):
                other = by_name.get(row[what]) if row[what] else None
                if other is not None:
                    above = row["ci_low"] > other["ci_high"]
                    name = "base" if what == "base" else "its different-init twin"
                    parts.append(
                        f"{'wholly above' if above else 'NOT wholly above'} {name} ({_percent(other)})"
                    )
            out.append(f"{own}: {' and '.join(parts)}.")
        elif row["role"] == "control" and row["diff_low"] is not None:
            shift = f"{100 * row['diff_base']:+.1f} points [{100 * row['diff_low']:+.1f}, {100 * row['diff_high']:+.1f}]"
            rises = row["diff_low"] > 0
            out.append(
                f"{own}: {'RISES above' if rises else 'does not rise above'} its base ({shift})."
            )
    return out


def _percent(row: Mapping[str, Any]) -> str:
    return (
        f"{100 * row['unsafe_rate']:.1f}% [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
    )
