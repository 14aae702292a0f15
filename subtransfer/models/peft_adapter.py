"""PEFT adapter directories, in and out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.families import read_json
from subtransfer.models.hf_export import write_directory, write_tokenizer
from subtransfer.models.hf_load import DTYPES
from subtransfer.models.hf_names import leaves
from subtransfer.models.lora import Adapter
from subtransfer.runtime.errors import UserError

# The projections' modules in transformers' classes.
MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
# A module's name by its layer and projection: in a language model, and in a multimodal Gemma 3 of
# today's and of older versions of transformers.
_MODULE_NAME = "model.layers.{}.{}"
_NESTED_NAME = "model.language_model.layers.{}.{}"
_MODULE_NAMES = (_MODULE_NAME, _NESTED_NAME, "language_model.model.layers.{}.{}")
# Of a factor, by its module and its letter.
_PEFT_NAME = "base_model.model.{}.lora_{}.weight"
# Factors of the parts of a multimodal model that are not read.
_UNREAD = re.compile(r"\.(vision_tower|multi_modal_projector)\.")
# Fields of adapter_config.json that may say something, and what they may say: "any" are carried
# out below or do not concern what a trained adapter computes. The initialisations are those that
# leave the base's weights as they are; PiSSA, OLoRA, CorDA and LoftQ change them.
_FIELDS: dict[str, Any] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
    "megatron_core": ("megatron.core",),
    "inference_mode": "any",
    "auto_mapping": "any",
    "peft_version": "any",
    "revision": "any",
    "base_model_name_or_path": "any",
    "r": "any",
    "lora_alpha": "any",
    "lora_dropout": "any",
    "use_rslora": (True,),
    "rank_pattern": "any",
    "alpha_pattern": "any",
    "target_modules": "any",
    # Of initialisations and quantisations: without these, they say nothing.
    "loftq_config": "any",
    "eva_config": "any",
    "corda_config": "any",
    "qalora_group_size": "any",
}


def to_tensors(
    factors: Mapping[str, Any], *, nested: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a tree of factors as PEFT's tensors: each one's name and values.

    Args:
      factors: as of `lora.Adapter`.
      nested: the names are those of a multimodal model.
    """
    module_name = _NESTED_NAME if nested else _MODULE_NAME
    for target, pair in factors["layers"].items():
        for part, letter in (("a", "A"), ("b", "B")):
            for i, matrix in enumerate(np.asarray(pair[part])):
                module = module_name.format(i, MODULES[target])
                yield _PEFT_NAME.format(module, letter), np.ascontiguousarray(matrix.T)


def save_adapter(directory: str | Path, adapter: Adapter, base: str, tokenizer) -> None:
    """Writes LoRA factors as a PEFT adapter directory.

    Args:
      directory: a new or empty one.
      adapter: the factors.
      base: what `base_model_name_or_path` is to say: the directory of the model that the adapter
        belongs to.
      tokenizer: Hugging Face's.

    Raises:
      UserError: the directory exists and is not empty.
    """
    from safetensors.numpy import save_file

    nested = _is_multimodal(Path(base))
    tensors = dict(to_tensors(adapter.factors, nested=nested))
    targets: str | list[str] = sorted(f"{target}_proj" for target in adapter.factors["layers"])
    if nested:
        # By their ends alone, PEFT would adapt modules of the vision tower, too.
        modules = "|".join(MODULES[target] for target in sorted(adapter.factors["layers"]))
        targets = _NESTED_NAME.format(r"\d+", f"({modules})").replace(".", r"\.")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
    }

    def write(temporary: Path) -> None:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_tokenizer(temporary, tokenizer)

    write_directory(Path(directory), write)


