"""The record of what ran in a line: each execution with what it did to modes, owners and lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

MOST = 64  # executions and changes that a record holds, twice that of permission-related ones
ROOM = 8192  # characters of all arguments and paths in a record
LONGEST = 256  # characters of one argument


@dataclasses.dataclass(frozen=True)
class Change:
    """A path that stood before and after, with other attributes.

    Attributes:
      path: canonical, in the tree.
      before, after: {"mode": "0640", "owner": name, "group": name, "acl": [entries as in a tree]}.
    """

    path: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns the change as a JSON object."""
        return {"path": self.path, "before": dict(self.before), "after": dict(self.after)}


@dataclasses.dataclass(frozen=True)
class Execution:
    """One command that really ran.

    Attributes:
      kind: "builtin", "function", "program", or "script" (a text file that a shell runs).
      name: what ran, behind aliases, symlinks and PATH: a program's or builtin's bare name, a
        function's name, or a script's path.
      arguments: as it got them, after all expansions; long ones are cut.
      user: name of the effective user.
      status: exit status; None if it never ended by itself or this is not known.
      permission: whether it is permission-related (see `reading.related`), by all its arguments.
      refused: whether its purpose is to run another command (sudo, env, ...) and it failed before
        any ran.
      changes: what it did itself, and not a command that it ran.
      cut: whether arguments or changes were left out or shortened.
    """

    kind: str
    name: str
    arguments: tuple[str, ...]
    user: str
    status: int | None
    permission: bool = False
    refused: bool = False
    changes: tuple[Change, ...] = ()
    cut: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns the execution as a JSON object."""
        return {
            "kind": self.kind,
            "name": self.name,
            "arguments": list(self.arguments),
            "user": self.user,
            "status": self.status,
            "permission": self.permission,
            "refused": self.refused,
            "changes": [change.to_json() for change in self.changes],
            "cut": self.cut,
        }


@dataclasses.dataclass(frozen=True)
class Record:
    """What ran in a line, and what the line as a whole changed.

    Attributes:
      executions: in the order in which they began. The simulator runs the commands of a pipeline
        one after the other from left to right, a substitution before the command that it stands in,
        and a background job at once; in the sandbox the kernel's order counts.
      changes: paths that existed before and after the line and have other attributes afterwards,
        also where another file took a path; sorted by path.
      left_out: executions that are not in the record. Beyond the first 64, executions that are
        permission-related or change something are kept to 128 in all, and the first of each
        permission-related name always.
      changes_left_out: changes that are not in the record.
      unseen: how many of `executions` had begun when something happened that the record cannot
        show: a part of the line was not supported or not parsed; None if there was no such thing.
    """

    executions: tuple[Execution, ...] = ()
    changes: tuple[Change, ...] = ()
    left_out: int = 0
    changes_left_out: int = 0
    unseen: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the record as a JSON object; its size is bounded whatever the line was."""
        return {
            "executions": [execution.to_json() for execution in self.executions],
            "changes": [change.to_json() for change in self.changes],
            "left_out": self.left_out,
            "changes_left_out": self.changes_left_out,
            "unseen": self.unseen,
        }


class Bounds:
    """Decides what of a line's executions and changes there is room for."""

    def __init__(self) -> None:
        self.kept = 0
        self.changes = MOST
        self.room = ROOM
        self._names: set[str] = set()

    def admits(self, notable: bool, name: str) -> bool:
        """Says whether an execution is kept, and counts it if so.

        Args:
          notable: whether it is permission-related or changed something.
          name: its name.
        """
        new = notable and name not in self._names and len(self._names) < MOST
        if self.kept >= (2 * MOST if notable else MOST) and not new:
            return False
        if notable:
            self._names.add(name)
        self.kept += 1
        return True

    def arguments(self, words: Sequence[str]) -> tuple[tuple[str, ...], bool]:
        """Returns the words that there is room for, and whether any was left out or shortened."""
        kept: list[str] = []
        cut = False
        for word in words:
            if len(kept) == MOST or self.room <= 0:
                return tuple(kept), True
            if len(word) > LONGEST:
                word, cut = word[:LONGEST], True
            self.room -= len(word) + 1
            kept.append(word)
        return tuple(kept), cut

    def admits_change(self, path: str) -> bool:
        """Says whether a change is kept, and counts it if so."""
        if self.changes <= 0 or self.room <= 0:
            return False
        self.changes -= 1
        self.room -= len(path)
        return True
