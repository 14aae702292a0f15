"""Commands on single files and directories: cat, rm, mkdir, rmdir, touch, mktemp, basename, dirname, unlink."""

from __future__ import annotations

import posixpath
import re

from subtransfer.settings.shell.commands import Context, FsError, Unsupported
from subtransfer.settings.shell.commands.modes import ModeError, apply_mode
from subtransfer.settings.shell.commands.options import Inputs, Options, quote, tool, unknown, usage
from subtransfer.settings.shell.commands.times import parse_date
from subtransfer.settings.shell.commands.walking import join, scan
from subtransfer.settings.shell.filesystem import allows
from subtransfer.settings.shell.streams import FileSink

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def missing_operand(ctx: Context) -> int:
    return usage(ctx, "missing operand")


def confirmed(ctx: Context, question: str) -> bool:
    """Asks on stderr and reads an answer from stdin."""
    ctx.fail(question + "?")
    answer = ctx.source.readline() if ctx.source is not None else ""
    return answer[:1] in ("y", "Y")


# -- cat -----------------------------------------------------------------------------------------------------------------


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
    long="number=n number-nonblank=b show-ends=E show-all=A squeeze-blank=s show-tabs=T show-nonprinting=v",
)
def cat(ctx: Context, options: Options, operands: list[str]) -> int:
    flags = {key for key, _ in options}
    ends, tabs, visible = bool(flags & set("AeE")), bool(flags & set("AtT")), bool(flags & set("Aetv"))
    plain = not flags - {"u"}
    inputs = Inputs(ctx, _not_output(ctx, operands))
    number, blank = 0, False
    fresh = True
    for _, text in inputs:
        if plain:
            ctx.write(text)
            continue
        out = []
        for line in re.findall(r"[^\n]*\n|[^\n]+\Z", text):
            body = line.removesuffix("\n")
            if "s" in flags and not body and blank and fresh:
                continue
            if fresh and ("n" in flags or "b" in flags) and ("b" not in flags or body or not line.endswith("\n")):
                number += 1
                out.append(f"{number:6d}\t")
            blank = not body
            fresh = line.endswith("\n")
            body = _visible(body, tabs) if visible else body.replace("\t", "^I") if tabs else body
            out.append(body + ("$" if ends and fresh else "") + ("\n" if fresh else ""))
        ctx.write("".join(out))
    return int(inputs.failed or len(operands) != len(_not_output(ctx, operands, quiet=True)))


def _not_output(ctx: Context, operands: list[str], quiet: bool = False) -> list[str]:
    """The operands without a file that stdout is appended to, which cat refuses to copy onto itself."""
    if not isinstance(ctx.out, FileSink):
        return operands
    kept = []
    for name in operands:
        node = ctx.fs.find(ctx.path(name), ctx.who) if name != "-" else None
        if node is ctx.out.node and node.content:
            if not quiet:
                ctx.fail(f"{name}: input file is output file")
        else:
            kept.append(name)
    if operands and not kept:
        return kept if quiet else ["/dev/null"]
    return kept


# -- rm ------------------------------------------------------------------------------------------------------------------


