"""The model families: their `config.json` read as a geometry, and written from one.

Geometry comes from `config.json` alone, never from a model's name; fields that a file leaves out
have the defaults of transformers' own config classes, as the public files of Gemma 3 need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtransfer.models.decoder import DecoderConfig, Rope
from subtransfer.runtime import json_files
from subtransfer.runtime.errors import UserError

# family (model_type) -> transformers' class of the causal language model
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers")
_ROPES = ("default", "linear", "llama3")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What an export does not take from its source's config.json: code, and what tells of the file.
_NOT_CARRIED = ("auto_map", "transformers_version", "_name_or_path", "quantization_config")
_REMEDY = "copy it from the checkpoint again"


def read_json(path: Path, shape: Any = dict) -> dict[str, Any]:
    """Reads a JSON object from a checkpoint's file.

    Args:
      path: the file.
      shape: what it must be, as in `json_files.misfit`.

    Raises:
      UserError: the file is missing, or holds no JSON of this shape.
    """
    value = json_files.read_json(path, shape, _REMEDY, default=None)
    if value is None:
        raise UserError(
            f"{path.parent} has no {path.name}: give a complete Hugging Face directory."
        )
    return value


def read_config(
    directory: str | Path, dtype: str = "float32", remat: str = "none", attention: str = "xla"
) -> DecoderConfig:
    """Reads the geometry in a directory's `config.json`.

    Of a multimodal Gemma 3, it is that of the language model.

    Args:
      directory: a local Hugging Face directory.
      dtype: how it is to be computed (see `DecoderConfig`).
      remat: see `DecoderConfig`.
      attention: see `DecoderConfig`.

    Raises:
      UserError: no such directory or file, or an architecture or option that the decoder does not
        have.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}: give a local Hugging Face directory.")
    path = directory / "config.json"
    raw = read_json(path)
    if "quantization_config" in raw:
        raise UserError(
            f"{path}: quantized weights are not supported: use the float32, float16 or bfloat16 "
            "checkpoint."
        )
    # A multimodal model: only its language model is read.
    if raw.get("model_type") == "gemma3":
        raw = read_json(path, {"text_config": dict})["text_config"]
    family = raw.get("model_type")
    # A file may have a list there, which is no key of a dict.
    if not isinstance(family, str) or family not in CLASSES:
        works = ", ".join(CLASSES)
        raise UserError(
            f"{path}: the architecture (model_type) {family!r} is not supported: use a checkpoint "
            f"of {works}."
        )
    lacking = [name for name in _REQUIRED if name not in raw]
    if lacking:
        raise UserError(
            f"{path} lacks the field {lacking[0]!r}: copy it from the checkpoint again."
        )
    return dataclasses.replace(
        _geometry(path, family, _standardised(path, raw), dtype, remat), attention=attention
    )


def _standardised(path: Path, raw: Mapping[str, Any]) -> Any:
    """Transformers' config object of a file.

    It has every field filled in, and rotary positions and layer types in one form.
    """
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[raw["model_type"]].from_dict(dict(raw))
    except Exception as error:
        # Its checks raise many kinds of errors, with texts of several lines.
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is not a valid {raw['model_type']} config ({reason}): copy it again."
        ) from error


def _geometry(path: Path, family: str, hf: Any, dtype: str, remat: str) -> DecoderConfig:
    """The geometry of a config object; UserError for what the decoder does not have."""

    def refuse(field: str, value: Any, works: str) -> None:
        raise UserError(
            f"{path}: {field} {value!r} is not supported: use a checkpoint with {works}."
        )

    # What the decoder has no variation for is refused: it would compute something else.
    gemma = family == "gemma3_text"
    field, works = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    if getattr(hf, field) != works:
        refuse(field, getattr(hf, field), works)
    for field in (
        "mlp_bias",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "use_bidirectional_attention",
    ):
        if getattr(hf, field, None):
            refuse(field, getattr(hf, field), f"no {field}")
    if getattr(hf, "attention_bias", False):
        refuse("attention_bias", True, "false (qwen2 has biases on q, k and v)")

    # transformers passes over it here, which is not what such a file asks for.
    if family == "llama" and "sliding_attention" in (getattr(hf, "layer_types", None) or ()):
        refuse("layer_types", "sliding_attention", "full attention in all layers of a llama")

    # Newer files may have it, and transformers then lets tokens see what follows them.
    if not getattr(hf, "is_causal", True):
        refuse("is_causal", hf.is_causal, "true: the decoder is causal")

    def rope(values: Mapping[str, Any]) -> Rope:
        kind = values.get("rope_type", "default")
        # Others (yarn, dynamic, longrope) change frequencies in ways that are not built here.
        if kind not in _ROPES or values.get("partial_rotary_factor", 1) != 1:
            refuse(
                "rope_parameters", dict(values), f"rope_type {', '.join(_ROPES)} over whole heads"
            )
        rest: dict[str, Any] = {}
        if kind != "default":
            rest["factor"] = float(values["factor"])
        if kind == "llama3":
            rest |= {name: float(values[name]) for name in ("low_freq_factor", "high_freq_factor")}
            rest["original_max_positions"] = int(values["original_max_position_embeddings"])
        return Rope(float(values["rope_theta"]), kind, **rest)

    try:
        types = list(getattr(hf, "layer_types", None) or [])
        sliding: tuple[bool, ...] = ()
        if "sliding_attention" in types:
            sliding = tuple(t == "sliding_attention" for t in types)
        ropes = hf.rope_parameters
        # Gemma 3 has one set of parameters for each type of layer, the others one for all.
        by_type = "full_attention" in ropes or "sliding_attention" in ropes
        main = ropes.get("full_attention", ropes.get("sliding_attention")) if by_type else ropes
        heads = hf.num_attention_heads
        return DecoderConfig(
            vocab_size=hf.vocab_size,
            width=hf.hidden_size,
            mlp_width=hf.intermediate_size,
            num_layers=hf.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=hf.num_key_value_heads or heads,
            # Older files leave it out.
            head_width=getattr(hf, "head_dim", None) or hf.hidden_size // heads,
            family=family,
            rope=rope(main),
            local_rope=rope(ropes["sliding_attention"]) if by_type and sliding else None,
            norm_eps=float(hf.rms_norm_eps),
            qkv_bias=family == "qwen2",
            qk_norm=family in ("qwen3", "gemma3_text"),
            post_norms=gemma,
            norm_offset=1.0 if gemma else 0.0,
            scaled_embeddings=gemma,
            activation="gelu_tanh" if gemma else "silu",
            query_scale=float(hf.query_pre_attn_scalar) ** -0.5 if gemma else None,
            sliding=sliding,
            window=int(hf.sliding_window) if sliding else 0,
            max_positions=int(hf.max_position_embeddings),
            tied_embeddings=bool(hf.tie_word_embeddings),
            dtype=dtype,
            remat=remat,
        )
    except KeyError as error:
        raise UserError(
            f"{path}: its rope_parameters lack {error}: copy the file from the checkpoint again."
        ) from None
    except (ValueError, ZeroDivisionError, TypeError) as error:
        raise UserError(
            f"{path} describes no model that can exist ({error}): copy it from the checkpoint "
            "again."
        ) from None


