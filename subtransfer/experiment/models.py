"""What a plan knows of a config's models: where their weights come from, and their sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from subtransfer.config import checks
from subtransfer.config import reading as configuration
from subtransfer.experiment import geometry, memory, shipped
from subtransfer.models import families
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.presets import PRESETS
from subtransfer.sources import checkpoints


class Models:
    """The models of a config, by their names.

    Args:
      config: the validated config.
      mesh: where they will lie; may be abstract.
      weights: false leaves weights on the hub that are not here yet, as a dry run does.

    Attributes:
      shipped: those that come with the package.
      why_scratch: why there are none, where somebody could expect them.
    """

    def __init__(self, config: configuration.Config, mesh: Any, *, weights: bool = True):
        self._config, self._mesh, self._weights = config, mesh, weights
        self._sizes: dict[str, memory.Sizes] = {}
        self.shipped, self.why_scratch = shipped.of_run(config)

    def config(self, model: str) -> configuration.Config:
        """The config with the fields of `base` that a model has of its own."""
        return configuration.of_model(self._config, model)

    def checkpoint(self, model: str) -> str:
        """Where a model's weights lie.

        That is a Hugging Face directory, "preset:NAME", "embedded:FIELD=VALUE,...", or "" for the
        embedded one. What is on no disk yet is fetched.
        """
        base = self._config.base
        fields = {"base": "base.checkpoint", "base_other": "base.other_checkpoint"}
        given = {"base": base.checkpoint, "base_other": base.other_checkpoint}
        source = given.get(model) or self._config.models.get(model, "")
        if not source or source.startswith((checks.OWN, checks.PRESET)):
            return source
        field = fields.get(model, f"models.{model}")
        template = self._config.chat.template
        return str(checkpoints.local(source, field, template, weights=self._weights))

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
        # An agent's weights are float32, whatever those that it was tuned from are.
        kept = half and not self._config.agent.steps
        return families.read_config(checkpoint, **how), 2 if kept else 4
