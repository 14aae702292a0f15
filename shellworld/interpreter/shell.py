"""One shell process: its state, and the compound commands."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from shellworld.interpreter.conditions import holds
from shellworld.interpreter.control import Discard, Exit, LoopJump, World
from shellworld.interpreter.expand import Expander
from shellworld.interpreter.pipelines import Joiner
from shellworld.interpreter.redirect import Files, apply_redirects
from shellworld.interpreter.result import Unsupported
from shellworld.interpreter.variables import DECLARED, Scope, ShellError
from shellworld.language import ast, pattern
from shellworld.language.quoting import trace_word
from shellworld.world.filesystem import FsError
from shellworld.world.users import ROOT, Credentials


class Shell(Joiner):
    """One shell process: variables, functions, options, working directory, credentials, open files.

    Args:
      world: what it shares.
      who, cwd, env: as the process was started.
      files: open files by number; a missing 0 means no input.
      arg0, positional: $0 and $1...
      name: what error messages begin with.
      posix: runs as sh.
    """

    # Declared here, as the parts of this class use them before they are assigned.
    ahead: list[ast.Redirect]
    depth: int
    files: Files
    final: ast.Simple | None
    guard: int
    in_function: int
    last_word: str
    level: int
    line: int
    loops: int
    pid: int
    positional: list[str]
    scope: Scope
    status: int
    substituted: int | None

    def __init__(
        self,
        world: World,
        who: Credentials,
        cwd: str,
        env: Mapping[str, str],
        files: Files,
        arg0: str = "bash",
        positional: list[str] | None = None,
        name: str = "bash",
        posix: bool = False,
    ):
        self.world = world
        self.fs = world.fs
        self.users = world.users
        self.meter = world.meter
        self.limits = world.meter.limits
        self.who = who
        self.cwd = cwd
        self.scope = Scope(env, self._computed, posix)
        # $_, the last word of the command before; to dash it is a variable like any other.
        self.last_word = env.get("_", name)
        if not posix:
            self.scope.names.pop("_", None)
        if not env.get("OLDPWD"):
            self.scope.names.pop("OLDPWD", None)
            if not posix:
                self.scope.names["OLDPWD"] = DECLARED  # bash has it without a value
        self.scope.set("IFS", " \t\n")
        self.posix = posix
        self.begin_level(env.get("SHLVL", ""), files)
        self.stand(env.get("PWD"))
        self.files = files
        self.arg0 = arg0
        self.positional = positional or []
        self.name = name
        self.functions: dict[str, ast.Command] = {}
        self.aliases: dict[str, str] = {}
        self.options: set[str] = set()
        self.traps: dict[str, str] = {}
        self.pipestatus: list[int] = []
        self.source = ""  # the file that is read, if commands come from one
        self.calls: list[str] = []
        self.status = 0
        # Status of the last command substitution of the running command.
        self.substituted = None
        self.line = 1
        self.ahead = []  # redirections of later commands of the pipeline that this shell is in
        self.final: ast.Simple | None = None  # the command that this shell ends with
        self.level = 0
        self.depth = 0
        self.guard = 0  # above 0, failures do not end the shell under set -e
        self.loops = 0
        self.pid = world.pid
        self.background: dict[int, int] = {}
        self.in_function = 0
        self.sourced = 0
        self.expander = Expander(self)
        self.substitutions: list[tuple[str, ast.List | None, object]] = []
        self.pending_arrays: dict[str, ast.Assignment] = {}
        self.getopts_index = 1  # where getopts is: the argument, and the place in it
        self.getopts_place = 1
        self._seed = 1

    def begin_level(self, above: str, files: Files) -> None:
        """Sets SHLVL, how deep shells stand in each other, which dash leaves as it is."""
        if self.posix:
            return
        level = int(above) + 1 if re.fullmatch(r"\s*[+-]?\d{1,9}\s*", above) else 1
        if level >= 1000:
            files[2].write(f"bash: warning: shell level ({level}) too high, resetting to 1\n")
            level = 1
        self.scope.set("SHLVL", str(max(level, 0)))
        self.scope.declare("SHLVL", exported=True)

    def stand(self, given: str | None) -> None:
        """Sets PWD, and by which name the working directory is known.

        That is the one that the variable had before, if it still means this directory, and without
        symlinks if not.
        """
        if given != self.cwd:
            here = self.fs.find(self.cwd, ROOT)
            named = given is not None and given.startswith("/")
            if named and here is not None and self.fs.find(given or "", ROOT) is here:
                self.cwd = given or ""
            elif here is not None:
                self.cwd = self.fs.resolve(self.cwd)
            self.scope.set("PWD", self.cwd)
        if given is not None or not self.posix:
            self.scope.declare("PWD", exported=True)

    def fork(self) -> Shell:
        """A subshell: what it changes, other than files, is its own."""
        copy = Shell.__new__(Shell)
        copy.__dict__.update(self.__dict__)
        copy.scope = self.scope.fork(copy._computed)
        copy.functions = self.functions.copy()
        copy.aliases = self.aliases.copy()
        copy.options = self.options.copy()
        copy.traps = {}
        copy.calls = self.calls.copy()
        copy.positional = self.positional
        copy.files = self.files.copy()
        copy.background = {}
        copy.substitutions = []
        copy.pending_arrays = {}
        copy.level = self.level + 1
        copy.expander = Expander(copy)
        return copy

    def _computed(self, name: str) -> str | None:
        """Returns the value of a variable that is made when it is read, or None."""
        value = COMPUTED.get(name)
        return value if value is None or isinstance(value, str) else value(self)

    def random(self) -> str:
        """$RANDOM, always the same sequence."""
        self._seed = (self._seed * 16807) % 2147483647
        return str(self._seed & 32767)

    def special(self, name: str) -> str | None:
        """$#, $?, $$, $! and $-."""
        if name == "?":
            return str(self.status)
        if name == "#":
            return str(len(self.positional))
        if name == "$":
            return str(self.pid)
        if name == "!":
            return str(max(self.background)) if self.background else None
        return "".join(sorted(o for o in "aefhbmnuvxBC" if o in self.options)) + "hBc"

    def own_home(self) -> str:
        """Returns the home directory of the shell's user."""
        user = self.users.user(self.who.uid)
        return user.home if user else "/"

    def absolute(self, path: str) -> str:
        """Returns a path against the working directory; nothing stays nothing."""
        return path if path.startswith("/") else f"{self.cwd}/{path}" if path else ""

    # -- messages ------------------------------------------------------------------

    def complain(self, message: str) -> None:
        """Writes "bash: line N: MESSAGE" to stderr."""
        self.files[2].write(f"{self.name}: line {self.line}: {message}\n")

    def lacks(self, what: str, status: int = 2, message: str = "") -> int:
        """Records something unsupported, says so, and returns the status."""
        self.world.lack(what)
        with contextlib.suppress(FsError):
            self.complain(message or f"{what}: not supported")
        return status

    # -- commands ------------------------------------------------------------------

    def run_command(self, command: ast.Command) -> int:
        """Runs a simple or compound command and returns its status."""
        if type(command) is ast.Simple:
            self.run_simple(command)
            self.pipestatus = [self.status]
            return self.status
        self.meter.tick()
        files = self.files
        opened = len(self.substitutions)
        depth = self.depth
        try:
            if command.redirects:
                self.files = apply_redirects(self, command.redirects)
            _COMPOUND[type(command)](self, command)
        except ShellError as error:
            self.shell_error(error)
        except Unsupported as error:
            self.status = self.lacks(str(error))
        except FsError as error:
            self.files = files
            self.complain(str(error))
            self.status = 1
        finally:
            self.files = files
            self.depth = depth
        if opened < len(self.substitutions):
            self.close_substitutions(opened)
        self.pipestatus = [self.status]
        return self.status

    def shell_error(self, error: ShellError) -> None:
        """Reports an error; a fatal one ends the shell."""
        (error.stderr or self.files[2]).write(f"{self.name}: line {self.line}: {error}\n")
        self.status = error.status
        if error.fatal:
            raise Exit(1 if self.level else 127)

    def discard(self, error: ShellError) -> None:
        """Reports an expansion that failed and leaves the line."""
        self.shell_error(error)
        raise Discard

    def _subshell(self, command: ast.Subshell) -> None:
        sub = self.fork()
        self.status = sub.finish(lambda: sub.run_list(command.body))

    def _group(self, command: ast.Group) -> None:
        self.run_list(command.body)

    def _condition_list(self, body: ast.List) -> bool:
        self.guard += 1
        try:
            return self.run_list(body) == 0
        finally:
            self.guard -= 1

    def _if(self, command: ast.If) -> None:
        for condition, body in command.branches:
            if self._condition_list(condition):
                self.run_list(body)
                return
        if command.otherwise is not None:
            self.run_list(command.otherwise)
        else:
            self.status = 0

    def _body(self, body: ast.List) -> bool:
        """One turn of a loop; False if the loop is left."""
        self.meter.tick()
        self.loops += 1
        depth = self.depth
        guard = self.guard
        try:
            self.run_list(body)
        except LoopJump as jump:
            self.depth = depth
            self.guard = guard
            self.status = 0
            if jump.levels > 1 and self.loops > 1:
                raise LoopJump(jump.levels - 1, jump.again) from None
            return jump.again
        finally:
            self.loops -= 1
        return True

    def _for(self, command: ast.For) -> None:
        try:
            values = (
                self.positional if command.words is None else self.expander.words(command.words)
            )
        except ShellError as error:
            self.discard(error)
        self.status = 0
        for value in list(values):
            if "x" in self.options:
                shown = " ".join(map(trace_word, values))
                self.files[2].write(f"+ for {command.name} in {shown}\n")
            self.scope.set(command.name, value)
            if not self._body(command.body):
                break

    def _for_arithmetic(self, command: ast.ForArithmetic) -> None:
        def value(word: ast.Word, default: int) -> int:
            text = self.expander.text(word)
            return self.scope.evaluate(text) if text.strip() else default

        value(command.start, 0)
        self.status = 0
        while value(command.condition, 1):
            if not self._body(command.body):
                break
            value(command.step, 0)

    def _while(self, command: ast.While) -> None:
        status = 0
        while True:
            try:
                self.loops += 1
                if self._condition_list(command.condition) == command.until:
                    break
            except LoopJump as jump:
                if jump.levels > 1 and self.loops > 1:
                    raise LoopJump(jump.levels - 1, jump.again) from None
                if not jump.again:
                    break
                continue
            finally:
                self.loops -= 1
            if not self._body(command.body):
                status = self.status
                break
            status = self.status
        self.status = status

    def _case(self, command: ast.Case) -> None:
        try:
            text = self.expander.text(command.word)
        except ShellError as error:
            self.discard(error)
        self.status = 0
        falling = False
        for item in command.items:
            if not falling and not any(
                pattern.matches(text, self.expander.pattern(p)) for p in item.patterns
            ):
                continue
            self.status = 0
            self.run_list(item.body)
            if item.end == ";;":
                return
            falling = item.end == ";&"

    def _function(self, command: ast.Function) -> None:
        self.functions[command.name] = command.body
        self.status = 0

    def _arithmetic(self, command: ast.ArithmeticCommand) -> None:
        self.line = command.line
        text = self.expander.text(command.text)
        try:
            self.status = int(self.scope.evaluate(text) == 0)
        except ShellError as error:
            raise ShellError(f"((: {error}") from error

    def _test(self, command: ast.Condition) -> None:
        self.line = command.line
        self.status = int(not holds(self, command.test))


