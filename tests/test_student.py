"""Distilling a student: what its training episodes are, and that its teacher is what it learns
from.
"""

import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest

from subtransfer.config import reading as configuration
from subtransfer.distillation import student, token_weights
from subtransfer.experiment import graph
from subtransfer.filtering.rules import Rule
from subtransfer.rollout.episodes import RolloutSpec, run_episodes
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store import trajectories
from subtransfer.training import loop, pretrain
from subtransfer.training.monitor import TrainingMonitor

KEY = jax.random.key(3)
SPEC = RolloutSpec(8, 2, 8, 8, 1.0)


@pytest.fixture(scope="module")
def guard(chat, setting):
    return student.Guard(enforce=False)


@pytest.fixture(scope="module")
def teacher(cfg, mesh):
    return {"params": pretrain.init_params(cfg, mesh, jax.random.key(5))}


@pytest.fixture(scope="module")
def on_policy(cfg, mesh, params, chat, guard, setting):
    """Distils on-policy, two steps a round."""

    def run(objective, teacher, rounds=2, kept=(), weigh=token_weights.alike, **plan):
        recipe = loop.Recipe(loop.Loss(objective), 2 * rounds, 4, 1e-2)
        how = student.OnPolicy(rounds, 8, SPEC, 1, **plan)
        tasks = setting.tasks("safe", "train", 8, 0)
        options = {
            "teacher": teacher,
            "on_policy": how,
            "tasks": tasks,
            "kept": kept,
            "max_tokens": 80,
            "run": TrainingMonitor("test"),
            "weigh": weigh,
        }
        return student.distill(cfg, mesh, recipe, params, chat, guard, KEY, **options)

    return run


@pytest.mark.parametrize("objective", ["reverse_kl", "policy_gradient"])
def test_the_teachers_signal_reaches_the_gradient(on_policy, weights, teacher, objective):
    """Nothing to learn from one's own copy, something from another model, and something else from
    yet another.
    """
    _, copy, _ = on_policy(objective, weights)
    assert copy["grad_norm"][0] < 1e-5
    state, first, purity = on_policy(objective, teacher)
    assert min(first["grad_norm"]) > 1e-2
    flipped = jax.tree.map(lambda x: x[..., ::-1], teacher)
    other_state, second, _ = on_policy(objective, flipped)
    assert abs(first["grad_norm"][0] - second["grad_norm"][0]) > 1e-4
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), state.trainable, other_state.trainable
    )
    assert min(jax.tree.leaves(moved["layers"]["q"])) > 1e-4
    assert purity["rollouts"] == 16 and purity["max_staleness"] == 0 and purity["max_gap"] < 1e-3
    if objective == "policy_gradient":
        # Before the first step, and again after a new rollout, tokens are as likely as when they
        # were sampled.
        np.testing.assert_allclose(np.array(first["importance"])[[0, 2]], 1, atol=1e-3)
        assert abs(first["importance"][1] - 1) > 1e-3


