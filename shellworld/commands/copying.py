"""cp and mv."""

from __future__ import annotations

import posixpath

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.files import confirmed
from shellworld.commands.options import Options, quote, tool, unknown, usage
from shellworld.commands.walking import join, scan
from shellworld.world.filesystem import allows
from shellworld.world.inodes import Inode


def place_operands(
    ctx: Context, flags: dict[str, str], operands: list[str]
) -> list[tuple[str, str]] | int:
    """(source, target) pairs of cp, mv and ln, or the status after a complaint."""
    if "t" in flags:
        directory = flags["t"]
        if not ctx.fs.is_dir(ctx.path(directory), ctx.who):
            return ctx.fail(f"target directory {quote(directory)}: " + _why(ctx, directory))
        if not operands:
            return usage(ctx, "missing file operand")
        return [(name, join(directory, last_component(name))) for name in operands]
    if not operands:
        return usage(ctx, "missing file operand")
    if len(operands) == 1:
        return usage(ctx, f"missing destination file operand after {quote(operands[0])}")
    *sources, target = operands
    if "T" in flags:
        if len(sources) > 1:
            return usage(ctx, f"extra operand {quote(operands[2])}")
        return [(sources[0], target)]
    follow = not (flags.keys() & {"n"} and ctx.name == "ln")
    node = ctx.fs.find(ctx.path(target), ctx.who, follow=follow) if target else None
    if node is not None and node.kind == "directory":
        return [(name, join(target, last_component(name))) for name in sources]
    if len(sources) > 1:
        return ctx.fail(f"target {quote(target)}: {_why(ctx, target)}")
    return [(sources[0], target)]


def _why(ctx: Context, name: str) -> str:
    return (
        "Not a directory" if ctx.fs.exists(ctx.path(name), ctx.who) else "No such file or directory"
    )


def last_component(name: str) -> str:
    """The name under which an operand arrives in a directory."""
    stripped = name.rstrip("/")
    return stripped.rpartition("/")[2] or "/"


class Arrivals:
    """The files that one run of cp, mv or install has made of its operands.

    A second operand of the same name must not destroy what the first has become.
    """

    def __init__(self, ctx: Context):
        self._ctx = ctx
        self._made: set[str] = set()

    def add(self, target: str) -> None:
        """Notes that an operand has arrived at `target`."""
        self._made.add(target)

    def refuse(self, source: str, target: str) -> bool:
        """Whether `target` is one of them; says so."""
        if target not in self._made:
            return False
        self._ctx.fail(f"will not overwrite just-created {quote(target)} with {quote(source)}")
        return True


