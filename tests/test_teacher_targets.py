"""Stored teacher targets: what they hold, that a student learns the same from them, and what is
refused.
"""

import dataclasses

import jax
import numpy as np
import pytest

from subtransfer.distillation import teacher_targets
from subtransfer.filtering.leaks import LeakError
from subtransfer.models.decoder import DecoderConfig
from subtransfer.runtime.errors import UserError
from subtransfer.training import chunked_loss, loop, pretrain

from .compiled import forward

CFG = DecoderConfig(40, 16, 16, 1, 1, 1, 16)
# By rows: what is removed differs between places.
REMOVED = np.stack([(np.arange(CFG.vocab_size) + shift) % 9 == 4 for shift in (0, 8)])
KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def teacher(mesh):
    return {"params": pretrain.init_params(CFG, mesh, jax.random.key(5))}


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    mask = rng.random((10, 24)) < 0.5
    mask[:, 0], mask[:, 7] = False, True
    tokens = rng.integers(0, CFG.vocab_size, mask.shape).astype(np.int32)
    at = rng.integers(0, len(REMOVED), mask.shape).astype(np.int32)
    return loop.Examples(tokens, mask, removed_at=at)


@pytest.fixture
def made(mesh, teacher, examples, monkeypatch):
    """Targets made in chunks, four episodes at a time."""

    def make(k, temperature=1.0, removed=REMOVED):
        monkeypatch.setattr(chunked_loss, "chunk_length", lambda *shape, **_: 16)
        targets = teacher_targets.compute(CFG, mesh, teacher, examples, k, temperature, removed, 4)
        monkeypatch.undo()
        return targets

    return make


@pytest.mark.parametrize("removed", [pytest.param(None, marks=pytest.mark.slow), REMOVED])
def test_targets_are_the_top_k_of_the_teachers_distribution(
    made, teacher, examples, tmp_path, removed
):
    made(5, 2.0, removed).write(tmp_path / "t.safetensors")
    targets = teacher_targets.Targets.read(tmp_path / "t.safetensors")
    placed = targets.attached(examples, 2.0, removed)
    logits = np.asarray(forward(CFG, teacher, examples.tokens), np.float64) / 2
    if removed is not None:
        # What stands at a place is predicted from the one before it.
        logits[:, :-1][removed[examples.removed_at[:, 1:]]] = -np.inf
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, t in zip(*np.nonzero(examples.loss_mask), strict=True):
        best = np.argsort(-logp[row, t - 1])[:5]
        np.testing.assert_array_equal(placed.teacher_ids[row, t], best)
        np.testing.assert_allclose(
            placed.teacher_logprobs[row, t], logp[row, t - 1, best], atol=1e-5
        )
    report = teacher_targets.verify(CFG, teacher, examples, targets, removed)
    assert (
        report["tokens"] == examples.loss_mask.sum()
        and report["max_gap"] < 1e-5
        and report["max_missed"] < 1e-5
    )


def test_a_student_learns_the_same_from_disk_as_from_the_live_teacher(
    mesh, made, teacher, examples
):
    """With all of the support stored."""
    params = pretrain.init_params(CFG, mesh, jax.random.key(0))
    recipe = loop.Recipe(loop.Loss("forward_kl", 2.0), 4, 8, 1e-2)
    support = int((~REMOVED[0]).sum())

    def losses(examples, teacher=None):
        state, frozen = loop.init_state(recipe, params, KEY)
        _, curves = loop.train(
            CFG, mesh, recipe, state, frozen, examples, 4, KEY, teacher=teacher, removed=REMOVED
        )
        return np.array(curves["loss"])

    live = losses(examples, teacher)
    np.testing.assert_allclose(
        losses(made(support, 2.0).attached(examples, 2.0, REMOVED)), live, rtol=1e-4
    )


def test_what_cannot_be_right_is_refused(made, teacher, examples, mesh):
    targets = made(5)
    verify = teacher_targets.verify
    with pytest.raises(UserError, match="from what the teacher says now, where 0.001 is allowed"):
        verify(
            CFG,
            teacher,
            examples,
            dataclasses.replace(targets, logprobs=targets.logprobs - 0.01),
            REMOVED,
        )
    with pytest.raises(UserError, match="from what the teacher says now"):
        worse = np.roll(targets.ids, 1, axis=0)  # of another token
        verify(CFG, teacher, examples, dataclasses.replace(targets, ids=worse), REMOVED)
    with pytest.raises(UserError, match="other training episodes or another temperature"):
        targets.attached(examples, 2.0, REMOVED)
    with pytest.raises(UserError, match="other training episodes"):
        targets.attached(examples.rows(np.arange(10)[::-1]), 1.0, REMOVED)
    with pytest.raises(LeakError, match="hold an unsafe token"):
        made(30, removed=None).attached(examples, 1.0, REMOVED)
    with pytest.raises(UserError, match="top_k=40 cannot be: the teacher has 36"):
        teacher_targets.compute(CFG, mesh, teacher, examples, 40, 1.0, REMOVED, 4)


def test_padding_and_cutting_to_one_length_keep_targets_with_their_tokens(made, examples):
    placed = made(5).attached(examples, 1.0, REMOVED)
    longer, shorter = placed.fitted_to(30), placed.fitted_to(16)
    np.testing.assert_array_equal(longer.teacher_ids[:, :24], placed.teacher_ids)
    assert (
        longer.teacher_logprobs.shape == (10, 30, 5) and not longer.teacher_logprobs[:, 24:].any()
    )
    np.testing.assert_array_equal(shorter.teacher_logprobs, placed.teacher_logprobs[:, :16])
