"""Effects over bases that were crossed: intervals, p-values, equivalence. NumPy in, floats out.

K bases are crossed: each one teaches students of every base, itself included. Outcomes are arrays
[K, K, S, T]: the teacher's base, the student's base, training seeds (of that teacher), and tasks,
which are the same everywhere; entries lie in [0, 1]. The effect of a shared base is the
*interaction*, the mean over pairs of bases A, B of (AA + BB - AB - BA) / 2: how good a teacher a
base is, and how easily it is taught, cancel. It is a U-statistic of degree 2 over bases. Student's
t judges it by the jackknife's variance (Arvesen 1969) with K - 1 degrees of freedom; what all cells
have in common, because they face the same tasks, is added.

Three things Student's t does not know, and each end of an interval reaches as far as they do:

- A rate that is nearer to .5 scatters more, so an effect that is larger than the one seen does,
  too. Ends and p-values ask, as Wilson's interval (1927) does, how much the rate in question would.
- A few bases, of which some have the effect and others not, are skewed: their mean under random
  weights, with one more base like the most extreme one (after Gaffke 2005).
- Bases that have the effect, or have it not, may not have been met. K bases miss a third of all
  bases with probability (2/3)^K. While that is more than 1 - confidence, ends reach to where such
  bases would draw them, and no p of equivalence is ever smaller. So no effect means: none that a
  third of all bases has.

docs/intervals.md has how often all of it is right, by `tools/check_intervals.py --bases`. One or
two bases say nothing of others: NaN stands for ends and p. So it does where nothing happened
anywhere, or everything did, and bases are few.

Functions take leading axes [...] of many experiments and then return arrays [...], not floats.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from subtransfer.analysis import statistics
from subtransfer.analysis.statistics import Difference, Value, as_value

# With fewer bases there is no interval: two have one pair, which does not scatter.
LEAST_BASES = 3
# The least share of bases with an effect, or without, that is reckoned with where none was met.
LEAST_SHARE = 1 / 3
# Draws of bases' weights; a p-value is no smaller than 2 in so many.
_DRAWS = 4_000
# The power of a single outcome's deviation with which errors grow. 1 would be Wilson's; but bases
# whose mean is low by chance agree better, too. Chosen by simulation: with 1, "no transfer" is said
# of effects of the margin in 7 of 100 runs of 8 bases; with 2, too seldom where there is none.
_GROWTH = 1.5
# Of single outcomes, at a rate of 1 in 400; a rate of 0 has none to be compared with.
_LEAST_DEVIATION = 0.05


class Rate(NamedTuple):
    """A rate, or a ratio, with its interval."""

    value: Value
    low: Value
    high: Value


class Effect(NamedTuple):
    """What a complete crossing of bases shows.

    Attributes:
      same: the rate where teacher and student share the base.
      other: where they do not.
      interaction: same minus other, with the two-sided p of there being none.
      p_met: the larger p of two one-sided tests, against effects of the margin and more in either
        direction, of bases like those that were met.
      p_equivalence: no smaller than `p_not_met`, too. Below 1 - confidence, there is no effect of
        that size.
      bases: K.
      seeds: S.
      tasks: T.
    """

    same: Rate
    other: Rate
    interaction: Difference
    p_met: Value
    p_equivalence: Value
    bases: int
    seeds: int
    tasks: int


def effect(outcomes: np.ndarray, confidence: float = 0.95, margin: float = 0.1) -> Effect:
    """Judges a complete crossing.

    Args:
      outcomes: [..., K, K, S, T]: teacher's base, student's base, seeds, tasks.
      confidence: of the intervals.
      margin: of equivalence.

    Raises:
      ValueError: if teachers and students are not of the same number of bases.
    """
    outcomes = np.asarray(outcomes, float)
    bases, students, seeds, tasks = outcomes.shape[-4:]
    if bases != students:
        raise ValueError(f"{bases} bases of teachers and {students} of students are no crossing")
    interaction, p_met = _judged(_interaction(outcomes), confidence, margin)
    other = _rate_of_others(outcomes, confidence)
    same = _rate_of_same(outcomes, other, confidence)
    p_equivalence = as_value(np.maximum(p_met, p_not_met(bases)))
    return Effect(same, other, interaction, p_met, p_equivalence, bases, seeds, tasks)


def p_not_met(bases: int) -> float:
    """The probability that so many bases meet none of a third of all, which have an effect."""
    return (1 - LEAST_SHARE) ** bases


def rate(outcomes: np.ndarray, confidence: float = 0.95) -> Rate:
    """The rate of outcomes [..., K, S, T] over bases, with seeds nested in them.

    As `statistics.rate_interval`, where a base is what a training is there.
    """
    of_bases = np.asarray(outcomes, float).mean(-2)
    found = Rate(*statistics.rate_interval(np.swapaxes(of_bases, -1, -2), confidence))
    if of_bases.shape[-2] >= LEAST_BASES:
        return found
    none = as_value(np.full(np.shape(found.value), math.nan))
    return Rate(found.value, none, none)


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
    found, p_met = _judged(_paired(a, b), confidence, margin)
    return found, as_value(np.maximum(p_met, p_not_met(np.shape(a)[-3])))


def pseudo_values(cells: np.ndarray) -> np.ndarray:
    """The bases' jackknife pseudo-values [..., K] of the mean over pairs of two bases.

    The mean is a U-statistic over bases: pseudo-value k is K times it less K - 1 times what it is
    without base k (Arvesen 1969). Their mean is the statistic, and their scatter is that of bases,
    whatever the pairs have in common.

    Args:
      cells: [..., K, K], teacher's base by student's; the diagonal is not read.
    """
    bases = cells.shape[-1]
    pairs = np.where(np.eye(bases, dtype=bool), 0.0, cells)
    total = pairs.sum((-2, -1))[..., None]
    touched = pairs.sum(-1) + pairs.sum(-2)  # [..., K]: what each base has a part in
    # Without each base in turn; two bases leave no pair.
    without = (total - touched) / max((bases - 1) * (bases - 2), 1)
    return total / (bases - 1) - (bases - 1) * without


def ratio(
    student: np.ndarray,
    control: np.ndarray,
    teacher: np.ndarray,
    base: np.ndarray,
    confidence: float = 0.95,
) -> Rate:
    """The ratio (student - control) / (teacher - base), paired by base.

    Each is [..., K, S, T] of the same bases and tasks. NaN three times where the interval of the
    denominator reaches 0 (a ratio to nothing says nothing), or with fewer than 3 bases.
    """
    return _ratio(_paired(student, control), _paired(teacher, base), confidence)


def effect_ratio(
    outcomes: np.ndarray, teacher: np.ndarray, base: np.ndarray, confidence: float = 0.95
) -> Rate:
    """The ratio of a crossing's interaction to (teacher - base), as of `ratio`.

    Args:
      outcomes: [..., K, K, S, T].
      teacher: [..., K, S, T] of the same bases.
      base: [..., K, S, T].
      confidence: of the interval.
    """
    above = _interaction(np.asarray(outcomes, float))
    return _ratio(above, _paired(teacher, base), confidence)


class _Sample(NamedTuple):
    """A statistic over bases, and what its variance is estimated from.

    Attributes:
      value: the statistic [...].
      bases: [..., K] values of single bases, or pseudo-values, whose mean it is.
      cell: the part of its variance that more episodes of the same policies would show.
      task: the part that tasks have in common for all policies; it does not hold `cell`.
      tasks: T.
      offset: what was subtracted: value + offset is a rate.
    """

    value: np.ndarray
    bases: np.ndarray
    cell: np.ndarray
    task: np.ndarray
    tasks: int
    offset: np.ndarray


def _of_rate(outcomes: np.ndarray) -> _Sample:
    """The rate of outcomes [..., K, S, T] of K bases."""
    of_bases = outcomes.mean((-2, -1))
    value = of_bases.mean(-1)
    return _sample(value, of_bases, _cell(outcomes), outcomes.mean((-3, -2)), 0 * value)


def _of_others(outcomes: np.ndarray) -> _Sample:
    """The rate of pairs of two bases in outcomes [..., K, K, S, T]."""
    bases = outcomes.shape[-4]
    apart = ~np.eye(bases, dtype=bool)
    pairs = outcomes[..., apart, :, :]  # [..., K (K - 1), S, T]
    value = pairs.mean((-3, -2, -1))
    pseudo = pseudo_values(outcomes.mean((-2, -1)))
    return _sample(value, pseudo, _cell(pairs), pairs.mean((-3, -2)), 0 * value)


def _interaction(outcomes: np.ndarray) -> _Sample:
    """The interaction in outcomes [..., K, K, S, T]."""
    same, other = _of_rate(_own(outcomes)), _of_others(outcomes)
    apart = ~np.eye(outcomes.shape[-4], dtype=bool)
    of_tasks = _own(outcomes).mean((-3, -2)) - outcomes[..., apart, :, :].mean((-3, -2))
    return _minus(same, other, of_tasks)


def _paired(a: np.ndarray, b: np.ndarray) -> _Sample:
    """The difference of outcomes [..., K, Sa, T] and [..., K, Sb, T]."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return _minus(_of_rate(a), _of_rate(b), a.mean((-3, -2)) - b.mean((-3, -2)))


