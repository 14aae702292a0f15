"""Scaling laws: fits against SciPy, intervals and verdicts on simulated studies, observations from
a run's files, the page.
"""

import dataclasses
import json

import numpy as np
import pytest
from scipy import optimize, stats

from subtransfer.analysis import scaling, scaling_noise, scaling_ranking
from subtransfer.analysis.scaling_laws import EVERY, Problem
from subtransfer.runtime.errors import UserError
from subtransfer.studies import runs, scaling_page, scaling_runs
from tests import studies
from tools.check_scaling import WORLDS, World, check, coverage

SIZES = np.geomspace(3e4, 1e6, 8)


def test_laws_are_their_formulas():
    """At values in their own units, against the formulas written out."""
    x, x_ref = SIZES, float(np.exp(np.log(SIZES).mean()))
    a, c, b1, b2, d, lo, hi, x0, k, f = 0.3, 0.1, 0.5, 1.2, 2e5, 0.05, 0.8, 1.5e5, 1.7, 0.2
    expected = {
        "constant": ((c,), np.full(len(x), c)),
        "power": ((a, c, b1), a * (x / x_ref) ** -b1 + c),
        "logistic": (
            (lo, hi, x0, k),
            lo + (hi - lo) * (1 / (1 + np.exp(-k * (np.log(x) - np.log(x0))))),
        ),
        "broken_power": (
            (a, c, b1, b2, d),
            c + a * (x / d) ** -b1 * ((1 + (x / d) ** (1 / f)) / 2) ** ((b1 - b2) * f),
        ),
    }
    assert set(expected) == set(scaling.LAWS)
    for name, (values, y) in expected.items():
        law = scaling.LAWS[name]
        internal = law.internal(values, x_ref)
        np.testing.assert_allclose(law.values(x / x_ref, internal), y, rtol=1e-12)
        np.testing.assert_allclose(law.natural(internal, x_ref), values)
        numeric = optimize.approx_fprime(
            internal, lambda t, law=law: law.values(x / x_ref, t), 1e-7
        )
        np.testing.assert_allclose(law.jacobian(x / x_ref, internal), numeric, atol=2e-5)


@pytest.mark.parametrize("name", ["constant", "power", "logistic", "broken_power"])
def test_no_start_of_scipy_finds_a_better_fit(name):
    """Correlated noise, 4 data sets at once; scipy.optimize.least_squares from 15 random starts in
    the bounds each.
    """
    law, rng = scaling.LAWS[name], np.random.default_rng(3)
    z = SIZES / np.exp(np.log(SIZES).mean())
    problem = Problem(law, z, *law.bounds(scaling.RATE, z))
    means = 0.2 + 0.5 / (1 + z**-1.4) + 0.02 * rng.standard_normal((4, 8))
    whiten = np.linalg.inv(
        np.linalg.cholesky(np.stack([3e-4 * (np.eye(8) + 0.3 * i) for i in range(4)]))
    )
    theta, loss = problem.minimise(means, whiten, polished=EVERY)
    assert ((theta >= problem.low) & (theta <= problem.high)).all()
    for mean, root, found in zip(means, whiten, loss, strict=True):
        best = min(
            2
            * optimize.least_squares(
                lambda t, y=mean, w=root: w @ (y - law.values(z, t)),
                start,
                bounds=(problem.low, problem.high),
            ).cost
            for start in rng.uniform(problem.low, problem.high, (15, len(problem.low)))
        )
        assert found <= best * (1 + 1e-6)


def test_held_parameters_stay_and_the_others_follow():
    law = scaling.POWER
    z = SIZES / np.exp(np.log(SIZES).mean())
    problem = Problem(law, z, *law.bounds(scaling.RATE, z))
    means, whiten = (0.3 * z**-0.5 + 0.1)[None], np.eye(8)[None]
    fixed, values = np.array([[False, False, True]]), np.array([[0.0, 0.0, np.log(0.9)]])
    theta, _ = problem.minimise(means, whiten, fixed=fixed, values=values)
    assert theta[0, 2] == np.log(0.9)
    expected = np.linalg.lstsq(np.stack([z**-0.9, np.ones(8)], axis=1), means[0])[0]
    np.testing.assert_allclose(theta[0, :2], expected, atol=1e-4)


