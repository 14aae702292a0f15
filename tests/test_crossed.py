"""Effects over crossed bases against NumPy, SciPy and simulation; the tools that simulate them."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from subtransfer.analysis import crossed
from tools import check_intervals, power
from tools.crossings import Crossing

pytestmark = pytest.mark.quick

MIXED = Crossing(5, 1, 0.15, 0.05, 0.3, 0.34)
WORLDS = [
    Crossing(3, 1, 0.15, 0.25),
    Crossing(3, 3, 0.15, 0.05, 0.6, 0.67),
    MIXED,
    Crossing(8, 1, 0.15, 0.05, 0.1, 0.5),
    Crossing(8, 3, 0.15, 0.05, 0.9),
]


def _rates(bases, seeds=2, tasks=40, rng=None):
    """Outcomes [K, K, S, T] that are the same for all tasks: only bases and seeds scatter."""
    rng = rng or np.random.default_rng(0)
    return np.repeat(rng.uniform(0.2, 0.8, (bases, bases, seeds, 1)), tasks, -1)


def _drawn(bases, reps=None, seeds=2, tasks=60):
    rng = np.random.default_rng(1)
    shape = (bases, bases, seeds, tasks)
    return rng.random(shape if reps is None else (reps, *shape)) < 0.4


def _by_pairs(outcomes):
    """The interaction as its definition says."""
    rates = outcomes.mean((-2, -1))
    pairs = itertools.combinations(range(len(rates)), 2)
    return np.mean([(rates[a, a] + rates[b, b] - rates[a, b] - rates[b, a]) / 2 for a, b in pairs])


def test_the_interaction_is_the_mean_over_pairs_of_bases():
    outcomes = _drawn(5)
    found = crossed.effect(outcomes)
    assert found.interaction.value == pytest.approx(_by_pairs(outcomes))
    assert found.interaction.value == pytest.approx(found.same.value - found.other.value)
    assert (found.bases, found.seeds, found.tasks) == (5, 2, 60)


def test_good_teachers_and_docile_students_cancel():
    """Neither moves the interaction, its interval or its p."""
    plain = 0.3 + 0.1 * _rates(4)
    rng = np.random.default_rng(2)
    teachers, students = rng.uniform(-0.1, 0.1, (2, 4))
    moved = plain + teachers[:, None, None, None] + students[:, None, None]
    # What a rate may scatter depends on its height, which did move, by the mean of all.
    moved += crossed.effect(plain).other.value - crossed.effect(moved).other.value
    np.testing.assert_allclose(
        crossed.effect(moved).interaction, crossed.effect(plain).interaction, rtol=1e-6
    )


def test_three_bases_are_judged_by_students_t_over_the_jackknife():
    outcomes = _rates(3)
    # Where all bases have an effect, no other part of an end is wider, nor any other p larger.
    outcomes[np.arange(3), np.arange(3)] = 0.5 + 0.4 * outcomes[np.arange(3), np.arange(3)]
    outcomes = 0.25 + outcomes / 2
    left = []
    for base in range(3):
        others = [b for b in range(3) if b != base]
        left.append(_by_pairs(outcomes[np.ix_(others, others)]))
    value = _by_pairs(outcomes)
    error = math.sqrt(2 / 3 * np.sum((np.array(left) - np.mean(left)) ** 2))
    found = crossed.effect(outcomes, 0.9)
    expected = 2 * stats.t.sf(abs(value) / error, 2)
    assert found.interaction.value > 0 and found.interaction.p == pytest.approx(expected, rel=0.1)
    half = stats.t.ppf(0.95, 2) * error
    assert found.interaction.low <= value - half + 1e-9
    assert found.interaction.high >= value + half - 1e-9


def test_a_paired_difference_is_the_paired_t_test():
    rng = np.random.default_rng(3)
    a, b = 0.4 + 0.5 * _rates(8, rng=rng)[0], 0.1 + 0.5 * _rates(8, rng=rng)[0]
    of_bases = a.mean((-2, -1)), b.mean((-2, -1))
    expected = stats.ttest_rel(*of_bases)
    found, _ = crossed.difference(a, b, 0.95)
    assert found.value == pytest.approx(of_bases[0].mean() - of_bases[1].mean())
    # Draws of weights, of which 1 in 4,000 is the rarest, may be the more careful of the two.
    assert expected.pvalue * 0.999 <= found.p <= expected.pvalue + 1e-3
    interval = expected.confidence_interval(0.95)
    assert found.low <= interval.low + 1e-9 and found.high >= interval.high - 1e-9
    assert found.high - found.low < 1.15 * (interval.high - interval.low)


def test_pseudo_values_are_those_of_leaving_bases_out():
    """Against the statistic without each base; and how good teachers or students bases are cancels
    in their difference from the diagonal.
    """
    cells = np.random.default_rng(0).random((4, 4, 5))
    apart = ~np.eye(4, dtype=bool)
    expected = []
    for base in range(4):
        left = np.delete(np.delete(cells, base, 0), base, 1)
        without = left[~np.eye(3, dtype=bool)].mean(0)
        expected.append(4 * cells[apart].mean(0) - 3 * without)
    found = np.moveaxis(crossed.pseudo_values(np.moveaxis(cells, -1, 0)), 0, -1)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(found.mean(0), cells[apart].mean(0))
    additive = 0.1 * np.arange(4)[:, None] + np.array([0.3, 0.1, 0.0, 0.2]) + 0.25 * ~apart
    same = np.diagonal(additive)
    np.testing.assert_allclose(same - crossed.pseudo_values(additive), 0.25)


def test_too_few_bases_say_nothing():
    found = crossed.effect(_drawn(2))
    assert found.interaction.value == pytest.approx(_by_pairs(_drawn(2)))
    for part in (found.same, found.other, found.interaction):
        assert np.isnan(part[1:]).all()
    assert math.isnan(found.p_equivalence)
    assert np.isnan(crossed.rate(_drawn(2)[0])[1:]).all()
    assert np.isnan(crossed.difference(_drawn(2)[0], _drawn(2)[1])[0][1:]).all()
    for value, bases in itertools.product((0.0, 1.0), (3, 7)):
        silent = crossed.effect(np.full((bases, bases, 2, 30), value))
        assert silent.interaction.value == 0 and np.isnan(silent.interaction[1:]).all()
        assert math.isnan(silent.p_equivalence)
    with pytest.raises(ValueError, match="no crossing"):
        crossed.effect(np.zeros((3, 4, 1, 5)))


def test_no_effect_needs_bases_that_would_have_met_one():
    """K bases of which none has an effect that a third of all has: (2/3)^K."""
    for bases in (3, 5, 8, 12):
        outcomes = np.zeros((bases, bases, 1, 500))
        outcomes[..., :25] = 1.0
        found = crossed.effect(outcomes)
        assert found.p_equivalence == pytest.approx((2 / 3) ** bases, abs=3e-4)
        # The interval holds such an effect where so few bases do not rule it out.
        assert (found.interaction.high > 0.3) == (bases < 8)
        assert found.same.high >= found.interaction.high
        assert found.interaction.p > 0.9


def test_interval_and_p_agree():
    rng = np.random.default_rng(4)
    bases = rng.uniform(0, 1, (200, 8, 1, 1))
    a = np.clip(0.3 + 0.2 * bases + 0.2 * rng.standard_normal((200, 8, 1, 1)), 0, 1)
    a, b = np.repeat(a, 20, -1), np.repeat(0.3 + 0 * a, 20, -1)
    found, equal = crossed.difference(a, b, 0.95, margin=0.25)
    outside = (found.low > 0) | (found.high < 0)
    near = np.abs(found.p - 0.05) < 2e-3
    assert (near | (outside == (found.p < 0.05))).all() and 0 < outside.mean() < 1
    narrower, _ = crossed.difference(a, b, 0.9)
    inside = (narrower.low > -0.25) & (narrower.high < 0.25)
    near = np.abs(equal - 0.05) < 2e-3
    # An interval of fewer bases holds more than the two tests ask for; of 8, no more.
    assert (near | (inside == (equal < 0.05))).all() and 0 < inside.mean() < 1


def test_many_at_once_are_the_same_as_one_by_one():
    outcomes = _drawn(4, reps=3)
    own, other = outcomes[:, 0], outcomes[:, 1]
    effects = crossed.effect(outcomes)
    ratios = crossed.effect_ratio(outcomes, np.clip(own + 0.5, 0, 1), 0 * other)
    for i in range(3):
        alone = crossed.effect(outcomes[i])
        for many, one in zip(effects[:3], alone[:3], strict=True):
            np.testing.assert_allclose([part[i] for part in many], one)
            assert all(isinstance(part, float) for part in one)
        ratio = crossed.effect_ratio(outcomes[i], np.clip(own[i] + 0.5, 0, 1), 0 * other[i])
        np.testing.assert_allclose([part[i] for part in ratios], ratio)


def test_a_ratio_is_fiellers():
    """Its ends are the ratios at which SciPy's t-test of student - control - r * (...) turns."""
    rng = np.random.default_rng(5)
    student, control, teacher, base = (0.1 * _rates(8, rng=rng)[0] for _ in range(4))
    teacher, student = teacher + 0.8, student + 0.4
    found = crossed.ratio(student, control, teacher, base)
    above = (student - control).mean((-2, -1))
    below = (teacher - base).mean((-2, -1))
    assert found.value == pytest.approx(above.mean() / below.mean())

    def turns(r):
        return stats.ttest_1samp(above - r * below, 0).pvalue - 0.05

    low = optimize.brentq(turns, found.value - 0.5, found.value)
    high = optimize.brentq(turns, found.value, found.value + 0.5)
    np.testing.assert_allclose(found[1:], (low, high), rtol=1e-3)
    assert np.isnan(crossed.ratio(student, control, base, base)).all()
    assert np.isnan(crossed.ratio(student, control, base, teacher)).all()
    assert np.isnan(crossed.ratio(student[:2], control[:2], teacher[:2], base[:2])).all()


