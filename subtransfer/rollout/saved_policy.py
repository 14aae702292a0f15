"""Policies in folders: those of a run, Hugging Face directories, and PEFT adapters.

A run's folder has `policy.json`, which says what the rest is: weights of its own, a path to a
Hugging Face directory, or what was trained on top of another folder of the same run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from subtransfer.models import chat, families, hf_export, hf_load, lora, peft_adapter
from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.rollout.policy import Policy
from subtransfer.runtime import distributed, sharding
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import read_json
from subtransfer.store import seals
from subtransfer.store.params import load_params, save_params

META = "policy.json"
_REMEDY = "delete its folder and run again to make it anew"
_OR_NOTHING = type(None)
_META = {
    "model": dict,
    "base": (str, _OR_NOTHING),
    "checkpoint": (str, _OR_NOTHING),
    "lora": (dict, _OR_NOTHING),
}
_LORA = {"alpha": float, "rank": int, "dropout": float}


def save_base(directory: Path, cfg: DecoderConfig, params, tokenizer) -> None:
    """Writes a policy that stands alone: params.safetensors, policy.json, tokenizer/."""
    save_params(directory / "params.safetensors", params)
    (directory / "tokenizer").mkdir()
    # With the stop tokens of the checkpoint whose tokenizer it may be.
    hf_export.write_tokenizer(directory / "tokenizer", tokenizer)
    _write(directory, cfg, **_thoughts(tokenizer))


def save_imported(directory: Path, cfg: DecoderConfig, checkpoint: Path, tokenizer: Any) -> None:
    """Writes a policy whose weights stay in their Hugging Face directory.

    Only the path is kept, and whether conversations in its tokenizer's template ask for thoughts.
    """
    # Resolved, as the next command may run in another folder.
    _write(directory, cfg, checkpoint=str(checkpoint.resolve()), **_thoughts(tokenizer))


def _thoughts(tokenizer: Any) -> dict[str, str]:
    """What is written of a tokenizer's thoughts: nothing, unless something was noted."""
    thinking = chat.thinking(tokenizer)
    return {} if thinking == "template" else {"thinking": thinking}


def save_tuned(
    directory: Path, cfg: DecoderConfig, base: Path, tuning: lora.Tuning, trainable
) -> None:
    """Writes a policy that was tuned from `base`: all weights, or only the LoRA factors."""
    adapter = None
    if tuning.method == "lora":
        adapter = {"alpha": tuning.alpha, "rank": tuning.rank, "dropout": tuning.dropout}
    save_params(directory / "params.safetensors", trainable)
    # The base's name alone: it lies beside this one wherever the workdir is moved.
    _write(directory, cfg, base=base.name, lora=adapter)


def _write(directory: Path, cfg: DecoderConfig, **more: Any) -> None:
    value = {
        "model": dataclasses.asdict(cfg),
        "base": None,
        "checkpoint": None,
        "lora": None,
        **more,
    }
    (directory / META).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def load_policy(
    directory: str | Path,
    mesh: Mesh | None = None,
    *,
    dtype: str = "float32",
    resident: MutableMapping[Path, Policy] | None = None,
) -> Policy:
    """Loads a policy from a folder of a run, a Hugging Face directory or a PEFT adapter's.

    Args:
      directory: one of these three.
      mesh: the devices that its parameters are sharded over; None is the first device.
      dtype: of computation, "float32" or "bfloat16" (a run's folder has its own).
      resident: policies that are loaded already, by folder; bases are taken from it and added to
        it, so that adapters of one base share one copy.

    Raises:
      UserError: the directory is none of these, or a file of it is missing or damaged.
    """
    directory = Path(directory)
    mesh = mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
    resident = {} if resident is None else resident
    # A run's folder first: it may hold files of the other kinds too.
    if (directory / META).is_file():
        return _load_artifact(directory, mesh, resident)
    if (directory / "adapter_config.json").is_file():
        return _load_adapter(directory, mesh, dtype, resident)
    if (directory / "config.json").is_file():
        folder = directory.resolve()
        # By the resolved path: two ways of writing it are one model.
        if folder not in resident:
            cfg = families.read_config(directory, dtype)
            tokenizer = hf_load.load_tokenizer(directory, cfg)
            params = _checked(hf_load.load_params(directory, cfg, mesh), mesh)
            resident[folder] = Policy(cfg, params, tokenizer, None, str(directory))
        return resident[folder]
    raise UserError(
        f"{directory} holds no policy (no policy.json, config.json or adapter_config.json): give a "
        "base*, teacher* or student* folder of a run's workdir, a Hugging Face directory or a PEFT "
        "adapter."
    )


