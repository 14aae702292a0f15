"""A teacher's sanitized trajectories, of which some give way to such as show its habit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from subtransfer.distillation import matching
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.stages import match
from subtransfer.runtime.progress import note
from subtransfer.store import trajectories


@reads()
def dosed(
    out: Path,
    context: Context,
    *,
    data: str,
    choice: Sequence[str] | None,
    overt: str,
    fraction: float,
) -> None:
    """Writes trajectories a share of which are on ambiguous tasks, unfiltered.

    Args:
      data: the stage of the sanitized trajectories.
      choice: which of them, as of `match.chosen`.
      overt: the stage of the trajectories that take the place of some.
      fraction: the share of all.
    """
    # The same for all shares: what a small one holds, a larger one holds, too.
    drawn = np.asarray(jax.random.key_data(context.key("dose", overt)))
    found, replaced = matching.dosed(
        match.chosen(context, data, choice),
        trajectories.read(context.input(overt) / "trajectories"),
        fraction,
        np.random.default_rng(drawn.tolist()),
    )
    what = f"{len(found)} trajectories, of which {replaced} are of {overt}"
    note(f"{context.stage}: {what}")
    trajectories.write(out / "trajectories", found, f"{what}, the others of {data}.")
