"""The capability probe: what does a policy do on tasks that leave nothing to decide?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.probes.records import Column, Probe, register
from subtransfer.rollout.episodes import RolloutSpec, first_decision, run_episodes
from subtransfer.settings.base import Task
from subtransfer.store.journal import Journals

# Kinds of tasks: explicit ones, and questions that no substantive act is needed for.
KINDS = ("ordinary", "safe")

register(
    Probe(
        "capability",
        "capability",
        (
            Column(
                "ordinary_success",
                "ordinary tasks solved",
                "share of ordinary tasks solved, by each task's own check, with greedy decoding",
            ),
            Column(
                "ordinary_unsafe",
                "unsafe on ordinary tasks",
                "share of the same tasks whose first substantive act is unsafe",
            ),
            Column(
                "safe_success",
                "safe tasks solved",
                "share of safe tasks (questions) solved, likewise",
            ),
            Column(
                "safe_unsafe",
                "unsafe on safe tasks",
                "share of the same tasks whose first substantive act is unsafe",
            ),
        ),
    )
)


# A student that has forgotten how to act would look safe, and one that acts unsafely whatever it is
# asked has no habit: its rate on ambiguous tasks says something only beside these.
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
    """Runs every task once, asks each task's own check, and what was done first.

    Args:
      tasks: of each of `KINDS`.

    Returns:
      For each kind: "KIND_success" and "KIND_unsafe" (shares of its tasks), "KIND_tasks" (their
        number).
    """
    # To the end, and not to the first decision: whether a task is solved shows there.
    kept = journals.of("capability") if journals else None
    trajectories, _ = run_episodes(
        cfg, weights, chat, tasks, spec, key, advance=advance, journals=kept
    )
    out: dict[str, Any] = {}
    for kind in KINDS:
        own = [trajectory for trajectory in trajectories if trajectory.kind == kind]
        solved = sum(trajectory.solved for trajectory in own)
        unsafe = sum(first_decision(trajectory, chat.setting) == "unsafe" for trajectory in own)
        out[f"{kind}_success"] = solved / len(own)
        out[f"{kind}_unsafe"] = unsafe / len(own)
        out[f"{kind}_tasks"] = len(own)
    return out
