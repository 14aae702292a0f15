"""Builtins that take words or input apart: getopts, read, mapfile."""

from __future__ import annotations

import re

from shellworld.commands import Context, Unsupported, builtin
from shellworld.commands.builtins import usage
from shellworld.language.lexer import NAME


@builtin("getopts")
def getopts(ctx: Context, argv: list[str]) -> int:
    """Reads the next option of the positional parameters, or of its arguments."""
    scope = ctx.shell.scope
    if len(argv) < 3:
        ctx.error("getopts: usage: getopts optstring name [arg ...]\n")
        return 2
    letters, name = argv[1], argv[2]
    args = argv[3:] or ctx.shell.positional
    index = int(scope.get("OPTIND") or 1)
    place = ctx.shell.getopts_place if ctx.shell.getopts_index == index else 1
    silent = letters.startswith(":")
    scope.unset("OPTARG")

    def done(value: str, status: int, at: int, inside: int) -> int:
        scope.set("OPTIND", str(at))
        ctx.shell.getopts_index, ctx.shell.getopts_place = at, inside
        scope.set(name, value)
        return status

    if index > len(args) or len(args[index - 1]) < 2 or args[index - 1][0] != "-":
        return done("?", 1, index, 1)
    word = args[index - 1]
    if word == "--":
        return done("?", 1, index + 1, 1)
    letter = word[place]
    at, inside = (index + 1, 1) if place + 1 >= len(word) else (index, place + 1)
    known = letters.find(letter, 1 if silent else 0)
    if known < 0 or letter == ":":
        if silent:
            scope.set("OPTARG", letter)
        else:
            ctx.error(f"{ctx.shell.arg0}: illegal option -- {letter}\n")
        return done("?", 0, at, inside)
    if letters[known + 1 : known + 2] == ":":
        if place + 1 < len(word):
            scope.set("OPTARG", word[place + 1 :])
        elif index < len(args):
            scope.set("OPTARG", args[index])
            return done(letter, 0, index + 2, 1)
        else:
            if silent:
                scope.set("OPTARG", letter)
                return done(":", 0, index + 1, 1)
            ctx.error(f"{ctx.shell.arg0}: option requires an argument -- {letter}\n")
            return done("?", 0, index + 1, 1)
        return done(letter, 0, index + 1, 1)
    return done(letter, 0, at, inside)


# -- reading ---------------------------------------------------------------------------


def _read_until(
    ctx: Context, delimiter: str, raw: bool, count: int | None, exact: bool
) -> tuple[str, list[bool], bool]:
    """Characters up to a delimiter; which of them were escaped; whether the delimiter came."""
    text: list[str] = []
    escaped: list[bool] = []
    source = ctx.source
    if source is None:
        return "", [], False
    line = ""
    at = 0
    while True:
        if at >= len(line):
            line, at = source.readline(), 0
            ctx.tick()
            if not line:
                return "".join(text), escaped, False
        c = line[at]
        at += 1
        if c == "\\" and not raw:
            if at >= len(line):
                line, at = source.readline(), 0
                if not line:
                    return "".join(text), escaped, False
            c = line[at]
            at += 1
            if c != "\n":
                text.append(c)
                escaped.append(True)
        elif c == delimiter and not exact:
            _give_back(source, line[at:])
            return "".join(text), escaped, True
        elif c != "\0":
            text.append(c)
            escaped.append(False)
        if count is not None and len(text) >= count:
            _give_back(source, line[at:])
            return "".join(text), escaped, True


def _give_back(source: object, rest: str) -> None:
    source.at -= len(rest)  # type: ignore[attr-defined]


def split_fields(text: str, escaped: list[bool], ifs: str, count: int | None) -> list[str]:
    """Splits a line as read does: the last of `count` fields gets the rest.

    Escaped characters never separate.
    """
    white = [c in ifs and c in " \t\n" and not e for c, e in zip(text, escaped, strict=True)]
    other = [c in ifs and c not in " \t\n" and not e for c, e in zip(text, escaped, strict=True)]
    start, end = 0, len(text)
    while start < end and white[start]:
        start += 1
    while end > start and white[end - 1]:
        end -= 1
    fields: list[str] = []
    at = start
    while at < end:
        if count is not None and len(fields) == count - 1:
            rest_end = end
            stop = next((k for k in range(at, end) if white[k] or other[k]), end)
            after = stop
            while after < end and white[after]:
                after += 1
            if after < end and other[after]:
                after += 1
                while after < end and white[after]:
                    after += 1
            if after >= end:  # one field and its delimiter only
                rest_end = stop
            fields.append(text[at:rest_end])
            return fields
        stop = at
        while stop < end and not white[stop] and not other[stop]:
            stop += 1
        fields.append(text[at:stop])
        while stop < end and white[stop]:
            stop += 1
        if stop < end and other[stop]:
            stop += 1
            while stop < end and white[stop]:
                stop += 1
        at = stop
    return fields