class Copier:
    """One run of cp, or the copying part of install.

    Args:
      flags: option letters with their values.
      keep: what of the originals the copies keep: "mode" (and ACL), "owner", "times", "links".
    """

    def __init__(self, ctx: Context, flags: dict[str, str], keep: set[str]):
        self.ctx = ctx
        self.flags = flags
        self.keep = keep
        self.failed = False
        self.made: dict[int, str] = {}
        self.arrivals = Arrivals(ctx)
        self.seen: set[tuple[int, str]] = set()  # inodes and names of the operands so far
        self.top: Inode | None = (
            None  # the first directory made for the running operand: it is not copied into itself
        )
        self.first = self.goal = ""
        # With -r what is in a tree is copied as it is, symlinks as symlinks.
        self.follow = "L" in flags or ("r" not in flags and "P" not in flags)
        self.follow_operands = self.follow or "H" in flags

    def fail(self, message: str) -> None:
        """Complains, and remembers that something failed."""
        self.failed = True
        self.ctx.fail(message)

    def copy(self, source: str, target: str, operand: bool = True) -> bool:
        """Copies a file or a tree.

        Returns:
          False if a directory was to be copied into itself, where the copying of a tree stops.
        """
        ctx = self.ctx
        ctx.tick()
        try:
            node = ctx.fs.node(
                ctx.path(source), ctx.who, follow=self.follow_operands if operand else self.follow
            )
        except FsError as error:
            self.fail(f"cannot stat {quote(source)}: {error.message}")
            return True
        if node.kind == "directory":
            if "r" not in self.flags:
                self.fail(f"-r not specified; omitting directory {quote(source)}")
                return True
            if operand:
                self.top, self.first, self.goal = None, source, target
            return self.copy_tree(source, node, target)
        if operand:
            name = posixpath.normpath(source)
            # The same file under the same name: a slip of whoever typed it, and no failure to cp.
            if (node.ino, name) in self.seen:
                ctx.fail(f"warning: source file {quote(source)} specified more than once")
                return True
            self.seen.add((node.ino, name))
        follow = self.follow_operands if operand else self.follow
        if self.copy_other(source, node, target, follow) and operand:
            self.arrivals.add(target)
        return True

    def copy_other(self, source: str, node: Inode, target: str, follow: bool) -> bool:
        """Copies anything but a directory, and returns whether it did; what goes wrong is said."""
        ctx = self.ctx
        try:
            old = ctx.fs.walk(ctx.path(target), ctx.who, follow=False)[2] if target else None
        except FsError as error:
            if error.code != "ENOENT":
                self.fail(f"cannot stat {quote(target)}: {error.message}")
                return False
            old = None
        if old is not None and self.skips(source, node, target, old):
            return False
        verbose = "v" in self.flags
        # These cannot be written through: a file of several names would change under all of
        # them, and a symlink would lead the copy elsewhere.
        replaced = (
            "links" in self.keep
            and old is not None
            and old.nlink > 1
            or node.kind == "symlink"
            and not follow
        )
        if old is not None and replaced:
            try:
                ctx.fs.unlink(ctx.path(target), ctx.who)
            except FsError as error:
                self.fail(f"cannot remove {quote(target)}: {error.message}")
                return False
            if verbose:
                ctx.write(f"removed {quote(target)}\n")
            old = None
        if verbose:
            ctx.write(f"{quote(source)} -> {quote(target)}\n")
        try:
            if node.kind == "symlink" and not follow:
                self.copy_link(node, target)
            elif node.kind == "device":
                if "r" in self.flags:
                    raise Unsupported("copying a device")
                self.copy_file(source, node, target)
            elif "l" in self.flags or "s" in self.flags:
                self.link(source, target, old)
            else:
                self.copy_file(source, node, target)
        except FsError as error:
            self.fail(str(error.message))
            return False
        return True

    def skips(self, source: str, node: Inode, target: str, old: Inode) -> bool:
        """Whether a file that is there already is to stay, with a complaint where cp has one."""
        ctx = self.ctx
        resolved = ctx.fs.find(ctx.path(target), ctx.who) or old
        if "n" in self.flags:
            return True
        if resolved is node:
            # A symlink onto the file that it leads to takes its place.
            if node.kind == "symlink" and old is not node:
                return False
            if not ("l" in self.flags and old is node):
                self.fail(f"{quote(source)} and {quote(target)} are the same file")
            return True
        # A directory as the goal would have had the name put below it before.
        if resolved.kind == "directory":
            self.fail(f"cannot overwrite directory {quote(target)} with non-directory")
            return True
        if "u" in self.flags and resolved.mtime >= node.mtime:
            return True
        if "i" in self.flags and not confirmed(ctx, f"overwrite {quote(target)}"):
            return True
        refused = self.arrivals.refuse(source, target)
        self.failed = self.failed or refused
        return refused

    def link(self, source: str, target: str, old: Inode | None) -> None:
        """Makes a link instead of a copy (-l, -s)."""
        fs, who = self.ctx.fs, self.ctx.who
        if old is not None:
            if "f" not in self.flags:
                what = "hard" if "l" in self.flags else "symbolic"
                raise FsError(
                    "EEXIST",
                    f"cannot create {what} link {quote(target)} to {quote(source)}: File exists",
                )
            fs.unlink(self.ctx.path(target), who)
        if "l" in self.flags:
            fs.link(self.ctx.path(source), self.ctx.path(target), who)
        else:
            # The text of the link would be read from the other directory, and lead nowhere.
            if not source.startswith("/") and "/" in target.strip("/"):
                raise FsError(
                    "EINVAL",
                    f"{target}: can make relative symbolic links only in current directory",
                )
            fs.symlink(source, self.ctx.path(target), who)

    def copy_link(self, node: Inode, target: str) -> None:
        """Copies a symlink itself, with its owner and time if these are kept."""
        ctx = self.ctx
        try:
            ctx.fs.symlink(node.content, ctx.path(target), ctx.who)
        except FsError as error:
            raise FsError(
                error.code, f"cannot create symbolic link {quote(target)}: {error.message}"
            ) from error
        new = ctx.fs.node(ctx.path(target), ctx.who, follow=False)
        if "owner" in self.keep and ctx.who.uid == 0:
            new.uid, new.gid = node.uid, node.gid
        if "times" in self.keep:
            new.mtime = node.mtime

    def copy_file(self, source: str, node: Inode, target: str, mode: int | None = None) -> None:
        """Contents into a new or an existing file; raises FsError with the whole message."""
        ctx = self.ctx
        fs, who = ctx.fs, ctx.who
        path = ctx.path(target)
        # Names that were one file are to be one file again.
        if "links" in self.keep and node.nlink > 1 and node.ino in self.made:
            fs.link(self.made[node.ino], path, who)
            return
        if not allows(node, 4, who):
            raise FsError("EACCES", f"cannot open {quote(source)} for reading: Permission denied")
        content = node.content
        existing = fs.find(path, who)
        try:
            if (
                existing is None
                and fs.find(path, who, follow=False) is not None
                and not target.endswith("/")
            ):
                raise FsError("EINVAL", "")
            wanted = (node.mode if mode is None else mode) & 0o777
            if existing is not None:
                self.overwrite(path, target, content, wanted)
            else:
                # Until it has its owner nobody else may look into it.
                if "owner" in self.keep:
                    wanted &= 0o700
                fs.write_text(path, content, who, mode=wanted)
        except FsError as error:
            if error.message.startswith("cannot remove"):
                raise
            if error.code == "EINVAL":
                raise FsError(
                    "EINVAL", f"not writing through dangling symlink {quote(target)}"
                ) from error
            # A name with a slash behind it asks for a directory, and that is what cp misses.
            code = "ENOTDIR" if error.code == "EISDIR" and target.endswith("/") else error.code
            raise FsError(
                code, f"cannot create regular file {quote(target)}: {FsError(code).message}"
            ) from error
        new = fs.node(path, who)
        self.made[node.ino] = path
        if (
            existing is None
            and "owner" in self.keep
            and "mode" not in self.keep
            and new.acl is None
        ):
            new.mode = node.mode & 0o777 & ~who.umask
        self.preserve(node, new)

    def overwrite(self, path: str, target: str, content: str, mode: int) -> None:
        """Into an existing file, or with -f instead of it."""
        fs, who = self.ctx.fs, self.ctx.who
        try:
            fs.write_text(path, content, who)
        except FsError as error:
            # -f is for files that may not be written, where the directory lets them be removed.
            if "f" not in self.flags or error.code != "EACCES":
                raise
            try:
                fs.unlink(path, who)
            except FsError as kept:
                raise FsError(kept.code, f"cannot remove {quote(target)}: {kept.message}") from kept
            if "v" in self.flags:
                self.ctx.write(f"removed {quote(target)}\n")
            fs.write_text(path, content, who, mode=mode)

    def preserve(self, node: Inode, new: Inode) -> None:
        """Owner, mode, ACL and times of the original, as far as allowed."""
        who = self.ctx.who
        owned = True
        if "owner" in self.keep:
            if who.uid == 0:
                new.uid, new.gid = node.uid, node.gid
            else:
                owned = node.uid == who.uid and node.gid in who.groups
                if node.gid in who.groups:
                    new.gid = node.gid
        if "mode" in self.keep:
            # Setting an access list leaves the special bits alone that the new file had.
            special = new.mode & 0o7000 if node.acl is not None and not node.mode & 0o7000 else 0
            new.mode = (
                node.mode if owned or "owner" not in self.keep else node.mode & ~0o6000
            ) | special
            new.acl = node.acl
            if node.kind == "directory":
                new.default = node.default
        if "times" in self.keep:
            new.mtime = node.mtime

    def copy_tree(self, source: str, node: Inode, target: str) -> bool:
        """As `copy`. What is in a directory comes in the order of the inodes, as cp reads it."""
        ctx = self.ctx
        fs, who = ctx.fs, ctx.who
        path = ctx.path(target)
        try:
            existing = fs.walk(path, who)[2]
        except FsError as error:
            if error.code != "ENOENT":
                self.fail(f"cannot stat {quote(target)}: {error.message}")
                return True
            existing = None
        if existing is node or node is self.top:
            self.fail(
                f"cannot copy a directory, {quote(self.first)}, into itself, {quote(self.goal)}"
            )
            return False
        try:
            if existing is None:
                fs.mkdir(
                    path, who, node.mode & 0o1777 | (0o700 if node.mode & 0o700 != 0o700 else 0)
                )
                if "v" in self.flags:
                    ctx.write(f"{quote(source)} -> {quote(target)}\n")
            elif existing.kind != "directory":
                self.fail(
                    f"cannot overwrite non-directory {quote(target)} with directory {quote(source)}"
                )
                return True
        except FsError as error:
            self.fail(f"cannot create directory {quote(target)}: {error.message}")
            return True
        new = fs.node(path, who)
        if existing is None and self.top is None:
            self.top = new
        whole = True
        try:
            names = sorted(scan(ctx, ctx.path(source)), key=lambda name: node.entries[name].ino)  # type: ignore[index]
        except FsError as error:
            self.fail(f"cannot access {quote(source)}: {error.message}")
            names = []
        for name in names:
            whole = self.copy(join(source, name), join(target, name), operand=False)
            if not whole:
                break
        if existing is None and node.mode & 0o700 != 0o700 and new.acl is None:
            new.mode = new.mode & 0o7000 | node.mode & 0o777 & ~who.umask
        if existing is None or self.keep:
            fs.touch(path)
            self.preserve(node, new)
        return whole


