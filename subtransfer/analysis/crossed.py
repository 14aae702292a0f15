"""Effects over bases that were crossed: intervals, p-values, equivalence. NumPy in, floats out.

K bases are crossed: each one teaches students of every base, itself included. Outcomes are arrays
[K, K, S, T]: the teacher's base, the student's base, training seeds (of that teacher), and tasks,
which are the same everywhere; entries lie in [0, 1]. The effect of a shared base is the
*interaction*, the mean over pairs of bases A, B of (AA + BB - AB - BA) / 2: how good a teacher a
base is, and how easily it is taught, cancel. It is a U-statistic of degree 2 over bases, so that
its variance is the jackknife's (Arvesen 1969), and Student's t judges it with K - 1 degrees of
freedom. What all cells have in common because they face the same tasks is added from the scatter
of tasks.

Two things Student's t does not know. A few bases that differ much are skewed: each end reaches at
least as far as the weighted bases do when one more base like the most extreme one is thought of
(Gaffke 2005). And a base with the effect, or one without it, may not have been met: K bases miss a
third of all bases with probability (2/3)^K. While that is more than 1 - confidence, intervals
reach to where such bases would draw them; no p of equivalence is smaller. So a statement of
no effect is one about effects that at least a third of all bases have.

docs/intervals.md has how often all of it is right, by `tools/check_intervals.py --bases`. One or
two bases say nothing of others: NaN stands for ends and p, also where nothing scatters.

Functions take leading axes [...] of many experiments and then return arrays [...], not floats.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from subtransfer.analysis import statistics
from subtransfer.analysis.statistics import Difference, Value

# With fewer bases there is no interval: two have one pair, which does not scatter.
LEAST_BASES = 3
# The least share of bases with an effect, or without, that is reckoned with where none was met.
LEAST_SHARE = 1 / 3
# Draws of bases' weights; a p-value is no smaller than 2 in so many.
_DRAWS = 10_000


class Rate(NamedTuple):
    """A rate with its interval."""

    value: Value
    low: Value
    high: Value


class Effect(NamedTuple):
    """What a complete crossing of bases shows.

    Attributes:
      same: the rate where teacher and student share the base.
      other: where they do not.
      interaction: same minus other, with the two-sided p of there being none.
      p_equivalence: of two one-sided tests against an effect of the margin, either way.
      bases: K.
      seeds: S.
      tasks: T.
    """

    same: Rate
    other: Rate
    interaction: Difference
    p_equivalence: Value
    bases: int
    seeds: int
    tasks: int


class _Sample(NamedTuple):
    """A statistic over bases, and what its variance is estimated from.

    Attributes:
      value: the statistic [...].
      bases: [..., K] whose mean it is, each of one base: differences or pseudo-values.
      cell: the part of its variance that a repetition of all episodes would have.
      task: the part that tasks in common have; it does not hold `cell`.
      most: [...] what the effect of one base can be at most.
    """

    value: np.ndarray
    bases: np.ndarray
    cell: np.ndarray
    task: np.ndarray
    most: np.ndarray


def effect(outcomes: np.ndarray, confidence: float = 0.95, margin: float = 0.1) -> Effect:
    """Judges a complete crossing.

    Args:
      outcomes: [..., K, K, S, T]: teacher's base, student's base, seeds, tasks.
      confidence: of the intervals.
      margin: of equivalence: an effect of that size or more is to be ruled out.
    """
    outcomes = np.asarray(outcomes, float)
    bases, students, seeds, tasks = outcomes.shape[-4:]
    if bases != students:
        raise ValueError(f"{bases} bases of teachers and {students} of students are no crossing")
    found = _interaction(outcomes)
    interaction, p_equivalence = _judged(found, confidence, margin)
    diagonal = np.moveaxis(np.diagonal(outcomes, axis1=-4, axis2=-3), -1, -3)  # [..., K, S, T]
    return Effect(
        rate(diagonal, confidence),
        _other(outcomes, confidence),
        interaction,
        p_equivalence,
        bases,
        seeds,
        tasks,
    )


def rate(outcomes: np.ndarray, confidence: float = 0.95) -> Rate:
    """The rate of outcomes [..., K, S, T] over bases, with seeds nested in them.

    As `statistics.rate_interval`, where a base is what a training is there.
    """
    of_bases = np.swapaxes(np.asarray(outcomes, float).mean(-2), -1, -2)
    return Rate(*_enough(of_bases.shape[-1], statistics.rate_interval(of_bases, confidence)))


def difference(
    a: np.ndarray, b: np.ndarray, confidence: float = 0.95, margin: float = 0.1
) -> tuple[Difference, Value]:
    """Compares two arms of the same bases and tasks: a minus b, paired by base.

    Args:
      a: outcomes [..., K, Sa, T].
      b: outcomes [..., K, Sb, T].
      confidence: of the interval.
      margin: of equivalence.

    Returns:
      The difference, and the p of equivalence.
    """
    return _judged(_paired(a, b), confidence, margin)


def ratio(
    student: np.ndarray,
    control: np.ndarray,
    teacher: np.ndarray,
    base: np.ndarray,
    confidence: float = 0.95,
) -> tuple[Value, Value, Value]:
    """Returns (ratio, low, high) of (student - control) / (teacher - base), paired by base.

    Each is [..., K, S, T] of the same bases and tasks. NaN three times where the interval of the
    denominator reaches 0 (a ratio to nothing says nothing), or with fewer than 3 bases.
    """
    return _ratio(_paired(student, control), _paired(teacher, base), confidence)


def effect_ratio(
    outcomes: np.ndarray, teacher: np.ndarray, base: np.ndarray, confidence: float = 0.95
) -> tuple[Value, Value, Value]:
    """Returns (ratio, low, high) of the interaction of a crossing to (teacher - base).

    Args:
      outcomes: [..., K, K, S, T].
      teacher: [..., K, S, T] of the same bases.
      base: [..., K, S, T].
      confidence: of the interval.
    """
    found = _interaction(np.asarray(outcomes, float))
    return _ratio(found, _paired(teacher, base), confidence)


def _interaction(outcomes: np.ndarray) -> _Sample:
    """The interaction of outcomes [..., K, K, S, T]."""
    bases = outcomes.shape[-4]
    diagonal = np.eye(bases, dtype=bool)
    same = outcomes[..., diagonal, :, :]  # [..., K, S, T]
    other = outcomes[..., ~diagonal, :, :]  # [..., K (K - 1), S, T]
    value = same.mean((-3, -2, -1)) - other.mean((-3, -2, -1))
    cells = outcomes.mean((-2, -1))
    of_same = cells[..., diagonal]  # [..., K]
    apart = np.where(diagonal, 0.0, cells)
    touched = apart.sum(-1) + apart.sum(-2)  # [..., K]: of each base's pairs with others
    # Without each base in turn; two bases leave no pair.
    with np.errstate(invalid="ignore", divide="ignore"):
        left = (of_same.sum(-1, keepdims=True) - of_same) / np.float64(bases - 1)
        pairs = np.float64((bases - 1) * (bases - 2))
        left = left - (apart.sum((-2, -1))[..., None] - touched) / pairs
    pseudo = bases * value[..., None] - (bases - 1) * left
    of_tasks = same.mean((-3, -2)) - other.mean((-3, -2))
    cell = _cell(same) + _cell(other)
    return _Sample(value, pseudo, cell, _task(of_tasks, cell), 1 - other.mean((-3, -2, -1)))


def _paired(a: np.ndarray, b: np.ndarray) -> _Sample:
    """The difference of outcomes [..., K, Sa, T] and [..., K, Sb, T]."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    of_bases = a.mean((-2, -1)) - b.mean((-2, -1))
    cell = _cell(a) + _cell(b)
    of_tasks = a.mean((-3, -2)) - b.mean((-3, -2))
    return _Sample(
        of_bases.mean(-1), of_bases, cell, _task(of_tasks, cell), 1 - b.mean((-3, -2, -1))
    )


