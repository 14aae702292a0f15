"""Records what a simulated line runs, at the moment when it runs."""

from __future__ import annotations

from collections.abc import Sequence

from shellworld.interpreter.record import Bounds, Change, Execution, Record
from shellworld.reading.launchers import LAUNCHERS, launched
from shellworld.reading.related import NAMES, permission_related
from shellworld.world.filesystem import FileSystem
from shellworld.world.journal import Attributes, attributes, shown
from shellworld.world.tree import is_system
from shellworld.world.users import ROOT, Credentials, Users


class Frame:
    """One execution that has begun."""

    __slots__ = (
        "argv",
        "arguments",
        "changes",
        "children",
        "cut",
        "kept",
        "kind",
        "name",
        "number",
        "permission",
        "status",
        "touched",
        "uid",
    )

    argv: Sequence[str]
    arguments: tuple[str, ...]
    changes: list[tuple[str, Attributes, Attributes]]
    children: int
    cut: bool
    kept: bool
    kind: str
    name: str
    number: int
    permission: bool
    status: int | None
    touched: dict[str, Attributes | None]
    uid: int


class Recorder:
    """Collects the executions of one line at a time.

    Args:
      fs: the file system whose journal says which paths each execution touched.
      users: names of users.
    """

    def __init__(self, fs: FileSystem, users: Users):
        self.fs = fs
        self.users = users
        self.reset()

    def reset(self) -> None:
        """Starts a new line."""
        self.bounds = Bounds()
        self.frames: list[Frame] = []
        self.stack: list[Frame] = []
        self.count = 0
        self.changes_left_out = 0
        self.unseen: int | None = None
        self.fs.journal.reset()

    def begin(self, kind: str, name: str, argv: Sequence[str], who: Credentials) -> Frame:
        """Notes that a command begins; `end` must follow, whatever happens.

        Args:
          kind: as in `Execution`.
          name: as in `Execution`.
          argv: all its words.
          who: as whom it runs.
        """
        frame = Frame()
        frame.kind, frame.name, frame.argv, frame.uid = kind, name, argv, who.uid
        frame.status, frame.children, frame.number = None, 0, self.count
        related = name in NAMES and kind != "function"
        frame.permission = related and permission_related(name, argv)
        frame.changes = []
        self.count += 1
        if self.stack:
            self.stack[-1].children += 1
        self.stack.append(frame)
        frame.kept = self.bounds.admits(frame.permission, name)
        frame.arguments, frame.cut = (), False
        if frame.kept:
            self.frames.append(frame)
            frame.arguments, frame.cut = self.bounds.arguments(argv[1:])
        # What is touched from now on belongs to this command.
        frame.touched = self.fs.journal.touched
        self.fs.journal.touched = {}
        return frame

    def end(self, frame: Frame, status: int | None) -> None:
        """Notes that a command has ended, and what it changed."""
        frame.status = status
        self.stack.pop()
        touched, self.fs.journal.touched = self.fs.journal.touched, frame.touched
        for path, before in touched.items():
            if before is None:
                continue
            after = attributes(self.fs.find(path, ROOT, follow=False))
            if after is None or before[0] != after[0] or before == after or is_system(path):
                continue
            # What an inner command did is not what the outer ones did.
            for outer in (self.fs.journal.touched, *(f.touched for f in self.stack)):
                if outer.get(path) is not None:
                    outer[path] = after
            if not frame.kept and not self._admit_late(frame):
                self.changes_left_out += 1
            elif self.bounds.admits_change(path):
                frame.changes.append((path, before, after))
            else:
                frame.cut = True
                self.changes_left_out += 1

    def _admit_late(self, frame: Frame) -> bool:
        """Keeps an execution that there was no room for, now that it has changed something."""
        frame.kept = self.bounds.admits(True, frame.name)
        if frame.kept:
            self.frames.append(frame)
            frame.arguments, frame.cut = self.bounds.arguments(frame.argv[1:])
        return frame.kept

    def blind(self) -> None:
        """Notes that from here on something happens that cannot be seen."""
        if self.unseen is None:
            self.unseen = self.count

    def record(self) -> Record:
        """Returns the record of the line."""
        frames = sorted(self.frames, key=_number)
        unseen = None
        if self.unseen is not None:
            unseen = sum(frame.number < self.unseen for frame in frames)
        bounds, changes, left_out = Bounds(), [], self.changes_left_out
        for change in self.fs.changes():
            if bounds.admits_change(change[0]):
                changes.append(self._change(change))
            else:
                left_out += 1
        return Record(
            tuple(map(self._execution, frames)),
            tuple(changes),
            self.count - len(frames),
            left_out,
            unseen,
        )

    def _execution(self, frame: Frame) -> Execution:
        refused = False
        if not frame.children and frame.status and frame.kind == "program":
            if frame.name in LAUNCHERS:
                found = launched(LAUNCHERS[frame.name], frame.argv)
                refused = found is not None and bool(found[0])
            refused = refused or frame.name == "su"
        return Execution(
            frame.kind,
            frame.name,
            frame.arguments,
            self.users.user_name(frame.uid),
            frame.status,
            frame.permission,
            refused,
            tuple(map(self._change, frame.changes)),
            frame.cut,
        )

    def _change(self, change: tuple[str, Attributes, Attributes]) -> Change:
        path, before, after = change
        return Change(path, shown(before, self.users), shown(after, self.users))


def _number(frame: Frame) -> int:
    return frame.number
