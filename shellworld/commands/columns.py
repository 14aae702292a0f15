"""Commands that work on fields and characters of lines: cut, paste, tr, column."""

from __future__ import annotations

import itertools
import re

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.options import (
    Inputs,
    Options,
    UsageError,
    from_bytes,
    lines_of,
    quoted,
    read,
    to_bytes,
    tool,
    unknown,
)

_ENDLESS = 1 << 60
_CUT_LONG = """bytes=b: characters=c: fields=f: delimiter=d: only-delimited=s
complement=complement zero-terminated=z output-delimiter=output-delimiter:"""


def _ranges(text: str, fields: bool) -> list[tuple[int, int]]:
    """The ranges of a cut list, from 1, sorted and merged where they overlap."""
    ranges = []
    for item in re.split("[, \t]", text):
        match = re.fullmatch(r"(\d*)(-?)(\d*)", item)
        if match is None or len(item) > 18:
            bad = item.lstrip("0123456789-") if match is None else item
            raise UsageError(
                f"invalid {'field value' if fields else 'byte/character position'} {quoted(bad)}"
            )
        low, dash, high = match.groups()
        if not (low or high):
            if dash:
                raise UsageError("invalid range with no endpoint: -")
            raise UsageError(
                f"{'fields' if fields else 'byte/character positions'} are numbered from 1"
            )
        first = int(low or 1)
        last = int(high) if high else _ENDLESS if dash else first
        if first == 0 or (high and last == 0 and not low):
            raise UsageError(
                f"{'fields' if fields else 'byte/character positions'} are numbered from 1"
            )
        if last < first:
            raise UsageError("invalid decreasing range")
        ranges.append((first, last))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


def _complement(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    result, at = [], 1
    for first, last in ranges:
        if first > at:
            result.append((at, first - 1))
        at = last + 1
    return result + ([(at, _ENDLESS)] if at < _ENDLESS else [])


@tool("cut", short="b:c:d:f:nsz", long=_CUT_LONG)
def cut(ctx: Context, options: Options, operands: list[str]) -> int:
    """cut: -b, -c (bytes, as coreutils 9.1), -f, -d, -s, -z, --complement, --output-delimiter."""
    kind = delimiter = output = None
    spec = ""
    only, complement, end = False, False, "\n"
    for key, value in options:
        match key:
            case "b" | "c" | "f":
                if kind:
                    raise UsageError("only one list may be specified")
                kind, spec = key, value
            case "d":
                delimiter = to_bytes(value) or "\0"
                if len(delimiter) > 1:
                    raise UsageError("the delimiter must be a single character")
            case "s":
                only = True
            case "z":
                end = "\0"
            case "complement":
                complement = True
            case "output-delimiter":
                output = to_bytes(value) or "\0"
    if kind is None:
        raise UsageError("you must specify a list of bytes, characters, or fields")
    if kind != "f" and delimiter is not None:
        raise UsageError("an input delimiter may be specified only when operating on fields")
    if kind != "f" and only:
        raise UsageError(
            "suppressing non-delimited lines makes sense\n\tonly when operating on fields"
        )
    ranges = _ranges(spec, kind == "f")
    if complement:
        ranges = _complement(ranges)
    if delimiter == end:
        # The whole input is one line then.
        raise Unsupported("cut with line ends as delimiter")
    delimiter = delimiter or "\t"
    # One slice for each range: what is asked for comes out in the order of the line.
    slices = [slice(first - 1, last) for first, last in ranges]
    single = slices[0] if len(slices) == 1 else None
    join = delimiter if output is None else output
    inputs = Inputs(ctx, operands)
    out = []
    for _, text in inputs:
        for line in lines_of(to_bytes(text), end):
            ctx.tick()
            if kind != "f":
                out.append(
                    (output or "").join(part for s in slices if (part := line[s]) or s.start == 0)
                )
            # A line without delimiters is one field, and printed whole unless -s is given.
            elif delimiter not in line:
                if not only:
                    out.append(line)
            else:
                fields = line.split(delimiter)
                if single:
                    chosen = fields[single]
                else:
                    chosen = []
                    for s in slices:
                        chosen += fields[s]
                out.append(join.join(chosen))
    if out:
        ctx.write(from_bytes(end.join(out) + end))
    return int(inputs.failed)


@tool("paste", short="d:sz", long="delimiters=d: serial=s zero-terminated=z")
def paste(ctx: Context, options: Options, operands: list[str]) -> int:
    """paste: -d, -s, -z."""
    delimiters, serial, end = ["\t"], False, "\n"
    for key, value in options:
        if key == "d":
            if value.endswith("\\") and not value.endswith("\\\\"):
                return ctx.fail(f"delimiter list ends with an unescaped backslash: {value}")
            escapes = {
                "\\n": "\n",
                "\\t": "\t",
                "\\0": "",
                "\\b": "\b",
                "\\f": "\f",
                "\\r": "\r",
                "\\v": "\v",
            }
            delimiters = [
                escapes.get(c, c[-1]) for c in re.findall(r"\\.|.", value, re.DOTALL)
            ] or [""]
            # paste goes by bytes, and would tear the character apart.
            if not value.isascii():
                raise Unsupported("paste -d with such a character")
        elif key == "s":
            serial = True
        else:
            end = "\0"
    names = operands or ["-"]
    files, status = [], 0
    standard = lines_of(ctx.stdin, end) if "-" in names else []
    dashes = names.count("-")
    seen = 0
    for name in names:
        if name == "-":
            # Several dashes share standard input: each takes the next line in turn.
            taken = (standard if seen == 0 else []) if serial else standard[seen::dashes]
            files.append(taken)
            seen += 1
            continue
        try:
            files.append(lines_of(read(ctx, name), end))
        except FsError as error:
            status = ctx.fail(f"{name}: {error.message}")
            # All files are opened before anything is printed; a directory can be opened.
            if not serial and error.code != "EISDIR":
                return status
            if not serial:
                files.append([])
    rows = files if serial else list(itertools.zip_longest(*files, fillvalue=""))
    for row in rows:
        ctx.tick(1 + len(row))
        text = ""
        for i, cell in enumerate(row):
            text += (delimiters[(i - 1) % len(delimiters)] if i else "") + cell
        ctx.write(text + end)
    return status


_TR_CLASSES = {
    "alpha": "A-Za-z",
    "digit": "0-9",
    "alnum": "0-9A-Za-z",
    "upper": "A-Z",
    "lower": "a-z",
    "space": "\t-\r ",
    "blank": "\t ",
    "punct": "!-/:-@\\[-`{-~",
    "print": " -~",
    "graph": "!-~",
    "cntrl": "\0-\x1f\x7f",
    "xdigit": "0-9A-Fa-f",
}
_BYTES = "".join(map(chr, range(256)))
_TR_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
    "\\": "\\",
}
_TR_ITEM = re.compile(
    r"\[:(?P<class>\w+):\]|\[=(?P<equal>.)=\]|\[(?P<repeat>\\[0-7]{1,3}|\\.|.)\*(?P<count>\d*)\]"
    r"|(?P<octal>\\[0-7]{1,3})|(?P<escape>\\.)|(?P<char>.)",
    re.DOTALL,
)