_CP = (
    "archive=a recursive=r force=f interactive=i no-clobber=n update=u verbose=v "
    "target-directory=t: no-target-directory=T "
    "dereference=L no-dereference=P preserve=preserve:: no-preserve=no-preserve: link=l "
    "symbolic-link=s backup=b:: suffix=S: "
    "parents=parents remove-destination=remove-destination attributes-only=attributes-only "
    "reflink=reflink:: sparse=sparse: "
    "one-file-system=x strip-trailing-slashes=strip-trailing-slashes"
)


@tool("cp", short="adfHilLnprRst:TuvPbS:x", long=_CP)
def cp(ctx: Context, options: Options, operands: list[str]) -> int:
    """Copies: -a -d -f -H -i -l -L -n -p -P -r -s -t -T -u -v, --preserve."""
    flags: dict[str, str] = {}
    keep: set[str] = set()
    for key, value in options:
        if key == "a":
            flags.update(r="", P="")
            keep |= {"mode", "owner", "times", "links"}
        elif key == "d":
            flags["P"] = ""
            keep.add("links")
        elif key == "p" or key == "preserve":
            given = value.split(",") if value else ["mode", "ownership", "timestamps"]
            if "all" in given:
                given = ["mode", "ownership", "timestamps", "links"]
            names = {
                "mode": "mode",
                "ownership": "owner",
                "timestamps": "times",
                "links": "links",
                "xattr": "",
                "context": "",
            }
            if any(name not in names for name in given):
                return usage(ctx, f"invalid argument {quote(value)} for {quote('--preserve')}")
            keep |= {names[name] for name in given} - {""}
        elif key == "R":
            flags["r"] = ""
        elif key in (
            "b",
            "S",
            "x",
            "no-preserve",
            "parents",
            "remove-destination",
            "attributes-only",
            "sparse",
        ):
            raise unknown(ctx, key)
        elif key == "L":
            flags.pop("P", None)
            flags["L"] = ""
        elif key == "P":
            flags.pop("L", None)
            flags["P"] = ""
        elif key in ("i", "n"):
            flags.pop("n" if key == "i" else "i", None)
            flags[key] = ""
        elif key != "reflink":
            flags[key] = value
    pairs = place_operands(ctx, flags, operands)
    if isinstance(pairs, int):
        return pairs
    copier = Copier(ctx, flags, keep)
    for source, target in pairs:
        copier.copy(source.rstrip("/") if "strip-trailing-slashes" in flags else source, target)
    return int(copier.failed)


