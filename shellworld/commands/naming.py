"""What names lead to: stat, readlink, realpath, file, tree."""

from __future__ import annotations

import posixpath
import re

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.ls import blocks
from shellworld.commands.modes import format_mode
from shellworld.commands.options import Options, quote, tool, unknown, usage
from shellworld.commands.output import unescape
from shellworld.commands.times import strftime
from shellworld.commands.walking import join
from shellworld.world.inodes import Inode, Stat

_KINDS = {"directory": "directory", "symlink": "symbolic link", "device": "character special file"}
_TYPES = {"directory": 0o040000, "symlink": 0o120000, "device": 0o020000, "file": 0o100000}
_TIMES = {"x": "X", "y": "Y", "z": "Z", "w": "W"}
_FULL = (
    "  File: %N\n  Size: %-10s\tBlocks: %-10b IO Block: %-6o %F\nDevice: 0,42\tInode: %-11i "
    "Links: %h\n"
    "Access: (%04a/%10.10A)  Uid: (%5u/%8U)   Gid: (%5g/%8G)\nAccess: %x\nModify: %y\nChange: %z\n"
    " Birth: %w\n"
)


def _field(ctx: Context, letter: str, name: str, node: Inode, s: Stat) -> str:
    owner = user.name if (user := ctx.users.user(s.uid)) else "UNKNOWN"
    group = ctx.users.group_name(s.gid)
    group = "UNKNOWN" if group == str(s.gid) else group
    values = {
        "a": f"{s.mode:o}",
        "A": format_mode(s.mode, s.type),
        "b": str(blocks(s) // 512),
        "B": "512",
        "f": f"{_TYPES[s.type] | s.mode:x}",
        "F": _KINDS.get(s.type) or ("regular file" if s.size else "regular empty file"),
        "g": str(s.gid),
        "G": group,
        "h": str(s.nlink),
        "i": str(s.inode),
        "n": name,
        "o": "4096",
        "s": str(s.size),
        "u": str(s.uid),
        "U": owner,
        "N": quote(name) + (f" -> {quote(node.content)}" if s.type == "symlink" else ""),
        "X": str(s.mtime),
        "Y": str(s.mtime),
        "Z": str(s.ctime),
        "W": str(s.ctime),
        "d": "42",
        "D": "2a",
        "t": "0" if s.type != "device" else "1",
        "T": "0" if s.type != "device" else "3",
    }
    if letter in _TIMES:
        return strftime("%Y-%m-%d %H:%M:%S.000000000 %z", int(values[_TIMES[letter]]))
    if letter not in values:
        raise Unsupported(f"stat %{letter}")
    return values[letter]


def _stat_line(ctx: Context, template: str, name: str, node: Inode, stat: Stat) -> str:
    def one(m: re.Match) -> str:
        if m[4] == "%":
            return "%"
        text = _field(ctx, m[4], name, node, stat)
        if m[3] is not None and m[4] in "nNFUGA":
            text = text[: int(m[3])]
        width = int(m[2] or 0)
        if "-" in m[1]:
            return text.ljust(width)
        zero = "0" in m[1] and m[4] in "abfghiosuXYZ"
        return text.rjust(width, "0") if zero else text.rjust(width)

    return re.sub(r"%([-0 #+']*)(\d*)(?:\.(\d+))?([a-zA-Z%])", one, template)


@tool(
    "stat",
    short="c:Lft",
    long="format=c: printf=printf: dereference=L file-system=f terse=t cached=cached:",
)
def stat(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints what the kernel tells of files, in full or as -c or --printf say."""
    flags = dict(options)
    for key in ("f", "t", "cached"):
        if key in flags:
            raise unknown(ctx, key)
    if not operands:
        return usage(ctx, "missing operand")
    template = flags["c"] + "\n" if "c" in flags else _FULL
    if "printf" in flags:
        template = unescape(flags["printf"], False)[0]
    status = 0
    for name in operands:
        try:
            node = ctx.fs.node(ctx.path(name), ctx.who, follow="L" in flags)
        except FsError as error:
            status = ctx.fail(f"cannot statx {quote(name)}: {error.message}")
            continue
        ctx.write(_stat_line(ctx, template, name, node, ctx.fs.stat_node(node)))
    return status


def canonical(ctx: Context, name: str, mode: str) -> str:
    """Returns the path without symlinks.

    Args:
      mode: "e": all of it exists; "f": all but the last component; "m": whatever exists.
    """
    path = ctx.path(name)
    if mode == "e":
        return ctx.fs.resolve(path, ctx.who)
    try:
        stripped = path.rstrip("/") or path
        return ctx.fs.resolve(stripped, ctx.who, missing=True)
    except FsError:
        if mode != "m" or not path:
            raise
    done = "/"
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            done = posixpath.dirname(done)
            continue
        try:
            done = ctx.fs.resolve(join(done, part), ctx.who, missing=True)
        except (FsError, Unsupported):
            done = join(done, part)
    return done


@tool(
    "readlink",
    short="femnqsvz",
    long="canonicalize=f canonicalize-existing=e canonicalize-missing=m no-newline=n quiet=q "
    "silent=s verbose=v zero=z",
)
def readlink(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints where symlinks point, or canonical paths: -e -f -m -n -v -z."""
    flags = [key for key, _ in options]
    if not operands:
        return usage(ctx, "missing operand")
    mode = next((key for key in reversed(flags) if key in "fem"), "")
    end = "\0" if "z" in flags else "" if "n" in flags and len(operands) == 1 else "\n"
    status = 0
    for name in operands:
        try:
            text = canonical(ctx, name, mode) if mode else ctx.fs.readlink(ctx.path(name), ctx.who)
        except FsError as error:
            status = 1
            if "v" in flags:
                ctx.fail(f"{name}: {error.message}")
            continue
        ctx.write(text + end)
    return status


@tool(
    "realpath",
    short="emLPqsz",
    long="canonicalize-existing=e canonicalize-missing=m logical=L physical=P quiet=q strip=s "
    "no-symlinks=s zero=z "
    "relative-to=relative-to: relative-base=relative-base:",
)
def realpath(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints canonical paths: -e -m -q -s -z, --relative-to."""
    flags = dict(options)
    for key in ("L", "relative-base"):
        if key in flags:
            raise unknown(ctx, key)
    if not operands:
        return usage(ctx, "missing operand")
    mode = "e" if "e" in flags else "m" if "m" in flags else "f"
    status = 0
    for name in operands:
        try:
            if "s" in flags:
                text = posixpath.normpath("/" + ctx.path(name).lstrip("/"))
                if mode == "e":
                    ctx.fs.node(text, ctx.who)
            else:
                text = canonical(ctx, name, mode)
            if "relative-to" in flags:
                text = posixpath.relpath(text, canonical(ctx, flags["relative-to"], mode))
        except FsError as error:
            status = 1
            if "q" not in flags:
                ctx.fail(f"{name}: {error.message}")
            continue
        ctx.write(text + ("\0" if "z" in flags else "\n"))
    return status


@tool(
    "file", short="bhLi", long="brief=b no-dereference=h dereference=L mime=i mime-type=mime-type"
)
def file(ctx: Context, options: Options, operands: list[str]) -> int:
    """Guesses what files hold: -b, -h, -L."""
    flags = {key for key, _ in options}
    if flags & {"i", "mime-type"} or not operands:
        raise Unsupported("file --mime")
    width = max(map(len, operands)) + 1
    lines = []
    for name in operands:
        try:
            node = ctx.fs.node(ctx.path(name), ctx.who, follow="L" in flags)
        except FsError as error:
            text = f"cannot open `{name}' ({error.message})"
        else:
            text = _file_type(ctx, name, node)
        lines.append(text if "b" in flags else f"{name + ':':<{width}} {text}")
    ctx.write("".join(line + "\n" for line in lines))
    return 0


def _file_type(ctx: Context, name: str, node: Inode) -> str:
    if node.kind == "directory":
        bits = [
            word
            for bit, word in ((0o4000, "setuid"), (0o2000, "setgid"), (0o1000, "sticky"))
            if node.mode & bit
        ]
        return (
            ", ".join([*bits, "directory"])
            if not bits
            else " ".join([*(b + "," for b in bits), "directory"])
        )
    if node.kind == "symlink":
        broken = "" if ctx.fs.exists(ctx.path(name), ctx.who) else "broken "
        return f"{broken}symbolic link to {node.content}"
    if node.kind == "file" and not node.content:
        return "empty"
    raise Unsupported("file on contents")


@tool(
    "tree", short="adfiL:pughDFsCn", long="noreport=noreport dirsfirst=dirsfirst charset=charset:"
)
def tree(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints directories as a tree: -a -d -f -i -L, --noreport."""
    flags = dict(options)
    for key in flags.keys() - {"a", "d", "f", "i", "L", "n", "noreport"}:
        raise unknown(ctx, key)
    depth = 1000
    if "L" in flags:
        if not flags["L"].isdigit() or int(flags["L"]) == 0:
            ctx.error("tree: Invalid level, must be greater than 0.\n")
            return 1
        depth = int(flags["L"])
    counts = [0, 0]
    status = 0

    def show(path: str, prefix: str, level: int) -> None:
        try:
            names = [
                n
                for n in ctx.fs.listdir(ctx.path(path), ctx.who)
                if "a" in flags or not n.startswith(".")
            ]
        except FsError:
            return
        nodes = []
        for name in names:
            node = ctx.fs.find(ctx.path(join(path, name)), ctx.who, follow=False)
            if node is not None and ("d" not in flags or node.kind == "directory"):
                nodes.append((name, node))
        for k, (name, node) in enumerate(nodes):
            ctx.tick()
            last = k == len(nodes) - 1
            place = join(path, name)
            label = place if "f" in flags else name
            if node.kind == "symlink":
                label += " -> " + node.content
                target = ctx.fs.find(ctx.path(place), ctx.who)
                counts[0 if target is not None and target.kind == "directory" else 1] += 1
            else:
                counts[node.kind != "directory"] += 1
            ctx.write(
                ("" if "i" in flags else prefix + ("`-- " if last else "|-- ")) + label + "\n"
            )
            if node.kind == "directory" and level < depth:
                show(place, prefix + ("    " if last else "|   "), level + 1)

    for name in operands or ["."]:
        if not ctx.fs.is_dir(ctx.path(name), ctx.who):
            ctx.write(f"{name}  [error opening dir]\n")
            status = 2
            continue
        ctx.write(name + "\n")
        show(name, "", 1)
        counts[0] += 1
    if "noreport" not in flags:
        directories = f"{counts[0]} director{'y' if counts[0] == 1 else 'ies'}"
        files = f"{counts[1]} file{'' if counts[1] == 1 else 's'}"
        ctx.write(f"\n{directories}" + ("" if "d" in flags else f", {files}") + "\n")
    return status
