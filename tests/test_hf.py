"""The decoder and its Hugging Face directories against transformers, for every family."""

import copy
import dataclasses
import functools
import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from subtransfer.models import chat as chat_format
from subtransfer.models import families, hf_export, hf_load, hf_names, stop_tokens
from subtransfer.models.attention import causal_mask
from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import Decoder, extend
from subtransfer.models.kv_cache import Cache
from subtransfer.rollout import saved_policy
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime.errors import UserError
from subtransfer.store import digests

from .families import GEOMETRIES, reference

TOKENS = np.random.default_rng(1).integers(
    0, 53, (2, 150)
)  # far past rotary thresholds and windows


@functools.partial(jax.jit, static_argnums=0)
def _apply(cfg, params, tokens, positions):
    mask = jnp.tril(jnp.ones((1, tokens.shape[1], tokens.shape[1]), bool))
    return Decoder(cfg).apply({"params": params}, tokens, positions, mask)


def _logits(directory, tokens, dtype="float32", first=0):
    cfg = families.read_config(directory, dtype)
    params = hf_load.load_params(directory, cfg)
    positions = np.broadcast_to(first + np.arange(tokens.shape[1]), tokens.shape)
    assert cfg.num_params == sum(x.size for x in jax.tree.leaves(params))
    return np.asarray(_apply(cfg, params, tokens, positions))


def _theirs(model, tokens=TOKENS, first=0):
    positions = torch.arange(first, first + tokens.shape[1])[None].expand(len(tokens), -1)
    with torch.no_grad():
        return model(torch.tensor(tokens), position_ids=positions).logits.float().numpy()


def _read(directory, dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, local_files_only=True
    ).eval()


# What families and geometries differ in, once by default: tied or not, each way of turning
# positions, normed queries and keys, windows, head widths of their own. The others with -m slow.
TELLING = (
    "llama mqa untied, llama3 rope",
    "llama odd heads, own head width",
    "qwen2 sliding upper layers",
    "qwen3 gqa, wide heads",
    "gemma3 window 7, linear rope",
)
BY_DEFAULT = [
    pytest.param(name, marks=[] if name in TELLING else pytest.mark.slow) for name in GEOMETRIES
]


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_logits_equal_transformers(tmp_path, name):
    model = reference(name)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / hf_names.INDEX).is_file()
    for first in (0, 100_000):  # far positions, where a frequency's last bit shows
        np.testing.assert_allclose(
            _logits(tmp_path, TOKENS, first=first), _theirs(model, first=first), atol=1e-4
        )


def _recognising(name):
    """`reference(name)` with a vocabulary row for each position of `TOKENS`: that position's last
    hidden state.

    At every position one of 300 rows is nearest, which one is decided by the whole depth of the
    model, and by a margin that rounding to bfloat16 does not bridge: what a trained model's sure
    predictions are. No input token has those rows.
    """
    model = reference(name, vocab=53 + TOKENS.size, seed=2)
    with torch.no_grad():
        states = model.model(torch.tensor(TOKENS)).last_hidden_state.flatten(0, 1)
        head = model.get_output_embeddings().weight
        head[53:] = 2 * states / states.norm(dim=-1, keepdim=True)
    return model


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if i == 9 else pytest.mark.slow) for i, n in enumerate(GEOMETRIES)],
)
def test_choices_in_bfloat16(tmp_path, name):
    """In bfloat16 the arg-max is that of transformers in bfloat16 and in float32 on at least 99.9%
    of the positions.

    Over random logits it cannot be: near ties are decided by rounding, and transformers' bfloat16
    differs there from its own float32. So all positions count where the logits stand apart; where
    they do not, ours may be no farther from float32 than theirs is.
    """
    for model, apart in (
        (_recognising(name), True),
        (reference(name, vocab=53 + TOKENS.size), False),
    ):
        shutil.rmtree(tmp_path)
        model.to(torch.bfloat16).save_pretrained(tmp_path)
        ours = _logits(tmp_path, TOKENS, "bfloat16")
        theirs, exact = (
            _theirs(_read(tmp_path, torch.bfloat16)),
            _theirs(_read(tmp_path, torch.float32)),
        )
        if apart:
            assert (exact.argmax(-1).ravel() == 53 + np.arange(TOKENS.size)).mean() > 0.99
            assert (ours.argmax(-1) == theirs.argmax(-1)).mean() >= 0.999
            assert (ours.argmax(-1) == exact.argmax(-1)).mean() >= 0.999
        else:
            assert np.abs(ours - exact).mean() <= 1.1 * np.abs(theirs - exact).mean()


