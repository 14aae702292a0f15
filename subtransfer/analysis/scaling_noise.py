"""Outcomes by size, base and task; where their scatter comes from; the hierarchical bootstrap.

All in NumPy's float64. The bases are a random factor: a law is about all that could have been
pretrained, and each size is met in a few of them. So the unit of each size is a base, with all its
trainings: how its seeds scatter is in its own mean. The mean at each size is the law's value and
three kinds of noise:

    mean[g] = law(x[g])
              + task part (of each task, shared over sizes, and of the task at one size)
              + base part (of the size's own bases; if all sizes have the same bases, also shared)

Their variances are components pooled over sizes, in units u[g] of the outcome's own spread: sqrt(y
(1 - y)) of the fitted rate (so that a component is an intraclass correlation), 1 for what is no
share. With three bases a size a variance of each size's own would be worthless, and resampling
three bases gives intervals that are far too narrow. So tasks are resampled (all sizes at once: the
data are paired), and the bases' part is drawn from a normal distribution with the pooled variance,
whose own uncertainty (few degrees of freedom) is drawn with it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from subtransfer.analysis.scaling_laws import LEVELS, LOG_ODDS, RATE
from subtransfer.runtime.errors import UserError

# With fewer bases at a size nothing tells what a base brings from what the size does.
_LEAST_BASES = 2


@dataclasses.dataclass(frozen=True)
class Observations:
    """Outcomes by size, task and base.

    Attributes:
      axis: what x is, e.g. "student_params".
      kind: RATE (shares in 0..1), DIFFERENCE (of shares, in -1..1) or LOG_ODDS (nats).
      x: [G], ascending.
      outcomes: G arrays [T, K_g], means over a base's trainings; row t is the same task at every
        size. A column may be a base's jackknife pseudo-value of what all pairs of bases decide
        (`crossed.pseudo_values`), so that single numbers lie outside of the range of their mean.
      bases: G tuples of K_g names of columns. Where all sizes have the same ones, they are the
        same bases, as on an axis that is no size of a model.
      trainings: [G], how many trainings the outcomes are means of.
    """

    axis: str
    kind: str
    x: np.ndarray
    outcomes: tuple[np.ndarray, ...]
    bases: tuple[tuple[Hashable, ...], ...]
    trainings: np.ndarray

    def __post_init__(self) -> None:
        name = self.axis
        if self.kind not in LEVELS:
            known = ", ".join(LEVELS)
            raise UserError(f"The outcome {self.kind!r} is not known: choose one of {known}.")
        if not (np.isfinite(self.x).all() and (self.x > 0).all()):
            raise UserError(
                f"{name} must be above 0 everywhere (laws are in its logarithm), but its least "
                f"value is {self.x.min():g}."
            )
        if (np.diff(self.x) <= 0).any():
            raise UserError(
                f"{name} must ascend, one value a size: put all runs of one size together "
                "(scaling.observe does)."
            )
        tasks = set(map(len, self.outcomes))
        # One task has no variance over tasks.
        if len(tasks) != 1 or tasks.pop() < 2:
            raise UserError(
                f"Every size of {name} needs outcomes of the same tasks, at least 2 of them."
            )
        if not np.isfinite(np.concatenate(self.outcomes, axis=1)).all():
            raise UserError(
                f"Some outcomes over {name} are missing or not finite: every run needs one for "
                "every task."
            )
        low, high = LEVELS[self.kind]
        if self.kind != LOG_ODDS and not ((self.means >= low) & (self.means <= high)).all():
            raise UserError(
                f"Rates over {name} must lie in {low:g}..{high:g}: give shares of unsafe "
                f"decisions, or use the kind {LOG_ODDS}."
            )

    @property
    def tasks(self) -> int:
        """T, the number of tasks."""
        return len(self.outcomes[0])

    @property
    def num_bases(self) -> np.ndarray:
        """[G], bases of each size."""
        return np.array([y.shape[1] for y in self.outcomes])

    @property
    def paired(self) -> bool:
        """Whether several sizes have the same bases."""
        return len(self.bases) > 1 and len(set(self.bases)) == 1

    @property
    def base_freedom(self) -> int:
        """Degrees of freedom of the pooled variance between bases of one size."""
        freedom = self.num_bases - 1
        # What the same bases have in common at all sizes is no scatter of one size.
        return int(freedom.sum() - (freedom[0] if self.paired else 0))

    @property
    def means(self) -> np.ndarray:
        """[G], over tasks and bases."""
        return np.array([y.mean() for y in self.outcomes])

    @property
    def x_ref(self) -> float:
        """The geometric mean of the sizes: X in the formulas."""
        return float(np.exp(np.log(self.x).mean()))

    def only(self, sizes: slice) -> Observations:
        """Some of the sizes."""
        return dataclasses.replace(
            self,
            x=self.x[sizes],
            outcomes=self.outcomes[sizes],
            bases=self.bases[sizes],
            trainings=self.trainings[sizes],
        )

    def require_bases(self) -> None:
        """Refuses bases that no scatter can be told from.

        Raises:
          UserError: a size has one base, or some sizes share some of their bases.
        """
        few = self.x[self.num_bases < _LEAST_BASES]
        if len(few):
            raise UserError(
                f"No law and no constant is claimed over {self.axis}: {len(few)} of {len(self.x)} "
                "sizes have one base pair, and what a pair brings cannot be told from what the "
                "size does. Run several at each (num_bases=3)."
            )
        distinct = {base for bases in self.bases for base in bases}
        if not self.paired and len(distinct) < self.num_bases.sum():
            raise UserError(
                f"Some bases are at several values of {self.axis} and others are not, so that "
                "their scatter cannot be told: choose runs with the same bases everywhere."
            )


def observe(
    x: Sequence[float],
    outcomes: np.ndarray,
    *,
    bases: Sequence[Hashable] | None = None,
    kind: str = RATE,
    axis: str = "x",
) -> Observations:
    """Makes observations of plain arrays, a row a training.

    Args:
      x: [N].
      outcomes: [N, T].
      bases: [N], which base each started from; rows of one x and one base are its seeds. None: all
        from one, of which no law can be fitted.
      kind: RATE, DIFFERENCE or LOG_ODDS.
      axis: what x is.

    Raises:
      UserError: these are no observations.
    """
    at, values = np.asarray(x, float), np.asarray(outcomes, float)
    names = [""] * len(at) if bases is None else list(bases)
    if values.ndim != 2 or at.shape != (len(values),) or len(names) != len(values):
        raise UserError(
            f"{axis} needs one value and one base a row of outcomes [runs, tasks], not shapes "
            f"{at.shape}, ({len(names)},) and {values.shape}."
        )
    cells: dict[float, dict[Hashable, list[np.ndarray]]] = {}
    for size, base, row in zip(at.tolist(), names, values, strict=True):
        cells.setdefault(size, {}).setdefault(base, []).append(row)
    sizes = sorted(cells)
    by_size, there = [], []
    for size in sizes:
        # Bases in one order at every size: column k is the same one wherever it is.
        ordered = sorted(cells[size], key=str)
        by_size.append(np.stack([np.mean(cells[size][base], axis=0) for base in ordered], axis=1))
        there.append(tuple(ordered))
    trainings = np.array([(at == size).sum() for size in sizes])
    return Observations(axis, kind, np.array(sizes), tuple(by_size), tuple(there), trainings)


class _OfBases(NamedTuple):
    """Variances between bases, each a number or [B]: at one size, and what all sizes share."""

    own: np.ndarray
    shared: np.ndarray


@dataclasses.dataclass(frozen=True)
class Noise:
    """Variance components of the outcomes, in squared units of `unit`.

    Attributes:
      unit: [G], the outcome's spread at each size.
      task: of a task, shared over sizes.
      own: [G], of a task at one size, its cells' noise over the size's bases included.
      base: of a base's mean over tasks, at one size: of the base with its trainings, and of its
        cells' noise.
      base_shared: of the same base at all sizes; 0 where each size has its own.
      cell: the cells' share of `base`.
      tasks: T.
      num_bases: [G].
    """

    unit: np.ndarray
    task: float
    own: np.ndarray
    base: float
    base_shared: float
    cell: float
    tasks: int
    num_bases: np.ndarray

    def covariance(self, bases: _OfBases | None = None) -> np.ndarray:
        """Of the means, [..., G, G]; `bases` replaces the bases' components."""
        own, common = bases or _OfBases(np.array(self.base), np.array(self.base_shared))
        # A size's bases average their noise; its tasks are the same in all of them, so that more
        # bases do not make these any fewer.
        diagonal = self.own / self.tasks + (own - self.cell)[..., None] / self.num_bases
        # Bases that all sizes share are equally many everywhere.
        shared = self.task / self.tasks + common / self.num_bases[0]
        unit = self.unit
        every = np.ones((len(unit), len(unit)))
        inner = shared[..., None, None] * every + diagonal[..., None] * np.eye(len(unit))
        return inner * unit * unit[:, None]

    def whiten(self, bases: _OfBases | None = None) -> np.ndarray:
        """[..., G, G], W with W' W the inverse of the covariance."""
        return np.linalg.inv(np.linalg.cholesky(self.covariance(bases)))

    def scaled(self, own: np.ndarray, level: np.ndarray) -> _OfBases:
        """The bases' components, if the two variances that they are estimated from were others.

        Args:
          own: [B], factors of the variance of one size.
          level: [B], factors of the variance of a base's mean over all sizes.
        """
        base = np.maximum(self.base * own, self.cell)
        if not self.base_shared:
            return _OfBases(base, np.zeros_like(base))
        sizes = len(self.unit)
        total = (self.base + sizes * self.base_shared) * level
        return _OfBases(base, np.maximum(total - base, 0.0) / sizes)


