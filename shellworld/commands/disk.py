"""du: what files take on the disk. df speaks of the machine, which is not simulated."""

from __future__ import annotations

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.ls import blocks, human
from shellworld.commands.options import Options, UsageError, quoted, tool, unknown
from shellworld.commands.walking import join, scan
from shellworld.language.pattern import matches
from shellworld.world.filesystem import Inode

_LONG = """null=0 all=a apparent-size=apparent block-size=B: bytes=b total=c
dereference-args=D max-depth=d: files0-from=files0: human-readable=h inodes=inodes
dereference=L count-links=l no-dereference=P separate-dirs=S si=si summarize=s threshold=t:
time=time:: time-style=style: exclude-from=X: exclude=exclude: one-file-system=x"""


class _Du:
    def __init__(self, ctx: Context, flags: set[str], depth: int, unit: int, excluded: list[str]):
        self.ctx, self.flags, self.depth, self.unit, self.excluded = (
            ctx,
            flags,
            depth,
            unit,
            excluded,
        )
        self.seen: set[int] = set()
        self.several = False  # operands
        self.status = 0

    def size(self, node: Inode) -> int:
        stat = self.ctx.fs.stat_node(node)
        return stat.size if "apparent" in self.flags else blocks(stat)

    def show(self, size: int, name: str) -> None:
        shown = human(size) if "h" in self.flags else str(-(-size // self.unit))
        self.ctx.write(f"{shown}\t{name}" + ("\0" if "0" in self.flags else "\n"))

    def visit(self, name: str, path: str, depth: int) -> int | None:
        """Bytes of a file or a tree, shown where asked for; None for what was counted before."""
        ctx, flags = self.ctx, self.flags
        ctx.tick()
        try:
            node = ctx.fs.node(
                path, ctx.who, bool(flags & {"D", "L"}) and (depth == 0 or "L" in flags)
            )
        except FsError as error:
            self.status = ctx.fail(f"cannot access '{name}': {error.message}")
            return None
        # With one operand only files of several names can be met twice.
        if self.several or node.entries is None:
            if node.ino in self.seen and "l" not in flags:
                return None
            self.seen.add(node.ino)
        total = self.size(node)
        if node.entries is not None:
            try:
                names = scan(ctx, path)
            except FsError as error:
                self.status = ctx.fail(f"cannot read directory '{name}': {error.message}")
                names = []
            for entry in names:
                below = join(name, entry)
                if any(matches(entry, p) or matches(below, p) for p in self.excluded):
                    continue
                size = self.visit(below, join(path, entry), depth + 1)
                if size is not None and not (
                    "S" in flags and size >= 0 and self.is_directory(join(path, entry))
                ):
                    total += size
        if depth == 0 or (depth <= self.depth and (node.entries is not None or "a" in flags)):
            self.show(total, name)
        return total

    def is_directory(self, path: str) -> bool:
        node = self.ctx.fs.find(path, self.ctx.who, False)
        return node is not None and node.entries is not None


@tool("du", short="0abd:chHklmst:xB:DLPSX:", long=_LONG)
def du(ctx: Context, options: Options, operands: list[str]) -> int:
    """du: -a -b -c -d -h -k -l -m -s -x -0 -D -L -P --apparent-size --exclude."""
    flags: set[str] = set()
    depth, unit, excluded = 1 << 30, 1024, []
    for key, value in options:
        match key:
            case "d":
                if not value.isdigit():
                    raise UsageError(f"invalid maximum depth {quoted(value)}")
                depth = int(value)
                flags.add("d")
            case "b":
                flags.add("apparent")
                flags.discard("h")
                unit = 1
            case "k" | "m":
                unit = 1024 if key == "k" else 1 << 20
                flags.discard("h")
            case "B" if value in ("1", "K", "1K", "M", "1M", "k"):
                unit = {"1": 1, "K": 1024, "1K": 1024, "k": 1024}.get(value, 1 << 20)
                if value in ("K", "M"):
                    raise unknown(ctx, "B")
            case "exclude":
                excluded.append(value)
            case "a" | "c" | "h" | "s" | "x" | "l" | "0" | "D" | "H" | "L" | "P" | "apparent" | "S":
                flags.add("D" if key == "H" else key)
            case _:
                raise unknown(ctx, key)
    if "s" in flags:
        if "a" in flags:
            raise UsageError("cannot both summarize and show all entries")
        if "d" in flags and depth:
            raise UsageError(f"warning: summarizing conflicts with --max-depth={depth}")
        depth = 0
    run = _Du(ctx, flags, depth, unit, excluded)
    run.several = len(operands) > 1
    total = sum(run.visit(name, ctx.path(name), 0) or 0 for name in operands or ["."])
    if "c" in flags:
        run.show(total, "total")
    return run.status


@command("df")
def df(ctx: Context, argv: list[str]) -> int:
    """df: the disks of the machine."""
    raise Unsupported("df")