def _tr_char(text: str) -> str:
    if text[0] == "\\" and len(text) > 1:
        return (
            chr(int(text[1:], 8) & 255)
            if text[1] in "01234567"
            else _TR_ESCAPES.get(text[1], text[1])
        )
    return text


def _tr_set(text: str, second: bool) -> list[str | tuple[str, int | str]]:
    """Returns the elements of a tr set.

    They are characters, ("class", name), or (char, repeats) with 0 for as many as needed.
    """
    tokens = list(_TR_ITEM.finditer(text))
    elements: list = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token["class"]:
            if token["class"] not in _TR_CLASSES:
                raise UsageError(f"!invalid character class {quoted(token['class'])}")
            elements.append(("class", token["class"]))
        elif token["repeat"]:
            if not second:
                raise UsageError("!the [c*] repeat construct may not appear in string1")
            count = token["count"]
            elements.append(
                (
                    _tr_char(token["repeat"]),
                    int(count, 8 if count.startswith("0") else 10) if count else 0,
                )
            )
        elif token["equal"]:
            elements.append(token["equal"])
        else:
            low = _tr_char(token[0])
            if (
                at + 1 < len(tokens)
                and tokens[at][0] == "-"
                and tokens[at + 1].lastgroup in ("octal", "escape", "char")
            ):
                high = _tr_char(tokens[at + 1][0])
                if high < low:
                    shown = f"{low}-{high}"
                    raise UsageError(
                        f"!range-endpoints of '{shown}' are in reverse collating sequence order"
                    )
                elements.extend(_BYTES[ord(low) : ord(high) + 1])
                at += 2
            else:
                elements.append(low)
    return elements


def _class_chars(name: str) -> str:
    return "".join(re.findall(f"[{_TR_CLASSES[name]}]", _BYTES))


