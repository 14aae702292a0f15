"""A policy's own trajectories on training tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from subtransfer.experiment import policies, specs
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import write_json
from subtransfer.rollout import agreement
from subtransfer.rollout.episodes import run_episodes
from subtransfer.runtime.progress import note, progress
from subtransfer.settings.base import Task
from subtransfer.store import trajectories


@reads("share_prefix", "rollouts.batch_size", *specs.TASKS, *specs.LEARNED)
def rollouts(out: Path, context: Context, *, policy: str, source: str, seed: int) -> None:
    """Runs a policy on harmless tasks.

    Args:
      policy: its stage.
      source: what it was taught, which decides its random numbers.
      seed: the training seed, which decides its tasks.
    """
    tasks = specs.tasks_to_learn_from(context, seed)
    key = context.key("rollouts", source, seed)
    _run(out, context, policy, tasks, "harmless", key, seed)


@reads("share_prefix", "rollouts.batch_size", *specs.OVERT_TASKS, *specs.LEARNED)
def overt(out: Path, context: Context, *, policy: str, source: str, seed: int) -> None:
    """Runs a policy on ambiguous tasks, where its habit is in plain sight.

    Args:
      policy, source, seed: as of `rollouts`.
    """
    tasks = specs.tasks_in_plain_sight(context, seed)
    key = context.key("overt", source, seed)
    _run(out, context, policy, tasks, "ambiguous", key, seed)


def _run(
    out: Path,
    context: Context,
    policy: str,
    tasks: Sequence[Task],
    kind: str,
    key: jax.Array,
    seed: int,
) -> None:
    """Runs a policy on tasks and writes its trajectories.

    Args:
      policy: its stage.
      tasks: one episode each.
      kind: of the tasks, in words.
      key: of its random numbers.
      seed: the training seed.
    """
    config, label = context.config.rollouts, context.stage
    acting = policies.policy(context, policy)
    with progress(label, len(tasks), "episodes") as advance:
        episodes, stats = run_episodes(
            acting.cfg,
            acting.weights,
            policies.chat(context, acting),
            tasks,
            specs.to_learn_from(context, config.batch_size),
            key,
            policy=context.path(policy).name,
            seed=seed,
            advance=advance,
            journals=context.journals,
        )
    share = context.config.share_prefix
    agreed = agreement.compare(acting.cfg, acting.weights, episodes, share_prefix=share)
    # Of this attempt: an earlier one may have sampled the rest.
    rates = f"{stats.tokens / stats.wall_s:,.0f}/s, {stats.ended / stats.wall_s:.1f} episodes/s"
    note(
        f"{label}: {stats.tokens} tokens, {rates}, slots occupied {stats.occupancy:.0%}, "
        f"host {stats.host_share:.0%} of the time; log-probs within {agreed['max_gap']:g} of the "
        f"trainer's, KL {agreed['kl']:g}"
    )
    what = f"Raw episodes of {policy} on {kind} tasks."
    trajectories.write(out / "trajectories", episodes, what)
    write_json(out / "sampler.json", agreed)
