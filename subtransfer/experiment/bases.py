"""Adds the stages of the models that teachers and students start from.

Such a model is a checkpoint, comes with the package, or is pretrained in the run.
"""

from __future__ import annotations

from pathlib import Path

from subtransfer.config import checks
from subtransfer.config import reading as configuration
from subtransfer.config.bases import PARTS, parted
from subtransfer.experiment import costs, names, refusals
from subtransfer.experiment.models import Models
from subtransfer.experiment.planner import Planner
from subtransfer.experiment.stages import agent as agent_stages
from subtransfer.experiment.stages import base as base_stages
from subtransfer.experiment.stages import corpus as corpus_stages
from subtransfer.experiment.stages import imported as imported_stages
from subtransfer.experiment.stages import shipped as shipped_stages
from subtransfer.store import digests


class Bases:
    """The models of a run, as stages of its plan.

    Args:
      config: the run's.
      workdir: where artefacts lie.
      models: what is known of them.
      planner: of the plan.
    """

    def __init__(
        self, config: configuration.Config, workdir: Path, models: Models, planner: Planner
    ):
        self._config, self._workdir, self._models, self._planner = config, workdir, models, planner

    def add(self, model: str) -> None:
        """Adds the stages that make a model.

        Raises:
          UserError: it cannot be used as the config asks for.
        """
        if self._models.is_imported(model):
            self._imported(model)
        elif model in self._models.shipped:
            self._shipped(model)
        else:
            self._pretrained(model)

    def _imported(self, model: str) -> None:
        c, checkpoint, size = self._config, self._models.checkpoint(model), self._models.size(model)
        refusals.check_context(size, checkpoint, c.distill.batch_size // c.distill.accumulate)
        # A preset has no files: its name says all of it.
        digest = checkpoint
        if not checkpoint.startswith(checks.PRESET):
            digest = digests.of_checkpoint(Path(checkpoint), self._workdir)
            refusals.check_prompt(size, checkpoint, digest)
            refusals.check_acts(size, checkpoint, digest)
        agent = c.agent.steps > 0
        name = self._planner.add(
            names.checkpoint_stage(model) if agent else names.base_stage(model),
            imported_stages.imported,
            work=f"{checkpoint}, {size.params / 1e9:.2f}B parameters",
            memory=lambda: size.weights,
            checkpoint=digest,
        )
        # Where it lies now, which may differ from where it lay when the stage was made.
        self._planner.resident.checkpoints[self._planner.path(name)] = Path(checkpoint)
        if agent:
            self._agent(model, name)

    def _agent(self, model: str, checkpoint: str) -> None:
        """Adds the agent that a model's checkpoint is tuned to be, in the checkpoint's place."""
        c, size, a = self._config, self._models.size(model), self._config.agent
        full = c.tuning.method == "full"
        self._planner.add(
            names.base_stage(model),
            agent_stages.agent,
            inputs=[checkpoint],
            work=f"agent: {a.steps} steps x {a.batch_size} episodes",
            memory=lambda: size.training(a.batch_size // a.accumulate, full=full),
            flops=lambda: costs.training(
                size.cfg, a.steps, a.batch_size, c.distill.max_tokens, full=full
            ),
            worked_by=model,
            checkpoint=checkpoint,
            model=model,
        )

    def _shipped(self, model: str) -> None:
        taken, size = self._models.shipped[model], self._models.size(model)
        self._planner.add(
            names.base_stage(model),
            shipped_stages.shipped,
            work=f"shipped base {taken.number}, {size.params / 1e6:.2f}M parameters",
            memory=lambda: size.weights,
            weights=taken.weights,
            tokenizer=taken.tokenizer,
        )

    def _pretrained(self, model: str) -> None:
        c, size = self._config, self._models.size(model)
        own = self._models.config(model)
        b = own.base
        # A twin of a given checkpoint shares its tokenizer and geometry.
        sibling = "base" if c.base.checkpoint else None
        if sibling or self._models.checkpoint(model):
            refusals.check_scratch(own, model, size.params, twin=sibling is not None)
        inputs = [sibling] if sibling else []
        corpus = self._planner.add(
            names.CORPUS,
            corpus_stages.corpus,
            inputs=inputs,
            work=f"{c.base.episodes} scripted episodes",
            base=sibling,
        )
        base, part = parted(c, model)
        work = f"{b.steps} steps x {b.batch_size} episodes, {size.params / 1e6:.2f}M parameters"
        if part:
            work += f"; from {base}: {PARTS[part]}"
        if self._models.why_scratch:
            work += f"; from scratch ({self._models.why_scratch})"
        self._planner.add(
            names.base_stage(model),
            base_stages.pretrained,
            inputs=[corpus, *inputs],
            work=work,
            memory=lambda: size.training(b.batch_size, full=True),
            flops=lambda: costs.training(size.cfg, b.steps, b.batch_size, c.distill.max_tokens),
            worked_by=model,
            config=own,
            corpus=corpus,
            sibling=sibling,
            model=base,
            part=part,
        )