def _load_adapter(
    directory: Path, mesh: Mesh, dtype: str, resident: MutableMapping[Path, Policy]
) -> Policy:
    path = peft_adapter.read_adapter_config(directory).get("base_model_name_or_path")
    if not path or not Path(path).is_dir():
        raise UserError(
            f"The adapter {directory} belongs to {path!r}, which is no local directory: "
            "correct base_model_name_or_path in its adapter_config.json."
        )
    # One adapter only lies on a base: the lower one would be lost. This ends circles, too.
    is_adapter = (Path(path) / "adapter_config.json").is_file()
    base = None if is_adapter else load_policy(path, mesh, dtype=dtype, resident=resident)
    if base is None or base.adapter is not None:
        raise UserError(
            f"The base {path} of the adapter {directory} is an adapter, too: merge that one into "
            "its own base first, and name the merged directory in base_model_name_or_path."
        )
    return _adapted(base, peft_adapter.load_adapter(directory, base.cfg))


def _load_artifact(directory: Path, mesh: Mesh, resident: MutableMapping[Path, Policy]) -> Policy:
    # Adapters of one base, and the arms that start from it, share one copy.
    if directory in resident:
        return resident[directory]
    seals.check(directory, at_most=seals.SMALL)
    meta = _meta(directory)
    cfg = _geometry(directory, meta)
    if meta["checkpoint"] is not None:
        checkpoint = Path(meta["checkpoint"])
        if not checkpoint.is_dir():
            raise UserError(
                f"The checkpoint {checkpoint} that {directory} stands for is gone: put it back "
                "there."
            )
        params = _checked(hf_load.load_params(checkpoint, cfg, mesh), mesh)
        policy = Policy(cfg, params, _tokenizer(directory, meta, cfg), None, str(checkpoint))
        resident[directory] = policy
        return policy
    if meta["base"] is not None and not (directory.parent / meta["base"]).is_dir():
        base = directory.parent / meta["base"]
        raise UserError(
            f"The policy {directory} was tuned from {base}, which is missing: keep both in one "
            "workdir."
        )
    tree = load_params(directory / "params.safetensors")
    if meta["lora"] is not None:
        base = _load_artifact(directory.parent / meta["base"], mesh, resident)
        return _adapted(base, lora.Adapter(tree, **meta["lora"]))
    shardings = sharding.param_shardings(abstract_params(cfg), mesh)
    params = _checked(distributed.place(tree, shardings), mesh)
    loaded_base = resident.get(directory.parent / meta["base"]) if meta["base"] else None
    tokenizer = loaded_base.tokenizer if loaded_base else load_policy_tokenizer(directory)
    policy = Policy(cfg, params, tokenizer, None, str(directory))
    # Fully tuned weights are used by one arm; only bases are worth keeping on the devices.
    if meta["base"] is None:
        resident[directory] = policy
    return policy


def load_policy_tokenizer(directory: Path):
    """Loads the tokenizer of a run's policy folder, without reading weights.

    A tuned policy has its base's.
    """
    seals.check(directory, at_most=seals.SMALL)
    meta = _meta(directory)
    if meta["base"] is not None:
        return load_policy_tokenizer(directory.parent / meta["base"])
    return _tokenizer(directory, meta, _geometry(directory, meta))


def _tokenizer(directory: Path, meta: dict[str, Any], cfg: DecoderConfig):
    """The tokenizer of a base, which knows whether its conversations ask for thoughts."""
    tokenizer = hf_load.load_tokenizer(meta["checkpoint"] or directory / "tokenizer", cfg)
    thinking = meta.get("thinking", "template")
    if thinking not in chat.THINKING:
        raise UserError(
            f"The policy {directory} is of another version of this package (thinking "
            f"{thinking!r}): make it again."
        )
    chat.set_thinking(tokenizer, thinking)
    return tokenizer


def _meta(directory: Path) -> dict[str, Any]:
    """What policy.json says, in the shape that `_write` gives it."""
    meta = read_json(directory / META, _META, _REMEDY)
    if meta["lora"] is not None:
        meta = read_json(directory / META, {**_META, "lora": _LORA}, _REMEDY)
    return meta


def _geometry(directory: Path, meta: dict[str, Any]) -> DecoderConfig:
    try:
        return DecoderConfig.from_dict(meta["model"])
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"The policy {directory} is of another version of this package ({error}): make it "
            "again."
        ) from error


def _adapted(base: Policy, adapter: lora.Adapter) -> Policy:
    # The base's parameters are shared, not copied.
    factors = lora.place_factors(adapter.factors, base.params)
    return dataclasses.replace(base, adapter=dataclasses.replace(adapter, factors=factors))


def _checked(params, mesh: Mesh):
    sharding.check_divided(params, mesh, "The model")
    return params
