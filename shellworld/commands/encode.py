"""Commands that show bytes in other forms: base64, base32, checksums, od, xxd, hexdump, strings."""

from __future__ import annotations

import base64 as codec
import binascii
import hashlib
import re
import zlib

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.gzip import raw, text_of_bytes
from shellworld.commands.options import (
    Options,
    UsageError,
    quoted,
    read,
    to_bytes,
    tool,
    unknown,
    usage,
)


@tool("base64", "base32", short="diw:", long="decode=d ignore-garbage=i wrap=w:")
def base64(ctx: Context, options: Options, operands: list[str]) -> int:
    """base64 and base32: -d, -i, -w."""
    flags = dict(options)
    if len(operands) > 1:
        raise UsageError(f"extra operand {quoted(operands[1])}")
    name = operands[0] if operands else "-"
    width = flags.get("w", "76")
    if not width.isdigit():
        return ctx.fail(f"invalid wrap size: {quoted(width)}")
    try:
        data = raw(read(ctx, name))
    except FsError as error:
        return ctx.fail(
            f"read error: {error.message}" if error.code == "EISDIR" else f"{name}: {error.message}"
        )
    wide = ctx.name.endswith("64")
    if "d" not in flags:
        text = (codec.b64encode if wide else codec.b32encode)(data).decode()
        size = int(width)
        lines = [text[i : i + size] for i in range(0, len(text), size)] if size else [text]
        ctx.write("".join(line + "\n" for line in lines) if size else text)
        return 0
    data = data.replace(b"\n", b"")
    if "i" in flags:
        data = re.sub(rb"[^A-Za-z0-9+/=]" if wide else rb"[^A-Z2-7=]", b"", data)
    group = 4 if wide else 8
    form = (
        rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
        if wide
        else rb"[A-Z2-7]*=*"
    )
    match = re.match(form, data)
    assert match is not None  # it may be empty
    good = match.end()
    good -= good % group
    try:
        ctx.write(text_of_bytes((codec.b64decode if wide else codec.b32decode)(data[:good])))
    except binascii.Error as error:
        raise Unsupported("base32 -d of such text") from error
    if good < len(data):
        if wide and not re.search(rb"[^A-Za-z0-9+/]", data[good:]) and len(data) - good in (2, 3):
            ctx.write(text_of_bytes(codec.b64decode(data[good:] + b"=" * (4 - len(data) + good))))
        elif wide and re.match(rb"[A-Za-z0-9+/]{2,3}", data[good:]):
            raise Unsupported("base64 -d of such text")
        return ctx.fail("invalid input")
    return 0


