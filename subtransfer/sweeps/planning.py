"""The stages that the members of a sweep need, laid out as one graph.

Most are shared, as a stage's artefact is named by all that determines it. Nothing here touches a
device.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from subtransfer.config.sweep import Sweep, differs
from subtransfer.experiment.graph import Experiment
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest
from subtransfer.sweeps.schedule import PlannedStage, SweepPlan


def plan(sweep: Sweep, workdir: Path, devices: int, *, to_run: bool = False) -> SweepPlan:
    """Validates every member and merges their stages.

    What is kept is small, however many members there are.

    Args:
      sweep: expanded.
      workdir: of all members.
      devices: of one worker.
      to_run: also refuses what can be planned but not run, or not on so many devices, and fetches
        the weights of checkpoints.

    Raises:
      UserError: for an invalid member, with its name, or for two that are the same experiment.
    """
    merged = SweepPlan(sweep.members, [], [], [])
    numbers: dict[str, int] = {}  # of the stages, by their folders
    seen: dict[str, str] = {}  # members, by the digests of what their results depend on
    with _collecting_by_hand() as collect:
        for at, member in enumerate(sweep.members):
            config = sweep.config(member)
            try:
                mesh = sharding.plan_mesh(**config.mesh, devices=devices)
                experiment = Experiment(config, workdir, mesh, weights=to_run)
                # A plan can be made for devices that are not here; a run cannot.
                if to_run:
                    # Members share bases: the first would have looked at those of the next.
                    if config.confirmatory:
                        raise UserError(
                            "confirmatory=true goes with a single run, in a workdir of its own."
                        )
                    sharding.data_size(
                        config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices
                    )
                    experiment.check()
            except UserError as error:
                raise UserError(f"Member {member.name!r} of the sweep: {error}") from error
            differs(seen, member, experiment.plan["results"].digest)
            merged.stages.append(_merge(merged.nodes, numbers, at, experiment))
            merged.geometry.append(
                digest([config.setting, config.models, config.base, config.tuning, config.mesh])
            )
            # The stages hold what builds them, and through it the experiment.
            experiment.plan.clear()
            collect()
    return merged


def _merge(
    nodes: list[PlannedStage], numbers: dict[str, int], member: int, experiment: Experiment
) -> array[int]:
    """Adds a member's stages to the nodes; returns the numbers of the member's stages.

    Args:
      nodes: of the members so far.
      numbers: theirs, by folder.
      member: its number.
      experiment: the member's.
    """
    stages = array("L")
    for stage in experiment.plan.values():
        folder = stage.folder
        number = numbers.get(folder)
        if number is None:
            number = numbers[folder] = len(nodes)
            inputs = array("L", (numbers[read] for read in stage.inputs))
            nodes.append(PlannedStage(sys.intern(stage.name), folder, inputs, stage.flops()))
        nodes[number].users.append(member)
        stages.append(number)
    return stages


@contextlib.contextmanager
def _collecting_by_hand() -> Iterator[Callable[[], Any]]:
    """Yields a function that collects the garbage since its last call.

    Python's own collector would walk the whole plan each time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield lambda: gc.collect(0)
    finally:
        if enabled:
            gc.enable()
