"""Commands about order: sort and uniq."""

from __future__ import annotations

import functools
import heapq
import itertools
import re
from collections.abc import Callable
from typing import Any

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.options import (
    FOLD,
    Options,
    UsageError,
    from_bytes,
    lines_of,
    quoted,
    read,
    to_bytes,
    tool,
    unknown,
    usage,
)

_SORT_LONG = """ignore-leading-blanks=b dictionary-order=d ignore-case=f
general-numeric-sort=g ignore-nonprinting=i month-sort=M human-numeric-sort=h numeric-sort=n
random-sort=R reverse=r sort=sort: version-sort=V batch-size=batch: check=check::
compress-program=compress: debug=debug files0-from=files0: key=k: merge=m output=o: stable=s
buffer-size=S: field-separator=t: temporary-directory=T: parallel=parallel: unique=u
zero-terminated=z random-source=random:"""
_ORDERS = {
    "general-numeric": "g",
    "human-numeric": "h",
    "month": "M",
    "numeric": "n",
    "random": "R",
    "version": "V",
}
_NUMBER = re.compile(r"[ \t\n]*(-?)(\d*)(?:\.(\d*))?")
_HUMAN = re.compile(r"[ \t\n]*(-?)(\d*)(?:\.(\d*))?([KkMGTPEZY]?)")
_FLOAT = re.compile(
    r"\s*[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?"
    r"|0[xX][\da-fA-F.]+|inf(?:inity)?|nan)",
    re.I,
)
_MONTHS = {
    m: i + 1 for i, m in enumerate("JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split())
}
_KEY = re.compile(r"(\d+)(?:\.(\d+))?([bdfgiMhnRrV]*)(?:,(\d+)(?:\.(\d+))?([bdfgiMhnRrV]*))?")


def _numeric(text: str) -> tuple:
    """A number as `sort -n` reads it, of any length: exact, ordered as tuples."""
    match = _NUMBER.match(text)
    assert match is not None  # it may be empty
    sign, whole, part = match.groups()
    whole, part = whole.lstrip("0"), (part or "").rstrip("0")
    if not whole and not part:
        return (0, 0, "", "")
    if sign:
        turned = (whole + "." + part).translate(str.maketrans("0123456789.", "9876543210~"))
        return (-1, -len(whole), turned + "~")
    return (1, len(whole), whole, part)


def _human(text: str) -> tuple:
    match = _HUMAN.match(text)
    assert match is not None  # it may be empty
    sign, whole, part, unit = match.groups()
    value = float((whole or "0") + "." + (part or "0"))
    order = "kMGTPEZY".find(unit.replace("K", "k")) + 1 if unit and value else 0
    return (-order, -value) if sign else (order, value)


def _general(text: str) -> tuple:
    match = _FLOAT.match(text)
    if match is None:
        return (0, 0.0)
    if "x" in match[0].lower():
        raise Unsupported("sort -g of hexadecimal numbers")
    value = float(match[0])
    return (1, 0.0) if value != value else (2, value)


def _month(text: str) -> int:
    return _MONTHS.get(text.lstrip(" \t")[:3].upper(), 0)


def _order(char: str) -> int:
    if char.isdigit():
        return 0
    if char == "~":
        return -1
    return ord(char) if char.isalpha() else ord(char) + 256


def _version_compare(a: str, b: str) -> int:
    """Debian's order of versions, on texts without suffix."""
    at, other = 0, 0
    while at < len(a) or other < len(b):
        while (at < len(a) and not a[at].isdigit()) or (other < len(b) and not b[other].isdigit()):
            left = _order(a[at]) if at < len(a) else 0
            right = _order(b[other]) if other < len(b) else 0
            if left != right:
                return left - right
            at, other = at + 1, other + 1
        left_digits, right_digits = _digits(a, at), _digits(b, other)
        at, other = at + len(left_digits), other + len(right_digits)
        # Digits count as numbers, so that 9 comes before 10; leading zeros count for nothing.
        difference = int(left_digits or 0) - int(right_digits or 0)
        if difference:
            return difference
    return 0


_SUFFIX = re.compile(r"(?:\.[A-Za-z~][A-Za-z0-9~]*)*$")


def _digits(text: str, at: int) -> str:
    """Returns the digits that stand at a place, if any do."""
    match = re.compile(r"\d*").match(text, at)
    assert match is not None  # it may be empty
    return match[0]


def _without_suffix(text: str) -> str:
    """Returns a file's name without its extensions, as filevercmp sees these."""
    suffix = _SUFFIX.search(text)
    assert suffix is not None  # it may be empty
    return text[: suffix.start()]


def compare_versions(a: str, b: str) -> int:
    """Gnulib's filevercmp, as `sort -V` and `ls -v` use it."""
    for special in ("", ".", ".."):
        if a == special or b == special:
            return (a != special) - (b != special)
    # Hidden names come first.
    if (a[0] == ".") != (b[0] == "."):
        return -1 if a[0] == "." else 1
    short_a, short_b = _without_suffix(a), _without_suffix(b)
    if short_a == short_b:
        short_a, short_b = a, b
    # Suffixes decide only where names without them are equal.
    return _version_compare(short_a, short_b) or _version_compare(a, b)


class _Key:
    """One -k (or the whole line): which part of a line, and how it is compared."""

    def __init__(
        self,
        options: str,
        start: tuple[int, int] = (1, 1),
        end: tuple[int, int] | None = None,
        end_blanks: bool = False,
    ):
        self.options = options
        self.start = start
        self.end = end
        self.end_blanks = end_blanks
        kinds = [o for o in "nhgMV" if o in options]
        if len(kinds) > 1 or (kinds and kinds != ["V"] and set(options) & set("di")):
            shown = "".join(sorted((set(options) & set("dighMnV")), key="dfghiMnRV".index))
            raise UsageError(f"options '-{shown}' are incompatible")
        self.kind = kinds[0] if kinds else ""

    def _begin(self, text: str, separator: str | None, field: int, char: int, blanks: bool) -> int:
        """Offset of a character (from 1; 0 is the end of the field) of a field."""
        at = 0
        for _ in range(field - 1 if char else field):
            if at >= len(text):
                break
            if separator is None:
                field_end = _BLANK_FIELD.match(text, at)
                assert field_end is not None  # it may be empty
                at = field_end.end()
            else:
                found = text.find(separator, at)
                at = len(text) if found < 0 else found + (1 if char or _ < field - 1 else 0)
        if blanks:
            skipped = _BLANKS.match(text, at)
            assert skipped is not None  # it may be empty
            at = skipped.end()
        return at + char - 1 if char else at

    def extract(self, text: str, separator: str | None) -> str:
        if self.start == (1, 1) and self.end is None:
            part = text
        elif (
            separator is not None
            and self.start[1] == 1
            and (self.end is None or self.end[1] == 0)
            and not self.end_blanks
        ):
            fields = text.split(separator)
            part = separator.join(fields[self.start[0] - 1 : self.end[0] if self.end else None])
        else:
            begin = self._begin(text, separator, *self.start, "b" in self.options)
            end = len(text)
            if self.end is not None:
                end = self._begin(text, separator, *self.end, self.end_blanks) + (self.end[1] > 0)
            return text[begin : max(begin, end)]
        return part.lstrip(" \t") if "b" in self.options else part

    def function(self, separator: str | None) -> Callable[[str], Any]:
        """From a line to what is compared."""
        options = self.options

        def plain(part: str) -> str:
            if "d" in options:
                part = re.sub(r"[^A-Za-z0-9 \t]", "", part)
            if "i" in options:
                part = re.sub(r"[^ -~]", "", part)
            return part.translate(FOLD) if "f" in options else part

        def compare_plain(a: str, b: str) -> int:
            return compare_versions(plain(a), plain(b))

        converters: dict[str, Callable[[str], Any]] = {
            "n": _numeric,
            "h": _human,
            "g": _general,
            "M": _month,
            "V": functools.cmp_to_key(compare_plain),
        }
        convert = converters.get(self.kind, plain)
        return lambda text: convert(self.extract(text, separator))


_BLANK_FIELD = re.compile(r"[ \t]*[^ \t]*")
_BLANKS = re.compile(r"[ \t]*")


def _parse_key(text: str, inherited: str) -> _Key:
    match = _KEY.fullmatch(text)
    if match is None:
        if not text[:1].isdigit():
            raise UsageError(
                f"!invalid number at field start: invalid count at start of {quoted(text)}"
            )
        raise UsageError(
            f"!stray character in field spec: invalid field specification {quoted(text)}"
        )
    field, char, options, end_field, end_char, end_options = match.groups()
    if int(field) == 0:
        raise UsageError(f"!field number is zero: invalid field specification {quoted(text)}")
    if char is not None and int(char) == 0:
        raise UsageError(f"!character offset is zero: invalid field specification {quoted(text)}")
    if end_field is not None and int(end_field) == 0:
        raise UsageError(f"!field number is zero: invalid field specification {quoted(text)}")
    both = options + (end_options or "")
    flags = both.replace("b", "") + ("b" if "b" in options else "")
    end = None if end_field is None else (int(end_field), int(end_char or 0))
    key = _Key(
        flags or ("" if both else inherited),
        (int(field), int(char or 1)),
        end,
        "b" in (end_options or ""),
    )
    if not both and "b" in inherited:
        key.end_blanks = end is not None and end[1] > 0
    return key


@tool("sort", short="bcCdfghik:mMno:rRsS:t:T:uVy::z", long=_SORT_LONG, status=2)
def sort(ctx: Context, options: Options, operands: list[str]) -> int:
    """Sorts lines.

    Options: -b -d -f -g -h -i -M -n -r -V (global and per key), -k, -t, -u, -s, -c, -C, -m, -o, -z.
    """
    general, separator, specs = "", None, []
    flags: dict[str, str] = {}
    for key, value in options:
        match key:
            case "sort" if value in _ORDERS:
                general += _ORDERS[value]
            case "k":
                specs.append(value)
            case "t":
                separator = to_bytes("\0" if value == "\\0" else value)
                if len(separator) != 1:
                    return ctx.fail(
                        f"multi-character tab {quoted(value)}" if value else "empty tab", 2
                    )
            case "check":
                flags["C" if value in ("quiet", "silent") else "c"] = ""
            case "S" | "parallel" | "T":
                pass
            case "o" | "u" | "s" | "c" | "C" | "m" | "z":
                flags[key] = value
            case _ if len(key) == 1 and key in "bdfghiMnrV":
                general += key
            case _:
                raise unknown(ctx, key)
    if "R" in general:
        raise Unsupported("sort -R")
    try:
        keys = [_parse_key(spec, general.replace("R", "")) for spec in specs] or [_Key(general)]
        if any("R" in key.options for key in keys):
            raise Unsupported("sort -R")
    except UsageError as error:
        return ctx.fail(str(error).removeprefix("!"), 2)
    plain = len(keys) == 1 and not specs and not set(general) - {"r"}
    reverse = "r" in general
    end = "\0" if "z" in flags else "\n"
    files: list[list[str]] = []
    for name in operands or ["-"]:
        try:
            files.append(lines_of(to_bytes(read(ctx, name)), end))
        except FsError as error:
            verb = "read failed" if error.code == "EISDIR" else "cannot read"
            return ctx.fail(f"{verb}: {name}: {error.message}", 2)
    lines = list(itertools.chain.from_iterable(files))
    ctx.tick(len(lines))
    functions = [(key.function(separator), "r" in key.options) for key in keys]

    if "c" in flags or "C" in flags:
        if len(operands) > 1:
            return usage(ctx, f"extra operand {quoted(operands[1])} not allowed with -c", 2)
        for number, (before, line) in enumerate(zip(lines, lines[1:], strict=False)):
            order = _compare(
                before, line, functions, "s" in flags or "u" in flags or plain, reverse
            )
            if order > 0 or (order == 0 and "u" in flags):
                if "c" in flags:
                    ctx.fail(
                        f"{operands[0] if operands else '-'}:{number + 2}: disorder: "
                        f"{from_bytes(line)}"
                    )
                return 1
        return 0
    if "m" in flags:

        def compared(a: str, b: str) -> int:
            return _compare(a, b, functions, "s" in flags or "u" in flags, reverse)

        lines = list(heapq.merge(*files, key=functools.cmp_to_key(compared)))
    elif plain:
        lines.sort(reverse=reverse)
    else:
        if "s" not in flags and "u" not in flags:
            lines.sort(reverse=reverse)
        for function, backward in reversed(functions):
            lines.sort(key=function, reverse=backward)
    if "u" in flags:
        kept: list[str] = []
        for line in lines:
            if not kept or any(function(kept[-1]) != function(line) for function, _ in functions):
                kept.append(line)
        lines = kept
    text = from_bytes(end.join(lines) + end if lines else "")
    if "o" not in flags:
        ctx.write(text)
        return 0
    try:
        ctx.fs.write_text(ctx.path(flags["o"]), text, ctx.who)
    except FsError as error:
        return ctx.fail(f"open failed: {flags['o']}: {error.message}", 2)
    return 0


def _compare(a: str, b: str, functions: list, last: bool, reverse: bool) -> int:
    for function, backward in functions:
        left, right = function(a), function(b)
        if left != right:
            return -1 if (left < right) != backward else 1
    if last or a == b:
        return 0
    return -1 if (a < b) != reverse else 1


_UNIQ_LONG = """count=c repeated=d all-repeated=D:: skip-fields=f: group=group::
ignore-case=i skip-chars=s: unique=u zero-terminated=z check-chars=w:"""


@tool("uniq", short="cdDf:is:uw:z0123456789", long=_UNIQ_LONG)
def uniq(ctx: Context, options: Options, operands: list[str]) -> int:
    """uniq: -c, -d, -D, -u, -i, -f, -s, -w, -z."""
    flags: set[str] = set()
    numbers = {"f": 0, "s": 0, "w": -1}
    for key, value in options:
        if key in numbers:
            if not value.isdigit():
                what = {"f": "fields to skip", "s": "bytes to skip", "w": "bytes to compare"}[key]
                return ctx.fail(f"{value}: invalid number of {what}")
            numbers[key] = int(value)
        elif key.isdigit() or key == "group" or (key == "D" and value not in ("", "none")):
            raise unknown(ctx, key)
        else:
            flags.add(key)
    if len(operands) > 2:
        raise UsageError(f"extra operand {quoted(operands[2])}")
    if "c" in flags and "D" in flags:
        raise UsageError("printing all duplicated lines and repeat counts is meaningless")
    if "D" in flags and flags & {"u", "d"}:
        raise Unsupported("uniq -D with -d or -u")
    end = "\0" if "z" in flags else "\n"
    try:
        lines = lines_of(to_bytes(read(ctx, operands[0] if operands else "-")), end)
    except FsError as error:
        if error.code == "EISDIR":
            return ctx.fail(f"error reading '{operands[0]}'")
        return ctx.fail(f"{operands[0]}: {error.message}")

    skip = re.compile(rf"(?:[ \t]*[^ \t]*){{{numbers['f']}}}")

    def key_of(line: str) -> str:
        if numbers["f"]:
            skipped = skip.match(line)
            assert skipped is not None  # it may be empty
            line = line[skipped.end() :]
        line = line[numbers["s"] :]
        if numbers["w"] >= 0:
            line = line[: numbers["w"]]
        return line.translate(FOLD) if "i" in flags else line

    groups: list[tuple[str, list[str]]] = []
    for line in lines:
        ctx.tick()
        key = key_of(line)
        if groups and groups[-1][0] == key:
            groups[-1][1].append(line)
        else:
            groups.append((key, [line]))
    out = []
    for _, members in groups:
        count = len(members)
        if ("u" in flags and count > 1) or (("d" in flags or "D" in flags) and count == 1):
            continue
        if "D" in flags:
            out += members
        else:
            out.append(f"{count:7d} {members[0]}" if "c" in flags else members[0])
    text = from_bytes(end.join(out) + end if out else "")
    if len(operands) < 2 or operands[1] == "-":
        ctx.write(text)
        return 0
    try:
        ctx.fs.write_text(ctx.path(operands[1]), text, ctx.who)
    except FsError as error:
        return ctx.fail(f"{operands[1]}: {error.message}")
    return 0
