"""setfacl and getfacl."""

from __future__ import annotations

import dataclasses
import re

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.acl_entries import BadEntry, Entry, Key, read_entries
from shellworld.commands.options import Options, UsageError, parse_options, tool, unknown
from shellworld.commands.walking import join, scan
from shellworld.world.acl import Acl, access_entries, default_entries, perms, rwx
from shellworld.world.inodes import Inode


def _as_map(mode: int, acl: Acl | None) -> dict[Key, int]:
    """Entries of an access ACL."""
    if acl is None:
        return {
            ("user", None): mode >> 6 & 7,
            ("group", None): mode >> 3 & 7,
            ("other", None): mode & 7,
        }
    return _default_map(
        dataclasses.replace(acl, owner=mode >> 6 & 7, mask=mode >> 3 & 7, other=mode & 7)
    )


def _default_map(acl: Acl) -> dict[Key, int]:
    entries: dict[Key, int] = {
        ("user", None): acl.owner,
        ("group", None): acl.group,
        ("other", None): acl.other,
    }
    entries.update((("user", uid), bits) for uid, bits in acl.users)
    entries.update((("group", gid), bits) for gid, bits in acl.groups)
    if acl.mask is not None:
        entries["mask", None] = acl.mask
    return entries


def _to_acl(entries: dict[Key, int]) -> Acl:
    users = tuple(
        sorted((n, bits) for (tag, n), bits in entries.items() if tag == "user" and n is not None)
    )
    groups = tuple(
        sorted((n, bits) for (tag, n), bits in entries.items() if tag == "group" and n is not None)
    )
    return Acl(
        users,
        groups,
        entries["group", None],
        entries.get(("mask", None)),
        entries["user", None],
        entries["other", None],
    )


@dataclasses.dataclass
class _Step:
    """One -m, -x, -b or -k, or what --set begins with: "access" or "default", without entries."""

    kind: str
    entries: list[Entry]


