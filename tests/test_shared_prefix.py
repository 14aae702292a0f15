"""What all rows begin with, computed once a step: the loss and every gradient are those of whole
rows.
"""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

from subtransfer.models import attention_kernels, families, hf_export, hf_load, lora
from subtransfer.training import common_prefix, loop

from .families import reference
from .test_attention import INTERPRETED

KEY = jax.random.key(3)
# Windows of 4 and 7 tokens, behind a prefix of 40.
MODELS = ("llama odd heads, own head width", "qwen3 gqa, wide heads", "gemma3 window 4")
LORA = lora.Tuning("lora", 3, 6.0, 0.0, ("q", "k", "v", "o", "gate", "up", "down"))


@pytest.fixture
def short(monkeypatch):
    """Prefixes of a few tokens are shared, too."""
    monkeypatch.setattr(common_prefix, "SHORTEST", 8)
    monkeypatch.setattr(common_prefix, "PREFIX_STEP", 8)
    monkeypatch.setattr(common_prefix, "ROW_STEP", 8)


def _examples(lengths=(60, 49, 64, 57), common=43, vocab=53, seed=0):
    """Episodes of different lengths that begin with the same tokens; some of the others count."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((len(lengths), 64), np.int32)
    mask = np.zeros(tokens.shape, bool)
    tokens[:, :common] = rng.integers(1, vocab, common)
    for row, counted, n in zip(tokens, mask, lengths, strict=True):
        row[common:n] = rng.integers(1, vocab, n - common)
        counted[common + 1 : n] = rng.random(n - common - 1) < 0.5
        counted[n - 1] = True
    return loop.Examples(tokens, mask)


def _model(folder, name, **how):
    model = reference(name)
    model.save_pretrained(folder)
    cfg = dataclasses.replace(families.read_config(folder, "float32"), **how)
    return model, cfg, hf_load.load_params(folder, cfg)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradient(cfg, loss, trainable, frozen, teacher, batch, targets, prefix=None):
    def value(trainable):
        given = (trainable, frozen, teacher, None)
        return loop.loss_fn(cfg, loss, *given, *batch, KEY, targets, prefix)

    return jax.value_and_grad(value, has_aux=True)(trainable)


def _near(one, two, share=1e-5):
    """Each array differs by less than a share of its norm."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True
    ):
        assert np.linalg.norm(a - b) <= share * np.linalg.norm(b), jax.tree_util.keystr(path)


def _both(cfg, loss, params, examples, teacher=None, rows=4):
    """(loss, metrics), gradients: of whole rows, and with the prefix once."""
    trainable, frozen = params, None
    if loss.tuning.method == "lora":
        trainable, frozen = lora.init_factors(KEY, params, LORA.targets, LORA.rank), params
        # A second factor of zeros has a first one without a gradient.
        trainable = jax.tree.map(lambda x: x + 0.1, trainable)
    at = common_prefix.cut([examples], rows)
    assert at is not None
    found = []
    for fed in (common_prefix.fed(examples, None), common_prefix.fed(examples, at)):
        batch = (fed.rows.tokens, fed.rows.loss_mask)
        given = (trainable, frozen, teacher, batch, fed.rows.targets, fed.prefix)
        found.append(_gradient(cfg, loss, *given))
    return found


