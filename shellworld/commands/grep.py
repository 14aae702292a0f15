"""grep, egrep and fgrep. Patterns and texts are bytes as characters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.options import (
    UsageError,
    from_bytes,
    lines_of,
    parse_options,
    read,
    to_bytes,
)
from shellworld.commands.perl import perl_regex
from shellworld.commands.walking import join, scan
from shellworld.language.pattern import matches
from shellworld.language.regexes import RegexError, compile_regex

_SHORT = "EFGPe:f:iyvwxcLlqsm:obHhnTZzUuaId:D:rRA:B:C:0123456789V"
_LONG = """extended-regexp=E fixed-strings=F basic-regexp=G perl-regexp=P regexp=e: file=f:
ignore-case=i no-ignore-case=no-ignore-case invert-match=v word-regexp=w line-regexp=x
count=c color=color:: colour=color:: files-without-match=L files-with-matches=l max-count=m:
only-matching=o quiet=q silent=q no-messages=s byte-offset=b with-filename=H no-filename=h
label=label: line-number=n initial-tab=T null=Z after-context=A: before-context=B: context=C:
text=a binary-files=binary: devices=D: directories=d: exclude=exclude:
exclude-from=exclude-from: exclude-dir=exclude-dir: include=include: recursive=r
dereference-recursive=R line-buffered=buffered binary=U null-data=z
no-group-separator=nogroup group-separator=group:"""
_USAGE = "Usage: grep [OPTION]... PATTERNS [FILE]...\nTry 'grep --help' for more information.\n"


@dataclasses.dataclass
class _Job:
    """What the options ask for."""

    flags: set[str]
    test: Callable[[str], object]
    find: Callable
    before: int = 0
    after: int = 0
    most: int = -1
    label: str = "(standard input)"
    separator: str | None = "--"
    names: bool = False
    globs: list[tuple[bool, str]] = dataclasses.field(default_factory=list)  # (include, pattern)
    skipped: list[str] = dataclasses.field(default_factory=list)  # directories


def _glob(pattern: str, name: str) -> bool:
    """Whether a name, or what follows one of its slashes, matches."""
    pattern = pattern.rstrip("/") or pattern
    parts = name.split("/")
    return any(matches("/".join(parts[i:]), pattern) for i in range(len(parts)))


def _wanted(job: _Job, name: str) -> bool:
    for include, pattern in reversed(job.globs):
        if _glob(pattern, name):
            return include
    return not job.globs or not job.globs[0][0]


@command("grep", "egrep", "fgrep")
def grep(ctx: Context, argv: list[str]) -> int:
    """Runs grep with -E -F -G and the common forms of -P.

    Options: -e -f -i -v -w -x, -c -l -L -q -s -o -m -n -b -H -h, -A -B -C, -r -R and globs.
    """
    try:
        options, operands = parse_options(argv, _SHORT, _LONG)
        job, names = _prepare(ctx, options, operands)
    except UsageError as error:
        message = str(error)
        ctx.error(
            (f"grep: {message.removeprefix('!')}\n" if message else "")
            + ("" if message.startswith("!") else _USAGE)
        )
        return 2
    except RegexError as error:
        return ctx.fail(str(error), 2)
    return _search(ctx, job, names)


def _number(value: str, what: str) -> int:
    if not re.fullmatch(r"[+]?\d+", value):
        raise UsageError(f"!{value}: {what}" if "length" in what else f"!{what}")
    return int(value)


def _prepare(
    ctx: Context, options: list[tuple[str, str]], operands: list[str]
) -> tuple[_Job, list[str]]:
    patterns: list[str] | None = None
    matcher = {"egrep": "E", "fgrep": "F"}.get(ctx.name.rpartition("/")[2], "")
    job = _Job(set(), bool, bool)
    context, digits = None, ""
    before = after = None
    for key, value in options:
        match key:
            case "E" | "F" | "G" | "P":
                if matcher not in ("", key):
                    raise UsageError("!conflicting matchers specified")
                matcher = key
            case "e":
                patterns = (patterns or []) + to_bytes(value).split("\n")
            case "f":
                try:
                    patterns = (patterns or []) + lines_of(to_bytes(read(ctx, value)))
                except FsError as error:
                    raise UsageError(f"!{value}: {error.message}") from error
            case "A":
                after = _number(value, "invalid context length argument")
            case "B":
                before = _number(value, "invalid context length argument")
            case "C":
                context = _number(value, "invalid context length argument")
            case "m":
                job.most = _number(value, "invalid max count")
            case "label":
                job.label = value
            case "group":
                job.separator = value
            case "nogroup":
                job.separator = None
            case "include" | "exclude":
                job.globs.append((key == "include", value))
            case "exclude-dir":
                job.skipped.append(value)
            case "color":
                if value not in ("", "auto", "never", "no", "none", "tty", "if-tty"):
                    raise Unsupported("grep --color=always")
            case "binary":
                if value not in ("text", "without-match", "binary"):
                    raise UsageError("!unknown binary-files type")
                job.flags -= {"a", "I"}
                job.flags |= {"text": {"a"}, "without-match": {"I"}}.get(value, set())
            case "d":
                if value not in ("read", "skip", "recurse"):
                    raise Unsupported("grep -d with another word")
                job.flags |= {"skip": {"dskip"}, "recurse": {"r"}}.get(value, set())
            case "T" | "u" | "D" | "V" | "exclude-from":
                raise Unsupported(f"grep {'-' if len(key) == 1 else '--'}{key}")
            case "h" | "H":
                job.flags -= {"h", "H"}
                job.flags.add(key)
            case _ if key.isdigit():
                digits += key
            case "no-ignore-case":
                job.flags -= {"i", "y"}
            case _:
                job.flags.add(key)
    context = int(digits) if digits else context or 0
    job.before = context if before is None else before
    job.after = context if after is None else after
    if patterns is None:
        if not operands:
            raise UsageError("")
        patterns, operands = to_bytes(operands[0]).split("\n"), operands[1:]
    recursive = bool(job.flags & {"r", "R"})
    job.names = "H" in job.flags or ("h" not in job.flags and len(operands) > 1)
    if recursive and "h" not in job.flags:
        job.flags.add("namedirs")
    names = operands or (["."] if recursive else ["-"])
    if recursive and not operands:
        job.flags.add("bare")
    _compile(job, patterns, matcher)
    if "z" in job.flags and set("^$\n") & set("".join(patterns)):
        raise Unsupported("grep -z with lines")
    return job, names


def _compile(job: _Job, patterns: list[str], matcher: str) -> None:
    ignore = bool(job.flags & {"i", "y"})
    whole = "line" if "x" in job.flags else "word" if "w" in job.flags else ""
    if matcher == "P":
        if len(patterns) > 1 or whole:
            raise Unsupported("grep -P with several patterns, -w or -x")
        compiled: list[Any] = [perl_regex(patterns[0], ignore)]
    else:
        syntax = {"E": "ere", "F": "fixed"}.get(matcher, "bre")
        compiled = [
            compile_regex(p, syntax, "grep", ignore, False, whole) for p in dict.fromkeys(patterns)
        ]
    if len(compiled) == 1:
        job.test, job.find = compiled[0].test, compiled[0].find
        return

    def find(text: str, start: int = 0) -> object:
        found = [m for r in compiled if (m := r.find(text, start))]
        return min(found, key=lambda m: (m.start(), -m.end()), default=None)

    job.test, job.find = (lambda text: any(r.test(text) for r in compiled)), find


def _files(ctx: Context, job: _Job, names: list[str]) -> Iterator[tuple[str, str | FsError]]:
    """(name, text or error) of each file to search; directories are entered with -r and -R."""
    recursive = bool(job.flags & {"r", "R"})
    for name in names:
        if name == "-":
            yield "-", ctx.stdin
            continue
        path = ctx.path(name)
        node = ctx.fs.find(path, ctx.who)
        if recursive and node is not None and node.kind == "directory":
            if not any(_glob(pattern, name) for pattern in job.skipped):
                yield from _descend(ctx, job, name, path)
        elif node is not None and node.kind == "directory" and ("dskip" in job.flags):
            continue
        elif node is None or node.kind == "directory" or _wanted(job, name):
            try:
                yield name, ctx.fs.read_text(path, ctx.who)
            except FsError as error:
                yield name, error


def _descend(ctx: Context, job: _Job, name: str, path: str) -> Iterator[tuple[str, str | FsError]]:
    ctx.tick()
    try:
        entries = scan(ctx, path)
    except FsError as error:
        yield name, error
        return
    for entry in entries:
        ctx.tick()
        below = entry if name == "." and "bare" in job.flags else join(name, entry)
        full = join(path, entry)
        node = ctx.fs.find(full, ctx.who, False)
        if node is not None and node.kind == "symlink":
            if "R" not in job.flags:
                continue
            node = ctx.fs.find(full, ctx.who)
            if node is not None and node.kind == "directory":
                raise Unsupported("grep -R through a symlink to a directory")
        if node is not None and node.kind == "directory":
            if not any(matches(entry, p.rstrip("/")) for p in job.skipped):
                yield from _descend(ctx, job, below, full)
        elif (node is None or node.kind == "file") and _wanted(job, below):
            try:
                yield below, ctx.fs.read_text(full, ctx.who)
            except FsError as error:
                yield below, error


def _search(ctx: Context, job: _Job, names: list[str]) -> int:
    flags = job.flags
    status, selected_any = 0, False
    printer = _Printer(ctx, job)
    recursive = "namedirs" in flags
    for name, text in _files(ctx, job, names):
        ctx.tick()
        if isinstance(text, FsError):
            status = 2
            if "s" not in flags:
                ctx.fail(f"{name}: {text.message}", 2)
            # A directory could be opened, so it counts as a file without matches.
            if text.code == "EISDIR" and "L" in flags:
                ctx.write(name + ("\0" if "Z" in flags else "\n"))
            elif text.code == "EISDIR" and "c" in flags and not flags & {"l", "q"}:
                ctx.write((f"{name}:" if job.names else "") + "0\n")
            continue
        shown = job.label if name == "-" else name
        titled = job.names or (recursive and name not in names)
        binary = "a" not in flags and "\0" in text and "z" not in flags
        if binary and "I" in flags:
            continue
        count = printer.file(to_bytes(shown) if titled else None, shown, to_bytes(text), binary)
        if count and ("q" in flags or count == job.most):
            ctx.endless = False  # it has not asked for more
        if count and "q" in flags:
            return 0
        if "L" in flags and not count or "l" in flags and count and "L" not in flags:
            ctx.write(shown + ("\0" if "Z" in flags else "\n"))
        selected_any = selected_any or bool(count)
    return status or (0 if selected_any else 1)


class _Printer:
    """Searches files and prints what is asked for."""

    def __init__(self, ctx: Context, job: _Job):
        self.ctx = ctx
        self.job = job
        self.printed = False  # anything, so that groups are told apart
        flags = job.flags
        self.end = "\0" if "z" in flags else "\n"
        self.silent = bool(flags & {"c", "l", "L", "q"})
        self.context = 0 if self.silent else max(job.before, job.after)
        self.plain = not (flags & {"o", "n", "b"}) and not self.context

    def _prefix(self, title: str | None, number: int, offset: int, mark: str) -> str:
        flags = self.job.flags
        text = "" if title is None else title + ("\0" if "Z" in flags else mark)
        if "n" in flags:
            text += f"{number}{mark}"
        if "b" in flags:
            text += f"{offset}{mark}"
        return text

    def file(self, title: str | None, name: str, text: str, binary: bool) -> int:
        """Number of selected lines."""
        job, ctx, flags = self.job, self.ctx, self.job.flags
        lines = lines_of(text, self.end)
        ctx.tick(len(lines) >> 2)
        if "z" in flags and any("\n" in line for line in lines):
            raise Unsupported("grep -z with lines")
        most = job.most
        if most < 0 and flags & {"l", "L", "q"}:
            most = 1
        if most == 0:
            chosen: list[int] = []
        elif "v" in flags:
            chosen = [i for i, line in enumerate(lines) if not job.test(line)]
        else:
            chosen = [i for i, line in enumerate(lines) if job.test(line)]
        if most >= 0:
            chosen = chosen[:most]
        if self.silent:
            if "c" in flags and not flags & {"q", "l", "L"}:
                ctx.write(from_bytes(self._title(title)) + f"{len(chosen)}\n")
            return len(chosen)
        if binary and chosen:
            if not ("o" in flags and "v" in flags):
                ctx.fail(f"{name}: binary file matches")
            return len(chosen)
        if self.plain:
            lead = self._title(title)
            if chosen:
                ctx.write(
                    from_bytes(lead + (self.end + lead).join([lines[i] for i in chosen]) + self.end)
                )
            return len(chosen)
        out: list[str] = []
        for kind, at in self._shown(chosen, len(lines)):
            line = lines[at] if at >= 0 else ""
            if kind == "--":
                out.append(f"{job.separator}\n")
                continue
            offset = sum(map(len, lines[:at])) + at if "b" in flags else 0
            if "o" not in flags:
                out.append(self._prefix(title, at + 1, offset, kind) + line + self.end)
            elif (kind == ":") != ("v" in flags):
                for start, end in self._matches(line):
                    out.append(
                        self._prefix(title, at + 1, offset + start, kind)
                        + line[start:end]
                        + self.end
                    )
        ctx.write(from_bytes("".join(out)))
        return len(chosen)

    def _title(self, title: str | None) -> str:
        return "" if title is None else title + ("\0" if "Z" in self.job.flags else ":")

    def _matches(self, line: str) -> Iterator[tuple[int, int]]:
        at = 0
        while at <= len(line) and (match := self.job.find(line, at)):
            self.ctx.tick()
            start, end = match.span()
            if end > start:
                yield start, end
            at = end if end > start else end + 1

    def _shown(self, chosen: list[int], total: int) -> Iterator[tuple[str, int]]:
        """Yields (kind, number of the line) in the order of printing.

        The kinds are ":" for selected, "-" for context and "--" for a gap.
        """
        if not self.context:
            for at in chosen:
                yield ":", at
            return
        job = self.job
        if job.most < 0 or len(chosen) < job.most:
            limit = total
        else:
            limit = chosen[-1] + 1 + job.after if chosen else 0
        selected, following = set(chosen), 0  # following: first line not yet printed
        for index, at in enumerate(chosen):
            first = max(at - job.before, following)
            if job.separator is not None and self.printed and (first > following or index == 0):
                yield "--", -1
            for line in range(first, at):
                yield "-", line
            self.printed = True
            yield ":", at
            following = at + 1
            stop = chosen[index + 1] if index + 1 < len(chosen) else total
            while (
                following < min(at + 1 + job.after, stop, limit, total)
                and following not in selected
            ):
                yield "-", following
                following += 1
