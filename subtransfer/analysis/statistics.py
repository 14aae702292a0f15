"""Intervals and tests for rates of unsafe first actions. NumPy in, floats out.

The unit of generalisation is the task, and the training seed: repeated samples of one task under
one policy are not replicates. Outcomes come as an array [T, S] of tasks by seeds, entries in [0,
1].
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
from scipy import stats


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927), also at a non-integer effective sample size."""
    # Not Wald's interval, which has no width at 0 and leaves [0, 1] near it.
    z = stats.norm.ppf(0.5 + confidence / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def exact(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson's exact interval."""
    # Wilson's interval falls short of its confidence at the ends, where this one does not.
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def effective_n(outcomes: np.ndarray) -> float:
    """Number of independent trials with the same variance of the mean as outcomes [T, S].

    The variance is clustered two ways, by task and by seed: V = V_task + V_seed - V_cell (Cameron,
    Gelbach & Miller 2011), each cluster term with its small-sample factor G / (G - 1). With two or
    three seeds V_seed is itself rough; the result is kept between 1 and T * S, and V never below
    V_cell.
    """
    tasks, seeds = outcomes.shape
    mean = outcomes.mean()
    # Without any scatter there is no variance to compare with: the tasks alone are counted.
    if mean in (0.0, 1.0):
        return float(tasks)
    residual = outcomes - mean
    total = outcomes.size**2

    def clustered(sums: np.ndarray) -> float:
        groups = sums.size
        return float((sums**2).sum() / total * groups / (groups - 1)) if groups > 1 else 0.0

    # Each cell is counted in its task's cluster and in its seed's, so once too often.
    cell = clustered(residual.ravel())
    by_task, by_seed = clustered(residual.sum(axis=1)), clustered(residual.sum(axis=0))
    variance = max(by_task + by_seed - cell, by_task, by_seed, cell)
    return float(np.clip(mean * (1 - mean) / variance, 1.0, outcomes.size))


def rate_interval(outcomes: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Returns (rate, low, high) of outcomes [T, S]: Wilson's interval at the effective sample size.

    It is exact at 0 and at all, with only the T tasks as trials: a policy that never acts says
    nothing of how its seeds scatter.
    """
    outcomes = np.asarray(outcomes, float)
    rate = float(outcomes.mean())
    # Where nothing scatters, the effective sample size cannot be estimated.
    if rate in (0.0, 1.0):
        tasks = outcomes.shape[0]
        return rate, *exact(round(rate * tasks), tasks, confidence)
    n = effective_n(outcomes)
    return rate, *wilson(rate * n, n, confidence)


def _resampled_means(
    outcomes: np.ndarray, task_weights: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Means [n_boot] under given task weights [n_boot, T] and freshly resampled seeds."""
    seeds = outcomes.shape[1]
    # How often a resampled seed is drawn is multinomial, so that no indices need be drawn.
    share = np.full(seeds, 1 / seeds)
    seed_weights = rng.multinomial(seeds, share, size=len(task_weights)) / seeds  # [n_boot, S]
    return np.einsum("bt,ts,bs->b", task_weights, outcomes, seed_weights)


def _task_weights(tasks: int, n_boot: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=n_boot) / tasks


def _interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def bootstrap_difference(
    a: np.ndarray, b: np.ndarray, *, n_boot: int = 2000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Returns (difference, low, high) of mean(a) - mean(b), of the same tasks.

    Percentile bootstrap over the crossed design: tasks are resampled once for both arms (the
    comparison is paired), the training seeds of each arm apart (Owen 2007, pigeonhole bootstrap; it
    errs on the wide side).

    Args:
      a: outcomes [T, Sa].
      b: outcomes [T, Sb].
      n_boot: bootstrap samples.
      seed: of the bootstrap.
      confidence: of the interval.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    rng = np.random.default_rng(seed)
    # One draw of tasks for both arms: what makes a task hard in both is not in their difference.
    weights = _task_weights(a.shape[0], n_boot, rng)
    samples = _resampled_means(a, weights, rng) - _resampled_means(b, weights, rng)
    return float(a.mean() - b.mean()), *_interval(samples, confidence)


def bootstrap_mean(
    outcomes: np.ndarray, *, n_boot: int = 2000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Returns (mean, low, high) of outcomes [T, S] that are no shares, such as log-odds.

    Bootstrapped as in `bootstrap_difference`.
    """
    outcomes = np.asarray(outcomes, float)
    weights = _common_weights(outcomes.shape[0], n_boot, seed)
    samples = _resampled_means(outcomes, weights, np.random.default_rng([seed, 1]))
    return float(outcomes.mean()), *_interval(samples, confidence)


@functools.lru_cache(maxsize=2)
def _common_weights(tasks: int, n_boot: int, seed: int) -> np.ndarray:
    """`_task_weights` that all means over so many tasks share.

    Drawing them takes longer than what is done with them.
    """
    return _task_weights(tasks, n_boot, np.random.default_rng([seed, 0]))


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


def transfer_ratio(
    student: np.ndarray,
    control: np.ndarray,
    teacher: np.ndarray,
    base: np.ndarray,
    *,
    n_boot: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Returns (ratio, low, high) of (student - control) / (teacher - base).

    Bootstrapped as in `bootstrap_difference`; each array is [T, S] of the same tasks. NaN three
    times when the interval of the denominator reaches 0: a ratio to nothing says nothing.
    """
    arrays = [np.asarray(x, float) for x in (student, control, teacher, base)]
    rng = np.random.default_rng(seed)
    weights = _task_weights(arrays[0].shape[0], n_boot, rng)
    # In this order: each call draws the training seeds of one array from the same generator.
    s, c, t, b = (_resampled_means(x, weights, rng) for x in arrays)
    if _interval(t - b, confidence)[0] <= 0:
        return math.nan, math.nan, math.nan
    means = [x.mean() for x in arrays]
    ratio = (means[0] - means[1]) / (means[2] - means[3])
    with np.errstate(divide="ignore", invalid="ignore"):
        samples = (s - c) / (t - b)
    return float(ratio), *_interval(samples[np.isfinite(samples)], confidence)


def mcnemar_midp(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the two-sided p of McNemar's mid-p test of paired binary outcomes [T].

    Fagerland, Lydersen & Laake 2013.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    n = only_a + only_b
    if n == 0:
        return 1.0
    # Pairs that agree say nothing of a difference. Mid-p counts the observed split half, as the
    # exact test is too cautious for so few pairs.
    least = min(only_a, only_b)
    tail = stats.binom.cdf(least, n, 0.5) - 0.5 * stats.binom.pmf(least, n, 0.5)
    return float(min(2 * tail, 1.0))


def sign_flip_test(differences: np.ndarray, *, n: int = 9999, seed: int = 0) -> float:
    """Two-sided p of a zero mean for paired differences [T] over tasks, by random sign flips.

    Exact over all 2^T flips for at most 14 non-zero differences; else (1 + hits) / (1 + n).
    """
    d = np.asarray(differences, float)
    # Flipping the sign of 0 changes nothing: such tasks would only double the count of flips.
    d = d[d != 0]
    if not len(d):
        return 1.0
    # Sums in another order differ in their last bits; the observed one must count as reached.
    observed = abs(d.sum()) - 1e-12
    if len(d) <= 14:
        signs = np.array(list(itertools.product((1, -1), repeat=len(d))))
        return float((np.abs(signs @ d) >= observed).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    # In pieces, since the signs of all flips are an array [n, T].
    for begin in range(0, n, 1000):
        signs = rng.integers(0, 2, (min(1000, n - begin), len(d))) * 2 - 1
        hits += int((np.abs(signs @ d) >= observed).sum())
    return (1 + hits) / (1 + n)


def seed_permutation_test(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact permutation p over training seeds of per-seed rates a [Sa] and b [Sb].

    The only test here that generalises over trainings; with 3 against 3 seeds it cannot fall below
    0.1.
    """
    pooled = np.concatenate([a, b]).astype(float)
    observed = abs(np.mean(a) - np.mean(b)) - 1e-12
    total, count, hits = pooled.sum(), 0, 0
    for chosen in itertools.combinations(range(len(pooled)), len(a)):
        first = pooled[list(chosen)].sum()
        hits += abs(first / len(a) - (total - first) / len(b)) >= observed
        count += 1
    return hits / count


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
