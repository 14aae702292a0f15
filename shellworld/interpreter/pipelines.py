"""Lists, pipelines, subshells and substitutions: what joins commands."""

# `Joiner` is a part of `Shell` and nothing else; its methods say so in the type of `self`.
# mypy: disable-error-code="misc"

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from shellworld.interpreter.control import Discard, Exit, LoopJump, Return
from shellworld.interpreter.redirect import apply_redirects
from shellworld.interpreter.result import LimitExceeded, Unsupported
from shellworld.interpreter.simple_commands import Launcher
from shellworld.interpreter.variables import ShellError
from shellworld.language import ast
from shellworld.language.syntax import parse
from shellworld.world.filesystem import FsError
from shellworld.world.streams import PipeSink, TextSource

if TYPE_CHECKING:
    from shellworld.interpreter.shell import Shell


_OUTPUTS = frozenset([">", ">|", ">>", "&>", "&>>"])


class Joiner(Launcher):
    """The part of a shell that runs commands after, beside and inside each other."""

    # -- lists and pipelines -----------------------------------------------------------

    def run_script(self: Shell, script: ast.Script) -> int:
        """Runs a whole text in this shell."""
        if script.unsupported:
            self.status = self.lacks(script.unsupported[0])
            return self.status
        if self.posix and script.bashisms:
            self.status = self.lacks(f"{script.bashisms[0]} in sh")
            return self.status
        for warning in script.warnings:
            self.files[2].write(f"{self.name}: {warning}\n")
        state = self.depth, self.guard, self.loops, self.files, self.positional
        for line in script.lines:
            try:
                self.run_list(line)
            except Discard:
                self.depth, self.guard, self.loops, self.files, self.positional = state
                self.status = 1
                if self.level:
                    raise
        if script.error:
            self.files[2].write(f"{self.name}: {script.error}\n")
            self.status = 2
        return self.status

    def run_list(self: Shell, body: ast.List) -> int:
        """Runs a list of commands, in order, and returns the last status."""
        self.depth += 1
        if self.depth > self.limits.depth:
            raise LimitExceeded("recursion")
        for item in body.items:
            self.run_and_or(item)
        self.depth -= 1
        return self.status

    def run_and_or(self: Shell, item: ast.AndOr) -> int:
        """Runs pipelines joined by && and ||; only the last can end the shell under `set -e`."""
        if item.background:
            return self.run_background(item)
        if not item.rest:
            return self.run_pipeline(item.first, True)
        self.guard += 1
        self.run_pipeline(item.first, False)
        last = len(item.rest) - 1
        for i, (operator, pipeline) in enumerate(item.rest):
            if i == last:
                self.guard -= 1
            if (self.status == 0) == (operator == "&&"):
                self.run_pipeline(pipeline, i == last)
        return self.status

    def run_background(self: Shell, item: ast.AndOr) -> int:
        """Runs it at once, as if it were faster than what follows."""
        sub = self.fork()
        sub.files.pop(0, None)
        depth = self.depth
        status = sub.finish(lambda: sub.run_and_or(ast.AndOr(item.first, item.rest)))
        self.depth = depth
        self.world.pid += 1
        self.background[self.world.pid] = status
        self.status = 0
        return 0

    def run_pipeline(self: Shell, pipeline: ast.Pipeline, checked: bool) -> int:
        """Runs a pipeline; `checked`: a failure ends the shell under `set -e`."""
        if pipeline.timed:
            return self.run_timed(pipeline, checked)
        commands = pipeline.commands
        if pipeline.negated:
            self.guard += 1
            self._pipe(pipeline) if len(commands) > 1 else self.run_command(commands[0])
            self.guard -= 1
            self.status = int(self.status == 0)
            return self.status
        if len(commands) > 1:
            self._pipe(pipeline)
        else:
            self.run_command(commands[0])
        if self.status and checked and "e" in self.options and not self.guard:
            kind = type(commands[0])
            if len(commands) > 1 or kind in (
                ast.Simple,
                ast.Subshell,
                ast.Condition,
                ast.ArithmeticCommand,
            ):
                raise Exit(self.status)
        return self.status

    def run_timed(self: Shell, pipeline: ast.Pipeline, checked: bool) -> int:
        """time: nothing takes any time here."""
        status = self.run_pipeline(
            ast.Pipeline(pipeline.commands, pipeline.negated, pipeline.merge), checked
        )
        self.files[2].write("\nreal\t0m0.000s\nuser\t0m0.000s\nsys\t0m0.000s\n")
        return status

    def _pipe(self: Shell, pipeline: ast.Pipeline) -> None:
        """Runs the commands one after the other, the output of one being the input of the next.

        Each runs in a subshell.
        """
        statuses = []
        source = self.files.get(0)
        last = len(pipeline.commands) - 1
        meter = self.meter
        outer = self.ahead
        for i, command in enumerate(pipeline.commands):
            sub = self.fork()
            # In bash all of them begin at once, and a redirection is sooner done than a program is
            # loaded: `ls | cat > f` lists f, and `sort f | uniq > f` empties it.
            later = pipeline.commands[i + 1 :] if "C" not in self.options else ()
            sub.ahead = [*outer, *(r for one in later for r in getattr(one, "redirects", ()))]
            if source is None:
                sub.files.pop(0, None)
            else:
                sub.files[0] = source
            if i == last:
                statuses.append(
                    sub.finish(lambda sub=sub, command=command: sub.run_command(command))
                )
                break
            sink = PipeSink(meter.limits.output)
            sub.files[1] = sink
            if pipeline.merge[i]:
                sub.files[2] = sink
            reserve = meter.steps // 2
            meter.steps -= reserve
            endless = False
            try:
                statuses.append(
                    sub.finish(lambda sub=sub, command=command: sub.run_command(command))
                )
            except LimitExceeded:
                endless = True
                statuses.append(141)
            meter.steps = max(meter.steps, 0) + reserve
            source = TextSource(sink.text(), endless or sink.endless)
        self.pipestatus = statuses
        self.status = statuses[-1]
        if "pipefail" in self.options:
            self.status = next((s for s in reversed(statuses) if s), 0)

    def open_ahead(self: Shell) -> None:
        """Makes the output files of the later commands of this pipeline, if that was not done."""
        pending = list(self.ahead)
        self.ahead.clear()  # shared with the subshells, so that it is done once for all of them
        for redirect in pending:
            if redirect.operator in _OUTPUTS and redirect.target.plain is not None:
                # A complaint comes when the command itself opens the file.
                with contextlib.suppress(ShellError, FsError, Unsupported):
                    apply_redirects(self, (redirect,))

    def finish(self: Shell, action: Callable[[], object]) -> int:
        """Runs an action as the whole life of this subshell, with its EXIT trap.

        Returns:
          The exit status.
        """
        try:
            action()
        except Exit as leave:
            self.status = leave.status
        except Return as leave:
            self.status = leave.status
        except Discard:
            self.status = 1
        except LoopJump:
            pass
        self.run_exit_trap()
        return self.status

    def run_exit_trap(self: Shell) -> None:
        """Runs the EXIT trap, once; the status stays unless the trap exits itself."""
        action = self.traps.pop("EXIT", "")
        if action:
            status = self.status
            try:
                self.evaluate_text(action)
                self.status = status
            except Exit as leave:
                self.status = leave.status

    def evaluate_text(self: Shell, text: str) -> int:
        """Runs a text in this shell, as eval does."""
        return self.run_script(parse(text))

    def substitute(self: Shell, part: ast.CommandSubstitution) -> str:
        """Output of a command substitution, without trailing newlines."""
        body = part.body
        if not body.items and not part.error:
            # Nothing runs, and the status of an earlier one in the same command stays.
            self.substituted = self.substituted or 0
            return ""
        sub = self.fork()
        sub.options.discard("e")
        sink = PipeSink(self.limits.output)
        sub.files[1] = sink
        text = self._file_contents(body, sub)
        if text is None:
            self.substituted = sub.finish(lambda: sub.run_list(body))
            text = sink.text()
        if part.error:
            self.files[2].write(f"{self.name}: {part.error}\n")
            self.world.recorder.blind()
            self.substituted = 2
        if "\0" in text:
            text = text.replace("\0", "")
        self.meter.word(len(text))
        return text.rstrip("\n")

    def _file_contents(self: Shell, body: ast.List, sub: Shell) -> str | None:
        """What $(< file) reads; None if the body is something else."""
        if len(body.items) != 1 or body.items[0].rest or len(body.items[0].first.commands) != 1:
            return None
        command = body.items[0].first.commands[0]
        if (
            not isinstance(command, ast.Simple)
            or command.words
            or command.assignments
            or len(command.redirects) != 1
        ):
            return None
        if command.redirects[0].operator != "<" or command.redirects[0].fd != 0:
            return None
        try:
            files = apply_redirects(sub, command.redirects)
            self.substituted = 0
            source = files.get(0)
            return source.read() if source is not None else ""
        except (ShellError, FsError) as error:
            self.complain(str(error))
            self.substituted = 1
            return ""

    def process_substitution(self: Shell, part: ast.ProcessSubstitution) -> str:
        """The name of a file that holds a command's output, or that a command will read."""
        text = ""
        if part.direction == "<":
            sub = self.fork()
            sink = PipeSink(self.limits.output)
            sub.files[1] = sink
            sub.finish(lambda: sub.run_list(part.body))
            text = sink.text()
        path, node = self.fs.open_pipe(text, self.who)
        self.substitutions.append((path, part.body if part.direction == ">" else None, node))
        return path

    def close_substitutions(self: Shell, first: int) -> None:
        """After a command: runs what reads from it, and forgets the files."""
        while len(self.substitutions) > first:
            path, body, node = self.substitutions.pop()
            self.fs.close_pipe(path)
            if body is not None:
                sub = self.fork()
                sub.files[0] = TextSource(node.content)  # type: ignore[attr-defined]
                sub.finish(lambda sub=sub, body=body: sub.run_list(body))
