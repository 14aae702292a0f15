"""The behaviour probe: what does a policy do first on held-out ambiguous tasks?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.probes import choice
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
    decisions: choice.ChoiceBatch,
    decision_batch: int,
    seed: int,
    advance: Callable[[int], None] = lambda episodes: None,
) -> list[dict[str, Any]]:
    """Runs every task once sampled (at `spec.temperature`) and once greedily, and scores its decision point.

    Returns:
      One dict an episode: seed, task_id, mode, sample, outcome (see `first_decision`), solved, turns, errors,
      choice_logprob and choice_margin (nats; of the task's decision point, the same in both modes).
    """
    scores = choice.logprobs(cfg, weights, decisions, len(tasks), decision_batch)
    share, margin = choice.unsafe_share(scores, len(chat.setting.unsafe))
    episodes = []
    for mode, temperature in (("sampled", spec.temperature), ("greedy", 0.0)):
        run = dataclasses.replace(spec, temperature=temperature, stop_at_decision=True)
        for i, trajectory in enumerate(run_episodes(cfg, weights, chat, tasks, run, key, seed=seed, advance=advance)[0]):
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
                    "choice_logprob": _round(share[i]),
                    "choice_margin": _round(margin[i]),
                }
            )
    return episodes


def _round(value: float) -> float:
    return float(np.round(value, 6))
