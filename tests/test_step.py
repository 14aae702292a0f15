"""The training step's options: parts of a batch, packed rows, what is kept for the backward pass,
products written out.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtransfer.config import reading as configuration
from subtransfer.models import attention, attention_kernels, decoder, kv_cache, primitives
from subtransfer.models.decoder import REMAT, DecoderConfig, Rope
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop, pretrain

CFG = DecoderConfig(64, 32, 48, 2, 4, 2, 8)
KEY = jax.random.key(3)


@functools.cache
def _weights(cfg, seed=0, scale=3):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return {
        "params": jax.tree.map(
            lambda x: scale * x, pretrain.init_params(cfg, mesh, jax.random.key(seed))
        )
    }


def _episodes(lengths, room=24):
    """Padded episodes of different lengths whose last token counts, and about half of the
    others.
    """
    rng = np.random.default_rng(0)
    tokens, mask = np.zeros((len(lengths), room), np.int32), np.zeros((len(lengths), room), bool)
    for row, weights, n in zip(tokens, mask, lengths, strict=True):
        row[:n] = rng.integers(1, 64, n)
        weights[1:n] = rng.random(n - 1) < 0.5
        weights[n - 1] = True
    return loop.Examples(tokens, mask)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradient(cfg, loss, params, teacher, tokens, mask, targets):
    def value(params):
        return loop.loss_fn(cfg, loss, params, None, teacher, None, tokens, mask, KEY, targets)

    return jax.value_and_grad(value, has_aux=True)(params)


def test_a_large_models_training_makes_logits_where_tokens_count(monkeypatch):
    examples, mesh = (
        _episodes([24, 5, 17, 11, 9, 20]),
        sharding.make_mesh(devices=jax.devices()[:1]),
    )
    recipe = loop.Recipe(loop.Loss("sft"), 4, 3, 1e-2)
    trained, asked = [], []
    train_steps = loop.train_steps

    def noted(cfg, loss, *arguments):
        asked.append(loss.positions)
        return train_steps(cfg, loss, *arguments)

    monkeypatch.setattr(loop, "train_steps", noted)
    for large in (1e9, 0):
        monkeypatch.setattr(decoder, "LARGE", large)
        state, frozen = loop.init_state(recipe, _weights(CFG)["params"], KEY)
        state, curves = loop.train(CFG, mesh, recipe, state, frozen, examples, 4, KEY)
        trained.append((state.trainable, curves))
    # Of a large model two steps a dispatch.
    assert asked == [0, 32, 32]
    for a, b in zip(jax.tree.leaves(trained[0]), jax.tree.leaves(trained[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", ["sft", "forward_kl", "reverse_kl", "jsd", "policy_gradient"])
def test_logits_of_the_tokens_that_count_are_enough(objective):
    """Loss, metrics and every gradient are those of logits at all positions."""
    examples = _episodes([24, 5, 17, 11])
    most = int(examples.loss_mask.sum(1).max())
    teacher = None if objective == "sft" else _weights(CFG, 1, 1)
    rng, shape = np.random.default_rng(1), examples.tokens.shape
    targets = {}
    if objective == "policy_gradient":
        targets["behavior_logprobs"] = -rng.random(shape).astype(np.float32)
    params = _weights(CFG, 0, 1)["params"]
    given = (params, teacher, examples.tokens, examples.loss_mask, targets)
    whole = _gradient(CFG, loop.Loss(objective), *given)
    for positions in (most, most + 3):
        some = _gradient(CFG, loop.Loss(objective, positions=positions), *given)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(some), strict=True):
            # Sums are taken in another order.
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max(), rtol=1e-5)
    fewer = _gradient(CFG, loop.Loss(objective, positions=most - 4), *given)
    assert abs(float(fewer[0][0]) - float(whole[0][0])) > 1e-4


def _of(examples, cfg=CFG, objective="forward_kl"):
    teacher = None if objective == "sft" else _weights(cfg, 1)
    params = _weights(cfg)["params"]
    return _gradient(
        cfg,
        loop.Loss(objective),
        params,
        teacher,
        examples.tokens,
        examples.loss_mask,
        examples.targets,
    )


def _close(one, two, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def _near(one, two, share):
    """Each array differs by less than a share of its norm: sums in another order move small entries
    by more.
    """
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.linalg.norm(a - b) <= share * np.linalg.norm(b)


@pytest.mark.parametrize("objective", ["forward_kl"])
def test_a_batch_in_parts_is_the_same_step(objective):
    """Parts with 3 and with 23 tokens that count: a mean of their means would be another step."""
    examples = _episodes([4, 24, 3, 23, 5, 22, 3, 24])
    after = []
    # Weights as a model begins with: with larger ones, two float32 gradients differ by more than is
    # allowed here.
    student, teacher = _weights(CFG, 0, 1), _weights(CFG, 1, 1)
    for parts in (1, 4):
        recipe = loop.Recipe(loop.Loss(objective, accumulate=parts), 1, 8, 1e-3)
        state, _ = loop.init_state(recipe, student["params"], KEY)
        batch = (examples.tokens[None], examples.loss_mask[None], np.full(1, 1e-3, np.float32))
        after.append(loop.train_steps(CFG, recipe.loss, state, None, teacher, None, *batch, KEY))
    (one, metrics), (four, others) = after
    _close(metrics, others, rtol=1e-5)
    # Adam's first step is the gradient's sign, so its first moment, which is the clipped gradient,
    # is compared.
    _near(four.opt_state[1].mu, one.opt_state[1].mu, 1e-5)


def test_packing_is_deterministic_and_loses_nothing():
    examples = _episodes([4, 24, 3, 12, 5, 11, 9])
    packed = examples.packed()
    assert len(packed) == 3 and packed.tokens.shape[1] == 24
    again = examples.packed()
    for name in ("tokens", "loss_mask", "segments"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(again, name))
    found = sorted(
        tuple(row[segment == n])
        for row, segment in zip(packed.tokens, packed.segments, strict=True)
        for n in range(1, segment.max() + 1)
    )
    lengths = [4, 24, 3, 12, 5, 11, 9]
    assert found == sorted(tuple(row[:n]) for row, n in zip(examples.tokens, lengths, strict=True))
    assert packed.loss_mask.sum() == examples.loss_mask.sum()


@pytest.mark.parametrize("backend", ["xla", pytest.param("pallas", marks=pytest.mark.slow)])
def test_packing_changes_neither_loss_nor_gradient(monkeypatch, backend):
    cfg = CFG
    if backend == "pallas":
        cfg = dataclasses.replace(
            CFG, num_heads=1, num_kv_heads=1, head_width=64, attention="pallas"
        )
        interpreted = functools.partial(attention_kernels._splash, interpret=True)
        monkeypatch.setattr(attention_kernels, "_splash", interpreted)
    examples = _episodes([4, 24, 3, 12, 5, 11, 9])
    packed = examples.packed()
    (loss, metrics), grads = _of(examples, cfg)
    (other, same), packed_grads = _of(packed, cfg)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    _close(metrics, same, rtol=1e-5)
    _near(packed_grads, grads, 1e-3)
    # And what stands in the rest of a row does matter when rows are not divided into segments.
    (blind, _), _ = _of(dataclasses.replace(packed, segments=np.ones_like(packed.segments)), cfg)
    assert abs(blind - loss) > 1e-3


# By default the one that keeps least.
@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(name, marks=[] if name == "full" else pytest.mark.slow)
        for name in REMAT
        if name != "none"
    ],
)
def test_what_is_made_again_is_the_same(policy):
    examples = _episodes([24, 20])
    plain, again = (
        _of(examples, dataclasses.replace(CFG, remat=name), "sft") for name in ("none", policy)
    )
    _close(plain[0], again[0], rtol=1e-5)
    _near(again[1], plain[1], 1e-4)


def test_names_of_policies():
    with pytest.raises(UserError, match="say full instead of true"):
        configuration.load("configs/quickstart.py", {"base.remat": "true"})
    with pytest.raises(UserError, match="base.remat has no choice 'ful'; the nearest is 'full'"):
        configuration.load("configs/quickstart.py", {"base.remat": "ful"})
    with pytest.raises(UserError, match="distill.accumulate=3 cannot be: it must be a divisor of"):
        configuration.load("configs/quickstart.py", {"distill.accumulate": "3"})
    with pytest.raises(UserError, match="cudnn takes no packed rows"):
        configuration.load(
            "configs/quickstart.py", {"distill.packing": "true", "base.attention": "cudnn"}
        )


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 7, 6, 4)])
def test_gradients_of_products(shape):
    rows, length, width, features = shape
    x, kernel, dy = (
        jax.random.normal(jax.random.key(i), s)
        for i, s in enumerate([(rows, length, width), (width, features), (rows, length, features)])
    )
    _, pull = jax.vjp(primitives.linear, x, kernel)
    x64, kernel64, dy64 = (np.asarray(a, np.float64) for a in (x, kernel, dy))
    _close(pull(dy), (dy64 @ kernel64.T, np.einsum("bld,blf->df", x64, dy64)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", sorted(primitives.ACTIVATIONS))
def test_gradients_of_a_gate(activation):
    """Against torch's activations."""
    torch = pytest.importorskip("torch")
    gate, up, dy = (
        np.random.default_rng(i).normal(size=(3, 5, 8)).astype(np.float32) for i in range(3)
    )
    out, pull = jax.vjp(functools.partial(primitives.gated, activation), gate, up)
    inputs = [torch.tensor(x, requires_grad=True) for x in (gate, up)]
    theirs = {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    }[activation](inputs[0]) * inputs[1]
    theirs.backward(torch.tensor(dy))
    _close(out, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)
    _close(pull(dy), tuple(x.grad.numpy() for x in inputs), rtol=1e-5, atol=1e-5)


