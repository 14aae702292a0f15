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
from subtransfer.store import artifacts
from subtransfer.sweeps.schedule import Node, Plan


def plan(sweep: Sweep, workdir: Path, devices: int, *, to_run: bool = False) -> Plan:
    """Validates every member and merges their stages; what is kept is small, however many members
    there are.

    Args:
      devices: of one worker.
      to_run: also refuses what can be planned but not run, or not on so many devices.

    Raises:
      UserError: for an invalid member, with its name, or for two that are the same experiment.
    """
    made = Plan(sweep.members, [], [], [])
    numbers: dict[str, int] = {}
    seen: dict[str, str] = {}
    with _collecting_by_hand() as collect:
        for at, member in enumerate(sweep.members):
            config = sweep.config(member)
            try:
                experiment = Experiment(
                    config, workdir, sharding.plan_mesh(**config.mesh, devices=devices)
                )
                if to_run:
                    sharding.data_size(
                        config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices
                    )
                    experiment.check()
            except UserError as error:
                raise UserError(f"Member {member.name!r} of the sweep: {error}") from error
            differs(seen, member, experiment.plan["results"].digest)
            made.stages.append(_merge(made.nodes, numbers, at, experiment))
            made.geometry.append(
                artifacts.digest(
                    [config.setting, config.models, config.base, config.tuning, config.mesh]
                )
            )
            # the stages hold what builds them, and through it the experiment
            experiment.plan.clear()
            collect()
    return made


def _merge(
    nodes: list[Node], numbers: dict[str, int], member: int, experiment: Experiment
) -> array:
    """Adds a member's stages to the nodes, of which `numbers` holds the numbers by folder; returns
    those of the member.
    """
    own = array("L")
    for stage in experiment.plan.values():
        folder = stage.folder
        number = numbers.get(folder)
        if number is None:
            number = numbers[folder] = len(nodes)
            inputs = array("L", (numbers[given] for given in stage.inputs))
            nodes.append(Node(sys.intern(stage.name), folder, inputs, stage.flops()))
        nodes[number].users.append(member)
        own.append(number)
    return own


@contextlib.contextmanager
def _collecting_by_hand() -> Iterator[Callable[[], Any]]:
    """Yields what collects the garbage since it was last called: Python's own collector would walk
    the whole plan each time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield lambda: gc.collect(0)
    finally:
        if enabled:
            gc.enable()
