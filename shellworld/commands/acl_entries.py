"""The entries that setfacl takes, read as it reads them: "u:bob:rw,d:g:staff:rX,o::-"."""

from __future__ import annotations

import dataclasses
import re

from shellworld.world.users import Users, number

Key = tuple[str, int | None]  # a tag, and the number of a named user or group
_TAGS = ("user", "group", "mask", "other")
_BLANK = re.compile(r"\s*")
_TOKEN = re.compile(r"\s*([^:,\r\n]*)(:?)")
_OCTAL = re.compile(r"0+[1-7]?|[1-7]")
_LETTERS = {"r": 4, "w": 2, "x": 1}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a specification.

    Attributes:
      conditional: execute is meant only for directories, or where somebody may execute (X).
    """

    default: bool
    key: Key
    bits: int
    conditional: bool = False


class BadEntry(ValueError):
    """A text that is no specification.

    Attributes:
      at: the place in the text from which it makes no sense; its length if something is missing.
    """

    def __init__(self, at: int):
        super().__init__(at)
        self.at = at


def read_entries(text: str, users: Users, permissions: bool, all_default: bool) -> list[Entry]:
    """Entries that are separated by commas; raises BadEntry.

    Args:
      permissions: whether they end with permissions (-m) or may not have any (-x).
      all_default: whether all are default entries (-d).
    """
    entries, at = [], 0
    while at < len(text):
        entry, at = _entry(text, at, users, permissions, all_default)
        if text[at : at + 1] not in ("", ","):
            raise BadEntry(at)
        entries.append(entry)
        at += 1
    return entries


def _entry(text: str, at: int, users: Users, permissions: bool, default: bool) -> tuple[Entry, int]:
    if (behind := _named(text, at, "default")) is not None:
        default, at = True, behind
    tag = next((t for t in _TAGS if t[0] == text[at : at + 1]), "")
    behind = _named(text, at, tag) if tag else None
    if tag in ("mask", "other"):
        if behind is None:
            raise BadEntry(at)
        name, at = "", behind + text.startswith(":", behind)
    else:
        at = at if behind is None else behind
        tag = tag or "user"  # NAME:PERMISSIONS means a user
        m = _TOKEN.match(text, at)
        assert m
        name = m[1]
    holder: int | None = None
    if name:
        holder = users.uid(name) if tag == "user" else users.gid(name)
        if holder is None or (number(name) is not None and name.startswith("+")):
            raise BadEntry(at)
    if tag in ("user", "group"):
        assert m is not None  # the token with the name
        at = m.end()
    at = _BLANK.match(text, at).end()  # type: ignore[union-attr]
    if text[at : at + 1] in ("", ","):
        if permissions:
            raise BadEntry(at)
        return Entry(default, (tag, holder), 0), at
    if not permissions:
        raise BadEntry(at)
    if octal := _OCTAL.match(text, at):
        return Entry(default, (tag, holder), int(octal[0])), octal.end()
    first, bits, conditional = at, 0, False
    while at < first + 4 and text[at : at + 1] in ("r", "w", "x", "X", "-"):
        bit = _LETTERS.get(text[at], 0)
        if bits & bit or (conditional and text[at] == "X"):
            raise BadEntry(at)
        bits |= bit
        conditional = conditional or text[at] == "X"
        at += 1
    if at == first:
        raise BadEntry(at)
    return Entry(default, (tag, holder), bits, conditional), at


def _named(text: str, at: int, tag: str) -> int | None:
    """The place behind a tag (or its first letter) and its colon, if one stands there."""
    m = re.compile(rf"\s*{tag}|\s*{tag[0]}").match(text, at)
    if not m:
        return None
    behind = _BLANK.match(text, m.end()).end()  # type: ignore[union-attr]
    if text.startswith(":", behind):
        return behind + 1
    return behind if text[behind : behind + 1] in ("", ",") else None
