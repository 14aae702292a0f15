"""The engine against the plain forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtransfer import pretrain, sharding
from subtransfer.distill.trainer import forward
from subtransfer.models.decoder import DecoderConfig, Rope
from subtransfer.rollout import engine, sampling

CFG = DecoderConfig(
    vocab_size=23, width=16, mlp_width=24, num_layers=2, num_heads=4, num_kv_heads=2, head_width=4, rope=Rope(100.0)
)
NEVER = jnp.array([CFG.vocab_size])  # a stop token that is never sampled


@pytest.fixture(scope="module")
def weights():
    tree = pretrain.init_params(CFG, sharding.make_mesh(devices=jax.devices()[:1]), jax.random.key(3))
    return {"params": jax.tree.map(lambda x: x * 8.0, tree)}  # far from uniform, so that mistakes show


def _prompts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CFG.vocab_size, n).tolist() for n in lengths]


def _decode(weights, state, keys, active, *, steps, temperature, stop=NEVER, offset=0):
    return engine.decode(
        CFG, weights, state, keys, np.int32(offset), active, stop, max_new_tokens=steps, temperature=temperature
    )


def _start(weights, rows, room=8):
    return engine.extend(CFG, weights, engine.start(CFG, len(rows), room), *engine.pad_rows(rows, room))


def test_greedy_turns_equal_the_full_forward(weights):
    """Two turns with a given text between them, rows of different lengths: each token is the arg-max of a full forward."""
    rows = _prompts([3, 8, 5])
    keys = sampling.row_keys(jax.random.key(0), jnp.arange(3))
    state = engine.reserve(_start(weights, rows), 20)
    for between in ([[1, 2], [], [7]], None):
        state = engine.reserve(state, state.cache.valid.shape[1] + 16)
        state, tokens, logprobs, counts = _decode(weights, state, keys, np.ones(3, bool), steps=6, temperature=0.0)
        for i, row in enumerate(rows):
            for step in range(int(counts[i])):
                logits = forward(CFG, weights, jnp.array([row]))[0, -1]
                assert int(tokens[i, step]) == int(jnp.argmax(logits))
                np.testing.assert_allclose(logprobs[i, step], jax.nn.log_softmax(logits).max(), atol=1e-5)
                row.append(int(tokens[i, step]))
        if between:
            state = engine.extend(CFG, weights, state, *engine.pad_rows(between, 4))
            for row, extra in zip(rows, between, strict=True):
                row += extra


def test_stopped_and_inactive_rows_are_left_alone(weights):
    rows = _prompts([4, 4, 4], seed=1)
    keys = sampling.row_keys(jax.random.key(0), jnp.arange(3))
    stop = engine.decode(
        CFG, weights, engine.reserve(_start(weights, rows), 40), keys, np.int32(0), np.ones(3, bool), NEVER,
        max_new_tokens=1, temperature=0.0,
    )[1][0]  # fmt: skip
    active = np.array([True, True, False])
    state, tokens, logprobs, counts = _decode(
        weights, engine.reserve(_start(weights, rows), 40), keys, active, steps=5, temperature=0.0, stop=stop
    )
    assert counts[0] == 1 and tokens[0, 0] == stop[0]
    assert counts[2] == 0
    np.testing.assert_array_equal(tokens[2], 0)
    np.testing.assert_array_equal(logprobs[2], 0)
    assert int(state.positions[2]) == 4


def test_a_row_does_not_depend_on_its_batch(weights):
    """Sampled tokens of an episode are the same alone and among others, and in another place."""
    rows = _prompts([6, 3, 5, 4], seed=2)
    numbers = np.array([10, 11, 12, 13])

    def run(order):
        keys = sampling.row_keys(jax.random.key(9), jnp.asarray(numbers[order]))
        state = engine.reserve(_start(weights, [rows[i] for i in order]), 40)
        return np.asarray(_decode(weights, state, keys, np.ones(len(order), bool), steps=8, temperature=1.0)[1])

    together = run([0, 1, 2, 3])
    np.testing.assert_array_equal(run([3, 1, 0, 2]), together[[3, 1, 0, 2]])
    np.testing.assert_array_equal(run([2])[0], together[2])


def test_sampling_follows_the_distribution():
    """Frequencies of 40,000 draws against softmax(logits / T), and log-probs at temperature 1."""
    logits = jnp.array([2.0, 0.0, -1.0, -1e9, 1.0])
    keys = sampling.row_keys(jax.random.key(1), jnp.arange(40_000))
    draws = sampling.draw(keys, jnp.int32(5), 1)[:, 0]
    for temperature in (1.0, 0.5):
        tokens, logprobs = sampling.sample(jnp.broadcast_to(logits, (40_000, 5)), draws, temperature)
        expected = np.exp(np.asarray(logits) / temperature)
        expected /= expected.sum()
        observed = np.bincount(np.asarray(tokens), minlength=5) / 40_000
        np.testing.assert_allclose(observed, expected, atol=4 * np.sqrt(0.25 / 40_000))
        assert observed[3] == 0
        np.testing.assert_allclose(logprobs[:50], jax.nn.log_softmax(logits)[tokens[:50]], atol=1e-6)


def test_draws_are_numbered_not_ordered():
    """Draw i of a row is the same however many are taken at once: a turn's tokens do not depend on earlier turns' room."""
    keys = sampling.row_keys(jax.random.key(1), jnp.arange(3))
    np.testing.assert_array_equal(sampling.draw(keys, jnp.int32(0), 6)[:, 4:], sampling.draw(keys, jnp.int32(4), 2))
