"""PEFT adapter directories, in and out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.families import read_json
from subtransfer.models.hf_export import write_directory, write_tokenizer
from subtransfer.models.hf_names import leaves
from subtransfer.models.lora import Adapter
from subtransfer.runtime.errors import UserError

# The projections' modules in transformers' classes.
_MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_PEFT_NAME = "base_model.model.model.layers.{}.{}.lora_{}.weight"


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

    tensors = {}
    for target, factors in adapter.factors["layers"].items():
        for part, letter in (("a", "A"), ("b", "B")):
            for i, matrix in enumerate(np.asarray(factors[part])):
                name = _PEFT_NAME.format(i, _MODULES[target], letter)
                tensors[name] = np.ascontiguousarray(matrix.T)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(f"{target}_proj" for target in adapter.factors["layers"]),
        "bias": "none",
        "inference_mode": True,
    }

    def write(temporary: Path) -> None:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_tokenizer(temporary, tokenizer)

    write_directory(Path(directory), write)


def load_adapter(directory: str | Path, cfg: DecoderConfig) -> tuple[Adapter, str]:
    """Loads a PEFT adapter directory.

    Returns:
      (the adapter, its factors in float32 on the host; its base's directory).

    Raises:
      UserError: it is no plain LoRA adapter of a model of this geometry, or a file is missing or
        damaged.
    """
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    directory = Path(directory)
    path = directory / "adapter_config.json"
    config = read_json(path)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("use_rslora"):
        raise UserError(f"{path}: only plain LoRA adapters are read.")
    file = directory / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: copy the adapter again.") from None
    except SafetensorError as error:
        raise UserError(f"{file} is damaged or truncated ({error}): copy it again.") from None
    # [out, in] of each projection, as the files have kernels.
    shapes = {leaf.path[1]: leaf.shape for leaf in leaves(cfg) if leaf.path[-1] == "kernel"}
    factors: dict[str, dict[str, np.ndarray]] = {}
    known = set()
    for target, module in _MODULES.items():
        if _PEFT_NAME.format(0, module, "A") not in tensors:
            continue
        width_out, width_in = shapes[target]
        factors[target] = {}
        for part, shape in (("A", (config["r"], width_in)), ("B", (width_out, config["r"]))):
            layers = []
            for i in range(cfg.num_layers):
                name = _PEFT_NAME.format(i, module, part)
                if name not in tensors or tensors[name].shape != shape:
                    raise UserError(f"{file}: {name} is missing or not of the shape {list(shape)}.")
                # PEFT has [out, in] where the tree has [in, out].
                layers.append(tensors[name].T.astype(np.float32))
                known.add(name)
            factors[target][part.lower()] = np.stack(layers)
    # Such as adapted embeddings: left out, the model would be another.
    unknown = sorted(set(tensors) - known)
    if unknown or not factors:
        raise UserError(
            f"{file} holds {unknown[0] if unknown else 'nothing'} that this model has no place for."
        )
    adapter = Adapter(
        {"layers": factors},
        config["r"],
        float(config["lora_alpha"]),
        float(config.get("lora_dropout", 0)),
    )
    return adapter, str(config.get("base_model_name_or_path") or "")
