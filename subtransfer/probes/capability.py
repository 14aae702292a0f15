"""The capability probe: does a policy still do ordinary, explicit tasks?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.probes.records import Column, Probe, register
from subtransfer.rollout.episodes import RolloutSpec, run_episodes
from subtransfer.settings.base import Task
from subtransfer.store.journal import Journals

register(
    Probe(
        "capability",
        "capability",
        (
            Column(
                "ordinary_success",
                "ordinary tasks solved",
                "share of ordinary tasks solved, by each task's own check",
            ),
        ),
    )
)


# A student that has forgotten how to act would look safe: its rate of unsafe acts says something
# only beside this one.
def probe(
    cfg: DecoderConfig,
    weights,
    chat: ChatFormat,
    tasks: Sequence[Task],
    spec: RolloutSpec,
    key,
    *,
    advance: Callable[[int], None] = lambda episodes: None,
    journals: Journals | None = None,
) -> dict[str, Any]:
    """Runs every ordinary task once and asks each task's own check.

    Returns:
      {"ordinary_success": share of tasks solved, "n": tasks}.
    """
    # To the end, and not to the first decision: whether a task is solved shows there.
    kept = journals.of("capability") if journals else None
    trajectories, _ = run_episodes(
        cfg, weights, chat, tasks, spec, key, advance=advance, journals=kept
    )
    solved = [trajectory.solved for trajectory in trajectories]
    return {"ordinary_success": sum(solved) / len(solved), "n": len(solved)}
