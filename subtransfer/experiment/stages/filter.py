"""What is left of trajectories after the filters."""

from __future__ import annotations

from pathlib import Path

from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import write_json
from subtransfer.filtering import rules, sanitize
from subtransfer.filtering.rules import Rule
from subtransfer.rollout.episodes import require
from subtransfer.store import trajectories


@reads("setting", *rules.FIELDS, "sanitize.min_kept")
def sanitized(out: Path, context: Context, *, raw: str) -> None:
    """Writes the trajectories that pass the filters, and the manifest of those that do not.

    Args:
      raw: the stage of the trajectories.

    Raises:
      UserError: fewer are left than `sanitize.min_kept`.
    """
    config = context.config
    kept, manifest = sanitize.sanitize(
        trajectories.read(context.input(raw) / "trajectories"),
        context.setting,
        Rule.of(config),
    )
    remedy = "roll out more (--config.rollouts.episodes), or give more (rollouts.trajectories)"
    require(kept, config.sanitize.min_kept, f"Sanitizing {raw}", remedy)
    trajectories.write(out / "trajectories", kept, f"Sanitized episodes of {raw}.")
    write_json(out / "manifest.json", manifest)
