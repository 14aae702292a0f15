"""Sampling against NumPy and against the filters of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subtransfer.rollout import sampling
from subtransfer.rollout.sampling import Sampling

# Each as one program, as they run within the engine's.
_sample = jax.jit(sampling.sample, static_argnames="how")
_draw = jax.jit(sampling.draw, static_argnames="count")
_cumulative = jax.jit(sampling.cumulative)


def test_sampling_follows_the_distribution():
    """Frequencies of 40,000 draws against softmax(logits / T), and log-probs at temperature 1."""
    logits = jnp.array([2.0, 0.0, -1.0, -1e9, 1.0])
    keys = sampling.row_keys(jax.random.key(1), jnp.arange(40_000))
    draws = _draw(keys, jnp.full(40_000, 5), 1)[:, 0]
    for temperature in (1.0, 0.5):
        tokens, logprobs = _sample(
            jnp.broadcast_to(logits, (40_000, 5)), draws, Sampling(temperature)
        )
        expected = np.exp(np.asarray(logits) / temperature)
        expected /= expected.sum()
        observed = np.bincount(np.asarray(tokens), minlength=5) / 40_000
        np.testing.assert_allclose(observed, expected, atol=4 * np.sqrt(0.25 / 40_000))
        assert observed[3] == 0
        np.testing.assert_allclose(
            logprobs[:50], jax.nn.log_softmax(logits)[tokens[:50]], atol=1e-6
        )


def test_draws_are_numbered_not_ordered():
    """Draw i of a row is the same however many are taken at once: a row's tokens do not depend on
    how bursts end.
    """
    keys = sampling.row_keys(jax.random.key(1), jnp.arange(3))
    all_six = _draw(keys, jnp.zeros(3, int), 6)
    later = _draw(keys, jnp.array([4, 1, 0]), 2)
    for row, first in enumerate((4, 1, 0)):
        np.testing.assert_array_equal(all_six[row, first : first + 2], later[row])


@pytest.mark.parametrize("how", [Sampling(0.7, top_k=5), Sampling(1.3, top_p=0.6), Sampling(0.9, min_p=0.2),
                                 Sampling(1.0, top_k=9, top_p=0.8, min_p=0.05)])  # fmt: skip
def test_filters_keep_what_transformers_keeps(how):
    """The tokens that 4,096 evenly spaced draws reach, and how often, against transformers' warpers
    in the same order.
    """
    import torch
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(0, 2, 40).astype(np.float32)
    scores = torch.tensor(logits)[None] / how.temperature
    for wanted, warper in ((how.top_k, lambda: TopKLogitsWarper(how.top_k)), (how.top_p < 1, lambda: TopPLogitsWarper(how.top_p)),
                           (how.min_p, lambda: MinPLogitsWarper(how.min_p))):  # fmt: skip
        scores = warper()(None, scores) if wanted else scores
    expected = torch.softmax(scores, -1)[0].numpy()
    draws = jnp.asarray((np.arange(4096) + 0.5) / 4096, jnp.float32)
    tokens, _ = _sample(jnp.broadcast_to(jnp.asarray(logits), (4096, 40)), draws, how)
    observed = np.bincount(np.asarray(tokens), minlength=40) / 4096
    np.testing.assert_array_equal(observed > 0, expected > 1e-4)
    np.testing.assert_allclose(observed, expected, atol=2 / 4096)


@settings(max_examples=10, deadline=None)  # each length is a program of its own
@given(st.integers(1, 200), st.integers(0, 1000))
def test_cumulative_sums_equal_numpy(size, seed):
    x = np.random.default_rng(seed).random((3, size)).astype(np.float32)
    np.testing.assert_allclose(
        _cumulative(jnp.asarray(x)), np.cumsum(x.astype(np.float64), axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_picked(temperature):
    logits = jnp.broadcast_to(jnp.array([5.0, 1.0, 0.0, 4.0]), (64, 4))
    allowed = jnp.broadcast_to(jnp.array([False, True, True, False]), (64, 4))
    draws = jnp.linspace(0, 0.999, 64)
    tokens, logprobs = _sample(logits, draws, Sampling(temperature), allowed)
    assert set(np.asarray(tokens).tolist()) == ({1} if temperature == 0 else {1, 2})
    np.testing.assert_allclose(
        logprobs, jax.nn.log_softmax(logits)[jnp.arange(64), tokens], atol=1e-6
    )


def test_greedy_takes_the_first_of_equals():
    tokens, _ = _sample(jnp.array([[1.0, 3.0, 3.0]]), jnp.zeros(1), Sampling(0.0))
    assert tokens.tolist() == [1]
