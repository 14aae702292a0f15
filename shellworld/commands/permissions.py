"""chmod, chown and chgrp."""

from __future__ import annotations

import re
from collections.abc import Callable

from shellworld.commands import Context, FsError, command
from shellworld.commands.modes import ModeError, apply_mode, format_mode
from shellworld.commands.options import (
    Options,
    UsageError,
    parse_options,
    quote,
    tool,
    unknown,
    usage,
)
from shellworld.commands.walking import join, scan
from shellworld.world.inodes import Inode

_CHMOD_LONG = (
    "recursive=R verbose=v changes=c silent=f quiet=f reference=reference: "
    "preserve-root=preserve-root no-preserve-root=no-preserve-root"
)
# A word that begins as one of these is a mode to chmod, whatever comes behind.
_MODE_WORD = re.compile(r"-[rwxXstugoa,=+0-7].*", re.DOTALL)


def _mode_first(argv: list[str]) -> tuple[list[str], list[str]]:
    """Takes modes such as "-w" and "-x,g+r" out of the arguments, which look like options."""
    modes, rest = [], []
    for i, word in enumerate(argv[1:], 1):
        if word == "--":
            rest += argv[i:]
            break
        if _MODE_WORD.fullmatch(word):
            modes.append(word)
        else:
            rest.append(word)
    return modes, [argv[0], *rest]


@command("chmod")
def chmod(ctx: Context, argv: list[str]) -> int:
    """Changes modes: octal, symbolic, or those of another file; -R, -v, -c and -f."""
    modes, rest = _mode_first(argv)
    try:
        options, operands = parse_options(rest, "Rvcf", _CHMOD_LONG)
    except UsageError as error:
        return usage(ctx, str(error))
    flags = dict(options)
    if "reference" in flags:
        try:
            mode_text = f"{ctx.fs.stat(ctx.path(flags['reference']), ctx.who).mode:05o}"
        except FsError as error:
            return ctx.fail(
                f"failed to get attributes of {quote(flags['reference'])}: {error.message}"
            )
        if modes:
            return usage(ctx, "cannot combine mode and --reference options")
    elif modes:
        mode_text = ",".join(modes)
    elif operands:
        mode_text = operands.pop(0)
    else:
        return usage(ctx, "missing operand")
    if not operands:
        return usage(
            ctx,
            f"missing operand after {quote(mode_text)}"
            if "reference" not in flags
            else "missing operand",
        )
    try:
        apply_mode(mode_text, 0, False, 0)
    except ModeError:
        return usage(ctx, f"invalid mode: {quote(mode_text)}")
    return _Chmod(ctx, flags, mode_text, bool(modes)).run(operands)


