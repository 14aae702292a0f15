"""Shows parts of files or counts in them: head, tail, wc, nl, tac, rev, fold, expand."""

from __future__ import annotations

import re

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.options import (
    Inputs,
    Options,
    UsageError,
    from_bytes,
    lines_of,
    parse_options,
    parse_size,
    quoted,
    read,
    to_bytes,
    tool,
    unknown,
    usage,
)
from shellworld.language.regexes import RegexError, compile_regex
from shellworld.world.streams import FileSource

CANNOT_OPEN = "cannot open {quoted} for reading: {message}"
READ_ERROR = "error reading {quoted}: {message}"
_OBSOLETE = re.compile(r"-(\d+)([bckm]?)([qvz]*)(l?)([qvz]*)")
_SHORT = {"head": "c:n:qvz", "tail": "c:n:qvzfFs:"}
_LONG = """bytes=c: lines=n: quiet=q silent=q verbose=v zero-terminated=z follow=f pid=pid:
retry=retry sleep-interval=s:"""
_UNPRINTABLE = re.compile(r"[^\t-\r -~]")


def _part(text: str, unit: str, sign: str, count: int, head: bool, end: str) -> str:
    """The part that head or tail shows; sign "-" (head) or "+" (tail) turns the count's meaning."""
    if unit == "c":
        raw = to_bytes(text)
        if head:
            raw = raw[:count] if sign != "-" else raw[: max(len(raw) - count, 0)]
        else:
            raw = raw[max(count - 1, 0) :] if sign == "+" else raw[max(len(raw) - count, 0) :]
        return from_bytes(raw)
    if head and sign != "-":
        at = -1
        for _ in range(min(count, len(text))):
            at = text.find(end, at + 1)
            if at < 0:
                return text
        return text[: at + 1]
    if not head and sign != "+":
        if not count or not text:
            return ""
        at = len(text) - text.endswith(end)
        for _ in range(min(count, len(text))):
            at = text.rfind(end, 0, at)
            if at < 0:
                return text
        return text[at + 1 :]
    if head:
        lines = re.findall(f"[^{end}]*{end}|[^{end}]+", text)
        return "".join(lines[: max(len(lines) - count, 0)])
    at = 0
    for _ in range(count - 1):
        at = text.find(end, at) + 1
        if not at:
            return ""
    return text[at:]


def _head_or_tail(ctx: Context, argv: list[str], head: bool) -> int:
    unit, sign, count, end, titles = "n", "", 10, "\n", None
    name = "head" if head else "tail"
    obsolete = len(argv) > 1 and _OBSOLETE.fullmatch(argv[1])
    if obsolete and (head or len(argv) <= 3):
        unit, count = ("c" if obsolete[2] else "n"), int(obsolete[1])
        count *= {"b": 512, "k": 1024, "m": 1 << 20}.get(obsolete[2], 1)
        flags = obsolete[3] + obsolete[5]
        argv = [argv[0], *(f"-{flag}" for flag in flags), *argv[2:]]
    elif not head and 1 < len(argv) <= 3 and re.fullmatch(r"\+\d+[cl]?", argv[1]):
        unit, sign, count = ("c" if argv[1].endswith("c") else "n"), "+", int(argv[1].strip("+cl"))
        argv = [argv[0], *argv[2:]]
    try:
        for word in argv[1:]:
            if re.fullmatch(r"-\d+", word) and not any(w in ("-n", "-c", "--") for w in argv):
                if head:
                    raise UsageError(f"invalid trailing option -- {word[1]}")
                return ctx.fail(f"option used in invalid context -- {word[1]}")
        options, operands = parse_options(argv, _SHORT[name], _LONG)
    except UsageError as error:
        return usage(ctx, str(error))
    for key, value in options:
        match key:
            case "n" | "c":
                number = parse_size(value.lstrip("+-") if value[:1] in ("+", "-") else value)
                if number is None:
                    return ctx.fail(
                        f"invalid number of {'lines' if key == 'n' else 'bytes'}: {quoted(value)}"
                    )
                unit, count = key, number
                sign = value[0] if value[:1] in ("+", "-") else ""
            case "q" | "v":
                titles = key == "v"
            case "z":
                end = "\0"
            case _:
                raise unknown(ctx, key)
    if titles is None:
        titles = len(operands) > 1
    if not head and not count and sign != "+":
        return 0  # tail then opens nothing
    status, shown = 0, False
    for file in operands or ["-"]:
        endless = False
        try:
            if file != "-":
                text = read(ctx, file)
            elif head and sign != "-":
                text, endless = ctx.read_head()
            else:
                text = ctx.stdin
        except FsError as error:
            if error.code == "EISDIR" and head and not count and sign != "-":
                continue  # it is opened, but not read
            form = READ_ERROR if error.code == "EISDIR" else CANNOT_OPEN
            if titles and error.code == "EISDIR":
                ctx.write(("\n" if shown else "") + f"==> {file} <==\n")
                shown = True
            status = ctx.fail(form.format(quoted=f"'{file}'", message=error.message))
            continue
        if titles:
            ctx.write(
                ("\n" if shown else "") + f"==> {'standard input' if file == '-' else file} <==\n"
            )
            shown = True
        part = _part(text, unit, sign, count, head, end)
        if head and file == "-" and isinstance(ctx.source, FileSource):
            ctx.source.at -= len(text) - len(part)  # what was not shown is left to others
        if endless and len(part) == len(text):
            return ctx.fail("input without end", 137)
        if part:
            ctx.write(part)
    return status


