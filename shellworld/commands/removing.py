"""rm and unlink."""

from __future__ import annotations

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.files import confirmed, missing_operand
from shellworld.commands.options import Options, quote, tool, unknown, usage
from shellworld.commands.walking import join, scan
from shellworld.world.inodes import Inode, allows


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

    def question(self, name: str, node: Inode) -> str:
        what = "symbolic link"
        if node.kind != "symlink":
            what = "regular file" if node.content else "regular empty file"
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
        """Removes a directory with everything in it.

        A directory in which something stays is not complained of.
        """
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
    long="force=f recursive=r dir=d verbose=v interactive=interactive:: "
    "no-preserve-root=no-preserve-root "
    "preserve-root=preserve-root:: one-file-system=one-file-system",
)
def rm(ctx: Context, options: Options, operands: list[str]) -> int:
    """Removes files and directories: -d -f -i -r -v."""
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
        elif (
            flags & {"r", "R"}
            and name
            and ctx.fs.find(ctx.path(name), ctx.who, follow=False) is ctx.fs.root
        ):
            ctx.fail("it is dangerous to operate recursively on '/'")
            ctx.fail("use --no-preserve-root to override this failsafe")
            remover.failed = True
        else:
            remover.remove(name)
    return int(remover.failed)


@tool("unlink")
def unlink(ctx: Context, options: Options, operands: list[str]) -> int:
    """Removes one name."""
    if not operands:
        return missing_operand(ctx)
    if len(operands) > 1:
        return usage(ctx, f"extra operand {quote(operands[1])}")
    try:
        ctx.fs.unlink(ctx.path(operands[0]), ctx.who)
    except FsError as error:
        return ctx.fail(f"cannot unlink {quote(operands[0])}: {error.message}")
    return 0