class _Remover:
    """One run of rm."""

    def __init__(self, ctx: Context, flags: set[str]):
        self.ctx = ctx
        self.flags = flags
        self.failed = False

    def complain(self, name: str, error: FsError) -> None:
        self.failed = True
        self.ctx.fail(f"cannot remove {quote(name)}: {error.message}")

    def remove(self, name: str) -> None:
        ctx = self.ctx
        path = ctx.path(name)
        try:
            node = ctx.fs.node(path, ctx.who, follow=False)
        except FsError as error:
            if not ("f" in self.flags and error.code in ("ENOENT", "ENOTDIR")):
                self.complain(name, error)
            return
        if node.kind != "directory":
            if "i" in self.flags and not confirmed(ctx, self.question(name, node)):
                return
            self.unlink(name)
            return
        if not self.flags & {"r", "R"}:
            if "d" in self.flags:
                self.rmdir(name)
            else:
                self.complain(name, FsError("EISDIR"))
            return
        if "i" in self.flags:
            raise Unsupported("rm -ri")
        self.tree(name)

    def question(self, name: str, node: object) -> str:
        kind = node.kind  # type: ignore[attr-defined]
        what = "symbolic link" if kind == "symlink" else "regular file" if node.content else "regular empty file"  # type: ignore[attr-defined]
        return f"remove {what} {quote(name)}"

    def unlink(self, name: str) -> bool:
        try:
            self.ctx.fs.unlink(self.ctx.path(name), self.ctx.who)
        except FsError as error:
            self.complain(name, error)
            return False
        if "v" in self.flags:
            self.ctx.write(f"removed {quote(name)}\n")
        return True

    def rmdir(self, name: str) -> bool:
        try:
            self.ctx.fs.rmdir(self.ctx.path(name), self.ctx.who)
        except FsError as error:
            self.complain(name, error)
            return False
        if "v" in self.flags:
            self.ctx.write(f"removed directory {quote(name)}\n")
        return True

    def tree(self, name: str) -> bool:
        """Removes a directory with everything in it; a directory in which something stays is not complained of."""
        ctx = self.ctx
        ctx.tick()
        path = ctx.path(name)
        try:
            names = scan(ctx, path)
        except FsError as error:
            node = ctx.fs.find(path, ctx.who)
            if node is not None and not node.entries and self.rmdir_quietly(name):
                return True
            self.complain(name, error)
            return False
        node = ctx.fs.node(path, ctx.who)
        if names and not allows(node, 1, ctx.who):
            self.failed = True
            for child in names:
                ctx.fail(f"cannot remove {quote(join(name, child))}: Permission denied")
            return False
        whole = True
        for child in names:
            place = join(name, child)
            inner = ctx.fs.find(ctx.path(place), ctx.who, follow=False)
            if inner is not None and inner.kind == "directory":
                whole = self.tree(place) and whole
            else:
                whole = self.unlink(place) and whole
        return self.rmdir(name) if whole else False

    def rmdir_quietly(self, name: str) -> bool:
        try:
            self.ctx.fs.rmdir(self.ctx.path(name), self.ctx.who)
        except FsError:
            return False
        return True


@tool(
    "rm",
    short="fiIrRdv",
    long="force=f recursive=r dir=d verbose=v interactive=interactive:: no-preserve-root=no-preserve-root "
    "preserve-root=preserve-root:: one-file-system=one-file-system",
)
def rm(ctx: Context, options: Options, operands: list[str]) -> int:
    flags: set[str] = set()
    for key, value in options:
        if key == "interactive":
            key = {"never": "f", "no": "f", "none": "f", "once": "I"}.get(value, "i")
        if key in ("no-preserve-root", "one-file-system"):
            raise unknown(ctx, key)
        if key == "f":
            flags.discard("i")
        elif key == "i":
            flags.discard("f")
        flags.add(key)
    if "I" in flags and (len(operands) > 3 or flags & {"r", "R"}):
        raise Unsupported("rm -I")
    if not operands:
        return 0 if "f" in flags else missing_operand(ctx)
    remover = _Remover(ctx, flags)
    for name in operands:
        last = name.rstrip("/").rpartition("/")[2]
        if flags & {"r", "R"} and last in (".", "..") and name.strip("/"):
            ctx.fail(f"refusing to remove '.' or '..' directory: skipping {quote(name)}")
            remover.failed = True
        elif flags & {"r", "R"} and name and ctx.fs.find(ctx.path(name), ctx.who, follow=False) is ctx.fs.root:
            ctx.fail("it is dangerous to operate recursively on '/'")
            ctx.fail("use --no-preserve-root to override this failsafe")
            remover.failed = True
        else:
            remover.remove(name)
    return int(remover.failed)


@tool("unlink")
def unlink(ctx: Context, options: Options, operands: list[str]) -> int:
    if not operands:
        return missing_operand(ctx)
    if len(operands) > 1:
        return usage(ctx, f"extra operand {quote(operands[1])}")
    try:
        ctx.fs.unlink(ctx.path(operands[0]), ctx.who)
    except FsError as error:
        return ctx.fail(f"cannot unlink {quote(operands[0])}: {error.message}")
    return 0


# -- directories ---------------------------------------------------------------------------------------------------------