@tool(
    "mv",
    short="finuvt:TbS:",
    long="force=f interactive=i no-clobber=n update=u verbose=v target-directory=t: "
    "no-target-directory=T backup=b:: suffix=S: "
    "strip-trailing-slashes=strip-trailing-slashes",
)
def mv(ctx: Context, options: Options, operands: list[str]) -> int:
    """Moves and renames: -f -i -n -u -v -t -T."""
    flags: dict[str, str] = {}
    for key, value in options:
        if key in "fin" and len(key) == 1:
            for other in "fin":
                flags.pop(other, None)
        if key in ("b", "S"):
            raise unknown(ctx, key)
        flags[key] = value
    pairs = place_operands(ctx, flags, operands)
    if isinstance(pairs, int):
        return pairs
    status = 0
    arrivals = Arrivals(ctx)
    for source, target in pairs:
        status = _move(ctx, flags, source, target, arrivals) or status
    return status


def _move(ctx: Context, flags: dict[str, str], source: str, target: str, arrivals: Arrivals) -> int:
    fs, who = ctx.fs, ctx.who
    ctx.tick()
    start, end = ctx.path(source), ctx.path(target)
    try:
        node = fs.node(start, who, follow=False)
    except FsError as error:
        return ctx.fail(f"cannot stat {quote(source)}: {error.message}")
    last = source.rstrip("/").rpartition("/")[2]
    try:
        old = fs.walk(end, who, follow=False)[2] if target else None
    except FsError as error:
        if error.code != "ENOENT":
            return ctx.fail(f"cannot stat {quote(target)}: {error.message}")
        old = None
    if old is None and target.endswith("/") and node.kind != "directory":
        return ctx.fail(
            f"cannot move {quote(source)} to {quote(target)}: "
            + ("Not a directory" if target.strip("/") else "Is a directory")
        )
    if old is not None:
        if "n" in flags:
            return 0
        if old is node:
            return ctx.fail(f"{quote(source)} and {quote(target)} are the same file")
        if "u" in flags and old.mtime >= node.mtime:
            return 0
        if old.kind == "directory" and node.kind != "directory":
            return ctx.fail(f"cannot overwrite directory {quote(target)} with non-directory")
        if old.kind != "directory" and node.kind == "directory":
            return ctx.fail(
                f"cannot overwrite non-directory {quote(target)} with directory {quote(source)}"
            )
        if "i" in flags and not confirmed(ctx, f"overwrite {quote(target)}"):
            return 0
        if node.kind != "directory" and arrivals.refuse(source, target):
            return 1
    try:
        if last in (".", ".."):
            raise FsError("EBUSY")
        fs.rename(start.rstrip("/") or "/", end, who)
    except FsError as error:
        if error.code == "EINVAL":
            return ctx.fail(
                f"cannot move {quote(source)} to a subdirectory of itself, {quote(target)}"
            )
        return ctx.fail(f"cannot move {quote(source)} to {quote(target)}: {error.message}")
    arrivals.add(target)
    if "v" in flags:
        ctx.write(f"renamed {quote(source)} -> {quote(target)}\n")
    return 0
