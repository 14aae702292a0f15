"""The decoder and its Hugging Face directories against transformers."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from subtransfer.distill.trainer import forward
from subtransfer.errors import UserError
from subtransfer.models import hf

# (architecture, heads, kv heads, tied, shard size, dtype)
CASES = [
    ("llama", 4, 4, True, None, torch.float32),
    ("llama", 4, 1, False, "20KB", torch.float32),
    ("qwen2", 6, 2, True, None, torch.float32),
    ("qwen2", 3, 3, False, "20KB", torch.bfloat16),
]


def _reference(kind, heads, kv, tied, dtype, vocab=53):
    common = dict(
        vocab_size=vocab, hidden_size=heads * 8, intermediate_size=40, num_hidden_layers=3, num_attention_heads=heads,
        num_key_value_heads=kv, tie_word_embeddings=tied, rms_norm_eps=1e-5, max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**common)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # norms and biases start at constants, which would hide mistakes
            p.copy_(torch.randn_like(p) * 0.2 + (1.0 if "norm" in name else 0.0))
    return model.to(dtype)


@pytest.mark.parametrize(("kind", "heads", "kv", "tied", "shards", "dtype"), CASES)
def test_logits_equal_transformers(tmp_path, kind, heads, kv, tied, shards, dtype):
    model = _reference(kind, heads, kv, tied, dtype)
    model.save_pretrained(tmp_path, **({"max_shard_size": shards} if shards else {}))
    assert bool(shards) == (tmp_path / hf.INDEX).is_file()
    cfg = hf.read_config(tmp_path)
    params = hf.load_params(tmp_path, cfg)
    tokens = np.random.default_rng(1).integers(0, 53, (2, 37))
    with torch.no_grad():
        same = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True).eval()
        expected = same(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(forward(cfg, params, jnp.asarray(tokens)), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_round_trip_is_bit_identical_and_loads_in_transformers(tmp_path, chat, kind):
    model = _reference(kind, 4, 2, True, torch.float32, vocab=len(chat.tokenizer))
    model.save_pretrained(tmp_path / "in")
    cfg = hf.read_config(tmp_path / "in")
    params = hf.load_params(tmp_path / "in", cfg)
    hf.save_checkpoint(tmp_path / "out", cfg, params, chat.tokenizer)
    before, after = load_file(tmp_path / "in/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name])
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    tokens = torch.arange(40)[None] % 53
    with torch.no_grad():
        np.testing.assert_allclose(again(tokens).logits, model(tokens).logits, atol=1e-5)
    assert hf.read_config(tmp_path / "out") == cfg
    tokenizer = hf.load_tokenizer(tmp_path / "out", cfg)
    assert tokenizer.get_vocab() == chat.tokenizer.get_vocab()
    assert tokenizer.chat_template == chat.tokenizer.chat_template
    with pytest.raises(UserError, match="not empty"):
        hf.save_checkpoint(tmp_path / "out", cfg, params, chat.tokenizer)


@pytest.fixture
def checkpoint(tmp_path, chat):
    model = _reference("llama", 4, 2, True, torch.float32, vocab=len(chat.tokenizer))
    model.save_pretrained(tmp_path / "m")
    chat.tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def _edit_config(path, **changes):
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | changes))


def _edit_tensors(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def _truncate(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def _no_template(path):
    for file in path.glob("*.jinja"):
        file.unlink()
    raw = json.loads((path / "tokenizer_config.json").read_text())
    raw.pop("chat_template", None)
    (path / "tokenizer_config.json").write_text(json.dumps(raw))


NORM = "model.norm.weight"
BROKEN = {
    "no directory": (shutil.rmtree, "There is no directory"),
    "no config": (lambda p: (p / "config.json").unlink(), "no config.json"),
    "config no JSON": (lambda p: (p / "config.json").write_text("{"), "not valid JSON"),
    "architecture": (lambda p: _edit_config(p, model_type="gpt2"), "model_type 'gpt2' is not supported"),
    "rope scaling": (lambda p: _edit_config(p, rope_parameters={"rope_type": "llama3"}), "rope_parameters"),
    "activation": (lambda p: _edit_config(p, hidden_act="gelu"), "hidden_act"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
    "truncated": (_truncate, "damaged or truncated"),
    "missing tensor": (lambda p: _edit_tensors(p, lambda t: t.pop(NORM)), f"lacks the tensor {NORM}"),
    "extra tensor": (lambda p: _edit_tensors(p, lambda t: t.update(more=t[NORM])), "the tensor more"),
    "shape": (lambda p: _edit_tensors(p, lambda t: t.update({NORM: t[NORM][:3]})), "has the shape"),
    "NaN": (lambda p: _edit_tensors(p, lambda t: t[NORM].fill(np.nan)), "NaN"),
    "integers": (lambda p: _edit_tensors(p, lambda t: t.update({NORM: t[NORM].astype(np.int32)})), "int32"),
    "no tokenizer": (lambda p: [f.unlink() for f in p.glob("tok*")], "no tokenizer"),
    "tokenizer no JSON": (lambda p: (p / "tokenizer.json").write_text("{"), "cannot be read"),
    "no template": (_no_template, "no chat template"),
    "small embedding": (lambda p: _edit_config(p, vocab_size=5), "embedding only 5"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_directories_are_named(checkpoint, case):
    change, message = BROKEN[case]
    change(checkpoint)
    with pytest.raises(UserError, match=message) as error:
        cfg = hf.read_config(checkpoint)
        hf.load_tokenizer(checkpoint, cfg)
        hf.load_params(checkpoint, cfg)
    assert "\n" not in str(error.value).strip()
