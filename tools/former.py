"""The functions that tables up to 2026-11-30 were made with, under the names of today's.

    python -m tools.check_intervals --functions=tools/former.py --reps=100
    python -m tools.check_intervals --functions=tools/former.py --bases=3,8 --seeds=3 --reps=100

They are read from this repository's history (`REVISION`). They knew of no crossing: a crossing's
same-base trainings are all one arm here, and its others another.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from subtransfer.analysis.crossed import Effect, Rate
from subtransfer.analysis.statistics import Difference
from subtransfer.runtime.errors import UserError

REVISION = "fb1d166"
_SAMPLES, _FLIPS = 400, 399  # of the bootstrap; of sign flips over tasks


def _former() -> Any:
    source = subprocess.run(
        ["git", "show", f"{REVISION}:subtransfer/statistics.py"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    if source.returncode:
        raise UserError(f"The history of {REVISION} is not here: {source.stderr.strip()}.")
    module = ModuleType("former_statistics")
    exec(source.stdout, vars(module))
    return module


_FORMER = _former()


def _each(function: Any, *arms: np.ndarray) -> np.ndarray:
    """Results [results, reps] of a function of one experiment's arms [reps, T, S]."""
    rows = [function(*one) for one in zip(*arms, strict=True)]
    return np.array(rows, float).T


def rate_interval(outcomes: np.ndarray, confidence: float = 0.95) -> Rate:
    """Wilson's interval at an effective number of outcomes [reps, T, S]."""
    return Rate(*_each(lambda arm: _FORMER.rate_interval(arm, confidence), outcomes))


def rate_difference(a: np.ndarray, b: np.ndarray, confidence: float = 0.95) -> Difference:
    """The bootstrap over tasks and trainings; the p of sign flips over tasks."""

    def judged(one: np.ndarray, other: np.ndarray) -> tuple[float, ...]:
        found = _FORMER.bootstrap_difference(one, other, n_boot=_SAMPLES, confidence=confidence)
        return *found, _FORMER.sign_flip_test(one.mean(1) - other.mean(1), n=_FLIPS)

    return Difference(*_each(judged, np.asarray(a, float), np.asarray(b, float)))


def rate_ratio(*arms: Any) -> Rate:
    """The bootstrap's ratio of four arms [reps, T, S], with a confidence at last."""

    def judged(*one: np.ndarray) -> tuple[float, ...]:
        return _FORMER.transfer_ratio(*one, n_boot=_SAMPLES, confidence=arms[4])

    return Rate(*_each(judged, *(np.asarray(arm, float) for arm in arms[:4])))


def _pooled(outcomes: np.ndarray) -> np.ndarray:
    """[reps, T, N] of [reps, ..., T]: all policies are trainings of one arm."""
    return np.swapaxes(outcomes.reshape(len(outcomes), -1, outcomes.shape[-1]), 1, 2)


def _parts(crossing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    own = np.eye(crossing.shape[1], dtype=bool)
    return _pooled(crossing[:, own]), _pooled(crossing[:, ~own])


def rate(outcomes: np.ndarray, confidence: float = 0.95) -> Rate:
    """`rate_interval` of outcomes [reps, K, S, T]."""
    return rate_interval(_pooled(outcomes), confidence)


def difference(
    a: np.ndarray, b: np.ndarray, confidence: float = 0.95, margin: float = 0.1
) -> tuple[Difference, np.ndarray]:
    """`rate_difference` of outcomes [reps, K, S, T]; equivalence by the 90% interval."""
    return _compared(_pooled(a), _pooled(b), confidence, margin)


def _compared(
    a: np.ndarray, b: np.ndarray, confidence: float, margin: float
) -> tuple[Difference, np.ndarray]:
    narrower = rate_difference(a, b, 2 * confidence - 1)
    outside = (narrower.low < -margin) | (narrower.high > margin)
    return rate_difference(a, b, confidence), outside.astype(float)


def effect(outcomes: np.ndarray, confidence: float = 0.95, margin: float = 0.1) -> Effect:
    """A crossing [reps, K, K, S, T] as two arms."""
    same, other = _parts(outcomes)
    found, outside = _compared(same, other, confidence, margin)
    rates = rate_interval(same, confidence), rate_interval(other, confidence)
    shape = outcomes.shape
    return Effect(*rates, found, outside, outside, shape[1], shape[3], shape[4])


def effect_ratio(
    outcomes: np.ndarray, teacher: np.ndarray, base: np.ndarray, confidence: float = 0.95
) -> Rate:
    """`rate_ratio` of a crossing."""
    return rate_ratio(*_parts(outcomes), _pooled(teacher), _pooled(base), confidence)
