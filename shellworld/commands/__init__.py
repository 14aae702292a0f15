"""The register of commands and what a command sees of the world.

A command is a function `(ctx: Context, argv: list[str]) -> int` that returns its exit status.
`@command(names...)` registers a program (found through PATH, so that xargs, find, env and sudo can
run it); `@builtin(names...)` one that only the shell has, which may also use `ctx.shell`. A command
raises `Unsupported("grep -P")` before it does anything; it lets `FsError` out only where every
error ends it (the shell then prints "NAME: MESSAGE").
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shellworld.interpreter.result import LimitExceeded, Meter, Unsupported
from shellworld.world.filesystem import FileSystem, FsError
from shellworld.world.streams import Sink, Source, TextSink, TextSource
from shellworld.world.users import Credentials, Users

if TYPE_CHECKING:
    from shellworld.interpreter.shell import Shell

__all__ = [
    "BUILTINS",
    "PROGRAMS",
    "Context",
    "FsError",
    "LimitExceeded",
    "Unsupported",
    "builtin",
    "command",
]

_BEGINNING = 1 << 16  # characters of an input without end that a command gets

Command = Callable[["Context", list[str]], int]
PROGRAMS: dict[str, Command] = {}
BUILTINS: dict[str, Command] = {}


def command(*names: str) -> Callable[[Command], Command]:
    """Registers a program under its names."""

    def register(function: Command) -> Command:
        for name in names:
            PROGRAMS[name] = function
        return function

    return register


def builtin(*names: str, program: bool = False) -> Callable[[Command], Command]:
    """Registers a builtin; with `program`, also the program of that name (true, false, ...)."""

    def register(function: Command) -> Command:
        for name in names:
            BUILTINS[name] = function
            if program:
                PROGRAMS[name] = function
        return function

    return register


class Context:
    """One running command's view of the world.

    Attributes:
      shell: the shell that runs it; for builtins, and for what only a shell knows.
      fs: the file system; users: names and numbers of users and groups.
      who: effective credentials (uid, gid, groups).
      cwd: absolute path of the working directory.
      env: exported variables.
      source, out, err: open stdin, stdout, stderr.
      name: the command's name as called, for error messages.
    """

    __slots__ = (
        "shell",
        "fs",
        "users",
        "who",
        "cwd",
        "env",
        "source",
        "out",
        "err",
        "meter",
        "name",
        "endless",
    )

    def __init__(
        self,
        shell: Any,
        who: Credentials,
        cwd: str,
        env: Mapping[str, str],
        source: Source | None,
        out: Sink,
        err: Sink,
        name: str,
    ):
        self.shell: Shell = shell
        self.fs: FileSystem = shell.fs
        self.users: Users = shell.users
        self.meter: Meter = shell.meter
        self.who = who
        self.cwd = cwd
        self.env = env
        self.source = source
        self.out = out
        self.err = err
        self.name = name
        self.endless = False  # it has read all that there is of an input that has no end

    # -- input and output --------------------------------------------------------------

    @property
    def stdin(self) -> str:
        """All that is left of standard input, as text; "" if there is none, or a second time."""
        if self.source is None:
            return ""
        text = self.source.read()
        if getattr(self.source, "endless", False):
            # More than its beginning would only cost steps: no command gets to the end.
            self.endless = True
            text = text[: text.rfind("\n", 0, _BEGINNING) + 1 or _BEGINNING]
        self.meter.tick(len(text) >> 6)
        return text

    def read_head(self) -> tuple[str, bool]:
        """Returns what is left of standard input, and whether there would be more.

        It is for commands that need only its beginning.
        """
        if self.source is None:
            return "", False
        return self.source.read(), getattr(self.source, "endless", False)

    @property
    def stdin_given(self) -> bool:
        """Whether standard input is a pipe, a file or a here-document."""
        return self.source is not None

    def write(self, text: str) -> None:
        """Writes to stdout."""
        self.out.write(text)

    def error(self, text: str) -> None:
        """Writes to stderr; adds nothing."""
        self.err.write(text)

    def fail(self, text: str, status: int = 1) -> int:
        r"""Writes "NAME: TEXT\n" to stderr and returns the status."""
        self.err.write(f"{self.name}: {text}\n")
        return status

    def tick(self, n: int = 1) -> None:
        """Counts n lines or entries of work against the limits."""
        self.meter.tick(n)

    def path(self, path: str) -> str:
        """Returns the absolute path against the working directory.

        Symlinks and ".." are left to the file system.
        """
        return path if path.startswith("/") else posixpath.join(self.cwd, path) if path else ""

    # -- other commands ----------------------------------------------------------------

    def which(self, name: str) -> str | None:
        """Returns the path of the program that `run` would run, or None.

        None stands for "No such file or directory" (status 127).
        """
        return self.shell.which(name, self.env.get("PATH", ""), self.who, self.cwd)

    def run(
        self,
        argv: list[str],
        stdin: str | None = "",
        who: Credentials | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> int:
        """Runs a program (no builtin, function or alias) and returns its status.

        It has this command's stdout and stderr. An unknown one gives 127, one that may not be
        executed 126, both silently: check `which` first to complain.

        Args:
          argv: name and arguments.
          stdin: its input; None hands on this command's own.
          who, env, cwd: default to this command's.
        """
        source = self.source if stdin is None else TextSource(stdin) if stdin else None
        return self.shell.execute(
            argv,
            Context(
                self.shell,
                who or self.who,
                cwd or self.cwd,
                self.env if env is None else env,
                source,
                self.out,
                self.err,
                argv[0],
            ),
        )

    def capture(self, argv: list[str], stdin: str = "") -> tuple[int, str]:
        """As `run`, but returns (status, what it wrote to stdout)."""
        sink = TextSink(self.meter)
        ctx = Context(
            self.shell,
            self.who,
            self.cwd,
            self.env,
            TextSource(stdin) if stdin else None,
            sink,
            self.err,
            argv[0],
        )
        return self.shell.execute(argv, ctx), sink.text()
