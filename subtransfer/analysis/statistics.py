"""Intervals and p-values of rates and means over tasks and trainings. NumPy in, floats out.

Outcomes come as arrays [T, S] of tasks by training seeds, entries in [0, 1]. Trainings are few and
differ: each has a rate of its own around the arm's. The log-odds of these rates are taken to be
normal; how much they scatter is not known, and 3 or 8 trainings say little of it. So the likelihood
of the counts of all trainings is averaged over that scatter, from none to a deviation of 3, which
gives the distribution of the arm's rate that intervals, differences, ratios and p-values are read
from. What all trainings have in common because they face the same tasks is added from the scatter
of the tasks.

docs/intervals.md has how often these intervals hold the truth and how often these p-values err, by
`tools/check_intervals.py`. One training says nothing of others: it has no interval, and NaN stands
for its ends and its p.

The functions whose arguments say [..., T, S] take many experiments at once and then return arrays
[...] instead of floats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

# The largest deviation of trainings' log-odds that is thought possible. An intra-seed correlation
# of .15, the largest that was observed, is one of 0.9 at a rate of .5 and 1.6 at .05.
_LARGEST_SCATTER = 3.0
_RATES, _SCATTERS = 160, 16  # points of the grid on which likelihoods are computed
# Log-odds of a training, in cells; the outermost hold all beyond.
_LOG_ODDS = np.linspace(-12, 12, 1201)
# With fewer trainings, a rate of 0 or 1 has no interval: that trainings with another rate exist and
# none was met is too likely.
_LEAST_AT_THE_ENDS = 5
# Draws from the distribution of each rate; a p-value is a multiple of 2 in so many.
_DRAWS = 10_000

# A float, or an array of one a leading place of the outcomes.
Value = Any


class Difference(NamedTuple):
    """A difference with its interval and the two-sided p of there being none."""

    value: Value
    low: Value
    high: Value
    p: Value


class Scatter(NamedTuple):
    """Where outcomes [..., T, S] scatter: estimates of parts of the variance of their mean.

    Attributes:
      mean: of the outcomes.
      seed: variance of the seeds' means, over S; it holds `cell`.
      task: variance of the tasks' means, over T; it holds `cell`.
      cell: the variance of what neither explains, over T * S.
    """

    mean: np.ndarray
    seed: np.ndarray
    task: np.ndarray
    cell: np.ndarray


def scatter(outcomes: np.ndarray) -> Scatter:
    """Estimates where outcomes [..., T, S] scatter: by seed, by task, or in cells alone."""
    tasks, seeds = outcomes.shape[-2:]
    mean = outcomes.mean((-2, -1))
    of_seeds, of_tasks = outcomes.mean(-2), outcomes.mean(-1)
    total = ((outcomes - mean[..., None, None]) ** 2).sum((-2, -1))
    seed = ((of_seeds - mean[..., None]) ** 2).sum(-1)
    task = ((of_tasks - mean[..., None]) ** 2).sum(-1)
    # At least 0, whatever the last bits are.
    rest = np.maximum(total - tasks * seed - seeds * task, 0)
    # One task or one seed has no scatter; its 0 stands for "not known" and is not used.
    least_tasks, least_seeds = max(tasks - 1, 1), max(seeds - 1, 1)
    return Scatter(
        mean,
        seed / least_seeds / seeds,
        task / least_tasks / tasks,
        rest / (least_tasks * least_seeds) / (tasks * seeds),
    )


@functools.cache
def _rates() -> np.ndarray:
    """The rates [M] at which likelihoods are computed."""
    # Even in the arcsine of the root, in which a share's error is the same everywhere: dense near
    # 0 and 1, and the weights that Jeffreys gives the rates of a share.
    places = np.arange(1, _RATES + 1) / (_RATES + 1)
    return np.sin(places * np.pi / 2) ** 2


@functools.cache
def _cells() -> np.ndarray:
    """Shares [Z, M, R] of trainings in each cell of `_LOG_ODDS`, by the arm's rate and scatter."""
    # Even in the root of the deviation. Chosen by simulation: weight on little scatter makes
    # intervals of trainings that agree narrower; much more of it, and they miss.
    scatters = _LARGEST_SCATTER * (np.arange(1, _SCATTERS + 1) / _SCATTERS) ** 2
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    low = np.full((_RATES, _SCATTERS), -60.0)
    high = -low
    # The middle of the log-odds at which the mean of the rates is the arm's, by bisection.
    for _ in range(50):
        middle = (low + high) / 2
        means = special.expit(middle[..., None] + scatters[:, None] * nodes) @ weights
        above = means > _rates()[:, None]
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    edges = (_LOG_ODDS[1:] + _LOG_ODDS[:-1]) / 2
    below = special.ndtr((edges[:, None, None] - middle) / scatters)
    return np.diff(below, axis=0, prepend=0.0, append=1.0)


