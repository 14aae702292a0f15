"""Candidate scaling laws, and the weighted least-squares fit of many data sets at once.

All in NumPy's float64.

Every law is linear in its *levels* given its *shape*: y = levels . basis(x; shape). That is used
twice: the starts of a fit are a grid over the shape with the best levels for each (so that no start
is guessed or random), and the derivatives by the levels are the basis itself. A bootstrap needs
thousands of such small fits, which `minimise` descends together; SciPy's least_squares takes
milliseconds for each (tests/test_scaling.py compares the two).

Sizes enter as z = x / x_ref, x_ref being their geometric mean: a level is then a value inside the
data and not at x = 1.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

RATE, DIFFERENCE, LOG_ODDS = "rate", "difference", "log_odds"
# Bounds of a value of the outcome: a share; a difference of shares; nats.
LEVELS = {
    RATE: (0.0, 1.0),
    DIFFERENCE: (-1.0, 1.0),
    LOG_ODDS: (-30.0, 30.0),
}
EVERY = 99  # more starts than any law has values of its last parameter
# Of the central differences by a shape parameter, in its internal (mostly logarithmic) units.
_STEP = 1e-5


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    Attributes:
      name: as in the formula.
      meaning: what a person reads.
      unit: "outcome" (a share, or nats), "x" (the axis's own) or "" (a pure number).
      low, high: bounds. Of a level: None, which is the outcome's whole range. Of a size: factors of
        the least and of the largest size in the data. Of a pure number: itself.
      signed: a level that is a difference of values, so may be negative.
      log: it is fitted, and its bounds are searched, by its logarithm.
      grid: shape parameters: how many values the starts take, evenly between the bounds.
    """

    name: str
    meaning: str
    unit: str = "outcome"
    low: float | None = None
    high: float | None = None
    signed: bool = False
    log: bool = False
    grid: int = 0


