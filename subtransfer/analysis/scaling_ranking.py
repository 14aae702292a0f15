"""Which scaling laws could have made the data: AICc, laws that are ruled out, and the power to.

A law is fitted here for its sum of squares alone; `scaling` adds intervals, bands and sentences.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from subtransfer.analysis.scaling_laws import (
    CONSTANT,
    DIFFERENCE,
    EVERY,
    LEVELS,
    LOG_ODDS,
    RATE,
    Law,
    Problem,
)
from subtransfer.analysis.scaling_noise import Draws, Noise, Observations, components, draw
from subtransfer.runtime.errors import UserError

# A law falls below this p: that only one stands is a strong claim, and several laws are tried.
RULED_OUT = 0.01
# The power to rule out a constant is told for this change from the first size to the last, and the
# change is told that is found in so many of studies.
CHANGES = {RATE: 0.2, DIFFERENCE: 0.2, LOG_ODDS: 2.0}
WANTED_POWER = 0.8
# Changes that are tried for that, in standard errors of a size's mean, and with how many samples.
_TRIED = np.array([2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0])
_POWER_SAMPLES = 200
# Passes of fitting and weighing anew, as rates' variances depend on the fitted curve.
_PASSES = 3


def problem_of(data: Observations, law: Law) -> Problem:
    """Returns a law as a problem over the sizes of the data."""
    z = data.x / data.x_ref
    return Problem(law, z, *law.bounds(data.kind, z))


def weighted(data: Observations, laws: Sequence[Law]) -> Noise:
    """Returns the noise at the fitted curve.

    Of several laws, at the mean of their curves weighed by exp(-AICc / 2).
    """
    level = data.means
    for _ in range(_PASSES):
        noise = components(data, level)
        # Only a rate's noise is taken to depend on its level.
        if data.kind != RATE:
            break
        whiten = noise.whiten()[None]
        scores, curves = [], []
        for law in laws:
            problem = problem_of(data, law)
            theta, chi2 = problem.minimise(data.means[None], whiten)
            scores.append(aicc(chi2[0], law, data))
            curves.append(law.values(problem.z, theta[0]))
        weights = np.exp((min(scores) - np.array(scores)) / 2)
        level = weights @ np.array(curves) / weights.sum()
    return noise


def aicc(chi2: Any, law: Law, data: Observations) -> Any:
    """Akaike's criterion with the small-sample correction (Hurvich & Tsai 1989).

    The covariance is common to all laws, so that chi2 is -2 log likelihood up to a constant. n is
    the number of bases; k that of the law's parameters and the variance over bases.

    Args:
      chi2: weighted squares of residuals, a number or an array of them.
      law: that was fitted.
      data: what it was fitted to.

    Returns:
      The criterion, of the shape of `chi2`.
    """
    n, k = int(data.num_bases.sum()), len(law.parameters) + 1
    return chi2 + 2 * k + 2 * k * (k + 1) / max(n - k - 1, 1)


def best(problem: Problem, means: np.ndarray, whiten: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the best internal parameters [P] for means [G], and their chi squared."""
    # This fit decides about all that follows, so it alone is polished from every start.
    thetas, losses = problem.minimise(means[None], whiten[None], polished=EVERY)
    return thetas[0], float(losses[0])