@pytest.mark.parametrize("tuning", [lora.Tuning(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_whole_rows(tmp_path, short, name, tuning):
    _, cfg, params = _model(tmp_path, name)
    teacher = {"params": jax.tree.map(lambda x: 1.1 * x, params)}
    plain, shared = _both(
        cfg, loop.Loss("forward_kl", tuning=tuning), params, _examples(), teacher
    )
    _near(shared, plain)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_torch(tmp_path, short, name):
    model, cfg, params = _model(tmp_path, name)
    examples = _examples()
    _, ((loss, _), grads) = _both(cfg, loop.Loss("sft"), params, examples)
    wanted = np.where(examples.loss_mask, examples.tokens, -100)[:, 1:]
    logits = model(torch.tensor(examples.tokens, dtype=torch.long)).logits[:, :-1]
    targets = torch.tensor(wanted, dtype=torch.long).flatten()
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)
    named = {name: p.grad.numpy() for name, p in model.named_parameters()}
    for name, _, fetch in hf_export.to_tensors(cfg, grads):
        assert np.linalg.norm(fetch() - named[name]) <= 1e-4 * np.linalg.norm(named[name]), name


@pytest.mark.parametrize("remat", ["full", "projections"])
def test_what_a_layer_keeps_changes_nothing(tmp_path, short, remat):
    _, cfg, params = _model(tmp_path, MODELS[2], remat=remat)
    _near(*reversed(_both(cfg, loop.Loss("sft"), params, _examples())))


def test_packed_rows_lose_the_prefix_of_each_episode(tmp_path, short):
    """Rows of two or three episodes, and of one: each sees the prefix and itself."""
    _, cfg, params = _model(tmp_path, MODELS[2])
    lengths = (24, 25, 21, 30, 22, 60, 23)
    packed = _examples(lengths, common=18).packed()
    assert packed.segments.max() > 1
    plain, shared = _both(cfg, loop.Loss("sft"), params, packed, rows=len(packed))
    _near(shared, plain)
    fed = common_prefix.fed(packed, common_prefix.cut([packed], len(packed)))
    assert fed.rows.tokens.shape[1] < 64 and len(fed.prefix) == 16


def test_dropout_of_the_prefix_is_one_mask_for_all_rows(monkeypatch, tmp_path, short):
    """As of whole rows whose masks are alike, position by position."""
    _, cfg, params = _model(tmp_path, MODELS[1])
    examples, rows, prefix = _examples(), 4, 40
    table = np.random.default_rng(5).random((64, 96)) < 0.7

    def by_position(key, chance, shape):
        """Masks of [B, L, D] that are a function of a token's position."""
        if shape[1] == 64:
            return np.broadcast_to(table[:, : shape[2]], shape)
        share = shape[1] - 24
        mask = np.zeros(shape, bool)
        places = np.minimum(np.arange(rows * share), 63)
        mask[:, :share] = table[places, : shape[2]].reshape(rows, share, -1)
        mask[:, share:] = table[prefix:, : shape[2]]
        return mask

    monkeypatch.setattr(jax.random, "bernoulli", by_position)
    tuning = dataclasses.replace(LORA, dropout=0.3)
    plain, shared = _both(cfg, loop.Loss("sft", tuning=tuning), params, examples)
    _near(shared, plain)
    # And dropout there is.
    still, _ = _both(cfg, loop.Loss("sft", tuning=LORA), params, examples)
    assert abs(float(still[0][0] - plain[0][0])) > 1e-3


def test_dropout_draws_a_mask_for_each_row_and_one_for_the_prefix(tmp_path, short):
    """Two rows of the same tokens differ, so their own tokens' masks do; a key decides all."""
    _, cfg, params = _model(tmp_path, MODELS[1])
    examples = _examples()
    same = dataclasses.replace(examples, tokens=np.repeat(examples.tokens[2:3], 4, axis=0))
    fed = common_prefix.fed(same, common_prefix.Cut(40, 24))
    factors = lora.init_factors(KEY, params, LORA.targets, LORA.rank)
    weights = lora.attach(params, jax.tree.map(lambda x: x + 0.1, factors), alpha=6.0, rank=3)
    run = functools.partial(
        loop.forward, cfg, weights, fed.rows.tokens, prefix=fed.prefix, lora_dropout=0.3
    )
    one, again, other = run(key=KEY), run(key=KEY), run(key=jax.random.key(4))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one[0] - one[1]).max() > 1e-3
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("backend", ["pallas", "cudnn"])
def test_kernels_behind_a_shared_prefix(monkeypatch, tmp_path, short, backend):
    """Layers of two kinds, one with a window narrower than the prefix."""
    kernel = INTERPRETED[backend]
    monkeypatch.setattr(attention_kernels, f"_{'splash' if backend == 'pallas' else 'cudnn'}", kernel)
    _, cfg, params = _model(tmp_path, MODELS[2])
    plain, _ = _both(cfg, loop.Loss("sft"), params, _examples())
    cfg = dataclasses.replace(cfg, attention=backend)
    _, shared = _both(cfg, loop.Loss("sft"), params, _examples())
    _near(shared, plain, 2e-3)
