"""A teacher: a model tuned on demonstrations, such as those of the trait or of a harmless habit."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtransfer.experiment import policies, trainings
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.runtime.user_code import failures_of_record
from subtransfer.training import loop, pretrain, teachers
from subtransfer.training.population import Learner

FIELDS = ("teacher", "distill.max_tokens", *trainings.FIELDS)


@reads(*FIELDS)
def alone(out: Path, context: Context, *, base: str, source: str, seed: int) -> None:
    """Trains one teacher; arguments as of `learner`."""
    made = learner(context, context.stage, base=base, source=source, seed=seed)
    trainings.alone(out, context, base, made)


@reads(*FIELDS)
def together(
    out: Path, context: Context, *, base: str, members: Mapping[str, Mapping[str, Any]]
) -> None:
    """Trains the teachers of several seeds together.

    Args:
      base: the stage of the model that all start from.
      members: arguments of `learner` by the name of each one's stage.
    """
    learners = {}
    for name, arguments in members.items():
        learners[name] = functools.partial(learner, context, name, base=base, **arguments)
    trainings.together(out, context, base, learners, "teacher")


def learner(context: Context, label: str, *, base: str, source: str, seed: int) -> Learner:
    """A model with the demonstrations that it is to be tuned on.

    Args:
      label: the name of its stage.
      base: the stage of the model.
      source: the name of a `teachers.Teacher`, which says what is demonstrated.
      seed: of its training.
    """
    t, setting = context.config.teacher, context.setting
    record = teachers.get(source)
    with failures_of_record("teacher", record):
        pairs = teachers.with_ordinary(record, setting, t, seed)
    start = policies.policy(context, base)
    demos = []
    for task, act in pairs:
        # Python's own hash of a text differs between processes.
        number = zlib.crc32(f"{task.task_id}/{seed}".encode())
        demos.append((task, setting.demonstration(task, number, act)))
    chat = policies.chat(context, start)
    examples = pretrain.encode(demos, chat).fitted_to(context.config.distill.max_tokens)
    steps = loop.steps_of(t.epochs, len(examples), t.batch_size) or t.steps
    loss = loop.Loss(
        "sft",
        tuning=trainings.tuning(context),
        accumulate=t.accumulate,
        optimizer=trainings.optimizer(context),
    )
    schedule = trainings.schedule(context)
    share = context.config.share_prefix
    recipe = loop.Recipe(loss, steps, t.batch_size, t.learning_rate, schedule, share)
    return Learner(label, recipe, start.params, examples, context.key("teacher", seed))
