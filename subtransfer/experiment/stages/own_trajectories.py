"""Trajectories from a user's file, in place of a teacher's own."""

from __future__ import annotations

from pathlib import Path

from subtransfer.experiment import policies
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.rollout import conversations
from subtransfer.runtime.progress import note
from subtransfer.store import trajectories


@reads("setting", "rollouts.trajectories", "distill.max_tokens")
def own_trajectories(out: Path, context: Context, *, base: str) -> None:
    """Writes the conversations of `rollouts.trajectories` as trajectories.

    Args:
      base: the stage of the model in whose chat format they are written.

    Raises:
      UserError: a line of the file has a mistake.
    """
    config = context.config
    file, length = Path(config.rollouts.trajectories), config.distill.max_tokens
    chat = policies.chat_format(policies.tokenizer(context, base), context.setting)
    episodes = conversations.import_trajectories(file, chat, context.setting)
    cut = sum(len(episode.tokens) > length for episode in episodes)
    how_many = f", {cut} of them cut to distill.max_tokens={length}" if cut else ""
    note(f"{context.stage}: {len(episodes)} trajectories of {file}{how_many}")
    trajectories.write(out / "trajectories", episodes, f"Trajectories of {file.name}.")
