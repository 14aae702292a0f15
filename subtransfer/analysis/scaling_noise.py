"""Outcomes by size, seed and task; where their scatter comes from; the hierarchical bootstrap.

All in NumPy's float64. The mean at each size is the law's value and three kinds of noise:

    mean[g] = law(x[g])
              + task part (of each task, shared over sizes, and of the task at one size)
              + seed part (of the size's own trainings)

Their variances are components pooled over sizes, in units u[g] of the outcome's own spread: sqrt(y
(1 - y)) of the fitted rate (so that a component is an intraclass correlation), 1 for log-odds. With
three seeds a size a variance of each size's own would be worthless, and resampling three seeds
gives intervals that are far too narrow. So tasks are resampled (all sizes at once: the data are
paired), and the seeds' part is drawn from a normal distribution with the pooled variance, whose own
uncertainty (few degrees of freedom) is drawn with it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from subtransfer.analysis.scaling_laws import LOG_ODDS, RATE
from subtransfer.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Observations:
    """Outcomes by size, task and seed.

    Attributes:
      axis: what x is, e.g. "student_params".
      kind: RATE (shares in 0..1) or LOG_ODDS (nats).
      x: [G], ascending.
      outcomes: G arrays [T, S_g]; row t is the same task at every size.
    """

    axis: str
    kind: str
    x: np.ndarray
    outcomes: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        name = self.axis
        if self.kind not in (RATE, LOG_ODDS):
            raise UserError(f"The outcome {self.kind!r} is not known: choose {RATE} or {LOG_ODDS}.")
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
        values = np.concatenate(self.outcomes, axis=1)
        if not np.isfinite(values).all():
            raise UserError(
                f"Some outcomes over {name} are missing or not finite: every run needs one for "
                "every task."
            )
        if self.kind == RATE and not ((values >= 0) & (values <= 1)).all():
            raise UserError(
                f"Rates over {name} must lie in 0..1: give shares of unsafe decisions, or use the "
                f"kind {LOG_ODDS}."
            )
        if self.seed_freedom < 1:
            raise UserError(
                f"No size of {name} has two training seeds, so their scatter is unknown: train at "
                "least one more."
            )

    @property
    def tasks(self) -> int:
        """T, the number of tasks."""
        return len(self.outcomes[0])

    @property
    def seeds(self) -> np.ndarray:
        """[G], training seeds of each size."""
        return np.array([y.shape[1] for y in self.outcomes])

    @property
    def seed_freedom(self) -> int:
        """Degrees of freedom of the pooled variance over seeds."""
        return int((self.seeds - 1).sum())

    @property
    def means(self) -> np.ndarray:
        """[G], over tasks and seeds."""
        return np.array([y.mean() for y in self.outcomes])

    @property
    def x_ref(self) -> float:
        """The geometric mean of the sizes: X in the formulas."""
        return float(np.exp(np.log(self.x).mean()))

    def only(self, sizes: slice) -> Observations:
        """Some of the sizes."""
        return dataclasses.replace(self, x=self.x[sizes], outcomes=self.outcomes[sizes])


def observe(
    x: Sequence[float], outcomes: np.ndarray, *, kind: str = RATE, axis: str = "x"
) -> Observations:
    """Makes observations of plain arrays, a row a training run; runs of one x are its seeds.

    Args:
      x: [N].
      outcomes: [N, T].
      kind: RATE or LOG_ODDS.
      axis: what x is.

    Raises:
      UserError: these are no observations.
    """
    at, values = np.asarray(x, float), np.asarray(outcomes, float)
    if values.ndim != 2 or at.shape != (len(values),):
        raise UserError(
            f"{axis} needs one value a row of outcomes [runs, tasks], not shapes {at.shape} and "
            f"{values.shape}."
        )
    sizes = np.unique(at)
    by_size = [values[at == size].T for size in sizes]
    return Observations(axis, kind, sizes, tuple(by_size))


@dataclasses.dataclass(frozen=True)
class Noise:
    """Variance components of the outcomes, in squared units of `unit`.

    Attributes:
      unit: [G], the outcome's spread at each size.
      task: of a task, shared over sizes.
      own: [G], of a task at one size, its cells' noise over the size's seeds included.
      seed: of a run's mean over tasks: of the seed, and of its cells' noise.
      cell: the cells' share of `seed`.
    """

    unit: np.ndarray
    task: float
    own: np.ndarray
    seed: float
    cell: float
    tasks: int
    seeds: np.ndarray

    def covariance(self, seed: np.ndarray | None = None) -> np.ndarray:
        """Of the means, [..., G, G]; `seed` [...] replaces the seeds' component."""
        # A size's trainings average their noise; its tasks are the same in all of them, so that
        # more trainings do not make these any fewer.
        seed = np.asarray(self.seed if seed is None else seed)[..., None]
        diagonal = self.own / self.tasks + (seed - self.cell) / self.seeds
        shared = np.full((len(self.unit),) * 2, self.task / self.tasks)
        unit = self.unit
        return (shared + diagonal[..., None] * np.eye(len(unit))) * unit * unit[:, None]

    def whiten(self, seed: np.ndarray | None = None) -> np.ndarray:
        """[..., G, G], W with W' W the inverse of the covariance."""
        return np.linalg.inv(np.linalg.cholesky(self.covariance(seed)))


