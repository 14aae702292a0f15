"""The models of GGUF files as Hugging Face has them: `config.json` and tensors.

What llama.cpp changes when it converts a model is undone: the order of Llama's rotary coordinates,
the 1 in Gemma's norms, the scaling of Llama 3's frequencies, which it stores as numbers. Sources:
llama.cpp's convert_hf_to_gguf.py, and docs/gguf.md of ggml for the names of the metadata.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from subtransfer.models.families import CLASSES
from subtransfer.runtime.errors import UserError
from subtransfer.sources.gguf_reading import GGUFFile

# Names of a layer's tensors in every architecture: in GGUF, in Hugging Face's files.
_COMMON = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_BIASES = {f"attn_{p}.bias": f"self_attn.{p}_proj.bias" for p in "qkv"}
_QK_NORMS = {f"attn_{p}_norm.weight": f"self_attn.{p}_norm.weight" for p in "qk"}
_GEMMA_NORMS = {
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"
# What Llama 3.1 to 3.3 have beside their factor: low and high frequency factor. Another pair with
# other positions gives the same frequencies.
_LLAMA3 = (1.0, 4.0)
_LLAMA3_POSITIONS = [1 << i for i in range(4, 21)]
# Fields that would change what is computed, and that no model of these families has.
_REFUSED = (
    "expert_count",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
)
# llama.cpp knows Gemma 3 27B by its layers: its queries are scaled by the width of a head that the
# model would have by its width, and not by that which it has.
_LAYERS_OF_27B = 62
_PERIOD = 6  # of Gemma 3's layers, one is global


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How an architecture of GGUF files becomes one of Hugging Face.

    Attributes:
      family: the `model_type`.
      names: of a layer's tensors, in GGUF and in Hugging Face's files.
      theta: base of the rotary frequencies where the file does not say it.
      more: the fields of `config.json` that only this architecture has.
      permuted: rows of the query's and key's weights are in llama.cpp's order.
      norm_offset: what has been added to the norms' weights.
    """

    family: str
    names: dict[str, str]
    theta: float
    more: Callable[[GGUFFile, int], dict[str, Any]]
    permuted: bool = False
    norm_offset: float = 0.0


def architecture(file: GGUFFile) -> Architecture:
    """The architecture of a file.

    Raises:
      UserError: it is none of those that are known.
    """
    if file.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"{file.path}: the architecture {file.architecture!r} is not supported: use a file of "
            f"{known}."
        )
    return ARCHITECTURES[file.architecture]