# Kept, as arms of one run have many counts in common; 20 kB each.
@functools.lru_cache(maxsize=2048)
def _log_likelihood(count: int, tasks: int) -> np.ndarray:
    """The log-likelihood [M, R] of a training's count, by the arm's rate and scatter.

    It is known up to a constant.
    """
    binomial = count * special.log_expit(_LOG_ODDS)
    binomial = binomial + (tasks - count) * special.log_expit(-_LOG_ODDS)
    of_count = np.tensordot(np.exp(binomial - binomial.max()), _cells(), 1)
    # What is 0 to a float is not impossible.
    return np.log(np.maximum(of_count, 1e-300))


class _Distribution(NamedTuple):
    """Cumulative distributions [..., M] of a rate at `_rates`, to read lower and upper ends from.

    A few trainings with low rates leave room for much higher ones, which draws the whole
    distribution up, and its lower end above the truth. So lower ends weigh rates near 0 as even
    log-odds would, and upper ends those near 1.
    """

    for_low: np.ndarray
    for_high: np.ndarray


def _distribution(outcomes: np.ndarray) -> _Distribution:
    """The distribution of the rate of outcomes [..., T, S].

    Each training's count is binomial, given its own rate.
    """
    tasks = outcomes.shape[-2]
    # Samples of one task that were averaged count as one trial.
    sums = np.rint(np.nan_to_num(outcomes).sum(-2)).astype(int)
    counts, place = np.unique(sums, return_inverse=True)
    of_count = np.stack([_log_likelihood(int(count), tasks) for count in counts])
    log_likelihood: Any = 0.0
    for of_seed in np.moveaxis(place.reshape(sums.shape), -1, 0):
        log_likelihood = log_likelihood + of_count[of_seed]
    log_likelihood = log_likelihood - np.max(log_likelihood, axis=(-2, -1), keepdims=True)
    weights = np.exp(log_likelihood).sum(-1)

    def cumulative(weights: np.ndarray) -> np.ndarray:
        sums = weights.cumsum(-1)
        return sums / sums[..., -1:]

    rates = _rates()
    return _Distribution(
        cumulative(weights / np.sqrt(rates)), cumulative(weights / np.sqrt(1 - rates))
    )