@builtin("read")
def read(ctx: Context, argv: list[str]) -> int:
    """Reads a line into variables: -a -d -n -N -r and others."""
    scope = ctx.shell.scope
    args = argv[1:]
    raw = exact = False
    array = ""
    delimiter = "\n"
    count: int | None = None
    while args and len(args[0]) > 1 and args[0][0] == "-":
        word = args.pop(0)
        if word == "--":
            break
        place = 1
        while place < len(word):
            letter = word[place]
            place += 1
            if letter in "rse":
                raw = raw or letter == "r"
                continue
            if letter not in "adinNptu":
                return usage(
                    ctx,
                    f"-{letter}",
                    "read [-ers] [-a array] [-d delim] [-i text] [-n nchars] [-N nchars] [-p "
                    "prompt] [-t timeout] [-u "
                    "fd] [name ...]",
                )
            value = word[place:] or (args.pop(0) if args else None)
            place = len(word)
            if value is None:
                return ctx.fail(f"-{letter}: option requires an argument", 2)
            if letter == "a":
                array = value
            elif letter == "d":
                delimiter = value[:1] or "\0"
            elif letter in "nN":
                if not value.isdigit():
                    return ctx.fail(f"{value}: invalid number")
                count, exact = int(value), letter == "N"
            elif letter == "u":
                if not value.isdigit() or int(value) not in ctx.shell.files:
                    return ctx.fail(f"{value}: invalid file descriptor: Bad file descriptor")
                ctx.source = ctx.shell.files[int(value)]
    if ctx.shell.posix and (array or exact or delimiter != "\n" or count is not None or not args):
        raise Unsupported("read of this form in sh")
    for name in args:
        if not re.fullmatch(r"[A-Za-z_]\w*(\[.*\])?", name):
            return ctx.fail(f"`{name}': not a valid identifier")
    if count == 0:
        return 0
    if (
        isinstance(ctx.source, object)
        and ctx.source is not None
        and not hasattr(ctx.source, "readline")
    ):
        return ctx.fail("read error: 0: Bad file descriptor")
    text, escaped, complete = _read_until(ctx, delimiter, raw, count, exact)
    ifs = scope.get("IFS")
    ifs = " \t\n" if ifs is None else ifs
    if array:
        fields = split_fields(text, escaped, ifs, None)
        scope.set_array(array, dict(enumerate(fields)), False)
    elif not args:
        scope.set("REPLY", text)
    elif exact:
        for name in args:
            _store(ctx, name, text)
            text = ""
    else:
        fields = split_fields(text, escaped, ifs, len(args))
        for i, name in enumerate(args):
            _store(ctx, name, fields[i] if i < len(fields) else "")
    return 0 if complete else 1


def _store(ctx: Context, name: str, value: str) -> None:
    m = re.fullmatch(r"([A-Za-z_]\w*)\[(.*)\]", name)
    if m:
        ctx.shell.scope.set_element(m[1], ctx.shell.scope.index(m[1], m[2]), value)
    else:
        ctx.shell.scope.set(name, value)


@builtin("mapfile", "readarray")
def mapfile(ctx: Context, argv: list[str]) -> int:
    """Reads lines into an array: -d, -n, -s, -t."""
    args = argv[1:]
    trim = False
    delimiter = "\n"
    skip, limit = 0, 0
    while args and args[0].startswith("-") and len(args[0]) > 1:
        word = args.pop(0)
        if word == "-t":
            trim = True
        elif word[:2] in ("-d", "-n", "-s") and (word[2:] or args):
            value = word[2:] or args.pop(0)
            if word[1] == "d":
                delimiter = value[:1] or "\0"
            elif not value.isdigit():
                return ctx.fail(f"{value}: invalid {'line count' if word[1] == 'n' else 'count'}")
            elif word[1] == "n":
                limit = int(value)
            else:
                skip = int(value)
        else:
            raise Unsupported(f"{argv[0]} {word}")
    name = args[0] if args else "MAPFILE"
    if not NAME.fullmatch(name):
        return ctx.fail(f"`{name}': not a valid identifier")
    text = ctx.stdin
    pieces = text.split(delimiter)
    last = pieces.pop()
    lines = [piece + ("" if trim else delimiter) for piece in pieces] + ([last] if last else [])
    lines = lines[skip:]
    if limit:
        lines = lines[:limit]
    ctx.tick(len(lines))
    ctx.shell.scope.set_array(name, dict(enumerate(lines)), False)
    return 0