@command("head")
def head(ctx: Context, argv: list[str]) -> int:
    """head: -n, -c, -q, -v, -z and the old -NUM."""
    return _head_or_tail(ctx, argv, True)


@command("tail")
def tail(ctx: Context, argv: list[str]) -> int:
    """tail: -n, -c, -q, -v, -z and the old -NUM, +NUM; not -f."""
    return _head_or_tail(ctx, argv, False)


def _width(line: str) -> int:
    """Columns that a line takes on a terminal."""
    if line.isascii() and line.isprintable():
        return len(line)
    at = 0
    for char in line:
        if char == "\t":
            at += 8 - at % 8
        elif " " <= char <= "~":
            at += 1
    return at


def _counts(text: str, wanted: str) -> list[int]:
    values = []
    for kind in "lwmcL":
        if kind not in wanted:
            continue
        if kind == "l":
            values.append(text.count("\n"))
        elif kind == "w":
            words = re.findall(r"[^ \t-\r]+", text)
            if _UNPRINTABLE.search(text) is not None:
                # A word without a printable character is none.
                words = [word for word in words if any(" " < c <= "~" for c in word)]
            values.append(len(words))
        elif kind in "mc":
            values.append(len(text))
        else:
            values.append(max(map(_width, re.split("[\n\r\f]", text))))
    return values


@tool(
    "wc",
    short="clLmw",
    long="bytes=c chars=m lines=l words=w max-line-length=L files0-from=files0-from:",
)
def wc(ctx: Context, options: Options, operands: list[str]) -> int:
    """wc: -l, -w, -m, -c, -L."""
    wanted = "".join(key for key, _ in options)
    if "f" in wanted:
        raise unknown(ctx, "files0-from")
    wanted = wanted or "lwc"
    width, sizes = 1, 0
    names = operands or ["-"]
    if len(names) > 1 or len(set(wanted)) > 1:
        for name in names:
            if name == "-":
                node = ctx.source.node if isinstance(ctx.source, FileSource) else None
            else:
                node = ctx.fs.find(ctx.path(name), ctx.who)
                if node is None:
                    continue
            if node is not None and node.kind == "file":
                sizes += len(to_bytes(node.content))
            else:
                width = 7
        width = max(width, len(str(sizes)))

    def show(values: list[int], name: str) -> None:
        ctx.write(
            " ".join(str(v).rjust(width) for v in values) + (f" {name}" if name else "") + "\n"
        )

    kinds = [k for k in "lwmcL" if k in wanted]
    total = [0] * len(kinds)
    status = 0
    for name in names:
        ctx.tick()
        try:
            values = _counts(to_bytes(read(ctx, name)), wanted)
        except FsError as error:
            status = ctx.fail(f"{name}: {error.message}")
            if error.code != "EISDIR":
                continue
            values = [0] * len(total)
        show(values, name if operands else "")
        total = [
            max(a, b) if k == "L" else a + b for a, b, k in zip(total, values, kinds, strict=True)
        ]
    if len(names) > 1:
        show(total, "total")
    return status


_NL_LONG = """body-numbering=b: section-delimiter=d: footer-numbering=f: header-numbering=h:
line-increment=i: join-blank-lines=l: number-format=n: no-renumber=p number-separator=s:
starting-line-number=v: number-width=w:"""


