"""Objectives against formulas in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subtransfer.distill import objectives

REMOVED = np.array([False, True, False, False, True, False, False])


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _case(seed, shape=(2, 5, 7)):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=shape) * 3, rng.normal(size=shape) * 3
    mask = rng.random(shape[:2]) < 0.6
    mask[0, 0] = True
    return student, teacher, mask


def _reference_kl(first, second, mask, temperature, keep):
    """KL(first || second) over the kept tokens, float64."""
    p, q = (_softmax(x[..., keep] / temperature) for x in (first, second))
    return (np.sum(p * (np.log(p) - np.log(q)), axis=-1) * mask).sum() / mask.sum() * temperature**2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 2.0]), st.booleans())
def test_divergences_equal_their_formulas(seed, temperature, masked):
    student, teacher, mask = _case(seed)
    removed = jnp.asarray(REMOVED) if masked else None
    keep = ~REMOVED if masked else slice(None)
    forward, _ = objectives.forward_kl(student, teacher, mask, temperature, removed)
    reverse, _ = objectives.reverse_kl(student, teacher, mask, temperature, removed)
    np.testing.assert_allclose(forward, _reference_kl(teacher, student, mask, temperature, keep), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(reverse, _reference_kl(student, teacher, mask, temperature, keep), rtol=2e-5, atol=2e-6)


def test_sft_is_the_cross_entropy_of_masked_tokens():
    logits, _, mask = _case(3)
    tokens = np.random.default_rng(4).integers(0, 7, size=mask.shape)
    logq = np.log(_softmax(logits))
    expected = -(np.take_along_axis(logq, tokens[..., None], -1)[..., 0] * mask).sum() / mask.sum()
    loss, metrics = objectives.sft(logits, tokens, mask)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    right = (logits.argmax(-1) == tokens)[mask].mean()
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_gradients(name):
    """Zero for equal distributions; d KL(p||q)/d logits_q = q - p per token; masked tokens and the teacher get nothing."""
    student, teacher, mask = _case(5)
    objective = getattr(objectives, name)

    def loss(s, t):
        return objective(s, t, mask)[0]

    np.testing.assert_allclose(jax.grad(loss)(teacher, teacher), 0, atol=1e-7)
    grad_student, grad_teacher = jax.grad(loss, argnums=(0, 1))(student, teacher)
    np.testing.assert_array_equal(grad_teacher, 0)
    np.testing.assert_array_equal(np.asarray(grad_student)[~mask], 0)
    assert np.abs(np.asarray(grad_student)[mask]).max() > 1e-3
    p, q = _softmax(teacher), _softmax(student)
    if name == "forward_kl":
        expected = (q - p) * mask[..., None] / mask.sum()
    else:
        gap = np.log(q) - np.log(p)
        expected = q * (gap - np.sum(q * gap, -1, keepdims=True)) * mask[..., None] / mask.sum()
    np.testing.assert_allclose(grad_student, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_removed_tokens_are_never_seen(name):
    """Neither value nor gradient depends on what teacher or student think of a removed token."""
    student, teacher, mask = _case(6)
    objective = getattr(objectives, name)

    def loss(s, t):
        return objective(s, t, mask, 1.0, jnp.asarray(REMOVED))[0]

    moved = teacher + 5.0 * REMOVED
    np.testing.assert_allclose(loss(student, teacher), loss(student, moved), rtol=1e-6)
    np.testing.assert_allclose(loss(student, teacher), loss(student + 5.0 * REMOVED, teacher), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(jax.grad(loss)(student, teacher))[..., REMOVED], 0)


def test_an_empty_mask_is_no_nan():
    student, teacher, _ = _case(7)
    nothing = np.zeros(student.shape[:2], bool)
    assert float(objectives.forward_kl(student, teacher, nothing)[0]) == 0.0