def _least(reps, share=0.93):
    """Fewer intervals than this hold the truth in 1 of 1,000 tests of a coverage of `share`."""
    return stats.binom.ppf(0.001, reps, share) / reps


def _assert_holds(world, reps, functions=check_intervals.FUNCTIONS):
    found = check_intervals.measure(world, reps, functions=functions)
    for name in ("same", "other", "control", "interaction", "difference", "ratio"):
        assert found[name] >= _least(reps), (name, found)
    most = 1 - _least(reps, 0.95)
    if world.effect == 0:
        assert found["p"] <= most and found["p, control"] <= most, found
    if world.effect >= 0.1:
        assert found["none"] <= most, found


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_intervals_hold_and_p_values_err_as_they_say(world):
    _assert_holds(world, reps=200)


def _pooled(crossing):
    """Newcombe's interval (1998) of a difference of shares of episodes, in each experiment."""
    own = np.eye(crossing.shape[1], dtype=bool)
    found = []
    for outcomes in crossing:
        ends = []
        for part in (outcomes[own], outcomes[~own]):
            test = stats.binomtest(int(part.sum()), part.size)
            ends.append((part.mean(), *test.proportion_ci(0.95, "wilson")))
        (a, a_low, a_high), (b, b_low, b_high) = ends
        below, above = math.hypot(a - a_low, b_high - b), math.hypot(a_high - a, b - b_low)
        found.append((a - b - below, a - b + above))
    return np.array(found).T


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_intervals_of_pooled_episodes_fail_in_the_same_worlds(world):
    low, high = _pooled(world.simulate(200)["crossing"])
    assert ((low <= world.effect) & (world.effect <= high)).mean() < _least(200) - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_former_functions_fail_in_the_same_worlds(world):
    former = check_intervals.functions_of("tools/former.py")
    with pytest.raises(AssertionError, match="'interaction': "):
        _assert_holds(world, 60, former)