class _Setter:
    def __init__(self, ctx: Context, steps: list[_Step], flags: set[str]):
        self.ctx = ctx
        self.steps = steps
        self.flags = flags
        self.status = 0

    def visit(self, name: str, top: bool) -> None:
        ctx = self.ctx
        ctx.tick()
        try:
            link = ctx.fs.node(ctx.path(name), ctx.who, follow=False)
            if link.kind == "symlink" and (
                "R" in self.flags and not (top and "P" not in self.flags) or "P" in self.flags
            ):
                return
            node = ctx.fs.node(ctx.path(name), ctx.who)
        except FsError as error:
            self.status = ctx.fail(f"{name}: {error.message}")
            return
        try:
            self.apply(name, node)
        except FsError as error:
            self.status = ctx.fail(f"{name}: {error.message}")
        if "R" in self.flags and node.kind == "directory":
            try:
                names = scan(ctx, ctx.path(name))
            except FsError as error:
                self.status = ctx.fail(f"{name}: {error.message}")
                return
            for child in names:
                self.visit(join(name, child), False)

    def apply(self, name: str, node: Inode) -> None:
        ctx = self.ctx
        access = _as_map(node.mode, node.acl)
        default = _default_map(node.default) if node.default is not None else {}
        given = {"access": False, "default": False}
        masked = {"access": False, "default": False}
        refused = False
        for step in self.steps:
            # -b leaves what a mode says, and nothing else.
            if step.kind == "b":
                access = {key: bits for key, bits in access.items() if key in _BASE}
                default = {}
            elif step.kind in ("k", "default"):
                default = {}
            elif step.kind == "access":
                access = {}  # the entries of the owner, the group and others, too: they are to come
            for entry in step.entries:
                which = "default" if entry.default else "access"
                # With -R default entries are meant for the directories on the way.
                if entry.default and node.kind != "directory":
                    refused = refused or (step.kind == "m" and "R" not in self.flags)
                    continue
                target = default if entry.default else access
                if step.kind == "x":
                    if entry.key in target:
                        del target[entry.key]
                        given[which] = True
                        masked[which] = masked[which] or entry.key[0] == "mask"
                    continue
                bits = entry.bits
                if entry.conditional and (
                    # As X of chmod.
                    node.kind == "directory" or any(b & 1 for b in target.values())
                ):
                    bits |= 1
                target[entry.key] = bits
                given[which] = True
                masked[which] = masked[which] or entry.key[0] == "mask"
        self.mask(access, given["access"], masked["access"], access.get(("group", None), 0))
        lacking = [key for key in _BASE if key not in access]
        if lacking or (
            masked["access"]
            and ("mask", None) not in access
            and any(n is not None for _, n in access)
        ):
            raise _malformed(ctx, access)
        if default:
            # A default list needs the base entries, and takes missing ones from the access list.
            default = {key: access[key] for key in _BASE} | default
        kinds = {step.kind for step in self.steps}
        changed = (
            any(given.values())
            or ("b" in kinds and node.acl is not None)
            or (kinds & {"b", "k"} and node.default is not None)
        )
        if default:
            self.mask(default, given["default"], masked["default"], default["group", None])
        new_default = _to_acl(default) if default else None
        if ("mask", None) in access:
            acl = _to_acl(access)
            assert acl.mask is not None
            middle = acl.mask
        else:
            # Three entries are no more than a mode says, so nothing is stored.
            acl, middle = None, access["group", None]
        mode = node.mode & 0o7000 | access["user", None] << 6 | middle << 3 | access["other", None]
        if "test" in self.flags:
            raise Unsupported("setfacl --test")
        same = (mode, acl, new_default) == (node.mode, self.current(node), node.default)
        if changed and not same:  # what changes nothing is not tried, on another's file neither
            ctx.fs.set_acl(ctx.path(name), mode, acl, node.default, ctx.who)
            # setfacl makes two calls, and the second may fail alone.
            if new_default != node.default:
                ctx.fs.set_acl(ctx.path(name), mode, acl, new_default, ctx.who)
        if refused:
            raise FsError("EACCES", "Only directories can have default ACLs")

    @staticmethod
    def current(node: Inode) -> Acl | None:
        """A file's list with the entries that its mode holds."""
        return None if node.acl is None else _to_acl(_as_map(node.mode, node.acl))

    def mask(self, entries: dict, given: bool, masked: bool, group: int) -> None:
        """Recomputes the mask after changes, unless it was given or -n says not to.

        With -n, a new mask is the group's bits.
        """
        named = any(key[1] is not None for key in entries)
        if not given or masked:
            return
        if "n" in self.flags:
            if named:
                entries.setdefault(("mask", None), group)
            return
        if named or ("mask", None) in entries:
            union = 0
            for (tag, n), bits in entries.items():
                if n is not None or tag == "group":
                    union |= bits
            entries["mask", None] = union


def _read_file(ctx: Context, name: str, permissions: bool, all_default: bool) -> list[Entry]:
    """Returns the entries of -M and -X, one a line.

    Raises:
      FsError: the file cannot be read.
      BadEntry: with the number of the line.
    """
    entries = []
    text = ctx.stdin if name == "-" else ctx.fs.read_text(ctx.path(name), ctx.who)
    for number, line in enumerate(text.splitlines(), 1):
        if line := line.partition("#")[0].strip():
            try:
                if "," in line:
                    raise BadEntry(line.index(","))
                entries += read_entries(line, ctx.users, permissions, all_default)
            except BadEntry as error:
                raise BadEntry(number) from error
    return entries