def _rope_json(rope: Rope) -> dict[str, Any]:
    out: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind != "default":
        out["factor"] = rope.factor
    if rope.kind == "llama3":
        out |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
        out["original_max_position_embeddings"] = rope.original_max_positions
    return out


def _old_rope_json(cfg: DecoderConfig) -> dict[str, Any]:
    """The rotary positions as transformers 4 reads them, which does not know rope_parameters.

    Its Gemma 3 scales the positions of full attention only.
    """
    scaling = None
    if cfg.rope.kind != "default":
        scaling = _rope_json(cfg.rope)
        del scaling["rope_theta"]
    out = {"rope_theta": cfg.rope.theta, "rope_scaling": scaling}
    if cfg.family == "gemma3_text":
        out["rope_local_base_freq"] = (cfg.local_rope or cfg.rope).theta
    return out


def source_fields(directory: Path, cfg: DecoderConfig) -> dict[str, Any]:
    """The fields of a source's `config.json` that a model of its geometry carries on.

    They say what the geometry does not: ids of special tokens, dropout, initialisation. Empty where
    the directory has no config of this geometry.
    """
    try:
        found = read_config(directory)
    except UserError:
        return {}
    if _geometry_json(found) != _geometry_json(cfg):
        return {}
    raw = read_json(directory / "config.json")
    # A multimodal model says some things of its language model at the top.
    fields = raw["text_config"] if raw["model_type"] == "gemma3" else raw
    ids = {name: raw[name] for name in _IDS if raw.get(name) is not None}
    return {name: value for name, value in {**fields, **ids}.items() if name not in _NOT_CARRIED}


def config_json(
    cfg: DecoderConfig, tokenizer, dtype: str, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Builds the `config.json` that makes transformers, 4 and 5, build the same model.

    What version 5 renamed is written under both names.

    Args:
      cfg: the geometry.
      tokenizer: whose special tokens' ids are written where the source names none.
      dtype: of the stored tensors, "float32", "float16" or "bfloat16".
      source: further fields (`source_fields`); what the geometry decides goes before them.

    Raises:
      UserError: the geometry is one that transformers has no class for.
    """
    if cfg.family == "qwen2" and cfg.head_width * cfg.num_heads != cfg.width:
        raise UserError(
            "Qwen2 has no head width of its own: a model with biases needs heads x head width = "
            "width."
        )
    ids: dict[str, Any] = {name: getattr(tokenizer, name) for name in _IDS}
    dtypes = {"dtype": dtype, "torch_dtype": dtype}
    return ids | dict(source or {}) | _geometry_json(cfg) | dtypes


def _geometry_json(cfg: DecoderConfig) -> dict[str, Any]:
    """The fields of a `config.json` that a geometry decides."""
    out: dict[str, Any] = {
        "architectures": [CLASSES[cfg.family]],
        "model_type": cfg.family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_width,
        "rms_norm_eps": cfg.norm_eps,
        "rope_parameters": _rope_json(cfg.rope),
        "tie_word_embeddings": cfg.tied_embeddings,
        "max_position_embeddings": cfg.max_positions,
        **_old_rope_json(cfg),
    }
    # Gemma's class has rotary parameters by type of layer, and no softcapping in version 3.
    if cfg.family == "gemma3_text":
        local = cfg.local_rope or cfg.rope
        assert cfg.query_scale is not None, "Gemma 3 states its query scale"
        out["rope_parameters"] = {
            "full_attention": _rope_json(cfg.rope),
            "sliding_attention": _rope_json(local),
        }
        out |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": round(cfg.query_scale**-2),
        }
        out |= {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    else:
        out["hidden_act"] = "silu"
    if cfg.sliding or cfg.family == "gemma3_text":
        types = cfg.sliding or (False,) * cfg.num_layers
        out["layer_types"] = ["sliding_attention" if s else "full_attention" for s in types]
        out["sliding_window"] = cfg.window or cfg.max_positions
    # Qwen's classes ignore windows unless this is set.
    if cfg.sliding and cfg.family.startswith("qwen"):
        out |= {"use_sliding_window": True, "max_window_layers": sum(not s for s in cfg.sliding)}
    return out