class _Chmod:
    def __init__(self, ctx: Context, flags: dict[str, str], mode: str, surprising: bool):
        self.ctx = ctx
        self.flags = flags
        self.mode = mode
        # the mode looked like an option: a umask that changes its meaning is an error
        self.surprising = surprising
        self.status = 0

    def fail(self, message: str) -> None:
        self.status = 1
        if "f" not in self.flags:
            self.ctx.fail(message)

    def run(self, operands: list[str]) -> int:
        ctx = self.ctx
        for name in operands:
            recursive = "R" in self.flags
            try:
                if (
                    recursive
                    and "preserve-root" in self.flags
                    and ctx.fs.find(ctx.path(name), ctx.who) is ctx.fs.root
                ):
                    self.fail("it is dangerous to operate recursively on '/'")
                    continue
                # A symlink as an operand stands for its file; one met on the way down does not.
                link = ctx.fs.node(ctx.path(name), ctx.who, follow=False)
                if link.kind == "symlink":
                    node = ctx.fs.find(ctx.path(name), ctx.who)
                    if node is None:
                        ctx.fs.node(ctx.path(name), ctx.who)
                else:
                    node = link
            except FsError as error:
                if link_is_dangling(ctx, name, error):
                    self.fail(f"cannot operate on dangling symlink {quote(name)}")
                else:
                    self.fail(f"cannot access {quote(name)}: {error.message}")
                if "v" in self.flags:
                    ctx.write(f"{quote(name)} could not be accessed\n")
                continue
            assert node is not None
            self.change(name, node)
            if recursive and node.kind == "directory":
                self.descend(name, node)
        return self.status

    def descend(self, name: str, node: Inode) -> None:
        ctx = self.ctx
        try:
            names = scan(ctx, ctx.path(name))
        except FsError as error:
            self.fail(f"cannot read directory {quote(name)}: {error.message}")
            return
        for child in names:
            ctx.tick()
            path = join(name, child)
            try:
                inner = ctx.fs.node(ctx.path(path), ctx.who, follow=False)
            except FsError as error:
                self.fail(f"cannot access {quote(path)}: {error.message}")
                continue
            # Their modes mean nothing, and what they lead to may lie outside of the tree.
            if inner.kind == "symlink":
                if "v" in self.flags:
                    ctx.write(
                        f"neither symbolic link {quote(path)} nor referent has been changed\n"
                    )
                continue
            self.change(path, inner)
            if inner.kind == "directory":
                self.descend(path, inner)

    def change(self, name: str, node: Inode) -> None:
        ctx = self.ctx
        old = node.mode
        new = apply_mode(self.mode, old, node.kind == "directory", ctx.who.umask)
        try:
            ctx.fs.chmod_node(node, new, ctx.who, ctx.path(name))
        except FsError as error:
            self.fail(f"changing permissions of {quote(name)}: {error.message}")
            if "v" in self.flags:
                ctx.write(
                    f"failed to change mode of {quote(name)} from {_both(old)} to {_both(new)}\n"
                )
            return
        if "v" in self.flags or ("c" in self.flags and node.mode != old):
            if node.mode == old:
                ctx.write(f"mode of {quote(name)} retained as {_both(old)}\n")
            else:
                ctx.write(f"mode of {quote(name)} changed from {_both(old)} to {_both(new)}\n")
        if self.surprising:
            # Without "u", "g", "o" or "a" the umask holds bits back. Who typed -w may not have
            # meant that, so chmod says where the outcome is another one than without a umask.
            naive = apply_mode(self.mode, old, node.kind == "directory", 0)
            if node.mode & ~naive & 0o7777:
                new_words = format_mode(node.mode, "file")[1:]
                naive_words = format_mode(naive, "file")[1:]
                self.fail(f"{name}: new permissions are {new_words}, not {naive_words}")


def _both(mode: int) -> str:
    return f"{mode:04o} ({format_mode(mode, 'file')[1:]})"


def link_is_dangling(ctx: Context, name: str, error: FsError) -> bool:
    """Whether a path that was not found is a symlink itself."""
    return error.code == "ENOENT" and ctx.fs.exists(ctx.path(name), ctx.who, follow=False)


# -- chown, chgrp ------------------------------------------------------------------

_CHOWN_LONG = (
    "recursive=R verbose=v changes=c silent=f quiet=f no-dereference=h dereference=dereference "
    "reference=reference: from=from: "
    "preserve-root=preserve-root no-preserve-root=no-preserve-root"
)


class _Owner:
    """Changes owners and reports as chown does."""

    def __init__(
        self, ctx: Context, flags: dict[str, str], uid: int | None, gid: int | None, words: str
    ):
        self.ctx = ctx
        self.flags = flags
        self.uid = uid
        self.gid = gid
        self.words = words
        self.status = 0

    def fail(self, message: str) -> None:
        self.status = 1
        if "f" not in self.flags:
            self.ctx.fail(message)

    def run(self, operands: list[str]) -> int:
        for name in operands:
            self.visit(name, True)
        return self.status

    def visit(self, name: str, top: bool) -> None:
        ctx = self.ctx
        ctx.tick()
        # A recursive chown changes symlinks themselves, unless -H or -L says otherwise.
        follow_it = "h" not in self.flags and (
            "R" not in self.flags or bool(self.flags.keys() & {"H", "L"})
        )
        try:
            link = ctx.fs.node(ctx.path(name), ctx.who, follow=False)
            node = ctx.fs.node(ctx.path(name), ctx.who, follow=follow_it)
        except FsError as error:
            dangling = link_is_dangling(ctx, name, error)
            self.fail(
                f"cannot {'dereference' if dangling else 'access'} {quote(name)}: {error.message}"
            )
            if "v" in self.flags:
                was = (
                    f" from {self.shown((0, 0))}" if dangling else ""
                )  # chown has no better idea of it either
                what = "ownership" if ctx.name == "chown" else "group"
                ctx.write(f"failed to change {what} of {quote(name)}{was} to {self.words}\n")
            return
        if (
            node.kind == "directory"
            and "R" in self.flags
            and (node is link or top or "L" in self.flags)
        ):
            try:
                # What is in it comes first: afterwards it may belong to somebody who locks one out.
                for child in scan(ctx, ctx.path(name)):
                    self.visit(join(name, child), False)
            except FsError as error:
                self.fail(f"cannot read directory {quote(name)}: {error.message}")
        self.change(name, node, follow_it)

    def change(self, name: str, node: Inode, follow: bool) -> None:
        ctx = self.ctx
        old = node.uid, node.gid
        what = "ownership" if ctx.name == "chown" else "group"
        try:
            ctx.fs.chown(ctx.path(name), self.uid, self.gid, ctx.who, follow)
        except FsError as error:
            tried = "group" if self.uid is None else "ownership"
            self.fail(f"changing {tried} of {quote(name)}: {error.message}")
            if "v" in self.flags:
                was = f"{quote(name)} from {self.shown(old)}"
                ctx.write(f"failed to change {what} of {was} to {self.words}\n")
            return
        changed = (node.uid, node.gid) != old
        if "v" in self.flags or ("c" in self.flags and changed):
            if changed:
                ctx.write(
                    f"changed {what} of {quote(name)} from {self.shown(old)} to {self.words}\n"
                )
            else:
                ctx.write(f"{what} of {quote(name)} retained as {self.shown(old)}\n")

    def shown(self, owner: tuple[int, int]) -> str:
        users = self.ctx.users
        if self.ctx.name == "chgrp":
            return users.group_name(owner[1])
        return (
            users.user_name(owner[0])
            if self.gid is None
            else f"{users.user_name(owner[0])}:{users.group_name(owner[1])}"
        )