_SUMS = {f"{kind}sum": kind for kind in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")}
_SUM_LONG = """binary=b check=c tag=tag text=t zero=z ignore-missing=missing quiet=quiet
status=status strict=strict warn=w"""


@tool(*_SUMS, short="bctwz", long=_SUM_LONG)
def checksums(ctx: Context, options: Options, operands: list[str]) -> int:
    """Runs md5sum, sha1sum, sha224sum ... sha512sum.

    Options: -b, -c, --quiet, --status, --ignore-missing, --tag.
    """
    flags = {key for key, _ in options}
    kind = _SUMS[ctx.name.rpartition("/")[2]]
    if "c" in flags:
        if flags & {"b", "t"}:
            return usage(
                ctx,
                "the --binary and --text options are meaningless when verifying checksums",
            )
        return max(_check(ctx, flags, kind, name) for name in operands or ["-"])
    if "z" in flags or any("\n" in name or "\\" in name for name in operands):
        raise Unsupported(f"{ctx.name} of such names")
    status = 0
    for name in operands or ["-"]:
        try:
            digest = hashlib.new(kind, raw(read(ctx, name)), usedforsecurity=False).hexdigest()
        except FsError as error:
            status = ctx.fail(f"{name}: {error.message}")
            continue
        if "tag" in flags:
            ctx.write(f"{kind.upper()} ({name}) = {digest}\n")
        else:
            ctx.write(f"{digest} {'*' if 'b' in flags else ' '}{name}\n")
    return status


def _check(ctx: Context, flags: set[str], kind: str, name: str) -> int:
    try:
        text = read(ctx, name)
    except FsError as error:
        return ctx.fail(f"{name}: {error.message}")
    size = hashlib.new(kind, usedforsecurity=False).digest_size * 2
    rows = [re.fullmatch(rf"([0-9a-fA-F]{{{size}}}) [ *](.+)", line) for line in text.splitlines()]
    good = [row for row in rows if row]
    if not good:
        shown = name if name != "-" else "'standard input'"
        return ctx.fail(f"{shown}: no properly formatted checksum lines found")
    failed = unread = 0
    for row in good:
        ctx.tick()
        try:
            digest = hashlib.new(kind, raw(read(ctx, row[2])), usedforsecurity=False).hexdigest()
        except FsError as error:
            if "missing" in flags and error.code == "ENOENT":
                continue
            ctx.fail(f"{row[2]}: {error.message}")
            unread += 1
            if "status" not in flags:
                ctx.write(f"{row[2]}: FAILED open or read\n")
            continue
        matched = digest == row[1].lower()
        failed += not matched
        if "status" not in flags and not (matched and "quiet" in flags):
            ctx.write(f"{row[2]}: {'OK' if matched else 'FAILED'}\n")
    if "status" not in flags:
        wrong = len(rows) - len(good)
        for count, one, many in (
            (wrong, "line is improperly formatted", "lines are improperly formatted"),
            (unread, "listed file could not be read", "listed files could not be read"),
            (failed, "computed checksum did NOT match", "computed checksums did NOT match"),
        ):
            if count:
                ctx.fail(f"WARNING: {count} {one if count == 1 else many}")
    return int(bool(failed or unread))


@tool("cksum", short="a:bctwz", long="algorithm=a: untagged=untagged length=l: check=c")
def cksum(ctx: Context, options: Options, operands: list[str]) -> int:
    """Cksum with its own algorithm."""
    if options:
        raise unknown(ctx, options[0][0])
    status = 0
    for name in operands or ["-"]:
        try:
            data = raw(read(ctx, name))
        except FsError as error:
            status = ctx.fail(f"{name}: {error.message}")
            continue
        ctx.tick(len(data) >> 8)
        ctx.write(f"{_posix_crc(data)} {len(data)}{f' {name}' if operands else ''}\n")
    return status


def _posix_crc(data: bytes) -> int:
    """Returns the CRC of POSIX, over the data and its length.

    It is zlib's with the bits of each byte and of the result turned round.
    """
    size, tail = len(data), bytearray()
    while size:
        tail.append(size & 255)
        size >>= 8
    turned = (data + bytes(tail)).translate(_MIRROR)
    return int(f"{zlib.crc32(turned, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2) ^ 0xFFFFFFFF


_MIRROR = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))
_NAMES = (
    "nul soh stx etx eot enq ack bel bs ht nl vt ff cr so si dle dc1 dc2 dc3 dc4 nak syn etb can "
    "em sub esc fs gs rs us sp"
).split()
_ESCAPES = {0: "\\0", 7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r"}


def _od_item(kind: str, chunk: bytes) -> str:
    if kind == "c":
        byte = chunk[0]
        return (_ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f"{byte:03o}")).rjust(4)
    if kind == "a":
        byte = chunk[0] & 127
        return (_NAMES[byte] if byte < 33 else "del" if byte == 127 else chr(byte)).rjust(4)
    letter, size = kind[0], int(kind[1])
    value = int.from_bytes(chunk.ljust(size, b"\0"), "little", signed=letter == "d")
    widths = {"o": (3, 6, 11, 22), "x": (2, 4, 8, 16), "u": (3, 5, 10, 20), "d": (4, 6, 11, 20)}
    digits = widths[letter][(1, 2, 4, 8).index(size)]
    if letter in "ox":
        return " " + f"{value:0{digits}{letter}}"
    return " " + str(value).rjust(digits)