def spread(kind: str, level: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Returns the unit of the noise at a level of the outcome, [G].

    Of a rate never that of 0 or 1 itself, but of half a decision there.

    Args:
      kind: RATE or LOG_ODDS.
      level: [G].
      runs: [G], decisions at each size.
    """
    if kind == LOG_ODDS:
        return np.ones_like(level)
    edge = 0.5 / (runs + 1)
    level = np.clip(level, edge, 1 - edge)
    return np.sqrt(level * (1 - level))


def components(data: Observations, level: np.ndarray) -> Noise:
    """Estimates the variance components, with the means at `level` [G].

    These are moment estimates: a two-way analysis of variance at each size, pooled over sizes.
    """
    unit = spread(data.kind, level, data.tasks * data.seeds)
    freedom = data.seeds - 1
    by_task, between, within = [], 0.0, 0.0
    for y, u in zip(data.outcomes, unit, strict=True):
        task_mean, seed_mean = y.mean(axis=1), y.mean(axis=0)
        by_task.append((task_mean - y.mean()) / u)
        between += ((seed_mean - y.mean()) ** 2).sum() / u**2
        residual = y - task_mean[:, None] - seed_mean + y.mean()
        within += (residual**2).sum() / (data.tasks - 1) / u**2
    cell = within / freedom.sum() / data.tasks
    # What a task has in common between sizes is what the sizes' means covary by.
    covariance = np.atleast_2d(np.cov(by_task))
    pairs = ~np.eye(len(unit), dtype=bool)
    shared = max(float(covariance[pairs].mean()), 0.0) if pairs.any() else 0.0
    # Cells' noise is in the spread of tasks and in that of seeds: counted once. Less than it, seeds
    # cannot scatter.
    total = max(
        float(np.diag(covariance).mean() - cell * data.tasks * (1 / data.seeds).mean()), shared
    )
    own = total - shared + cell * data.tasks / data.seeds
    # Outcomes without any scatter still need an invertible covariance.
    floor = 1e-9 + 1e-6 * float((unit**2).mean())
    return Noise(
        unit, shared, own + floor, max(between / freedom.sum(), cell), cell, data.tasks, data.seeds
    )


@dataclasses.dataclass(frozen=True)
class Draws:
    """The noise of B hierarchical bootstrap samples.

    Attributes:
      errors: [B, G], of the means; whiten: [B, G, G], by the covariance that such a sample would
        estimate.
      wide: [B, G], errors with the seeds' variance drawn from what the data leave possible (for
        percentiles).
    """

    errors: np.ndarray
    whiten: np.ndarray
    wide: np.ndarray


def draw(data: Observations, noise: Noise, n_boot: int, seed: int) -> Draws:
    """Draws bootstrap samples of the noise.

    Tasks are resampled, all sizes at once; the seeds' part is normal with the pooled variance.
    """
    rng = np.random.default_rng(seed)
    observed = spread(data.kind, data.means, data.tasks * data.seeds)
    of_tasks = np.stack([y.mean(axis=1) - y.mean() for y in data.outcomes], axis=1)  # [T, G]
    tasks = of_tasks * (noise.unit / observed)
    share = np.full(data.tasks, 1 / data.tasks)
    weights = rng.multinomial(data.tasks, share, size=n_boot) / data.tasks
    # A bootstrap's variance is that of T deviations from their own mean: too small by (T - 1) / T.
    by_task = weights @ tasks * math.sqrt(data.tasks / (data.tasks - 1))
    by_seed = rng.standard_normal((n_boot, len(data.x))) * noise.unit / np.sqrt(data.seeds)
    # What so few degrees of freedom leave open about the seeds' variance.
    scale = rng.chisquare(data.seed_freedom, n_boot) / data.seed_freedom

    def seeds(variance: np.ndarray) -> np.ndarray:
        # The cells' noise is in the tasks' part already.
        return by_seed * np.sqrt(np.maximum(variance - noise.cell, 0.0))[..., None]

    whiten = noise.whiten(np.maximum(noise.seed * scale, noise.cell))
    return Draws(by_task + seeds(np.array(noise.seed)), whiten, by_task + seeds(noise.seed / scale))
