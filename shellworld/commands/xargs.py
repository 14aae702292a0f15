"""xargs."""

from __future__ import annotations

import itertools

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.options import Options, lines_of, read, tool, unknown

_LONG = """null=0 arg-file=a: delimiter=d: eof=E:: replace=i:: max-lines=l:: max-args=n:
open-tty=o max-procs=P: interactive=p no-run-if-empty=r max-chars=s: show-limits=S verbose=t
exit=x process-slot-var=slot:"""
_MOST = 128 * 1024


class _BadInput(Exception):
    pass


def _words(text: str) -> list[list[str]]:
    """The words of each line, quotes and backslashes removed; raises _BadInput."""
    lines: list[list[str]] = [[]]
    word: list[str] | None = None
    at, size = 0, len(text)
    while at < size:
        char = text[at]
        at += 1
        if char in "'\"":
            end = text.find(char, at)
            newline = text.find("\n", at)
            if end < 0 or 0 <= newline < end:
                kind = "single" if char == "'" else "double"
                raise _BadInput(
                    f"unmatched {kind} quote; by default quotes are special to xargs unless you "
                    "use the -0 option"
                )
            word = (word or []) + [text[at:end]]
            at = end + 1
        elif char == "\\" and at < size:
            word = (word or []) + [text[at]]
            at += 1
        elif char in " \t\n":
            if word is not None:
                lines[-1].append("".join(word))
                word = None
            if char == "\n" and (lines[-1] or len(lines) == 1):
                lines.append([])
        else:
            word = word or []
            word.append(char)
    if word is not None:
        lines[-1].append("".join(word))
    return [line for line in lines if line]


def _unescape(text: str) -> str:
    known = {"\\n": "\n", "\\t": "\t", "\\0": "\0", "\\r": "\r", "\\\\": "\\"}
    if text in known:
        return known[text]
    if len(text) != 1:
        raise Unsupported("xargs -d with such a delimiter")
    return text


@tool("xargs", short="0a:d:E:e::I:i::L:l::n:oP:prs:tx", long=_LONG, permute=False)
def xargs(ctx: Context, options: Options, operands: list[str]) -> int:
    """xargs: -0 -a -d -E -I -i -L -n -P (one after the other) -r -s -t -x."""
    separator = replace = most = lines = end = None
    file, empty, trace, limit = "-", True, False, _MOST
    for key, value in options:
        match key:
            case "0":
                separator = "\0"
            case "d":
                separator = _unescape(value)
            case "a":
                file = value
            case "E" | "e":
                end = value or None
            case "I" | "i":
                replace, most, lines = value or "{}", None, None
            case "n" | "L" | "l" | "s":
                value = value or "1"
                if not value.isdigit():
                    return ctx.fail(f"invalid number '{value}' for -{key} option")
                if not int(value):
                    return ctx.fail(f"value {value} for -{key} option should be >= 1")
                if key == "s":
                    limit = min(int(value), _MOST)
                elif key == "n":
                    most, lines = int(value), None
                    replace = replace if most == 1 else None
                else:
                    lines, most, replace = int(value), None, None
            case "P" | "x":
                pass
            case "r":
                empty = False
            case "t":
                trace = True
            case _:
                raise unknown(ctx, key)
    try:
        text = read(ctx, file)
    except FsError as error:
        return ctx.fail(f"Cannot open input file '{file}': {error.message}")
    broken = None
    try:
        if separator is not None:
            items = [[item] for item in lines_of(text, separator)]
        elif replace is not None:
            items = [[_line(line)] for line in lines_of(text) if line.strip(" \t")]
        else:
            items = _words(text)
    except _BadInput as error:
        items, broken = [], str(error)
    if end is not None and separator is None:
        flat = list(itertools.chain.from_iterable(items))
        if end in flat:
            if lines is not None or replace is not None:
                raise Unsupported("xargs -E with lines")
            items = [flat[: flat.index(end)]]
    command = operands or ["echo"]
    run = _Runner(ctx, trace, file == "-")
    if broken is not None:
        return ctx.fail(broken)
    if replace is not None:
        for (item,) in items:
            if not run([command[0], *(part.replace(replace, item) for part in command[1:])]):
                break
        return run.status
    step = lines or max(len(items), 1)
    groups = []
    for i in range(0, len(items), step):
        groups.append(list(itertools.chain.from_iterable(items[i : i + step])))
    groups = groups or [[]]
    base = sum(len(word) + 1 for word in command)
    for group in groups:
        batch: list[str] = []
        used = base
        for word in group:
            if used + len(word) + 1 > limit and not batch:
                return ctx.fail("argument line too long")
            if batch and (len(batch) == most or used + len(word) + 1 > limit):
                if not run(command + batch):
                    return run.status
                batch, used = [], base
            batch.append(word)
            used += len(word) + 1
        if (batch or (empty and not run.ran)) and not run(command + batch):
            return run.status
    return run.status


def _line(line: str) -> str:
    """A line as -I takes it: leading blanks and quotes go."""
    words = _words(line.lstrip(" \t").replace(" ", "\0").replace("\t", "\1"))
    return (words[0][0] if words and words[0] else "").replace("\0", " ").replace("\1", "\t")


class _Runner:
    """Runs the commands and keeps the status that xargs will end with."""

    def __init__(self, ctx: Context, trace: bool, took_stdin: bool):
        self.ctx, self.trace, self.took_stdin = ctx, trace, took_stdin
        self.status = 0
        self.ran = False

    def __call__(self, argv: list[str]) -> bool:
        """False where xargs stops."""
        ctx = self.ctx
        ctx.tick()
        self.ran = True
        if self.trace:
            ctx.error(" ".join(argv) + "\n")
        if ctx.which(argv[0]) is None:
            search = ctx.env.get("PATH", "")
            denied = ctx.shell.find_program(argv[0], search, ctx.who, ctx.cwd)[0] == "denied"
            # The kernel executes no directory, which the shell says in other words.
            why = "Permission denied" if denied else "No such file or directory"
            ctx.error(f"xargs: {argv[0]}: {why}\n")
            self.status = 126 if denied else 127
            return False
        status = ctx.run(argv, "" if self.took_stdin else None)
        if status == 255:
            ctx.error(f"xargs: {argv[0]}: exited with status 255; aborting\n")
            self.status = 124
            return False
        if status > 128:
            ctx.error(f"xargs: {argv[0]}: terminated by signal {status - 128}\n")
            self.status = 125
            return False
        if status:
            self.status = 123
        return True