# The one with most to go wrong by default, the others with -m slow.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if i == 10 else pytest.mark.slow) for i, n in enumerate(GEOMETRIES)],
)
def test_cached_decoding_equals_the_full_forward(tmp_path, name):
    """Prefill of rows of different lengths, then tokens one by one and four at once, past the
    window's edge.
    """
    reference(name).save_pretrained(tmp_path)
    cfg = families.read_config(tmp_path)
    weights = {"params": hf_load.load_params(tmp_path, cfg)}
    full = _logits(tmp_path, TOKENS)
    lengths = np.array([9, 6])
    present = np.arange(9)[None] < lengths[:, None]
    positions = np.broadcast_to(np.arange(9), (2, 9))
    step = jax.jit(extend, static_argnums=0)
    _, layers = step(cfg, weights, TOKENS[:, :9], positions, causal_mask(jnp.asarray(present)))
    past = [Cache(layers, present, positions)]
    for size in (1, 4, 4):
        at = lengths[:, None] + np.arange(size)
        causal = np.broadcast_to(np.tril(np.ones((size, size), bool)), (2, size, size))
        logits, layers = step(cfg, weights, np.take_along_axis(TOKENS, at, 1), at, causal, past)
        past.append(Cache(layers, np.ones((2, size), bool), at))
        np.testing.assert_allclose(logits, np.take_along_axis(full, at[..., None], 1), atol=1e-4)
        lengths = lengths + size


HALVES = [
    (name, dtype)
    for name in (*list(GEOMETRIES)[::6], *list(GEOMETRIES)[1::3])
    for dtype in (torch.bfloat16, torch.float16)
]


# By default one of each family and each dtype.
ROUND_TRIPS = {
    ("llama mqa untied, llama3 rope", torch.float32),
    ("qwen2 gqa tied", torch.float32),
    ("qwen3 gqa, wide heads", torch.bfloat16),
    ("gemma3 window 7, linear rope", torch.float16),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(*pair, marks=[] if pair in ROUND_TRIPS else pytest.mark.slow)
        for pair in [(name, torch.float32) for name in GEOMETRIES] + HALVES
    ],
)
def test_round_trip_is_bit_identical_and_loads_in_transformers(tmp_path, chat, name, dtype):
    model = reference(name, dtype, vocab=len(chat.tokenizer))
    model.save_pretrained(tmp_path / "in", max_shard_size="100KB")
    cfg = families.read_config(tmp_path / "in")
    params = hf_load.load_params(tmp_path / "in", cfg)
    hf_export.save_checkpoint(tmp_path / "out", cfg, params, chat.tokenizer, shard_bytes=60_000)
    before, after = (
        {k: v for f in d.glob("*.safetensors") for k, v in load_file(f).items()}
        for d in (tmp_path / "in", tmp_path / "out")
    )
    assert set(before) == set(after)
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype
        np.testing.assert_array_equal(tensor.view(np.uint8), after[key].view(np.uint8))
    assert families.read_config(tmp_path / "out") == cfg
    again = _read(tmp_path / "out", "auto")
    assert again.dtype == dtype and type(again) is type(model)
    np.testing.assert_array_equal(_theirs(again), _theirs(_read(tmp_path / "in", "auto")))
    tokenizer = hf_load.load_tokenizer(tmp_path / "out", cfg)
    assert tokenizer.get_vocab() == chat.tokenizer.get_vocab()
    assert tokenizer.chat_template == chat.tokenizer.chat_template
    with pytest.raises(UserError, match="not empty"):
        hf_export.save_checkpoint(tmp_path / "out", cfg, params, chat.tokenizer)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_an_exported_config_says_the_same_to_transformers_4(tmp_path, chat, name):
    """That version knows neither rope_parameters nor dtype; version 5 still reads the old names."""
    model = reference(name, vocab=len(chat.tokenizer))
    model.save_pretrained(tmp_path)
    cfg = families.read_config(tmp_path)
    old = families.config_json(cfg, chat.tokenizer, "bfloat16")
    del old["rope_parameters"], old["dtype"]
    assert old["torch_dtype"] == "bfloat16"
    theirs = transformers.CONFIG_MAPPING[cfg.family].from_dict(copy.deepcopy(old))
    assert theirs.rope_parameters == model.config.rope_parameters
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert families.read_config(tmp_path) == cfg
    if name == "llama mqa untied, llama3 rope":
        # As the public files of Llama 3.2 have it.
        assert old["rope_theta"] == 5000.0
        assert old["rope_scaling"] == {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        }


