"""The vocabulary loss in chunks: what it computes, and what it needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from subtransfer.models.decoder import DecoderConfig
from subtransfer.training import chunked_loss, loop, objectives, pretrain

B, L, D, V = 2, 21, 8, 50
REMOVED = jnp.arange(V) % 7 == 3

# Each objective of (student's logits, teacher's logits, targets of a part) for each token.
PER_TOKEN = {
    "sft": lambda s, t, x: objectives.sft_tokens(s, x["tokens"]),
    "forward_kl": lambda s, t, x: objectives.forward_kl_tokens(s, t, 2.0, REMOVED),
    "reverse_kl": lambda s, t, x: objectives.reverse_kl_tokens(s, t, 2.0, REMOVED),
    "jsd": lambda s, t, x: objectives.jsd_tokens(s, t, 0.3, 1.0, REMOVED),
    "policy_gradient": lambda s, t, x: objectives.policy_gradient_tokens(
        s, t, x["tokens"], x["behavior_logprobs"], 2.0, REMOVED
    ),
    "forward_kl_top_k": lambda s, t, x: objectives.forward_kl_top_k_tokens(
        s, x["ids"], x["logprobs"], 1.0, REMOVED
    ),
}


@pytest.mark.parametrize("name", PER_TOKEN)
def test_chunks_change_neither_value_nor_gradient(name):
    """In hidden states and head, with a length that chunks do not divide, and weights of all
    sizes.
    """
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, B, L, D)).astype(np.float32)
    head, their_head = rng.normal(size=(2, D, V)).astype(np.float32)
    logp = np.array(objectives.log_probs(teacher @ their_head, 1.0, REMOVED))
    ids = np.argsort(-logp, axis=-1)[..., :4].astype(np.int32)
    targets = {
        "tokens": rng.choice(np.flatnonzero(~REMOVED), size=(B, L)).astype(np.int32),
        "behavior_logprobs": rng.uniform(-6, -1, size=(B, L)).astype(np.float32),
        "ids": ids,
        "logprobs": np.take_along_axis(logp, ids, -1),
    }
    weights = (rng.random((B, L)) * (rng.random((B, L)) < 0.7)).astype(np.float32)

    def loss(student, head, chunk):
        def per_token(heads, part):
            hidden, theirs, targets = part
            return PER_TOKEN[name](hidden @ heads[0], theirs @ heads[1], targets)

        return chunked_loss.mean_in_chunks(
            per_token, (head, their_head), (student, teacher, targets), weights, chunk
        )

    whole, parts = (
        jax.jit(
            lambda s, h, chunk=chunk: jax.value_and_grad(loss, (0, 1), has_aux=True)(s, h, chunk)
        )(student, head)
        for chunk in (L, 8)
    )
    assert set(whole[0][1]) > {"loss"}
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
    assert np.abs(whole[1][0]).max() > 1e-3 and np.abs(whole[1][1]).max() > 1e-3


def test_the_fewest_chunks_that_fit():
    assert chunked_loss.chunk_length(64, 64, 512) == 64  # the embedded model's: one, without a scan
    assert chunked_loss.chunk_length(1, 2048, 1 << 17) == 128
    assert chunked_loss.chunk_length(8, 2048, 1 << 17) == 16
    assert (
        chunked_loss.chunk_length(8, 100, 1000, budget=4 * 8 * 1000 * 60) == 56
    )  # 2 chunks of 50, in multiples of 8
    assert chunked_loss.chunk_length(64, 64, 1 << 17, budget=1 << 20) == 1
    assert (
        chunked_loss.chunk_bytes(197, 64)
        == chunked_loss.chunk_bytes(1 << 17)
        == chunked_loss.CHUNK_BYTES
    )
    assert (
        chunked_loss.chunk_bytes(1 << 17, 4096) == 1 << 28
    )  # a head of 8B, whose gradient is 2 GiB
    assert chunked_loss.chunk_length(4, 2304, 1 << 17, trained_width=4096) == 128
    with jax.sharding.use_abstract_mesh(
        AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    ):
        assert chunked_loss.chunk_length(8, 2048, 1 << 17) == 256


@pytest.mark.slow
def test_the_memory_of_a_step_does_not_grow_with_vocabulary_times_length(mesh):
    """The forward KL with a live teacher over 128k tokens; nothing is run."""
    cfg, batch, lengths = DecoderConfig(1 << 17, 16, 16, 1, 1, 1, 16), 2, (128, 512)
    params = pretrain.init_params(cfg, mesh, jax.random.key(0))
    recipe = loop.Recipe(loop.Loss("forward_kl"), 1, batch, 1e-3)
    state, _ = loop.init_state(recipe, params, jax.random.key(0))
    peaks = []
    for length in lengths:
        tokens, mask = np.zeros((1, batch, length), np.int32), np.ones((1, batch, length), bool)
        args = (
            {"params": params},
            np.zeros((16, cfg.vocab_size), bool),
            tokens,
            mask,
            np.ones(1, np.float32),
            jax.random.key(0),
            {"removed_at": tokens},
        )
        step = loop.train_steps.lower(cfg, recipe.loss, state, None, *args).compile()
        peaks.append(step.memory_analysis().temp_size_in_bytes)
    added_logits = 4 * batch * cfg.vocab_size * (lengths[1] - lengths[0])
    assert peaks[1] - peaks[0] < added_logits / 20
    assert (
        peaks[1] < 12 * chunked_loss.CHUNK_BYTES
    )  # all of it, with the gradient and updates of 2M parameters