def _tr_map(first: list, second: list, complement: bool, truncate: bool) -> dict[str, str]:
    """The translation of each character."""
    classes = [e for e in second if isinstance(e, tuple) and e[0] == "class"]
    if any(name not in ("upper", "lower") for _, name in classes):
        raise UsageError(
            "!when translating, the only character classes that may appear in\nstring2 are "
            "'upper' and 'lower'"
        )
    source = _flat(first)
    if complement:
        members = set(source)
        source = [c for c in _BYTES if c not in members]
    target: list[str] = []
    if classes:
        if complement:
            raise Unsupported("tr -c with a class as second set")
        pairs: list[tuple[str, str]] = []
        # Upper and lower stand opposite to each other at the same place.
        for place, element in enumerate(first):
            other = second[min(place, len(second) - 1)]
            if isinstance(other, tuple) and other[0] == "class":
                if not (isinstance(element, tuple) and element[1] in ("upper", "lower")):
                    raise UsageError("!misaligned [:upper:] and/or [:lower:] construct")
                pairs += zip(_class_chars(element[1]), _class_chars(other[1]), strict=True)
            elif isinstance(element, tuple) or isinstance(other, tuple):
                raise Unsupported("tr with classes mixed with others")
            else:
                pairs.append((element, other))
        return dict(pairs)
    fixed = sum(e[1] if isinstance(e, tuple) else 1 for e in second)
    for element in second:
        if isinstance(element, tuple):
            target += element[0] * min(element[1] or max(len(source) - fixed, 0), 256)
        else:
            target.append(element)
    if truncate:
        source = source[: len(target)]
    elif not target:
        raise UsageError("!when not truncating set1, string2 must be non-empty")
    return {char: target[min(i, len(target) - 1)] for i, char in enumerate(source)}


def _flat(elements: list) -> list[str]:
    chars: list[str] = []
    for element in elements:
        chars += _class_chars(element[1]) if isinstance(element, tuple) else element
    return chars


def _members(second: list) -> set[str]:
    repeats = {e[0] for e in second if isinstance(e, tuple) and e[0] != "class"}
    return repeats | set(_flat([e for e in second if not isinstance(e, tuple) or e[0] == "class"]))


@tool(
    "tr",
    short="+cCdst",
    long="complement=c delete=d squeeze-repeats=s truncate-set1=t",
    permute=False,
)
def tr(ctx: Context, options: Options, operands: list[str]) -> int:
    """tr: -c, -d, -s, -t; sets with ranges, classes, escapes and [c*n]; bytes, as coreutils do."""
    flags = {key.lower() for key, _ in options}
    complement, delete, squeeze = "c" in flags, "d" in flags, "s" in flags
    wanted = 1 + (delete == squeeze)
    if not operands:
        raise UsageError("missing operand")
    if len(operands) < wanted and not (squeeze and not delete):
        why = "both deleting and squeezing repeats" if delete else "translating"
        raise UsageError(
            f"missing operand after {quoted(operands[-1])}\nTwo strings must be given when {why}."
        )
    most = 1 if delete and not squeeze else 2
    if len(operands) > most:
        note = "\nOnly one string may be given when deleting without squeezing repeats."
        raise UsageError(
            "extra operand "
            f"{quoted(operands[most])}{note if most == 1 and len(operands) == 2 else ''}"
        )
    sets = [to_bytes(operand) for operand in operands]
    try:
        first = _tr_set(sets[0], False)
        second = _tr_set(sets[1], True) if len(sets) > 1 else []
        text = to_bytes(ctx.stdin)
        members = set(_flat(first))
        if complement:
            members = set(_BYTES) - members
        last = members
        if delete:
            text = text.translate({ord(c): None for c in members})
            last = _members(second)
        elif len(sets) > 1:
            table = _tr_map(first, second, complement, "t" in flags)
            text = text.translate({ord(a): b for a, b in table.items()})
            last = _members(second)
    except UsageError as error:
        return ctx.fail(str(error).removeprefix("!"))
    if squeeze and last:
        text = re.sub(
            "([" + "".join(f"\\x{ord(c):02x}" for c in sorted(last)) + r"])\1+", r"\1", text
        )
    ctx.write(from_bytes(text))
    return 0


@tool(
    "column",
    short="c:tns:o:exLJN:R:H:T:W:O:l:dEp:r:i:h",
    long="table=t separator=s: output-separator=o: output-width=c:",
)
def column(ctx: Context, options: Options, operands: list[str]) -> int:
    """column: -t with -s and -o."""
    table, separators, output = False, None, "  "
    for key, value in options:
        match key:
            case "t":
                table = True
            case "s" if value:
                separators = value
            case "o":
                output = value
            case _:
                raise unknown(ctx, key)
    if not table:
        raise Unsupported("column without -t")
    inputs = Inputs(ctx, operands, "{name}: {message}", "read failed: {message}")
    lines = [line for line in lines_of(inputs.joined()) if line.strip(" \t")]
    if not all(line.isascii() and line.replace("\t", "").isprintable() for line in lines):
        raise Unsupported("column of such characters")
    ctx.tick(len(lines))
    rows = [
        line.split() if separators is None else re.split("[" + re.escape(separators) + "]", line)
        for line in lines
    ]
    widths = [0] * max(map(len, rows), default=0)
    for row in rows:
        for i, cell in enumerate(row):
            widths[i] = max(widths[i], len(cell))
    for row in rows:
        row += [""] * (len(widths) - len(row))
        ctx.write(
            output.join(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False))
        )
        ctx.write((output if len(row) > 1 else "") + row[-1] + "\n")
    return int(inputs.failed)
