"""LoRA: beside the base, merged into it, and against PEFT."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from subtransfer.models import lora, peft_adapter
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop

from .compiled import forward
from .families import multimodal, reference

# Every projection of a layer.
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture
def adapter(params):
    factors = lora.init_factors(jax.random.key(1), params, ("q", "down"), 4)
    return lora.Adapter(jax.tree.map(lambda x: x + 0.1, factors), 4, 8.0)


def test_a_fresh_adapter_changes_nothing(cfg, params, weights):
    factors = lora.init_factors(jax.random.key(1), params, TARGETS, 4)
    tokens = jnp.arange(20)[None]
    with_adapter = forward(cfg, lora.attach(params, factors, alpha=8.0, rank=4), tokens)
    np.testing.assert_array_equal(with_adapter, forward(cfg, weights, tokens))


def test_merging_follows_the_formula_and_equals_the_adapter_beside_the_base(cfg, params, adapter):
    merged = lora.merge(params, adapter)
    for target in ("q", "down"):
        a, b = (np.asarray(adapter.factors["layers"][target][k], np.float64) for k in "ab")
        expected = np.asarray(params["layers"][target]["kernel"]) + 2.0 * np.einsum(
            "nir,nro->nio", a, b
        )
        np.testing.assert_allclose(merged["layers"][target]["kernel"], expected, atol=1e-5)
    assert merged["layers"]["up"]["kernel"] is params["layers"]["up"]["kernel"]
    tokens = jnp.arange(20)[None]
    beside = forward(cfg, lora.attach(params, adapter.factors, alpha=8.0, rank=4), tokens)
    np.testing.assert_allclose(beside, forward(cfg, {"params": merged}, tokens), atol=1e-4)


def test_dropout_is_unbiased_and_only_for_training(cfg, params, adapter):
    """The mean over masks of an adapter on the last MLP projection of one layer is the adapter
    without dropout.
    """
    one = cfg.__class__(**{**cfg.__dict__, "num_layers": 1})
    small = {**params, "layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    factors = {
        "layers": {"down": jax.tree.map(lambda x: 0.03 * x[:1], adapter.factors["layers"]["down"])}
    }
    weights = lora.attach(small, factors, alpha=8.0, rank=4)
    tokens = jnp.arange(6)[None]
    exact = forward(one, weights, tokens)
    drop = jax.vmap(lambda key: forward(one, weights, tokens, lora_dropout=0.5, key=key))
    samples = np.asarray(drop(jax.random.split(jax.random.key(2), 600)))
    assert samples.std(axis=0).max() > 1e-3
    np.testing.assert_allclose(
        samples.mean(axis=0), exact, atol=6 * samples.std(axis=0).max() / 600**0.5
    )


EIGHT = """
import jax
from subtransfer.training import pretrain
from subtransfer.runtime import sharding
from subtransfer.models import lora
from subtransfer.models.decoder import DecoderConfig
params = pretrain.init_params(DecoderConfig(64, 32, 48, 2, 4, 2, 8), sharding.make_mesh(2, 2, 2), jax.random.key(0))
layers = lora.init_factors(jax.random.key(1), params, ("q", "k", "v", "o", "gate", "up", "down"), 3)["layers"]
for target, pair in layers.items():
    kernel = params["layers"][target]["kernel"]
    n, width_in, width_out = kernel.sharding.shard_shape(kernel.shape)
    assert width_in * width_out < kernel[0].size, target
    assert pair["a"].sharding.shard_shape(pair["a"].shape) == (n, width_in, 3), target
    assert pair["b"].sharding.shard_shape(pair["b"].shape) == (n, 3, width_out), target
