"""The formats of find -printf."""

from __future__ import annotations

import re
from collections.abc import Callable

from shellworld.commands import Context, Unsupported
from shellworld.commands.find_tests import KINDS, Entry
from shellworld.commands.modes import format_mode
from shellworld.commands.times import strftime

_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "0": "\0",
    "\\": "\\",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "r": "\r",
    "v": "\v",
}
_FORMAT = re.compile(r"\\([0-7]{1,3}|.)|%([-+ 0#]*)(\d*)(?:\.(\d+))?([ACT].|.)", re.DOTALL)


def _directive(ctx: Context, letter: str) -> Callable[[Entry], str | int]:
    users = ctx.users
    simple: dict[str, Callable[[Entry], str | int]] = {
        "p": lambda e: e.shown,
        "f": lambda e: e.name,
        "h": lambda e: (
            e.shown.rstrip("/").rpartition("/")[0] if "/" in e.shown.rstrip("/") else "."
        ),
        "H": lambda e: e.start,
        "P": lambda e: e.shown[len(e.start) :].lstrip("/"),
        "s": lambda e: e.size,
        "d": lambda e: e.depth,
        "m": lambda e: f"{e.node.mode:o}",
        "M": lambda e: format_mode(e.node.mode, e.node.kind),
        "u": lambda e: users.user_name(e.node.uid),
        "U": lambda e: e.node.uid,
        "g": lambda e: users.group_name(e.node.gid),
        "G": lambda e: e.node.gid,
        "n": lambda e: e.nlink,
        "l": lambda e: e.node.content if e.node.kind == "symlink" else "",
        "y": lambda e: KINDS[e.node.kind],
        "Y": lambda e: KINDS[target.kind] if (target := ctx.fs.find(e.path, ctx.who)) else "N",
        "t": lambda e: strftime("%a %b %e %H:%M:%S.0000000000 %Y", e.mtime),
    }
    if letter in simple:
        return simple[letter]
    if letter[0] in "TC" and len(letter) == 2:
        field = "mtime" if letter[0] == "T" else "ctime"
        if letter[1] in "YmdHMjaAbBy":
            return lambda e: strftime("%" + letter[1], getattr(e, field))
        forms = {
            "@": "%s.0000000000",
            "S": "%S.0000000000",
            "T": "%H:%M:%S.0000000000",
            "F": "%Y-%m-%d",
            "D": "%m/%d/%y",
            "+": "%Y-%m-%d+%H:%M:%S.0000000000",
        }
        if letter[1] in forms:
            return lambda e: strftime(forms[letter[1]], getattr(e, field))
    raise Unsupported(f"find -printf %{letter}")


def pieces(ctx: Context, text: str) -> list[str | Callable[[Entry], str]]:
    """A -printf format as texts and functions."""
    found: list[str | Callable[[Entry], str]] = []
    at = 0
    for match in _FORMAT.finditer(text):
        found.append(text[at : match.start()])
        at = match.end()
        escape, flags, width, precision, letter = match.groups()
        if escape is not None:
            if escape == "c":
                raise Unsupported("find -printf \\c")
            octal = escape[0] in "01234567" and escape != "0"
            found.append(
                chr(int(escape, 8))
                if octal or len(escape) > 1
                else _ESCAPES.get(escape, "\\" + escape)
            )
        elif letter == "%":
            found.append("%")
        elif precision is not None or set(flags) - {"-", "0"}:
            raise Unsupported("find -printf with such flags")
        else:
            found.append(_padded(_directive(ctx, letter), flags, int(width or 0)))
    found.append(text[at:])
    return [piece for piece in found if piece != ""]


def _padded(value: Callable[[Entry], str | int], flags: str, width: int) -> Callable[[Entry], str]:
    if "-" in flags:
        return lambda entry: str(value(entry)).ljust(width)
    return lambda entry: str(value(entry)).rjust(
        width, "0" if "0" in flags and isinstance(value(entry), int) else " "
    )
