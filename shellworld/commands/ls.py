"""ls."""

from __future__ import annotations

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.modes import format_mode
from shellworld.commands.options import Options, quote, tool, usage
from shellworld.commands.times import HALF_YEAR, strftime
from shellworld.commands.walking import join, scan
from shellworld.language import pattern
from shellworld.world.inodes import Inode, Stat, allows

_LONG = (
    "all=a almost-all=A directory=d human-readable=h recursive=R reverse=r classify=F:: "
    "indicator-style=indicator-style: inode=i "
    "size=s numeric-uid-gid=n no-group=G dereference=L color=color:: time-style=time-style: "
    "full-time=full-time "
    "file-type=file-type "
    "group-directories-first=group-directories-first sort=sort: time=time: ignore=I: "
    "ignore-backups=B hide=hide: quote-name=Q "
    "literal=N hide-control-chars=q show-control-chars=show-control-chars escape=b si=si "
    "kibibytes=k zero=zero format=format: "
    "dereference-command-line=H author=author context=Z width=w: tabsize=T: block-size=block-size: "
    "quoting-style=quoting-style: "
    "hyperlink=hyperlink:: dired=D"
)


# Option -> the values that it has; the beginning of one is enough.
_CHOICES = {
    "time": "atime access use ctime status birth creation",
    "sort": "none time size extension version width",
    "indicator-style": "none slash file-type classify",
    "F": "always yes force never no none auto tty if-tty",
    "color": "always yes force never no none auto tty if-tty",
    "format": "verbose long commas horizontal across vertical single-column",
    "quoting-style": (
        "literal shell shell-always shell-escape shell-escape-always c c-maybe escape locale "
        "clocale"
    ),
}