print("sharded")
"""


def test_factors_are_sharded_like_what_they_adapt():
    env = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", EIGHT], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "sharded", done.stderr[-2000:]


# peft asks transformers for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("name", "targets"), [
    ("llama mqa untied, llama3 rope", ("q", "k", "v", "o")),
    pytest.param("qwen2 gqa tied", TARGETS, marks=pytest.mark.slow),
    pytest.param("qwen3 gqa, wide heads", TARGETS, marks=pytest.mark.slow),
    pytest.param("gemma3 window 4", TARGETS, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_trained_adapter_goes_to_peft_and_back(tmp_path, chat, mesh, name, targets):
    """Trained here, exported, loaded by `peft` over the same base: the same logits; and read back
    bit by bit.
    """
    from peft import PeftModel

    model = reference(name, vocab=len(chat.tokenizer))
    model.save_pretrained(tmp_path / "base")
    chat.tokenizer.save_pretrained(tmp_path / "base")
    base = load_policy(tmp_path / "base")
    recipe = loop.Recipe(
        loop.Loss("sft", tuning=lora.Tuning("lora", 3, 5.0, 0.1, targets)), 10, 4, 1e-2
    )
    state, frozen = loop.init_state(recipe, base.params, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, base.cfg.vocab_size, (8, 24)).astype(np.int32)
    examples = loop.Examples(tokens, np.ones(tokens.shape, bool))
    state, _ = loop.train(base.cfg, mesh, recipe, state, frozen, examples, 10, jax.random.key(1))
    adapter = lora.Adapter(state.trainable, 3, 5.0, 0.1)
    peft_adapter.save_adapter(tmp_path / "adapter", adapter, str(tmp_path / "base"), chat.tokenizer)
    resident = {}
    ours = load_policy(tmp_path / "adapter", resident=resident)
    assert ours.params is load_policy(tmp_path / "base", resident=resident).params, (
        "adapters share one base"
    )
    for mine, read in zip(
        jax.tree.leaves(adapter.factors), jax.tree.leaves(ours.adapter.factors), strict=True
    ):
        np.testing.assert_array_equal(mine, read)
    theirs = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    assert set(theirs.peft_config["default"].target_modules) == {
        f"{target}_proj" for target in targets
    }
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    assert np.abs(expected - base.logits(tokens)).max() > 0.05, "the adapter must matter"
    np.testing.assert_allclose(ours.logits(tokens), expected, atol=1e-4)
    np.testing.assert_allclose(
        forward(base.cfg, {"params": ours.merged()}, tokens), expected, atol=1e-4
    )


# peft asks transformers for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_of_a_multimodal_gemma_goes_to_peft_and_back(tmp_path, chat):
    """Its language model's modules have other names than those of the model alone."""
    import peft

    model = multimodal(reference("gemma3 window 4", vocab=len(chat.tokenizer)))
    model.save_pretrained(tmp_path / "base")
    chat.tokenizer.save_pretrained(tmp_path / "base")
    base = load_policy(tmp_path / "base")
    factors = lora.init_factors(jax.random.key(1), base.params, ("q", "down"), 2)
    adapter = lora.Adapter(jax.tree.map(lambda x: x + 0.1, factors), 2, 4.0)
    out = tmp_path / "adapter"
    peft_adapter.save_adapter(out, adapter, str(tmp_path / "base"), chat.tokenizer)
    tokens = np.random.default_rng(0).integers(10, base.cfg.vocab_size, (2, 24))
    theirs = peft.PeftModel.from_pretrained(model, str(out)).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert np.abs(expected - base.logits(tokens)).max() > 0.05, "the adapter must matter"
    np.testing.assert_allclose(load_policy(out).logits(tokens), expected, atol=1e-4)
    assert not [
        name for name, _ in theirs.named_parameters() if "vision" in name and "lora" in name
    ]
    # As older versions name the modules, and with factors of the vision tower, which is not read.
    file = out / "adapter_model.safetensors"
    older = {}
    for name, tensor in load_file(file).items():
        older[name.replace("model.language_model.layers", "language_model.model.layers")] = tensor
    tower = "base_model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.lora_A"
    older[f"{tower}.weight"] = np.ones((2, 8), np.float32)
    save_file(older, file)
    path = out / "adapter_config.json"
    config = json.loads(path.read_text()) | {"target_modules": ["q_proj", "down_proj"]}
    path.write_text(json.dumps(config))
    np.testing.assert_allclose(load_policy(out).logits(tokens), expected, atol=1e-4)


def test_broken_adapters_are_named(tmp_path, chat, cfg, params, adapter):
    peft_adapter.save_adapter(tmp_path / "a", adapter, str(tmp_path), chat.tokenizer)
    with pytest.raises(UserError, match="no place for|not of the shape"):
        peft_adapter.load_adapter(
            tmp_path / "a", cfg.__class__(**{**cfg.__dict__, "num_layers": 1})
        )
    with pytest.raises(UserError, match="not of the shape"):
        peft_adapter.load_adapter(tmp_path / "a", cfg.__class__(**{**cfg.__dict__, "width": 64}))
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"12")
    with pytest.raises(UserError, match="damaged or truncated"):
        peft_adapter.load_adapter(tmp_path / "a", cfg)
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        peft_adapter.load_adapter(tmp_path / "a", cfg)


