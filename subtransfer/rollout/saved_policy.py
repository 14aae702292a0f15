"""Policies in folders: those of a run, Hugging Face directories, and PEFT adapters.

A run's folder has `policy.json`, which says what the rest is: weights of its own, the digest of a
Hugging Face directory, or what was trained on top of another folder of the same run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from subtransfer.models import chat, hf_export, hf_load, lora, peft_adapter
from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.rollout.policy import Policy
from subtransfer.runtime import distributed, sharding
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import misfit, read_json
from subtransfer.sources import checkpoints
from subtransfer.store import digests, seals
from subtransfer.store.params import load_params, save_params

META = "policy.json"
_REMEDY = "delete its folder and run again to make it anew"
_OR_NOTHING = type(None)
_META = {
    "model": dict,
    "base": (str, _OR_NOTHING),
    # A path alone is what earlier versions wrote: refused with a sentence of its own.
    "checkpoint": (dict, str, _OR_NOTHING),
    "lora": (dict, _OR_NOTHING),
}
_LORA = {"alpha": float, "rank": int, "dropout": float}
# What the form of conversations can be, by its fields.
_FORMS = {"thinking": chat.THINKING, "tools": chat.TOOLS}


def save_base(directory: Path, cfg: DecoderConfig, params, tokenizer) -> None:
    """Writes a policy that stands alone: params.safetensors, policy.json, tokenizer/."""
    save_params(directory / "params.safetensors", params)
    (directory / "tokenizer").mkdir()
    # With the stop tokens of the checkpoint whose tokenizer it may be.
    hf_export.write_tokenizer(directory / "tokenizer", tokenizer)
    _write(directory, cfg, **_form(tokenizer))


def save_imported(
    directory: Path, cfg: DecoderConfig, checkpoint: Path, sha256: str, tokenizer: Any
) -> None:
    """Writes a policy whose weights stay in their Hugging Face directory.

    Args:
      directory: of the policy.
      cfg: its geometry.
      checkpoint: where the weights lie now.
      sha256: the digest of the checkpoint's files, by which it is known when it lies elsewhere.
      tokenizer: the checkpoint's, of which only the form of its conversations is kept.
    """
    # Resolved, as the next command may run in another folder.
    where = {"directory": str(checkpoint.resolve()), "sha256": sha256}
    _write(directory, cfg, checkpoint=where, **_form(tokenizer))


def _form(tokenizer: Any) -> dict[str, str]:
    """The form of a tokenizer's conversations, but for what is usual."""
    form, usual = dataclasses.asdict(chat.form_of(tokenizer)), dataclasses.asdict(chat.Form())
    return {name: value for name, value in form.items() if value != usual[name]}


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
    model = dataclasses.asdict(cfg)
    # Most models have none.
    if not cfg.unused:
        del model["unused"]
    value = {
        "model": model,
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
    checkpoint: str | Path | None = None,
) -> Policy:
    """Loads a policy from a folder of a run, a PEFT adapter's, or where a checkpoint comes from.

    Args:
      directory: one of these; a checkpoint's may be any source of `sources/checkpoints.py`.
      mesh: the devices that its parameters are sharded over; None is the first device.
      dtype: of computation, "float32" or "bfloat16" (a run's folder has its own).
      resident: policies that are loaded already, by folder; bases are taken from it and added to
        it, so that adapters of one base share one copy.
      checkpoint: where the Hugging Face directory lies now that a run's policy was tuned from; None
        is where it lay. Its files are compared with the digest that the run recorded.

    Raises:
      UserError: the directory is none of these, a file of it is missing or damaged, or the
        checkpoint is another one.
    """
    if not Path(directory).is_dir():
        directory = checkpoints.local(str(directory), "The policy")
    directory = Path(directory)
    mesh = mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
    resident = {} if resident is None else resident
    # A run's folder first: it may hold files of the other kinds too.
    if (directory / META).is_file():
        lies = None if checkpoint is None else Path(checkpoint)
        return _load_artifact(directory, mesh, resident, lies)
    if (directory / "adapter_config.json").is_file():
        return _load_adapter(directory, mesh, dtype, resident)
    if (directory / "config.json").is_file():
        folder = directory.resolve()
        # By the resolved path: two ways of writing it are one model.
        if folder not in resident:
            cfg, tokenizer = hf_load.load_geometry(directory, dtype)
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