def _malformed(ctx: Context, entries: dict[Key, int]) -> FsError:
    """Returns what is said of an access ACL that lacks an entry.

    That is the list itself, and the place where the entry is missing.
    """
    order = [
        ("user", False),
        ("user", True),
        ("group", False),
        ("group", True),
        ("mask", False),
        ("other", False),
    ]
    ranked = sorted(
        (order.index((tag, n is not None)), n or 0, tag, bits) for (tag, n), bits in entries.items()
    )
    needed = [*_BASE, ("mask", None)] if any(n is not None for _, n in entries) else _BASE
    first = min(order.index((tag, False)) for tag, n in needed if (tag, n) not in entries)
    place = sum(rank < first for rank, *_ in ranked) + 1
    shown = []
    for rank, n, tag, bits in ranked:
        name = (
            (ctx.users.user_name(n) if tag == "user" else ctx.users.group_name(n))
            if order[rank][1]
            else ""
        )
        shown.append(f"{tag}:{name}:{rwx(bits)}")
    return FsError(
        "EINVAL",
        f"Malformed access ACL `{','.join(shown)}': Missing or wrong entry at entry {place}",
    )


_BASE = (("user", None), ("group", None), ("other", None))
_SETFACL = (
    "modify=m: remove=x: remove-all=b remove-default=k default=d recursive=R no-mask=n mask=mask "
    "set=set: modify-file=M: remove-file=X: set-file=set-file: restore=restore: logical=L "
    "physical=P test=test"
)


@command("setfacl")
def setfacl(ctx: Context, argv: list[str]) -> int:
    """Changes access lists: -m, -x, -b, -k, -d, -R, -n, -M, -X and --set."""
    try:
        options, operands = parse_options(argv, "m:x:bkdRnM:X:LP", _SETFACL)
    except UsageError as error:
        ctx.fail(str(error))
        ctx.error(
            "Usage: setfacl [-bkndRLP] { -m|-M|-x|-X ... } file ...\n"
            "Try `setfacl --help' for more information.\n"
        )
        return 2
    flags = {key for key, _ in options}
    steps: list[_Step] = []
    for key, value in options:
        if key in ("mask", "set-file", "restore", "test", "L"):
            raise unknown(ctx, key)
        if key in ("M", "X"):
            try:
                entries = _read_file(ctx, value, key == "M", "d" in flags)
            except FsError as error:
                return ctx.fail(f"{value}: {error.message}")
            except BadEntry as error:
                where = "standard input" if value == "-" else f"file {value}"
                return ctx.fail(f"Invalid argument in line {error.at} of {where}", 2)
            steps.append(_Step(key.lower(), entries))
        elif key in ("b", "k"):
            steps.append(_Step(key, []))
        elif key in ("m", "x", "set"):
            try:
                entries = read_entries(value, ctx.users, key != "x", "d" in flags)
            except BadEntry as error:
                missing = error.at >= len(value)
                what = (
                    f"-{key} incomplete"
                    if missing
                    else f"-{key}: Invalid argument near character {error.at + 1}"
                )
                return ctx.fail(f"Option {what}", 2)
            if key == "set":
                # Only a list that has entries is replaced.
                if any(not e.default for e in entries):
                    steps.append(_Step("access", []))
                if any(e.default for e in entries):
                    steps.append(_Step("default", []))
            steps.append(_Step("x" if key == "x" else "m", entries))
    if not steps or not operands:
        ctx.error(
            "Usage: setfacl [-bkndRLP] { -m|-M|-x|-X ... } file ...\n"
            "Try `setfacl --help' for more information.\n"
        )
        return 2
    setter = _Setter(ctx, steps, flags)
    for name in operands:
        if name == "-":
            raise Unsupported("setfacl -")
        setter.status = 0  # the last file decides
        setter.visit(name, True)
    return setter.status


# -- getfacl -----------------------------------------------------------------------


def _with_effective(
    entries: list[str], mask: int | None, everywhere: bool, never: bool
) -> list[str]:
    """Entries that the mask restricts get a comment with what is left."""
    if mask is None or never:
        return entries
    out = []
    for entry in entries:
        tag, name, text = entry.removeprefix("default:").split(":")
        own = perms(text)
        subject = (tag in ("user", "group") and name) or tag == "group"
        effective = own & mask if subject else own
        if subject and (effective != own or everywhere):
            out.append(f"{entry}\t#effective:{rwx(effective)}")
        else:
            out.append(entry)
    return out