class Power(NamedTuple):
    """How well a study with this design and this noise tells a change from none.

    The change is straight in the logarithm of x, from the first size to the last.

    Attributes:
      change: of the outcome, from `CHANGES`.
      share: of studies with that change in which a constant would be ruled out.
      least: the change that rules it out in 80% of studies; infinite if the outcome's range has
        none.
    """

    change: float
    share: float
    least: float


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Which laws could have made the data.

    Attributes:
      data: what they were fitted to.
      noise: of the means, by which all laws are weighed.
      delta: by law, AICc above the best law's.
      p: by law, how often data from it would give as large a delta (the best law's is 1).
      power: to rule out a constant; None where that was not compared with another law.
    """

    data: Observations
    noise: Noise
    delta: dict[str, float]
    p: dict[str, float]
    power: Power | None

    @property
    def ranked(self) -> list[str]:
        """All fitted laws, best first."""
        return sorted(self.delta, key=lambda name: self.delta[name])

    @property
    def standing(self) -> list[str]:
        """The laws that the data do not rule out, best first."""
        return [name for name in self.ranked if self.p[name] >= RULED_OUT]

    @property
    def distinguished(self) -> bool:
        """Whether one law alone stands."""
        return len(self.standing) == 1


def rank(
    data: Observations, laws: Sequence[Law], *, n_boot: int = 400, seed: int = 0, power: bool = True
) -> Ranking:
    """Ranks laws on the same data, and rules out those that could not have made it.

    They are ranked by AICc. A law is ruled out if its AICc stands as far above the best law's in
    fewer than `RULED_OUT` of the bootstrap samples drawn around the law's own curve, all laws
    fitted to each. So neither the penalty for a parameter nor luck decides alone: two laws with the
    same curve over these sizes stand or fall together, however many parameters they have.

    Args:
      data: the outcomes by size.
      laws: the candidates, which there are enough sizes for.
      n_boot: bootstrap samples.
      seed: of the bootstrap.
      power: whether that is computed, too.

    Raises:
      UserError: a size has one base, or there are too few samples to rule out a law.
    """
    if n_boot * RULED_OUT < 1:
        enough = f"{1 / RULED_OUT:.0f}"
        raise UserError(
            f"{n_boot} bootstrap samples cannot rule out a law at p < {RULED_OUT}: use "
            f"n_boot={enough} or more."
        )
    # All laws are weighed alike: sums of squares with different weights could not be compared.
    noise = weighted(data, laws)
    found = []
    for law in laws:
        theta, chi2 = best(problem_of(data, law), data.means, noise.whiten())
        found.append(_Candidate(problem_of(data, law), theta, float(aicc(chi2, law, data))))
    least = min(candidate.score for candidate in found)
    boot = draw(data, noise, n_boot, seed)
    delta = {}
    p = {}
    for candidate in found:
        name = candidate.problem.law.name
        delta[name] = candidate.score - least
        p[name] = _as_far(data, found, candidate, boot, delta[name])
    told = None
    if power and CONSTANT.name in delta and len(found) > 1:
        told = _power(data, found, noise, boot)
    return Ranking(data, noise, delta, p, told)


class _Candidate(NamedTuple):
    """A law over the sizes, its best internal parameters [P] and their AICc."""

    problem: Problem
    theta: np.ndarray
    score: float


def _gaps(
    data: Observations,
    found: Sequence[_Candidate],
    law: Law,
    means: np.ndarray,
    whiten: np.ndarray,
) -> np.ndarray:
    """AICc of a law above the best one's, [N], when all candidates are fitted to means [N, G]."""
    scores = {}
    for candidate in found:
        problem = candidate.problem
        near = np.broadcast_to(candidate.theta, (len(means), len(candidate.theta)))
        _, chi2 = problem.minimise(means, whiten, near=near)
        scores[problem.law.name] = aicc(chi2, problem.law, data)
    return scores[law.name] - np.min(list(scores.values()), axis=0)


def _as_far(
    data: Observations,
    found: Sequence[_Candidate],
    candidate: _Candidate,
    boot: Draws,
    delta: float,
) -> float:
    """Share of samples around a law's curve whose AICc is at least `delta` above the best law's."""
    # The best law itself cannot be ruled out by being behind.
    if delta == 0:
        return 1.0
    problem = candidate.problem
    means = problem.law.values(problem.z, candidate.theta) + boot.errors
    gaps = _gaps(data, found, problem.law, means, boot.whiten)
    return float((1 + (gaps >= delta - 1e-9).sum()) / (1 + len(gaps)))


def _power(data: Observations, found: Sequence[_Candidate], noise: Noise, boot: Draws) -> Power:
    """The power to rule out a constant, by samples of the noise around straight changes."""
    errors, whiten = boot.errors[:_POWER_SAMPLES], boot.whiten[:_POWER_SAMPLES]
    low, high = LEVELS[data.kind]
    places = np.log(data.x / data.x[0]) / np.log(data.x[-1] / data.x[0])
    error = float(np.sqrt(np.diag(noise.covariance()).mean()))
    changes = np.array([0.0, CHANGES[data.kind], *(error * _TRIED)])
    changes = changes[changes <= high - low]
    # Around the mean that was found, but as far inside as the change needs.
    middles = np.clip(data.means.mean(), low + changes / 2, high - changes / 2)
    curves = middles[:, None] + changes[:, None] * (places - 0.5)  # [C, G]
    samples = (curves[:, None] + errors).reshape(-1, len(data.x))
    repeated = np.broadcast_to(whiten, (len(changes), *whiten.shape)).reshape(-1, *whiten.shape[1:])
    gaps = _gaps(data, found, CONSTANT, samples, repeated).reshape(len(changes), -1)
    # As for a verdict, with the samples around no change as the bootstrap's.
    beyond = (gaps[0] >= gaps[..., None] - 1e-9).sum(-1)
    shares = ((1 + beyond) / (1 + len(errors)) < RULED_OUT).mean(axis=1)
    # More is found of a larger change; of so few samples not always.
    order = np.argsort(changes)
    rising = np.maximum.accumulate(shares[order])
    least = math.inf
    if rising[-1] >= WANTED_POWER:
        least = float(np.interp(WANTED_POWER, rising, changes[order]))
    return Power(CHANGES[data.kind], float(shares[1]), least)