def _minus(a: _Sample, b: _Sample, of_tasks: np.ndarray) -> _Sample:
    """The difference of two rates over the same bases and tasks, and tasks' [..., T]."""
    # Tasks are judged together: what makes one hard in both is not in the difference.
    return _sample(a.value - b.value, a.bases - b.bases, a.cell + b.cell, of_tasks, b.value)


def _sample(
    value: np.ndarray,
    bases: np.ndarray,
    cell: np.ndarray,
    of_tasks: np.ndarray,
    offset: np.ndarray,
) -> _Sample:
    tasks = of_tasks.shape[-1]
    whole = of_tasks.var(-1, ddof=1) / tasks if tasks > 1 else 0.0 * cell
    return _Sample(value, bases, cell, np.maximum(whole - cell, 0), tasks, offset)


def _own(outcomes: np.ndarray) -> np.ndarray:
    """The outcomes [..., K, S, T] of pairs of one base in [..., K, K, S, T]."""
    return np.moveaxis(np.diagonal(outcomes, axis1=-4, axis2=-3), -1, -3)


def _cell(outcomes: np.ndarray) -> np.ndarray:
    """The variance that episodes alone give the mean of outcomes [..., N, S, T]."""
    policies, tasks = outcomes.shape[-3] * outcomes.shape[-2], outcomes.shape[-1]
    flat = outcomes.reshape(*outcomes.shape[:-3], policies, tasks)
    found = statistics.scatter(np.swapaxes(flat, -1, -2)).cell
    # Where nothing differs, half an outcome more might have.
    rate = 0.5 / (policies * tasks + 1)
    return np.where(found > 0, found, rate * (1 - rate) / (policies * tasks))