@tool("mkdir", short="pm:vZ", long="parents=p mode=m: verbose=v context=Z::")
def mkdir(ctx: Context, options: Options, operands: list[str]) -> int:
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
        try:
            if "p" in flags:
                made = make_parents(ctx, name, "v" in flags)
            else:
                ctx.fs.mkdir(ctx.path(name), ctx.who)
                made = True
                if "v" in flags:
                    ctx.write(f"{ctx.name}: created directory {quote(name)}\n")
            if mode is not None and made:
                node = ctx.fs.node(ctx.path(name), ctx.who)
                special = node.mode & 0o2000 if not (flags["m"].isdigit() and len(flags["m"]) > 4) else 0
                ctx.fs.chmod(ctx.path(name), mode | special, ctx.who)
        except FsError as error:
            status = ctx.fail(f"cannot create directory {quote(name)}: {error.message}")
    return status


def make_parents(ctx: Context, name: str, verbose: bool = False, plain: bool = False) -> bool:
    """mkdir -p; whether the last directory is new. Parents get u+wx besides what the umask leaves; 0755 with `plain`."""
    who = ctx.who.with_umask(0o022) if plain else ctx.who
    parts = name.split("/")
    made = False
    for k in range(1, len(parts) + 1):
        path = "/".join(parts[:k])
        if not parts[k - 1]:
            continue
        ctx.tick()
        made = False
        absolute = ctx.path(path)
        node = ctx.fs.find(absolute, ctx.who)
        if node is not None and node.kind == "directory":
            continue
        last = not any(parts[k:])
        try:
            ctx.fs.mkdir(absolute, who)
        except FsError as error:
            if error.code == "EEXIST" and not last:
                raise FsError("ENOTDIR") from error
            raise
        made = True
        if not last:
            new = ctx.fs.node(absolute, ctx.who)
            new.mode |= 0o300
        if verbose:
            ctx.write(f"{ctx.name}: created directory {quote(path)}\n")
    if not name:
        raise FsError("ENOENT")
    return made


@tool("rmdir", short="pv", long="parents=p verbose=v ignore-fail-on-non-empty=ignore")
def rmdir(ctx: Context, options: Options, operands: list[str]) -> int:
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


# -- touch, mktemp -------------------------------------------------------------------------------------------------------


def _stamp(text: str, now: int) -> int | None:
    """[[CC]YY]MMDDhhmm[.ss] of touch -t."""
    m = re.fullmatch(r"(\d{2}|\d{4})?(\d{2})(\d{2})(\d{2})(\d{2})(?:\.(\d{2}))?", text)
    if not m:
        return None
    if not m[1]:
        raise Unsupported("touch -t without a year")
    year = int(m[1]) if len(m[1]) == 4 else int(m[1]) + (1900 if int(m[1]) >= 69 else 2000)
    return parse_date(f"{year}-{m[2]}-{m[3]} {m[4]}:{m[5]}:{m[6] or '00'}", now)


@tool("touch", short="acd:fhmr:t:", long="no-create=c date=d: reference=r: no-dereference=h time=time:")
def touch(ctx: Context, options: Options, operands: list[str]) -> int:
    flags = dict(options)
    moment: int | None = None
    if "r" in flags:
        try:
            moment = ctx.fs.stat(ctx.path(flags["r"]), ctx.who).mtime
        except FsError as error:
            return ctx.fail(f"failed to get attributes of {quote(flags['r'])}: {error.message}")
    if "d" in flags:
        moment = parse_date(flags["d"], moment if "r" in flags and moment is not None else ctx.fs.clock)
    elif "t" in flags:
        moment = _stamp(flags["t"], ctx.fs.clock)
    if ("d" in flags or "t" in flags) and moment is None:
        return ctx.fail(f"invalid date format {quote(flags.get('d', flags.get('t', '')))}")
    if not operands:
        return usage(ctx, "missing file operand")
    access_only = "a" in flags and "m" not in flags or flags.get("time") in ("access", "atime", "use")
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
    number = ctx.fs.clock * 7919
    while True:
        number += 104729
        digits = "".join(LETTERS[number * (k * k + 3) // (k + 1) % len(LETTERS)] for k in range(1, count + 1))
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


# -- names ---------------------------------------------------------------------------------------------------------------


@tool("basename", short="as:z", long="multiple=a suffix=s: zero=z", permute=False)
def basename(ctx: Context, options: Options, operands: list[str]) -> int:
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
    if not operands:
        return missing_operand(ctx)
    for name in operands:
        stripped = name.rstrip("/")
        directory = stripped.rpartition("/")[0].rstrip("/") if "/" in stripped else ""
        if not directory:
            directory = "/" if name.startswith("/") else "."
        ctx.write(directory + ("\0" if options else "\n"))
    return 0
