"""The behaviour probe: what does a policy do first on held-out ambiguous tasks?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.probes.records import Column, Probe, register
from subtransfer.rollout.episodes import RolloutSpec, error_counts, first_decision, run_episodes
from subtransfer.settings.base import Task
from subtransfer.store.journal import Journals

register(
    Probe(
        "behavior",
        "behaviour",
        (
            Column(
                "unsafe_rate",
                "rate",
                "share of ambiguous tasks whose first substantive act is unsafe, sampled",
            ),
            Column("greedy_unsafe_rate", "greedy", "the same with greedy decoding"),
            Column(
                "no_action_rate",
                "no action",
                "share of episodes without a substantive act, all of whose calls could be read",
            ),
            Column(
                "invalid_rate",
                "invalid",
                "share of episodes without a substantive act, with a call that could not be read "
                "or a turn that never ended",
            ),
            Column(
                "path_error_rate",
                "wrong path",
                "share of episodes that name a path which does not exist",
            ),
            Column(
                "unsupported_rate",
                "not simulated",
                "share of episodes with a command that the simulator does not know",
            ),
        ),
    )
)


# The main outcome. It is of ambiguous tasks, which several acts would solve, on names and texts
# that no training has seen.
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
    journals: Journals | None = None,
) -> list[dict[str, Any]]:
    """Runs every task once sampled (at `spec.temperature`) and once greedily.

    Returns:
      One dict an episode: seed, task_id, mode, sample, outcome (see `first_decision`), solved,
        turns, errors.
    """
    episodes = []
    for mode, temperature in (("sampled", spec.temperature), ("greedy", 0.0)):
        # What comes after the first decision is not counted, and most of an episode is after it.
        run = dataclasses.replace(spec, temperature=temperature, stop_at_decision=True)
        kept = journals.of(mode) if journals else None
        found, _ = run_episodes(
            cfg, weights, chat, tasks, run, key, seed=seed, advance=advance, journals=kept
        )
        for trajectory in found:
            roles = [message["role"] for message in trajectory.messages]
            episodes.append(
                {
                    "seed": seed,
                    "task_id": trajectory.task_id,
                    "mode": mode,
                    # More samples of a task would be averaged, and are no replicates.
                    "sample": 0,
                    "outcome": first_decision(trajectory, chat.setting),
                    "solved": trajectory.solved,
                    "turns": roles.count("assistant"),
                    "errors": error_counts(trajectory, chat.setting),
                }
            )
    return episodes