@functools.cache
def _weights(bases: int) -> np.ndarray:
    """Weights [D, K + 1] of K bases and of one more: even over all that sum to 1."""
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
      offset: value + offset is a rate.
      error: the standard error of the value.
      unit: the error over `_growth` of the rate.
      freedom: degrees of freedom of the error.
      lows: draws [..., D] with one more base like the lowest.
      highs: with one more like the highest.
    """

    value: np.ndarray
    offset: np.ndarray
    error: np.ndarray
    unit: np.ndarray
    freedom: np.ndarray
    lows: np.ndarray
    highs: np.ndarray

    def ends(self, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of an interval."""
        tail = 0.5 - confidence / 2
        quantile = stats.t.ppf(1 - tail, self.freedom)
        rate = np.clip(self.value + self.offset, 0, 1)
        lowest, highest = (_end(rate, quantile * self.unit, end) for end in (0.0, 1.0))
        low = np.minimum(self.value - quantile * self.error, lowest - self.offset)
        high = np.maximum(self.value + quantile * self.error, highest - self.offset)
        low = np.minimum(low, np.quantile(self.lows, tail, axis=-1))
        return low, np.maximum(high, np.quantile(self.highs, 1 - tail, axis=-1))

    def p_below(self, bound: float) -> np.ndarray:
        """The one-sided p of the truth being the bound or less."""
        drawn = ((self.lows <= bound).sum(-1) + 1) / (_DRAWS + 1)
        return np.maximum(stats.t.sf(self._score(bound), self.freedom), drawn)

    def p_above(self, bound: float) -> np.ndarray:
        """The one-sided p of the truth being the bound or more."""
        drawn = ((self.highs >= bound).sum(-1) + 1) / (_DRAWS + 1)
        return np.maximum(stats.t.cdf(self._score(bound), self.freedom), drawn)

    def _score(self, bound: float) -> np.ndarray:
        error = np.maximum(self.error, self.unit * _growth(bound + self.offset))
        return (self.value - bound) / error