def human(size: int) -> str:
    """1536 -> "1.5K", rounded up as ls -h and du -h do."""
    if size < 1024:
        return str(size)
    unit = 0
    value = size
    scale = 1
    while value >= 1024 and unit < 8:
        value = -(-size // (scale * 1024))
        scale *= 1024
        unit += 1
        if size < scale * 1024:
            break
    tenths = -(-size * 10 // scale)
    if tenths < 100:
        return f"{tenths // 10}.{tenths % 10}{' KMGTPEZ'[unit]}"
    whole = -(-size // scale)
    return f"{whole}{' KMGTPEZ'[unit]}" if whole < 1024 else f"1.0{' KMGTPEZ'[unit + 1]}"


def blocks(node_stat: Stat) -> int:
    """Bytes on the disk: whole pages, nothing for directories and symlinks (as on tmpfs)."""
    return -(-node_stat.size // 4096) * 4096 if node_stat.type == "file" else 0


class _Listing:
    """One run of ls."""

    def __init__(self, ctx: Context, options: Options):
        self.ctx = ctx
        self.flags = {key for key, _ in options}
        self.status = 0
        self.style = ""
        self.sort = "name"
        self.ignored: list[str] = []
        self.indicator = ""
        self.hidden = ""
        self.long = False
        self.time = "m"
        for key, value in options:
            if key in "lgon" and len(key) == 1:
                self.long = True
            elif key == "full-time":
                self.long, self.style = True, "full-iso"
            elif key in ("1",) and not self.long:
                self.long = False
            elif key in "tSUXvf" and len(key) == 1:
                self.sort = {
                    "t": "time",
                    "S": "size",
                    "U": "none",
                    "X": "extension",
                    "v": "version",
                    "f": "none",
                }[key]
                self.hidden = "a" if key == "f" else self.hidden
            elif key in "aA" and len(key) == 1:
                self.hidden = key
            elif key == "sort":
                self.sort = value
            elif key == "F":
                self.indicator = "classify" if value in ("", "always", "yes", "force") else ""
            elif key == "p":
                self.indicator = "slash"
            elif key == "file-type":
                self.indicator = "file-type"
            elif key == "indicator-style":
                self.indicator = "" if value == "none" else value
            elif key == "time-style":
                self.style = value
            elif key in ("I", "hide"):
                self.ignored.append(value)
            elif key == "B":
                self.ignored.append("*~")
            elif key in ("c", "u", "time"):
                self.time = {"time": value, "c": "ctime", "u": "atime"}[key]
            elif key == "color" and value not in ("never", "no", "none", "auto", "tty", "if-tty"):
                raise Unsupported("ls --color")
            elif (
                key in "CxmQbqsiZDHwTk"
                and len(key) == 1
                and key not in "siHqwTk"
                or key
                in ("format", "author", "si", "zero", "block-size", "quoting-style", "hyperlink")
            ):
                raise Unsupported(f"ls -{'-' if len(key) > 1 else ''}{key}")
        if self.sort not in ("name", "time", "size", "none", "extension"):
            raise Unsupported(f"ls --sort={self.sort}")
        if self.time in ("atime", "access", "use", "birth", "creation"):
            raise Unsupported("ls by access time")

    def accepted(self, name: str) -> bool:
        if name.startswith(".") and not self.hidden:
            return False
        return not any(pattern.matches(name, p) for p in self.ignored)

    def seconds(self, node: Inode) -> int:
        return node.ctime if self.time in ("ctime", "status") else node.mtime

    def leads_to_directory(self, name: str, node: Inode | None, directory: str | None) -> bool:
        if node is not None and node.kind == "symlink":
            node = self.ctx.fs.find(
                self.ctx.path(name if directory is None else join(directory, name)), self.ctx.who
            )
        return node is not None and node.kind == "directory"

    def ordered(
        self, items: list[tuple[str, Inode | None]], directory: str | None = None
    ) -> list[tuple[str, Inode | None]]:
        if self.sort != "none":
            # Without a locale names are ordered by their bytes; the sorts below are stable, so that
            # names decide where they leave a choice.
            items = sorted(items, key=lambda item: item[0].encode("utf-8", "surrogateescape"))
        if self.sort == "time":
            items.sort(key=lambda item: -self.seconds(item[1]) if item[1] else 0)
        elif self.sort == "size":
            items.sort(key=lambda item: -self.ctx.fs.stat_node(item[1]).size if item[1] else 0)
        elif self.sort == "extension":
            # The dot counts: names without an extension come before all others.
            items.sort(key=lambda item: item[0][item[0].rfind(".") :] if "." in item[0] else "")
        if "r" in self.flags and self.sort != "none":
            items.reverse()
        if "group-directories-first" in self.flags and self.sort != "none":
            items.sort(key=lambda item: not self.leads_to_directory(item[0], item[1], directory))
        return items

    def suffix(self, node: Inode | None) -> str:
        if not self.indicator or node is None:
            return ""
        if node.kind == "directory":
            return "/"
        if self.indicator == "slash":
            return ""
        if node.kind == "symlink":
            # A long listing shows where it leads, and the sign stands behind that.
            return "@" if not self.long else ""
        return (
            "*"
            if self.indicator == "classify" and node.kind == "file" and node.mode & 0o111
            else ""
        )

    def show(self, items: list[tuple[str, Inode | None]], directory: str | None) -> None:
        """Prints entries.

        Args:
          directory: where they are; None for operands, which are named by their own paths.
        """
        ctx = self.ctx
        rows: list[list[str]] = []
        total = 0
        for name, node in items:
            ctx.tick()
            cells: list[str] = []
            stat = ctx.fs.stat_node(node) if node is not None else None
            used = blocks(stat) if stat else 0
            total += used
            if "i" in self.flags:
                cells.append(str(stat.inode) if stat else "?")
            if "s" in self.flags:
                cells.append(
                    "?" if stat is None else human(used) if "h" in self.flags else str(used // 1024)
                )
            if self.long:
                cells += (
                    self.details(node, stat)
                    if node is not None and stat is not None
                    else self.unknown(name, directory)
                )
            label = name + self.suffix(node if node is not None else self.listed(name, directory))
            if self.long and node is not None and node.kind == "symlink":
                label += " -> " + node.content + self.target_suffix(name, node, directory)
            cells.append(label)
            rows.append(cells)
        # Operands have no total.
        if directory is not None and (self.long or "s" in self.flags):
            ctx.write(f"total {human(total) if 'h' in self.flags else total // 1024}\n")
        if not rows:
            return
        # Each column is as wide as its widest cell; the name, the last one, is not filled up.
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        left = self._left_columns()
        for row in rows:
            cells = [
                c.ljust(widths[k]) if k in left else c.rjust(widths[k])
                for k, c in enumerate(row[:-1])
            ]
            ctx.write(" ".join([*cells, row[-1]]) + "\n")

    def _left_columns(self) -> set[int]:
        first = ("i" in self.flags) + ("s" in self.flags)
        names = (
            0
            if not self.long
            else ("g" not in self.flags) + ("o" not in self.flags and "G" not in self.flags)
        )
        # Numbers of users and groups stand at the right, as numbers do.
        if "n" in self.flags:
            return {first}
        return {first, *range(first + 2, first + 2 + names)}

    def listed(self, name: str, directory: str | None) -> Inode | None:
        """Something of which the directory tells the kind, and nothing else is known."""
        above = (
            self.ctx.fs.find(self.ctx.path(directory), self.ctx.who)
            if directory is not None
            else None
        )
        if above is None or above.entries is None:
            return None
        node = above.entries.get(name) or above
        return Inode(node.kind, 0, 0, 0, "", 0, 0)

    def unknown(self, name: str, directory: str | None) -> list[str]:
        """What is shown in the place of details."""
        owner, group = "g" not in self.flags, "o" not in self.flags and "G" not in self.flags
        node = self.listed(name, directory)
        kind = format_mode(0, node.kind)[0] if node is not None else "?"
        return [kind + "?????????", "?", *["?"] * (owner + group), "?", "           ?"]

    def details(self, node: Inode, stat: Stat) -> list[str]:
        """Mode, links, owner, group, size and time."""
        ctx = self.ctx
        owner, group = "g" not in self.flags, "o" not in self.flags and "G" not in self.flags
        cells = [format_mode(stat.mode, stat.type) + ("+" if stat.acl else ""), str(stat.nlink)]
        numeric = "n" in self.flags
        if owner:
            cells.append(str(stat.uid) if numeric else ctx.users.user_name(stat.uid))
        if group:
            cells.append(str(stat.gid) if numeric else ctx.users.group_name(stat.gid))
        if stat.type == "device":
            # The only device in a world is /dev/null.
            cells.append("1, 3")
        else:
            cells.append(human(stat.size) if "h" in self.flags else str(stat.size))
        return [*cells, self.when(self.seconds(node))]

    def when(self, seconds: int) -> str:
        style = self.style.removeprefix("posix-")
        # What lies in the future counts as old.
        recent = 0 <= self.ctx.fs.clock - seconds < HALF_YEAR
        if style.startswith("+"):
            old, _, new = style[1:].partition("\n")
            return strftime(new if recent and new else old, seconds)
        forms = {
            "full-iso": ("%Y-%m-%d %H:%M:%S.%N %z",) * 2,
            "long-iso": ("%Y-%m-%d %H:%M",) * 2,
            "iso": ("%Y-%m-%d ", "%m-%d %H:%M"),
            "": ("%b %e  %Y", "%b %e %H:%M"),
            "locale": ("%b %e  %Y", "%b %e %H:%M"),
        }
        if style not in forms:
            raise Unsupported(f"ls --time-style={self.style}")
        return strftime(forms[style][recent], seconds)

    def target_suffix(self, name: str, node: Inode, directory: str | None) -> str:
        if not self.indicator:
            return ""
        place = self.ctx.path(name if directory is None else join(directory, name))
        target = self.ctx.fs.find(place, self.ctx.who)
        return self.suffix(target)

    def directory(self, path: str, top: bool) -> list[tuple[str, Inode | None]]:
        """The entries of a directory, in order."""
        ctx = self.ctx
        try:
            found = (
                scan(ctx, ctx.path(path))
                if self.sort == "none"
                else ctx.fs.listdir(ctx.path(path), ctx.who)
            )
        except FsError as error:
            self.status = 2 if top else 1
            ctx.fail(f"cannot open directory {quote(path)}: {error.message}")
            raise
        names = [name for name in found if self.accepted(name)]
        if self.hidden == "a":
            names = [".", "..", *names]
        items: list[tuple[str, Inode | None]] = []
        above = ctx.fs.node(ctx.path(path), ctx.who)
        # With search permission nothing can fail, and no path has to be followed.
        if "L" not in self.flags and above.entries is not None and allows(above, 1, ctx.who):
            here = {".": above, "..": above.parent}
            return self.ordered(
                [(name, above.entries.get(name) or here[name]) for name in names], path
            )
        needed = (
            self.long
            or self.flags & {"i", "s", "t", "S", "R", "F"}
            or self.sort in ("time", "size")
            or self.indicator
        )
        # Complaints come in the order in which the kernel gives the names, before any sorting.
        kernels = [".", "..", *scan(ctx, ctx.path(path))]
        for name in sorted(names, key=kernels.index):
            place = ctx.path(join(path, name))
            try:
                items.append((name, ctx.fs.node(place, ctx.who, follow="L" in self.flags)))
            except FsError as error:
                # A plain listing asks for nothing but names, which the directory itself has.
                if not needed:
                    items.append((name, above.entries.get(name) if above.entries else None))
                    continue
                self.status = max(self.status, 1)
                ctx.fail(f"cannot access {quote(join(path, name))}: {error.message}")
                items.append((name, None))
        return self.ordered(items, path)

    def run(self, operands: list[str]) -> int:
        ctx = self.ctx
        files: list[tuple[str, Inode | None]] = []
        directories: list[tuple[str, Inode | None]] = []
        # A link to a directory is listed as one, but not where details of operands are shown.
        follow = not (self.long or "d" in self.flags or self.indicator == "classify") or bool(
            self.flags & {"L", "H"}
        )
        for name in operands or ["."]:
            place = ctx.path(name)
            try:
                node = ctx.fs.node(place, ctx.who, follow=follow)
            except FsError as error:
                found = (
                    ctx.fs.find(place, ctx.who, follow=False)
                    if error.code in ("ENOENT", "ELOOP", "EACCES")
                    else None
                )
                # A dangling link is shown as itself, unless it was to be followed.
                if found is None or "L" in self.flags:
                    self.status = 2
                    ctx.fail(f"cannot access {quote(name)}: {error.message}")
                    continue
                node = found
            if node.kind == "directory" and "d" not in self.flags:
                directories.append((name, node))
            else:
                files.append((name, node))
        if files:
            self.show(self.ordered(files), None)
            ctx.write("\n" if directories else "")
        headed = len(operands) > 1 or "R" in self.flags
        first = True
        pending = [(name, True) for name, _ in self.ordered(directories)]
        while pending:
            path, top = pending.pop(0)
            ctx.tick()
            try:
                items = self.directory(path, top)
            except FsError:
                # With one directory alone there is nothing to go on with.
                if "R" in self.flags or len(operands) > 1:
                    continue
                break
            if not first:
                ctx.write("\n")
            first = False
            if headed:
                ctx.write(f"{path}:\n")
            self.show(items, path)
            if "R" in self.flags:
                below = [
                    join(path, n)
                    for n, node in items
                    if node is not None and node.kind == "directory" and n not in (".", "..")
                ]
                # Depth first: what is below comes before the next one beside.
                pending = [(p, False) for p in below] + pending
        return self.status


@tool(
    "ls", "dir", "vdir", short="aAlgonG1dhRrtSUXvfFpisLHcukCxmQbqNBI:ZDw:T:", long=_LONG, status=2
)
def ls(ctx: Context, options: Options, operands: list[str]) -> int:
    """Lists files and directories."""
    if ctx.name in ("dir", "vdir"):
        raise Unsupported(ctx.name)
    chosen: Options = []
    for key, value in options:
        names = _CHOICES.get(key, "").split()
        if value and names and value not in names:
            meant = [name for name in names if name.startswith(value)]
            if len(meant) > 1:
                raise Unsupported(f"ls with the shortened value {value}")
            if not meant:
                option = "classify" if key == "F" else key
                # Not 2 as for other mistakes.
                return usage(ctx, f"invalid argument {quote(value)} for '--{option}'", 1)
            value = meant[0]
        if key == "w" and not value.isdigit():
            ctx.error(f"ls: invalid line width: {quote(value)}\n")
            return 2
        chosen.append((key, value))
    return _Listing(ctx, chosen).run(operands)