def _cell(outcomes: np.ndarray) -> np.ndarray:
    """The variance that a repetition of all episodes gives the mean of outcomes [..., N, S, T]."""
    arms, seeds, tasks = outcomes.shape[-3:]
    flat = np.swapaxes(outcomes.reshape(*outcomes.shape[:-3], arms * seeds, tasks), -1, -2)
    return statistics.scatter(flat).cell


def _task(of_tasks: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """The variance of a mean over tasks [..., T], without what single episodes have in it."""
    tasks = of_tasks.shape[-1]
    whole = of_tasks.var(-1, ddof=1) / tasks if tasks > 1 else 0.0 * cell
    return np.maximum(whole - cell, 0)


@functools.cache
def _weights(bases: int) -> np.ndarray:
    """Weights [D, K + 1] of the bases and of one more, even over all that sum to 1."""
    return np.random.default_rng(bases).dirichlet(np.ones(bases + 1), _DRAWS)


@functools.cache
def _normal() -> np.ndarray:
    """Normal scores [D], in an order that has nothing to do with the weights'."""
    even = (np.arange(_DRAWS) + 0.5) / _DRAWS
    return special.ndtri(even)[np.random.default_rng(0).permutation(_DRAWS)]


class _Spread(NamedTuple):
    """The distribution that ends and p-values of a statistic are read from.

    Attributes:
      value: the statistic [...].
      error: its standard error.
      freedom: degrees of freedom of the error.
      lows, highs: draws [..., D] with one more base at either extreme.
    """

    value: np.ndarray
    error: np.ndarray
    freedom: np.ndarray
    lows: np.ndarray
    highs: np.ndarray

    def low(self, tail: float) -> np.ndarray:
        """The end below which the truth lies with probability `tail`."""
        student = self.value + stats.t.ppf(tail, self.freedom) * self.error
        return np.minimum(student, np.quantile(self.lows, tail, axis=-1))

    def high(self, tail: float) -> np.ndarray:
        """The end above which the truth lies with probability `tail`."""
        student = self.value - stats.t.ppf(tail, self.freedom) * self.error
        return np.maximum(student, np.quantile(self.highs, 1 - tail, axis=-1))

    def p_below(self, bound: float) -> np.ndarray:
        """One-sided p of the truth lying below the bound, or at it."""
        student = stats.t.sf((self.value - bound) / self.error, self.freedom)
        drawn = ((self.lows <= bound).sum(-1) + 1) / (_DRAWS + 1)
        return np.maximum(student, drawn)

    def p_above(self, bound: float) -> np.ndarray:
        """One-sided p of the truth lying above the bound, or at it."""
        student = stats.t.cdf((self.value - bound) / self.error, self.freedom)
        drawn = ((self.highs >= bound).sum(-1) + 1) / (_DRAWS + 1)
        return np.maximum(student, drawn)


def _spread(sample: _Sample) -> _Spread:
    bases = sample.bases.shape[-1]
    middle = sample.bases - sample.bases.mean(-1, keepdims=True)
    jackknife = (middle**2).sum(-1) / max(bases - 1, 1) / bases
    # By chance a few bases agree better than their own episodes let them: that says nothing.
    base = np.maximum(jackknife, sample.cell)
    total = base + sample.task
    squares = base**2 / max(bases - 1, 1) + sample.task**2 / 100
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = total**2 / squares
    noise = np.sqrt(sample.task)[..., None] * _normal()
    draws = []
    for extreme in (sample.bases.min(-1), sample.bases.max(-1)):
        values = np.concatenate([sample.bases, extreme[..., None]], -1)
        draws.append(values @ _weights(bases).T + noise)
    return _Spread(sample.value, np.sqrt(total), freedom, *draws)


def _missed(bases: int, confidence: float) -> float:
    """The largest share of bases of which so many may have shown none; 0 if it is a small one."""
    share = 1 - (1 - confidence) ** (1 / bases)
    return share if share >= LEAST_SHARE else 0.0


def _judged(sample: _Sample, confidence: float, margin: float) -> tuple[Difference, Value]:
    """The difference with its interval and p, and the p of equivalence."""
    bases = sample.bases.shape[-1]
    nothing = np.full(sample.value.shape, math.nan)
    if bases < LEAST_BASES:
        none = statistics.as_value(nothing)
        return Difference(statistics.as_value(sample.value), none, none, none), none
    spread = _spread(sample)
    known = spread.error > 0
    tail = 0.5 - confidence / 2
    value, missed = sample.value, _missed(bases, confidence)
    # Bases that were not met may have no effect, or all that there can be.
    low = np.minimum(spread.low(tail), (1 - missed) * value)
    high = np.maximum(spread.high(tail), (1 - missed) * value + missed * sample.most)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.minimum(2 * np.minimum(spread.p_below(0.0), spread.p_above(0.0)), 1.0)
        outside = np.maximum(spread.p_above(margin), spread.p_below(-margin))
    p_equivalence = np.maximum(outside, (1 - LEAST_SHARE) ** bases)
    parts = []
    for part in (np.maximum(low, -1.0), np.minimum(high, 1.0), p, p_equivalence):
        parts.append(statistics.as_value(np.where(known, part, nothing)))
    return Difference(statistics.as_value(value), *parts[:3]), parts[3]


def _other(outcomes: np.ndarray, confidence: float) -> Rate:
    """The rate of pairs of two bases in outcomes [..., K, K, S, T].

    The interval holds what teachers' bases and what students' bases scatter, in squares on the
    scale of log-odds.
    """
    bases = outcomes.shape[-4]
    seen = outcomes.mean(-2)  # [..., K, K, T]
    apart = ~np.eye(bases, dtype=bool)
    value = seen[..., apart, :].mean((-2, -1))
    if bases < LEAST_BASES:
        none = np.full(value.shape, math.nan)
        return Rate(*(statistics.as_value(part) for part in (value, none, none)))
    below = above = 0.0
    edge = 0.5 / (apart.sum() * seen.shape[-1])
    middle = special.logit(np.clip(value, edge, 1 - edge))
    for axis in (-3, -2):
        # Means over the other axis: [..., K, T] of the bases of one kind.
        kind = (seen * apart[..., None]).sum(axis) / (bases - 1)
        _, low, high = statistics.rate_interval(np.swapaxes(kind, -1, -2), confidence)
        with np.errstate(divide="ignore"):
            below = np.hypot(below, middle - special.logit(low))
            above = np.hypot(above, special.logit(high) - middle)
    ends = special.expit(middle - below), special.expit(middle + above)
    return Rate(*(statistics.as_value(part) for part in (value, *ends)))


def _enough(bases: int, found: tuple[Value, Value, Value]) -> tuple[Value, Value, Value]:
    """(value, low, high), without ends where bases are too few."""
    if bases >= LEAST_BASES:
        return found
    none = statistics.as_value(np.full(np.shape(found[0]), math.nan))
    return found[0], none, none


def _ratio(above: _Sample, below: _Sample, confidence: float) -> tuple[Value, Value, Value]:
    """Fieller's interval of the ratio of two statistics over the same bases."""
    bases = above.bases.shape[-1]
    denominator, _ = _judged(below, confidence, 1.0)
    known = np.asarray(denominator.low) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(known, above.value / below.value, math.nan)
    # Fieller 1954: the ratios r at which the mean of above - r below may be 0.
    quantile = stats.t.ppf(0.5 + confidence / 2, max(bases - 1, 1)) ** 2
    rest_a = above.bases - above.bases.mean(-1, keepdims=True)
    rest_b = below.bases - below.bases.mean(-1, keepdims=True)
    scale = max(bases - 1, 1) * bases
    var_a = np.maximum((rest_a**2).sum(-1) / scale, above.cell) + above.task
    var_b = np.maximum((rest_b**2).sum(-1) / scale, below.cell) + below.task
    both = (rest_a * rest_b).sum(-1) / scale
    a = below.value**2 - quantile * var_b
    b = above.value * below.value - quantile * both
    c = above.value**2 - quantile * var_a
    known = known & (a > 0) & (b**2 - a * c >= 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(np.maximum(b**2 - a * c, 0))
        low, high = (b - root) / a, (b + root) / a
    missed = _missed(bases, confidence)
    low = np.minimum(low, (1 - missed) * found)
    high = np.maximum(high, (1 - missed) * found + missed)
    parts = [np.where(known, part, math.nan) for part in (found, low, high)]
    return (
        statistics.as_value(parts[0]),
        statistics.as_value(parts[1]),
        statistics.as_value(parts[2]),
    )