@tool("nl", short="b:d:f:h:i:l:n:ps:v:w:", long=_NL_LONG)
def nl(ctx: Context, options: Options, operands: list[str]) -> int:
    """nl: -b, -i, -n, -s, -v, -w; not its pages."""
    style, step, form, separator, number, width = "t", 1, "rn", "\t", 1, 6
    for key, value in options:
        match key:
            case "b" if value in ("a", "t", "n") or value[:1] == "p":
                style = value
            case "n" if value in ("ln", "rn", "rz"):
                form = value
            case "s":
                separator = to_bytes(value)
            case "i" | "v" | "w" if re.fullmatch(r"-?\d{1,9}", value) and (
                key != "w" or int(value) > 0
            ):
                step, number, width = (
                    int(value) if key == k else old
                    for k, old in (("i", step), ("v", number), ("w", width))
                )
            case "b":
                return ctx.fail(
                    f"invalid body numbering style: {quoted(value)}\nTry 'nl --help' for more "
                    "information."
                )
            case "i" | "v" | "w":
                what = {
                    "i": "line number increment",
                    "v": "starting line number",
                    "w": "line number field width",
                }[key]
                return ctx.fail(f"invalid {what}: {quoted(value)}")
            case _:
                raise unknown(ctx, key)
    try:
        matches = (
            compile_regex(to_bytes(style[1:]), "bre", "grep").test if style[0] == "p" else None
        )
    except RegexError as error:
        return ctx.fail(str(error))
    inputs = Inputs(ctx, operands)
    out = []
    for line in lines_of(to_bytes(inputs.joined())):
        ctx.tick()
        if line in ("\\:", "\\:\\:", "\\:\\:\\:"):
            raise Unsupported("nl with sections")
        if matches(line) if matches else style == "a" or (style == "t" and line):
            text = str(number)
            if form == "ln":
                padded = text.ljust(width)
            else:
                padded = text.rjust(width) if form == "rn" else text.zfill(width)
            out.append(f"{padded}{separator}{line}\n")
            number += step
        else:
            out.append(" " * (width + len(separator)) + line + "\n")
    ctx.write(from_bytes("".join(out)))
    return int(inputs.failed)


@tool("tac", short="brs:", long="before=b regex=r separator=s:")
def tac(ctx: Context, options: Options, operands: list[str]) -> int:
    """tac: -s."""
    end = "\n"
    for key, value in options:
        if key != "s" or not value:
            raise unknown(ctx, key)
        end = value
    inputs = Inputs(
        ctx,
        operands,
        "failed to open {quoted} for reading: {message}",
        "{name}: read error: {message}",
    )
    for _, text in inputs:
        parts = text.split(end)
        last = parts.pop()
        ctx.write(last + "".join(part + end for part in reversed(parts)))
    return int(inputs.failed)


@tool("rev", short="hV")
def rev(ctx: Context, options: Options, operands: list[str]) -> int:
    """rev, without options."""
    if options:
        raise unknown(ctx, options[0][0])
    inputs = Inputs(ctx, operands, "cannot open {name}: {message}", "{name}: {message}")
    for _, text in inputs:
        if not text.isascii():
            raise Unsupported("rev of bytes beyond ASCII")
        if re.search(r"(^|\n)\0", text):
            raise Unsupported("rev of a line that begins with a zero byte")
        # To rev, a zero byte ends what it has of a line; the next line is read on to that.
        text = re.sub(r"\0[^\n]*\n?", "", text)
        ctx.write("".join(line[::-1] + "\n" for line in text.split("\n"))[: len(text)])
    return int(inputs.failed)


@tool("fold", short="bsw:0123456789", long="bytes=b spaces=s width=w:")
def fold(ctx: Context, options: Options, operands: list[str]) -> int:
    """fold: -w, -s, -b."""
    width, spaces, count, digits = 80, False, False, ""
    for key, value in options:
        match key:
            case "w":
                if not value.isdigit() or not int(value):
                    return ctx.fail(f"invalid number of columns: {quoted(value)}")
                width = int(value)
            case "s":
                spaces = True
            case "b":
                count = True
            case _:
                digits += key
    width = int(digits or width)
    inputs = Inputs(ctx, operands)
    out = []
    for _, text in inputs:
        if not count and set(text) & set("\b\r\t"):
            raise Unsupported("fold of tabs and returns")
        for line in to_bytes(text).split("\n"):
            ctx.tick(1 + len(line) // width)
            while len(line) > width:
                at = line.rfind(" ", 0, width) + 1 if spaces else 0
                at = at or width
                out.append(line[:at] + "\n")
                line = line[at:]
            out.append(line + "\n")
        out[-1] = out[-1][:-1]
    ctx.write(from_bytes("".join(out)))
    return int(inputs.failed)


@tool("expand", short="it:", long="initial=i tabs=t:")
def expand(ctx: Context, options: Options, operands: list[str]) -> int:
    """expand: -t with one number, -i."""
    width, initial = 8, False
    for key, value in options:
        if key == "i":
            initial = True
        elif not value.isdigit() or not int(value):
            raise Unsupported("expand -t with a list")
        else:
            width = int(value)
    inputs = Inputs(ctx, operands)
    for _, text in inputs:
        lines = to_bytes(text).split("\n")
        for number, line in enumerate(lines):
            ctx.tick()
            if "\b" in line:
                raise Unsupported("expand of backspaces")
            start = len(line) - len(line.lstrip(" \t")) if initial else len(line)
            lines[number] = line[:start].expandtabs(width) + line[start:]
        ctx.write(from_bytes("\n".join(lines)))
    return int(inputs.failed)