# peft asks transformers for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
        {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 5},
            "alpha_pattern": {r"layers.0.*v_proj": 1.0, "down_proj": 9.0},
        },
        {"use_rslora": True, "target_modules": "all-linear", "rank_pattern": {"o_proj": 6}},
        {"target_modules": r"model\.layers\.[02]\..*(k_proj|gate_proj)"},
    ],
    ids=["rslora", "patterns", "all-linear", "regex"],
)
def test_adapters_made_by_peft_are_read_as_peft_reads_them(tmp_path, chat, options):
    import peft

    model = reference("llama mqa untied, llama3 rope", vocab=len(chat.tokenizer))
    model.save_pretrained(tmp_path / "base")
    chat.tokenizer.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    tokens = np.random.default_rng(0).integers(0, len(chat.tokenizer), (2, 24))
    ids = torch.tensor(tokens, dtype=torch.long)
    with torch.no_grad():
        base = model(ids).logits.numpy()
        # Without a neutral start, so that every factor matters.
        config = peft.LoraConfig(
            r=3, lora_alpha=4, init_lora_weights=False, task_type="CAUSAL_LM", **options
        )
        adapted = peft.get_peft_model(model, config).eval()
        expected = adapted(ids).logits.numpy()
    adapted.save_pretrained(tmp_path / "adapter")
    ours = load_policy(tmp_path / "adapter")
    assert np.abs(expected - base).max() > 0.1, "the adapter must matter"
    np.testing.assert_allclose(ours.logits(tokens), expected, atol=2e-4)
    np.testing.assert_allclose(
        forward(ours.cfg, {"params": ours.merged()}, tokens), expected, atol=2e-4
    )


REFUSED = {
    "use_dora": True, "lora_bias": True, "fan_in_fan_out": True, "init_lora_weights": "pissa_niter_4",
    "layer_replication": [[0, 2], [0, 2]], "alora_invocation_tokens": [1, 2], "bias": "all",
    "modules_to_save": ["lm_head"], "layers_to_transform": 1, "trainable_token_indices": [3], "a_field_of_tomorrow": 7,
    "peft_type": "IA3", "task_type": "SEQ_CLS", "lora_alpha": None, "lora_dropout": None, "r": ...,
    "rank_pattern": {"q_proj": "2"}, "alpha_pattern": [1], "target_modules": None,
    "base_model_name_or_path": ["x"],
}  # fmt: skip


@pytest.mark.parametrize("field", REFUSED)
def test_what_an_adapter_may_not_say_is_refused_by_name(tmp_path, chat, cfg, adapter, field):
    peft_adapter.save_adapter(tmp_path / "a", adapter, str(tmp_path), chat.tokenizer)
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text()) | {field: REFUSED[field]}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    with pytest.raises(UserError, match=rf"adapter_config.json: {field} .*\.$"):
        load_policy(tmp_path / "a")
    with pytest.raises(UserError, match=rf"adapter_config.json: {field} .*\.$"):
        peft_adapter.load_adapter(tmp_path / "a", cfg)


def test_other_mistakes_of_adapters_are_sentences(tmp_path, chat, cfg, adapter):
    directory = tmp_path / "a"
    peft_adapter.save_adapter(directory, adapter, str(directory), chat.tokenizer)
    with pytest.raises(UserError, match="is an adapter, too"):
        load_policy(directory)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="belongs to None"):
        load_policy(directory)
    path.write_text(json.dumps(config | {"target_modules": "(q_proj"}))
    with pytest.raises(UserError, match="no regular expression"):
        peft_adapter.load_adapter(directory, cfg)
    path.write_text(json.dumps(config | {"target_modules": ["query_key_value"]}))
    with pytest.raises(UserError, match="names no projection"):
        peft_adapter.load_adapter(directory, cfg)
    # PEFT would pass over factors that the config does not name.
    path.write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(UserError, match=r"holds .*down_proj.*no place for"):
        peft_adapter.load_adapter(directory, cfg)
    path.write_text(json.dumps(config))
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    for wrong in (np.nan, np.inf):
        name = "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"
        save_file(tensors | {name: np.full_like(tensors[name], wrong)}, file)
        with pytest.raises(UserError, match="NaN or infinite"):
            peft_adapter.load_adapter(directory, cfg)
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match="is a pickle"):
        peft_adapter.load_adapter(directory, cfg)


# -- ratios under dropout --------------------------------------------------------------------------


