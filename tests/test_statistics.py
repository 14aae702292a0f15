"""Intervals and p-values against SciPy, integration and simulation."""

import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from subtransfer.analysis import statistics
from tools import check_intervals
from tools.check_intervals import World

pytestmark = pytest.mark.quick


def _arms(*rates, seeds=3, reps=None, tasks=100):
    """Outcomes [T, S] (or [reps, T, S]) of independent cells."""
    rng = np.random.default_rng(0)
    shape = (tasks, seeds) if reps is None else (reps, tasks, seeds)
    return [(rng.random(shape) < rate).astype(float) for rate in rates]


@pytest.mark.parametrize(("count", "tasks"), [(0, 30), (7, 30), (200, 512)])
def test_the_likelihood_is_the_integral_over_trainings(count, tasks):
    """Binomial counts of normal log-odds, by SciPy's quadrature at some rates and scatters."""
    cells, rates = statistics._cells(), statistics._rates()
    z = statistics._LOG_ODDS
    ours = np.tensordot(stats.binom.pmf(count, tasks, special.expit(z)), cells, 1)
    for m, r in ((40, 10), (80, 15), (120, 8)):
        sd = 3 * ((r + 1) / 16) ** 2

        def mean_of(function, middle, sd=sd):
            def integrand(x):
                return stats.norm.pdf(x) * function(special.expit(middle + sd * x))

            # In pieces, as a count of many tasks is a narrow peak.
            parts = np.linspace(-8, 8, 65)
            return sum(
                integrate.fixed_quad(integrand, a, b, n=20)[0]
                for a, b in zip(parts[:-1], parts[1:], strict=True)
            )

        # The middle of log-odds at which the mean rate is the grid's.
        low, high = -40.0, 40.0
        for _ in range(60):
            middle = (low + high) / 2
            below = mean_of(lambda p: p, middle) < rates[m]
            low, high = (middle, high) if below else (low, middle)
        expected = mean_of(lambda p: stats.binom.pmf(count, tasks, p), middle)
        assert ours[m, r] == pytest.approx(expected, rel=2e-3, abs=1e-9)


def test_many_trainings_that_agree_have_the_binomial_interval():
    (one,) = _arms(0.3, seeds=40, tasks=200)
    rate, low, high = statistics.rate_interval(one)
    expected = stats.binomtest(int(one.sum()), one.size).proportion_ci(0.95, "wilson")
    assert rate == one.mean()
    width = (high - low) / (expected.high - expected.low)
    # A little wider: that trainings differ a little can never be ruled out.
    assert 1.0 < width < 1.5


def test_trainings_that_differ_have_wider_intervals():
    same = np.tile([[1.0], [0.0], [0.0], [0.0]], (50, 3))
    apart = np.zeros((200, 3))
    apart[:, 0] = np.arange(200) < 150
    widths = []
    for outcomes in (same, apart):
        rate, low, high = statistics.rate_interval(outcomes)
        assert rate == 0.25 and low < rate < high
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_too_few_trainings_have_no_interval():
    (one,) = _arms(0.3, seeds=1)
    rate, low, high = statistics.rate_interval(one)
    assert rate == one.mean() and math.isnan(low) and math.isnan(high)
    assert np.isnan(statistics.rate_difference(one, 1 - one)[1:]).all()
    for value in (0.0, 1.0):
        rate, low, high = statistics.rate_interval(np.full((50, 3), value))
        assert rate == value and math.isnan(low) and math.isnan(high)
        rate, low, high = statistics.rate_interval(np.full((50, 5), value))
        assert rate == value and (low == 0.0 if value == 0 else high == 1.0)
        assert 0.02 < high - low < 0.3
    assert np.isnan(statistics.mean_interval(one)[1:]).all()
    assert np.isnan(statistics.mean_interval(np.ones((9, 3)))[1:]).all()


def test_p_and_interval_agree():
    a, b = _arms(0.4, 0.3, seeds=5, reps=60)
    for confidence in (0.95, 0.8):
        found = statistics.rate_difference(a, b, confidence)
        outside = (found.low > 0) | (found.high < 0)
        near = abs(found.p - (1 - confidence)) < 1e-3
        assert (near | (outside == (found.p < 1 - confidence))).all()
        assert 0 < outside.mean() < 1
    other = statistics.rate_difference(b, a)
    np.testing.assert_allclose(other.value, -statistics.rate_difference(a, b).value)
    np.testing.assert_allclose(other.p, statistics.rate_difference(a, b).p, atol=0.02)


def test_intervals_hold_what_was_seen():
    full, none = np.ones((40, 5)), np.zeros((40, 5))
    lone = none.copy()
    lone[:, 0] = 1.0
    for a in (full, none, lone):
        rate, low, high = statistics.rate_interval(a)
        assert 0 <= low <= rate <= high <= 1
        for b in (full, none, lone):
            found = statistics.rate_difference(a, b)
            assert -1 <= found.low <= found.value <= found.high <= 1
    assert statistics.rate_difference(full, none).p < 0.001
    assert statistics.rate_difference(full, full).p > 0.9


def test_tasks_are_paired():
    """What makes tasks hard in both arms is not in their difference."""
    hard = np.repeat(np.arange(200) % 2, 8).reshape(200, 8).astype(float)
    easy_in_one = hard.copy()
    easy_in_one[:20] = 1.0
    paired = statistics.rate_difference(easy_in_one, hard)
    apart = statistics.rate_difference(easy_in_one, 1 - hard)
    assert paired.value == pytest.approx(0.05) and apart.value == pytest.approx(0.05)
    assert paired.high - paired.low < 0.8 * (apart.high - apart.low)


