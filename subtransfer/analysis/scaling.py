"""Scaling laws of transfer: fits with intervals, a comparison of laws, and a verdict.

A fit is weighted least squares of the means of each size, by the covariance that tasks and bases
give them (`scaling_noise`). Intervals of parameters invert the profile of that sum of squares, at
the hierarchical bootstrap's quantile of the same statistic: the parameters of these laws are far
from linear, and a profile does not depend on the scale that they are written in. The quantile is
never taken below that of F with the bases' degrees of freedom, which a linear law would give: an
estimate at a bound makes the bootstrap's too small. Bands of the curve are percentiles of bootstrap
curves. A comparison says with which power it could have ruled out a constant. docs/scaling.md has
the coverage and the sizes of the verdicts, as measured by tools/check_scaling.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from subtransfer.analysis.scaling_laws import (
    BROKEN,
    CONSTANT,
    DIFFERENCE,
    EVERY,
    LAWS,
    LEVELS,
    LOG_ODDS,
    LOGISTIC,
    POWER,
    RATE,
    Law,
    Problem,
)
from subtransfer.analysis.scaling_noise import Noise, Observations, components, draw, observe
from subtransfer.analysis.scaling_ranking import (
    RULED_OUT,
    WANTED_POWER,
    Power,
    Ranking,
    best,
    problem_of,
    rank,
    weighted,
)
from subtransfer.runtime.errors import UserError

__all__ = [
    "BROKEN", "CONSTANT", "DIFFERENCE", "LAWS", "LOGISTIC", "LOG_ODDS", "POWER", "RATE",
    "RULED_OUT", "Comparison", "Extrapolation", "Fit", "Interval", "Observations", "Power",
    "Ranking", "compare", "fit", "observe", "rank",
]  # fmt: skip

# Places between an estimate and a bound at which a profile is looked at, before it is halved down.
_GRID = 24
_HALVINGS = 16


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    An open end is one that the data do not bound: the parameter's own bound stands there.
    """

    estimate: float
    low: float
    high: float
    low_open: bool = False
    high_open: bool = False


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
      noise: of the means, by which they are weighed.
      intervals: by parameter, in their own units.
      theta: [P], internal parameters; draws: [B, P], of the bootstrap.
      chi2: weighted squares of the residuals; lack_of_fit: bootstrap p of as large a one if the law
        holds.
    """

    data: Observations
    noise: Noise
    law: Law
    confidence: float
    intervals: dict[str, Interval]
    theta: np.ndarray
    draws: np.ndarray
    chi2: float
    lack_of_fit: float

    def curve(self, x: np.ndarray) -> np.ndarray:
        """Returns the law at each x."""
        return self.law.values(np.asarray(x, float) / self.data.x_ref, self.theta)

    def band(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (low, high) of the curve at each x: percentiles over the bootstrap."""
        curves = self.law.values(np.asarray(x, float) / self.data.x_ref, self.draws[:, None])[:, 0]
        low, high = np.quantile(
            curves, [0.5 - self.confidence / 2, 0.5 + self.confidence / 2], axis=0
        )
        return low, high

    def whiskers(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (low, high) of the mean at each size, [G] each, without any law: Student's t."""
        # The same bases at every size are met so many times, and are no more bases by that.
        freedom = self.data.num_bases[0] - 1 if self.data.paired else self.data.base_freedom
        quantile = stats.t.ppf(0.5 + self.confidence / 2, freedom)
        half = quantile * np.sqrt(np.diag(self.noise.covariance()))
        bounds = LEVELS[self.data.kind]
        return np.clip(self.data.means - half, *bounds), np.clip(self.data.means + half, *bounds)


def _enough(data: Observations, law: Law) -> None:
    if len(data.x) < law.least_sizes:
        raise UserError(
            f"The law {law.name!r} has {len(law.parameters)} parameters and needs at least "
            f"{law.least_sizes} sizes of {data.axis}, not {len(data.x)}: run more sizes, or fit a "
            "simpler law."
        )


def fit(
    data: Observations,
    law: Law,
    *,
    confidence: float = 0.95,
    n_boot: int = 400,
    seed: int = 0,
    noise: Noise | None = None,
) -> Fit:
    """Fits a law by weighted least squares of the means of each size.

    Args:
      data: the outcomes by size.
      law: what is fitted.
      confidence: of intervals and bands.
      n_boot: bootstrap samples.
      seed: of the bootstrap.
      noise: of the means, if it is not to be estimated around this law's own curve.

    Raises:
      UserError: fewer sizes than the law's parameters + 1, or one base at a size.
    """
    _enough(data, law)
    problem = problem_of(data, law)
    noise = noise or weighted(data, [law])
    whiten = noise.whiten()[None]
    theta, chi2 = best(problem, data.means, whiten[0])
    boot = draw(data, noise, n_boot, seed)
    curve = law.values(problem.z, theta)
    # Samples are drawn around the fitted curve, so that their fits begin at its parameters.
    near = np.broadcast_to(theta, (n_boot, len(theta)))
    free, least = problem.minimise(curve + boot.errors, boot.whiten, near=near)
    least_limit = stats.f.ppf(confidence, 1, data.base_freedom)
    # The limit of each parameter's profile: how far chi2 rises in bootstrap samples when it is held
    # at the value that they were drawn around.
    limits = []
    for i in range(len(theta)):
        fixed = np.broadcast_to(np.arange(len(theta)) == i, near.shape)
        _, held = problem.minimise(
            curve + boot.errors, boot.whiten, fixed=fixed, values=near, near=free
        )
        limits.append(max(np.quantile(held - least, confidence), least_limit))
    draws, _ = problem.minimise(
        curve + boot.wide, np.broadcast_to(whiten, boot.whiten.shape), near=near
    )
    ends = _profile_ends(problem, data.means, whiten[0], theta, chi2, np.array(limits))
    low, high = law.natural(ends, data.x_ref)
    centre = law.natural(theta, data.x_ref)
    low_open, high_open = (ends <= problem.low) | (ends >= problem.high)
    intervals = {}
    for i, parameter in enumerate(law.parameters):
        intervals[parameter.name] = Interval(
            float(centre[i]),
            float(low[i]),
            float(high[i]),
            bool(low_open[i]),
            bool(high_open[i]),
        )
    return Fit(
        data=data,
        noise=noise,
        law=law,
        confidence=confidence,
        intervals=intervals,
        theta=theta,
        draws=draws,
        chi2=float(chi2),
        # The data count as one more sample, so that p is never 0.
        lack_of_fit=float((1 + (least >= chi2 - 1e-9).sum()) / (1 + n_boot)),
    )


def _profile_ends(
    problem: Problem,
    means: np.ndarray,
    whiten: np.ndarray,
    theta: np.ndarray,
    chi2: float,
    limits: np.ndarray,
) -> np.ndarray:
    """How far each parameter can be moved, the others following, before chi2 rises by its limit.

    Args:
      problem: the law over the sizes.
      means: [G].
      whiten: [G, G].
      theta: [P], the best parameters, internal.
      chi2: theirs.
      limits: [P].

    Returns:
      [2, P], internal: the lower and the upper end of each.
    """
    p = len(theta)
    bounds = np.stack([problem.low, problem.high])  # [2, P]

    def rise(values: np.ndarray) -> np.ndarray:
        """[2, P, K] -> the rise of the profile there."""
        k = values.shape[-1]
        held = np.broadcast_to(np.eye(p, dtype=bool)[None, :, None], (2, p, k, p)).reshape(-1, p)
        at = np.where(held, values.reshape(-1, 1), theta)
        shape = len(at), len(means)
        _, loss = problem.minimise(
            np.broadcast_to(means, shape),
            np.broadcast_to(whiten, (*shape, len(means))),
            fixed=held,
            values=at,
            near=at,
        )
        return loss.reshape(2, p, k) - chi2

    return _outermost(
        lambda values: rise(values) <= limits[None, :, None],
        np.broadcast_to(theta, bounds.shape),
        bounds,
    )


def _outermost(
    inside: Callable[[np.ndarray], np.ndarray], start: np.ndarray, bounds: np.ndarray
) -> np.ndarray:
    """The place between each start and its bound up to which a condition holds.

    That is the outermost place of a grid that is still inside, then halved towards the next one: a
    profile may have hills.

    Args:
      inside: whether places are inside, [..., K] -> [..., K].
      start: [...].
      bounds: [...].

    Returns:
      [...].
    """
    steps = (np.arange(1, _GRID + 1) / _GRID) ** 2  # closer together near the start
    places = start[..., None] + (bounds - start)[..., None] * steps
    within = inside(places)
    # The outermost one inside, or none.
    last = np.where(within.any(-1), _GRID - 1 - within[..., ::-1].argmax(-1), -1)
    # Place i of `places` is edge i + 1.
    edges = np.concatenate([start[..., None], places], axis=-1)
    near = np.take_along_axis(edges, last[..., None] + 1, -1)
    far = np.take_along_axis(edges, np.minimum(last + 2, _GRID)[..., None], -1)
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        below = inside(middle)
        near, far = np.where(below, middle, near), np.where(below, far, middle)
    return np.where(last == _GRID - 1, bounds, near[..., 0])


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """The largest size as a law predicts it from the smaller ones.

    Attributes:
      predicted: the mean there, with the interval in which the observed mean should lie.
      observed: the mean there.
      score: log density of the observed mean under that prediction (normal with the bootstrap's
        mean and variance).
    """

    predicted: Interval
    observed: float
    score: float

    @property
    def hit(self) -> bool:
        """Whether the observed mean lies in the predicted interval."""
        return self.predicted.low <= self.observed <= self.predicted.high


@dataclasses.dataclass(frozen=True)
class Comparison(Ranking):
    """Laws compared on the same data.

    Attributes:
      confidence: of intervals and bands.
      fits: by law, all weighed alike.
      refused: by law, why it was not fitted.
      extrapolations: of the laws that the smaller sizes suffice for.
    """

    confidence: float
    fits: dict[str, Fit]
    refused: dict[str, str]
    extrapolations: dict[str, Extrapolation]

    def verdict(self) -> str:
        """Says which laws the data leave standing, and how well they could have ruled one out."""
        standing, axis = self.standing, self.data.axis
        best = self.fits[standing[0]]
        ruled_out = [name for name in self.fits if name not in standing]
        if self.distinguished:
            rivals = (
                f", against {_listed(ruled_out)}"
                if ruled_out
                else ", the only law that these sizes can tell about"
            )
            text = f"Over {axis} the data speak for the law {standing[0]!r}{rivals}"
        else:
            text = f"Over {axis} the data do not distinguish these laws: {_listed(standing)}"
            text += f" ({_listed(ruled_out)} ruled out)" if ruled_out else ""
        if "constant" in standing:
            text += "; no effect of it is shown"
        if best.lack_of_fit < 1 - self.confidence:
            p = f"{best.lack_of_fit:.2g}"
            text += f"; but {standing[0]!r}, the best of them, does not fit well (p = {p})"
        missed = []
        for name in standing:
            ahead = self.extrapolations.get(name)
            if ahead is not None and not ahead.hit:
                missed.append(name)
        if missed:
            text += f"; fitted to the smaller sizes, {_listed(missed)} missed the largest"
        if self.refused:
            text += f"; too few sizes to try {_listed(list(self.refused))}"
        return " ".join(filter(None, (f"{text}.", self._power_in_words())))

    def _power_in_words(self) -> str:
        if self.power is None:
            return ""
        in_words = {
            RATE: lambda change: f"{100 * change:.0f} points",
            DIFFERENCE: lambda change: f"{100 * change:.0f} points",
            LOG_ODDS: lambda change: f"{change:.2g} nats",
        }[self.data.kind]
        change, share, least = self.power
        text = (
            f"Power: a change of {in_words(change)} from the first value to the last rules out a "
            f"constant in {100 * share:.0f}% of such studies; "
        )
        wanted = f"{100 * WANTED_POWER:.0f}%"
        if math.isinf(least):
            return f"{text}no possible change does in {wanted}."
        return f"{text}{wanted} take {in_words(least)}."


def _listed(names: Sequence[str]) -> str:
    """Names as in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def compare(
    data: Observations,
    laws: Sequence[Law] = tuple(LAWS.values()),
    *,
    confidence: float = 0.95,
    n_boot: int = 400,
    seed: int = 0,
) -> Comparison:
    """Fits laws to the same data, ranks them (`rank`), and extrapolates to the largest size.

    Every size needs several bases: with one, a law would take what a base brings for the size.

    Args:
      data: the outcomes by size.
      laws: the candidates; those that there are too few sizes for are named and left out.
      confidence: of intervals and bands.
      n_boot: bootstrap samples of each fit.
      seed: of the bootstrap.

    Raises:
      UserError: a size has one base; there are too few sizes for all of the laws, or too few
        samples to rule one out.
    """
    data.require_bases()
    able = []
    refused = {}
    for law in laws:
        if len(data.x) >= law.least_sizes:
            able.append(law)
        else:
            refused[law.name] = f"it needs {law.least_sizes} sizes"
    if not able:
        _enough(data, min(laws, key=lambda law: law.least_sizes))
    ranking = rank(data, able, n_boot=n_boot, seed=seed)
    options: dict[str, Any] = {"confidence": confidence, "n_boot": n_boot, "seed": seed}
    fits = {}
    extrapolations = {}
    for law in able:
        fits[law.name] = fit(data, law, noise=ranking.noise, **options)
        # The largest size is left out of what it is predicted from.
        if len(data.x) > law.least_sizes:
            extrapolations[law.name] = extrapolate(data, law, **options)
    return Comparison(
        data=data,
        noise=ranking.noise,
        delta=ranking.delta,
        p=ranking.p,
        power=ranking.power,
        confidence=confidence,
        fits=fits,
        refused=refused,
        extrapolations=extrapolations,
    )


def extrapolate(
    data: Observations, law: Law, *, confidence: float = 0.95, n_boot: int = 400, seed: int = 0
) -> Extrapolation:
    """Fits a law to all sizes but the largest and predicts the mean there.

    The interval holds the means there that raise chi squared by less than a limit when the law is
    fitted to all sizes with them: a profile, as of a parameter, with the limit that parameters
    have. (Percentiles of what bootstrap fits predict are too narrow: a fit that happens to lie at a
    bound has bootstrap fits that lie there, too.) The prediction is the law's, moved by what the
    smaller sizes' residuals say of the tasks that all sizes share.

    Args:
      data: the outcomes of all sizes.
      law: what is fitted.
      confidence: of the interval.
      n_boot: bootstrap samples.
      seed: of the bootstrap.

    Raises:
      UserError: the smaller sizes are fewer than the law's parameters + 1.
    """
    smaller = data.only(slice(None, -1))
    _enough(smaller, law)
    problem = problem_of(smaller, law)
    z = data.x / smaller.x_ref
    # With the same bounds: those that the smaller sizes set.
    whole = dataclasses.replace(problem, z=z)
    theta, _ = problem.minimise(
        smaller.means[None], weighted(smaller, [law]).whiten()[None], polished=EVERY
    )
    curve = law.values(z, theta[0])
    noise = components(data, curve)
    whiten = noise.whiten()
    boot = draw(data, noise, n_boot, seed)
    near = np.broadcast_to(theta, (n_boot, theta.shape[1]))

    def rise(means: np.ndarray, whiten: np.ndarray, near: np.ndarray) -> np.ndarray:
        """Chi squared of the fit to all sizes above that of the smaller ones: [N, G] -> [N]."""
        _, every = whole.minimise(means, whiten, near=near)
        # The whitening is triangular, so that its corner is the smaller sizes' own.
        _, without = problem.minimise(means[:, :-1], whiten[:, :-1, :-1], near=near)
        return every - without

    limit = np.quantile(rise(curve + boot.errors, boot.whiten, near), confidence)
    limit = max(limit, stats.f.ppf(confidence, 1, data.base_freedom))
    low, high = LEVELS[data.kind]
    # Tasks that all sizes share move all means together: the smaller sizes' residuals say how far.
    row = whiten[-1]
    shift = -row[:-1] @ (smaller.means - curve[:-1]) / row[-1]
    predicted = float(np.clip(curve[-1] + shift, low, high))

    def inside(values: np.ndarray) -> np.ndarray:
        """Whether the interval holds means [2, K] of the largest size."""
        means = np.broadcast_to(data.means, (values.size, len(z))).copy()
        means[:, -1] = values.ravel()
        same_whiten = np.broadcast_to(whiten, (len(means), *whiten.shape))
        start = np.broadcast_to(theta, (len(means), theta.shape[1]))
        return rise(means, same_whiten, start).reshape(values.shape) <= limit

    ends = _outermost(inside, np.full(2, predicted), np.array([low, high]))
    ahead = _ahead(problem, law, z, curve + boot.wide, whiten, near, data.kind)
    errors = boot.wide[:, -1] + curve[-1] - ahead
    score = stats.norm.logpdf(data.means[-1], predicted + errors.mean(), errors.std())
    interval = Interval(predicted, float(ends[0]), float(ends[1]))
    return Extrapolation(interval, float(data.means[-1]), float(score))


def _ahead(
    problem: Problem,
    law: Law,
    z: np.ndarray,
    samples: np.ndarray,
    whiten: np.ndarray,
    near: np.ndarray,
    kind: str,
) -> np.ndarray:
    """What fits to the smaller sizes of bootstrap samples [B, G] predict for the largest, [B]."""
    smaller = whiten[:-1, :-1]
    found, _ = problem.minimise(
        samples[:, :-1], np.broadcast_to(smaller, (len(samples), *smaller.shape)), near=near
    )
    return np.clip(law.values(z[-1:], found[:, None])[:, 0, 0], *LEVELS[kind])