def test_the_language_model_of_a_multimodal_gemma(tmp_path):
    """Its public files nest the text config and the tensors' names, and hold a vision tower that is
    not read.
    """
    model = reference("gemma3 window 4")
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": raw, "vision_config": {}})
    )
    tensors = load_file(tmp_path / "model.safetensors")
    for prefix in ("language_model.", "model.language_model."):
        nested = {
            (prefix + k if prefix[0] == "l" else k.replace("model.", prefix, 1)): v
            for k, v in tensors.items()
        }
        nested["vision_tower.patch.weight"] = nested["multi_modal_projector.w"] = np.ones(
            3, np.float32
        )
        save_file(nested, tmp_path / "model.safetensors")
        np.testing.assert_allclose(_logits(tmp_path, TOKENS), _theirs(model), atol=1e-4)


@pytest.mark.slow
def test_a_policy_as_a_library_object(tmp_path, chat):
    """`logits` and greedy `generate` against transformers, on prompts of different lengths."""
    model = reference("qwen2 gqa tied", vocab=len(chat.tokenizer))
    model.save_pretrained(tmp_path)
    chat.tokenizer.save_pretrained(tmp_path)
    import subtransfer

    policy = subtransfer.load_policy(tmp_path)
    logits = policy.logits(TOKENS)
    assert logits.dtype == jnp.float32 and logits.shape == (2, 150, len(chat.tokenizer))
    np.testing.assert_allclose(logits, _theirs(model), atol=1e-4)
    prompts = [TOKENS[0, :n].tolist() for n in (3, 17, 40)]
    for prompt, reply in zip(
        prompts, policy.generate(prompts, max_new_tokens=12, stop_ids=[]), strict=True
    ):
        with torch.no_grad():
            ids = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt)),
                do_sample=False,
                max_new_tokens=12,
            )
        assert reply == ids[0, len(prompt) :].tolist()
    sampled = policy.generate(prompts, max_new_tokens=8, temperature=1.0, seed=3)
    assert sampled == policy.generate(prompts, max_new_tokens=8, temperature=1.0, seed=3)
    assert sampled != policy.generate(prompts, max_new_tokens=8, temperature=1.0, seed=4)
    stop = policy.generate(prompts[:1], max_new_tokens=12, stop_ids=[])[0][2]
    short = policy.generate(prompts[:1], max_new_tokens=12, stop_ids=[stop])[0]
    assert short[-1] == stop and len(short) <= 3
    for bad in (lambda: policy.logits([1, 2]), lambda: policy.logits([[10**6]]), lambda: policy.generate([[]]),
                lambda: policy.generate([[1]], max_new_tokens=0), lambda: policy.generate([[-1]])):  # fmt: skip
        with pytest.raises(UserError):
            bad()
    with pytest.raises(UserError, match="holds no policy"):
        load_policy(tmp_path / "nothing")
    (tmp_path / "old").mkdir()
    older = {
        "model": {**dataclasses.asdict(policy.cfg), "remat": False},
        "checkpoint": None,
        "base": None,
        "lora": None,
    }
    (tmp_path / "old" / "policy.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match="is of another version of this package .remat"):
        load_policy(tmp_path / "old")


def test_every_stop_token_of_a_model_ends_a_reply_and_is_exported(tmp_path, chat):
    """`generate` against transformers, which reads generation_config.json; an export carries it."""
    source, out = tmp_path / "in", tmp_path / "out"
    model = reference("qwen2 gqa tied", vocab=len(chat.tokenizer))
    model.save_pretrained(source)
    chat.tokenizer.save_pretrained(source)
    prompt = TOKENS[:1, :17]

    def theirs(directory):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(directory)
        ids = torch.tensor(prompt, dtype=torch.long)
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 12}
        with torch.no_grad():
            return loaded.generate(ids, **options)[0, ids.shape[1] :].tolist()

    file = source / "generation_config.json"
    file.unlink()
    free = theirs(source)
    stop = free[3]
    ends = {"eos_token_id": [chat.tokenizer.eos_token_id, stop], "pad_token_id": 0}
    file.write_text(json.dumps(ends))
    stopped = theirs(source)
    assert stopped[-1] == stop and len(stopped) < len(free) == 12
    policy = load_policy(source)
    assert policy.generate([prompt[0].tolist()], max_new_tokens=12) == [stopped]
    assert stop in ChatFormat(policy.tokenizer, chat.setting).stop_ids
    hf_export.save_checkpoint(out, policy.cfg, policy.merged(), policy.tokenizer)
    assert theirs(out) == stopped
    for name in ("generation_config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    # Without that file, transformers takes the ends from config.json; an export then names them.
    file.unlink()
    _edit_config(source, eos_token_id=ends["eos_token_id"])
    assert theirs(source) == stopped
    policy = load_policy(source)
    assert policy.generate([prompt[0].tolist()], max_new_tokens=12) == [stopped]
    hf_export.save_checkpoint(tmp_path / "again", policy.cfg, policy.merged(), policy.tokenizer)
    assert theirs(tmp_path / "again") == stopped
    assert json.loads((tmp_path / "again" / file.name).read_text())["eos_token_id"] == sorted(
        ends["eos_token_id"]
    )
    for wrong in ("[1]", '{"eos_token_id": "x"}', '{"eos_token_id": [true]}'):
        file.write_text(wrong)
        with pytest.raises(UserError, match="generation_config.json"):
            load_policy(source)


def test_an_export_carries_over_what_the_source_says_beside_the_weights(checkpoint, tmp_path):
    """Further templates, further fields of config.json, and names that transformers 4 reads."""
    kept = {
        "initializer_range": 0.5,
        "attention_dropout": 0.25,
        "bos_token_id": 7,
        "pretraining_tp": 1,
    }
    _edit_config(
        checkpoint, **kept, auto_map={"AutoConfig": "own.Config"}, transformers_version="3"
    )
    folder = checkpoint / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").write_text("{{ messages[0].content }}")
    path = checkpoint / "tokenizer_config.json"
    written = json.loads(path.read_text())
    assert written["tokenizer_class"] == "TokenizersBackend", "as version 5 writes"
    path.write_text(json.dumps(written | {"extra_special_tokens": ["<|user|>"]}))
    policy = load_policy(checkpoint)
    out = tmp_path / "out"
    hf_export.save_checkpoint(out, policy.cfg, policy.merged(), policy.tokenizer)
    config = json.loads((out / "config.json").read_text())
    assert {name: config[name] for name in kept} == kept
    assert not {"auto_map", "transformers_version"} & set(config)
    said = json.loads((out / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    # Version 4 expects a mapping under the new name.
    assert "extra_special_tokens" not in said
    assert said["additional_special_tokens"] == ["<|user|>"]
    before, after = (transformers.AutoTokenizer.from_pretrained(d) for d in (checkpoint, out))
    assert after.get_vocab() == before.get_vocab()
    assert set(after.all_special_tokens) == set(before.all_special_tokens)
    assert after.chat_template == before.chat_template
    assert set(after.chat_template) == {"default", "rag"}
    # Another geometry's fields are not taken: its ids would be wrong.
    other = dataclasses.replace(policy.cfg, max_positions=policy.cfg.max_positions // 2)
    hf_export.save_checkpoint(tmp_path / "other", other, policy.merged(), policy.tokenizer)
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    assert "initializer_range" not in config
    assert config["bos_token_id"] == policy.tokenizer.bos_token_id


@pytest.fixture
def checkpoint(tmp_path, chat):
    model = reference("llama mha tied", vocab=len(chat.tokenizer))
    model.save_pretrained(tmp_path / "m", max_shard_size="60KB")
    chat.tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_what_a_runs_policies_keep_of_a_checkpoints_tokenizer(checkpoint, tmp_path):
    """Whether it is asked for thoughts, and its stop tokens: also of a twin from scratch."""
    ends = [3, 7]
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    cfg = families.read_config(checkpoint)
    tokenizer = hf_load.load_tokenizer(checkpoint, cfg)
    assert chat_format.form_of(tokenizer).thinking == "template"
    chat_format.set_form(tokenizer, chat_format.Form("false"))
    for name in ("imported", "twin"):
        (tmp_path / name).mkdir()
    sha256 = digests.of_checkpoint(checkpoint, tmp_path)
    saved_policy.save_imported(tmp_path / "imported", cfg, checkpoint, sha256, tokenizer)
    saved_policy.save_base(tmp_path / "twin", cfg, hf_load.load_params(checkpoint, cfg), tokenizer)
    for name in ("imported", "twin"):
        read = saved_policy.load_policy_tokenizer(tmp_path / name)
        assert chat_format.form_of(read).thinking == "false"
        assert stop_tokens.stop_ids(read) == sorted({*ends, tokenizer.eos_token_id})
        loaded = load_policy(tmp_path / name).tokenizer
        assert chat_format.form_of(loaded).thinking == "false"
    path = tmp_path / "twin" / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"thinking": "maybe"}))
    with pytest.raises(UserError, match="of another version .*thinking 'maybe'"):
        load_policy(tmp_path / "twin")


def _edit_config(path, **changes):
    raw = json.loads((path / "config.json").read_text())
    raw = {k: v for k, v in (raw | changes).items() if v is not ...}
    (path / "config.json").write_text(json.dumps(raw))


def _shard(path, name="model.norm.weight"):
    return path / json.loads((path / hf_names.INDEX).read_text())["weight_map"][name]


def _edit_tensors(path, change, name="model.norm.weight"):
    """Changes the tensors of the file that holds `name`."""
    file = _shard(path, name)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def _other_head(tensors):
    tensors[HEAD] = tensors[EMBEDDING][::-1].copy()


def _truncate(path):
    data = _shard(path).read_bytes()
    _shard(path).write_bytes(data[: len(data) // 2])


NORM = "model.norm.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 2.0,
    "original_max_position_embeddings": 64,
}
BROKEN = {
    "no directory": (shutil.rmtree, "There is no directory"),
    "no config": (lambda p: (p / "config.json").unlink(), "no config.json"),
    "config no JSON": (lambda p: (p / "config.json").write_text("{"), "config.json is damaged"),
    "config a list": (lambda p: (p / "config.json").write_text("[]"), r"config.json does not hold .*\(it is a list and not an object\)"),
    "architecture": (lambda p: _edit_config(p, model_type="gpt2"), "'gpt2' is not supported: use a checkpoint of llama, qwen2, qwen3, gemma3_text"),
    "architecture a list": (lambda p: _edit_config(p, model_type=["llama"]), r"\['llama'\] is not supported"),
    "multimodal without a model": (lambda p: _edit_config(p, model_type="gemma3", text_config=[1]), "text_config is a list and not an object"),
    "config a folder": (lambda p: ((p / "config.json").unlink(), (p / "config.json").mkdir()), "is a folder where a file belongs"),
    "config without end": (lambda p: (p / "config.json").write_text("[" * 100_000), "config.json is damaged"),
    "quantized": (lambda p: _edit_config(p, quantization_config={"bits": 4}), "quantized weights"),
    "rope scaling": (lambda p: _edit_config(p, rope_parameters=YARN), "config.json: rope_parameters"),
    "llama3 rope without factor": (lambda p: _edit_config(p, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}), "config.json"),
    "activation": (lambda p: _edit_config(p, hidden_act="gelu"), "hidden_act 'gelu'"),
    "sliding llama": (lambda p: _edit_config(p, layer_types=["sliding_attention", "full_attention", "full_attention"], sliding_window=4), "layer_types 'sliding_attention'"),
    "not causal": (lambda p: _edit_config(p, is_causal=False), "is_causal False"),
    "head tied and another": (lambda p: _edit_tensors(p, _other_head, EMBEDDING), "ties them: write tie_word_embeddings false"),
    "head tied and smaller": (lambda p: _edit_tensors(p, lambda t: t.update({HEAD: t[EMBEDDING][:5]}), EMBEDDING), "ties them"),
    "field gone": (lambda p: _edit_config(p, hidden_size=...), "lacks the field 'hidden_size'"),
    "heads": (lambda p: _edit_config(p, num_key_value_heads=3), "config.json"),
    "type": (lambda p: _edit_config(p, hidden_size="wide"), "config.json"),
    "missing shard": (lambda p: _shard(p).unlink(), "safetensors is missing: copy the checkpoint again"),
    "index no JSON": (lambda p: (p / hf_names.INDEX).write_text('{"weight_map"'), "index.json is damaged"),
    "index of numbers": (lambda p: (p / hf_names.INDEX).write_text('{"weight_map": {"a": 1}}'), "has no weight_map"),
    "index names another file": (lambda p: (p / hf_names.INDEX).write_text('{"weight_map": {"a": "other.safetensors"}}'), "other.safetensors is missing"),
    "no weights": (lambda p: [f.unlink() for f in p.glob("model*")], "model.safetensors is missing"),
    "no header": (lambda p: _shard(p).write_bytes(b""), "damaged or truncated"),
    "index without a map": (lambda p: (p / hf_names.INDEX).write_text("{}"), "has no weight_map"),
    "truncated": (_truncate, "damaged or truncated"),
    "missing tensor": (lambda p: _edit_tensors(p, lambda t: t.pop(NORM)), f"lacks the tensor {NORM}"),
    "extra tensor": (lambda p: _edit_tensors(p, lambda t: t.update(more=t[NORM])), "the tensor more"),
    "shape": (lambda p: _edit_tensors(p, lambda t: t.update({NORM: t[NORM][:3]})), "has the shape"),
    "NaN": (lambda p: _edit_tensors(p, lambda t: t[NORM].fill(np.nan)), "NaN"),
    "dtype": (lambda p: _edit_tensors(p, lambda t: t.update({NORM: t[NORM].astype(np.int32)})), "is I32: export it again in float32, float16"),
    "no tokenizer": (lambda p: [f.unlink() for f in p.glob("tok*")], "no tokenizer"),
    "tokenizer no JSON": (lambda p: (p / "tokenizer.json").write_text("{"), "cannot be read"),
    "small embedding": (lambda p: _edit_config(p, vocab_size=5), "embedding only 5"),
}  # fmt: skip


# The file that each sentence must name; elsewhere it is the directory that lacks something.
CONFIG = "config.json"
FILES = {
    "config no JSON": CONFIG, "config a list": CONFIG, "architecture a list": CONFIG, "multimodal without a model": CONFIG,
    "config a folder": CONFIG, "config without end": CONFIG, "architecture": CONFIG, "quantized": CONFIG, "rope scaling": CONFIG,
    "not causal": CONFIG, "sliding llama": CONFIG, "head tied and another": "model-0000", "head tied and smaller": "model-0000",
    "llama3 rope without factor": CONFIG, "activation": CONFIG, "field gone": CONFIG, "heads": CONFIG, "type": CONFIG,
    "missing shard": "model-0000", "index no JSON": hf_names.INDEX, "index without a map": hf_names.INDEX, "index of numbers": hf_names.INDEX,
    "index names another file": "other.safetensors", "truncated": "model-0000", "no header": "model-0000", "extra tensor": "model-0000",
    "shape": "model-0000", "NaN": "model-0000", "dtype": "model-0000",
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_directories_are_named(checkpoint, case):
    change, message = BROKEN[case]
    change(checkpoint)
    with pytest.raises(UserError, match=message) as error:
        cfg = families.read_config(checkpoint)
        hf_load.load_tokenizer(checkpoint, cfg)
        hf_load.load_params(checkpoint, cfg)
    sentence = str(error.value)
    assert str(checkpoint / FILES.get(case, "")) in sentence
    assert re.search(r"\b(copy|give|use|add|export|leave|move)\b", sentence), "no remedy"
    assert "\n" not in sentence.strip() and sentence.endswith(".")


def test_weights_that_cannot_be_read_now_are_not_called_damaged(checkpoint, monkeypatch):
    """As of a file of another user's; the tests may run as root, who may read it."""
    opened = Path.open

    def refused(path, *arguments, **options):
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=r"safetensors cannot be read now \(.*Permission denied"):
        hf_load.load_params(checkpoint, families.read_config(checkpoint))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_code_of_a_checkpoint_never_runs(checkpoint, monkeypatch, tmp_path, file):
    """Although somebody (or a script's `yes`) answers what transformers would ask."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    ran = tmp_path / "ran"
    code = f"""
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
open({str(ran)!r}, "w").close()
class Tokenizer(PreTrainedTokenizerFast): pass
class Config(PreTrainedConfig): model_type = "own"
"""
    (checkpoint / "own.py").write_text(code)
    raw = json.loads((checkpoint / file).read_text())
    raw["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}
    raw["tokenizer_class"] = "Tokenizer"
    if file == "config.json":
        raw["auto_map"] = {"AutoConfig": "own.Config", **raw["auto_map"]}
    (checkpoint / file).write_text(json.dumps(raw))
    # transformers has classes of its own for what the config's file names.
    if file == "config.json":
        cfg = families.read_config(checkpoint)
        hf_load.load_tokenizer(checkpoint, cfg)
        hf_load.load_params(checkpoint, cfg)
    else:
        with pytest.raises(UserError, match="code of the checkpoint's own .* never run"):
            hf_load.load_tokenizer(checkpoint, None)
    assert not ran.exists()


def test_a_tied_head_that_is_written_twice_is_read(checkpoint):
    before = _logits(checkpoint, TOKENS)
    _edit_tensors(checkpoint, lambda t: t.update({HEAD: t[EMBEDDING].copy()}), EMBEDDING)
    np.testing.assert_array_equal(_logits(checkpoint, TOKENS), before)
    # The remedy that the refusal of another head names: the head is then used, as by transformers.
    _edit_tensors(checkpoint, _other_head, EMBEDDING)
    _edit_config(checkpoint, tie_word_embeddings=False)
    ours = _logits(checkpoint, TOKENS)
    assert np.abs(ours - before).max() > 0.1
    np.testing.assert_allclose(ours, _theirs(_read(checkpoint, torch.float32)), atol=1e-4)


def test_presets_are_the_public_geometries():
    """Parameter counts as published with the models (billions)."""
    from subtransfer.models.presets import PRESETS

    published = {
        "smollm2-135m": 0.135, "llama3.2-1b": 1.24, "llama3.2-3b": 3.21, "llama3.1-8b": 8.03, "llama3.1-70b": 70.6, "qwen2.5-0.5b": 0.49, "qwen2.5-1.5b": 1.54,
        "qwen2.5-3b": 3.09, "qwen2.5-7b": 7.62, "qwen2.5-14b": 14.8, "qwen2.5-32b": 32.8, "qwen2.5-72b": 72.7, "qwen3-0.6b": 0.6,
        "qwen3-1.7b": 1.72, "qwen3-4b": 4.02, "qwen3-8b": 8.19, "qwen3-14b": 14.8, "qwen3-32b": 32.8, "gemma3-1b": 1.0, "gemma3-4b": 3.88,
        "gemma3-12b": 11.77, "gemma3-27b": 27.0,
    }  # fmt: skip
    assert set(published) == set(PRESETS)
    for name, billions in published.items():
        assert round(PRESETS[name].num_params / 1e9, 2) == pytest.approx(billions, abs=0.06), name


def test_exported_files_may_be_read_by_whom_the_umask_lets(tmp_path, chat, cfg, params):
    before = os.umask(0o027)
    try:
        hf_export.save_checkpoint(tmp_path / "out", cfg, params, chat.tokenizer)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert tmp_path / "out" / "model.safetensors" in files
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o640)}
