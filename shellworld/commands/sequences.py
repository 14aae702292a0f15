"""Commands that make text or spread it over files: seq, yes, tee, split, truncate, dd."""

from __future__ import annotations

import itertools
import re
from decimal import Decimal, InvalidOperation

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.options import (
    Options,
    UsageError,
    from_bytes,
    parse_options,
    parse_size,
    quoted,
    read,
    to_bytes,
    tool,
    unknown,
    usage,
)


@command("seq")
def seq(ctx: Context, argv: list[str]) -> int:
    """seq: -s, -w, -f with one %g or %f."""
    at = 1  # negative numbers are no options
    while (
        at < len(argv)
        and argv[at].startswith("-")
        and not re.match(r"-[\d.]", argv[at])
        and argv[at] != "--"
    ):
        at += 2 if argv[at] in ("-s", "-f", "--separator", "--format") else 1
    try:
        options, rest = parse_options(
            argv[:at], "f:s:w", "format=f: separator=s: equal-width=w", permute=False
        )
    except UsageError as error:
        return usage(ctx, str(error))
    numbers = rest + [word for word in argv[at:] if word != "--"]
    flags = dict(options)
    if not numbers:
        return usage(ctx, "missing operand")
    if len(numbers) > 3:
        return usage(ctx, f"extra operand {quoted(numbers[3])}")
    try:
        values = [Decimal(number) for number in numbers]
    except InvalidOperation:
        bad = next(
            n
            for n in numbers
            if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", n, re.IGNORECASE)
        )
        return usage(ctx, f"invalid floating point argument: {quoted(bad)}")
    if not all(value.is_finite() and abs(value) < 10**15 for value in values):
        raise Unsupported("seq with such numbers")
    first = values[0] if len(values) > 1 else Decimal(1)
    step, last = values[1] if len(values) > 2 else Decimal(1), values[-1]
    if step == 0:
        return usage(ctx, f"invalid Zero increment value: {quoted(numbers[1])}")
    places = 0
    for value in (first, step):
        exponent = value.as_tuple().exponent
        assert isinstance(exponent, int)  # finite ones have no other
        places = max(places, -exponent)
    count = int((last - first) / step) + 1 if (last - first) * step >= 0 else 0
    ctx.tick(count >> 2)
    out = []
    width = (
        max(len(f"{value:.{places}f}") for value in (first, first + step * (count - 1)))
        if "w" in flags and count
        else 0
    )
    form = _format(flags.get("f"))
    for i in range(count):
        value = first + step * i
        if form:
            out.append(form % value)
        else:
            out.append(f"{value:0{width}.{places}f}" if width else f"{value:.{places}f}")
    if out:
        ctx.write(flags.get("s", "\n").join(out) + "\n")
    return 0


def _format(text: str | None) -> str | None:
    if text is None:
        return None
    if not re.fullmatch(r"(?:[^%]|%%)*%[-+ 0#]*\d*(?:\.\d+)?[gfe](?:[^%]|%%)*", text):
        raise Unsupported("seq -f with such a format")
    return text


