"""Records what a simulated line runs, at the moment when it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shellworld.interpreter.record import Bounds, Change, Execution, Record
from shellworld.reading.launchers import LAUNCHERS, launched
from shellworld.reading.related import permission_related
from shellworld.world.filesystem import FileSystem
from shellworld.world.journal import Attributes, attributes, shown
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
        self.fs.journal.touched = {}

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
        frame.permission = kind != "function" and permission_related(name, argv)
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
            after = attributes(self.fs.find(path, ROOT, follow=False))
            for outer in (self.fs.journal.touched, *(f.touched for f in self.stack)):
                if outer.get(path) is not None:
                    outer[path] = after
            if before is None or after is None or before[0] != after[0] or before == after:
                continue
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

    def record(self, before: Mapping[str, Attributes], after: Mapping[str, Attributes]) -> Record:
        """Returns the record of the line.

        Args:
          before: attributes of all paths when the line began.
          after: the same when it had ended.
        """
        frames = sorted(self.frames, key=lambda frame: frame.number)
        unseen = None
        if self.unseen is not None:
            unseen = sum(frame.number < self.unseen for frame in frames)
        bounds, changes, left_out = Bounds(), [], self.changes_left_out
        if before is not after:
            for path in sorted(before.keys() & after.keys()):
                old, new = before[path], after[path]
                if old == new or old[0] != new[0]:
                    continue
                if bounds.admits_change(path):
                    changes.append(self._change((path, old, new)))
                else:
                    left_out += 1
        return Record(
            tuple(self._execution(frame) for frame in frames),
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
