"""ln and install."""

from __future__ import annotations

import posixpath

from shellworld.commands import Context, FsError
from shellworld.commands.copying import Arrivals, last_component, place_operands
from shellworld.commands.files import confirmed, make_ancestors
from shellworld.commands.modes import ModeError, apply_mode
from shellworld.commands.options import Options, quote, tool, unknown, usage
from shellworld.world.inodes import Inode, allows
from shellworld.world.users import ROOT


@tool(
    "ln",
    short="sfnvirt:TbS:LPdF",
    long="symbolic=s force=f no-dereference=n verbose=v interactive=i relative=r "
    "target-directory=t: no-target-directory=T "
    "backup=b:: suffix=S: logical=L physical=P directory=d",
)
def ln(ctx: Context, options: Options, operands: list[str]) -> int:
    """Makes links: -f -i -L -n -P -r -s -t -T -v."""
    flags = dict(options)
    for key in ("b", "S", "d", "F"):
        if key in flags:
            raise unknown(ctx, key)
    pairs: list[tuple[str, str]] | int
    if len(operands) == 1 and "t" not in flags and "T" not in flags:
        pairs = [(operands[0], last_component(operands[0]))]
    else:
        pairs = place_operands(ctx, flags, operands)
    if isinstance(pairs, int):
        return pairs
    status = 0
    for source, target in pairs:
        try:
            _link(ctx, flags, source, target)
        except FsError as error:
            status = ctx.fail(error.message)
    return status


def _link(ctx: Context, flags: dict[str, str], source: str, target: str) -> None:
    fs, who = ctx.fs, ctx.who
    ctx.tick()
    symbolic = "s" in flags
    path = ctx.path(target)
    what = "symbolic link" if symbolic else "hard link"
    if not symbolic:
        try:
            node = fs.node(ctx.path(source), who, follow="L" in flags)
        except FsError as error:
            raise FsError(
                error.code, f"failed to access {quote(source)}: {error.message}"
            ) from error
        if node.kind == "directory":
            raise FsError("EPERM", f"{source}: hard link not allowed for directory")
    old = fs.find(path, who, follow=False)
    if old is not None:
        if old.kind == "directory" and (flags.keys() & {"f", "i"}):
            raise FsError("EISDIR", f"{target}: cannot overwrite directory")
        if (
            not symbolic
            and old is fs.find(ctx.path(source), who, follow="L" in flags)
            and "f" in flags
        ):
            raise FsError("EEXIST", f"{quote(source)} and {quote(target)} are the same file")
        if "i" in flags and not confirmed(ctx, f"replace {quote(target)}"):
            return
    text = source
    if symbolic and "r" in flags:
        directory = fs.resolve(posixpath.dirname(path.rstrip("/")) or "/", who)
        try:
            text = posixpath.relpath(fs.resolve(ctx.path(source), who, missing=True), directory)
        except FsError:
            text = posixpath.relpath(posixpath.normpath(ctx.path(source)), directory)
    try:
        if symbolic and not text:
            raise FsError("ENOENT")
        if old is not None and flags.keys() & {"f", "i"}:
            fs.unlink(path, who)
        if symbolic:
            fs.symlink(text, path, who)
        else:
            fs.link(ctx.path(source), path, who, follow="L" in flags)
    except FsError as error:
        arrow = f" => {quote(source)}" if not symbolic and error.code != "EEXIST" else ""
        raise FsError(
            error.code, f"failed to create {what} {quote(target)}{arrow}: {error.message}"
        ) from error
    if "v" in flags:
        ctx.write(f"{quote(target)} {'->' if symbolic else '=>'} {quote(text)}\n")


@tool(
    "install",
    short="m:o:g:dDvt:TpCsbS:cZ",
    long="mode=m: owner=o: group=g: directory=d verbose=v target-directory=t: "
    "no-target-directory=T preserve-timestamps=p "
    "compare=C strip=s backup=b:: suffix=S: context=Z:: preserve-context=preserve-context "
    "strip-program=strip-program:",
)
def install(ctx: Context, options: Options, operands: list[str]) -> int:
    """Copies files with a mode and an owner, or makes directories: -d -D -g -m -o -p -t -T -v."""
    flags = dict(options)
    for key in ("C", "s", "b", "S", "Z", "preserve-context", "strip-program"):
        if key in flags:
            raise unknown(ctx, key)
    try:
        mode = apply_mode(flags.get("m", "755"), 0, "d" in flags, 0)
    except ModeError:
        return ctx.fail(f"invalid mode {quote(flags['m'])}")
    owner = group = None
    if "o" in flags and (owner := ctx.users.uid(flags["o"])) is None:
        return ctx.fail(f"invalid user {quote(flags['o'])}")
    if "g" in flags and (group := ctx.users.gid(flags["g"])) is None:
        return ctx.fail(f"invalid group {quote(flags['g'])}")
    status = 0
    verb = "creating" if "v" in flags else ""
    if "d" in flags:
        if not operands:
            return usage(ctx, "missing file operand")
        said = ~(mode ^ apply_mode(flags["m"], 0o7777, True, 0)) if "m" in flags else 0o7777
        for name in operands:
            if make_ancestors(ctx, name, verb, 0o755):
                status = (
                    _make_directory(ctx, name, "v" in flags, mode, said, owner, group) or status
                )
            else:
                status = 1
        return status
    place = operands[-1] if operands else ""
    if "t" in flags:
        place = flags["t"].rstrip("/") + "/x"
    if "D" in flags and not make_ancestors(ctx, place, verb, 0o755):
        return 1
    pairs = place_operands(ctx, flags, operands)
    if isinstance(pairs, int):
        return pairs
    arrivals = Arrivals(ctx)
    for source, target in pairs:
        status = _install(ctx, flags, source, target, mode, owner, group, arrivals) or status
    return status