@tool(
    "getfacl",
    short="acdeEsRLPtpn",
    long="access=a default=d omit-header=c all-effective=e no-effective=E skip-base=s recursive=R "
    "logical=L physical=P tabular=t absolute-names=p numeric=n",
    status=2,
)
def getfacl(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints access lists."""
    flags = {key for key, _ in options}
    for key in flags & {"t", "L", "P"}:
        raise unknown(ctx, key)
    if not operands:
        ctx.error(
            "Usage: getfacl [-aceEsRLPtpndvh] file ...\n"
            "Try `getfacl --help' for more information.\n"
        )
        return 2
    reporter = _Reporter(ctx, flags)
    for name in operands:
        reporter.visit(name)
    ctx.write("".join(reporter.out))
    return reporter.status


class _Reporter:
    def __init__(self, ctx: Context, flags: set[str]):
        self.ctx = ctx
        self.flags = flags
        self.status = 0
        self.warned = "p" in flags
        self.out: list[str] = []  # is written at the end, when getfacl's buffer is

    def visit(self, name: str) -> None:
        ctx = self.ctx
        ctx.tick()
        try:
            link = ctx.fs.node(ctx.path(name), ctx.who, follow=False)
            if link.kind == "symlink" and "R" in self.flags:
                return
            node = ctx.fs.node(ctx.path(name), ctx.who)
        except FsError as error:
            self.status = ctx.fail(f"{name}: {error.message}")
            return
        self.report(name, node)
        if "R" in self.flags and node.kind == "directory":
            try:
                names = scan(ctx, ctx.path(name))
            except FsError as error:
                self.status = ctx.fail(f"{name}: {error.message}")
                return
            for child in names:
                self.visit(f"{name}/{child}")  # as it is, also behind a slash

    def report(self, name: str, node: Inode) -> None:
        ctx, flags = self.ctx, self.flags
        if "s" in flags and node.acl is None and node.default is None:
            return
        users = ctx.users
        if name.startswith("/") and not self.warned:
            ctx.fail("Removing leading '/' from absolute path names")
            self.warned = True
        lines = []
        if "c" not in flags:
            # One "./" goes, with the slashes behind it, and so do all slashes at the beginning.
            shown = name if "p" in flags else re.sub(r"\A(\./+|/+)", "", name)
            lines.append(f"# file: {_escaped(shown) if shown else '.'}")
            lines.append(f"# owner: {node.uid if 'n' in flags else users.user_name(node.uid)}")
            lines.append(f"# group: {node.gid if 'n' in flags else users.group_name(node.gid)}")
            if node.mode & 0o7000:
                lines.append(
                    "# flags: "
                    + "".join(
                        c if node.mode & b else "-"
                        for c, b in (("s", 0o4000), ("s", 0o2000), ("t", 0o1000))
                    )
                )
        everywhere, never = "e" in flags, "E" in flags
        if "a" in flags or "d" not in flags:
            entries = access_entries(node.mode, node.acl, users)
            mask = node.mode >> 3 & 7 if node.acl is not None else None
            lines += _with_effective(self.numbered(entries), mask, everywhere, never)
        if node.default is not None and ("d" in flags or "a" not in flags):
            entries = _with_effective(
                self.numbered(default_entries(node.default, users)),
                node.default.mask,
                everywhere,
                never,
            )
            lines += [
                e.removeprefix("default:") if "d" in flags and "a" not in flags else e
                for e in entries
            ]
        self.out.append("\n".join(lines) + "\n\n")

    def numbered(self, entries: list[str]) -> list[str]:
        if "n" not in self.flags:
            return entries
        out = []
        for entry in entries:
            *head, name, bits = entry.split(":")
            if name:
                value = self.ctx.users.uid(name) if head[-1] == "user" else self.ctx.users.gid(name)
                name = str(value)
            out.append(":".join([*head, name, bits]))
        return out


def _escaped(name: str) -> str:
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\r\\=" and c != " " else c for c in name)