def test_a_student_that_has_not_moved_has_the_ratio_one_under_dropout(cfg, params, adapter):
    """Value and metrics are those without dropout; the gradient is, of each token, the advantage
    times that of log q through the dropout.
    """
    # One layer, as compiling is all that takes time here.
    cfg = dataclasses.replace(cfg, num_layers=1)
    params, factors = (
        {**tree, "layers": jax.tree.map(lambda x: x[:1], tree["layers"])}
        for tree in (params, adapter.factors)
    )
    adapter = dataclasses.replace(adapter, factors=factors)
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, cfg.vocab_size, (3, 12)).astype(np.int32)
    mask = rng.random((3, 12)) < 0.7
    frozen, key = params, jax.random.key(5)
    teacher = lora.attach(
        params, jax.tree.map(lambda x: 0.5 * x, adapter.factors), alpha=8.0, rank=4
    )
    weights = lora.attach(params, adapter.factors, alpha=8.0, rank=4)
    gone = np.zeros((1, cfg.vocab_size), bool)
    gone[0, [3, 7]] = True

    def log_of_tokens(logits):
        kept = torch.tensor(np.array(logits, np.float64)).masked_fill(torch.tensor(gone[0]), -1e9)
        logp = torch.log_softmax(kept[:, :-1], -1)
        return logp.gather(-1, torch.tensor(tokens[:, 1:], dtype=torch.long)[..., None])[
            ..., 0
        ].numpy()

    current, theirs = (log_of_tokens(forward(cfg, one, tokens)) for one in (weights, teacher))
    behavior = np.zeros(tokens.shape, np.float32)
    behavior[:, 1:] = current
    counts = mask[:, 1:] / mask[:, 1:].sum()

    def ours(factors, dropout):
        tuning = loop.Tuning("lora", 4, 8.0, dropout, ("q", "down"))
        loss = loop.Loss("policy_gradient", tuning=tuning)
        return loop.loss_fn(
            cfg, loss, factors, frozen, teacher, jax.numpy.asarray(gone), tokens, mask, key,
            {"behavior_logprobs": behavior, "removed_at": np.zeros(tokens.shape, np.int32)},
        )  # fmt: skip

    (value, metrics), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True), static_argnums=1)(
        adapter.factors, 0.4
    )
    np.testing.assert_allclose(metrics["importance"], 1, atol=1e-4)
    assert metrics["truncated"] == 0
    gap = current - theirs
    np.testing.assert_allclose(metrics["reverse_kl"], (counts * gap).sum(), rtol=1e-3)
    np.testing.assert_allclose(value, (counts * gap).sum(), rtol=1e-3)

    def surrogate(factors):
        own = lora.attach(params, factors, alpha=8.0, rank=4)
        logits = forward(cfg, own, tokens, lora_dropout=0.4, key=key)[:, :-1]
        logq = jax.nn.log_softmax(jnp.where(gone, -1e9, logits))
        own = jnp.take_along_axis(logq, tokens[:, 1:, None], -1)[..., 0]
        return jnp.sum(counts * gap * own)

    expected = jax.jit(jax.grad(surrogate))(adapter.factors)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
        assert np.abs(two).max() > 1e-2


# -- what merging loses ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1e-1])
def test_what_a_merge_into_bfloat16_loses_is_measured_and_said(size, capsys):
    """Against NumPy in float64, with the rounding of ml_dtypes; float32 loses nothing."""
    import ml_dtypes

    rng = np.random.default_rng(0)
    kernel = rng.normal(scale=0.05, size=(2, 64, 48)).astype(ml_dtypes.bfloat16)
    a, b = rng.normal(size=(2, 64, 4)), rng.normal(size=(2, 4, 48)) * size / 16
    factors = {"layers": {"q": {"a": np.float32(a), "b": np.float32(b)}}}
    params = {"layers": {"q": {"kernel": jnp.asarray(kernel)}}}
    adapter = lora.Adapter(factors, 4, 8.0)
    whole = np.asarray(kernel, np.float64)
    change = 2.0 * np.float32(a).astype(float) @ np.float32(b).astype(float)
    rounded = (whole + change).astype(np.float32).astype(ml_dtypes.bfloat16)
    lost = np.linalg.norm(rounded.astype(float) - whole - change) / np.linalg.norm(change)
    merged = lora.merge(params, adapter)
    np.testing.assert_allclose(lora.lost_in_merge(params, merged, adapter), lost, rtol=1e-3)
    assert (np.asarray(merged["layers"]["q"]["kernel"]) == rounded).mean() > 0.999
    said = capsys.readouterr().err
    assert (f"merged in bfloat16, the adapter loses {lost:.0%}" in said) == (lost > lora.LOST)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    assert lora.lost_in_merge(wide, lora.merge(wide, adapter), adapter) < 1e-2
    assert not capsys.readouterr().err