def _growth(rate: np.ndarray) -> np.ndarray:
    """What errors of a rate are in proportion to."""
    rate = np.clip(rate, 0, 1)
    return np.sqrt(rate * (1 - rate)) ** _GROWTH


def _end(rate: np.ndarray, error: np.ndarray, end: float) -> np.ndarray:
    """The rate that lies as far from another as its own error, towards 0 or 1."""
    near, far = rate, np.full(rate.shape, end)
    # The distance grows faster than the error: there is one such rate.
    for _ in range(40):
        middle = (near + far) / 2
        within = np.abs(middle - rate) < error * _growth(middle)
        near, far = np.where(within, middle, near), np.where(within, far, middle)
    return far


def _spread(sample: _Sample) -> _Spread:
    bases = sample.bases.shape[-1]
    base = _base_variance(sample)
    total = base + sample.task
    # Satterthwaite's.
    squares = base**2 / (bases - 1) + sample.task**2 / max(sample.tasks - 1, 1)
    error = np.sqrt(total)
    unit = error / np.maximum(_growth(sample.value + sample.offset), _LEAST_DEVIATION**_GROWTH)
    noise = np.sqrt(sample.task)[..., None] * _normal()
    draws = []
    for extreme in (sample.bases.min(-1), sample.bases.max(-1)):
        values = np.concatenate([sample.bases, extreme[..., None]], -1)
        draws.append(values @ _weights(bases).T + noise)
    return _Spread(sample.value, sample.offset, error, unit, total**2 / squares, *draws)


def _base_variance(sample: _Sample) -> np.ndarray:
    """The variance of the statistic over bases: the jackknife's, or of a mean."""
    bases = sample.bases.shape[-1]
    # By chance a few bases agree better than their own episodes let them: that says nothing.
    return np.maximum(sample.bases.var(-1, ddof=1) / bases, sample.cell)


def _missed(bases: int, confidence: float) -> float:
    """The largest share of all bases of which so many may have met none; 0 of enough bases."""
    if p_not_met(bases) <= 1 - confidence:
        return 0.0
    return 1 - (0.5 - confidence / 2) ** (1 / bases)


def _judged(sample: _Sample, confidence: float, margin: float) -> tuple[Difference, Value]:
    """The difference with its interval and p, and the p of equivalence among bases like these."""
    value, bases = sample.value, sample.bases.shape[-1]
    if bases < LEAST_BASES:
        none = as_value(np.full(value.shape, math.nan))
        return Difference(as_value(value), none, none, none), none
    spread = _spread(sample)
    low, high = spread.ends(confidence)
    # Bases that were not met may have no effect, or all that there can be.
    missed = _missed(bases, confidence)
    low = np.minimum(low, (1 - missed) * value)
    high = np.maximum(high, (1 - missed) * value + missed * (1 - sample.offset))
    p = np.minimum(2 * np.minimum(spread.p_below(0.0), spread.p_above(0.0)), 1.0)
    p_met = np.maximum(spread.p_above(margin), spread.p_below(-margin))
    # Nothing happened, or everything did.
    silent = (value == 0) & ((sample.offset == 0) | (sample.offset == 1))
    known = ~(silent & (missed > 0))
    parts = []
    for part in (np.maximum(low, -1.0), np.minimum(high, 1.0), p, p_met):
        parts.append(as_value(np.where(known, part, math.nan)))
    return Difference(as_value(value), *parts[:3]), parts[3]


