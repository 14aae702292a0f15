"""The tests of find: each is made from its arguments into a function of an entry."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from shellworld.commands import Context, FsError, Unsupported
from shellworld.commands.modes import ModeError, apply_mode
from shellworld.commands.options import FOLD, to_bytes
from shellworld.commands.times import parse_date
from shellworld.language.pattern import matches
from shellworld.language.regexes import RegexError, compile_regex
from shellworld.world.filesystem import Inode, allows, size_of


class FindError(Exception):
    """An expression that find refuses; the message without "find: "."""


@dataclasses.dataclass(slots=True)
class Entry:
    """One file that find looks at.

    Attributes:
      shown: the path as printed; path: the absolute one; start: the starting point as given.
      node: what is there (a symlink itself, unless followed); depth: 0 for a starting point.
      hidden: its directory may be listed but not searched: the kind is known, but not what stat
        would tell.
      mtime, ctime, size, nlink: as they are when find comes to it. What find does to the files of
        a directory before it tests the directory itself changes nothing of them.
    """

    shown: str
    path: str
    start: str
    node: Inode
    depth: int
    hidden: bool = False
    mtime: int = dataclasses.field(init=False)
    ctime: int = dataclasses.field(init=False)
    size: int = dataclasses.field(init=False)
    nlink: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        node = self.node
        self.mtime, self.ctime, self.nlink = node.mtime, node.ctime, node.nlink
        self.size = size(node)

    @property
    def name(self) -> str:
        """The last component, "/" for the root."""
        return self.shown.rstrip("/").rpartition("/")[2] or "/"


Test = Callable[[Entry], bool]
KINDS = {"file": "f", "directory": "d", "symlink": "l", "device": "c"}
_UNITS = {"c": 1, "w": 2, "b": 512, "k": 1024, "M": 1 << 20, "G": 1 << 30}


BY_NAME = re.compile(r"-i?(name|path|wholename|regex|type)")  # tests that need no stat


def size(node: Inode) -> int:
    """Bytes, as tmpfs counts them."""
    return 40 + 20 * len(node.entries) if node.entries is not None else size_of(node.content)


def _compare(text: str, test: str, number: Callable[[Entry], int]) -> Test:
    """N, +N or -N."""
    match = re.fullmatch(r"([+-]?)(\d{1,18})", text)
    if match is None:
        raise FindError(f"invalid argument '{text}' to '{test}'")
    wanted = int(match[2])
    if match[1] == "+":
        return lambda entry: number(entry) > wanted
    if match[1] == "-":
        return lambda entry: number(entry) < wanted
    return lambda entry: number(entry) == wanted


def _age(ctx: Context, text: str, test: str, unit: int) -> Test:
    field = "ctime" if test[1] == "c" else "mtime"
    if test[1] == "a":
        raise Unsupported(f"find {test}")
    now = ctx.fs.clock
    sign, number = text[:1] if text[:1] in ("+", "-") else "", text.lstrip("+-")
    if re.fullmatch(r"[+-]?\s*[+-]?(inf|nan|0x).*", text, re.IGNORECASE):
        raise Unsupported(f"find {test} {text}")
    if not re.fullmatch(r"[+-]?(\d{1,9}(\.\d*)?|\.\d+)(e[+-]?\d)?", text, re.IGNORECASE):
        raise FindError(f"invalid argument `{text}' to `{test}'")
    wanted = float(number) * unit
    if unit == 60:  # minutes are not rounded
        edge = now - wanted
        if sign == "+":
            return lambda entry: getattr(entry, field) < edge
        if sign == "-":
            return lambda entry: getattr(entry, field) > edge
        return lambda entry: edge < getattr(entry, field) + 60 <= edge + 60
    # For "less than", findutils adds a second; of "more", the fraction of a day does not count.
    if sign == "-":
        return lambda entry: now - getattr(entry, field) < wanted + 1
    if sign == "+":
        return lambda entry: now - getattr(entry, field) >= wanted + unit
    return lambda entry: wanted <= now - getattr(entry, field) < wanted + unit


def _size(text: str) -> Test:
    match = re.fullmatch(r"([+-]?\d{1,18})([bcwkMG]?)", text)
    if match is None:
        raise FindError(
            f"Invalid argument `{text}' to -size"
            if not text
            else f"invalid -size type `{text[-1]}'"
        )
    # Sizes are rounded up before they are compared: -size -1M is true of empty files only.
    unit = _UNITS[match[2] or "b"]
    return _compare(match[1], "-size", lambda entry: -(-entry.size // unit))


def _perm(text: str) -> Test:
    how = text[0] if text[:1] in ("-", "/") else ""
    if re.match(r"\+[0-7]", text):  # what older releases took for "/"
        raise FindError(f"invalid mode '{text}'")
    try:
        bits = apply_mode(text[len(how) :], 0, False, 0)
        directory_bits = apply_mode(text[len(how) :], 0, True, 0)
    except ModeError as error:
        raise FindError(f"invalid mode '{text}'") from error

    def test(entry: Entry) -> bool:
        # X means another thing for directories.
        wanted = directory_bits if entry.node.entries is not None else bits
        mode = entry.node.mode & 0o7777
        if how == "-":
            return mode & wanted == wanted
        if how == "/":
            # No bits at all match everything.
            return bool(mode & wanted) or not wanted
        return mode == wanted

    return test


def _kind(text: str, test: str) -> Test:
    letters = text.split(",")
    for letter in letters:
        if letter not in tuple("bcdpflsD"):
            raise FindError(f"Unknown argument to {test}: {text}")
    wanted = set(letters)
    return lambda entry: KINDS[entry.node.kind] in wanted


def _regex(text: str, kind: str, ignore_case: bool) -> Test:
    syntax = {
        "emacs": "emacs",
        "findutils-default": "emacs",
        "posix-basic": "bre",
        "sed": "bre",
        "grep": "bre",
        "ed": "bre",
    }
    syntax |= {"posix-extended": "ere", "egrep": "ere", "posix-egrep": "ere"}
    if kind not in syntax:
        raise Unsupported(f"find -regextype {kind}")
    try:
        compiled = compile_regex(to_bytes(text), syntax[kind], "sed", ignore_case, False, "line")
    except RegexError as error:
        raise FindError(f"failed to compile regular expression '{text}': {error}") from error
    return lambda entry: bool(compiled.test(to_bytes(entry.shown)))


def _principal(ctx: Context, text: str, test: str) -> Test:
    users = test == "-user"
    number = ctx.users.uid(text) if users else ctx.users.gid(text)
    if number is None:
        what = "user" if users else "existing group"
        raise FindError(f"'{text}' is not the name of {'a known ' if users else 'an '}{what}")
    return (
        (lambda entry: entry.node.uid == number)
        if users
        else (lambda entry: entry.node.gid == number)
    )


def _newer(ctx: Context, text: str, test: str, follow: bool) -> Test:
    try:
        node = ctx.fs.node(ctx.path(text), ctx.who, follow)
    except FsError as error:
        raise FindError(f"'{text}': {error.message}") from error
    if test == "-samefile":
        return lambda entry: entry.node is node
    # -newerXY compares the time X of the entry with the time Y of the reference.
    entry_time = "ctime" if test == "-cnewer" or test[6:7] == "c" else "mtime"
    reference = node.ctime if test[7:8] == "c" else node.mtime
    return lambda entry: getattr(entry, entry_time) > reference


def _newer_than_date(ctx: Context, text: str) -> Test:
    seconds = parse_date(text, ctx.fs.clock)
    if seconds is None:
        raise FindError(f"I cannot figure out how to interpret '{text}' as a date or time")
    return lambda entry: entry.mtime > seconds


def _lower(text: str) -> str:
    """A text whose case does not matter, as bytes."""
    return to_bytes(text).translate(FOLD)


def make_test(ctx: Context, test: str, argument: str, regextype: str, follow: bool) -> Test | None:
    """Returns the function of a test with an argument; None if there is no such test.

    Raises:
      FindError: the argument is wrong.
      Unsupported: the test is not simulated.
    """
    match test:
        case "-name" | "-iname":
            fold = _lower if test == "-iname" else to_bytes
            return lambda entry: matches(fold(entry.name), fold(argument))
        case "-path" | "-wholename" | "-ipath" | "-iwholename":
            fold = _lower if test[1] == "i" else to_bytes
            return lambda entry: matches(fold(entry.shown), fold(argument))
        case "-lname" | "-ilname":
            fold = _lower if test[1] == "i" else to_bytes
            return lambda entry: (
                entry.node.kind == "symlink" and matches(fold(entry.node.content), fold(argument))
            )
        case "-regex" | "-iregex":
            return _regex(argument, regextype, test[1] == "i")
        case "-type":
            return _kind(argument, test)
        case "-xtype":
            plain = _kind(argument, test)

            def other(entry: Entry) -> bool:
                target = ctx.fs.find(entry.path, ctx.who) or entry.node
                return plain(dataclasses.replace(entry, node=target))

            return other
        case "-size":
            return _size(argument)
        case "-perm":
            return _perm(argument)
        case "-user" | "-group":
            return _principal(ctx, argument, test)
        case "-uid":
            return _compare(argument, test, lambda entry: entry.node.uid)
        case "-gid":
            return _compare(argument, test, lambda entry: entry.node.gid)
        case "-links":
            return _compare(argument, test, lambda entry: entry.nlink)
        case "-inum":
            raise Unsupported("find -inum")
        case "-mtime" | "-ctime" | "-atime":
            return _age(ctx, argument, test, 86400)
        case "-mmin" | "-cmin" | "-amin":
            return _age(ctx, argument, test, 60)
        case "-newer" | "-cnewer" | "-samefile" | "-newermm" | "-newercm" | "-newermc" | "-newercc":
            return _newer(ctx, argument, test, follow)
        case "-newermt":
            return _newer_than_date(ctx, argument)
    return None


def plain_test(ctx: Context, test: str) -> Test | None:
    """The function of a test without an argument; None if there is no such test."""
    fs, who = ctx.fs, ctx.who
    match test:
        case (
            "-true"
            | "-noleaf"
            | "-xdev"
            | "-mount"
            | "-warn"
            | "-nowarn"
            | "-ignore_readdir_race"
            | "-noignore_readdir_race"
        ):
            return lambda entry: True
        case "-false":
            return lambda entry: False
        case "-empty":
            return lambda entry: (
                entry.node.kind in ("file", "directory")
                and not (entry.node.entries or entry.node.content)
            )
        case "-readable" | "-writable" | "-executable":
            bits = {"-readable": 4, "-writable": 2, "-executable": 1}[test]

            def access(entry: Entry) -> bool:
                node = fs.find(entry.path, who)  # None for what is hidden
                return node is not None and allows(node, bits, who)

            return access
        case "-nouser":
            return lambda entry: ctx.users.user(entry.node.uid) is None
        case "-nogroup":
            return lambda entry: ctx.users.group_name(entry.node.gid).isdigit()
    return None
