"""Hugging Face directories, in and out: config.json, safetensors (one file or sharded), tokenizer and chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.errors import UserError
from subtransfer.models.decoder import DecoderConfig

_ARCHITECTURES = ("llama", "qwen2")
INDEX = "model.safetensors.index.json"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}: give a complete Hugging Face directory.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): copy it from the checkpoint again.") from None


def read_config(directory: Path) -> DecoderConfig:
    """The geometry in `config.json`.

    Raises:
      UserError: no such directory or file, or an architecture or option that the decoder does not have.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}: give a local Hugging Face directory.")
    path = directory / "config.json"
    raw = _read_json(path)

    def refuse(field: str, works: str) -> None:
        raise UserError(f"{path}: {field} {raw.get(field)!r} is not supported; what works is {works}.")

    if raw.get("model_type") not in _ARCHITECTURES:
        refuse("model_type", " or ".join(_ARCHITECTURES))
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        refuse("rope_parameters" if raw.get("rope_parameters") else "rope_scaling", "the default rotary positions")
    if raw.get("hidden_act", "silu") != "silu":
        refuse("hidden_act", "silu")
    if raw.get("use_sliding_window"):
        refuse("use_sliding_window", "false")
    if raw.get("mlp_bias"):
        refuse("mlp_bias", "false")
    qwen = raw["model_type"] == "qwen2"
    if not qwen and raw.get("attention_bias"):
        refuse("attention_bias", "false for llama (qwen2 has biases on q, k and v)")
    try:
        heads = raw["num_attention_heads"]
        return DecoderConfig(
            vocab_size=raw["vocab_size"],
            width=raw["hidden_size"],
            mlp_width=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_width=raw.get("head_dim") or raw["hidden_size"] // heads,
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            qkv_bias=qwen,
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise UserError(f"{path} lacks the field {error}: copy it from the checkpoint again.") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from None


# Our leaf -> (Hugging Face's name, whether the matrix is transposed), {} standing for the layer's number.
_LAYER = {
    ("attn_norm", "scale"): ("input_layernorm.weight", False),
    ("mlp_norm", "scale"): ("post_attention_layernorm.weight", False),
    **{(p, "kernel"): (f"self_attn.{p}_proj.weight", True) for p in "qkvo"},
    **{(p, "kernel"): (f"mlp.{p}_proj.weight", True) for p in ("gate", "up", "down")},
}
_BIASES = {(p, "bias"): (f"self_attn.{p}_proj.bias", False) for p in "qkv"}


def _shapes(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this geometry holds, by Hugging Face's name and shape."""
    d, f, q, kv = cfg.width, cfg.mlp_width, cfg.num_heads * cfg.head_width, cfg.num_kv_heads * cfg.head_width
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (cfg.vocab_size, d), "model.norm.weight": (d,)}
    if not cfg.tied_embeddings:
        shapes["lm_head.weight"] = (cfg.vocab_size, d)
    layer = {
        "input_layernorm.weight": (d,),
        "post_attention_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (q, d),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.o_proj.weight": (d, q),
        "mlp.gate_proj.weight": (f, d),
        "mlp.up_proj.weight": (f, d),
        "mlp.down_proj.weight": (d, f),
    }
    if cfg.qkv_bias:
        layer |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    for i in range(cfg.num_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def load_params(directory: Path, cfg: DecoderConfig) -> dict[str, Any]:
    """The decoder's parameter tree, float32 NumPy arrays, read tensor by tensor.

    Raises:
      UserError: a tensor or file is missing, superfluous, misshapen, truncated, or not finite.
    """
    directory = Path(directory)
    if (directory / INDEX).is_file():
        names = sorted(set(_read_json(directory / INDEX)["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    shapes, tensors = _shapes(cfg), {}
    for name in names:
        _read_file(directory / name, shapes, tensors, cfg)
    missing = sorted(set(shapes) - set(tensors))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{directory} lacks the tensor {missing[0]}{more}: its config.json asks for them.")

    def stack(name: str, transposed: bool) -> np.ndarray:
        parts = [tensors[f"model.layers.{i}.{name}"] for i in range(cfg.num_layers)]
        return np.stack([part.T if transposed else part for part in parts])

    layers: dict[str, dict[str, np.ndarray]] = {}
    for (module, leaf), (name, transposed) in {**_LAYER, **(_BIASES if cfg.qkv_bias else {})}.items():
        layers.setdefault(module, {})[leaf] = stack(name, transposed)
    params = {
        "embedding": tensors["model.embed_tokens.weight"],
        "layers": layers,
        "final_norm": {"scale": tensors["model.norm.weight"]},
    }
    if not cfg.tied_embeddings:
        params["lm_head"] = np.ascontiguousarray(tensors["lm_head.weight"].T)
    return params


def _read_file(path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: dict[str, np.ndarray], cfg) -> None:
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} is missing: copy the checkpoint again, with all of its safetensors files.")
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name == "lm_head.weight" and cfg.tied_embeddings:
                    continue  # some exporters write the tied head a second time
                if name not in shapes:
                    raise UserError(f"{path} holds the tensor {name}, which its config.json has no place for.")
                tensor = file.get_tensor(name)
                if tensor.shape != shapes[name]:
                    raise UserError(
                        f"{path}: {name} has the shape {list(tensor.shape)} where config.json asks for "
                        f"{list(shapes[name])}: the two files are not of one checkpoint."
                    )
                if tensor.dtype.name not in ("float32", "float16", "bfloat16"):
                    raise UserError(f"{path}: {name} is {tensor.dtype}; float32, float16 and bfloat16 work.")
                tensors[name] = tensor.astype(np.float32)
                if not np.isfinite(tensors[name]).all():
                    raise UserError(f"{path}: {name} holds NaN or infinite numbers: copy or export it again.")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or truncated ({error}): copy it again.") from None


def load_tokenizer(directory: Path, cfg: DecoderConfig | None):
    """The directory's own tokenizer with its chat template.

    Raises:
      UserError: no tokenizer, no chat template, or (with `cfg`) more tokens than the embedding has rows.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UserError(f"{directory} has no tokenizer: add tokenizer.json and tokenizer_config.json to it.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        # transformers raises many kinds of errors for a broken tokenizer, most of them far from the cause.
        raise UserError(f"The tokenizer in {directory} cannot be read ({error}): copy its files again.") from error
    if not tokenizer.chat_template:
        raise UserError(
            f"The tokenizer in {directory} has no chat template: use an instruct model's directory, or add "
            "chat_template.jinja to it."
        )
    if cfg is not None and len(tokenizer) > cfg.vocab_size:
        raise UserError(
            f"The tokenizer in {directory} has {len(tokenizer)} tokens but the model's embedding only {cfg.vocab_size} "
            "rows: they are not of one checkpoint."
        )
    return tokenizer


def config_json(cfg: DecoderConfig, tokenizer) -> dict[str, Any]:
    """The `config.json` that makes transformers build the same model."""
    return {
        "architectures": ["Qwen2ForCausalLM" if cfg.qkv_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if cfg.qkv_bias else "llama",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "tie_word_embeddings": cfg.tied_embeddings,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }


def save_checkpoint(directory: Path, cfg: DecoderConfig, params: Any, tokenizer) -> None:
    """Writes a Hugging Face directory; it appears whole or not at all.

    Raises:
      UserError: the directory exists and is not empty, or the geometry is one that transformers has no class for.
    """
    from safetensors.numpy import save_file

    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not empty: choose another directory to export to.")
    if cfg.qkv_bias and cfg.head_width * cfg.num_heads != cfg.width:
        raise UserError("Qwen2 has no head width of its own: a model with biases needs heads x head width = width.")
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(to_tensors(cfg, params), temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(config_json(cfg, tokenizer), indent=2) + "\n")
        tokenizer.save_pretrained(str(temporary))
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def to_tensors(cfg: DecoderConfig, params: Any) -> dict[str, np.ndarray]:
    """The parameter tree as Hugging Face's tensors by name."""
    tensors = {
        "model.embed_tokens.weight": np.asarray(params["embedding"]),
        "model.norm.weight": np.asarray(params["final_norm"]["scale"]),
    }
    if not cfg.tied_embeddings:
        tensors["lm_head.weight"] = np.asarray(params["lm_head"]).T
    for (module, leaf), (name, transposed) in {**_LAYER, **(_BIASES if cfg.qkv_bias else {})}.items():
        stacked = np.asarray(params["layers"][module][leaf])
        for i in range(cfg.num_layers):
            tensors[f"model.layers.{i}.{name}"] = stacked[i].T if transposed else stacked[i]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