_OD_LONG = "address-radix=A: skip-bytes=j: read-bytes=N: format=t: output-duplicates=v width=w::"


@tool("od", short="A:abcdfhij:lN:oS:st:vw::x", long=_OD_LONG)
def od(ctx: Context, options: Options, operands: list[str]) -> int:
    """od: -A, -a, -b, -c, -d, -o, -x, -t of one of a c o x d u, -j, -N, -v, -w."""
    radix, kinds, skip, most, every, width = "o", [], 0, None, False, 16
    for key, value in options:
        match key:
            case "A" if value in ("o", "d", "x", "n"):
                radix = value
            case "t" if re.fullmatch(r"[ac]|[oxdu][1248CSIL]?", value):
                size = {"C": "1", "S": "2", "I": "4", "L": "8", "": "4"}.get(value[1:], value[1:])
                kinds.append(value if value in "ac" else value[0] + size)
            case "a" | "c":
                kinds.append(key)
            case "b" | "d" | "o" | "x":
                kinds.append({"b": "o1", "d": "u2", "o": "o2", "x": "x2"}[key])
            case "j" | "N" | "w" if value.isdigit() and (
                key != "w" or value in ("4", "8", "16", "24", "32")
            ):
                if key == "j":
                    skip = int(value)
                elif key == "N":
                    most = int(value)
                else:
                    width = int(value)
            case "v":
                every = True
            case _:
                raise unknown(ctx, key)
    kinds = kinds or ["o2"]
    if (
        len({1 if k in "ac" else int(k[1]) for k in kinds}) > 1
        or len({len(_od_item(k, b"\0")) for k in kinds}) > 1
    ):
        raise Unsupported("od with formats of different widths")
    data, status, opened = b"", 0, False
    for name in operands or ["-"]:
        try:
            data += raw(read(ctx, name))
        except FsError as error:
            status = ctx.fail(f"{name}: {error.message}")
            opened = opened or error.code == "EISDIR"  # a directory is opened, but not read
        else:
            opened = True
    if not opened:
        return status
    if skip > len(data):
        return ctx.fail("cannot skip past end of combined input")
    data = data[skip:][:most]
    address = {"o": "{:07o}", "d": "{:07d}", "x": "{:06x}", "n": ""}[radix]
    out, before, starred = [], None, False
    for at in range(0, len(data), width):
        ctx.tick()
        row = data[at : at + width]
        if row == before and not every and len(row) == width:
            out += [] if starred else ["*\n"]
            starred = True
            continue
        before, starred = row, False
        for number, kind in enumerate(kinds):
            step = 1 if kind in "ac" else int(kind[1])
            items = "".join(_od_item(kind, row[i : i + step]) for i in range(0, len(row), step))
            out.append(
                (address.format(at + skip) if not number else " " * len(address.format(0)))
                + items
                + "\n"
            )
    if radix != "n":
        out.append(address.format(len(data) + skip) + "\n")
    ctx.write("".join(out))
    return status


def _printable(data: bytes) -> str:
    return "".join(chr(b) if 32 <= b < 127 else "." for b in data)


