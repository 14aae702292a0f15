"""The decoder's own properties."""

import jax
import jax.numpy as jnp
import numpy as np

from subtransfer.models.attention import causal_mask
from subtransfer.models.decoder import DecoderConfig, extend
from subtransfer.models.kv_cache import Cache

from .compiled import forward


def test_cached_decoding_equals_the_full_forward(cfg, weights):
    """Padded rows, then token by token behind them, against one forward a row."""
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (3, 12))
    lengths = np.array([7, 5, 6])
    present = np.arange(7)[None] < lengths[:, None]
    positions = np.broadcast_to(np.arange(7), (3, 7))
    step = jax.jit(extend, static_argnums=0)
    _, layers = step(cfg, weights, tokens[:, :7], positions, causal_mask(jnp.asarray(present)))
    past, full = [Cache(layers, present, positions)], forward(cfg, weights, tokens)
    for ahead in range(4):
        token = np.array([[tokens[i, lengths[i] + ahead]] for i in range(3)])
        at = (lengths + ahead)[:, None]
        logits, layers = step(cfg, weights, token, at, np.ones((3, 1, 1), bool), past)
        past.append(Cache(layers, np.ones((3, 1), bool), at))
        for i in range(3):
            np.testing.assert_allclose(logits[i, 0], full[i, lengths[i] + ahead], atol=1e-5)


def test_no_gradient_flows_from_the_future(cfg, params):
    """d (logits at t) / d (embedding of a token that only stands later) is exactly zero."""
    tokens = jnp.arange(8)[None]

    def logit_sum(table, t):
        # The head is tied to the table: cut it off, so that only the tokens fed in count.
        untied = {
            **params,
            "lm_head": jax.lax.stop_gradient(params["embedding"].T),
            "embedding": table,
        }
        shape = DecoderConfig(**{**cfg.__dict__, "tied_embeddings": False})
        return forward(shape, {"params": untied}, tokens)[0, t].sum()

    gradient = jax.jit(jax.grad(logit_sum))
    for t in (0, 3, 6):
        grad = np.asarray(gradient(params["embedding"], t))
        np.testing.assert_array_equal(grad[t + 1 : 8], 0)
        assert np.abs(grad[t]).max() > 0


def test_parameter_count_is_exact(cfg, params):
    assert cfg.num_params == sum(x.size for x in jax.tree.leaves(params))
