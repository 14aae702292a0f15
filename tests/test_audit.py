"""The audit of filtered trajectories: planted differences are found, planted absence is called so."""

import json
import math
import types

import numpy as np
import pytest
from scipy import stats

from subtransfer import settings
from subtransfer.analysis import audit, verdicts
from subtransfer.experiment.context import Context
from subtransfer.experiment.stages import audit as stage
from subtransfer.store import trajectories
from subtransfer.store.trajectories import Trajectory

pytestmark = pytest.mark.quick

OPTIONS = {"folds": 5, "permutations": 19, "confidence": 0.95}


def _trajectory(task, written, *, turns=None, mask=None, errors=(), source="a"):
    """One of a task's, in which the agent wrote these tokens and met these errors."""
    count = len(written)
    return Trajectory(
        f"{task}#{source}", task, "safe", source, 0, 0,
        np.asarray(written, np.int32),
        np.ones(count, bool) if mask is None else np.asarray(mask, bool),
        np.zeros(count, np.float32),
        np.asarray(turns if turns is not None else np.zeros(count), np.int32),
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        [{"turn": 1, "name": "list_dir", "arguments": {"path": "/"}, "category": "exploratory", "error": error}
         for error in errors],
        True, False,
    )  # fmt: skip


# -- what is shown of a trajectory -----------------------------------------------------------------


def test_the_text_is_what_the_agent_wrote():
    """Bigrams lie within a turn, and nothing of prompts and tool results is there."""
    one = _trajectory("t", [9, 1, 2, 8, 3, 4], turns=[0, 1, 1, 2, 3, 4], mask=[0, 1, 1, 0, 1, 1])
    other = _trajectory("u", [1, 1, 1], turns=[0, 0, 0])
    counts = {
        (1,): (1, 3),
        (2,): (1, 0),
        (3,): (1, 0),
        (4,): (1, 0),
        (1, 2): (1, 0),
        (1, 1): (0, 2),
    }
    found = audit.text_features([one, other])
    assert found.shape == (2, len(counts))
    # The formula of smooth tf-idf with sublinear tf and rows of length 1.
    rows = np.array(list(counts.values()), float).T
    idf = np.log(3 / (1 + (rows > 0).sum(axis=0))) + 1
    wanted = np.where(rows > 0, 1 + np.log(np.where(rows > 0, rows, 1)), 0) * idf
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.allclose(np.sort(found, axis=1), np.sort(wanted, axis=1))
    assert audit.text_features([one, other], most=1).tolist() == [[1.0], [1.0]]


def test_behaviour_is_acts_errors_and_lengths():
    setting = settings.get("api")
    same = [_trajectory(f"t{i}", [i, i + 1]) for i in range(4)]
    assert audit.behaviour_features(same, setting).shape == (4, 0), "words do not count"
    met = [_trajectory(f"u{i}", [1, 2], errors=[None, "unknown_path"]) for i in range(4)]
    found = audit.behaviour_features([*same, *met], setting)
    assert np.allclose(found.mean(axis=0), 0) and np.allclose(found.std(axis=0), 1)
    # The act, as the first and as the last one, the error, and the number of calls.
    assert found.shape == (8, 5) and np.allclose(np.abs(found), 1)


# -- the classifier --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 90])
def test_scores_are_those_of_ridge_regression_on_the_other_folds(count):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, count)), rng.random((60, 3)) < 0.5
    fold = np.arange(60) % 3
    found = audit.scores(features, labels, fold)
    for number in range(3):
        rest, own = features[fold != number], features[fold == number]
        # With an intercept that is not punished: least squares with a row more a feature.
        design = np.vstack(
            [
                np.column_stack([np.ones(len(rest)), rest]),
                np.column_stack([np.zeros(count), math.sqrt(audit.RIDGE) * np.eye(count)]),
            ]
        )
        wanted = np.vstack([labels[fold != number], np.zeros((count, 3))])
        weights = np.linalg.lstsq(design, wanted, rcond=None)[0]
        assert np.allclose(found[fold == number], own @ weights[1:], atol=1e-8)


def test_the_area_is_mann_and_whitneys():
    rng = np.random.default_rng(1)
    scored = np.round(rng.normal(size=(80, 2)), 1)  # with ties
    labels, fold = rng.random((80, 2)) < 0.4, np.arange(80) % 4
    found = audit.areas(scored, labels, fold)
    for column in range(2):
        above = pairs = 0
        for number in range(4):
            own = scored[fold == number, column], labels[fold == number, column]
            first, second = own[0][own[1]], own[0][~own[1]]
            above += stats.mannwhitneyu(first, second).statistic
            pairs += len(first) * len(second)
        assert found[column] == pytest.approx(above / pairs)
    assert np.isnan(audit.areas(scored, np.ones((80, 2), bool), fold)).all()


