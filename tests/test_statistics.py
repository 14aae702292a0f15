"""Intervals and tests against SciPy, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from subtransfer.analysis import statistics

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (7, 20), (20, 20), (300, 768)])
def test_wilson_and_exact_equal_scipy(k, n):
    for ours, method in ((statistics.wilson, "wilson"), (statistics.exact, "exact")):
        expected = stats.binomtest(k, n).proportion_ci(0.95, method=method)
        np.testing.assert_allclose(ours(k, n), (expected.low, expected.high), atol=1e-9)


def test_effective_n():
    """Independent cells count each; copies of a task count once; disagreeing seeds count as few."""
    rng = np.random.default_rng(0)
    free = (rng.random((400, 3)) < 0.3).astype(float)
    assert 800 < statistics.effective_n(free) <= 1200
    copied = np.repeat((rng.random((400, 1)) < 0.3).astype(float), 3, axis=1)
    assert 350 < statistics.effective_n(copied) < 450
    apart = np.tile([0.0, 0.0, 1.0], (400, 1))
    assert statistics.effective_n(apart) < 4


def test_rate_interval_is_exact_at_the_ends():
    for value, k in ((0.0, 0), (1.0, 50)):
        rate, low, high = statistics.rate_interval(np.full((50, 3), value))
        assert rate == value
        np.testing.assert_allclose((low, high), statistics.exact(k, 50))


def test_bootstrap_covers_the_true_difference():
    """Tasks of different difficulty, two seeds an arm: the 95% interval holds the truth in at least
    92% of 150 worlds.
    """
    rng = np.random.default_rng(1)
    hits = 0
    for world in range(150):
        difficulty = rng.random(80) * 0.4
        a = (rng.random((80, 2)) < (difficulty + 0.3)[:, None]).astype(float)
        b = (rng.random((80, 2)) < difficulty[:, None]).astype(float)
        _, low, high = statistics.bootstrap_difference(a, b, n_boot=300, seed=world)
        hits += low <= 0.3 <= high
    assert hits >= 138


def test_bootstrap_is_paired_and_deterministic():
    a = (np.random.default_rng(2).random((100, 3)) < 0.5).astype(float)
    assert statistics.bootstrap_difference(a, a, seed=1) == statistics.bootstrap_difference(
        a, a, seed=1
    )
    one = a[:, :1]
    assert statistics.bootstrap_difference(one, one) == (0.0, 0.0, 0.0)


def test_transfer_ratio():
    ones, zeros = np.ones((60, 2)), np.zeros((60, 2))
    half = np.tile([[1.0, 1.0], [0.0, 0.0]], (30, 1))
    np.testing.assert_allclose(statistics.transfer_ratio(ones, zeros, ones, zeros), 1.0)
    ratio, low, high = statistics.transfer_ratio(half, zeros, ones, zeros)
    assert ratio == 0.5 and low < 0.5 < high
    assert all(math.isnan(x) for x in statistics.transfer_ratio(half, zeros, zeros, zeros))


def test_mcnemar_midp_by_enumeration():
    a = np.array([1] * 9 + [0] * 2 + [1] * 30, bool)
    b = np.array([0] * 9 + [1] * 2 + [1] * 30, bool)
    pmf = [math.comb(11, k) / 2**11 for k in range(12)]
    assert statistics.mcnemar_midp(a, b) == pytest.approx(2 * (pmf[0] + pmf[1] + 0.5 * pmf[2]))
    assert statistics.mcnemar_midp(a, a) == 1.0


def test_sign_flips_are_exact_for_few_and_close_for_many():
    d = np.array([3.0, 1.0, 2.0, -1.0, 0.0])
    nonzero = d[:4]
    sums = [abs(np.dot(s, nonzero)) for s in itertools.product((1, -1), repeat=4)]
    assert statistics.sign_flip_test(d) == np.mean(np.array(sums) >= 5.0)
    many = np.random.default_rng(3).normal(0.2, 1, 200)
    assert statistics.sign_flip_test(many) == pytest.approx(
        stats.ttest_1samp(many, 0).pvalue, abs=0.02
    )
    assert statistics.sign_flip_test(np.ones(100)) == 1e-4


def test_seed_permutation_floors():
    """3 against 3 cannot go below 0.1; 5 against 5 can reach 0.008."""
    assert statistics.seed_permutation_test(
        np.array([0.7, 0.8, 0.9]), np.array([0.1, 0.2, 0.0])
    ) == pytest.approx(0.1)
    five = statistics.seed_permutation_test(np.arange(5) + 10, np.arange(5))
    assert five == pytest.approx(2 / 252)


def test_holm():
    assert statistics.holm([0.01, None, 0.04, 0.03, math.nan]) == [
        pytest.approx(0.03),
        None,
        0.06,
        0.06,
        None,
    ]
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_means_and_seeds_have_scipys_intervals():
    """Independent cells: SciPy's bootstrap over tasks for one seed; Student's t over seeds."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((200, 1))
    found = statistics.bootstrap_mean(values, n_boot=4000)
    expected = stats.bootstrap(
        (values[:, 0],), np.mean, n_resamples=4000, method="percentile", random_state=0
    ).confidence_interval
    np.testing.assert_allclose(found, (values.mean(), *expected), atol=0.01)
    assert statistics.bootstrap_mean(values, n_boot=4000) == found
    seeds = rng.standard_normal(5)
    expected = stats.ttest_1samp(seeds, 0).confidence_interval(0.9)
    np.testing.assert_allclose(
        statistics.seed_interval(seeds, 0.9), (seeds.mean(), expected.low, expected.high)
    )
    assert np.isnan(statistics.seed_interval(seeds[:1])[1:]).all()