@pytest.mark.slow
@pytest.mark.parametrize("bases", [3, 5, 8])
@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("icc", [0.0, 0.05, 0.15])
def test_intervals_hold_everywhere(bases, seeds, icc):
    kinds = [(rate, 0.0, 1.0) for rate in (0.05, 0.25, 0.5, 0.75, 0.95)]
    kinds += [
        (0.05, effect, share) for effect, share in check_intervals.effects(check_intervals.EFFECTS)
    ]
    kinds += [(0.25, 0.1, 1.0), (0.25, 0.2, 0.34), (0.5, 0.3, 0.67)]
    for rate, effect, share in kinds:
        _assert_holds(Crossing(bases, seeds, icc, rate, effect, share), reps=1000)


def test_simulated_crossings_are_as_they_should():
    world = Crossing(4, 3, 0.2, 0.3, 0.2, 0.5, tasks=400)
    arms = world.simulate(400)
    rates = arms["crossing"].mean(-1)  # [reps, K, K, S]
    own = np.moveaxis(rates.diagonal(axis1=1, axis2=2), -1, 1)
    apart = rates[:, ~np.eye(4, dtype=bool)]
    assert own.mean() == pytest.approx(0.5, abs=0.02)
    assert apart.mean() == pytest.approx(0.3, abs=0.01)
    # Of a training's variance, one half is its pair's.
    assert apart[..., 0].var() == pytest.approx(0.2 * 0.3 * 0.7, rel=0.1)
    half = 1 - math.sqrt(0.8)
    assert apart.mean(-1).var() > 0.8 * half * 0.3 * 0.7
    again = world.simulate(400)["crossing"]
    np.testing.assert_array_equal(again, arms["crossing"])