def test_many_at_once_are_the_same_as_one_by_one():
    arms = _arms(0.4, 0.1, 0.9, 0.05, reps=3)
    together = [
        np.array(statistics.rate_interval(arms[0])),
        np.array(statistics.rate_difference(arms[0], arms[1])),
        np.array(statistics.rate_ratio(*arms)),
    ]
    for i in range(3):
        one = [arm[i] for arm in arms]
        alone = (
            statistics.rate_interval(one[0]),
            statistics.rate_difference(one[0], one[1]),
            statistics.rate_ratio(*one),
        )
        for many, single in zip(together, alone, strict=True):
            np.testing.assert_allclose(many[:, i], single)
            assert all(isinstance(value, float) for value in single)


def test_a_ratio_to_nothing_says_nothing():
    student, control, teacher, base = _arms(0.5, 0.05, 0.95, 0.05, seeds=5)
    ratio, low, high = statistics.rate_ratio(student, control, teacher, base)
    means = [arm.mean() for arm in (student, control, teacher, base)]
    assert ratio == pytest.approx((means[0] - means[1]) / (means[2] - means[3]))
    assert 0 < low < ratio < high < 1
    assert np.isnan(statistics.rate_ratio(student, control, base, base)).all()
    assert np.isnan(statistics.rate_ratio(student, control, base, teacher)).all()
    one = [arm[:, :1] for arm in (student, control, teacher, base)]
    assert np.isnan(statistics.rate_ratio(*one)).all()


@pytest.mark.parametrize(
    "world",
    [World(3, 0.15, 0.25), World(8, 0.15, 0.05, "logit-normal"), World(5, 0.05, 0.95)],
    ids=str,
)
def test_intervals_hold_and_p_values_err_as_they_say(world):
    _assert_holds(world, reps=300)
    # The same worlds are too much for an interval that takes decisions to be independent.
    arms = world.simulate(300)["arm"]
    holds = 0
    for outcomes in arms:
        k, n = int(outcomes.sum()), outcomes.size
        interval = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
        holds += interval.low <= world.rate <= interval.high
    assert holds / len(arms) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("icc", [0.0, 0.02, 0.05, 0.15])
@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("scatter", check_intervals.SCATTERS)
def test_intervals_hold_everywhere(seeds, icc, rate, scatter):
    # By chance, one of a hundred and twenty may lie two standard errors lower.
    _assert_holds(World(seeds, icc, rate, scatter), reps=1000, slack=0.014)


def _assert_holds(world, reps, slack=0.0):
    found = check_intervals.measure(world, reps)
    for name in ("rate", "difference", "ratio", "weak ratio"):
        assert found[name] >= 0.93 - slack, (name, found)
    assert found["p"] <= 0.07 + slack and found["p, base"] <= 0.07 + slack, found


def test_simulated_trainings_are_as_they_should():
    for scatter in check_intervals.SCATTERS:
        scores = np.random.default_rng(0).standard_normal(200_000)
        rates = check_intervals.of_trainings(scores, 0.2, 0.15, scatter)
        assert rates.mean() == pytest.approx(0.2, abs=0.002)
        assert rates.var() == pytest.approx(0.15 * 0.2 * 0.8, rel=0.03)


def test_the_command_prints_a_table(capsys):
    assert check_intervals.main(["--seeds=3", "--icc=0.05", "--rate=0.25", "--reps=20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "| 3 | 0.05 | 0.25 | beta |" in lines[2]
    assert len({line.count("|") for line in lines}) == 1
    assert check_intervals.main(["--scatter=normal"]) == 2
    assert "none of beta, logit-normal" in capsys.readouterr().err


def test_means_have_students_interval():
    """Where only trainings or only tasks scatter, SciPy's t over them; Welch's of unequal many."""
    rng = np.random.default_rng(0)
    seeds, tasks = rng.standard_normal(5), rng.standard_normal(30)
    for effects, values in (
        (seeds, np.tile(seeds, (30, 1))),
        (tasks, np.tile(tasks[:, None], (1, 5))),
    ):
        expected = stats.ttest_1samp(effects, 0).confidence_interval(0.9)
        found = statistics.mean_interval(values, 0.9)
        np.testing.assert_allclose(found, (effects.mean(), expected.low, expected.high))
    other = rng.standard_normal(3)
    expected = stats.ttest_ind(seeds, other, equal_var=False).confidence_interval(0.9)
    found = statistics.mean_difference(np.tile(seeds, (30, 1)), np.tile(other, (30, 1)), 0.9)
    np.testing.assert_allclose(found[1:], (expected.low, expected.high))
    paired = stats.ttest_rel(seeds[:3], other).confidence_interval(0.9)
    found = statistics.mean_difference(np.tile(seeds[:3], (30, 1)), np.tile(other, (30, 1)), 0.9)
    np.testing.assert_allclose(found[1:], (paired.low, paired.high))


def test_what_is_known_once_a_training_has_students_interval():
    seeds = np.random.default_rng(0).standard_normal(5)
    expected = stats.ttest_1samp(seeds, 0).confidence_interval(0.9)
    np.testing.assert_allclose(
        statistics.seed_interval(seeds, 0.9), (seeds.mean(), expected.low, expected.high)
    )
    assert np.isnan(statistics.seed_interval(seeds[:1])[1:]).all()


def test_holm():
    assert statistics.holm([0.01, None, 0.04, 0.03, math.nan]) == [
        pytest.approx(0.03),
        None,
        0.06,
        0.06,
        None,
    ]
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
