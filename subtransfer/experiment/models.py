"""What a plan knows of a config's models: where their weights come from, and their sizes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from subtransfer.config import checks
from subtransfer.config import reading as configuration
from subtransfer.experiment import geometry, memory
from subtransfer.models import families
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.presets import PRESETS
from subtransfer.runtime import processes
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import read_json
from subtransfer.runtime.progress import progress
from subtransfer.store.files import atomic_write

# Of the files beside a checkpoint, those that transformers or this package reads.
_OF_A_CHECKPOINT = (".json", ".safetensors", ".jinja", ".model", ".txt")


class Models:
    """The models of a config, by their names.

    Args:
      config: the validated config.
      mesh: where they will lie; may be abstract.
    """

    def __init__(self, config: configuration.Config, mesh: Any):
        self._config, self._mesh = config, mesh
        self._sizes: dict[str, memory.Sizes] = {}

    def config(self, model: str) -> configuration.Config:
        """The config with the fields of `base` that a model has of its own."""
        return configuration.of_model(self._config, model)

    def checkpoint(self, model: str) -> str:
        """Where a model's weights come from.

        That is a directory, "preset:NAME", "embedded:FIELD=VALUE,...", or "" for the embedded one.
        """
        base = self._config.base
        given = {"base": base.checkpoint, "base_other": base.other_checkpoint}
        return given.get(model) or self._config.models.get(model, "")

    def is_imported(self, model: str) -> bool:
        """Whether a model is not pretrained in the run."""
        checkpoint = self.checkpoint(model)
        return bool(checkpoint) and not checkpoint.startswith(checks.OWN)

    def size(self, model: str) -> memory.Sizes:
        """The geometry of a model and what it takes."""
        if model not in self._sizes:
            cfg, weight_bytes = self._geometry(model)
            self._sizes[model] = memory.Sizes(self._config, cfg, self._mesh, weight_bytes)
        return self._sizes[model]

    def _geometry(self, model: str) -> tuple[DecoderConfig, int]:
        """A model's geometry, and the bytes of one of its resident parameters."""
        b, checkpoint = self._config.base, self.checkpoint(model)
        if model == "base_other" and not checkpoint:
            checkpoint = b.checkpoint  # a twin from scratch has its sibling's geometry
        if not checkpoint or checkpoint.startswith(checks.OWN):
            return geometry.embedded_geometry(self.config(model), b.vocab_limit), 4
        how = {"dtype": b.dtype, "remat": b.remat, "attention": b.attention}
        if checkpoint.startswith(checks.PRESET):
            preset = PRESETS[checkpoint.removeprefix(checks.PRESET)]
            return dataclasses.replace(preset, **how), 2
        stored = families.read_json(Path(checkpoint) / "config.json")
        half = (stored.get("dtype") or stored.get("torch_dtype")) in ("float16", "bfloat16")
        return families.read_config(checkpoint, **how), 2 if half else 4


def checkpoint_digest(directory: Path, workdir: Path) -> str:
    """SHA-256 over the names and bytes of a checkpoint's files.

    The workdir remembers each file's digest with its size and time of change: tens of gigabytes are
    read once.

    Raises:
      UserError: the directory does not exist.
    """
    if not directory.is_dir():
        raise UserError(
            f"There is no checkpoint directory {directory}: give a local Hugging Face directory."
        )
    memory_file = workdir / ".digests.json"
    remedy = "delete it, and the digests are reckoned anew"
    known = read_json(memory_file, {str: [object]}, remedy, default={})
    stamps: dict[Path, tuple[str, int, int]] = {}
    new = []
    total = 0
    for path in sorted(directory.iterdir()):
        if path.suffix not in _OF_A_CHECKPOINT:
            continue
        status = path.stat()
        where, size, changed = str(path.resolve()), status.st_size, status.st_mtime_ns
        stamps[path] = where, size, changed
        # A file of the same size and time of change is taken for the one that was read.
        if known.get(where, [])[:2] != [size, changed]:
            new.append(path)
            total += size
    if new:
        total >>= 20
        with progress(f"reading {directory}", total, "MiB") as advance:
            for path in new:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                known[stamps[path][0]] = [*stamps[path][1:], digest]
                advance(stamps[path][1] >> 20)
        if workdir.is_dir() and processes.leads():
            atomic_write(memory_file, json.dumps(known))
    # Names and not paths: a checkpoint that is moved is still the same one.
    names = []
    for path, (where, _, _) in stamps.items():
        names.append([path.name, known[where][2]])
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()
