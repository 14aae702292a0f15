"""gzip, gunzip and zcat: the same bytes as the real ones make."""

from __future__ import annotations

import struct
import zlib

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.options import UsageError, parse_options, read, usage
from shellworld.world.filesystem import Inode
from shellworld.world.streams import FileSource

_LONG = """stdout=c to-stdout=c decompress=d uncompress=d force=f keep=k list=l no-name=n
name=N quiet=q silent=q recursive=r suffix=S: synchronous=sync test=t verbose=v fast=1 best=9
rsyncable=rsync"""
_NAMED, _EXTRA, _COMMENT, _CHECKED = 8, 4, 16, 2
MAGIC = b"\x1f\x8b"


class BadGzip(Exception):
    """Not gzip, or damaged: the message that gzip gives."""


def compress(data: bytes, mtime: int = 0, name: str = "", level: int = 6) -> bytes:
    """A gzip file as GNU gzip writes it."""
    maker = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = maker.compress(data) + maker.flush()
    label = name.encode("utf-8", "surrogateescape") + b"\0" if name else b""
    extra = {1: 4, 9: 2}.get(level, 0)
    header = MAGIC + struct.pack("<BBIBB", 8, _NAMED if name else 0, mtime & 0xFFFFFFFF, extra, 3)
    return header + label + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def decompress(data: bytes, most: int) -> bytes:
    """Returns the content of all members.

    Raises:
      BadGzip: there is none, or one is damaged.
      Unsupported: the content has more than `most` bytes, or something else stands behind it.
    """
    out, members = b"", 0
    while data or not members:
        if data[:2] != MAGIC or len(data) < 18:
            if members and not data.strip(b"\0"):
                break  # padding is ignored
            if members:
                raise Unsupported("gzip with garbage behind it")
            damaged = len(data) >= 2 and data[:2] != MAGIC
            raise BadGzip("not in gzip format" if damaged else "unexpected end of file")
        members += 1
        flags, at = data[3], 10
        if flags & (_EXTRA | _CHECKED):
            raise Unsupported("gzip with such a header")
        for flag in (_NAMED, _COMMENT):
            if flags & flag:
                at = data.index(b"\0", at) + 1
        reader = zlib.decompressobj(-15)
        try:
            out += reader.decompress(data[at:], most + 1)
        except zlib.error as error:
            raise BadGzip("invalid compressed data--format violated") from error
        if len(out) > most:
            raise Unsupported("gzip of such a size")
        if not reader.eof:
            raise BadGzip("unexpected end of file")
        crc = (
            struct.unpack("<II", reader.unused_data[:8])[0]
            if len(reader.unused_data) >= 8
            else None
        )
        if crc != zlib.crc32(out):
            raise BadGzip("invalid compressed data--crc error")
        data = reader.unused_data[8:]
    return out


def raw(text: str) -> bytes:
    """Returns the bytes of a text of the world."""
    return text.encode("utf-8", "surrogateescape")