def test_gradients_of_a_rotation():
    """Against transformers' own rotation of a Llama's queries."""
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    x, dy = (
        np.random.default_rng(i).normal(size=(2, 6, 4, 8)).astype(np.float32) for i in range(2)
    )
    positions = jnp.array([[0, 1, 2, 3, 4, 5], [7, 8, 9, 100, 101, 102]])
    view = attention.AttentionContext.build(Rope(), 0, 8, positions, None, positions, ())
    out, pull = jax.vjp(view.rotate, x)
    tensor = torch.tensor(x, requires_grad=True)
    twice = [
        torch.tensor(np.concatenate([np.asarray(half)[:, :, 0, 1]] * 2, axis=-1))
        for half in (view.cos, view.sin)
    ]
    theirs, _ = llama.apply_rotary_pos_emb(tensor, tensor, *twice, unsqueeze_dim=2)
    theirs.backward(torch.tensor(dy))
    _close(out, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)
    _close(pull(dy), (tensor.grad.numpy(),), rtol=1e-5, atol=1e-6)


def test_gradients_of_attention():
    """Grouped queries, against torch's own scaled_dot_product_attention."""
    torch = pytest.importorskip("torch")
    q, k, v, d_out = (
        np.random.default_rng(i).normal(size=(2, length, heads, 8)).astype(np.float32)
        for i, (length, heads) in enumerate([(6, 4), (6, 2), (6, 2), (6, 4)])
    )
    mask = np.tril(np.ones((2, 6, 6), bool))

    def ours(q, k, v):
        view = attention.AttentionContext(None, None, jnp.asarray(mask))
        return attention.attention(
            q, kv_cache.KeyValues(k.swapaxes(1, 2), v.swapaxes(1, 2)), view, 0.3
        )

    out, pull = jax.vjp(ours, q, k, v)
    inputs = [torch.tensor(x.swapaxes(1, 2).copy(), requires_grad=True) for x in (q, k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *inputs, attn_mask=torch.tensor(mask)[:, None], scale=0.3, enable_gqa=True
    )
    theirs.backward(torch.tensor(d_out.swapaxes(1, 2).copy()))
    _close(out, theirs.detach().numpy().swapaxes(1, 2), rtol=1e-4, atol=1e-5)
    _close(pull(d_out), tuple(x.grad.numpy().swapaxes(1, 2) for x in inputs), rtol=1e-4, atol=1e-5)
