"""A simulated shell session: lines in, results out, one world that they change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shellworld.interpreter import programs
from shellworld.interpreter.control import Discard, Exit, LoopJump, Return, World
from shellworld.interpreter.result import LimitExceeded, Limits, Meter, Result, Unsupported
from shellworld.interpreter.shell import Shell
from shellworld.interpreter.subshell import final_command
from shellworld.language.syntax import parse
from shellworld.world.filesystem import FsError
from shellworld.world.image import Image, export
from shellworld.world.streams import TextSink

__all__ = ["Image", "Limits", "Session"]

programs.load()


class Session:
    """Bash without a terminal, in a world of its own.

    Args:
      tree: a normal tree (see tree.normalise), or its image, from which many sessions begin at
        once; neither is changed.
      limits: bounds of each line.
    """

    def __init__(self, tree: Mapping[str, Any] | Image, *, limits: Limits = Limits()):  # noqa: B008 (immutable)
        self._image = tree if isinstance(tree, Image) else Image(tree)
        self._limits = limits
        self._world = World(self._image.file_system(limits), self._image.users, Meter(limits))
        self._shell = self._new_shell()

    def _new_shell(self) -> Shell:
        image = self._image
        return Shell(self._world, image.who, image.tree["cwd"], image.environment, {})

    def run(self, line: str) -> Result:
        """Runs a line (or several) and never raises for what it says.

        Variables, functions, options and the working directory stay for the next line; after `exit`
        (or a failure under `set -e`) the next line gets a new shell in the same world. A limit that
        is exceeded ends the line with 124 or 137.
        """
        shell = self._shell
        meter = self._world.meter
        meter.reset()
        recorder = self._world.recorder
        recorder.reset()
        missing = self._world.missing = []
        out, err = TextSink(meter), TextSink(meter)
        shell.files = {1: out, 2: err}
        shell.depth = shell.guard = shell.loops = 0
        ended = False
        try:
            if len(line) > self._limits.line:
                raise LimitExceeded("line length")
            script = parse(line)
            shell.final = final_command(script)
            status = shell.run_script(script)
            if script.error:
                recorder.blind()
        except Exit as leave:
            status = shell.status = leave.status
            ended = True
        except (Return, LoopJump, Discard):
            status = shell.status
        except LimitExceeded as error:
            status = self._stop(err, error)
        except RecursionError:
            status = self._stop(err, LimitExceeded("recursion"))
        except (FsError, Unsupported) as error:
            err.parts.append(f"bash: {error}\n")
            status = 1
        try:
            if shell.traps:
                shell.run_exit_trap()
                status = shell.status
        except (LimitExceeded, RecursionError) as error:
            status = self._stop(
                err, error if isinstance(error, LimitExceeded) else LimitExceeded("recursion")
            )
        except (Exit, Return, LoopJump, Discard, FsError):
            pass
        if ended:
            self._shell = self._new_shell()
        record = recorder.record()
        unsupported = tuple(dict.fromkeys(missing))
        return Result(out.text(), err.text(), status & 255, unsupported, record)

    def _stop(self, err: TextSink, error: LimitExceeded) -> int:
        err.parts.append(f"bash: {error}\n")
        self._shell = self._new_shell()
        return error.status

    def tree(self) -> dict[str, Any]:
        """The world now, as a normal tree."""
        return export(
            self._world.fs,
            self._world.users,
            self._image.tree,
            self._shell.cwd,
            self._shell.who.umask,
        )