def text_of_bytes(data: bytes) -> str:
    """Returns bytes as a text of the world; what is not UTF-8 becomes lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


@command("gzip", "gunzip", "zcat", "uncompress")
def gzip(ctx: Context, argv: list[str]) -> int:
    """gzip, gunzip, zcat: -c -d -f -k -n -q -t -v -1 ... -9."""
    try:
        options, names = parse_options(argv, "123456789cdfhklLnNqrS:tvV", _LONG)
    except UsageError as error:
        return usage(ctx, str(error))
    flags = {key for key, _ in options}
    unknown = flags & {"l", "r", "S", "N", "L", "h", "sync", "rsync", "V"}
    if unknown:
        raise Unsupported(f"gzip -{unknown.pop()}")
    if ctx.name.endswith("zcat"):
        flags |= {"c", "d"}
    elif ctx.name.endswith(("gunzip", "uncompress")):
        flags.add("d")
    if "t" in flags:
        flags.add("d")
    level = max((int(flag) for flag in flags if flag.isdigit()), default=6)
    if not names or names == ["-"]:
        mtime = ctx.source.node.mtime if isinstance(ctx.source, FileSource) else 0
        data = raw(ctx.stdin)
        if not data and not ctx.stdin_given and "d" not in flags:
            mtime = 0
        return _stream(ctx, data, flags, mtime, level)
    run = _Gzip(ctx, flags, level)
    return max([run.file(name) for name in names], key=lambda status: {0: 0, 2: 1, 1: 2}[status])


def _stream(ctx: Context, data: bytes, flags: set[str], mtime: int, level: int) -> int:
    if "d" not in flags:
        ctx.write(text_of_bytes(compress(data, mtime, "", level)))
        return 0
    try:
        plain = decompress(data, ctx.fs.limits.file)
    except BadGzip as error:
        ctx.error(f"\ngzip: stdin: {error}\n")
        return 1
    if "t" not in flags:
        ctx.write(text_of_bytes(plain))
    return 0


class _Gzip:
    """Works on files one after the other."""

    def __init__(self, ctx: Context, flags: set[str], level: int):
        self.ctx, self.flags, self.level = ctx, flags, level

    def complain(self, text: str, status: int) -> int:
        if not (status == 2 and "q" in self.flags):
            self.ctx.error(f"gzip: {text}\n")
        return status

    def file(self, name: str) -> int:
        ctx, flags = self.ctx, self.flags
        unpack = "d" in flags
        if (
            unpack
            and ctx.fs.find(ctx.path(name), ctx.who, False) is None
            and not name.endswith(".gz")
        ):
            name += ".gz"
        path = ctx.path(name)
        try:
            node = ctx.fs.node(path, ctx.who, "c" in flags or "f" in flags)
            if node.kind == "symlink":
                return self.complain(f"{name}: Too many levels of symbolic links", 1)
            if node.kind == "directory":
                return self.complain(f"{name} is a directory -- ignored", 2)
            data = raw(read(ctx, name))
        except FsError as error:
            return self.complain(f"{name}: {error.message}", 1)
        target = self.target(name, unpack)
        if target is None:
            return 2 if unpack else 0
        if not flags & {"c", "f", "t"} and node.nlink > 1:
            others = node.nlink - 1
            return self.complain(
                f"{name} has {others} other link{'s' if others > 1 else ' '} -- file ignored", 2
            )
        try:
            if unpack:
                result = decompress(data, ctx.fs.limits.file)
            else:
                base = "" if "n" in flags else name.rpartition("/")[2]
                result = compress(data, 0 if "n" in flags else node.mtime, base, self.level)
        except BadGzip as error:
            ctx.error(f"\ngzip: {name}: {error}\n")
            return 1
        if "t" in flags:
            return 0
        if "c" in flags:
            ctx.write(text_of_bytes(result))
            return 0
        return self.replace(name, node, target, result)

    def target(self, name: str, unpack: bool) -> str | None:
        flags = self.flags
        if not unpack:
            compressed = name.endswith((".gz", ".tgz", ".taz", ".z", "-gz", "-z"))
            if compressed and not flags & {"c", "f"}:
                # A remark: the status stays.
                suffix = name.rpartition(".")[2]
                self.ctx.error(f"gzip: {name} already has .{suffix} suffix -- unchanged\n")
                return None
            return name + ".gz"
        for suffix, plain in (
            (".gz", ""),
            ("-gz", ""),
            (".z", ""),
            ("-z", ""),
            (".tgz", ".tar"),
            (".taz", ".tar"),
            (".Z", ""),
        ):
            if name.endswith(suffix) and len(name.rpartition("/")[2]) > len(suffix):
                return name[: -len(suffix)] + plain
        if flags & {"c", "t"}:
            return name
        self.complain(f"{name}: unknown suffix -- ignored", 2)
        return None

    def replace(self, name: str, node: Inode, target: str, result: bytes) -> int:
        """Writes the new file with the old one's mode, owner and time, and removes the old one."""
        ctx, fs, flags = self.ctx, self.ctx.fs, self.flags
        path = ctx.path(target)
        if fs.exists(path, ctx.who, False):
            if "f" not in flags:
                return self.complain(f"{target} already exists;\tnot overwritten", 2)
            fs.unlink(path, ctx.who)
        try:
            fs.write_text(path, text_of_bytes(result), ctx.who, mode=0o600)
            if "k" not in flags:
                fs.unlink(ctx.path(name), ctx.who)
        except FsError as error:
            return self.complain(f"{target}: {error.message}", 1)
        made = fs.node(path, ctx.who)
        if ctx.who.uid == 0:
            made.uid, made.gid = node.uid, node.gid
        elif node.gid in ctx.who.groups:
            made.gid = node.gid
        made.mode, made.mtime = node.mode & 0o777, node.mtime
        return 0