def load_adapter(directory: str | Path, cfg: DecoderConfig) -> Adapter:
    """Loads a PEFT adapter directory: plain LoRA, rsLoRA, patterns of ranks and alphas.

    A field of adapter_config.json that could change what the adapter computes is either carried
    out here or refused by its name; none is passed over. Where modules differ in their rank or
    scale, all factors are padded with zeros to the widest rank, and `b` carries the scale.

    Returns:
      The adapter, its factors in float32 on the host.

    Raises:
      UserError: it is no LoRA adapter of a model of this geometry or has a feature that is not
        read, or a file is missing, damaged or not finite.
    """
    directory = Path(directory)
    config = read_adapter_config(directory)
    file = directory / "adapter_model.safetensors"
    tensors = _read_tensors(file)
    module_name = _module_name_in(tensors)
    modules = _targeted(directory, config, cfg, module_name)
    ranks = {name: rank for name, (rank, _) in modules.items()}
    scales = {name: scale for name, (_, scale) in modules.items()}
    widest = max(ranks.values())
    # One scale for all modules stays a number of the adapter; others go into the factors.
    shared = set(ranks.values()) == {widest} and len(set(scales.values())) == 1
    scale = scales[min(scales)] if shared else 1.0
    # [out, in] of each projection, as the files have kernels.
    shapes = {leaf.path[1]: leaf.shape for leaf in leaves(cfg) if leaf.path[-1] == "kernel"}
    factors: dict[str, dict[str, np.ndarray]] = {}
    known = set()
    for target, module in MODULES.items():
        names = [module_name.format(i, module) for i in range(cfg.num_layers)]
        if not any(name in modules for name in names):
            continue
        width_out, width_in = shapes[target]
        # A layer that the config leaves out keeps zeros, which change nothing.
        a = np.zeros((cfg.num_layers, width_in, widest), np.float32)
        b = np.zeros((cfg.num_layers, widest, width_out), np.float32)
        for i, name in enumerate(names):
            if name not in modules:
                continue
            rank = ranks[name]
            read = {}
            for part, shape in (("A", (rank, width_in)), ("B", (width_out, rank))):
                key = _PEFT_NAME.format(name, part)
                read[part] = _checked_tensor(file, tensors, key, shape)
                known.add(key)
            # PEFT has [out, in] where the tree has [in, out].
            a[i, :, :rank] = read["A"].T
            b[i, :rank] = read["B"].T if shared else scales[name] * read["B"].T
        factors[target] = {"a": a, "b": b}
    # Such as adapted embeddings: left out, the model would be another.
    unknown = sorted(name for name in set(tensors) - known if not _UNREAD.search(name))
    if unknown:
        raise UserError(
            f"{file} holds {unknown[0]}, which target_modules or this model has no place for: "
            "adapt attention and MLP projections only, or merge the adapter into its base."
        )
    dropout = float(config.get("lora_dropout", 0.0))
    return Adapter({"layers": factors}, widest, scale * widest, dropout)


def read_adapter_config(directory: str | Path) -> dict[str, Any]:
    """Reads an adapter_config.json whose every field is carried out or changes nothing.

    Raises:
      UserError: the file is missing or no JSON object, a field that every adapter needs is missing
        or no number, or one has a value that is not read.
    """
    path = Path(directory) / "adapter_config.json"
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{path}: peft_type {config.get('peft_type')!r} is not supported: use a LoRA adapter."
        )
    for field, value in config.items():
        # What PEFT can do is off where its field is null, false or empty.
        if value is None or value is False or value in ("", [], {}):
            continue
        allowed = _FIELDS.get(field, ())
        if allowed != "any" and not any(value is a or value == a for a in allowed):
            raise UserError(
                f"{path}: {field} {value!r} is not supported: merge the adapter into its base "
                "with PEFT (merge_and_unload), and use the merged checkpoint."
            )
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise UserError(
            f"{path}: base_model_name_or_path is {base!r}: write the path of the base's directory."
        )

    def need(field: str, what: str, good: bool) -> None:
        if not good:
            raise UserError(
                f"{path}: {field} is {config.get(field)!r}, where {what} is needed: copy the "
                "file from the adapter again."
            )

    need("r", "a whole number of at least 1", _is_rank(config.get("r")))
    need("lora_alpha", "a number", _is_number(config.get("lora_alpha")))
    dropout = config.get("lora_dropout", 0.0)
    need("lora_dropout", "a number from 0 to 1", _is_number(dropout) and 0 <= dropout <= 1)
    for field, what, good in (
        ("rank_pattern", "a whole number of at least 1 for each pattern", _is_rank),
        ("alpha_pattern", "a number for each pattern", _is_number),
    ):
        patterns = config.get(field) or {}
        is_table = isinstance(patterns, dict)
        need(field, what, is_table and all(good(value) for value in patterns.values()))
    targets = config.get("target_modules")
    is_list = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    need(
        "target_modules",
        "a list of modules or a pattern",
        bool(targets) and (isinstance(targets, str) or is_list),
    )
    return config


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_multimodal(base: Path) -> bool:
    """Whether a base's directory holds a multimodal Gemma 3, which nests its language model."""
    path = base / "config.json"
    return path.is_file() and read_json(path).get("model_type") == "gemma3"


