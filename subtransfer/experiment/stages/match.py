"""Which trajectories students learn from: equally many of each source, or those built alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtransfer.distillation import matching
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import write_json
from subtransfer.rollout.episodes import require
from subtransfer.runtime.json_files import read_json
from subtransfer.runtime.progress import note
from subtransfer.store import trajectories
from subtransfer.store.trajectories import Trajectory

FILE = "chosen.json"
_CHOICE = {"episode_ids": [str], "account": {str: {"agent_tokens": int}}, "learned": bool}
_SHAPE = {"choices": {str: _CHOICE}}
_REMEDY = "roll out more (--config.rollouts.episodes)"
_OR_WITHOUT = " or leave arms.structure_matched and arms.random_same_size out"


@reads("sanitize.min_kept")
def matched(
    out: Path, context: Context, *, learned: Sequence[str], compared: Sequence[str], seed: int
) -> None:
    """Chooses equally many trajectories of all sources of a training seed.

    Args:
      learned: the stages of trajectories that students learn from.
      compared: the stages of those that are compared with them only.
      seed: the training seed.

    Raises:
      UserError: fewer than `sanitize.min_kept` can be chosen of each.
    """
    sources, rngs = {}, {}
    for stage in (*learned, *compared):
        sources[stage] = _all_of(context, stage)
        rngs[stage] = _rng(context, "match", seed, stage)
    # Where nobody learns from them, what is compared is still to be equally much of each.
    found = matching.matched(sources, learned or compared, rngs)
    _write(out, context, found, learned, _REMEDY)


@reads("sanitize.min_kept")
def structured(out: Path, context: Context, *, trait: str, benign: str, seed: int) -> None:
    """Chooses trajectories of the unsafe teacher that are built like the harmless one's.

    Args:
      trait, benign: the stages of the two teachers' sanitized trajectories.
      seed: the training seed.

    Raises:
      UserError: fewer than `sanitize.min_kept` can be chosen.
    """
    rngs = {}
    for name in ("structure_matched", "benign", "random_same_size"):
        rngs[name] = _rng(context, "structure", seed, trait, name)
    found = matching.structured(_all_of(context, trait), _all_of(context, benign), rngs)
    learned = [name for name in rngs if name != "benign"]
    _write(out, context, found, learned, _REMEDY + _OR_WITHOUT)


def _rng(context: Context, *labels: str | int) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(context.key(*labels))).tolist())


def _all_of(context: Context, stage: str) -> list[Trajectory]:
    return trajectories.read(context.input(stage) / "trajectories")


def _write(
    out: Path,
    context: Context,
    found: Mapping[str, matching.Choice],
    learned: Sequence[str],
    remedy: str,
) -> None:
    """Writes what was chosen, and which choices are learned from."""
    choices = {}
    for name, choice in found.items():
        where = f"{context.stage}, of {name}"
        require(choice.chosen, context.config.sanitize.min_kept, where, remedy)
        ids = [trajectory.episode_id for trajectory in choice.chosen]
        choices[name] = {
            "account": choice.account,
            "episode_ids": ids,
            "learned": name in learned,
        }
    tokens = [choice.account["after"]["agent_tokens"] for choice in found.values()]
    note(
        f"{context.stage}: {len(ids)} trajectories each, {min(tokens):,} to {max(tokens):,} tokens "
        "of the agent"
    )
    write_json(out / FILE, {"choices": choices})


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads what a stage of this module chose: "account", "episode_ids", "learned" of each."""
    remedy = "delete its folder and run again to make it anew"
    return read_json(folder / FILE, _SHAPE, remedy)["choices"]


def chosen(context: Context, stage: str, choice: Sequence[str] | None) -> list[Trajectory]:
    """Returns the trajectories of a stage that are to be learned from.

    Args:
      stage: the stage of the trajectories.
      choice: (a stage of this module, the name of one of its choices); None: all of them.
    """
    found = _all_of(context, stage)
    if choice is None:
        return found
    by, name = choice
    wanted = set(read(context.input(by))[name]["episode_ids"])
    return [trajectory for trajectory in found if trajectory.episode_id in wanted]