def _load_artifact(
    directory: Path,
    mesh: Mesh,
    resident: MutableMapping[Path, Policy],
    checkpoint: Path | None,
) -> Policy:
    # Adapters of one base, and the arms that start from it, share one copy.
    if directory in resident:
        return resident[directory]
    seals.check(directory, at_most=seals.SMALL)
    meta = _meta(directory)
    cfg = _geometry(directory, meta)
    if meta["checkpoint"] is not None:
        with _checkpoint(directory, meta, checkpoint) as where:
            params = _checked(hf_load.load_params(where, cfg, mesh), mesh)
            tokenizer = _tokenizer(where, directory, meta, cfg)
        policy = Policy(cfg, params, tokenizer, None, str(where))
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
        base = _load_artifact(directory.parent / meta["base"], mesh, resident, checkpoint)
        return _adapted(base, lora.Adapter(tree, **meta["lora"]))
    shardings = sharding.param_shardings(abstract_params(cfg), mesh)
    params = _checked(distributed.place(tree, shardings), mesh)
    loaded_base = resident.get(directory.parent / meta["base"]) if meta["base"] else None
    if loaded_base is not None:
        tokenizer = loaded_base.tokenizer
    else:
        tokenizer = load_policy_tokenizer(directory, checkpoint)
    policy = Policy(cfg, params, tokenizer, None, str(directory))
    # Fully tuned weights are used by one arm; only bases are worth keeping on the devices.
    if meta["base"] is None:
        resident[directory] = policy
    return policy


def load_policy_tokenizer(directory: Path, checkpoint: Path | None = None):
    """Loads the tokenizer of a run's policy folder, without reading weights.

    A tuned policy has its base's.

    Args:
      directory: the policy's folder.
      checkpoint: as of `load_policy`.
    """
    seals.check(directory, at_most=seals.SMALL)
    meta = _meta(directory)
    if meta["base"] is not None:
        return load_policy_tokenizer(directory.parent / meta["base"], checkpoint)
    cfg = _geometry(directory, meta)
    if meta["checkpoint"] is None:
        return _tokenizer(directory / "tokenizer", directory, meta, cfg)
    with _checkpoint(directory, meta, checkpoint) as where:
        return _tokenizer(where, directory, meta, cfg)


def _tokenizer(where: Path, directory: Path, meta: dict[str, Any], cfg: DecoderConfig):
    """The tokenizer of a base, which knows how its conversations are written.

    Args:
      where: the folder of the tokenizer's files.
      directory: the policy's folder, named in errors.
      meta: what its policy.json holds.
      cfg: its geometry.
    """
    tokenizer = hf_load.load_tokenizer(where, cfg)
    form = {name: meta[name] for name in _FORMS if name in meta}
    for name, value in form.items():
        if value not in _FORMS[name]:
            raise UserError(
                f"The policy {directory} is of another version of this package ({name} {value!r}): "
                "make it again."
            )
    chat.set_form(tokenizer, chat.Form(**form))
    return tokenizer


def _meta(directory: Path) -> dict[str, Any]:
    """What policy.json says, in the shape that `_write` gives it."""
    meta = read_json(directory / META, _META, _REMEDY)
    if meta["lora"] is not None:
        meta = read_json(directory / META, {**_META, "lora": _LORA}, _REMEDY)
    return meta


@contextlib.contextmanager
def _checkpoint(directory: Path, meta: dict[str, Any], given: Path | None) -> Iterator[Path]:
    """Where the checkpoint lies that a policy's folder stands for, while it is read.

    Args:
      directory: the policy's folder.
      meta: what its policy.json holds.
      given: where the checkpoint lies now, or None: where it lay.

    Raises:
      UserError: it is not there, another one is, or its files changed while they were read.
    """
    recorded = meta["checkpoint"]
    if misfit(recorded, {"directory": str, "sha256": str}):
        raise UserError(
            f"The policy {directory} is of another version of this package (it has no digest of "
            "its checkpoint): make it again."
        )
    where = given or Path(recorded["directory"])
    digests.check_checkpoint(where, recorded["sha256"], directory)
    yield where
    digests.check_checkpoint(where, recorded["sha256"], directory)


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
