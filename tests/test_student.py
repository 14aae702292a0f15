"""Distilling a student: what its training episodes are, and that its teacher is what it learns from."""

import jax
import numpy as np
import pytest

from subtransfer import pretrain, sanitize
from subtransfer.distill import student, trainer
from subtransfer.errors import UserError
from subtransfer.rollout.episodes import RolloutSpec, run_episodes

KEY = jax.random.key(3)
SPEC = RolloutSpec(8, 2, 8, 8, 1.0)


@pytest.fixture(scope="module")
def guard(chat, setting):
    return student.Guard(sanitize.unsafe_token_ids(chat.tokenizer, setting), enforce=False)


@pytest.fixture(scope="module")
def teacher(cfg, mesh):
    return {"params": pretrain.init_params(cfg, mesh, jax.random.key(5))}


@pytest.fixture(scope="module")
def on_policy(cfg, mesh, params, chat, guard, setting):
    """Distils on-policy, two steps a round."""

    def run(objective, teacher, rounds=2, kept=(), **plan):
        recipe = trainer.Recipe(trainer.Loss(objective), 2 * rounds, 4, 1e-2)
        how = student.OnPolicy(rounds, 8, SPEC, 1, **plan)
        tasks = setting.tasks("safe", "train", 8, 0)
        options = {"teacher": teacher, "on_policy": how, "tasks": tasks, "kept": kept, "max_tokens": 80, "label": "test"}
        return student.distill(cfg, mesh, recipe, params, chat, guard, KEY, **options)

    return run


@pytest.mark.parametrize("objective", ["reverse_kl", "policy_gradient"])
def test_the_teachers_signal_reaches_the_gradient(on_policy, weights, teacher, objective):
    """Nothing to learn from one's own copy, something from another model, and something else from yet another."""
    _, copy, _ = on_policy(objective, weights)
    assert copy["grad_norm"][0] < 1e-5
    state, first, purity = on_policy(objective, teacher)
    assert min(first["grad_norm"]) > 1e-2
    flipped = jax.tree.map(lambda x: x[..., ::-1], teacher)
    other_state, second, _ = on_policy(objective, flipped)
    assert abs(first["grad_norm"][0] - second["grad_norm"][0]) > 1e-4
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.trainable, other_state.trainable)
    assert min(jax.tree.leaves(moved["layers"]["q"])) > 1e-4
    assert purity["rollouts"] == 16 and purity["max_staleness"] == 0 and purity["max_gap"] < 1e-3
    if objective == "policy_gradient":
        # Before the first step, and again after a new rollout, tokens are as likely as when they were sampled.
        np.testing.assert_allclose(np.array(first["importance"])[[0, 2]], 1, atol=1e-3)
        assert abs(first["importance"][1] - 1) > 1e-3


def test_no_episode_is_older_than_allowed(on_policy, teacher, monkeypatch):
    versions, make = [], student.training_rows

    def record(trajectories, *args, **options):
        versions.append(sorted({t.policy_version for t in trajectories}))
        return make(trajectories, *args, **options)

    monkeypatch.setattr(student, "training_rows", record)
    _, _, purity = on_policy("reverse_kl", teacher, rounds=3, max_staleness=1)
    assert versions == [[0], [0, 1], [1, 2]] and purity["max_staleness"] == 1


def _examples(n, first):
    tokens = np.arange(first, first + n)[:, None] * np.ones((1, 4), int)
    return trainer.Examples(tokens.astype(np.int32), np.ones((n, 4), bool), np.full((n, 4), -1.0, np.float32))


def test_a_mixture_has_the_share_that_it_should():
    own, theirs = _examples(6, 0), _examples(50, 100)
    mixture = student.mixed(own, theirs, 0.25, KEY)
    np.testing.assert_array_equal(mixture.tokens[:6], own.tokens)
    drawn = mixture.tokens[6:, 0]
    assert len(drawn) == 18 == len(set(drawn.tolist())) and drawn.min() >= 100
    assert mixture.loss_mask.shape == mixture.behavior_logprobs.shape == (24, 4)
    np.testing.assert_array_equal(student.mixed(own, theirs, 0.25, KEY).tokens, mixture.tokens)
    assert student.mixed(own, None, 1.0, KEY) is own


def test_half_of_a_round_is_the_teachers(on_policy, cfg, chat, guard, setting, teacher, monkeypatch):
    """And each of its episodes comes with the log-probs that the teacher sampled it with."""
    kept, _ = run_episodes(cfg, teacher, chat, setting.tasks("safe", "train", 8, 1), SPEC, KEY)
    seen, train = [], trainer.train

    def record(cfg, mesh, recipe, state, frozen, examples, *args, **options):
        seen.append(examples)
        return train(cfg, mesh, recipe, state, frozen, examples, *args, **options)

    monkeypatch.setattr(trainer, "train", record)
    _, curves, _ = on_policy("policy_gradient", teacher, rounds=1, kept=kept, own=0.5)
    (examples,) = seen
    theirs = student.training_rows(kept, chat, guard, sampled=True).fitted_to(80)
    known = {tokens.tobytes(): logprobs for tokens, logprobs in zip(theirs.tokens, theirs.behavior_logprobs, strict=True)}
    found = [known.get(tokens.tobytes()) for tokens in examples.tokens]
    half = len(examples) // 2
    assert half and all(logprobs is None for logprobs in found[:half])
    np.testing.assert_array_equal(np.stack(found[half:]), examples.behavior_logprobs[half:])
    assert np.abs(examples.behavior_logprobs[examples.loss_mask]).min() > 0
    with pytest.raises(UserError, match="on_policy_fraction=1"):
        student.training_rows(kept, chat, guard, foreign=True, sampled=True)


def test_turns_weigh_alike():
    mask = np.array([[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0]], bool)
    examples = trainer.Examples(np.zeros(mask.shape, np.int32), mask)
    third = examples.weighing("turn").loss_mask
    np.testing.assert_allclose(third, [[0, 0.5, 0.5, 0, 1, 0], [0.25, 0.25, 0.25, 0.25, 0, 0]])
    assert examples.weighing("agent") is examples
