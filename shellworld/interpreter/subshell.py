"""bash, sh and dash as programs: a fresh shell process that runs a text, a file or its input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shellworld.commands import Context
from shellworld.interpreter.conditions import OPTION_NAMES
from shellworld.interpreter.redirect import Files
from shellworld.interpreter.result import LimitExceeded, Unsupported
from shellworld.language import ast
from shellworld.language.syntax import parse
from shellworld.world.filesystem import FsError

if TYPE_CHECKING:
    from shellworld.interpreter.shell import Shell

LETTERS = frozenset("aefuvxC")


def run_shell(parent: Shell, argv: list[str], ctx: Context) -> int:
    """Runs `bash ...` or `sh ...`."""
    from shellworld.interpreter.shell import Shell

    options: set[str] = set()
    command = standard = False
    at = 1
    while at < len(argv) and len(argv[at]) > 1 and argv[at][0] in "-+":
        word = argv[at]
        at += 1
        if word == "--" or word == "-":
            break
        if word in ("--norc", "--noprofile", "--posix"):
            continue
        if word.startswith("--"):
            raise Unsupported(f"{argv[0]} {word}")
        for letter in word[1:]:
            if letter == "c":
                command = True
            elif letter == "o":
                if at >= len(argv) or argv[at] not in OPTION_NAMES:
                    raise Unsupported(f"{argv[0]} -o")
                options.add(OPTION_NAMES[argv[at]])
                at += 1
            elif letter in LETTERS:
                options.add(letter) if word[0] == "-" else options.discard(letter)
            elif letter == "n":
                options.add("n")
            elif letter == "s":
                standard = True
            elif letter == "l":
                pass
            else:
                raise Unsupported(f"{argv[0]} -{letter}")
    rest = argv[at:]
    name = argv[0]
    if command:
        if not rest:
            ctx.error(f"{name}: -c: option requires an argument\n")
            return 2
        text, arg0, positional = rest[0], rest[1] if len(rest) > 1 else name, rest[2:]
    elif rest and not standard:
        arg0, positional = rest[0], rest[1:]
        path = ctx.path(arg0)
        try:
            text = ctx.fs.read_text(path, ctx.who)
        except FsError as error:
            # What is not here is looked for along PATH, where the programs are no scripts.
            if error.code == "ENOENT" and "/" not in arg0 and name == "bash":
                kind, place = parent.find_program(arg0, ctx.env.get("PATH", ""), ctx.who, ctx.cwd)
                if kind == "program":
                    place = parent.located(kind, place)
                    ctx.error(f"{place}: {place}: cannot execute binary file\n")
                    return 126
                if kind:
                    raise Unsupported("bash with a script along PATH") from error
            if error.code == "EISDIR":
                ctx.error(f"{name}: {arg0}: Is a directory\n")
                return 126
            ctx.error(f"{name}: {arg0}: {error.message}\n")
            return 126 if error.code == "EACCES" else 127
        name = arg0
    else:
        text, arg0, positional = ctx.stdin, name, rest
    files: Files = {1: ctx.out, 2: ctx.err}
    if ctx.source is not None:
        files[0] = ctx.source
    posix = argv[0] in ("sh", "dash")
    shell = Shell(parent.world, ctx.who, ctx.cwd, ctx.env, files, arg0, positional, name, posix)
    shell.options = options
    shell.source = arg0 if rest and not command and not standard else ""
    shell.depth = parent.depth + 2
    if shell.depth > shell.limits.depth:
        raise LimitExceeded("recursion")
    script = parse(text)
    if "n" in options:
        if script.unsupported:
            return shell.lacks(script.unsupported[0])
        if script.error:
            ctx.error(f"{name}: {script.error}\n")
        return 2 if script.error else 0
    if command:
        shell.final = final_command(script)
    return shell.finish(lambda: shell.run_script(script))


def final_command(script: ast.Script) -> ast.Simple | None:
    """The simple command that ends a text of `bash -c` whatever happens before, or None."""
    if not script.lines or script.error:
        return None
    item = script.lines[-1].items[-1]
    pipeline = item.rest[-1][1] if item.rest else item.first
    command = pipeline.commands[-1]
    alone = len(pipeline.commands) == 1 and not (pipeline.negated or pipeline.timed)
    return command if alone and not item.background and isinstance(command, ast.Simple) else None