@command("yes")
def yes(ctx: Context, argv: list[str]) -> int:
    """yes: until its reader has enough."""
    words = argv[1:]
    if any(word.startswith("-") and len(word) > 1 for word in words):
        raise Unsupported("yes with options")
    line = " ".join(words or ["y"]) + "\n"
    # Many lines at a time: one by one they would cost a step each.
    block = line * max(1, 4096 // len(line))
    while True:
        ctx.tick()
        ctx.write(block)


@tool("tee", short="aip", long="append=a ignore-interrupts=i output-error=p::")
def tee(ctx: Context, options: Options, operands: list[str]) -> int:
    """tee: -a, -i."""
    append = any(key == "a" for key, _ in options)
    if any(key == "p" for key, _ in options):
        raise unknown(ctx, "p")
    status = 0
    text = ctx.stdin
    for name in operands:
        if name == "-":
            ctx.write(text)
            continue
        try:
            ctx.fs.write_text(ctx.path(name), text, ctx.who, append)
        except FsError as error:
            status = ctx.fail(f"{name}: {error.message}")
    ctx.write(text)
    return status


_SPLIT_LONG = """suffix-length=a: additional-suffix=suffix: bytes=b: line-bytes=C:
numeric-suffixes=d:: hex-suffixes=x:: lines=l: number=n: separator=t: verbose=verbose
elide-empty-files=e unbuffered=u filter=filter:"""


@tool("split", short="0123456789C:a:b:del:n:t:ux", long=_SPLIT_LONG)
def split(ctx: Context, options: Options, operands: list[str]) -> int:
    """split: -l, -b, -a, -d, --additional-suffix."""
    kind, size, length, digits, suffix = "l", 1000, 0, False, ""
    for key, value in options:
        match key:
            case "l" | "b":
                number = parse_size(value)
                if not number:
                    return ctx.fail(
                        f"invalid number of {'lines' if key == 'l' else 'bytes'}: {quoted(value)}"
                    )
                kind, size = key, number
            case "a" if value.isdigit():
                length = int(value)
            case "d" if not value:
                digits = True
            case "suffix":
                suffix = value
            case _:
                raise unknown(ctx, key)
    if len(operands) > 2:
        raise UsageError(f"extra operand {quoted(operands[2])}")
    name, prefix = (operands + ["-", "x"][len(operands) :])[:2]
    try:
        text = to_bytes(read(ctx, name))
    except FsError as error:
        return ctx.fail(f"cannot open '{name}' for reading: {error.message}")
    if kind == "l":
        # The last line may have no end, and is one all the same.
        lines = re.findall(r"[^\n]*\n|[^\n]+", text)
        parts = ["".join(lines[i : i + size]) for i in range(0, len(lines), size)]
    else:
        parts = [text[i : i + size] for i in range(0, len(text), size)]
    letters = "0123456789" if digits else "abcdefghijklmnopqrstuvwxyz"
    if len(parts) > (len(letters) - (not length)) * len(letters) ** ((length or 2) - 1):
        raise Unsupported("split into so many files")
    # In the order of the alphabet, so that `cat x*` puts the parts together again.
    names = itertools.product(letters, repeat=length or 2)
    for part, letters_used in zip(parts, names, strict=False):
        ctx.tick()
        target = prefix + "".join(letters_used) + suffix
        try:
            ctx.fs.write_text(ctx.path(target), from_bytes(part), ctx.who)
        except FsError as error:
            return ctx.fail(f"{target}: {error.message}")
    return 0


@tool("truncate", short="cor:s:", long="no-create=c io-blocks=o reference=r: size=s:")
def truncate(ctx: Context, options: Options, operands: list[str]) -> int:
    """truncate: -s with a size, +N, -N, <N or >N; -c, -r."""
    flags = dict(options)
    if "o" in flags:
        raise unknown(ctx, "o")
    if "s" not in flags and "r" not in flags:
        raise UsageError("you must specify either '--size' or '--reference'")
    if not operands:
        raise UsageError("missing file operand")
    fs = ctx.fs
    base = None
    if "r" in flags:
        try:
            base = fs.stat(ctx.path(flags["r"]), ctx.who).size
        except FsError as error:
            return ctx.fail(f"cannot stat '{flags['r']}': {error.message}")
    text = flags.get("s", "+0").strip()
    sign = text[0] if text[:1] in tuple("+-<>/%") else ""
    number = parse_size(text[len(sign) :])
    if number is None:
        return ctx.fail(f"Invalid number: {quoted(text)}")
    if sign in ("/", "%"):
        raise Unsupported("truncate -s with rounding")
    status = 0
    for name in operands:
        path = ctx.path(name)
        try:
            node = fs.find(path, ctx.who)
            if node is None and "c" in flags:
                continue
            old = to_bytes(node.content) if node is not None and node.kind == "file" else ""
            size = len(old) if base is None else base
            sizes = {
                "+": size + number,
                "-": max(size - number, 0),
                "<": min(size, number),
                ">": max(size, number),
            }
            size = sizes.get(sign, number)
            if size > fs.limits.file:
                return ctx.fail(f"failed to truncate '{name}' at {size} bytes: File too large")
            # Opened first: who may not write has the file left as it was.
            fs.open_write(path, ctx.who, append=True)
            if size != len(old) or node is None:
                fs.write_text(path, from_bytes(old[:size].ljust(size, "\0")), ctx.who)
        except FsError as error:
            status = ctx.fail(f"cannot open '{name}' for writing: {error.message}")
    return status


@command("dd")
def dd(ctx: Context, argv: list[str]) -> int:
    """dd: if, of, bs, count, skip, seek, status, conv=notrunc."""
    values = {
        "bs": "512",
        "count": "",
        "skip": "0",
        "seek": "0",
        "status": "",
        "conv": "",
        "if": "-",
        "of": "-",
    }
    for word in argv[1:]:
        name, equals, value = word.partition("=")
        if not equals:
            return usage(ctx, f"unrecognized operand {quoted(word)}")
        if name not in values:
            raise Unsupported(f"dd {name}=")
        values[name] = value
    if values["conv"] not in ("", "notrunc", "fsync") or values["status"] not in (
        "",
        "none",
        "noxfer",
        "progress",
    ):
        raise Unsupported("dd with such options")
    sizes: dict[str, int] = {}
    for name in ("bs", "skip", "seek", "count"):
        size = parse_size(values[name].replace("c", "") or "1")
        if size is None or (name == "bs" and size == 0):
            return ctx.fail(f"invalid number: {quoted(values[name])}")
        sizes[name] = size
    block = sizes["bs"]
    limit = sizes["count"] * block if values["count"] else None
    try:
        if values["if"] in ("/dev/zero", "/dev/urandom", "/dev/random", "/dev/full"):
            if values["if"] != "/dev/zero":
                raise Unsupported("dd of random bytes")
            # These have no end, so that only a count makes them finite.
            if limit is None or limit > ctx.fs.limits.file:
                return ctx.fail("writing: No space left on device")
            raw = "\0" * limit
        else:
            raw = to_bytes(read(ctx, values["if"]))[sizes["skip"] * block :]
            raw = raw if limit is None else raw[:limit]
    except FsError as error:
        return ctx.fail(f"failed to open '{values['if']}': {error.message}")
    if values["of"] == "-":
        ctx.write(from_bytes(raw))
    else:
        path = ctx.path(values["of"])
        try:
            if values["of"] != "/dev/null":
                node = ctx.fs.find(path, ctx.who)
                old = to_bytes(node.content) if node is not None and node.kind == "file" else ""
                offset = sizes["seek"] * block
                # Without notrunc the file ends where the copy does.
                kept = old[offset + len(raw) :] if "notrunc" in values["conv"] else ""
                ctx.fs.open_write(path, ctx.who, append=True)
                ctx.fs.write_text(
                    path, from_bytes(old[:offset].ljust(offset, "\0") + raw + kept), ctx.who
                )
        except FsError as error:
            return ctx.fail(f"failed to open '{values['of']}': {error.message}")
    if values["status"] != "none":
        full, part = divmod(len(raw), block)
        records = f"{full}+{int(part > 0)} records"
        ctx.error(f"{records} in\n{records} out\n")
        if values["status"] != "noxfer":
            ctx.error(f"{len(raw)} byte{'s' * (len(raw) != 1)} copied, 0 s, 0 B/s\n")
    return 0
