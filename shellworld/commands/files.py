"""Commands on single files and directories: cat, mkdir, rmdir, touch, mktemp, basename, dirname."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.modes import ModeError, apply_mode
from shellworld.commands.options import Inputs, Options, quote, tool, unknown, usage
from shellworld.commands.times import parse_date
from shellworld.commands.walking import join
from shellworld.world.inodes import allows
from shellworld.world.streams import FileSink, FileSource

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def missing_operand(ctx: Context) -> int:
    """Complains that there is no operand."""
    return usage(ctx, "missing operand")


def confirmed(ctx: Context, question: str) -> bool:
    """Asks on stderr and reads an answer from stdin."""
    ctx.error(f"{ctx.name}: {question}? ")
    answer = ctx.source.readline() if ctx.source is not None else ""
    return answer[:1] in ("y", "Y")


# -- cat -------------------------------------------------------------------------------


def _visible(text: str, tabs: bool) -> str:
    """As cat -v shows control characters and bytes above 127."""
    out = []
    for byte in text.encode("utf-8", "surrogateescape"):
        prefix = ""
        if byte >= 128:
            prefix, byte = "M-", byte - 128
        if (byte == 9 and not tabs and not prefix) or (byte == 10 and not prefix):
            out.append(chr(byte))
        elif byte < 32:
            out.append(f"{prefix}^{chr(byte + 64)}")
        else:
            out.append(f"{prefix}^?" if byte == 127 else prefix + chr(byte))
    return "".join(out)


@tool(
    "cat",
    short="AbeEnstTuv",
    long="number=n number-nonblank=b show-ends=E show-all=A squeeze-blank=s show-tabs=T "
    "show-nonprinting=v",
)
def cat(ctx: Context, options: Options, operands: list[str]) -> int:
    """Writes files one after the other: -A -b -e -E -n -s -t -T -v."""
    flags = {key for key, _ in options}
    ends, tabs, visible = (
        bool(flags & set("AeE")),
        bool(flags & set("AtT")),
        bool(flags & set("Aetv")),
    )
    plain = not flags - {"u"}
    failed: list[str] = []
    number, blank = 0, False
    fresh = True
    for text in _texts(ctx, operands, failed):
        if plain:
            ctx.write(text)
            continue
        out = []
        for line in re.findall(r"[^\n]*\n|[^\n]+\Z", text):
            body = line.removesuffix("\n")
            # A line that continues one of the file before is not empty, whatever it holds.
            if "s" in flags and not body and blank and fresh:
                continue
            if (
                fresh
                and ("n" in flags or "b" in flags)
                and ("b" not in flags or body or not line.endswith("\n"))
            ):
                number += 1
                out.append(f"{number:6d}\t")
            blank = not body
            fresh = line.endswith("\n")
            body = _visible(body, tabs) if visible else body.replace("\t", "^I") if tabs else body
            out.append(body + ("$" if ends and fresh else "") + ("\n" if fresh else ""))
        ctx.write("".join(out))
    return int(bool(failed))


def _texts(ctx: Context, operands: list[str], failed: list[str]) -> Iterator[str]:
    """Yields what the operands hold.

    Those that cannot be read, or are what cat writes to, are complained of and go to `failed`.
    """
    for name in operands or ["-"]:
        if _is_output(ctx, name):
            ctx.fail(f"{name}: input file is output file")
            failed.append(name)
            continue
        inputs = Inputs(ctx, [name])
        yield from (text for _, text in inputs)
        failed += [name] * inputs.failed


def _is_output(ctx: Context, name: str) -> bool:
    """Whether stdout is the same file, with something in it that is still to be read."""
    if not isinstance(ctx.out, FileSink):
        return False
    if name != "-":
        return ctx.fs.find(ctx.path(name), ctx.who) is ctx.out.node and bool(ctx.out.node.content)
    source = ctx.source
    return (
        isinstance(source, FileSource)
        and source.node is ctx.out.node
        and source.at < len(source.node.content)
    )


# -- directories -----------------------------------------------------------------------


@tool("mkdir", short="pm:vZ", long="parents=p mode=m: verbose=v context=Z::")
def mkdir(ctx: Context, options: Options, operands: list[str]) -> int:
    """Makes directories: -p, -m, -v."""
    flags = dict(options)
    if "Z" in flags:
        raise unknown(ctx, "Z")
    mode = None
    if "m" in flags:
        try:
            mode = apply_mode(flags["m"], 0o777, True, ctx.who.umask)
        except ModeError:
            return ctx.fail(f"invalid mode {quote(flags['m'])}")
    if not operands:
        return missing_operand(ctx)
    status = 0
    for name in operands:
        if "p" in flags and not make_ancestors(ctx, name, "created" if "v" in flags else ""):
            status = 1
            continue
        try:
            made = not ("p" in flags and ctx.fs.is_dir(ctx.path(name), ctx.who))
            if made:
                ctx.fs.mkdir(ctx.path(name), ctx.who)
                if "v" in flags:
                    ctx.write(f"{ctx.name}: created directory {quote(name)}\n")
            if mode is not None and made:
                node = ctx.fs.node(ctx.path(name), ctx.who)
                special = (
                    node.mode & 0o2000 if not (flags["m"].isdigit() and len(flags["m"]) > 4) else 0
                )
                ctx.fs.chmod(ctx.path(name), mode | special, ctx.who)
        except FsError as error:
            status = ctx.fail(f"cannot create directory {quote(name)}: {error.message}")
    return status


def make_ancestors(ctx: Context, name: str, verb: str, mode: int | None = None) -> bool:
    """Makes the directories above a name; false after a complaint about the first that fails.

    Args:
      verb: "created" or "creating" to tell of them; "" for silence.
      mode: theirs, whatever the umask is; None for what the umask leaves, and u+wx.
    """
    fs, who = ctx.fs, ctx.who if mode is None else ctx.who.with_umask(0)
    for place in [
        k
        for k, c in enumerate(name.rstrip("/"))
        if c == "/" and name[:k].strip("/") and name[k - 1] != "/"
    ]:
        ctx.tick()
        above = name[:place]
        refused = None
        try:
            fs.mkdir(ctx.path(above), who, 0o777 if mode is None else mode)
            if mode is None:
                # mkdir -p must be able to make the next one inside, whatever the umask.
                fs.node(ctx.path(above), who).mode |= 0o300
            if verb:
                ctx.write(f"{ctx.name}: {verb} directory {quote(above)}\n")
        except FsError as error:
            refused = error
        try:
            node = fs.node(ctx.path(above), who)
            if node.kind != "directory":
                raise FsError("ENOTDIR")
            if not allows(node, 1, who):
                raise FsError("EACCES")
        except FsError as error:
            cause = refused if refused is not None and error.code == "ENOENT" else error
            ctx.fail(f"cannot create directory {quote(above)}: {cause.message}")
            return False
    return True


@tool("rmdir", short="pv", long="parents=p verbose=v ignore-fail-on-non-empty=ignore")
def rmdir(ctx: Context, options: Options, operands: list[str]) -> int:
    """Removes empty directories: -p, -v, --ignore-fail-on-non-empty."""
    flags = {key for key, _ in options}
    if not operands:
        return missing_operand(ctx)
    status = 0
    for name in operands:
        names = [name]
        if "p" in flags:
            parent = posixpath.dirname(name.rstrip("/"))
            while parent and parent != "/":
                names.append(parent)
                parent = posixpath.dirname(parent)
        for k, path in enumerate(names):
            if "v" in flags:
                ctx.write(f"{ctx.name}: removing directory, {quote(path)}\n")
            try:
                ctx.fs.rmdir(ctx.path(path), ctx.who)
            except FsError as error:
                if not ("ignore" in flags and error.code == "ENOTEMPTY"):
                    what = "failed to remove" if not k else "failed to remove directory"
                    status = ctx.fail(f"{what} {quote(path)}: {error.message}")
                break
    return status


# -- touch, mktemp ---------------------------------------------------------------------


def _stamp(text: str, now: int) -> int | None:
    """[[CC]YY]MMDDhhmm[.ss] of touch -t."""
    m = re.fullmatch(r"(\d{2}|\d{4})?(\d{2})(\d{2})(\d{2})(\d{2})(?:\.(\d{2}))?", text)
    if not m:
        return None
    if not m[1]:
        raise Unsupported("touch -t without a year")
    # POSIX: two digits from 69 are of the twentieth century.
    year = int(m[1]) if len(m[1]) == 4 else int(m[1]) + (1900 if int(m[1]) >= 69 else 2000)
    return parse_date(f"{year}-{m[2]}-{m[3]} {m[4]}:{m[5]}:{m[6] or '00'}", now)


@tool(
    "touch",
    short="acd:fhmr:t:",
    long="no-create=c date=d: reference=r: no-dereference=h time=time:",
)
def touch(ctx: Context, options: Options, operands: list[str]) -> int:
    """Sets times of files and makes those that are not there: -a -c -d -h -m -r -t."""
    flags = dict(options)
    moment: int | None = None
    if "r" in flags:
        try:
            moment = ctx.fs.stat(ctx.path(flags["r"]), ctx.who).mtime
        except FsError as error:
            return ctx.fail(f"failed to get attributes of {quote(flags['r'])}: {error.message}")
    if "d" in flags:
        moment = parse_date(
            flags["d"], moment if "r" in flags and moment is not None else ctx.fs.clock
        )
    elif "t" in flags:
        moment = _stamp(flags["t"], ctx.fs.clock)
    if ("d" in flags or "t" in flags) and moment is None:
        return ctx.fail(f"invalid date format {quote(flags.get('d', flags.get('t', '')))}")
    if not operands:
        return usage(ctx, "missing file operand")
    access_only = (
        "a" in flags and "m" not in flags or flags.get("time") in ("access", "atime", "use")
    )
    status = 0
    for name in operands:
        if name == "-":
            raise Unsupported("touch -")
        path = ctx.path(name)
        try:
            if not ctx.fs.exists(path, ctx.who, follow="h" not in flags):
                if "c" in flags or "h" in flags:
                    if "h" in flags and "c" not in flags:
                        raise FsError("ENOENT")
                    ctx.fs.walk(path, ctx.who)
                    continue
                ctx.fs.write_text(path, "", ctx.who, append=True)
                if moment is None:
                    continue
            if access_only:
                ctx.fs.utime(path, ctx.fs.node(path, ctx.who).mtime, ctx.who)
            else:
                ctx.fs.utime(path, moment, ctx.who, follow="h" not in flags)
        except FsError as error:
            if not ("c" in flags and error.code == "ENOENT"):
                verb = "setting times of" if error.code == "EPERM" else "cannot touch"
                status = ctx.fail(f"{verb} {quote(name)}: {error.message}")
    return status


@tool("mktemp", short="dqup:tV", long="directory=d quiet=q dry-run=u tmpdir=p:: suffix=suffix:")
def mktemp(ctx: Context, options: Options, operands: list[str]) -> int:
    """Makes a file or directory with a name of its own: -d -p -q -t -u, --suffix."""
    flags = dict(options)
    suffix = flags.get("suffix", "")
    if len(operands) > 1:
        return usage(ctx, "too many templates")
    place = flags.get("p") or ctx.env.get("TMPDIR") or "/tmp"
    template = operands[0] if operands else "tmp.XXXXXXXXXX"
    if suffix:
        template += suffix
    m = re.search(r"X+(?=[^X/]*\Z)", template)
    if m is None or len(m[0]) < 3:
        return ctx.fail(f"too few X's in template {quote(template)}")
    count = len(m[0])
    if not operands or "p" in flags or "t" in flags:
        template = join(place, template)
        m = re.search(r"X+(?=[^X/]*\Z)", template)
        assert m is not None
    # Names look random, but are the same at each run of the same line.
    number = ctx.fs.clock * 7919
    while True:
        number += 104729
        digits = "".join(
            LETTERS[number * (k * k + 3) // (k + 1) % len(LETTERS)] for k in range(1, count + 1)
        )
        name = template[: m.start()] + digits + template[m.end() :]
        path = ctx.path(name)
        if not ctx.fs.exists(path, follow=False):
            break
    kind = "directory" if "d" in flags else "file"
    try:
        if "u" not in flags:
            if "d" in flags:
                ctx.fs.mkdir(path, ctx.who, 0o700)
            else:
                ctx.fs.write_text(path, "", ctx.who, mode=0o600)
    except FsError as error:
        if "q" not in flags:
            ctx.fail(f"failed to create {kind} via template {quote(template)}: {error.message}")
        return 1
    ctx.write(name + "\n")
    return 0


# -- names -----------------------------------------------------------------------------


@tool("basename", short="as:z", long="multiple=a suffix=s: zero=z", permute=False)
def basename(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints the last component of names: -a, -s, -z."""
    flags = dict(options)
    if not operands:
        return missing_operand(ctx)
    many = "a" in flags or "s" in flags
    if not many and len(operands) > 2:
        return usage(ctx, f"extra operand {quote(operands[2])}")
    suffix = flags.get("s", "") if many else "".join(operands[1:2])
    for name in operands if many else operands[:1]:
        base = name.rstrip("/").rpartition("/")[2] if name.strip("/") or not name else "/"
        if suffix and base != suffix and base.endswith(suffix):
            base = base[: -len(suffix)]
        ctx.write(base + ("\0" if "z" in flags else "\n"))
    return 0


@tool("dirname", short="z", long="zero=z")
def dirname(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints names without their last component: -z."""
    if not operands:
        return missing_operand(ctx)
    for name in operands:
        stripped = name.rstrip("/")
        directory = stripped.rpartition("/")[0].rstrip("/") if "/" in stripped else ""
        if not directory:
            directory = "/" if name.startswith("/") else "."
        ctx.write(directory + ("\0" if options else "\n"))
    return 0
