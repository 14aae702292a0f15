"""Simple commands: assignments, lookup of functions, builtins and programs, and starting them."""

# `Launcher` is a part of `Shell` and nothing else; its methods say so in the type of `self`.
# mypy: disable-error-code="misc"

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from shellworld.commands import BUILTINS, PROGRAMS, Context
from shellworld.interpreter.control import Exit, Return
from shellworld.interpreter.known import KNOWN
from shellworld.interpreter.redirect import Files, apply_redirects
from shellworld.interpreter.result import LimitExceeded, Unsupported
from shellworld.interpreter.variables import ShellError, Variable
from shellworld.language import ast
from shellworld.language.quoting import trace_word
from shellworld.world.filesystem import FsError, allows
from shellworld.world.streams import PipeSink
from shellworld.world.users import Credentials

if TYPE_CHECKING:
    from shellworld.interpreter.shell import Shell

PROGRAM_PLACES = frozenset(["/usr/bin", "/bin"])
BASH_ONLY = frozenset(
    "source declare typeset shopt let mapfile readarray builtin enable help history "
    "pushd popd dirs disown".split()
)
_WITHOUT_HELP = frozenset([":", "true", "false", "echo", "test", "["])  # take it as any word
# Programs that show or read times of day, and the zones in which they are as here.
_OF_TIMES = frozenset(["date", "diff", "du", "find", "ls", "stat", "tar", "touch"])
_UTC = frozenset(["", "UTC", "UTC0", "Etc/UTC"])
# Programs whose output for the beginning of an input is the beginning of their output.
_STREAMING = frozenset(
    ["awk", "cat", "cut", "egrep", "expand", "fgrep", "fold", "grep", "mawk", "nl", "paste", "rev"]
    + ["sed", "tee", "tr"]
)
_LONGEST_ARGUMENT = 131072  # bytes, as Linux has it
EMPTY_PLACES = frozenset(["/usr/local/sbin", "/usr/sbin", "/sbin"])  # nothing in them is simulated