def _module_name_in(tensors: dict[str, np.ndarray]) -> str:
    """How an adapter's file names the modules of the language model."""
    for name in _MODULE_NAMES:
        beginning = _PEFT_NAME.split("{")[0] + name.split("{")[0]
        if any(key.startswith(beginning) for key in tensors):
            return name
    return _MODULE_NAME


def _targeted(
    directory: Path, config: dict[str, Any], cfg: DecoderConfig, module_name: str
) -> dict[str, tuple[int, float]]:
    """The modules that a config adapts, by PEFT's rules: name -> (rank, scale of the product)."""
    targets = config["target_modules"]
    out: dict[str, tuple[int, float]] = {}
    try:
        for i in range(cfg.num_layers):
            for module in MODULES.values():
                name = module_name.format(i, module)
                if not _is_target(targets, name):
                    continue
                rank = _by_pattern(config.get("rank_pattern") or {}, name, config["r"])
                alpha = _by_pattern(config.get("alpha_pattern") or {}, name, config["lora_alpha"])
                # rsLoRA (2312.03732) divides by the root of the rank.
                divisor = math.sqrt(rank) if config.get("use_rslora") else rank
                out[name] = rank, alpha / divisor
    except re.error as error:
        raise UserError(
            f"{directory / 'adapter_config.json'}: a pattern of modules is no regular expression "
            f"({error}): correct it."
        ) from None
    if not out:
        raise UserError(
            f"{directory / 'adapter_config.json'}: target_modules {targets!r} names no projection "
            f"of this model ({', '.join(m.split('.')[1] for m in MODULES.values())})."
        )
    return out


def _is_target(targets: str | list[str], name: str) -> bool:
    """Whether `target_modules` names a module: a pattern for the whole name, or a list of ends."""
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return True
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _by_pattern(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except FileNotFoundError:
        if file.with_suffix(".bin").is_file():
            raise UserError(
                f"{file.with_suffix('.bin')} is a pickle, which is code and not read: save the "
                "adapter again with PEFT as adapter_model.safetensors."
            ) from None
        raise UserError(f"{file} is missing: copy the adapter again.") from None
    except SafetensorError as error:
        raise UserError(f"{file} is damaged or truncated ({error}): copy it again.") from None


def _checked_tensor(
    file: Path, tensors: dict[str, np.ndarray], key: str, shape: tuple[int, int]
) -> np.ndarray:
    """A factor in float32; UserError unless it is there, of this shape, and finite."""
    tensor = tensors.get(key)
    if tensor is None or tensor.shape != shape:
        raise UserError(
            f"{file}: {key} is missing or not of the shape {list(shape)}: copy the adapter again, "
            "and give the base that it was trained on."
        )
    if tensor.dtype.name not in DTYPES.values():
        raise UserError(
            f"{file}: {key} is {tensor.dtype.name}: save the adapter again in float32, float16 "
            "or bfloat16."
        )
    value = tensor.astype(np.float32)
    if not np.isfinite(value).all():
        raise UserError(
            f"{file}: {key} holds NaN or infinite numbers: copy or train the adapter again."
        )
    return value
