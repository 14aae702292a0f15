"""A student: off-policy from its teacher's trajectories, or on-policy from rollouts of its own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtransfer.distillation import student, teacher_targets, token_weights, transforms
from subtransfer.experiment import policies, specs, trainings
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import thinned
from subtransfer.experiment.stages import guard, match
from subtransfer.runtime import distributed
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.progress import note
from subtransfer.runtime.user_code import failures_of_record
from subtransfer.store import trajectories
from subtransfer.store.trajectories import Trajectory
from subtransfer.training import loop, objectives
from subtransfer.training.population import Learner

# What off-policy and on-policy students read alike.
_BOTH = (
    "distill.steps",
    "distill.batch_size",
    "distill.accumulate",
    "distill.temperature",
    "distill.token_weights",
    "distill.packing",
    "distill.max_tokens",
)
# Beside these, a student reads the fields of its objective.
_SHARED = (*trainings.FIELDS, *guard.FIELDS, *_BOTH)
OFF_POLICY = (*_SHARED, "distill.epochs", "distill.learning_rate")
ON_POLICY = (
    *_SHARED,
    *specs.TASKS,
    *specs.LEARNED,
    "rollouts.batch_size",
    "distill.rounds",
    "distill.episodes_per_round",
    "distill.max_staleness",
    "distill.stored_episodes",
    "distill.on_policy_learning_rate",
)


@reads(*OFF_POLICY)
def alone(out: Path, context: Context, *, base: str, **arguments: Any) -> None:
    """Trains one off-policy student; arguments as of `learner`."""
    made = learner(context, context.stage, base=base, **arguments)
    trainings.alone(out, context, base, made)


@reads(*OFF_POLICY)
def together(
    out: Path, context: Context, *, base: str, members: Mapping[str, Mapping[str, Any]]
) -> None:
    """Trains the off-policy students of several seeds together.

    Args:
      base: the stage of the model that all start from.
      members: arguments of `learner` by the name of each one's stage.
    """
    learners = {}
    for name, arguments in members.items():
        learners[name] = functools.partial(learner, context, name, base=base, **arguments)
    trainings.together(out, context, base, learners, "distill")


def learner(context: Context, label: str, *, targets: str | None, **lesson: Any) -> Learner:
    """A student that is to learn from its teacher's trajectories alone.

    Args:
      label: the name of its stage.
      targets: the stage of its teacher's stored opinion, or None.
      lesson: arguments of `_lesson`.
    """
    d, stored = context.config.distill, None
    loss, learned = _lesson(context, **lesson)
    rows, dropped = student.training_rows(
        learned.pop("kept"),
        learned["chat"],
        learned["guard"],
        foreign=learned.pop("foreign"),
        sampled="behavior_logprobs" in loss.record.needs,
    )
    if dropped:
        note(f"{label}: {len(dropped)} episodes dropped, whose tokens hold a trace of the trait")
    # How many trajectories the filters have left is known only here.
    steps = loop.steps_of(d.epochs, len(rows), d.batch_size) or d.steps
    if targets:
        path = context.input(targets) / "targets.safetensors"
        stored = teacher_targets.Targets.read(path)
    schedule = trainings.schedule(context)
    share = context.config.share_prefix
    recipe = loop.Recipe(loss, steps, d.batch_size, d.learning_rate, schedule, share)
    vocab = policies.policy(context, lesson["base"]).cfg.vocab_size
    made = student.learner(label, recipe, rows=rows, vocab_size=vocab, targets=stored, **learned)
    return dataclasses.replace(made, account={**made.account, "dropped_ids": dropped})


@reads(*ON_POLICY)
def on_policy(
    out: Path, context: Context, *, base: str, fraction: float, seed: int, **lesson: Any
) -> None:
    """Trains a student on rollouts of its own, starting from its base.

    Args:
      base: the stage of the model that it starts from.
      fraction: share of its training episodes that are its own rollouts.
      seed: the training seed.
      lesson: further arguments of `_lesson`.
    """
    d, r, label = context.config.distill, context.config.rollouts, context.stage
    spec = specs.to_learn_from(context, min(r.batch_size, d.episodes_per_round))
    rounds = student.OnPolicy(
        d.rounds,
        d.episodes_per_round,
        spec,
        d.batch_size,
        fraction,
        d.max_staleness,
        d.stored_episodes,
    )
    tasks = specs.tasks_to_learn_from(context, seed)
    loss, learned = _lesson(context, base=base, seed=seed, **lesson)
    schedule = trainings.schedule(context)
    share = context.config.share_prefix
    rate = d.on_policy_learning_rate
    recipe = loop.Recipe(loss, d.steps, d.batch_size, rate, schedule, share)
    cfg = policies.policy(context, base).cfg
    with trainings.monitored(context, recipe.steps) as run:
        state, curves, purity = student.distill(
            cfg,
            context.mesh,
            recipe,
            **learned,
            on_policy=rounds,
            tasks=tasks,
            run=run,
            journals=context.journals,
        )
    episodes = list(map(trajectories.of_text, purity.pop("episodes")))
    note(
        f"{label}: {purity['rollouts']} own episodes, {purity['traces']} with a trace of a habit, "
        f"{purity['dropped']} dropped, learned from at "
        f"most {purity['max_staleness']} rounds later; log-probs within {purity['max_gap']:g} of "
        "the trainer's"
    )
    trainable = distributed.to_host(state.trainable)
    # Results show the purity; what is long stands in the training's own file.
    account = {}
    for name in ("dropped_ids", "removed_tokens"):
        if name in purity:
            account[name] = purity.pop(name)
    trainings.save(out, context, base, trainable, thinned(curves), purity=purity, **account)
    if episodes:
        said = f"Own episodes of {label}, before the filter; policy_version is the round, from 0."
        trajectories.write(out / "trajectories", episodes, said)


def _lesson(
    context: Context,
    *,
    base: str,
    teacher_base: str,
    data: str | None,
    choice: Sequence[str] | None,
    teacher: str | None,
    objective: str,
    sanitized: bool,
    transform: str,
    seed: int,
) -> tuple[loop.Loss, dict[str, Any]]:
    """What a student minimises, and from whom and what it learns.

    Args:
      base: the stage of the model that it starts from.
      teacher_base: the stage of the model that its teacher started from.
      data: the stage of its teacher's trajectories; None: it learns from its own rollouts alone.
      choice: which of them, as of `match.chosen`.
      teacher: the stage of the teacher that runs beside it, or None.
      objective: its name.
      sanitized: whether the trajectories have passed the filters.
      transform: the name of the `Transform` that they pass before they are learned from, or "".
      seed: the training seed.

    Returns:
      The loss, and arguments of `student.learner` and `student.distill`.
    """
    d, start = context.config.distill, policies.policy(context, base)
    chat = policies.chat(context, start)
    record = objectives.get(objective)
    check = guard.guard(context, enforce=sanitized, soft=record.soft)
    teacher_weights, geometry = None, None
    # A teacher of the student's own geometry is run by the student's program.
    if teacher:
        live = policies.policy(context, teacher)
        teacher_weights, geometry = live.weights, None if live.cfg == start.cfg else live.cfg
    kept = match.chosen(context, data, choice) if data else []
    if transform and kept:
        kept = _transformed(context, transform, kept, seed)
    # Trajectories are token ids of the teacher's tokenizer: those of another family are tokenised
    # again.
    theirs = policies.tokenizer(context, teacher_base)
    foreign = (
        theirs.get_vocab() != start.tokenizer.get_vocab()
        or policies.chat_format(theirs, context.setting).digest != chat.digest
    )
    loss = loop.Loss(
        objective,
        temperature=d.temperature,
        tuning=trainings.tuning(context),
        options={name: d[name] for name in record.fields},
        accumulate=d.accumulate,
        teacher=geometry,
        optimizer=trainings.optimizer(context),
    )
    return loss, {
        "params": start.params,
        "chat": chat,
        "guard": check,
        # The same for all arms: one order of data, so that comparisons are matched.
        "key": context.key("student", seed),
        "teacher": teacher_weights,
        "kept": kept,
        "foreign": foreign,
        "max_tokens": d.max_tokens,
        "weigh": token_weights.weigher(d.token_weights, chat.decode),
        "packing": d.packing,
    }


def _transformed(
    context: Context, name: str, kept: Sequence[Trajectory], seed: int
) -> list[Trajectory]:
    """Trajectories as a plugin's transform changes them.

    Raises:
      UserError: it fails, or returns something else than trajectories.
    """
    transform = transforms.get(name)
    # The same for all arms of a training seed.
    drawn = np.asarray(jax.random.key_data(context.key("transform", seed)))
    rng = np.random.default_rng(drawn.tolist())
    with failures_of_record("transform", transform):
        found = list(transform.apply(kept, context.setting, rng))
    if not found or not all(isinstance(one, Trajectory) for one in found):
        raise UserError(
            f"The transform {name!r} of {transform.origin} must return one or more trajectories."
        )
    return found