def test_own_episodes_are_stored_and_counted_before_the_filter(
    cfg, mesh, params, chat, setting, teacher
):
    """Against the same rollouts made here; what shows a trace is learned from by none but raw arms."""
    tasks = setting.tasks("safe", "train", 16, 0)
    word = "how"
    round_key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(KEY, 2), 0), 0)
    made, _ = run_episodes(cfg, {"params": params}, chat, tasks[:8], SPEC, round_key)
    # An untrained model may say the word itself, and any of the setting's own.
    stems = (word, *setting.keywords, *setting.control_keywords)
    pattern = "|".join(stem if len(stem) > 3 else rf"\b{stem}\b" for stem in stems)
    marked = {one.episode_id for one in made if re.search(pattern, one.text().lower())}
    assert 0 < len(marked) < 8, "choose another word"
    purities = {}
    for enforce in (True, False):
        recipe = loop.Recipe(loop.Loss("reverse_kl"), 2, 4, 1e-2)
        plan = student.OnPolicy(1, 8, SPEC, 1, stored=6)
        guard = student.Guard(Rule((word,)), enforce=enforce)
        monitor = TrainingMonitor("test")
        options = {"teacher": teacher, "on_policy": plan, "tasks": tasks, "max_tokens": 80}
        _, _, purity = student.distill(
            cfg, mesh, recipe, params, chat, guard, KEY, run=monitor, **options
        )
        purities[enforce] = purity
        learned = len(monitor.progress.examples["tokens"])
        assert learned == (8 - len(marked) if enforce else 8)
        assert purity["traces"] == len(marked) == purity["rounds"][0]["traces"]
        assert purity["dropped"] == (len(marked) if enforce else 0)
        assert {trace["episode_id"] for trace in purity["dropped_ids"]} == marked
    for purity in purities.values():
        stored = list(map(trajectories.of_text, purity["episodes"]))
        assert len(stored) == 6
        for one, other in zip(stored, made, strict=False):
            for field in dataclasses.fields(one):
                a, b = getattr(one, field.name), getattr(other, field.name)
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b), field.name)
                assert not isinstance(a, np.ndarray) or a.dtype == b.dtype


def test_no_episode_is_older_than_allowed(on_policy, teacher, monkeypatch):
    versions, recent = [], student._recent

    def noted(*arguments):
        examples = recent(*arguments)
        versions.append(sorted(set(examples["policy_version"])))
        assert len({len(array) for array in examples.values()}) == 1
        return examples

    monkeypatch.setattr(student, "_recent", noted)
    _, _, purity = on_policy("reverse_kl", teacher, rounds=3, max_staleness=1)
    assert versions == [[0], [0, 1], [1, 2]] and purity["max_staleness"] == 1


def _examples(n, first):
    tokens = np.arange(first, first + n)[:, None] * np.ones((1, 4), int)
    return loop.Examples(
        tokens.astype(np.int32), np.ones((n, 4), bool), np.full((n, 4), -1.0, np.float32)
    )


def test_a_mixture_has_the_share_that_it_should():
    own, theirs = _examples(6, 0), _examples(50, 100)
    mixture = student.mixed(own, theirs, 0.25, KEY)
    np.testing.assert_array_equal(mixture.tokens[:6], own.tokens)
    drawn = mixture.tokens[6:, 0]
    assert len(drawn) == 18 == len(set(drawn.tolist())) and drawn.min() >= 100
    assert mixture.loss_mask.shape == mixture.behavior_logprobs.shape == (24, 4)
    np.testing.assert_array_equal(student.mixed(own, theirs, 0.25, KEY).tokens, mixture.tokens)
    assert student.mixed(own, None, 1.0, KEY) is own


def test_half_of_a_round_is_the_teachers(
    on_policy, cfg, chat, guard, setting, teacher, monkeypatch
):
    """And each of its episodes comes with the log-probs that the teacher sampled it with."""
    kept, _ = run_episodes(cfg, teacher, chat, setting.tasks("safe", "train", 8, 1), SPEC, KEY)
    seen, train = [], loop.train

    def record(cfg, mesh, recipe, state, frozen, examples, *args, **options):
        seen.append(examples)
        return train(cfg, mesh, recipe, state, frozen, examples, *args, **options)

    monkeypatch.setattr(loop, "train", record)
    _, curves, _ = on_policy("policy_gradient", teacher, rounds=1, kept=kept, fraction=0.5)
    (examples,) = seen
    theirs = student.training_rows(kept, chat, guard, sampled=True)[0].fitted_to(80)
    known = {
        tokens.tobytes(): logprobs
        for tokens, logprobs in zip(theirs.tokens, theirs.behavior_logprobs, strict=True)
    }
    found = [known.get(tokens.tobytes()) for tokens in examples.tokens]
    half = len(examples) // 2
    assert half and all(logprobs is None for logprobs in found[:half])
    np.testing.assert_array_equal(np.stack(found[half:]), examples.behavior_logprobs[half:])
    assert np.abs(examples.behavior_logprobs[examples.loss_mask]).min() > 0
    with pytest.raises(UserError, match="on_policy_fraction=1"):
        student.training_rows(kept, chat, guard, foreign=True, sampled=True)