class Launcher:
    """The part of a shell that runs simple commands."""

    def run_simple(self: Shell, command: ast.Simple) -> None:
        """Runs a simple command and leaves its status in `self.status`."""
        self.meter.tick()
        self.fs.clock += 1
        self.line = command.line
        self.substituted = None
        opened = len(self.substitutions)
        try:
            if not command.words:
                self._assign_only(command)
            else:
                self._run_words(command)
        except ShellError as error:
            self.shell_error(error)
        except Unsupported as error:
            self.status = self.lacks(str(error))
        if opened < len(self.substitutions):
            self.close_substitutions(opened)

    def _assign_only(self: Shell, command: ast.Simple) -> None:
        for assignment in command.assignments:
            try:
                shown = self.assign(assignment)
            except ShellError as error:
                self.discard(error)
            if "x" in self.options:
                self.files[2].write(f"+ {shown}\n")
        if command.redirects:
            apply_redirects(self, command.redirects)
        self.last_word = ""
        self.status = self.substituted or 0

    def _run_words(self: Shell, command: ast.Simple) -> None:
        try:
            argv = self._arguments(command)
        except ShellError as error:
            self.discard(error)
        if not argv:
            self._assign_only(command)
            return
        if "x" in self.options:
            self._trace(command, argv)
        name = argv[0]
        files = self.files
        if command.redirects:
            files = apply_redirects(self, command.redirects)
        function = self.functions.get(name)
        if function is not None:
            self.status = self._with_variables(
                command.assignments, lambda: self.call(function, argv, files)
            )
        elif name in BUILTINS:
            if self.posix and name in BASH_ONLY:
                raise Unsupported(f"{name} in sh")
            if name == "exec":
                self.status = self._with_variables(
                    command.assignments, lambda: self.execute_instead(argv, files)
                )
            elif command.assignments:
                self.status = self._with_variables(
                    command.assignments, lambda: self.run_builtin(argv, files)
                )
            else:
                self.status = self.run_builtin(argv, files)
        else:
            # Bash does not fork for the last command of its text, but becomes it.
            last = command is self.final and not self.traps and not command.redirects
            env: Mapping[str, str] = self.exported_to_successor() if last else self.scope.exported()
            if command.assignments:
                env = {**self._temporary(command.assignments), **env}
                env |= self._temporary(command.assignments)
            self.status = self.start(argv, files, env)
        self.last_word = argv[-1]

    def _arguments(self: Shell, command: ast.Simple) -> list[str]:
        argv: list[str] = []
        for word in command.words:
            if isinstance(word, ast.Assignment):
                argv.append(self.declaration(word))
            elif word.plain is not None:
                argv.append(word.plain)
            else:
                argv += self.expander.words((word,))
        return argv

    def declaration(self: Shell, assignment: ast.Assignment) -> str:
        """Returns an assignment among the arguments of declare and the like, as one word.

        Arrays are set aside by name.
        """
        if isinstance(assignment.value, ast.ArrayValue):
            self.pending_arrays[assignment.name] = assignment
            return f"{assignment.name}=()"
        value = self.expander.text(assignment.value, assignment=True)
        index = f"[{self.expander.text(assignment.index)}]" if assignment.index is not None else ""
        return f"{assignment.name}{index}{'+' if assignment.append else ''}={value}"

    def _trace(self: Shell, command: ast.Simple, argv: list[str]) -> None:
        words = [
            f"{a.name}={trace_word(self.expander.text(a.value, True))}"
            for a in command.assignments
            if isinstance(a.value, ast.Word)
        ]
        for line in words:
            self.files[2].write(f"{'+' * (self.level + 1)} {line}\n")
        self.files[2].write(f"{'+' * (self.level + 1)} {' '.join(map(trace_word, argv))}\n")

    # -- assignments ---------------------------------------------------------------

    def assign(self: Shell, assignment: ast.Assignment) -> str:
        """Carries out an assignment; returns it as set -x shows it."""
        name = assignment.name
        if isinstance(assignment.value, ast.ArrayValue):
            self.assign_array(assignment)
            return f"{name}=(...)"
        value = self.expander.text(assignment.value, assignment=True)
        self.meter.word(len(value))
        if assignment.index is not None:
            key = self.scope.index(name, self.expander.text(assignment.index))
            self.scope.set_element(name, key, value, assignment.append)
        else:
            self.scope.set(name, value, assignment.append)
            if "a" in self.options:
                self.scope.declare(name, exported=True)
        return f"{name}{'+' if assignment.append else ''}={trace_word(value) if value else ''}"

    def assign_array(self: Shell, assignment: ast.Assignment) -> None:
        """name=(...) or name+=(...)."""
        assert isinstance(assignment.value, ast.ArrayValue)
        name = assignment.name
        old = self.scope.names.get(name) or Variable()
        associative = old.associative
        values: dict = {}
        if assignment.append and old.value is not None:
            values = dict(old.value) if isinstance(old.value, dict) else {0: old.value}
        following = max((k for k in values if isinstance(k, int)), default=-1) + 1
        pairs: list[str] = []
        for item in assignment.value.items:
            if isinstance(item, ast.Assignment):
                assert item.index is not None and isinstance(item.value, ast.Word)
                key = self.scope.index(name, self.expander.text(item.index))
                text = self.expander.text(item.value)
                values[key] = (values.get(key, "") if item.append else "") + text
                following = key + 1 if isinstance(key, int) else following
            elif associative:
                pairs += self.expander.words((item,))
            else:
                for text in self.expander.words((item,)):
                    values[following] = text
                    following += 1
        for key, text in zip(pairs[::2], [*pairs[1::2], ""], strict=False):
            values[key] = text
        if old.integer:
            values = {k: str(self.scope.evaluate(v)) for k, v in values.items()}
        self.meter.tick(len(values) >> 3)
        self.scope.set_array(name, values, associative)

    def _temporary(self: Shell, assignments: tuple[ast.Assignment, ...]) -> dict[str, str]:
        """Assignments in front of a program: its environment only."""
        found: dict[str, str] = {}
        for assignment in assignments:
            if not isinstance(assignment.value, ast.Word) or assignment.index is not None:
                raise Unsupported("array assignment in front of a command")
            value = self.expander.text(assignment.value, assignment=True)
            variable = self.scope.names.get(assignment.name)
            if variable is not None and variable.readonly:
                self.complain(f"{assignment.name}: readonly variable")
                continue
            found[assignment.name] = (
                (self.scope.get(assignment.name) or "") + value if assignment.append else value
            )
        return found

    def _with_variables(
        self: Shell, assignments: tuple[ast.Assignment, ...], action: Callable[[], int]
    ) -> int:
        """Runs a builtin or a function with assignments that are undone afterwards."""
        if not assignments:
            return action()
        saved = {name: self.scope.names.get(name) for name in (a.name for a in assignments)}
        for name, value in self._temporary(assignments).items():
            self.scope.set(name, value)
            self.scope.declare(name, exported=True)
        try:
            return action()
        finally:
            for name, variable in saved.items():
                self.scope.declare(name)
                if variable is None:
                    self.scope.names.pop(name, None)
                else:
                    self.scope.names[name] = variable

    # -- functions and builtins ----------------------------------------------------

    def call(self: Shell, body: ast.Command, argv: list[str], files: Files) -> int:
        """Calls a function."""
        saved = self.positional, self.files, self.loops, self.depth
        self.positional, self.files, self.loops = argv[1:], files, 0
        self.depth += 1
        if self.depth > self.limits.depth:
            raise LimitExceeded("recursion")
        frame = self.world.recorder.begin("function", argv[0], argv, self.who)
        status: int | None = None
        self.calls.append(argv[0])
        self.scope.frames.append({})
        self.in_function += 1
        guard = self.guard
        try:
            self.run_command(body)
            status = self.status
        except Return as leave:
            status = self.status = leave.status
            self.guard = guard
        except Exit as leave:
            status = leave.status
            raise
        finally:
            self.world.recorder.end(frame, status)
            self.in_function -= 1
            self.scope.leave()
            self.calls.pop()
            self.positional, self.files, self.loops, self.depth = saved
        return self.status

    def context(
        self: Shell, argv: list[str], files: Files, env: Mapping[str, str], name: str
    ) -> Context:
        """Returns what a command that this shell starts sees of the world."""
        return Context(self, self.who, self.cwd, env, files.get(0), files[1], files[2], name)

    def run_builtin(self: Shell, argv: list[str], files: Files) -> int:
        """Runs a builtin and returns its status."""
        name = argv[0]
        ctx = self.context(
            argv, files, self.scope.exported(), f"{self.name}: line {self.line}: {name}"
        )
        saved = self.files
        self.files = files
        frame = self.world.recorder.begin("builtin", name, argv, self.who)
        status: int | None = None
        try:
            if argv[1:2] == ["--help"] and name not in _WITHOUT_HELP:
                raise Unsupported(f"{name} --help")
            status = BUILTINS[name](ctx, argv)
            if ctx.endless:
                raise LimitExceeded("output", 137)
        except FsError as error:
            status = self._write_error(ctx, error)
        except (Exit, Return) as leave:
            status = leave.status
            raise
        finally:
            self.files = saved
            self.world.recorder.end(frame, status)
        return status

    def _write_error(self: Shell, ctx: Context, error: FsError) -> int:
        if error.code in ("EBADF", "ENOSPC"):
            error = FsError(error.code, f"write error: {error.message}")
        try:
            return ctx.fail(error.message)
        except FsError:
            return 1

    def execute_instead(self: Shell, argv: list[str], files: Files) -> int:
        """exec: with a command, the shell ends with it; without one, the redirections stay."""
        if len(argv) == 1:
            self.files = files
            return 0
        if argv[1].startswith("-"):
            raise Unsupported(f"exec {argv[1]}")
        frame = self.world.recorder.begin("builtin", "exec", argv, self.who)
        status: int | None = None
        try:
            status = self.start(argv[1:], files, self.exported_to_successor())
        finally:
            self.world.recorder.end(frame, status)
        raise Exit(status)

    def exported_to_successor(self: Shell) -> dict[str, str]:
        """The variables of a program that takes this shell's place, which is a level less."""
        variables = dict(self.scope.exported())
        level = variables.get("SHLVL", "")
        if not self.posix and level.isdigit():
            variables["SHLVL"] = str(max(int(level) - 1, 0))
        return variables

    # -- programs ------------------------------------------------------------------

    def start(self: Shell, argv: list[str], files: Files, env: Mapping[str, str]) -> int:
        """Starts a program found by name, with bash's complaints if it cannot be."""
        name = argv[0]
        if max(map(len, argv)) >= _LONGEST_ARGUMENT:
            self.complain(f"{name}: Argument list too long")
            return 126
        ctx = self.context(argv, files, env, name)
        kind, place = self.find_program(
            name, env.get("PATH", self.scope.get("PATH") or ""), self.who, self.cwd
        )
        if kind == "program" or kind == "script":
            if self.ahead:
                self.open_ahead()
            if not self.posix:
                path = name if "/" in name else self.located(kind, place)
                ctx.env = self.scope.handed_on(env, path)
            return self.execute(argv, ctx, (kind, place))
        saved = self.files
        self.files = files
        try:
            if kind == "denied":
                self.complain(f"{name}: {place}")
                return 126
            if kind == "known":
                return self.lacks(name, 127, f"{name}: command not found")
            handler = self.functions.get("command_not_found_handle")
            if handler is not None and not kind and "/" not in name:
                sub = self.fork()
                words = ["command_not_found_handle", *argv]
                return sub.finish(lambda: sub.call(handler, words, files))
            self.complain(
                f"{name}: No such file or directory"
                if "/" in name
                else f"{name}: command not found"
            )
        finally:
            self.files = saved
        return 127

    @staticmethod
    def located(kind: str, place: str) -> str:
        """The path of what `find_program` found by a name."""
        return f"/usr/bin/{place}" if kind == "program" else place

    def find_program(
        self: Shell, name: str, search: str, who: Credentials, cwd: str
    ) -> tuple[str, str]:
        """What a name runs.

        Returns:
          ("program", its name), ("script", its path), ("denied", why), ("known", a real program
          that is not simulated), or ("", "").
        """
        if "/" in name:
            path = name if name.startswith("/") else f"{cwd}/{name}"
            try:
                node = self.fs.walk(path, who)[2]
                if node is None:
                    directory, _, last = self.fs.resolve(path, who, missing=True).rpartition("/")
                    if directory in PROGRAM_PLACES and last in PROGRAMS:
                        return "program", last
                    if last in KNOWN and directory.startswith("/usr/"):
                        return "known", last
                    return "", ""
            except FsError as error:
                return (
                    ("denied", error.message) if error.code in ("EACCES", "ENOTDIR") else ("", "")
                )
            if node.kind == "directory":
                return "denied", "Is a directory"
            if not allows(node, 1, who):
                return "denied", "Permission denied"
            return "script", path
        if not name:
            return "", ""
        denied = ""
        for directory in search.split(":"):
            if directory in PROGRAM_PLACES:
                if name in PROGRAMS:
                    return "program", name
                continue
            if directory in EMPTY_PLACES:
                continue
            path = f"{directory or cwd}/{name}"
            try:
                node = self.fs.walk(path if path.startswith("/") else f"{cwd}/{path}", who)[2]
            except (FsError, Unsupported):
                continue
            if node is not None and node.kind == "file":
                if allows(node, 1, who):
                    return "script", path
                denied = denied or "Permission denied"
        if name in KNOWN:
            return "known", name
        return ("denied", denied) if denied else ("", "")

    def which(self: Shell, name: str, search: str, who: Credentials, cwd: str) -> str | None:
        """Path of the program that a name runs, or None."""
        kind, place = self.find_program(name, search, who, cwd)
        if kind == "known":
            raise Unsupported(name)
        if kind not in ("program", "script"):
            return None
        return name if kind == "program" and "/" in name else self.located(kind, place)

    def execute(
        self: Shell, argv: list[str], ctx: Context, found: tuple[str, str] | None = None
    ) -> int:
        """Runs a program in a context; unknown ones give 127, forbidden ones 126, silently."""
        self.meter.tick()
        kind, place = found or self.find_program(argv[0], ctx.env.get("PATH", ""), ctx.who, ctx.cwd)
        if kind not in ("program", "script"):
            if kind == "known":
                self.world.lack(argv[0])
            return 126 if kind == "denied" else 127
        name = place if kind == "program" else self.fs.resolve(posixpath.join(ctx.cwd, place))
        frame = self.world.recorder.begin(kind, name, argv, ctx.who)
        status: int | None = None
        try:
            status = self._execute(kind, place, argv, ctx)
        finally:
            self.world.recorder.end(frame, status)
        return status

    def _execute(self: Shell, kind: str, place: str, argv: list[str], ctx: Context) -> int:
        """Runs what a name was found to be."""
        if kind == "script":
            return self.run_file(place, argv, ctx)
        try:
            if place in _OF_TIMES and ctx.env.get("TZ", "") not in _UTC:
                raise Unsupported("time zones")
            status = PROGRAMS[place](ctx, argv)
            if ctx.endless:
                # It has read to the end of what has none. What it wrote so far is only the
                # beginning of its own output, which may be enough for who reads that.
                if place not in _STREAMING or not isinstance(ctx.out, PipeSink):
                    raise LimitExceeded("output", 137)
                ctx.out.endless = True
            return status
        except FsError as error:
            return self._write_error(ctx, error)
        except Unsupported as error:
            self.world.lack(str(error))
            try:
                return ctx.fail(f"{error}: not supported", 2)
            except FsError:
                return 2

    def run_file(self: Shell, path: str, argv: list[str], ctx: Context) -> int:
        """Runs an executable text file, by the interpreter that its first line names."""
        try:
            text = self.fs.read_text(path if path.startswith("/") else f"{ctx.cwd}/{path}", ctx.who)
        except FsError as error:
            ctx.error(f"{self.name}: {argv[0]}: {error.message}\n")
            return 126
        path = argv[0] if "/" in argv[0] else path
        first = text.partition("\n")[0]
        if first.startswith("#!"):
            interpreter = first[2:].split()
            if interpreter and interpreter[0] == "/usr/bin/env":
                interpreter = interpreter[1:]
            name = interpreter[0].rpartition("/")[2] if interpreter else ""
            if (
                name in ("bash", "sh", "dash")
                and len(interpreter) == 1
                or name == "bash"
                and interpreter[1][0] in "-+"
            ):
                return self.run_shell([name, *interpreter[1:], path, *argv[1:]], ctx)
            raise Unsupported(f"interpreter {first[2:].strip()[:60]}")
        if "\0" in first or "\ufffd" in first:
            raise Unsupported("binary program")
        return self.run_shell(["bash", path, *argv[1:]], ctx)

    def run_shell(self: Shell, argv: list[str], ctx: Context) -> int:
        """bash, sh and dash as programs."""
        from shellworld.interpreter.subshell import run_shell

        return run_shell(self, argv, ctx)