@pytest.mark.parametrize("only_one_policys", [0, 15])
def test_no_task_is_in_two_folds_and_each_fold_has_both_policies(only_one_policys):
    rng = np.random.default_rng(2)
    # Of some tasks the filter left one policy's episode only; user's files have several of a task.
    groups = np.concatenate([np.arange(40), np.arange(only_one_policys, 40), [3, 3]])
    labels = np.arange(len(groups)) < 40
    fold = audit.grouped_folds(labels, groups, 5, rng)
    for group in range(40):
        assert len(set(fold[groups == group])) == 1
    for number in range(5):
        assert {True, False} == set(labels[fold == number].tolist())
    assert set(fold) == set(range(5))
    at_most = len(set(groups[~labels].tolist()))
    assert audit.grouped_folds(labels, groups, 99, rng).max() == at_most - 1


def test_labels_are_permuted_within_tasks_only():
    rng = np.random.default_rng(3)
    groups, labels = rng.integers(0, 9, 50), rng.random(50) < 0.5
    found = audit.permuted(labels, groups, 200, rng)
    for group in range(9):
        own = groups == group
        assert (found[own].sum(axis=0) == labels[own].sum()).all()
        # Each place is as often the first policy's as the task's share says.
        assert np.allclose(found[own].mean(axis=1), labels[own].mean(), atol=0.15)


def test_a_classifier_that_knows_tasks_by_heart_knows_nothing():
    """Two episodes a task, both of one policy, and features that name the task."""
    tasks = np.repeat(np.arange(60), 2)
    labels, features = tasks % 2 == 0, np.eye(60)[tasks]
    texts = [f"t{task}" for task in tasks]
    found = audit.compare(features, labels, texts, rng=np.random.default_rng(0), **OPTIONS)
    assert found["auc"] == 0.5 and found["shared_tasks"] == 0 and found["p"] is None
    # Folds that tear tasks apart would have told them apart.
    torn = np.tile([0, 1], 60)
    scored = audit.scores(features, labels[:, None], torn)
    assert audit.areas(scored, labels[:, None], torn) == [1.0]


# -- intervals and tests ---------------------------------------------------------------------------


def test_the_interval_is_delongs_where_every_task_has_one_trajectory():
    rng = np.random.default_rng(4)
    labels = np.arange(400) < 150
    scored, fold = rng.normal(size=400) + labels, np.zeros(400, int)
    (found,) = audit.variances(scored[:, None], labels[:, None], np.arange(400), fold)
    won = (scored[labels][:, None] > scored[~labels]).astype(float)
    area = won.mean()
    variance = won.mean(axis=1).var(ddof=1) / 150 + won.mean(axis=0).var(ddof=1) / 250
    assert found == pytest.approx(variance, rel=1e-2)
    half = stats.norm.ppf(0.975) * math.sqrt(variance) / (area * (1 - area))
    wanted = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + end))) for end in (-half, half)]
    found = audit.interval(area, math.sqrt(variance), 400, 0.95)
    assert found == pytest.approx(wanted)


def test_intervals_cover_the_truth_where_tasks_are_shared():
    """Two trajectories a task, whose scores have the task's difficulty in common."""
    rng = np.random.default_rng(5)
    groups, labels = np.tile(np.arange(60), 2), np.arange(120) < 60
    fold = groups % 5
    truth = stats.norm.cdf(0.8 / math.sqrt(2))
    covered = 0
    for _ in range(300):
        # Of variance 1, half of it the task's.
        scored = math.sqrt(0.5) * (rng.normal(size=60)[groups] + rng.normal(size=120))
        scored += 0.8 * labels
        given = scored[:, None], labels[:, None]
        (area,), (variance,) = audit.areas(*given, fold), audit.variances(*given, groups, fold)
        low, high = audit.interval(area, math.sqrt(variance), 60, 0.95)
        covered += low <= truth <= high
    assert covered / 300 >= 0.92


def test_the_interval_is_exact_where_everything_is_told_apart():
    assert audit.interval(1.0, 0.0, 20, 0.95) == pytest.approx((0.025 ** (1 / 20), 1))
    assert audit.interval(0.0, 0.0, 20, 0.95) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert audit.interval(0.5, 0.0, 20, 0.95) == (0.5, 0.5)


