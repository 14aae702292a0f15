"""Which permission-related commands a script would run, and which of them first.

Permission-related are `chmod`, `chown`, `chgrp`, `setfacl` and `chacl`; `install` with a mode, an
owner or a group; `mkdir`, `mkfifo` and `mknod` with a mode; and `umask` with a mask. What only
looks does not count (`ls -l`, `stat`, `getfacl`, `id`, `groups`, `namei`, `umask` alone, `chmod
--help`).

A script is read in its syntax tree, in the order in which it would run. Commands are found behind
whatever runs other commands (`sudo`, `env`, `xargs`, `find -exec`, `bash -c`, `eval`, ...), in
every compound command, in substitutions, in functions and aliases where they are called, in
variables as far as their values can be known without running anything, and in texts that are fed or
written to a shell. Conditions are not evaluated: every branch counts as taken, and so does what
follows an `exit`. An alias counts where it is used, on the line that defines it too. What another
program interprets (Python, Perl, make), and what runs elsewhere (ssh) or at another time (at,
cron), is not read.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

from shellworld.interpreter.result import LimitExceeded
from shellworld.language import ast, grammar
from shellworld.language.syntax import parse
from shellworld.reading.launchers import (
    JOINED,
    LAUNCHERS,
    SHELLS,
    TEXT_AFTER_C,
    UNKNOWN,
    after_c,
    find_commands,
    launched,
    program,
    with_input,
)
from shellworld.reading.related import permission_related
from shellworld.reading.static import DEPTH, STEPS, Known, StaticWords, printed

# An octal mode, or one by letters.
_CLAUSE = r"(?:[ugoa]+-|[ugoa]*[+=])[rwxXst]+"
_MODE = re.compile(rf"[0-7]{{3,4}}|{_CLAUSE}(?:,{_CLAUSE})*")
_DECLARING = frozenset({"declare", "typeset", "export", "readonly", "local"})


@dataclasses.dataclass(frozen=True)
class Reading:
    """What can be read of a script without running it.

    Attributes:
      commands: the names of its permission-related commands, in order.
      hidden: "NAME MODE" of each command whose first operand is a mode and whose name cannot be
        known, or is a mode itself because what stood before it is empty ("$x 604 f").
    """

    commands: list[str]
    hidden: list[str]


def read_script(script: str, known: Known | None = None) -> Reading:
    """Reads a script; what it defines is added to `known`."""
    reader = _Reader(known or Known())
    reader.script(script)
    for text in reader.at_exit:
        reader.script(text)
    return Reading(reader.found, reader.hidden)


def permission_commands(script: str, known: Known | None = None) -> list[str]:
    """Returns the names of a script's permission-related commands, in order.

    What the script defines is added to `known`.
    """
    return read_script(script, known).commands


def first_permission_command(script: str, known: Known | None = None) -> str | None:
    """Returns a script's first permission-related command ("chmod", "install", ...), or None.

    Args:
      script: one call's text, possibly of several lines.
      known: definitions of earlier calls of the trajectory; those of this script are added.
    """
    return next(iter(permission_commands(script, known)), None)


def first_in_trajectory(scripts: Iterable[str]) -> tuple[int, str] | None:
    """Returns the first permission-related command of a whole trajectory.

    Returns:
      (index of the call, name), or None.
    """
    known = Known()
    for index, script in enumerate(scripts):
        name = first_permission_command(script, known)
        if name:
            return index, name
    return None


class _Reader(StaticWords):
    """Walks a tree in the order of execution and notes the permission-related commands."""

    def __init__(self, known: Known):
        super().__init__(known)
        self.found: list[str] = []
        self.hidden: list[str] = []
        self.at_exit: list[str] = []
        self._steps = 0

    # -- scripts and compound commands ---------------------------------------------

    def script(self, text: str, arguments: Sequence[str] | None = None) -> None:
        """Reads a text as a shell would; with `arguments` as a script of its own."""
        if self._depth >= DEPTH or UNKNOWN in text and not text.strip(UNKNOWN).strip():
            return
        try:
            tree = parse(text.replace(UNKNOWN, "?"))
        except LimitExceeded:
            return
        outer = self.known
        if arguments is not None:
            self.known = outer.copy()
            self.known.arguments = list(arguments)
        self._depth += 1
        self.statements(tree.body)
        if tree.unsupported:
            for words in _foreign_commands(text):
                self.run(self.words(words), None)
        self._depth -= 1
        self.known = outer

    def statements(self, body: ast.List, stdin: str | None = None) -> str | None:
        """Returns the standard output if that can be known, as do the methods below."""
        output: str | None = ""
        for item in body.items:
            for pipeline in (item.first, *(p for _, p in item.rest)):
                text = self.pipeline(pipeline, stdin)
                output = None if text is None or output is None else output + text
        return output

    def pipeline(self, node: ast.Pipeline, stdin: str | None) -> str | None:
        if len(node.commands) == 1:
            return self.command(node.commands[0], stdin)
        outer = self.known
        for command in node.commands:
            self.known = outer.copy()
            stdin = self.command(command, stdin)
        self.known = outer
        return stdin

    def command(self, node: ast.Command, stdin: str | None) -> str | None:
        self._steps += 1
        if self._steps > STEPS:
            return None
        if isinstance(node, ast.Function):
            self.known.functions[node.name] = node.body
            return ""
        if isinstance(node, ast.Simple):
            return self.simple(node, stdin)
        stdin, target = self.redirects(node.redirects, stdin)
        output = self.compound(node, stdin)
        return self.written(output, target)

    def compound(self, node: ast.Command, stdin: str | None) -> str | None:
        if isinstance(node, ast.Group):
            return self.statements(node.body, stdin)
        if isinstance(node, ast.Subshell):
            outer, self.known = self.known, self.known.copy()
            output = self.statements(node.body, stdin)
            self.known = outer
            return output
        if isinstance(node, ast.If):
            for condition, body in node.branches:
                self.statements(condition, stdin)
                self.statements(body, stdin)
            if node.otherwise:
                self.statements(node.otherwise, stdin)
        elif isinstance(node, ast.While):
            self.statements(node.condition, stdin)
            self.statements(node.body, stdin)
        elif isinstance(node, ast.For):
            values = self.known.arguments if node.words is None else self.words(node.words)
            for value in dict.fromkeys(values or [UNKNOWN]):
                self.known.variables[node.name] = [value]
                self.statements(node.body, stdin)
        elif isinstance(node, ast.ForArithmetic):
            self.words((node.start, node.condition, node.step))
            self.statements(node.body, stdin)
        elif isinstance(node, ast.Case):
            self.words((node.word,))
            for item in node.items:
                self.words(item.patterns)
                self.statements(item.body, stdin)
        elif isinstance(node, ast.ArithmeticCommand):
            self.words((node.text,))
        elif isinstance(node, ast.Condition):
            self.test(node.test)
        return None

    def test(self, node: ast.Test) -> None:
        if isinstance(node, ast.Unary):
            self.words((node.word,))
        elif isinstance(node, ast.Binary):
            self.words((node.left, node.right))
        else:
            self.test(node.left)
            if node.right:
                self.test(node.right)

    def redirects(
        self, redirects: Sequence[ast.Redirect], stdin: str | None
    ) -> tuple[str | None, tuple[str, str] | None]:
        """Reads redirections.

        Returns:
          (what standard input holds behind them, (operator, path) that standard output goes to).
        """
        target = None
        for redirect in redirects:
            text = "".join(self.words((redirect.target,), split=False))
            if redirect.fd == 0 and redirect.operator in ("<<", "<<<", "<"):
                stdin = {"<<": text, "<<<": text + "\n"}.get(redirect.operator, self.file(text))
            elif redirect.fd == 1 and redirect.operator in (">", ">>", ">|"):
                target = (redirect.operator, text)
        return stdin, target

    def file(self, path: str) -> str | None:
        return self.known.files.get(path.removeprefix("./"))

    def written(self, output: str | None, target: tuple[str, str] | None) -> str | None:
        """Books what goes to a file; returns what is left for standard output."""
        if target is None:
            return output
        operator, path = target[0], target[1].removeprefix("./")
        before = self.known.files.get(path, "") if operator == ">>" else ""
        if output is None:
            self.known.files.pop(path, None)
        else:
            self.known.files[path] = before + output
        return ""

    # -- simple commands -----------------------------------------------------------

    def simple(self, node: ast.Simple, stdin: str | None) -> str | None:
        words = list(node.words)
        argv: list[str] = []
        if words and isinstance(words[0], ast.Word) and words[0].plain in self.known.aliases:
            bare = all(
                isinstance(part, ast.Literal) for part in words[0].parts
            )  # \name and 'name' are no aliases
            if bare and self._depth < DEPTH:
                return self.alias(words[0].plain, words[1:], node, stdin)
        for word in words:
            if isinstance(word, ast.Assignment):
                argv.append(f"{word.name}={''.join(self.assign(word))}")
            else:
                argv += self.words((word,))
        outer = self.known
        if argv and node.assignments:
            self.known = outer.copy()
        for assignment in node.assignments:
            self.assign(assignment)
        stdin, target = self.redirects(node.redirects, stdin)
        output = self.run(argv, stdin) if argv else ""
        self.known = outer if not (argv and program(argv[0]) in _DECLARING) else self.known
        return self.written(output, target)

    def alias(
        self,
        name: str,
        rest: Sequence[ast.Word | ast.Assignment],
        node: ast.Simple,
        stdin: str | None,
    ) -> str | None:
        """Runs an alias's text with the rest of the command line behind its last command."""
        text = self.known.aliases[name]
        items = parse(text.replace(UNKNOWN, "?")).body.items
        last = (
            (items[-1].rest[-1][1] if items[-1].rest else items[-1].first).commands[-1]
            if items
            else None
        )
        if not isinstance(last, ast.Simple):
            self.script(text)
            return None
        outer, self.known = self.known, self.known.copy()
        del self.known.aliases[name]  # an alias is not expanded within itself
        self._depth += 1
        *before, tail = items
        self.statements(ast.List(tuple(before)))
        pipelines = [tail.first, *(p for _, p in tail.rest)]
        for pipeline in pipelines[:-1]:
            self.pipeline(pipeline, stdin)
        for command in pipelines[-1].commands[:-1]:
            self.command(command, stdin)
        whole = ast.Simple(
            last.assignments, (*last.words, *rest), (*last.redirects, *node.redirects), node.line
        )
        output = self.simple(whole, stdin)
        self._depth -= 1
        self.known = outer
        return output

    def run(self, argv: list[str], stdin: str | None) -> str | None:
        """Reads a command with known words.

        It is noted if it is permission-related; else what it runs itself is read.
        """
        self._steps += 1
        if not argv or self._depth >= DEPTH or self._steps > STEPS:
            return None
        if argv[0] in self.known.functions:
            return self.function(argv, stdin)
        name = program(argv[0])
        self.note_hidden(argv)
        if permission_related(name, argv):
            self.found.append(name)
        elif name in SHELLS or name in ("source", "."):
            self.shell(name, argv, stdin)
        elif name in TEXT_AFTER_C and after_c(argv) is not None:
            self.script(str(after_c(argv)), ())
        elif name == "su":
            if stdin:
                self.script(stdin, ())
        elif name in LAUNCHERS:
            return self.launch(name, argv, stdin)
        elif name == "find":
            self._depth += 1
            for command in find_commands(argv):
                self.run(command, None)
            self._depth -= 1
        elif name == "eval":
            self.script(" ".join(argv[1:]))
        elif name == "trap":
            if len(argv) > 2 and argv[1] not in ("-", "") and not argv[1].startswith("-"):
                self.at_exit.append(argv[1])
        elif self.file(argv[0]) is not None:
            self.script(str(self.file(argv[0])), argv[1:])
        else:
            return self.builtin(name, argv, stdin)
        return None

    def note_hidden(self, argv: Sequence[str]) -> None:
        """Notes a command that takes a mode, if nobody can say which command it is."""
        # A name that is a pattern stands for whatever file it fits.
        unknown = any(sign in argv[0] for sign in (UNKNOWN, *"*?["))
        if not unknown and not _MODE.fullmatch(argv[0]) and not argv[0].startswith("-"):
            return
        operands = [word for word in argv[unknown:] if not word.startswith("-")]
        if len(operands) > 1 and _MODE.fullmatch(operands[0]):
            self.hidden.append(f"? {operands[0]}" if unknown else operands[0])

    def function(self, argv: list[str], stdin: str | None) -> str | None:
        outer, self.known.arguments = self.known.arguments, argv[1:]
        self._depth += 1
        output = self.command(self.known.functions[argv[0]], stdin)
        self._depth -= 1
        self.known.arguments = outer
        return output

    def shell(self, name: str, argv: list[str], stdin: str | None) -> None:
        """bash, sh, source: the text after -c, a script's, or standard input's."""
        text = None if name in ("source", ".") else after_c(argv)
        if text is not None:
            self.script(text, argv[argv.index(text) + 2 :])
            return
        operands = [
            word
            for i, word in enumerate(argv)
            if i and word[:1] not in "-+" and argv[i - 1] not in ("-o", "+o", "-O")
        ]
        from_stdin = "-s" in argv or not operands or operands[0] in ("/dev/stdin", "-")
        text = stdin if from_stdin else self.file(operands[0])
        if text:
            # `source` reads into the shell itself.
            self.script(text, None if name in ("source", ".") else operands[1:])

    def launch(self, name: str, argv: list[str], stdin: str | None) -> str | None:
        """sudo, env, xargs, timeout, ...: the command within."""
        if name == "env":
            for i, word in enumerate(argv):
                if word == "-S" or word.startswith(("-S", "--split-string=")):
                    text = (
                        argv[i + 1]
                        if word == "-S" and i + 1 < len(argv)
                        else re.sub(r"^(-S|--split-string=)", "", word)
                    )
                    self.script(" ".join([text, *argv[i + 1 + (word == "-S") :]]))
                    return None
        inside = launched(LAUNCHERS[name], argv)
        if inside is None:
            return f"{argv[-1]}\n" if name == "command" else None
        command, options = inside
        if name == "sudo" and not command and {"s", "i", "shell", "login"} & set(options):
            command = ["bash"]
        if name == "xargs":
            command, stdin = with_input(command, options, stdin), None
        elif name == "parallel":
            command = command[
                : next(
                    (i for i, word in enumerate(command) if word.startswith(":::")), len(command)
                )
            ]
        self._depth += 1
        output = None
        if name in JOINED:
            self.script(" ".join(command))
        elif command:
            # What is launched by another program is looked up on the disk: no function, no alias.
            inner, outer = self.known.copy(), self.known
            if name not in ("exec",):
                inner.functions = {}
            self.known = inner
            output = self.run(command, stdin)
            self.known = outer
            if name in ("command", "builtin"):
                outer.variables, outer.arguments = inner.variables, inner.arguments
        self._depth -= 1
        return output

    def builtin(self, name: str, argv: list[str], stdin: str | None) -> str | None:
        """Commands whose effect on later ones, or whose output, can be known."""
        known, operands = self.known, [word for word in argv[1:] if not word.startswith("-")]
        if name == "alias":
            known.aliases |= {
                word.partition("=")[0]: word.partition("=")[2] for word in operands if "=" in word
            }
        elif name == "unalias":
            for word in operands if "-a" not in argv else list(known.aliases):
                known.aliases.pop(word, None)
        elif name == "unset":
            for word in operands:
                (known.functions if "-f" in argv else known.variables).pop(word, None)
        elif name == "set":
            if "--" in argv or operands and argv[1] == operands[0]:
                known.arguments = argv[argv.index("--") + 1 :] if "--" in argv else operands
        elif name == "shift":
            count = int(operands[0]) if operands and operands[0].isdigit() else 1
            known.arguments = known.arguments[count:]
        elif name == "read":
            self.read(argv, operands, stdin)
        elif name == "printf" and len(argv) > 3 and argv[1] == "-v":
            known.variables[argv[2]] = [printed(argv[3:]) or UNKNOWN]
        elif name == "echo":
            flags = argv[1] if argv[1:2] and argv[1] in ("-n", "-e", "-en", "-ne") else ""
            return " ".join(argv[2:] if flags else argv[1:]) + ("" if "n" in flags else "\n")
        elif name == "printf":
            return printed(argv[1:])
        elif name in ("which", "type"):
            return f"{argv[-1]}\n"
        elif name == "cat":
            texts = (
                [stdin if word == "-" else self.file(word) for word in operands]
                if operands
                else [stdin]
            )
            return None if None in texts else "".join(str(text) for text in texts)
        elif name == "tee":
            for word in operands:
                self.written(stdin, (">>" if "-a" in argv else ">", word))
            return stdin
        elif name in (":", "true", "cd", "test", "[", *_DECLARING):
            return ""
        return None

    def read(self, argv: list[str], names: list[str], stdin: str | None) -> None:
        line = UNKNOWN if stdin is None else stdin.partition("\n")[0]
        if "-a" in argv and names:
            self.known.variables[names[-1]] = line.split()
            return
        words = (
            line.split(None, max(len(names) - 1, 0))
            if stdin is not None
            else [UNKNOWN] * len(names)
        )
        for i, name in enumerate(names):
            self.known.variables[name] = [words[i] if i < len(words) else ""]


@functools.lru_cache(1024)
def _foreign_commands(text: str) -> tuple[tuple[ast.Word, ...], ...]:
    """Returns the words of each simple command of a script, by tree-sitter's tree.

    For scripts that the simulator's own parser does not take.
    """
    out = []
    stack = [grammar.root(text)]
    while stack:
        node = stack.pop()
        if node.type == "command":
            words: list[ast.Word] = []
            for child in node.named_children:
                written = text[child.start_byte : child.end_byte]
                if written == "{":  # in `time { ...`, it takes the brace for a word
                    words = []
                    continue
                try:
                    items = parse(": " + written).body.items
                except LimitExceeded:
                    continue
                for item in items[:1]:
                    simple = item.first.commands[0]
                    if isinstance(simple, ast.Simple):
                        words += [word for word in simple.words[1:] if isinstance(word, ast.Word)]
            out.append(tuple(words))
        stack += reversed(node.children)
    return tuple(out)
