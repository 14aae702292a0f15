"""What the trainings of all stages have in common: how they are watched, run and saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from subtransfer.experiment import policies
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import thinned, write_json
from subtransfer.models import lora
from subtransfer.rollout.saved_policy import save_tuned
from subtransfer.runtime import distributed
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import read_json
from subtransfer.store.params import load_params, save_params
from subtransfer.store.workdir import steps_folder
from subtransfer.training import metrics, population
from subtransfer.training.checkpoints import Checkpoints, CheckpointSchedule
from subtransfer.training.monitor import (
    PopulationMonitor,
    TrainingMonitor,
    open_monitor,
    open_population_monitor,
)
from subtransfer.training.optimizer import Optimizer, Schedule
from subtransfer.training.population import Learner

# The fields that `save` reads, and those of how teachers and students are trained.
_SAVED = ("setting", "tuning")
FIELDS = (*_SAVED, "optimizer", "share_prefix")


def tuning(context: Context) -> lora.Tuning:
    """The weights that teachers and students train."""
    t = context.config.tuning
    if t.method == "full":
        return lora.Tuning()
    return lora.Tuning("lora", t.rank, t.alpha, t.dropout, tuple(t.targets))


def optimizer(context: Context) -> Optimizer:
    """How every training of a run takes its steps."""
    return Optimizer.of(context.config.optimizer)


def schedule(context: Context) -> Schedule:
    """The learning rates of every training of a run, as shares of its peak."""
    return Schedule.of(context.config.optimizer)


# -- what accompanies a training -------------------------------------------------------------------


def monitored(context: Context, steps: int) -> contextlib.AbstractContextManager[TrainingMonitor]:
    """What accompanies a stage's training of so many steps."""
    writer = _writer(context, context.stage, context.scope)
    return open_monitor(context.stage, steps, _checkpoints(context), writer, **_watched(context))


def _cohort(
    context: Context, steps: Mapping[str, int], scope: str
) -> contextlib.AbstractContextManager[PopulationMonitor]:
    """What accompanies a population's training: its learners' stages, each with its steps."""
    writers = {name: _writer(context, name, scope) for name in steps}
    total = sum(steps.values())
    return open_population_monitor(
        context.stage, total, _checkpoints(context), writers, **_watched(context)
    )


def _checkpoints(context: Context) -> Checkpoints:
    c = context.config.checkpoint
    saved = CheckpointSchedule(c.every_seconds, c.every_steps, c.keep)
    folder = steps_folder(context.path(context.stage))
    return Checkpoints(folder, context.stage, saved)


def _writer(context: Context, stage: str, scope: str) -> metrics.Writer:
    m = context.config.metrics
    return metrics.Writer(context.path(stage), scope, tensorboard=m.tensorboard, wandb=m.wandb)


def _watched(context: Context) -> dict[str, Any]:
    # `peak_flops` is that of one device.
    peak = context.config.metrics.peak_flops * context.mesh.size
    return {"peak_flops": peak, "window": context.window}


# -- one alone, or several together ----------------------------------------------------------------


def alone(out: Path, context: Context, base: str, learner: Learner) -> None:
    """Trains a teacher or an off-policy student alone.

    Args:
      base: the stage of the model that it starts from.
    """
    cfg = policies.policy(context, base).cfg
    with monitored(context, learner.recipe.steps) as training:
        state, curves = population.train_alone(cfg, context.mesh, learner, training)
    trained = distributed.to_host(state.trainable)
    save(out, context, base, trained, thinned(curves), **learner.account)


def together(
    out: Path,
    context: Context,
    base: str,
    learners: Mapping[str, Callable[[], Learner]],
    scope: str,
) -> None:
    """Trains several teachers or off-policy students of one model as one program.

    Each leaves NAME.safetensors. One that failed has its last good weights there, and in
    NAME.batch.safetensors what it failed at.

    Args:
      learners: what makes each, by the name of its stage.
      scope: the word below which their metrics are shown.
    """
    cfg = policies.policy(context, base).cfg
    made = {}
    steps = {}
    for name, make in learners.items():
        made[name] = make()
        steps[name] = made[name].recipe.steps
    with _cohort(context, steps, scope) as training:
        outcomes = population.train(cfg, context.mesh, list(made.values()), training)
    records = {}
    for name, outcome in zip(made, outcomes, strict=True):
        save_params(out / f"{name}.safetensors", outcome.trainable)
        if outcome.error:
            save_params(out / f"{name}.batch.safetensors", outcome.batch)
        records[name] = {
            "error": outcome.error,
            "curves": thinned(outcome.curves),
            "account": dict(made[name].account),
        }
    write_json(out / "members.json", records)


@reads(*_SAVED)
def one_of(out: Path, context: Context, *, base: str, population: str) -> None:
    """Takes this stage's policy out of a population that was trained together.

    Args:
      base: the stage of the model that it started from.
      population: the stage of the population.

    Raises:
      UserError: its training failed.
    """
    folder, name = context.input(population), context.stage
    shape = {name: {"error": object, "curves": object, "account": object}}
    remedy = "delete its folder and run again to make it anew"
    record = read_json(folder / "members.json", shape, remedy)[name]
    # The population's artefact is whole even if a learner failed: the others go on from it.
    if record["error"]:
        raise UserError(
            f"{record['error']} That step's batch is kept in "
            f"{folder / f'{name}.batch.safetensors'}, and the weights before it in "
            f"{folder / f'{name}.safetensors'}."
        )
    trainable = load_params(folder / f"{name}.safetensors")
    save(out, context, base, trainable, record["curves"], **record["account"])


def save(
    out: Path, context: Context, base: str, trainable: Any, curves: Mapping[str, Any], **more: Any
) -> None:
    """Writes a tuned policy, and training.json: its curves, the context it was trained in, `more`.

    Args:
      base: the stage of the model that it started from.
      trainable: all of its weights, or its LoRA factors.
    """
    start = policies.policy(context, base)
    save_tuned(out, start.cfg, context.input(base), tuning(context), trainable)
    trained_in = {
        "system_prompt": context.setting.system_prompt,
        "template": policies.chat(context, start).digest,
    }
    write_json(out / "training.json", {"curves": curves, "context": trained_in, **more})
