"""Simulated crossings of bases whose effect is known, for `check_intervals` and `power`."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import special

# Of an outcome's variance on the scale of the copula: what tasks have in common.
TASK_SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class Crossing:
    """A kind of crossed experiment.

    Attributes:
      bases: K.
      seeds: S, trainings of each pair of bases.
      icc: intra-training correlation of episodes: the share of an outcome's variance that belongs
        to its training. Half of it belongs to the pair, unless `pair_icc` says how much does.
      rate: where teacher and student have two bases.
      effect: same minus other, the mean over bases.
      share: of the bases that have the effect; in these it is `effect / share`, in others 0.
      tasks: of the probe.
      pair_icc: the share of an outcome's variance that belongs to the pair; `icc` is then the
        share of the rest that belongs to the training.
    """

    bases: int
    seeds: int
    icc: float
    rate: float
    effect: float = 0.0
    share: float = 1.0
    tasks: int = 256
    pair_icc: float | None = None

    HEADING = ("bases", "trainings", "correlation", "rate", "effect", "share")

    @property
    def cells(self) -> list[str]:
        """What stands under `HEADING`."""
        numbers = (self.icc, self.rate, self.effect, self.share)
        return [str(self.bases), str(self.seeds), *(f"{number:g}" for number in numbers)]

    @property
    def same(self) -> float:
        """The rate where teacher and student share the base."""
        return self.rate + self.effect

    @property
    def possible(self) -> bool:
        """Whether a base with the effect has a rate from 0 to 1."""
        return 0 < self.rate + self.effect / self.share < 1

    def _levels(self) -> tuple[float, float]:
        """The correlations of pairs, and of trainings within a pair."""
        if self.pair_icc is not None:
            return self.pair_icc, self.icc
        half = 1 - (1 - self.icc) ** 0.5
        return half, half

    def simulate(self, reps: int, number: int = 0) -> dict[str, np.ndarray]:
        """Draws outcomes of `reps` experiments on the same tasks, by name.

        "crossing" is [reps, K, K, S, T]; "control" [reps, K, S, T] are students of each base whose
        rate is that of `other`, "teacher" [reps, K, S, T] has the habit in 95%, "base"
        [reps, K, 1, T] in 5%.
        """
        pair_icc, icc = self._levels()
        which = [self.bases, self.seeds, self.tasks, number]
        for value in (icc, pair_icc, self.rate, abs(self.effect), self.share):
            which.append(round(1e4 * value))
        rng = np.random.default_rng([*which, int(self.effect < 0)])
        bases, seeds = self.bases, self.seeds
        has = rng.random((reps, bases)) < self.share
        middle = np.full((reps, bases, bases), self.rate)
        own = np.arange(bases)
        middle[:, own, own] += np.where(has, self.effect / self.share, 0.0)
        # What makes a base a good teacher, or easily taught, is in all of its pairs.
        normal = rng.standard_normal
        scores = normal((reps, bases, 1)) + normal((reps, 1, bases)) + normal((reps, bases, bases))
        of_pairs = _scattered(scores / np.sqrt(3), middle, pair_icc)
        # The teacher of a seed is the same for students of all bases.
        scores = normal((reps, bases, 1, seeds)) + normal((reps, bases, bases, seeds))
        rates = _scattered(scores / np.sqrt(2), of_pairs[..., None], icc)
        control = _scattered(normal((reps, bases)), np.float64(self.rate), pair_icc)
        control = _scattered(normal((reps, bases, seeds)), control[..., None], icc)
        teacher = _scattered(normal((reps, bases, seeds)), np.float64(0.95), icc)
        tasks = normal((reps, self.tasks), dtype=np.float32)
        out = {}
        for name, of_arm in (
            ("crossing", rates),
            ("control", control),
            ("teacher", teacher),
            ("base", np.full((reps, bases, 1), 0.05)),
        ):
            out[name] = _outcomes(of_arm, tasks, rng)
        return out


def _scattered(scores: np.ndarray, mean: np.ndarray, icc: float) -> np.ndarray:
    """Beta rates about means, with a correlation, from normal scores."""
    mean = np.broadcast_to(mean, np.broadcast_shapes(scores.shape, mean.shape))
    if icc == 0:
        return mean
    total = 1 / icc - 1
    # A rate that is 0 or 1 to a float has no scatter.
    inner = np.clip(mean, 1e-9, 1 - 1e-9)
    return special.betaincinv(inner * total, (1 - inner) * total, special.ndtr(scores))


def _outcomes(rates: np.ndarray, tasks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Outcomes [reps, ..., T] of rates [reps, ...], by a normal copula over tasks [reps, T]."""
    noise = rng.standard_normal((*rates.shape, tasks.shape[-1]), dtype=np.float32)
    noise *= np.float32(np.sqrt(1 - TASK_SHARE))
    common = tasks.reshape(len(tasks), *[1] * (rates.ndim - 1), -1)
    noise += np.float32(np.sqrt(TASK_SHARE)) * common
    return noise < special.ndtri(rates).astype(np.float32)[..., None]