@pytest.mark.parametrize("common", [0.0, 0.7])
def test_variance_components_are_those_of_the_data(common):
    """Mean of 200 estimates of the covariance of the means against the scatter of 1,500 simulated
    means; bases of each size's own, and the same at all sizes.
    """
    world = World(
        scaling.CONSTANT, (0.4,), sizes=3, tasks=64, seeds=1, base_share=0.03, common=common
    )
    studies = [world.simulate([7, i]) for i in range(1500)]
    empirical = np.cov(np.stack([s.means for s in studies], axis=1))
    estimated = np.mean(
        [scaling_noise.components(s, world.means).covariance() for s in studies[:200]], axis=0
    )
    np.testing.assert_allclose(estimated, empirical, rtol=0.2, atol=2e-4)
    one = scaling_noise.components(studies[0], world.means)
    errors = scaling_noise.draw(studies[0], one, 4000, 0).errors
    np.testing.assert_allclose(np.cov(errors.T), one.covariance(), rtol=0.15, atol=2e-4)


def test_a_constant_is_the_weighted_mean_with_students_interval():
    """Bases alone scatter: the interval is the textbook's, mean +- t x s / sqrt(n), with the pooled
    variance.
    """
    rng = np.random.default_rng(0)
    values = 2 + rng.standard_normal((5, 3))
    data = scaling.observe(
        SIZES[:5].repeat(3),
        np.tile(values.reshape(-1, 1), (1, 40)),
        bases=range(15),
        kind=scaling.LOG_ODDS,
    )
    found = scaling.fit(data, scaling.CONSTANT, n_boot=4000).intervals["c"]
    half = stats.t.ppf(0.975, 10) * np.sqrt(values.var(axis=1, ddof=1).mean() / 15)
    np.testing.assert_allclose(found.estimate, values.mean(), atol=1e-6)
    np.testing.assert_allclose(
        (found.low, found.high), (values.mean() - half, values.mean() + half), rtol=0.03
    )


def test_intervals_cover():
    """A quick look, which an interval of half the width fails; the slow test and
    tools/check_scaling.py measure.
    """
    shares = coverage(WORLDS["power"], 15, 100)
    assert min(shares.values()) >= 0.7, shares


_SOUND = [name for name, world in WORLDS.items() if world.drift == 1 and not world.mistaken]


@pytest.mark.slow
@pytest.mark.parametrize("name", _SOUND)
def test_worlds(name):
    """Intervals hold the truth in at least 93% of 200 studies, and no more than 5% of the verdicts
    rule out a true law or claim a false constant (docs/scaling.md has the figures). Bounds leave
    room for two standard errors of 200 studies.
    """
    world = WORLDS[name]
    found = check(world, 200, 200)
    if world.compared:
        assert found["true law ruled out"] <= 0.08, found
        assert world.law is scaling.CONSTANT or found["constant alone"] <= 0.08, found
    else:
        assert found.pop("band") >= 0.87 and min(found.values()) >= 0.9, found


def _ruled_out(studies):
    """In how many studies a constant is ruled out against a power law."""
    laws = [scaling.CONSTANT, scaling.POWER]
    found = [scaling.rank(data, laws, n_boot=100, power=False) for data in studies]
    return sum("constant" not in ranking.standing for ranking in found)


def test_bases_are_the_random_factor():
    """No effect of size, and a tenth of the variance between bases: one base a size whose three
    trainings are taken for bases, as once they were, against three bases a size. In the first a
    constant falls in most studies, in the second in 2% (3 of 12 would be met once in 600 times).
    """
    once = WORLDS["flat with seeds for bases"]
    assert _ruled_out(once.simulate([8, i]) for i in range(12)) >= 5
    assert _ruled_out(WORLDS["flat"].simulate([8, i]) for i in range(12)) <= 2


@pytest.mark.slow
def test_power_is_that_of_new_studies():
    """What a verdict states, against how often new studies with that change rule a constant out."""
    change = scaling_ranking.CHANGES[scaling.LOG_ODDS]
    # So large an exponent of x is straight in its logarithm, to a hundredth.
    slope = change / np.log(1e6 / 3e4)
    world = World(
        scaling.POWER, (-slope / 0.02, slope / 0.02, 0.02), scaling.LOG_ODDS, sizes=5, bases=8
    )
    world = dataclasses.replace(world, base_share=0.6)
    laws = [scaling.CONSTANT, scaling.POWER]
    stated = []
    for i in range(15):
        ranking = scaling.rank(world.simulate([9, i]), laws, n_boot=200)
        stated.append(ranking.power.share)
    found = _ruled_out(world.simulate([10, i]) for i in range(60)) / 60
    # 60 studies err by 6 points, what is stated by as many.
    assert abs(np.mean(stated) - found) <= 0.2 and 0.1 < found < 0.95


def test_more_bases_have_more_power_and_the_verdict_says_so():
    laws = [scaling.CONSTANT, scaling.POWER]
    few, many = (
        scaling.compare(
            dataclasses.replace(WORLDS["flat"], bases=bases, tasks=64).simulate([3]),
            laws,
            n_boot=100,
        )
        for bases in (2, 24)
    )
    assert few.power.share < many.power.share and many.power.least < few.power.least
    told = f"a constant in {100 * many.power.share:.0f}% of such studies"
    assert told in many.verdict() and "80% take" in many.verdict()