def _reference(ctx: Context, flags: dict[str, str]) -> tuple[int, int] | None:
    try:
        stat = ctx.fs.stat(ctx.path(flags["reference"]), ctx.who)
    except FsError as error:
        ctx.fail(f"failed to get attributes of {quote(flags['reference'])}: {error.message}")
        return None
    return stat.uid, stat.gid


def _prepare(
    ctx: Context, options: Options, operands: list[str], parse: Callable[[str], tuple | str]
) -> int:
    flags = dict(options)
    for key in ("from", "P"):
        if key in flags and key == "from":
            raise unknown(ctx, key)
    if "reference" in flags:
        found = _reference(ctx, flags)
        if found is None:
            return 1
        uid, gid = found if ctx.name == "chown" else (None, found[1])
        words = ctx.users.group_name(found[1])
        if ctx.name == "chown":
            words = f"{ctx.users.user_name(found[0])}:{words}"
    else:
        if not operands:
            return usage(ctx, "missing operand")
        spec = operands[0]
        operands = operands[1:]
        if not operands:
            return usage(ctx, f"missing operand after {quote(spec)}")
        parsed = parse(spec)
        if isinstance(parsed, str):
            return ctx.fail(parsed)
        uid, gid, words = parsed
    if not operands:
        return usage(ctx, "missing operand")
    return _Owner(ctx, flags, uid, gid, words).run(operands)


@tool("chown", short="RvcfhHLP", long=_CHOWN_LONG)
def chown(ctx: Context, options: Options, operands: list[str]) -> int:
    """Changes owners and groups."""

    def parse(spec: str) -> tuple | str:
        users = ctx.users
        owner, colon, group = spec.partition(":")
        if not colon and users.uid(spec) is None and "." in spec:
            first, _, last = spec.partition(".")
            if (not first or users.uid(first) is not None) and (
                not last or users.gid(last) is not None
            ):
                owner, colon, group = first, ":", last
                ctx.fail(f"warning: '.' should be ':': {quote(spec)}")
        uid = gid = None
        if owner:
            uid = users.uid(owner)
            if uid is None:
                return f"invalid {'spec' if colon and not group else 'user'}: {quote(spec)}"
        if colon and group:
            gid = users.gid(group)
            if gid is None:
                return f"invalid group: {quote(spec)}"
        elif colon and owner:
            user = users.user(uid) if uid is not None else None
            if user is None or owner.isdigit():
                return f"invalid spec: {quote(spec)}"
            gid = user.gid
        words = (
            owner
            if not colon
            else f"{owner}:{group or (users.group_name(gid) if gid is not None else '')}"
        )
        return uid, gid, words

    return _prepare(ctx, options, operands, parse)


@tool("chgrp", short="RvcfhHLP", long=_CHOWN_LONG.replace("from=from: ", ""))
def chgrp(ctx: Context, options: Options, operands: list[str]) -> int:
    """Changes groups."""

    def parse(spec: str) -> tuple | str:
        if not spec:
            return None, None, ""
        gid = ctx.users.gid(spec)
        return (None, gid, spec) if gid is not None else f"invalid group: {quote(spec)}"

    return _prepare(ctx, options, operands, parse)