COMPUTED: Mapping[str, str | Callable[[Shell], str]] = {
    "_": lambda shell: shell.last_word,
    "RANDOM": Shell.random,
    "LINENO": lambda shell: str(shell.line),
    "EPOCHSECONDS": lambda shell: str(shell.fs.clock),
    "BASHPID": lambda shell: str(shell.pid),
    "UID": lambda shell: str(shell.who.uid),
    "EUID": lambda shell: str(shell.who.uid),
    "BASH_SUBSHELL": lambda shell: str(shell.level),
    "SECONDS": "0",
    "PPID": "4199",
    "BASH_VERSION": "5.2.15(1)-release",
    "BASH": "/usr/bin/bash",
    "HOSTNAME": "localhost",
    "OSTYPE": "linux-gnu",
    "HOSTTYPE": "x86_64",
    "MACHTYPE": "x86_64-pc-linux-gnu",
    "OPTIND": "1",
    "PS4": "+ ",
    "BASH_COMMAND": "",
}

_COMPOUND: Mapping[type, Callable[[Shell, Any], None]] = {
    ast.Subshell: Shell._subshell,
    ast.Group: Shell._group,
    ast.If: Shell._if,
    ast.For: Shell._for,
    ast.ForArithmetic: Shell._for_arithmetic,
    ast.While: Shell._while,
    ast.Case: Shell._case,
    ast.Function: Shell._function,
    ast.ArithmeticCommand: Shell._arithmetic,
    ast.Condition: Shell._test,
}