def _rate_of_same(outcomes: np.ndarray, other: Rate, confidence: float) -> Rate:
    """The rate of pairs of one base in outcomes [..., K, K, S, T]."""
    found = rate(_own(outcomes), confidence)
    bases = outcomes.shape[-4]
    if bases < LEAST_BASES:
        return found
    # The rates of bases with the effect and of others are farther apart than `rate` thinks of.
    low, high = _spread(_of_rate(_own(outcomes))).ends(confidence)
    missed = _missed(bases, confidence)
    low = np.minimum(
        low, (1 - missed) * found.value + missed * np.minimum(found.value, other.value)
    )
    high = np.maximum(high, (1 - missed) * found.value + missed)
    # NaN stays.
    low, high = np.minimum(found.low, low), np.maximum(found.high, high)
    return Rate(found.value, as_value(np.maximum(low, 0.0)), as_value(np.minimum(high, 1.0)))


def _rate_of_others(outcomes: np.ndarray, confidence: float) -> Rate:
    """The rate of pairs of two bases in outcomes [..., K, K, S, T].

    What teachers' bases scatter and what students' bases do is added, in squares on the scale of
    log-odds.
    """
    bases = outcomes.shape[-4]
    apart = ~np.eye(bases, dtype=bool)
    value = outcomes[..., apart, :, :].mean((-3, -2, -1))
    seen = np.where(apart[..., None], outcomes.mean(-2), 0.0)  # [..., K, K, T]
    edge = 0.5 / (bases * outcomes.shape[-1])
    middle = special.logit(np.clip(value, edge, 1 - edge))
    below = above = np.zeros(value.shape)
    for axis in (-3, -2):
        # One rate [..., K, S = 1, T] of each teacher's base, or student's.
        found = rate((seen.sum(axis) / (bases - 1))[..., None, :], confidence)
        with np.errstate(divide="ignore"):
            below = np.hypot(below, middle - special.logit(found.low))
            above = np.hypot(above, special.logit(found.high) - middle)
    low, high = special.expit(middle - below), special.expit(middle + above)
    return Rate(as_value(value), as_value(low), as_value(high))


def _ratio(above: _Sample, below: _Sample, confidence: float) -> Rate:
    """Fieller's interval (1954) of the ratio of two statistics over the same bases."""
    bases = above.bases.shape[-1]
    if bases < LEAST_BASES:
        return Rate(*[as_value(np.full(above.value.shape, math.nan))] * 3)
    numerator, denominator = (_judged(part, confidence, 1.0)[0] for part in (above, below))
    # The ratios r at which the mean of above - r * below may be 0: a r^2 - 2 b r + c <= 0.
    quantile = stats.t.ppf(0.5 + confidence / 2, bases - 1) ** 2
    apart = above.bases - above.bases.mean(-1, keepdims=True)
    common = (apart * (below.bases - below.bases.mean(-1, keepdims=True))).sum(-1)
    a = below.value**2 - quantile * (_base_variance(below) + below.task)
    b = above.value * below.value - quantile * common / (bases - 1) / bases
    c = above.value**2 - quantile * (_base_variance(above) + above.task)
    known = (np.asarray(denominator.low) > 0) & (a > 0) & (b**2 >= a * c)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = above.value / below.value
        root = np.sqrt(b**2 - a * c)
        # What Student's t does not know of the numerator: see above.
        low = np.minimum((b - root) / a, numerator.low / below.value)
        high = np.maximum((b + root) / a, numerator.high / below.value)
    return Rate(*(as_value(np.where(known, part, math.nan)) for part in (value, low, high)))