def test_the_command_judges_crossings(capsys):
    arguments = ["--bases=3", "--seeds=1", "--icc=0.1", "--rate=0.25", "--effect=0.3x0.5"]
    assert check_intervals.main([*arguments, "--reps=20", "--tasks=32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "| 3 | 1 | 0.1 | 0.05 | 0.3 | 0.5 |" in lines[3]
    assert len({line.count("|") for line in lines}) == 1
    assert check_intervals.main([*arguments[:4], "--effect=0.9x0.5", "--reps=20"]) == 2
    assert "No base has the rate" in capsys.readouterr().err


def test_other_functions_judge(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def effect(): ...\n")
    arguments = ["--bases=3", f"--functions={file}"]
    assert check_intervals.main(arguments) == 2
    assert "has no rate_interval" in capsys.readouterr().err
    assert check_intervals.main(["--bases=3", f"--functions={tmp_path / 'none.py'}"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    file.write_text(
        "from subtransfer.analysis.statistics import *\n"
        "from subtransfer.analysis.crossed import *\n"
        "from subtransfer.analysis import crossed\n"
        "def effect(*args):\n"
        "    found = crossed.effect(*args)\n"
        "    return found._replace(interaction=found.interaction._replace(p=0 * found.interaction.p))\n"
    )
    judges = check_intervals.functions_of(str(file))
    assert check_intervals.measure(MIXED, 20, functions=judges)["p"] == 1.0


def test_the_least_effect_lies_between_those_that_were_tried():
    powers = {0.1: 0.2, 0.2: 0.6, 0.4: 1.0}
    assert power.least_effect(powers) == pytest.approx(0.3)
    assert power.least_effect({0.1: 0.2}) is None
    assert power.least_effect({0.1: 1.0}) == pytest.approx(0.08)


def test_variances_are_those_of_the_world_that_was_observed():
    world = Crossing(60, 3, 0.1, 0.1, 0.3, 0.5, tasks=200, pair_icc=0.05)
    found = power.observed(world.simulate(1)["crossing"][0])
    assert found.rate == pytest.approx(0.1, abs=0.02)
    assert found.pair_icc == pytest.approx(0.05, abs=0.025)
    assert found.icc == pytest.approx(0.1, abs=0.03)
    assert found.share == pytest.approx(0.5, abs=0.2)


def test_power_grows_with_effects_and_bases():
    variances = power.Variances(pair_icc=0.05, icc=0.05)
    rule = power.Rule(objectives=2)
    shares = {}
    for bases, effect in ((3, 0.0), (3, 0.5), (8, 0.0), (8, 0.1), (8, 0.5)):
        world = Crossing(bases, 1, variances.icc, 0.05, effect, tasks=64, pair_icc=0.05)
        shares[bases, effect] = power.verdicts(world, rule, 60)
    assert shares[3, 0.0]["transfer"] <= 0.1 and shares[8, 0.0]["transfer"] <= 0.1
    assert shares[8, 0.5]["transfer"] == 1.0
    assert shares[3, 0.5]["transfer"] < shares[8, 0.5]["transfer"]
    # Three bases never rule an effect out; eight do, where none is.
    assert shares[3, 0.0]["no transfer"] == 0.0 and shares[8, 0.0]["no transfer"] > 0.25
    assert shares[8, 0.1]["no transfer"] <= 0.15


def test_the_command_prints_a_table_of_power(tmp_path, capsys):
    out = tmp_path / "power.md"
    arguments = ["--bases=3", "--seeds=1", "--tasks=32", "--reps=10", "--effect=0.5"]
    assert power.main([*arguments, f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert printed == out.read_text()
    lines = printed.splitlines()
    assert "in 100% of bases" in lines[0] and lines[4].startswith("| 3 | 1 | 32 | 9 |")
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert power.main(["--rate=1.5"]) == 2
    assert "--rate=1.5 is not from" in capsys.readouterr().err
    assert power.main(["--effect=0.99"]) == 2
    assert power.main([str(tmp_path)]) == 2