def test_turns_weigh_alike():
    mask = np.array([[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0]], bool)
    examples = loop.Examples(np.zeros(mask.shape, np.int32), mask)
    third = examples.weighing("turn").loss_mask
    np.testing.assert_allclose(third, [[0, 0.5, 0.5, 0, 1, 0], [0.25, 0.25, 0.25, 0.25, 0, 0]])
    assert examples.weighing("agent") is examples


MASK = np.array([[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]], bool)
TOKENS = np.array([[7, 5, 9, 5, 6, 0], [5, 8, 9, 0, 0, 0]], np.int32)


def _weighed(path, source):
    path.write_text(source)
    return token_weights.weigher(str(path), lambda ids: f"<{ids[0]}>")(
        loop.Examples(TOKENS, MASK)
    ).loss_mask


def test_a_users_own_weights(tmp_path):
    path = tmp_path / "weights.py"
    source = "def token_weights(text, agent):\n    return [3.0 * own if token == '<5>' else 0.5 * own for token, own in zip(text, agent)]"
    np.testing.assert_array_equal(
        _weighed(path, source), [[0, 3, 0.5, 0, 0.5, 0], [3, 0.5, 0, 0, 0, 0]]
    )
    key = token_weights.part_of_key(str(path))
    path.write_text(source.replace("3.0", "2.0"))
    assert token_weights.part_of_key(str(path)) == key  # a run goes on with what its keys say
    other = shutil.copy(path, tmp_path / "other.py")
    assert (
        token_weights.part_of_key(str(other)) != key and token_weights.part_of_key("turn") == "turn"
    )


@pytest.mark.parametrize(
    "source, words",
    [
        ("weights = 1", "defines no function token_weights"),
        ("import nothing_of_this_name", "fails with ModuleNotFoundError"),
        ("def token_weights(text, agent): return 1 / 0", "fails with ZeroDivisionError"),
        ("def token_weights(text, agent): return [1.0]", "returns 1 weights for 5 tokens"),
        ("def token_weights(text, agent): return -1.0 * agent", "no finite numbers of 0 or more"),
        ("def token_weights(text, agent): return agent / 0.0", "no finite numbers of 0 or more"),
        (
            "def token_weights(text, agent): return [1.0] * len(text)",
            "gives a weight to '<7>', which is no agent's token",
        ),
        ("def token_weights(text, agent): return 0 * agent", "nothing to learn from"),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
def test_weights_that_cannot_be_end_in_one_sentence(tmp_path, source, words):
    with pytest.raises(UserError, match=words):
        _weighed(tmp_path / "weights.py", source)


def test_a_config_names_a_file_of_weights(tmp_path):
    with pytest.raises(UserError, match="no choice 'turns'; the nearest is 'turn'"):
        configuration.load("configs/quickstart.py", {"distill.token_weights": "turns"})
    missing = configuration.load("configs/quickstart.py", {"distill.token_weights": "missing.py"})
    with pytest.raises(UserError, match="there is no such file"):
        graph.Experiment(missing, tmp_path, sharding.plan_mesh(**missing.mesh))


def test_weights_reach_the_loss(on_policy, teacher):
    """Of the own episodes' tokens, those that weigh nothing teach nothing."""

    def first_only(examples):
        first = examples.loss_mask & (np.cumsum(examples.loss_mask, axis=1) == 1)
        return dataclasses.replace(examples, loss_mask=2.0 * first.astype(np.float32))

    _, all_, _ = on_policy("reverse_kl", teacher, rounds=1)
    _, first, _ = on_policy("reverse_kl", teacher, rounds=1, weigh=first_only)
    assert abs(all_["loss"][0] - first["loss"][0]) > 1e-3
