"""The stages of a sweep, and which is made next.

Pure bookkeeping: it is told what happened, and asked what is to be done.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from subtransfer.experiment import names


class PlannedStage:
    """A stage of a sweep's plan; many members may need it.

    Stages are known by their numbers: their places in `SweepPlan.nodes`.

    Attributes:
      name: of the stage, e.g. "student.sft.seed0".
      folder: the name of its artefact's folder.
      inputs: numbers of the stages that it reads.
      users: numbers of the members that need it, ascending.
      flops: estimated floating-point operations; 0 where these are not what takes the time.
    """

    __slots__ = ("name", "folder", "inputs", "users", "flops")

    def __init__(self, name: str, folder: str, inputs: array[int], flops: float):
        self.name = name
        self.folder = folder
        self.inputs = inputs
        self.users: array[int] = array("L")
        self.flops = flops

    @property
    def kind(self) -> str:
        """What it does: the part of the name before the first dot."""
        return names.kind(self.name)


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """The stages of all members.

    Attributes:
      members: in order; each has a `name` and `overrides`. A member's number is its place here.
      nodes: each distinct stage once, inputs before what reads them.
      stages: for each member the numbers of its stages, in the order of a single run.
      geometry: for each member a text that members with models of the same shapes share.
    """

    members: Sequence[Any]
    nodes: list[PlannedStage]
    stages: list[array[int]]
    geometry: list[str]

    def node(self, member: int, name: str) -> PlannedStage:
        """Returns a member's stage by name."""
        return next(node for node in self.nodes_of(member) if node.name == name)

    def nodes_of(self, member: int) -> list[PlannedStage]:
        """Returns a member's stages, in the order of a single run."""
        return [self.nodes[number] for number in self.stages[member]]

    def folders_of(self, member: int) -> dict[str, str]:
        """Returns the folders of a member's stages by their names."""
        return {node.name: node.folder for node in self.nodes_of(member)}


WAITING, READY, RUNNING, ELSEWHERE, DONE, FAILED = range(6)


@dataclasses.dataclass(frozen=True)
class MemberFailure:
    """Why a member has no results.

    Attributes:
      stage: the number of the stage that failed.
      sentence: what it failed with.
    """

    stage: int
    sentence: str


class Schedule:
    """The state of every stage and member.

    Args:
      plan: of the sweep.
      finished: numbers of the stages whose artefacts are there.
      retries: how often a stage whose failure is transient is tried again.

    Attributes:
      state: of each stage.
      failures: by the number of a member that has failed.
      completed: members all of whose stages are there, in that order; for whoever publishes to take
        out.
      running: the stages that are being made by this command.
      elsewhere: the stages that are being made by other commands.
    """

    def __init__(self, plan: SweepPlan, finished: set[int], retries: int):
        self.plan = plan
        # A byte a stage: sweeps have a hundred thousand.
        self.state = bytearray(len(plan.nodes))
        self.failures: dict[int, MemberFailure] = {}
        self.completed: list[int] = []
        self._retries = retries
        self._tried: dict[int, int] = {}
        self.elsewhere: set[int] = set()
        self.running: set[int] = set()
        # Of each stage: how many inputs are missing, and which stages read it.
        self._missing = array("L", (len(node.inputs) for node in plan.nodes))
        self._readers: list[array[int]] = [array("L") for _ in plan.nodes]
        for number, node in enumerate(plan.nodes):
            for read in node.inputs:
                self._readers[read].append(number)
        # Of each member: how many stages are not done, and how many can be made now.
        self._left = array("L", map(len, plan.stages))
        self._ready = array("L", [0]) * len(plan.members)
        self._open = len(plan.members)  # members that are neither done nor have failed
        # What reads nothing can be made at once; what is there already makes others ready.
        for number in range(len(plan.nodes)):
            if not self._missing[number]:
                self._set(number, READY)
        for number in sorted(finished):
            self.done(number)

    @property
    def over(self) -> bool:
        """Whether every member has its results or has failed."""
        return not self._open

    @property
    def left(self) -> int:
        """How many stages are neither done nor given up."""
        return len(self.state) - self.state.count(DONE) - self.state.count(FAILED)

    def unfinished(self, member: int) -> int:
        """Returns how many stages a member lacks."""
        return self._left[member]

    def _set(self, number: int, state: int) -> None:
        before, node = self.state[number], self.plan.nodes[number]
        # Counted for each member, so that `next` need not look at stages of members without any.
        if READY in (before, state):
            change = (state == READY) - (before == READY)
            for member in node.users:
                self._ready[member] += change
        self.state[number] = state
        self.running.discard(number)
        self.elsewhere.discard(number)
        if state == RUNNING:
            self.running.add(number)
        elif state == ELSEWHERE:
            self.elsewhere.add(number)

    def done(self, number: int) -> None:
        """Notes that a stage's artefact is there."""
        # Another command's artefact may be seen by more than one look at the folder.
        if self.state[number] == DONE:
            return
        self._set(number, DONE)
        for reader in self._readers[number]:
            self._missing[reader] -= 1
            # A reader that was there before stays: nobody needs its inputs for it.
            if not self._missing[reader] and self.state[reader] == WAITING:
                self._set(reader, READY)
        for member in self.plan.nodes[number].users:
            self._left[member] -= 1
            if not self._left[member] and member not in self.failures:
                self.completed.append(member)
                self._open -= 1

    def started(self, number: int) -> None:
        """Notes that a worker of this command makes a stage."""
        self._set(number, RUNNING)

    def busy(self, number: int) -> None:
        """Notes that another command is making a stage."""
        self._set(number, ELSEWHERE)

    def again(self, number: int) -> None:
        """Notes that a stage has to be made after all."""
        self._set(number, READY)

    def failed(self, number: int, sentence: str, *, transient: bool) -> bool:
        """Notes that a stage has failed.

        If it is not tried again, so have the members that need it.

        Args:
          number: of the stage.
          sentence: why.
          transient: whether trying again may help.

        Returns:
          Whether it will be tried again.
        """
        # Counted for each stage: one that kills its worker each time must not hold up the sweep.
        self._tried[number] = self._tried.get(number, 0) + 1
        if transient and self._tried[number] <= self._retries:
            self._set(number, READY)
            return True
        self._set(number, FAILED)
        for member in self.plan.nodes[number].users:
            # The first failure is the cause; a second one of the same member adds nothing.
            if member not in self.failures:
                self.failures[member] = MemberFailure(number, sentence)
                self._open -= 1
        return False

    def next(self, member: int | None) -> tuple[int, int] | None:
        """Chooses the stage that a worker makes next.

        Depth first: of the same member, then of members with models of the same shapes (whose
        programs the worker has compiled), then of the first member that has one.

        Args:
          member: that the worker's last stage was made for, or None.

        Returns:
          The stage's number and the member that it is made for; None if none can be made.
        """
        for candidate in self._candidates(member):
            # What a failed member shares with others is made for one of these.
            if candidate in self.failures or not self._ready[candidate]:
                continue
            for number in self.plan.stages[candidate]:
                if self.state[number] == READY:
                    return number, candidate
        return None

    def _candidates(self, member: int | None) -> Iterator[int]:
        everyone = range(len(self.plan.members))
        if member is not None:
            yield member
            # Compiling a model of other shapes may take longer than training it.
            shapes = self.plan.geometry
            yield from (other for other in everyone if shapes[other] == shapes[member])
        yield from everyone

    def counts(self) -> tuple[int, int]:
        """Returns how many stages are done, and how many there are."""
        return self.state.count(DONE), len(self.state)