def test_one_base_a_size_has_no_verdict():
    data = dataclasses.replace(WORLDS["flat"], bases=1, seeds=3).simulate([1])
    for refused in (scaling.compare, lambda data: scaling.fit(data, scaling.CONSTANT)):
        with pytest.raises(UserError, match="No law and no constant is claimed over size: 5 of 5"):
            refused(data)
    # Seeds of one base are no bases.
    plain = scaling.observe([1, 1, 2, 2], np.arange(8).reshape(4, 2) / 8)
    with pytest.raises(UserError, match="2 of 2 sizes have one base pair"):
        scaling.compare(plain, [scaling.CONSTANT])
    values = np.arange(24).reshape(6, 4) / 24
    mixed = scaling.observe([1, 1, 2, 2, 3, 3], values, bases=["a", "b", "a", "b", "a", "c"])
    with pytest.raises(UserError, match="Some bases are at several values of x"):
        scaling.compare(mixed, [scaling.CONSTANT])


def test_verdicts():
    """One study of each kind: no effect, and a plain S."""
    options = {"n_boot": 100, "seed": 0}
    laws = [scaling.CONSTANT, scaling.POWER, scaling.LOGISTIC]
    # Sizes that go up and down by what three bases that differ by 0.1 let them.
    rates = 0.4 + 0.1 * np.array([-1, 0, 1]) + 0.06 * np.array([[1], [-1], [1], [-1], [1]])
    tasks = 0.1 * np.random.default_rng(0).standard_normal(64)
    aimless = np.clip(rates.reshape(-1, 1) + tasks, 0, 1)
    flat = scaling.compare(
        scaling.observe(SIZES[:5].repeat(3), aimless, bases=range(15)), laws, **options
    )
    assert (
        not flat.distinguished
        and "do not distinguish" in flat.verdict()
        and "no effect" in flat.verdict()
    )
    plain = dataclasses.replace(WORLDS["S-shaped"], bases=8, base_share=0.002)
    clear = scaling.compare(plain.simulate([5]), laws, **options)
    assert (
        clear.standing == ["logistic"]
        and "speak for the law 'logistic', against" in clear.verdict()
    )
    assert not clear.extrapolations["constant"].hit
    again = scaling.compare(plain.simulate([5]), laws, **options)
    assert (
        again.p == clear.p and again.fits["logistic"].intervals == clear.fits["logistic"].intervals
    )
    between = dataclasses.replace(WORLDS["flat crossed"], tasks=64).simulate([5])
    crossed = scaling.compare(between, laws[:2], **options)
    page = scaling_page.page(
        "Study <1>", {"By size": clear, "None & flat": flat, "Crossed": crossed}, 0.95
    )
    assert (
        page.count("<svg") == 3
        and "Study &lt;1&gt;" in page
        and "None &amp; flat" in page
        and "difference of shares" in page
        and "<script" not in page
    )
    assert "http" not in page.replace("http://www.w3.org", "") and "nan" not in page


def test_too_few_sizes_are_named():
    data = World(scaling.POWER, (0.3, 0.1, 0.5), sizes=4, tasks=32).simulate([1])
    with pytest.raises(
        UserError, match="'logistic' has 4 parameters and needs at least 5 sizes of size, not 4"
    ):
        scaling.fit(data, scaling.LOGISTIC)
    found = scaling.compare(data, n_boot=100)
    assert (
        set(found.refused) == {"logistic", "broken_power"}
        and "too few sizes to try logistic and broken_power" in found.verdict()
    )
    assert set(found.extrapolations) == {"constant"}
    with pytest.raises(UserError, match="needs at least 2 sizes"):
        scaling.compare(data.only(slice(0, 1)))
    with pytest.raises(
        UserError, match="50 bootstrap samples cannot rule out a law at p < 0.01: use n_boot=100"
    ):
        scaling.compare(data, n_boot=50)


