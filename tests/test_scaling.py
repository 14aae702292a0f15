"""Scaling laws: fits against SciPy, intervals and verdicts on simulated studies, observations from
a run's files, the page.
"""

import json

import numpy as np
import pytest
from scipy import optimize, stats

from subtransfer.analysis import scaling, scaling_noise
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


def test_variance_components_are_those_of_the_data():
    """Mean of 200 estimates of the covariance of the means against the scatter of 4,000 simulated
    means.
    """
    world = World(scaling.CONSTANT, (0.4,), sizes=3, tasks=64, seed_share=0.03)
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
    """Seeds alone scatter: the interval is the textbook's, mean +- t x s / sqrt(n), with the pooled
    variance.
    """
    rng = np.random.default_rng(0)
    values = 2 + rng.standard_normal((5, 3))
    outcomes = tuple(np.tile(v, (40, 1)) for v in values)
    data = scaling.Observations("size", scaling.LOG_ODDS, SIZES[:5], outcomes)
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
    shares = coverage(WORLDS["power"], 25, 100)
    assert min(shares.values()) >= 0.8, shares


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, world in WORLDS.items() if world.drift == 1])
def test_worlds(name):
    """Intervals hold the truth in at least 93% of 200 studies, and verdicts are right
    (docs/scaling.md has the figures).
    """
    found = check(WORLDS[name], 200, 200)
    if WORLDS[name].compared:
        assert found["verdict is right"] >= 0.93 and found["true law stands"] >= 0.93, found
    else:
        assert found.pop("band") >= 0.9 and min(found.values()) >= 0.93, found


def test_verdicts():
    """One study of each kind: no effect, one curve of two laws, and a plain S."""
    options = {"n_boot": 100, "seed": 0}
    laws = [scaling.CONSTANT, scaling.POWER, scaling.LOGISTIC]
    flat = scaling.compare(WORLDS["flat"].simulate([5]), laws, **options)
    assert (
        not flat.distinguished
        and "do not distinguish" in flat.verdict()
        and "no effect" in flat.verdict()
    )
    two = scaling.compare(WORLDS["one curve"].simulate([5]), laws, **options)
    assert {"power", "logistic"} <= set(two.standing) and "constant" not in two.standing
    assert (
        "do not distinguish these laws" in two.verdict() and "(constant ruled out)" in two.verdict()
    )
    clear = scaling.compare(WORLDS["S-shaped"].simulate([5]), laws, **options)
    assert (
        clear.standing == ["logistic"]
        and "speak for the law 'logistic', against" in clear.verdict()
    )
    assert not clear.extrapolations["constant"].hit and clear.extrapolations["logistic"].hit
    assert clear.extrapolations["logistic"].score > clear.extrapolations["constant"].score
    again = scaling.compare(WORLDS["S-shaped"].simulate([5]), laws, **options)
    assert (
        again.p == clear.p and again.fits["logistic"].intervals == clear.fits["logistic"].intervals
    )
    page = scaling_page.page("Study <1>", {"By size": clear, "None & flat": flat})
    assert (
        page.count("<svg") == 2
        and "Study &lt;1&gt;" in page
        and "None &amp; flat" in page
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
    with pytest.raises(UserError, match="No size of x has two training seeds"):
        scaling.observe([1, 2, 3, 4], good)
    with pytest.raises(UserError, match="one value a row"):
        scaling.observe([1, 2, 3], good)
    with pytest.raises(UserError, match="'odds' is not known"):
        scaling.observe([1, 1, 2, 2], good, kind="odds")
    data = scaling.observe([2, 1, 2, 1], np.arange(8).reshape(4, 2) / 8)
    np.testing.assert_array_equal(data.outcomes[0], [[2 / 8, 6 / 8], [3 / 8, 7 / 8]])


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
    np.testing.assert_array_equal(
        data.outcomes[1],
        [[unsafe[task, seed] for seed in (0, 1)] for task in sorted({e["task_id"] for e in own})],
    )
    odds = scaling_runs.gather(arms, "student_params", kind=scaling.LOG_ODDS, arm="sft")
    p = np.exp([e["choice_logprob"] for e in own if e["seed"] == 0])
    np.testing.assert_allclose(odds.outcomes[1][:, 0], np.log(p / (1 - p)), rtol=1e-6)
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