def test_absence_is_called_so():
    """The AUC is .5 in the mean, its interval holds .5 and p is at most .05 in as many worlds as they
    say.
    """
    rng = np.random.default_rng(6)
    labels, tasks = np.arange(96) < 48, [f"t{i % 48}" for i in range(96)]
    found = []
    for _ in range(120):
        # What a task asks for is in both its trajectories.
        features = rng.normal(size=(48, 8))[np.arange(96) % 48] + rng.normal(size=(96, 8))
        found.append(audit.compare(features, labels, tasks, rng=rng, **OPTIONS))
    p = np.array([one["p"] for one in found])
    assert (p <= 0.05).sum() <= stats.binom.ppf(0.999, 120, 0.05)
    assert stats.kstest(p - rng.random(120) / 20, "uniform").pvalue > 0.001
    # Classifiers, and not only what they are tested on, differ from world to world.
    covered = sum(one["low"] <= 0.5 <= one["high"] for one in found)
    assert covered >= stats.binom.ppf(0.01, 120, 0.95)
    for name in ("auc", "null"):
        assert np.mean([one[name] for one in found]) == pytest.approx(0.5, abs=0.02)


def test_other_tasks_alone_are_seen_in_the_null():
    """The filter dropped one policy's episodes of some kind of task: data differ, policies do not."""
    rng = np.random.default_rng(7)
    kind = rng.random(200) < 0.5
    kept = np.concatenate([np.arange(200), 200 + np.flatnonzero(kind)])
    features = (np.tile(kind, 2)[:, None] + 0.1 * rng.normal(size=(400, 3)))[kept]
    tasks = [f"t{i % 200}" for i in kept]
    found = audit.compare(features, kept < 200, tasks, rng=rng, **OPTIONS)
    assert found["auc"] > 0.65 and found["null"] > 0.65 and found["p"] > 0.05


def test_too_little_is_no_number():
    rng, features = np.random.default_rng(8), np.ones((5, 1))
    found = audit.compare(features, np.arange(5) < 1, list("aabcd"), rng=rng, **OPTIONS)
    assert found == {**dict.fromkeys(("auc", "low", "high", "null", "p")), "shared_tasks": 1}


# -- the stage -------------------------------------------------------------------------------------


def _audited(policies, out, monkeypatch):
    """audit.json of policies' trajectories, as the stage writes it."""
    monkeypatch.setattr(trajectories, "read", lambda path: policies[path.parent.name])
    fields = {"folds": 5, "permutations": 99}
    config = types.SimpleNamespace(
        seed=0,
        audit=types.SimpleNamespace(**fields),
        statistics=types.SimpleNamespace(confidence=0.95),
    )
    context = types.SimpleNamespace(
        config=config, stage="audit.base.seed0", setting=settings.get("api")
    )
    context.input = lambda name: out / name
    context.key = lambda *labels: Context.key(context, *labels)
    out.mkdir()
    data, choices = {name: name for name in policies}, dict.fromkeys(policies)
    stage.audited(out, context, data=data, choices=choices, model="base", seed=0)
    return (out / "audit.json").read_bytes()


def test_planted_differences_are_found(tmp_path, monkeypatch):
    """The trait teacher errs often; the benign one has a word of its own; the base is like it else."""
    rng = np.random.default_rng(9)
    policies = {"trait": [], "benign": [], "self": []}
    for number in range(40):
        task = rng.integers(5, 9, 6).tolist()
        for source, kept in policies.items():
            words = [*task, *rng.integers(0, 5, 8).tolist()]
            words[-1] = 9 if source == "benign" and rng.random() < 0.95 else words[-1]
            errors = ["unknown_path" if source == "trait" and rng.random() < 0.95 else None]
            kept.append(_trajectory(f"t{number}", words, errors=errors, source=source))
    text = _audited(policies, tmp_path / "one", monkeypatch)
    assert text == _audited(policies, tmp_path / "two", monkeypatch), "the same bytes twice"
    records = json.loads(text)["comparisons"]
    found = {(one["first"], one["second"], one["features"]): one for one in records}
    for pair, shown in (
        (("trait", "benign"), {"text", "behaviour"}),
        (("trait", "self"), {"behaviour"}),
        (("benign", "self"), {"text"}),
    ):
        for features in ("text", "behaviour"):
            one = found[*pair, features]
            assert (one["n_first"], one["n_second"], one["shared_tasks"]) == (40, 40, 40)
            if features in shown:
                assert one["auc"] > 0.9 and one["p"] == 0.01 and one["low"] > 0.75
            else:
                assert 0.3 < one["auc"] < 0.7 and one["p"] > 0.01
    sentence = verdicts.of_data({"bound": 0.6, "comparisons": records})
    assert sentence.startswith("The data are visibly different: ")
