"""How control leaves commands, and what all shells of a session share."""

from __future__ import annotations

from shellworld.interpreter.recorder import Recorder
from shellworld.interpreter.result import Meter
from shellworld.world.filesystem import FileSystem
from shellworld.world.users import Users


class Leave(Exception):
    """Control flow out of commands."""


class LoopJump(Leave):
    """break and continue: `levels` loops, and whether the last of them goes on."""

    def __init__(self, levels: int, again: bool):
        self.levels = levels
        self.again = again


class Discard(Leave):
    """An expansion failed: the rest of the line (not of the script) is dropped."""


class Return(Leave):
    """`return` of a function or a sourced file, with its status."""

    """The builtin `return`, on its way out of a function or a sourced file."""

    def __init__(self, status: int):
        self.status = status


class Exit(Leave):
    """The shell ends, with its status."""

    """The builtin `exit`, or `set -e`, on its way out of the shell."""

    def __init__(self, status: int):
        self.status = status


class World:
    """What all shells of a session share.

    Attributes:
      missing: what was needed and is not simulated, in order; added to by `lack`.
      recorder: notes what runs.
      pid: the last process number given away.
      niceness: of the process that runs; nothing depends on it but what `nice` prints.
    """

    def __init__(self, fs: FileSystem, users: Users, meter: Meter):
        self.fs = fs
        self.users = users
        self.meter = meter
        self.missing: list[str] = []
        self.recorder = Recorder(fs, users)
        self.pid = 4200
        self.niceness = 0

    def lack(self, what: str) -> None:
        """Notes something that is needed and not simulated."""
        self.missing.append(what)
        self.recorder.blind()
