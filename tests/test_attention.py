"""Attention kernels against the XLA path: splash through interpret mode, cuDNN's front end through
its XLA implementation.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtransfer import launch
from subtransfer.config import reading as configuration
from subtransfer.models import attention_kernels
from subtransfer.models.attention import AttentionContext, attention
from subtransfer.models.decoder import DecoderConfig, Rope
from subtransfer.models.kv_cache import KeyValues
from subtransfer.rollout import scheduler
from subtransfer.rollout.policy import Policy
from subtransfer.rollout.sampling import Sampling
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import pretrain

from .compiled import forward

B, L, H, K, DH = 2, 150, 4, 2, 64
INTERPRETED = {
    "pallas": functools.partial(attention_kernels._splash, interpret=True),
    "cudnn": functools.partial(attention_kernels._cudnn, implementation="xla"),
}


def _inputs(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return [
        jax.random.normal(key, (B, L, heads, DH))
        for key, heads in zip(keys, (H, K, K), strict=True)
    ]


def _xla(q, k, v, window):
    index = jnp.arange(L)
    gap = index[:, None] - index
    view = AttentionContext(None, None, ((gap >= 0) & (gap < (window or L)))[None])
    return attention(q, KeyValues(k.swapaxes(1, 2), v.swapaxes(1, 2)), view, 0.2)


@pytest.mark.slow
def test_values_and_gradients_of_several_blocks(monkeypatch):
    monkeypatch.setattr(attention_kernels, "LONGEST", 128)
    test_values_and_gradients("pallas", 0)


@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("backend", list(INTERPRETED))
def test_values_and_gradients(backend, window):
    q, k, v = _inputs()
    kernel = INTERPRETED[backend]

    def loss(run):
        value = jax.value_and_grad(lambda *qkv: jnp.sum(jnp.sin(run(*qkv))), argnums=(0, 1, 2))
        return jax.jit(value)(q, k, v)

    ours, theirs = (
        loss(lambda *qkv: _xla(*qkv, window)),
        loss(lambda *qkv: kernel(*qkv, scale=0.2, window=window)),
    )
    chex.assert_trees_all_close(ours, theirs, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("sliding", [pytest.param((), marks=pytest.mark.slow), (True, False)])
def test_the_decoder_with_a_kernel(monkeypatch, sliding):
    """Layers of two kinds, one of them with a window, in one scan."""
    cfg = DecoderConfig(
        19,
        32,
        48,
        2,
        2,
        1,
        64,
        rope=Rope(100.0),
        sliding=sliding,
        window=6 if sliding else 0,
        attention="pallas",
    )
    monkeypatch.setattr(attention_kernels, "_splash", INTERPRETED["pallas"])
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    weights = {
        "params": jax.tree.map(lambda x: 4 * x, pretrain.init_params(cfg, mesh, jax.random.key(1)))
    }
    tokens = jax.random.randint(jax.random.key(2), (2, 24), 0, 19)
    plain = forward(dataclasses.replace(cfg, attention="xla"), weights, tokens)
    np.testing.assert_allclose(forward(cfg, weights, tokens), plain, rtol=1e-3, atol=1e-3)


def test_what_a_kernel_cannot_do_is_refused(tmp_path, capsys):
    for case, sentence in [
        (("pallas", 128, "bfloat16", "cpu"), "needs a tpu"),
        (("cudnn", 128, "bfloat16", "tpu"), "needs a gpu"),
        (("cudnn", 64, "float32", "gpu"), "needs bfloat16"),
        (("pallas", 80, "bfloat16", "tpu"), "multiple of 64"),
    ]:
        with pytest.raises(UserError, match=sentence):
            attention_kernels.check(*case)
    attention_kernels.check("xla", 80, "float32", "cpu")
    arguments = [
        "launch",
        "--config=configs/quickstart.py",
        f"--workdir={tmp_path}",
        "--config.base.attention=pallas",
    ]
    assert launch.main(arguments) == 2
    assert "needs a tpu, but this machine computes on its cpu" in capsys.readouterr().err
    with pytest.raises(UserError, match="base.attention has no choice 'splash'"):
        configuration.load("configs/quickstart.py", {"base.attention": "splash"})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_one_pass_places_what_rows_write_one_by_one(dtype):
    key = jax.random.key(0)
    held, new = (
        jax.random.randint(k, (3, 2, s, 4), -127, 128)
        for k, s in zip(jax.random.split(key), (20, 5), strict=True)
    )
    held, new = (
        KeyValues(x.astype(dtype) / (1 if dtype == jnp.int8 else 3), x.astype(dtype))
        for x in (held, new)
    )
    held, new = (jax.tree.map(lambda x: x.astype(dtype), kv) for kv in (held, new))
    at = jnp.array([0, 7, 15])
    chex.assert_trees_all_equal(held.write(new, at), held.write_by_matmul(new, at))


def test_picked_rows_are_those_that_numpy_indexes():
    slots = np.random.default_rng(0).standard_normal((5, 2, 12, 4), np.float32)
    held = KeyValues(jnp.asarray(slots), jnp.asarray(-slots)).quantised()
    found = held.picked(jnp.array([4, 0, 2]), 7)
    chex.assert_trees_all_equal(
        found, jax.tree.map(lambda x: np.asarray(x)[[4, 0, 2], :, :7], held)
    )


SLOTS_KERNEL = functools.partial(attention_kernels.cache_attention, interpret=True)


@pytest.mark.parametrize(
    ("queries", "length"),
    [(5, 40), *(pytest.param(1, length, marks=pytest.mark.slow) for length in (40, 1100))],
)
def test_slots_of_different_lengths(queries, length):
    """A shared prefix, slots of which some are empty and one is full, and the queries' own
    tokens.
    """
    keys = iter(jax.random.split(jax.random.key(0), 8))
    q = jax.random.normal(next(keys), (4, queries, H, DH))
    parts = [
        KeyValues(*(jax.random.normal(next(keys), (rows, K, size, DH)) for _ in "kv"))
        for rows, size in ((1, 7), (4, length), (4, queries))
    ]
    lengths = jnp.array([0, 3, length - 9, length])
    seen = (jnp.ones((1, 1, 7), bool), (jnp.arange(length) < lengths[:, None])[:, None])
    view = AttentionContext(None, None, jnp.tril(jnp.ones((1, queries, queries), bool)), seen)
    plain = attention(q, parts[2], view, 0.2, parts[:2])
    # What lies beyond a row's end is never read.
    hidden = jnp.arange(length)[None, None, :, None] >= lengths[:, None, None, None]
    parts[1] = jax.tree.map(lambda x: jnp.where(hidden, jnp.nan, x), parts[1])
    np.testing.assert_allclose(
        attention(q, parts[2], view, 0.2, parts[:2], SLOTS_KERNEL), plain, atol=2e-6
    )


@pytest.mark.slow
def test_conversations_with_the_slots_kernel(monkeypatch):
    """Sampled tokens and log-probs through the whole engine, which reads slots where they lie, as
    accelerators do.
    """
    cfg = DecoderConfig(19, 32, 48, 2, 4, 2, 64, rope=Rope(100.0))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    params = jax.tree.map(lambda x: 3 * x, pretrain.init_params(cfg, mesh, jax.random.key(1)))
    fed = []  # tokens that the kernel's callers fed to a row

    def kernel(q, *rest):
        fed.append(q.shape[2] // 2)
        return SLOTS_KERNEL(q, *rest)

    plan = scheduler.layout

    def in_place(*arguments, **options):
        chosen = plan(*arguments, **options)
        return dataclasses.replace(chosen, shape=dataclasses.replace(chosen.shape, copies=False))

    monkeypatch.setattr(attention_kernels, "cache_attention", kernel)
    monkeypatch.setattr(scheduler, "layout", in_place)
    prompts = [[1, 2, *range(3, 3 + n)] for n in (1, 9, 4)]

    def turns(backend):
        policy = Policy(dataclasses.replace(cfg, attention=backend), params, tokenizer=None)
        return policy.sample(prompts, Sampling(1.0), max_new_tokens=6, seed=2, stop_ids=[])

    plain = turns("xla")
    assert not fed
    ours = turns("pallas")
    assert {1, 16} <= set(fed)
    assert [t.ids for t in ours] == [t.ids for t in plain]
    np.testing.assert_allclose([t.logprobs for t in ours], [t.logprobs for t in plain], atol=1e-5)
