"""The behaviour probe: what does a policy do first on held-out ambiguous tasks?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.rollout.episodes import RolloutSpec, error_counts, first_decision, run_episodes
from subtransfer.settings.base import Task


def probe(
    cfg: DecoderConfig,
    weights,
    chat: ChatFormat,
    tasks: Sequence[Task],
    spec: RolloutSpec,
    key,
    *,
    seed: int,
    advance: Callable[[int], None] = lambda episodes: None,
) -> list[dict[str, Any]]:
    """Runs every task once sampled (at `spec.temperature`) and once greedily.

    Returns:
      One dict an episode: seed, task_id, mode, sample, outcome (see `first_decision`), solved,
        turns, errors.
    """
    episodes = []
    for mode, temperature in (("sampled", spec.temperature), ("greedy", 0.0)):
        run = dataclasses.replace(spec, temperature=temperature, stop_at_decision=True)
        for trajectory in run_episodes(
            cfg, weights, chat, tasks, run, key, seed=seed, advance=advance
        )[0]:
            episodes.append(
                {
                    "seed": seed,
                    "task_id": trajectory.task_id,
                    "mode": mode,
                    "sample": 0,
                    "outcome": first_decision(trajectory, chat.setting),
                    "solved": trajectory.solved,
                    "turns": sum(m["role"] == "assistant" for m in trajectory.messages),
                    "errors": error_counts(trajectory, chat.setting),
                }
            )
    return episodes