def config_json(file: GGUFFile) -> dict[str, Any]:
    """The `config.json` of a file's model.

    Raises:
      UserError: the model is one that the decoder does not have, or a field is missing.
    """
    kind = architecture(file)
    for field in _REFUSED:
        if file.of_model(field, 0):
            _refuse(file, field, file.of_model(field), f"no {field}")
    heads, width = _number(file, "attention.head_count"), _number(file, "embedding_length")
    head_width = int(file.of_model("attention.key_length", width // max(heads, 1)))
    for field in ("attention.value_length", "rope.dimension_count"):
        if int(file.of_model(field, head_width)) != head_width:
            _refuse(file, field, file.of_model(field), f"{head_width}, the width of a head")
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{file.path} lacks the tensor token_embd.weight: {_AGAIN}.")
    ids = {name: _token_id(file, name) for name in ("bos", "eos", "padding")}
    return {
        "architectures": [CLASSES[kind.family]],
        "model_type": kind.family,
        "vocab_size": file.shape("token_embd.weight")[0],
        "hidden_size": width,
        "intermediate_size": _number(file, "feed_forward_length"),
        "num_hidden_layers": _number(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, "attention.head_count_kv", heads),
        "head_dim": head_width,
        "max_position_embeddings": _number(file, "context_length"),
        "rms_norm_eps": float(file.of_model("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": {"rope_theta": _theta(file, kind), **_scaling(file, head_width)},
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["padding"],
        "dtype": file.dtype("token_embd.weight"),
        **kind.more(file, head_width),
    }


def tensors(file: GGUFFile) -> Iterator[tuple[str, str]]:
    """Lists a file's tensors.

    Yields:
      (the name in the file, Hugging Face's name) for each.

    Raises:
      UserError: the architecture has no place for a tensor.
    """
    kind = architecture(file)
    for name in file.tensors:
        if name == _ROPE_FACTORS:
            continue  # they stand in the config
        if name in _OUTER:
            yield name, _OUTER[name]
            continue
        block, _, rest = name.partition(".")
        layer, _, last = rest.partition(".")
        if block != "blk" or not layer.isdecimal() or last not in kind.names:
            raise UserError(
                f"{file.path} holds the tensor {name}, for which a {file.architecture} model has "
                "no place here: use another file of the model, or its Hugging Face directory."
            )
        yield name, f"model.layers.{layer}.{kind.names[last]}"


def tensor(file: GGUFFile, name: str) -> np.ndarray:
    """A tensor by its name in the file, as Hugging Face's files have it.

    Raises:
      UserError: its type is one that cannot be dequantised.
    """
    kind, values = architecture(file), file.tensor(name)
    if kind.norm_offset and name.endswith("norm.weight"):
        # In float32, as half precision would round what is small against 1.
        return values.astype(np.float32) - np.float32(kind.norm_offset)
    if kind.permuted and name.endswith(("attn_q.weight", "attn_k.weight")):
        heads = _number(file, "attention.head_count")
        if name.endswith("attn_k.weight"):
            heads = _number(file, "attention.head_count_kv", heads)
        return _unpermuted(values, heads)
    return values


def _unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of Hugging Face: the halves of a head, and not its pairs, are turned."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


_AGAIN = "copy or download it again"


def _refuse(file: GGUFFile, field: str, value: Any, works: str) -> None:
    raise UserError(
        f"{file.path}: {file.architecture}.{field} {value!r} is not supported: use a model with "
        f"{works}."
    )


def _number(file: GGUFFile, field: str, *default: int) -> int:
    value = file.of_model(field, *default)
    if not isinstance(value, int):
        _refuse(file, field, value, "one number for all layers")
    return int(value)


def _token_id(file: GGUFFile, name: str) -> int | None:
    found = file.get(f"tokenizer.ggml.{name}_token_id", None)
    return None if found is None else int(found)


def _theta(file: GGUFFile, kind: Architecture) -> float:
    return float(file.of_model("rope.freq_base", kind.theta))


def _scaling(file: GGUFFile, head_width: int) -> dict[str, Any]:
    """How rotary frequencies are scaled, as `rope_parameters` says it."""
    factor = float(file.of_model("rope.scaling.factor", 0.0) or 0.0)
    kind = file.of_model("rope.scaling.type", "linear" if factor else "none")
    if _ROPE_FACTORS in file.tensors:
        return _llama3(file, head_width)
    if kind == "none":
        return {"rope_type": "default"}
    if kind != "linear" or not factor:
        _refuse(file, "rope.scaling.type", kind, "none or linear, or with Llama 3's factors")
    return {"rope_type": "linear", "factor": factor}


def _llama3(file: GGUFFile, head_width: int) -> dict[str, Any]:
    """The parameters that give a file's factors of frequencies."""
    stored = file.tensor(_ROPE_FACTORS).astype(np.float64)
    theta = _theta(file, architecture(file))
    factor, (low, high) = float(stored.max()), _LLAMA3
    for positions in _LLAMA3_POSITIONS:
        factors = llama3_factors(theta, head_width, factor, low, high, positions)
        if stored.shape == factors.shape and np.allclose(stored, factors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": positions,
            }
    raise UserError(
        f"{file.path}: its {_ROPE_FACTORS} is not Llama 3's scaling, the only one that is known: "
        "use the model's Hugging Face directory."
    )


def llama3_factors(
    theta: float, head_width: int, factor: float, low: float, high: float, positions: int
) -> np.ndarray:
    """By what Llama 3 divides its rotary frequencies, float64 [head_width / 2].

    Source: transformers' `_compute_llama3_parameters`.
    """
    waves = 2 * math.pi * theta ** (np.arange(0, head_width, 2) / head_width)
    smooth = np.clip((positions / waves - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _no_window(file: GGUFFile) -> None:
    if file.of_model("attention.sliding_window", 0):
        field = "attention.sliding_window"
        _refuse(file, field, file.of_model(field), "full attention in all layers")


def _of_llama(file: GGUFFile, head_width: int) -> dict[str, Any]:
    _no_window(file)
    return {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def _of_qwen(file: GGUFFile, head_width: int) -> dict[str, Any]:
    _no_window(file)
    return {"hidden_act": "silu", "use_sliding_window": False}


def _of_gemma3(file: GGUFFile, head_width: int) -> dict[str, Any]:
    layers = _number(file, "block_count")
    pattern = file.of_model("attention.sliding_window_pattern", _PERIOD)
    if isinstance(pattern, int):
        pattern = [bool((i + 1) % pattern) for i in range(layers)]
    local = float(file.of_model("rope.freq_base_swa", 1e4))
    main = {"rope_theta": _theta(file, ARCHITECTURES["gemma3"]), **_scaling(file, head_width)}
    width, heads = _number(file, "embedding_length"), _number(file, "attention.head_count")
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": width // heads if layers == _LAYERS_OF_27B else head_width,
        "sliding_window": _number(file, "attention.sliding_window"),
        "layer_types": ["sliding_attention" if s else "full_attention" for s in pattern],
        "rope_parameters": {
            "full_attention": main,
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        },
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


ARCHITECTURES = {
    "llama": Architecture("llama", _COMMON, 1e4, _of_llama, permuted=True),
    "qwen2": Architecture("qwen2", _COMMON | _BIASES, 1e4, _of_qwen),
    "qwen3": Architecture("qwen3", _COMMON | _QK_NORMS, 1e4, _of_qwen),
    "gemma3": Architecture(
        "gemma3_text", _COMMON | _GEMMA_NORMS | _QK_NORMS, 1e6, _of_gemma3, norm_offset=1.0
    ),
}
