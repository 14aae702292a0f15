"""Symbolic and octal modes, as chmod, mkdir -m, install -m and umask read them."""

from __future__ import annotations

import re

from shellworld.world.acl import rwx

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]|[0-7]{1,4}))+)")
_ACTION = re.compile(r"([-+=])([rwxXst]*(?![0-7ugo])|[ugo]|[0-7]{1,4})")
_OCTAL = re.compile(r"[0-7]{1,5}")
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007, "a": 0o7777}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111}


class ModeError(ValueError):
    """The text is no mode."""


def apply_mode(text: str, mode: int, directory: bool, umask: int) -> int:
    """The 12 mode bits after applying a mode to `mode`; raises ModeError.

    Args:
      text: octal ("755", "0755", "+x" and "u=rw,g-w" are symbolic, "=755" is an operator with
        octal).
      mode: the bits before.
      directory: keeps set-id bits that a short octal number does not mention; X works.
      umask: what a clause without u, g, o or a leaves alone.
    """
    if _OCTAL.fullmatch(text):
        value = int(text, 8)
        if value > 0o7777:
            raise ModeError(text)
        if directory and len(text) < 5:
            value |= mode & 0o6000
        return value
    if "," in text and any(not clause for clause in text.split(",")) or not text:
        raise ModeError(text)
    for clause in text.split(","):
        m = _CLAUSE.fullmatch(clause)
        if not m:
            raise ModeError(text)
        affected = 0
        for letter in m[1]:
            affected |= _WHO[letter]
        for operator, what in _ACTION.findall(m[2]):
            mode = _act(mode, affected, operator, what, directory, umask)
    return mode


def _act(mode: int, affected: int, operator: str, what: str, directory: bool, umask: int) -> int:
    mask = affected or 0o7777
    omit = 0 if affected else umask
    if what[:1] in tuple("01234567"):
        if affected:
            raise ModeError(what)
        value = int(what, 8)
        if value > 0o7777:
            raise ModeError(what)
        mask, omit = 0o7777, 0
        if operator == "=":
            return value
    elif what in ("u", "g", "o") and what:
        value = (mode >> {"u": 6, "g": 3, "o": 0}[what] & 7) * 0o111
    else:
        value = 0
        for letter in what:
            if letter in _BITS:
                value |= _BITS[letter]
            elif letter == "X":
                value |= 0o111 if directory or mode & 0o111 else 0
            elif letter == "s":
                value |= 0o6000
            elif letter == "t":
                value |= 0o1000
    value &= mask & ~omit
    if operator == "+":
        return mode | value
    if operator == "-":
        return mode & ~value
    kept = mode & ~mask
    if directory:
        kept |= mode & 0o6000 & ~value if not re.search("s", what) else 0
    return kept | value


def format_mode(mode: int, kind: str) -> str:
    """As ls -l shows it: "drwxr-sr-t"."""
    letters = list(
        {"file": "-", "directory": "d", "symlink": "l", "device": "c"}[kind]
        + rwx(mode >> 6 & 7)
        + rwx(mode >> 3 & 7)
        + rwx(mode & 7)
    )
    for bit, place, letter in ((0o4000, 3, "s"), (0o2000, 6, "s"), (0o1000, 9, "t")):
        if mode & bit:
            letters[place] = letter if letters[place] == "x" else letter.upper()
    return "".join(letters)


def symbolic_umask(umask: int) -> str:
    """As umask -S prints it."""
    allowed = ~umask
    names = (("u", 6), ("g", 3), ("o", 0))
    return ",".join(f"{who}=" + rwx(allowed >> shift & 7).replace("-", "") for who, shift in names)