def _make_directory(
    ctx: Context,
    name: str,
    verbose: bool,
    mode: int,
    said: int,
    owner: int | None,
    group: int | None,
) -> int:
    """Install -d, below directories that exist.

    One that is there already is only changed where it differs, so others' may be named, too
    (gnulib's make_dir_parents).

    Args:
      mode, said: the bits that it shall have, and those of the 12 that this says anything of.
    """
    fs, who = ctx.fs, ctx.who
    path = ctx.path(name)
    owned = owner is not None or group is not None
    refused = None
    try:
        fs.mkdir(path, who.with_umask(0), mode & (0o1700 if owned else 0o1777))
        if verbose:
            ctx.write(f"install: creating directory {quote(name)}\n")
    except FsError as error:
        refused = error
    try:
        node = fs.node(path, who)
        if node.kind != "directory":
            raise FsError("ENOTDIR")
        if owner not in (None, node.uid) or group not in (None, node.gid):
            fs.chown(path, owner, group, who)
        if (node.mode ^ mode) & said:
            fs.chmod(path, node.mode & ~said | mode & said, who)
    except FsError as error:
        if refused is not None and (refused.code == "ENOENT" or error.code == "ENOTDIR"):
            return ctx.fail(f"cannot create directory {quote(name)}: {refused.message}")
        return ctx.fail(
            f"cannot change {'owner and ' if owned else ''}permissions of {quote(name)}: "
            f"{error.message}"
        )
    return 0


def _own(ctx: Context, name: str, mode: int, owner: int | None, group: int | None) -> int:
    try:
        if owner is not None or group is not None:
            ctx.fs.chown(ctx.path(name), owner, group, ctx.who)
    except FsError as error:
        return ctx.fail(f"cannot change ownership of {quote(name)}: {error.message}")
    try:
        ctx.fs.chmod(ctx.path(name), mode, ctx.who)
    except FsError as error:
        return ctx.fail(f"cannot change permissions of {quote(name)}: {error.message}")
    return 0


def _install(
    ctx: Context,
    flags: dict[str, str],
    source: str,
    target: str,
    mode: int,
    owner: int | None,
    group: int | None,
    arrivals: Arrivals,
) -> int:
    fs, who = ctx.fs, ctx.who
    ctx.tick()
    path = ctx.path(target)
    try:
        node = fs.node(ctx.path(source), who)
    except FsError as error:
        return ctx.fail(f"cannot stat {quote(source)}: {error.message}")
    if node.kind == "directory":
        return ctx.fail(f"omitting directory {quote(source)}")
    if node.kind == "device":
        node = Inode("file", 0o600, 0, 0, "", fs.clock, 0)
    old = fs.find(path, who, follow=False)
    if fs.find(path, who) is node:
        return ctx.fail(f"{quote(source)} and {quote(target)} are the same file")
    if old is not None and arrivals.refuse(source, target):
        return 1
    if not allows(node, 4, who):
        return ctx.fail(f"cannot open {quote(source)} for reading: Permission denied")
    content, mtime = node.content, node.mtime
    try:
        if old is not None:
            if old.kind == "directory":
                return ctx.fail(f"cannot overwrite directory {quote(target)} with non-directory")
            fs.unlink(path, who)
    except FsError as error:
        return ctx.fail(f"cannot remove {quote(target)}: {error.message}")
    try:
        fs.write_text(path, content, who, mode=0o600)
    except FsError as error:
        return ctx.fail(f"cannot create regular file {quote(target)}: {error.message}")
    if "v" in flags:
        ctx.write(
            (f"removed {quote(target)}\n" if old is not None else "")
            + f"{quote(source)} -> {quote(target)}\n"
        )
    arrivals.add(target)
    new = fs.node(path, who)
    new.acl = None
    if "p" in flags:
        fs.utime(path, mtime, ROOT)
    return _own(ctx, target, mode, owner, group)
