"""The decoder's own properties, and LoRA."""

import jax
import jax.numpy as jnp
import numpy as np

from subtransfer.distill import trainer
from subtransfer.models import lora
from subtransfer.models.decoder import Decoder, DecoderConfig, KVCache, causal_mask


def test_cached_decoding_equals_the_full_forward(cfg, params):
    """Prefill of padded rows, then token by token, against one forward a row."""
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (3, 12))
    lengths = np.array([7, 5, 6])
    present = np.arange(7)[None] < lengths[:, None]
    mask = causal_mask(jnp.asarray(present)) & present[:, :, None]
    positions = np.broadcast_to(np.arange(7), (3, 7))
    model = Decoder(cfg)
    _, cache = model.apply({"params": params}, tokens[:, :7], positions, mask, KVCache.empty(cfg, 3, 16))
    for step in range(4):
        token = np.array([[tokens[i, lengths[i] + step]] for i in range(3)])
        logits, cache = model.apply({"params": params}, token, (lengths + step)[:, None], np.ones((3, 1, 1), bool), cache)
        for i in range(3):
            full = trainer.forward(cfg, params, tokens[i : i + 1, : lengths[i] + step + 1])[0, -1]
            np.testing.assert_allclose(logits[i, 0], full, atol=1e-5)


def test_no_gradient_flows_from_the_future(cfg, params):
    """d (logits at t) / d (embedding of a token that only stands later) is exactly zero."""
    tokens = jnp.arange(8)[None]

    def logit_sum(table, t):
        # The head is tied to the table: cut it off, so that only the tokens fed in count.
        untied = {**params, "lm_head": jax.lax.stop_gradient(params["embedding"].T), "embedding": table}
        shape = DecoderConfig(**{**cfg.__dict__, "tied_embeddings": False})
        return trainer.forward(shape, untied, tokens)[0, t].sum()

    for t in (0, 3, 6):
        grad = np.asarray(jax.grad(logit_sum)(params["embedding"], t))
        np.testing.assert_array_equal(grad[t + 1 : 8], 0)
        assert np.abs(grad[t]).max() > 0


def test_parameter_count_is_exact(cfg, params):
    assert cfg.num_params == sum(x.size for x in jax.tree.leaves(params))


def test_lora_starts_as_the_base_and_merges_by_its_formula(cfg, params):
    factors = lora.init_lora(jax.random.key(1), params, ("q", "down"), 4)
    same = lora.merge(params, factors, alpha=8.0, rank=4)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(params), strict=True))
    factors = jax.tree.map(lambda x: x + 0.1, factors)
    merged = lora.merge(params, factors, alpha=8.0, rank=4)
    for target in ("q", "down"):
        a, b = (np.asarray(factors[target][k], np.float64) for k in "ab")
        expected = np.asarray(params["layers"][target]["kernel"]) + 2.0 * np.einsum("nir,nro->nio", a, b)
        np.testing.assert_allclose(merged["layers"][target]["kernel"], expected, atol=1e-5)
    np.testing.assert_array_equal(merged["layers"]["up"]["kernel"], params["layers"]["up"]["kernel"])


def test_lora_dropout_is_unbiased(cfg, params):
    factors = jax.tree.map(lambda x: x + 0.1, lora.init_lora(jax.random.key(1), params, ("q",), 4))
    keys = jax.random.split(jax.random.key(2), 400)
    drop = jax.vmap(lambda k: lora.merge(params, factors, alpha=8.0, rank=4, dropout=0.5, rng=k)["layers"]["q"]["kernel"])
    exact = lora.merge(params, factors, alpha=8.0, rank=4)["layers"]["q"]["kernel"]
    kernels = np.asarray(drop(keys))
    assert kernels.std(axis=0).max() > 0.01
    np.testing.assert_allclose(kernels.mean(axis=0), exact, atol=6 * kernels.std(axis=0).max() / 20)