@dataclasses.dataclass(frozen=True)
class Law:
    """A law y = levels . basis(z; shape).

    Attributes:
      name: unique.
      formula: with x in its own unit and the names of `parameters`; X is x_ref.
      source: where it comes from.
      parameters: the levels, then the shape.
      basis: (z [G], shape [..., n_shape] in natural units, sizes divided by x_ref) -> [..., G,
        n_levels].
    """

    name: str
    formula: str
    source: str
    parameters: tuple[Parameter, ...]
    basis: Callable[[np.ndarray, np.ndarray], np.ndarray]

    @property
    def levels(self) -> int:
        """How many of its parameters are levels; they come first."""
        return sum(p.unit == "outcome" for p in self.parameters)

    @property
    def least_sizes(self) -> int:
        """One more than parameters: fewer sizes leave nothing that could speak against the law."""
        return len(self.parameters) + 1

    def bounds(self, kind: str, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (low, high), each [P], of the internal parameters.

        These are sizes divided by x_ref, and logarithms where a parameter is fitted by its own.
        """
        lows, highs = [], []
        for p in self.parameters:
            if p.low is None or p.high is None:
                low, high = LEVELS[kind]
                if p.signed:
                    low, high = low - high, high - low
            else:
                least, largest = (z.min(), z.max()) if p.unit == "x" else (1.0, 1.0)
                low, high = p.low * least, p.high * largest
                if p.log:
                    low, high = math.log(low), math.log(high)
            lows.append(low)
            highs.append(high)
        return np.array(lows), np.array(highs)

    def natural(self, theta: np.ndarray, x_ref: float) -> np.ndarray:
        """Returns internal parameters [..., P] in their own units."""
        out = np.array(theta, float)
        for i, p in enumerate(self.parameters):
            if p.log:
                out[..., i] = np.exp(out[..., i])
            if p.unit == "x":
                out[..., i] *= x_ref
        return out

    def internal(self, values: Sequence[float], x_ref: float) -> np.ndarray:
        """Returns the inverse of `natural`."""
        out = np.array(values, float)
        for i, p in enumerate(self.parameters):
            if p.unit == "x":
                out[..., i] /= x_ref
            if p.log:
                out[..., i] = np.log(out[..., i])
        return out

    def shape_basis(self, z: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Returns the basis [..., G, levels] at internal parameters [..., P]."""
        shape = self.natural(theta, 1.0)[..., self.levels :]
        return self.basis(z, shape)

    def values(self, z: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Returns the law [..., G] at internal parameters [..., P]."""
        return np.einsum("...gl,...l->...g", self.shape_basis(z, theta), theta[..., : self.levels])

    def jacobian(self, z: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Returns the derivatives of `values` by internal parameters, [..., G, P]."""
        # Levels enter linearly: their derivatives are the basis, exactly.
        columns = [self.shape_basis(z, theta)]
        for i in range(self.levels, len(self.parameters)):
            step = np.zeros(len(self.parameters))
            step[i] = _STEP
            difference = self.values(z, theta + step) - self.values(z, theta - step)
            columns.append(difference[..., None] / (2 * _STEP))
        return np.concatenate(columns, axis=-1)

    def starts(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Returns the grid over the shape, [K, P], with levels 0.

        Args:
          low: [P], bounds of the internal parameters.
          high: [P].
        """
        grids = []
        for p, lo, hi in zip(self.parameters, low, high, strict=True):
            if p.unit != "outcome":
                grids.append(lo + (hi - lo) * (np.arange(p.grid) + 0.5) / p.grid)
        # The last parameter varies fastest, on which `Problem.minimise` relies.
        shapes = np.array(list(itertools.product(*grids)))
        return np.concatenate([np.zeros((len(shapes), self.levels)), shapes], axis=1)


def _constant(z: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.ones((*shape.shape[:-1], len(z), 1))


def _power(z: np.ndarray, shape: np.ndarray) -> np.ndarray:
    power = z ** -shape[..., :1]
    return np.stack([power, np.ones_like(power)], axis=-1)


def _logistic(z: np.ndarray, shape: np.ndarray) -> np.ndarray:
    x0, k = shape[..., :1], shape[..., 1:]
    rise = 1 / (1 + (z / x0) ** -k)
    return np.stack([1 - rise, rise], axis=-1)


WIDTH = 0.2  # f of the broken power law: in log x, how far from its middle the break reaches


def _broken(z: np.ndarray, shape: np.ndarray) -> np.ndarray:
    before, after, d = shape[..., 0:1], shape[..., 1:2], shape[..., 2:3]
    # 1 at the break (up to 2^..), so that the level is the excess there.
    bent = (z / d) ** -before * ((1 + (z / d) ** (1 / WIDTH)) / 2) ** ((before - after) * WIDTH)
    return np.stack([bent, np.ones_like(bent)], axis=-1)


CONSTANT = Law(
    "constant",
    "y = c",
    "no effect of the axis",
    (Parameter("c", "value at every size"),),
    _constant,
)
POWER = Law(
    "power",
    "y = a (x/X)^-b + c",
    "power law with a floor, e.g. Hestness et al. 2017 (1712.00409); with a < 0 it rises towards "
    "the ceiling c",
    (
        Parameter("a", "excess over c at X", signed=True),
        Parameter("c", "limit at large x"),
        Parameter("b", "exponent", "", 0.02, 5.0, log=True, grid=16),
    ),
    _power,
)
LOGISTIC = Law(
    "logistic",
    "y = lo + (hi - lo) / (1 + (x/x0)^-k)",
    "logistic in log x: the S-shaped alternative to a power law, e.g. Ruan et al. 2024 "
    "(2405.10938)",
    (
        Parameter("lo", "limit at small x"),
        Parameter("hi", "limit at large x"),
        Parameter("x0", "midpoint", "x", 0.1, 10.0, log=True, grid=12),
        Parameter("k", "steepness", "", 0.2, 20.0, log=True, grid=6),
    ),
    _logistic,
)
BROKEN = Law(
    "broken_power",
    f"y = c + a (x/d)^-b1 ((1 + (x/d)^(1/f))/2)^((b1-b2) f), f = {WIDTH}",
    "one smooth break, Caballero et al. 2023 (2210.14891); the break's width f is fixed, as few "
    "sizes cannot tell it",
    (
        Parameter("a", "excess over c at the break", signed=True),
        Parameter("c", "limit"),
        Parameter("b1", "exponent before the break", "", -3.0, 5.0, grid=8),
        Parameter("b2", "exponent after the break", "", 0.02, 5.0, log=True, grid=6),
        Parameter("d", "break", "x", 1.0, 1.0, log=True, grid=12),
    ),
    _broken,
)
LAWS = {law.name: law for law in (CONSTANT, POWER, LOGISTIC, BROKEN)}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Least squares of one law over the sizes z [G], within bounds [P]."""

    law: Law
    z: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def minimise(
        self,
        means: np.ndarray,
        whiten: np.ndarray,
        *,
        fixed: np.ndarray | None = None,
        values: np.ndarray | None = None,
        near: np.ndarray | None = None,
        polished: int = 3,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the best parameters of N data sets.

        Args:
          means: [N, G].
          whiten: [N, G, G], with whiten' whiten the inverse covariance of the means.
          fixed, values: [N, P], which parameters are held, and at which (internal) values.
          near: [N, P], one more start each, such as the fit that a bootstrap sample is drawn
            around.
          polished: how many starts of the grid are descended from, the best ones after their levels
            are solved for; for the one fit that everything rests on, EVERY.

        Returns:
          (theta [N, P], sum of squares of the whitened residuals [N]).
        """
        n, p = len(means), len(self.low)
        free = np.ones((n, p), bool) if fixed is None else ~fixed
        held = np.zeros((n, p)) if values is None else values
        grid = self.law.starts(self.low, self.high)
        starts = np.where(free[:, None], grid[None], held[:, None])  # [N, K, P]
        target = np.einsum("ngh,nh->ng", whiten, means)
        starts, loss = self._solve_levels(target, whiten, starts, free)
        # One start, the best, for each value of the last parameter: the best of all would lie side
        # by side in one valley.
        groups = loss.reshape(n, -1, self.law.parameters[-1].grid or 1)
        best = groups.argmin(axis=1)  # [N, values]
        best_loss = np.take_along_axis(groups, best[:, None], axis=1)[:, 0]
        order = np.argsort(best_loss, axis=1, kind="stable")[:, :polished]
        best = np.take_along_axis(best, order, axis=1) * groups.shape[2] + order
        chosen = np.take_along_axis(starts, best[..., None], axis=1)
        if near is not None:
            chosen = np.concatenate([chosen, np.where(free, near, held)[:, None]], axis=1)
        k = chosen.shape[1]
        theta, loss = self._descend(
            np.repeat(target, k, axis=0),
            np.repeat(whiten, k, axis=0),
            np.repeat(free, k, axis=0),
            chosen.reshape(n * k, p),
        )
        loss, theta = loss.reshape(n, k), theta.reshape(n, k, p)
        best = loss.argmin(axis=1)
        rows = np.arange(n)
        return theta[rows, best], loss[rows, best]

    def _solve_levels(
        self, target: np.ndarray, whiten: np.ndarray, starts: np.ndarray, free: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The starts [N, K, P] with the best levels within their bounds, and the losses [N, K].

        Exact for the one or two levels that laws have: the best point of a box lies inside it, or
        on an edge.
        """
        m = self.law.levels
        # A level that is held has its own value for bounds.
        low = np.where(free[:, None, :m], self.low[:m], starts[..., :m])
        high = np.where(free[:, None, :m], self.high[:m], starts[..., :m])
        basis = np.einsum("ngh,nkhl->nkgl", whiten, self.law.shape_basis(self.z, starts))
        normal = np.einsum("nkgl,nkgm->nklm", basis, basis)
        right = np.einsum("nkgl,ng->nkl", basis, target)
        diagonal = np.einsum("nkll->nkl", normal)
        # The basis of a law can be flat, so that its levels cannot be told apart.
        ridge = 1e-10 * diagonal.sum(-1)[..., None, None] * np.eye(m)
        candidates = [np.clip(np.linalg.solve(normal + ridge, right[..., None])[..., 0], low, high)]
        # One level is done by clipping. Of two, each edge of the box is tried as well.
        for i in range(m if m == 2 else 0):
            for edge in (low, high):
                levels, other = edge.copy(), 1 - i
                best = (right[..., other] - normal[..., other, i] * edge[..., i]) / (
                    diagonal[..., other] + ridge[..., 0, 0]
                )
                levels[..., other] = np.clip(best, low[..., other], high[..., other])
                candidates.append(levels)
        tried = np.stack(candidates)  # [C, N, K, L]
        squares = np.einsum("cnkl,nklm,cnkm->cnk", tried, normal, tried)
        losses = squares - 2 * np.einsum("cnkl,nkl->cnk", tried, right)
        at = losses.argmin(axis=0)[None]
        levels = np.take_along_axis(tried, at[..., None], axis=0)[0]
        loss = np.take_along_axis(losses, at, axis=0)[0] + (target**2).sum(axis=1)[:, None]
        return np.concatenate([levels, starts[..., m:]], axis=-1), loss

    def _descend(
        self,
        target: np.ndarray,
        whiten: np.ndarray,
        free: np.ndarray,
        theta: np.ndarray,
        *,
        steps: int = 80,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Levenberg and Marquardt's method within bounds (projected), for all data sets at once.

        Args:
          target: [N, G], whitened means.
          whiten: [N, G, G].
          free: bool [N, P], which parameters may move.
          theta: [N, P], where to start.
          steps: at most so many; data sets that are finished drop out before.

        Returns:
          (theta [N, P], sum of squares [N]).
        """

        def residuals(at: np.ndarray, which: np.ndarray) -> np.ndarray:
            values = self.law.values(self.z, at)
            return target[which] - np.einsum("ngh,nh->ng", whiten[which], values)

        everything = np.arange(len(theta))
        theta = np.clip(theta, self.low, self.high)
        loss = (residuals(theta, everything) ** 2).sum(axis=1)
        damping = np.full(len(theta), 1e-3)
        todo = everything
        for _ in range(steps):
            now = theta[todo]
            slope = whiten[todo] @ self.law.jacobian(self.z, now)
            gradient = np.einsum("ngp,ng->np", slope, residuals(now, todo))
            # At a bound, and pushed against it: it may move again once it is pushed back.
            stuck = ((now <= self.low) & (gradient < 0)) | ((now >= self.high) & (gradient > 0))
            move = free[todo] & ~stuck
            slope = slope * move[:, None]
            normal = np.einsum("ngp,ngq->npq", slope, slope)
            diagonal = np.einsum("npp->np", normal)
            # Parameters that do not move get a row of their own, so that the matrix has an inverse.
            damped = diagonal * damping[todo, None] + 1e-12 + ~move
            normal = normal + damped[..., None] * np.eye(theta.shape[1])
            delta = np.linalg.solve(normal, (gradient * move)[..., None])[..., 0]
            new = np.clip(now + delta, self.low, self.high)
            new_loss = (residuals(new, todo) ** 2).sum(axis=1)
            better = new_loss < loss[todo]
            gained = np.where(better, loss[todo] - new_loss, 0.0)
            theta[todo] = np.where(better[:, None], new, now)
            loss[todo] -= gained
            # A failed step is taken again with more damping, until one succeeds or it is too short.
            damping[todo] = np.where(better, damping[todo] / 6, damping[todo] * 4)
            least = 1e-9 * (1e-3 + loss[todo])
            # No gain, none to be expected, or steps too short to matter.
            done = (
                (better & (gained < least))
                | ((delta * gradient * move).sum(axis=1) < least)
                | (damping[todo] > 1e7)
            )
            todo = todo[~done]
            if not len(todo):
                break
        return theta, loss
