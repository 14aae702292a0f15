"""LoRA: beside the base, merged into it, and against PEFT."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from subtransfer.models import families, lora, peft_adapter
from subtransfer.models.forward import forward
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop

from .families import reference

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
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
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
    config = families.read_json(tmp_path / "a" / "adapter_config.json")
    (tmp_path / "a" / "adapter_config.json").write_text(
        str(config | {"use_dora": True}).replace("'", '"').replace("True", "true")
    )
    with pytest.raises(UserError, match="only plain LoRA"):
        peft_adapter.load_adapter(tmp_path / "a", cfg)