def _quantiles(distribution: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The rates [..., N] below which shares `at` [N] of distributions [..., M] lie."""
    # Ends at 0 and 1, where nothing and everything lies below.
    rates = np.concatenate(([0.0], _rates(), [1.0]))
    # A grid's point stands for what lies about it: half of it lies below.
    weights = np.diff(distribution, prepend=0.0)
    middle = distribution - weights / 2
    out = np.empty((*distribution.shape[:-1], len(at)))
    for i in np.ndindex(distribution.shape[:-1]):
        out[i] = np.interp(at, np.concatenate(([0.0], middle[i], [1.0])), rates)
    return out


@functools.cache
def _order(number: int) -> np.ndarray:
    """An order of D draws, one for each of `number`s.

    Orders differ, so that two rates' draws are independent; they are the same in every run.
    """
    return np.random.default_rng(number).permutation(_DRAWS)


def _even() -> np.ndarray:
    """Shares [D] that even out 0 to 1."""
    return (np.arange(_DRAWS) + 0.5) / _DRAWS


def _draws(outcomes: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws [..., D] from both distributions of the rate of outcomes [..., T, S].

    One at each even share of them, in the `number`-th order.
    """
    low, high = (_quantiles(of_end, _even()) for of_end in _distribution(outcomes))
    return low[..., _order(number)], high[..., _order(number)]


def _task_noise(weighted: list[tuple[Any, np.ndarray]], number: int) -> np.ndarray:
    """Draws [..., D] of what a weighted sum of rates owes to the choice of tasks.

    Args:
      weighted: weights (numbers, or [...]) and the arms' outcomes [..., T, Sa] of the same tasks.
      number: of the draws' order.
    """
    of_tasks: Any = 0.0
    cell: Any = 0.0
    for weight, outcomes in weighted:
        of_tasks = of_tasks + np.asarray(weight)[..., None] * outcomes.mean(-1)
        cell = cell + weight**2 * scatter(outcomes).cell
    # Together, not arm by arm: what makes a task hard in two arms is not in their difference.
    tasks = of_tasks.shape[-1]
    variance = of_tasks.var(-1, ddof=1) / tasks if tasks > 1 else 0.0 * cell
    sd = np.sqrt(np.maximum(variance - cell, 0))
    return np.asarray(sd)[..., None] * special.ndtri(_even())[_order(number)]


def as_value(values: Any) -> Value:
    """Returns values as floats: one float of an array without axes."""
    values = np.asarray(values, float)
    return values if values.ndim else float(values)


def _ends(low: np.ndarray, high: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of an interval from draws [..., D] for each."""
    lower, upper = 0.5 - confidence / 2, 0.5 + confidence / 2
    return np.quantile(low, lower, axis=-1), np.quantile(high, upper, axis=-1)


def rate_interval(outcomes: np.ndarray, confidence: float = 0.95) -> tuple[Value, Value, Value]:
    """Returns (rate, low, high) of outcomes [..., T, S].

    The interval reaches 0 where nothing happened, and 1 where everything did. Too few trainings
    have none, and its ends are NaN: one, and fewer than 5 in which nothing or everything happened.
    """
    outcomes = np.asarray(outcomes, float)
    seeds = outcomes.shape[-1]
    parts = scatter(outcomes)
    rate = parts.mean
    tails = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    found = _distribution(outcomes)
    lowest = _quantiles(found.for_low, tails)[..., 0]
    highest = _quantiles(found.for_high, tails)[..., 1]
    # The tasks' part is added in squares, on the scale of log-odds, which ends at no rate.
    edge = 0.5 / (outcomes.shape[-2] * seeds)
    inner = np.clip(rate, edge, 1 - edge)
    sd = np.sqrt(np.maximum(parts.task - parts.cell, 0)) / (inner * (1 - inner))
    noise = special.ndtri(tails[1]) * sd
    middle = special.logit(inner)
    below = np.hypot(np.maximum(middle - special.logit(lowest), 0), noise)
    above = np.hypot(np.maximum(special.logit(highest) - middle, 0), noise)
    low = np.where(rate > 0, special.expit(middle - below), 0.0)
    high = np.where(rate < 1, special.expit(middle + above), 1.0)
    at_end = (rate == 0) | (rate == 1)
    few = (seeds < 2) | (at_end & (seeds < _LEAST_AT_THE_ENDS)) | np.isnan(rate)
    return (
        as_value(rate),
        as_value(np.where(few, math.nan, low)),
        as_value(np.where(few, math.nan, high)),
    )


def rate_difference(a: np.ndarray, b: np.ndarray, confidence: float = 0.95) -> Difference:
    """Compares the rates of two arms of the same tasks: a minus b.

    The tasks are paired; trainings are not, so that what two arms have in common by a training
    makes the interval wider than it need be. The interval lies above 0 just where p says so.

    Args:
      a: outcomes [..., T, Sa].
      b: outcomes [..., T, Sb].
      confidence: of the interval.

    Returns:
      The difference; with one training in either arm its ends and its p are NaN.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    value = a.mean((-2, -1)) - b.mean((-2, -1))
    if min(a.shape[-1], b.shape[-1]) < 2:
        nothing = as_value(np.full(value.shape, math.nan))
        return Difference(as_value(value), nothing, nothing, nothing)
    (a_low, a_high), (b_low, b_high) = _draws(a, 0), _draws(b, 1)
    noise = _task_noise([(1, a), (-1, b)], 4)
    lows, highs = a_low - b_high + noise, a_high - b_low + noise
    low, high = _ends(lows, highs, confidence)
    # All against none: draws end before 0 and 1.
    low, high = np.minimum(low, value), np.maximum(high, value)
    fewer = np.minimum((lows <= 0).sum(-1), (highs >= 0).sum(-1))
    # Never 0: draws that were not made could lie on the other side.
    p = np.minimum(2 * (fewer + 1) / (_DRAWS + 1), 1.0)
    return Difference(as_value(value), as_value(low), as_value(high), as_value(p))


def rate_ratio(
    student: np.ndarray,
    control: np.ndarray,
    teacher: np.ndarray,
    base: np.ndarray,
    confidence: float = 0.95,
) -> tuple[Value, Value, Value]:
    """Returns (ratio, low, high) of (student - control) / (teacher - base).

    The interval is Fieller's: the ratios r at which student - control - r (teacher - base) may be
    0. Each array is [..., T, S] of the same tasks. NaN three times where the interval of the
    denominator reaches 0 (a ratio to nothing says nothing), or with one training.
    """
    arms = [np.asarray(x, float) for x in (student, control, teacher, base)]
    means = [outcomes.mean((-2, -1)) for outcomes in arms]
    least = rate_difference(arms[2], arms[3], confidence).low
    known = (np.asarray(least) > 0) & (min(outcomes.shape[-1] for outcomes in arms) > 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(known, (means[0] - means[1]) / (means[2] - means[3]), math.nan)
    s, c, t, b = (_draws(outcomes, number) for number, outcomes in enumerate(arms))
    r = np.nan_to_num(ratio)
    weights = (1.0, -1.0, -r, r)
    noise = _task_noise(list(zip(weights, arms, strict=True)), 4)
    lows, highs = s[0] - c[1] + noise, s[1] - c[0] + noise
    low, high = np.full(r.shape, math.inf), np.full(r.shape, -math.inf)
    for teacher, untuned in ((t[0], b[1]), (t[1], b[0])):
        # Where it is known, hardly a draw of the denominator is below 0; such a one has no bound.
        denominator = np.maximum(teacher - untuned, 1e-9)
        lower, upper = _ends(lows / denominator, highs / denominator, confidence)
        low, high = np.minimum(low, lower), np.maximum(high, upper)
    return (
        as_value(ratio),
        as_value(np.where(known, low, math.nan)),
        as_value(np.where(known, high, math.nan)),
    )


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Returns (mean, low, high) of values [T, S] that are no shares, such as log-odds.

    Student's t: the variances of trainings and of tasks are added, with Satterthwaite's degrees of
    freedom. The ends are NaN with one training, or where nothing scatters.
    """
    values = np.asarray(values, float)
    tasks, seeds = values.shape
    parts = scatter(values)
    # By chance a few trainings agree better than their own noise lets them: that says nothing.
    seed = float(max(parts.seed, parts.cell))
    task = float(max(parts.task - parts.cell, 0))
    return _student(float(parts.mean), [(seed, seeds - 1), (task, tasks - 1)], confidence)


def mean_difference(
    a: np.ndarray, b: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Returns (difference, low, high) of means of values [T, Sa] and [T, Sb] that are no shares.

    As `mean_interval`. Tasks are paired, and trainings where both arms have as many.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape == b.shape:
        return mean_interval(a - b, confidence)
    tasks = len(a)
    variances: list[tuple[float, int]] = []
    cell = 0.0
    for values in (a, b):
        parts = scatter(values)
        variances.append((float(max(parts.seed, parts.cell)), values.shape[1] - 1))
        cell += float(parts.cell)
    of_tasks = a.mean(1) - b.mean(1)
    task = float(((of_tasks - of_tasks.mean()) ** 2).sum()) / max(tasks - 1, 1) / tasks
    variances.append((max(task - cell, 0.0), tasks - 1))
    return _student(float(a.mean() - b.mean()), variances, confidence)


def _student(
    mean: float, variances: Sequence[tuple[float, int]], confidence: float
) -> tuple[float, float, float]:
    """Student's interval of a mean whose variance is a sum of estimates.

    Args:
      mean: the middle.
      variances: estimates, each with its degrees of freedom; of trainings and at last of tasks.
      confidence: of the interval.
    """
    # One task may be all that is asked about; one training never is.
    if min(freedom for _, freedom in variances[:-1]) < 1:
        return mean, math.nan, math.nan
    total = squares = 0.0
    for variance, freedom in variances:
        total += variance
        squares += variance**2 / max(freedom, 1)
    # Values that nowhere differ know no scatter either.
    if total == 0:
        return mean, math.nan, math.nan
    quantile = stats.t.ppf(0.5 + confidence / 2, total**2 / squares)
    half = float(quantile * math.sqrt(total))
    return mean, mean - half, mean + half


def seed_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Returns (mean, low, high) of one number a training seed, [S]: Student's t.

    The bounds are NaN with one seed, which knows no scatter.
    """
    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    quantile = stats.t.ppf(0.5 + confidence / 2, len(values) - 1)
    half = float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def holm(pvalues: list[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979); None and NaN stay out of the family."""
    known = []
    for i, p in enumerate(pvalues):
        if p is not None and not math.isnan(p):
            known.append((p, i))
    known.sort()
    adjusted: list[float | None] = [None] * len(pvalues)
    running = 0.0
    # The least p is multiplied by all, the next by one fewer; none falls below one before it.
    for rank, (p, i) in enumerate(known):
        running = max(running, min(p * (len(known) - rank), 1.0))
        adjusted[i] = running
    return adjusted
