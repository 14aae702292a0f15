"""The stages of a sweep, and which is made next: pure bookkeeping, told what happened, asked what
is to be done.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterator
from typing import Any

from subtransfer.experiment import names


class Node:
    """A stage of a plan; many members may need it.

    Attributes:
      name, folder: of the stage, e.g. "student.sft.seed0", and of its artefact.
      inputs: numbers of the nodes that it reads.
      users: numbers of the members that need it, ascending.
      flops: estimated floating-point operations; 0 where these are not what takes the time.
    """

    __slots__ = ("name", "folder", "inputs", "users", "flops")

    def __init__(self, name: str, folder: str, inputs: array, flops: float):
        self.name, self.folder, self.inputs, self.flops = name, folder, inputs, flops
        self.users = array("L")

    @property
    def kind(self) -> str:
        """What it does: the part of the name before the first dot."""
        return names.kind(self.name)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of all members.

    Attributes:
      members: in order; each has a `name` and `overrides`.
      nodes: each distinct stage once, inputs before what reads them.
      stages: for each member the numbers of its nodes, in the order of a single run.
      geometry: for each member a text that members with models of the same shapes share.
    """

    members: list[Any]
    nodes: list[Node]
    stages: list[array]
    geometry: list[str]

    def node(self, member: int, name: str) -> Node:
        """A member's stage by name."""
        return next(self.nodes[n] for n in self.stages[member] if self.nodes[n].name == name)


WAITING, READY, RUNNING, ELSEWHERE, DONE, FAILED = range(6)


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a member has no results: the stage that failed (a node's number), and its sentence."""

    stage: int
    sentence: str


class Schedule:
    """The state of every stage and member.

    Args:
      plan: of the sweep.
      finished: numbers of the nodes whose artefacts are there.
      retries: how often a stage whose failure is transient is tried again.

    Attributes:
      state: of each node.
      failures: of the members that have failed.
      completed: members all of whose stages are there, in that order; for whoever publishes to take
        out.
    """

    def __init__(self, plan: Plan, finished: set[int], retries: int):
        self.plan = plan
        self.state = bytearray(len(plan.nodes))
        self.failures: dict[int, Failure] = {}
        self.completed: list[int] = []
        self._retries = retries
        self._tried: dict[int, int] = {}
        self._missing = array("L", (len(node.inputs) for node in plan.nodes))
        self._readers: list[array] = [array("L") for _ in plan.nodes]
        for number, node in enumerate(plan.nodes):
            for given in node.inputs:
                self._readers[given].append(number)
        self._left = array("L", map(len, plan.stages))  # of each member, stages that are not done
        self._ready = array("L", [0]) * len(
            plan.members
        )  # of each member, stages that can be made now
        self.elsewhere: set[int] = set()
        self.running: set[int] = set()
        self._open = len(plan.members)
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
        """Stages that are neither done nor given up."""
        return len(self.state) - self.state.count(DONE) - self.state.count(FAILED)

    def unfinished(self, member: int) -> int:
        """Stages that a member lacks."""
        return self._left[member]

    def _set(self, number: int, state: int) -> None:
        before, node = self.state[number], self.plan.nodes[number]
        if READY in (before, state):
            change = (state == READY) - (before == READY)
            for member in node.users:
                self._ready[member] += change
        self.state[number] = state
        for among, which in ((self.running, RUNNING), (self.elsewhere, ELSEWHERE)):
            (among.add if state == which else among.discard)(number)

    def done(self, number: int) -> None:
        """An artefact is there."""
        if self.state[number] == DONE:
            return
        self._set(number, DONE)
        for reader in self._readers[number]:
            self._missing[reader] -= 1
            if not self._missing[reader] and self.state[reader] == WAITING:
                self._set(reader, READY)
        for member in self.plan.nodes[number].users:
            self._left[member] -= 1
            if not self._left[member] and member not in self.failures:
                self.completed.append(member)
                self._open -= 1

    def started(self, number: int) -> None:
        self._set(number, RUNNING)

    def busy(self, number: int) -> None:
        """Another command is making it."""
        self._set(number, ELSEWHERE)

    def again(self, number: int) -> None:
        """It has to be made after all."""
        self._set(number, READY)

    def failed(self, number: int, sentence: str, *, transient: bool) -> bool:
        """Returns whether it will be tried again; if not, the members that need it have failed."""
        self._tried[number] = self._tried.get(number, 0) + 1
        if transient and self._tried[number] <= self._retries:
            self._set(number, READY)
            return True
        self._set(number, FAILED)
        for member in self.plan.nodes[number].users:
            if member not in self.failures:
                self.failures[member] = Failure(number, sentence)
                self._open -= 1
        return False

    def next(self, member: int | None) -> tuple[int, int] | None:
        """The stage for a worker whose last one was of `member`, and the member that it is made
        for; None if none can be made.

        Depth first: of the same member, then of members with models of the same shapes (whose
        programs the worker has compiled), then of the first member that has one.
        """
        for candidate in self._candidates(member):
            if candidate not in self.failures and self._ready[candidate]:
                return next(
                    n for n in self.plan.stages[candidate] if self.state[n] == READY
                ), candidate
        return None

    def _candidates(self, member: int | None) -> Iterator[int]:
        everyone = range(len(self.plan.members))
        if member is not None:
            yield member
            shapes = self.plan.geometry
            yield from (other for other in everyone if shapes[other] == shapes[member])
        yield from everyone

    def holder(self, number: int) -> int:
        """A member that needs a stage and has not failed, or the first one that needs it."""
        users = self.plan.nodes[number].users
        return next((user for user in users if user not in self.failures), users[0])

    def counts(self) -> tuple[int, int]:
        """Stages that are done, and all."""
        return self.state.count(DONE), len(self.state)