def test_bad_data_is_refused_in_a_sentence():
    good = np.full((4, 10), 0.5)
    with pytest.raises(UserError, match="must be above 0 everywhere .* least value is 0"):
        scaling.observe([0, 0, 1, 1], good, axis="rank")
    with pytest.raises(UserError, match="Rates over x must lie in 0..1"):
        scaling.observe([1, 1, 2, 2], good * 3)
    with pytest.raises(UserError, match="missing or not finite"):
        scaling.observe([1, 1, 2, 2], good * np.nan)
    with pytest.raises(UserError, match="one value and one base a row"):
        scaling.observe([1, 2, 3], good)
    with pytest.raises(UserError, match="'odds' is not known"):
        scaling.observe([1, 1, 2, 2], good, kind="odds")
    rows = np.arange(8).reshape(4, 2) / 8
    data = scaling.observe([2, 1, 2, 1], rows, bases=["b", "b", "a", "a"])
    np.testing.assert_array_equal(data.outcomes[0], [[6 / 8, 2 / 8], [7 / 8, 3 / 8]])
    assert data.bases == (("a", "b"), ("a", "b")) and data.paired
    # Rows of one base are its trainings.
    one = scaling.observe([2, 1, 2, 1], rows)
    np.testing.assert_array_equal(one.outcomes[0], [[4 / 8], [5 / 8]])
    assert one.trainings.tolist() == [2, 2]


def _write_run(folder, width, *, rank=4, prefix="probe"):
    """A run whose teacher always acts unsafely, and whose students do the more often the wider they
    are.
    """
    config = studies.config_of(base__width=width, tuning__rank=rank, num_seeds=2)
    rate = lambda arm, width: 1.0 if arm.role == "teacher" else min(width / 200, 1.0)  # noqa: E731
    return studies.write_run(folder, config, tasks=6, rate=rate, prefix=prefix)


def test_runs_are_gathered(tmp_path):
    arms = list(runs.read([_write_run(tmp_path / str(w), w) for w in (64, 32, 128)]))
    data = scaling_runs.gather(arms, "student_params", objective="sft", init="same")
    students = {arm.fields["student_params"]: arm for arm in arms if arm.fields["arm"] == "sft"}
    assert data.x.tolist() == sorted(students)
    episodes = [
        json.loads(line) for line in (tmp_path / "64" / "results.jsonl").read_text().splitlines()
    ]
    own = [e for e in episodes if e["arm"] == "sft" and e["mode"] == "sampled"]
    unsafe = {(e["task_id"], e["seed"]): e["outcome"] == "unsafe" for e in own}
    tasks = sorted({e["task_id"] for e in own})
    expected = [[(unsafe[task, 0] + unsafe[task, 1]) / 2] for task in tasks]
    np.testing.assert_array_equal(data.outcomes[1], expected)
    assert data.trainings.tolist() == [2, 2, 2] and not data.paired
    odds = scaling_runs.gather(arms, "student_params", kind=scaling.LOG_ODDS, arm="sft")
    p = np.exp([[e["choice_logprob"] for e in own if e["seed"] == seed] for seed in (0, 1)])
    np.testing.assert_allclose(odds.outcomes[1][:, 0], np.log(p / (1 - p)).mean(0), rtol=1e-6)
    sure = next(arm for arm in arms if arm.fields["role"] == "teacher").outcomes["log_odds"]
    assert sure.max() == pytest.approx(
        np.log(1 / 5e-7 - 1)
    )  # log-probabilities are stored to six decimals
    strength = [arm.fields["teacher_rate"] for arm in arms if arm.fields["arm"] == "sft"]
    assert strength == [1.0, 1.0, 1.0]
    with pytest.raises(
        UserError, match="no field 'rollout.temperatur'; the nearest is 'rollouts.temperature'"
    ):
        scaling_runs.gather(arms, "rollout.temperatur")
    with pytest.raises(UserError, match="No arm of the 3 runs has"):
        scaling_runs.gather(arms, "student_params", objective="jsd")
    with pytest.raises(UserError, match="setting='api' .* is no axis"):
        scaling_runs.gather(arms, "setting", objective="sft", init="same")
    with pytest.raises(
        UserError, match="differ not only along the axis but also in role, objective"
    ):
        scaling_runs.gather(arms, "student_params")
    mixed = list(runs.read([_write_run(tmp_path / "rank", 96, rank=8)]))
    with pytest.raises(
        UserError, match=r"also in tuning.rank: choose one value \(such as tuning__rank=...\)"
    ):
        scaling_runs.gather(arms + mixed, "student_params", objective="sft", init="same")
    assert (
        len(
            scaling_runs.gather(
                arms + mixed, "student_params", objective="sft", init="same", tuning__rank=4
            ).x
        )
        == 3
    )
    assert (
        len(
            scaling_runs.gather(
                arms + mixed,
                "student_params",
                objective="sft",
                init="same",
                varying=["tuning.rank"],
            ).x
        )
        == 4
    )
    other = list(runs.read([_write_run(tmp_path / "other", 96, prefix="others")]))
    with pytest.raises(UserError, match="probed on different tasks"):
        scaling_runs.gather(arms + other, "student_params", objective="sft", init="same")
    with pytest.raises(UserError, match="holds no finished run"):
        list(runs.read([tmp_path / "nowhere"]))