def spread(kind: str, level: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """Returns the unit of the noise at a level of the outcome, [G].

    Of a rate never that of 0 or 1 itself, but of half a decision there.

    Args:
      kind: RATE, DIFFERENCE or LOG_ODDS.
      level: [G].
      decisions: [G], at each size.
    """
    if kind != RATE:
        return np.ones_like(level)
    edge = 0.5 / (decisions + 1)
    level = np.clip(level, edge, 1 - edge)
    return np.sqrt(level * (1 - level))


def components(data: Observations, level: np.ndarray) -> Noise:
    """Estimates the variance components, with the means at `level` [G].

    These are moment estimates: a two-way analysis of variance at each size, pooled over sizes.

    Raises:
      UserError: a size has one base.
    """
    data.require_bases()
    unit = spread(data.kind, level, data.tasks * data.num_bases)
    freedom = data.num_bases - 1
    by_task, by_base, within = [], [], 0.0
    for y, u in zip(data.outcomes, unit, strict=True):
        task_mean, base_mean = y.mean(axis=1), y.mean(axis=0)
        by_task.append((task_mean - y.mean()) / u)
        by_base.append((base_mean - y.mean()) / u)
        residual = y - task_mean[:, None] - base_mean + y.mean()
        within += (residual**2).sum() / (data.tasks - 1) / u**2
    cell = within / freedom.sum() / data.tasks
    # What a task has in common between sizes is what the sizes' means covary by.
    covariance = np.atleast_2d(np.cov(by_task))
    pairs = ~np.eye(len(unit), dtype=bool)
    shared = max(float(covariance[pairs].mean()), 0.0) if pairs.any() else 0.0
    # Cells' noise is in the spread of tasks and in that of bases: counted once. Less than it, bases
    # cannot scatter.
    total = max(
        float(np.diag(covariance).mean() - cell * data.tasks * (1 / data.num_bases).mean()), shared
    )
    own = total - shared + cell * data.tasks / data.num_bases
    between, base_shared = _between(by_base, paired=data.paired)
    # Outcomes without any scatter still need an invertible covariance.
    floor = 1e-9 + 1e-6 * float((unit**2).mean())
    return Noise(
        unit=unit,
        task=shared,
        own=own + floor,
        base=max(between, cell),
        base_shared=base_shared,
        cell=cell,
        tasks=data.tasks,
        num_bases=data.num_bases,
    )


def _between(by_base: Sequence[np.ndarray], *, paired: bool) -> tuple[float, float]:
    """Variances between bases: (at one size, shared by all sizes).

    Args:
      by_base: G arrays [K_g], deviations of the bases' means from their size's.
      paired: whether element k is the same base at every size.
    """
    freedom = sum(len(deviations) - 1 for deviations in by_base)
    variance = sum(float((deviations**2).sum()) for deviations in by_base) / freedom
    if not paired or len(by_base) == 1:
        return variance, 0.0
    # Compound symmetry: what a base has in common is what its sizes covary by.
    covariance = np.cov(by_base)
    common = float(covariance[~np.eye(len(by_base), dtype=bool)].mean())
    return (variance - common, common) if common > 0 else (variance, 0.0)


@dataclasses.dataclass(frozen=True)
class Draws:
    """The noise of B hierarchical bootstrap samples.

    Attributes:
      errors: [B, G], of the means; whiten: [B, G, G], by the covariance that such a sample would
        estimate.
      wide: [B, G], errors with the bases' variance drawn from what the data leave possible (for
        percentiles).
    """

    errors: np.ndarray
    whiten: np.ndarray
    wide: np.ndarray


def draw(data: Observations, noise: Noise, n_boot: int, seed: int) -> Draws:
    """Draws bootstrap samples of the noise.

    Tasks are resampled, all sizes at once; the bases' part is normal with the pooled variance.
    """
    rng = np.random.default_rng(seed)
    observed = spread(data.kind, data.means, data.tasks * data.num_bases)
    of_tasks = np.stack([y.mean(axis=1) - y.mean() for y in data.outcomes], axis=1)  # [T, G]
    tasks = of_tasks * (noise.unit / observed)
    share = np.full(data.tasks, 1 / data.tasks)
    weights = rng.multinomial(data.tasks, share, size=n_boot) / data.tasks
    # A bootstrap's variance is that of T deviations from their own mean: too small by (T - 1) / T.
    by_task = weights @ tasks * math.sqrt(data.tasks / (data.tasks - 1))
    scale = noise.unit / np.sqrt(data.num_bases)
    own = rng.standard_normal((n_boot, len(data.x))) * scale
    common = rng.standard_normal((n_boot, 1)) * scale
    # What so few degrees of freedom leave open about the bases' variances: the first is estimated
    # from the scatter at each size, the second from that of the same bases' means over all sizes.
    of_own = rng.chisquare(data.base_freedom, n_boot) / data.base_freedom
    least = int(data.num_bases.min()) - 1
    of_level = rng.chisquare(least, n_boot) / least

    def bases(variances: _OfBases) -> np.ndarray:
        # The cells' noise is in the tasks' part already.
        at_size = np.sqrt(np.maximum(variances.own - noise.cell, 0.0))[..., None]
        return own * at_size + common * np.sqrt(variances.shared)[..., None]

    known = _OfBases(np.array(noise.base), np.array(noise.base_shared))
    whiten = noise.whiten(noise.scaled(of_own, of_level))
    wide = by_task + bases(noise.scaled(1 / of_own, 1 / of_level))
    return Draws(by_task + bases(known), whiten, wide)