@tool("xxd", short="abc:CdeEg:hil:n:o:prR:s:uv")
def xxd(ctx: Context, options: Options, operands: list[str]) -> int:
    """xxd: plain, -p, -l, -s, -c, -u, -r -p."""
    flags = dict(options)
    if (
        set(flags) - {"p", "l", "s", "c", "u", "r"}
        or not all(flags.get(k, "1").isdigit() for k in "lsc")
        or len(operands) > 1
    ):
        raise Unsupported("xxd with such options")
    try:
        data = raw(read(ctx, operands[0] if operands else "-"))
    except FsError as error:
        return ctx.fail(f"{operands[0]}: {error.message}", 2)
    if "r" in flags:
        digits = re.sub(rb"\s", b"", data)
        if "p" not in flags or re.search(rb"[^0-9a-fA-F]", digits) or len(digits) % 2:
            raise Unsupported("xxd -r of such text")
        ctx.write(text_of_bytes(bytes.fromhex(digits.decode())))
        return 0
    start = int(flags.get("s", 0))
    data = data[start:][: int(flags["l"]) if "l" in flags else None]
    plain = "p" in flags
    columns = int(flags.get("c", 30 if plain else 16))
    if not 1 <= columns <= 256:
        raise Unsupported("xxd -c of this width")
    out = []
    for at in range(0, len(data), columns):
        ctx.tick()
        row = data[at : at + columns]
        hexadecimal = row.hex().upper() if "u" in flags else row.hex()
        if plain:
            out.append(hexadecimal + "\n")
            continue
        pairs = " ".join(hexadecimal[i : i + 4] for i in range(0, len(hexadecimal), 4))
        out.append(
            f"{at + start:08x}: {pairs.ljust(columns * 2 + (columns - 1) // 2)}  "
            f"{_printable(row)}\n"
        )
    ctx.write("".join(out))
    return 0


@tool(
    "hexdump", "hd", short="bcCdoxe:f:L:n:s:v", long="canonical=C length=n: skip=s: no-squeezing=v"
)
def hexdump(ctx: Context, options: Options, operands: list[str]) -> int:
    """hexdump: -C and the default, -n, -s, -v."""
    flags = dict(options)
    if set(flags) - {"C", "n", "s", "v"} or not all(flags.get(k, "1").isdigit() for k in "ns"):
        raise Unsupported("hexdump with such options")
    try:
        data = b"".join(raw(read(ctx, name)) for name in operands or ["-"])
    except FsError as error:
        return ctx.fail(f"{operands[0]}: {error.message}")
    start = int(flags.get("s", 0))
    data = data[start:][: int(flags["n"]) if "n" in flags else None]
    canonical = "C" in flags or ctx.name == "hd"
    out, before, starred = [], None, False
    for at in range(0, len(data), 16):
        ctx.tick()
        row = data[at : at + 16]
        if row == before and "v" not in flags and len(row) == 16:
            out += [] if starred else ["*\n"]
            starred = True
            continue
        before, starred = row, False
        if canonical:
            left, right = row[:8].hex(" "), row[8:].hex(" ")
            out.append(
                f"{at + start:08x}  {left.ljust(23)}  {right.ljust(23)}  |{_printable(row)}|\n"
            )
        else:
            words = [row[i : i + 2].ljust(2, b"\0") for i in range(0, len(row), 2)]
            line = "".join(f" {word[1]:02x}{word[0]:02x}" for word in words)
            out.append(f"{at + start:07x}{line.ljust(40)}\n")
    if data:
        out.append(f"{len(data) + start:08x}\n" if canonical else f"{len(data) + start:07x}\n")
    ctx.write("".join(out))
    return 0


@tool("strings", short="afn:ot:e:", long="all=a bytes=n: print-file-name=f radix=t: encoding=e:")
def strings(ctx: Context, options: Options, operands: list[str]) -> int:
    """strings: -a, -n."""
    least = 4
    for key, value in options:
        if key == "n" and value.isdigit() and int(value):
            least = int(value)
        elif key != "a":
            raise unknown(ctx, key)
    status = 0
    for name in operands or ["-"]:
        try:
            text = to_bytes(read(ctx, name))
        except FsError as error:
            missing = (
                f"'{name}': No such file" if error.code == "ENOENT" else f"{name}: {error.message}"
            )
            status = ctx.fail(
                f"Warning: '{name}' is a directory" if error.code == "EISDIR" else missing
            )
            continue
        ctx.write("".join(found + "\n" for found in re.findall(rf"[\t -~]{{{least},}}", text)))
    return status
