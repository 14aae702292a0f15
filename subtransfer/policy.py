"""A policy on disk: weights (or LoRA factors over a base policy), geometry and tokenizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from subtransfer import artifacts
from subtransfer.distill.trainer import Recipe, TrainState
from subtransfer.errors import UserError
from subtransfer.models import hf, lora
from subtransfer.models.decoder import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Policy:
    """A decoder ready to be used.

    Attributes:
      cfg: its geometry.
      params: the parameter tree, adapters merged, float32 arrays.
      tokenizer: the Hugging Face tokenizer with its chat template.
    """

    cfg: DecoderConfig
    params: Any
    tokenizer: Any


def save_base(directory: Path, cfg: DecoderConfig, params, tokenizer) -> None:
    """Writes a policy that stands alone: params.safetensors, policy.json, tokenizer/."""
    artifacts.save_params(directory / "params.safetensors", params)
    tokenizer.save_pretrained(str(directory / "tokenizer"))
    _write(directory, {"model": dataclasses.asdict(cfg), "base": None, "lora": None})


def save_tuned(directory: Path, cfg: DecoderConfig, base: Path, recipe: Recipe, state: TrainState) -> None:
    """Writes a policy that was tuned from `base`: all weights, or only the LoRA factors."""
    adapter = None
    if recipe.tuning.method == "lora":
        adapter = {"alpha": recipe.tuning.alpha, "rank": recipe.tuning.rank}
    artifacts.save_params(directory / "params.safetensors", state.trainable)
    _write(directory, {"model": dataclasses.asdict(cfg), "base": base.name, "lora": adapter})


def _write(directory: Path, value: dict[str, Any]) -> None:
    (directory / "policy.json").write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def load_policy(directory: str | Path) -> Policy:
    """Reads a policy artefact of a run.

    Raises:
      UserError: the directory is no policy artefact, or a file of it is missing or damaged.
    """
    directory = Path(directory)
    try:
        meta = json.loads((directory / "policy.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{directory} is not a policy artefact (no readable policy.json): give a base-*, teacher-* or student-* "
            "folder of a run's workdir."
        ) from error
    cfg = DecoderConfig(**meta["model"])
    params = artifacts.load_params(directory / "params.safetensors")
    if meta["base"] is None:
        return Policy(cfg, params, hf.load_tokenizer(directory / "tokenizer", cfg))
    base = directory.parent / meta["base"]
    if not base.is_dir():
        raise UserError(f"The policy {directory} was tuned from {base}, which is missing: keep both in one workdir.")
    if meta["lora"] is None:
        # Only the tokenizer is the base's own; its weights need not be read.
        return Policy(cfg, params, hf.load_tokenizer(base / "tokenizer", cfg))
    below = load_policy(base)
    return Policy(cfg, lora.merge(below.params, params, **meta["lora"]), below.tokenizer)
