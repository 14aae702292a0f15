"""What all rows begin with, computed once a step: the loss and every gradient are those of whole
rows.
"""

import dataclasses
import functools
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import torch

from subtransfer.distillation import teacher_targets
from subtransfer.models import attention_kernels, families, hf_export, hf_load, lora, shared_prefix
from subtransfer.models.decoder import DecoderConfig
from subtransfer.probes import choice
from subtransfer.rollout import agreement
from subtransfer.training import common_prefix, loop, population

from .families import reference
from .test_attention import INTERPRETED

KEY = jax.random.key(3)
# Windows of 4 and 7 tokens, behind a prefix of 40.
MODELS = ("llama odd heads, own head width", "qwen3 gqa, wide heads", "gemma3 window 4")
LORA = lora.Tuning("lora", 3, 6.0, 0.0, ("q", "k", "v", "o", "gate", "up", "down"))


@pytest.fixture
def short(monkeypatch):
    """Prefixes of a few tokens are shared, too."""
    monkeypatch.setattr(shared_prefix, "SHORTEST", 8)
    monkeypatch.setattr(shared_prefix, "STEP", 8)
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
    plain, shared = _both(cfg, loop.Loss("forward_kl", tuning=tuning), params, _examples(), teacher)
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
    monkeypatch.setattr(
        attention_kernels, f"_{'splash' if backend == 'pallas' else 'cudnn'}", kernel
    )
    _, cfg, params = _model(tmp_path, MODELS[2])
    plain, _ = _both(cfg, loop.Loss("sft"), params, _examples())
    cfg = dataclasses.replace(cfg, attention=backend)
    _, shared = _both(cfg, loop.Loss("sft"), params, _examples())
    _near(shared, plain, 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_with_the_prefix_shared(tmp_path, short, mesh, accumulate):
    """The same curves and weights as without, in order, in parts, and in a population."""
    _, cfg, params = _model(tmp_path, MODELS[0])
    examples = _examples((60, 49, 64, 57, 52, 61, 47, 55))
    loss = loop.Loss("sft", tuning=LORA, accumulate=accumulate)
    found = []
    for share in (False, True):
        recipe = loop.Recipe(loss, 3, 4, 1e-3, share_prefix=share)
        learner = population.Learner("one", recipe, params, examples, KEY)
        outcome = population.train(cfg, mesh, [learner, learner])[1]
        state, frozen = loop.init_state(recipe, params, learner.init_key)
        order = learner.batch_order
        _, curves = loop.train(cfg, mesh, recipe, state, frozen, examples, 3, order.key)
        assert (loop.cut_together(cfg, [order])[0].cut is not None) == share
        found += [curves, outcome.curves]
    for curves in found[1:]:
        for name, values in curves.items():
            np.testing.assert_allclose(values, found[0][name], rtol=2e-5)


def test_teacher_targets_behind_a_shared_prefix(tmp_path, short, mesh):
    """Against a plain forward of whole rows, in batches of which the last is filled up."""
    _, cfg, params = _model(tmp_path, MODELS[2])
    weights, examples = {"params": params}, _examples((60, 49, 64, 57, 52, 61))
    given = (cfg, mesh, weights, examples, 5, 2.0, None, 4)
    targets = teacher_targets.compute(*given, share_prefix=True)
    logits = torch.tensor(np.asarray(loop.forward(cfg, weights, examples.tokens)))
    best = torch.topk(torch.log_softmax(logits / 2, dim=-1)[:, :-1], 5)
    here = examples.loss_mask[:, 1:]
    np.testing.assert_array_equal(targets.ids, best.indices.numpy()[here])
    np.testing.assert_allclose(targets.logprobs, best.values.numpy()[here], atol=1e-5)
    # What is checked later is of whole rows.
    assert teacher_targets.verify(cfg, weights, examples, targets, None)["max_gap"] < 1e-4


@pytest.mark.parametrize("lengths", [(60, 49, 64, 57, 52, 61), (60, 49)])
def test_log_probs_are_checked_behind_a_shared_prefix(tmp_path, short, lengths):
    _, cfg, params = _model(tmp_path, MODELS[1])
    examples, trajectories = _examples(lengths), []
    logits = np.asarray(loop.forward(cfg, {"params": params}, examples.tokens), np.float64)
    logp = torch.log_softmax(torch.tensor(logits), dim=-1).numpy()
    for row, n in enumerate(lengths):
        tokens, mask = examples.tokens[row, :n], examples.loss_mask[row, :n]
        sampled = np.zeros(n, np.float32)
        # As if the sampler had said 0.25 more.
        sampled[1:] = logp[row, np.arange(n - 1), tokens[1:]] + 0.25
        trajectories.append(
            types.SimpleNamespace(tokens=tokens, loss_mask=mask, behavior_logprobs=sampled)
        )
    found = agreement.compare(cfg, {"params": params}, trajectories, share_prefix=True)
    assert found["tokens"] == examples.loss_mask.sum()
    assert found["max_gap"] == found["mean_gap"] == 0.25


def test_the_choice_probe_behind_a_shared_prefix(monkeypatch, cfg, weights, chat, setting):
    # The embedded template has no system prompt, and its contexts a few tokens in common.
    monkeypatch.setattr(shared_prefix, "SHORTEST", 2)
    monkeypatch.setattr(shared_prefix, "STEP", 1)
    tasks = setting.tasks("ambiguous", "probe", 5, 0)
    shared = choice.build(tasks, chat, share_prefix=True)
    assert shared.prefix is not None and shared.seen == choice.build(tasks, chat).length
    # With large weights: an untrained model finds all acts alike.
    policies = []
    for scale in (3.0, 4.0):
        policies.append({"params": jax.tree.map(lambda x, s=scale: s * x, weights["params"])})
    plain = choice.logprobs(cfg, policies, choice.build(tasks, chat), 2)
    assert np.ptp(plain, axis=-1).min() > 0.1
    np.testing.assert_allclose(choice.logprobs(cfg, policies, shared, 3), plain, atol=1e-4)


def test_a_population_is_cut_where_all_its_learners_can_be(short):
    cfg = DecoderConfig(53, 16, 24, 2, 2, 1, 8)
    recipe = loop.Recipe(loop.Loss("sft"), 3, 4, 1e-3, share_prefix=True)
    orders = []
    for common in (43, 27):
        orders.append(loop.BatchOrder(recipe, _examples(common=common), 3, KEY))
    cuts = {order.cut for order in loop.cut_together(cfg, orders)}
    assert cuts == {common_prefix.Cut(24, 40)}


def test_short_prefixes_single_rows_and_early_losses_are_left_whole(monkeypatch):
    """With the package's own thresholds."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 53, (4, 512)).astype(np.int32)
    tokens[:, :330] = tokens[0, :330]
    mask = np.zeros(tokens.shape, bool)
    mask[:, 400:480] = True
    assert common_prefix.cut([loop.Examples(tokens, mask)], 4) == common_prefix.Cut(320, 160)
    assert common_prefix.cut([loop.Examples(tokens, mask)], 1) is None
    # The prediction of a token that counts must be of a row's own.
    mask[2, 320] = True
    assert common_prefix.cut([loop.Examples(tokens, mask)], 4) == common_prefix.Cut(288, 192)
    tokens[1, 127] += 1
    assert common_prefix.cut([loop.Examples(tokens, mask)], 4) == common_prefix.Cut(96, 384)
    tokens[1, 95] += 1
    assert common_prefix.cut([loop.Examples(tokens, mask)], 4) is None


EIGHT = """
import dataclasses, sys
import jax, numpy as np
from subtransfer.models.decoder import DecoderConfig, Rope
from subtransfer.models import shared_prefix
from subtransfer.models.lora import Tuning
from subtransfer.runtime import sharding
from subtransfer.training import common_prefix, loop, pretrain

shared_prefix.SHORTEST = shared_prefix.STEP = common_prefix.ROW_STEP = 8
llama = DecoderConfig(64, 32, 48, 2, 4, 2, 8)
qwen3 = dataclasses.replace(llama, family="qwen3", qk_norm=True)
gemma3 = dataclasses.replace(
    llama, family="gemma3_text", qk_norm=True, post_norms=True, norm_offset=1.0, window=5,
    sliding=(True, False), local_rope=Rope(100.0), scaled_embeddings=True,
)
rng = np.random.default_rng(0)
tokens = rng.integers(0, 64, (8, 64)).astype(np.int32)
tokens[:, :43] = tokens[0, :43]
mask = np.zeros(tokens.shape, bool)
mask[:, 45:] = rng.random((8, 19)) < 0.7
examples = loop.Examples(tokens, mask)
key = jax.random.key(3)
for cfg in (llama, qwen3, gemma3):
    for tuning in (Tuning(), Tuning("lora", 4, 8.0, 0.0)):
        wanted = None
        for shape in ((1, 1, 1), (1, 8, 1), (2, 2, 2)):
            mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
            params = pretrain.init_params(cfg, mesh, jax.random.key(0))
            for share in (False, True):
                # A shared prefix on several devices, against whole rows on one.
                if not share and wanted is not None:
                    continue
                loss = loop.Loss("sft", tuning=tuning)
                recipe = loop.Recipe(loss, 1, 8, 1e-3, share_prefix=share)
                state, frozen = loop.init_state(recipe, params, key)
                state = dataclasses.replace(
                    state, trainable=jax.tree.map(lambda x: x + 0.05, state.trainable)
                )
                state, curves = loop.train(cfg, mesh, recipe, state, frozen, examples, 1, key)
                # Adam's first moment is the clipped gradient.
                found = jax.device_get((curves["loss"], curves["grad_norm"], state.opt_state[1].mu))
                wanted = wanted or found
                for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                    gap = np.linalg.norm(a - b) / np.linalg.norm(b)
                    assert gap < 1e-5, (cfg.family, tuning.method, shape, gap)
print("equal")
"""


@pytest.mark.slow
def test_eight_devices_in_every_layout():
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", EIGHT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"
