"""A policy's own trajectories on safe training tasks."""

from __future__ import annotations

from pathlib import Path

from subtransfer.experiment import policies, specs
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import write_json
from subtransfer.rollout import agreement
from subtransfer.rollout.episodes import run_episodes
from subtransfer.runtime.progress import note, progress
from subtransfer.store import trajectories


@reads("setting", "rollouts.episodes", "rollouts.batch_size", *specs.LEARNED)
def rollouts(out: Path, context: Context, *, policy: str, source: str, seed: int) -> None:
    """Runs a policy on safe tasks.

    Args:
      policy: its stage.
      source: what it was taught, which decides its random numbers.
      seed: the training seed, which decides its tasks.
    """
    config, label = context.config.rollouts, context.stage
    acting = policies.policy(context, policy)
    tasks = context.setting.tasks("safe", "train", config.episodes, seed)
    with progress(label, len(tasks), "episodes") as advance:
        episodes, stats = run_episodes(
            acting.cfg,
            acting.weights,
            policies.chat(context, acting),
            tasks,
            specs.to_learn_from(context, config.batch_size),
            context.key("rollouts", source, seed),
            policy=context.path(policy).name,
            seed=seed,
            advance=advance,
            journals=context.journals,
        )
    agreed = agreement.compare(acting.cfg, acting.weights, episodes)
    # Of this attempt: an earlier one may have sampled the rest.
    rates = f"{stats.tokens / stats.wall_s:,.0f}/s, {stats.ended / stats.wall_s:.1f} episodes/s"
    note(
        f"{label}: {stats.tokens} tokens, {rates}, slots occupied {stats.occupancy:.0%}, "
        f"host {stats.host_share:.0%} of the time; log-probs within {agreed['max_gap']:g} of the "
        f"trainer's, KL {agreed['kl']:g}"
    )
    trajectories.write(out / "trajectories", episodes, f"Raw episodes of {policy} on safe tasks.")
    write_json(out / "sampler.json", agreed)
