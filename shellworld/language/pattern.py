"""The shell's patterns (*, ?, [...]), matched in linear time.

A set of states is moved along the text, so that no pattern makes it slow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

_CLASSES = {
    "alpha": str.isalpha,
    "digit": lambda c: "0" <= c <= "9",
    "alnum": str.isalnum,
    "upper": str.isupper,
    "lower": str.islower,
    "space": lambda c: c in " \t\n\v\f\r",
    "blank": lambda c: c in " \t",
    "punct": lambda c: c.isprintable() and not c.isalnum() and c != " ",
    "print": str.isprintable,
    "graph": lambda c: c.isprintable() and c != " ",
    "cntrl": lambda c: ord(c) < 32 or ord(c) == 127,
    "xdigit": lambda c: c in "0123456789abcdefABCDEF",
}


def escape(text: str) -> str:
    """A pattern that matches just this text."""
    if text.isalnum():
        return text
    return "".join("\\" + c if c in "*?[]\\!^-" else c for c in text)


def is_pattern(text: str) -> bool:
    """Whether a pattern has an unescaped wildcard."""
    if not ("*" in text or "?" in text or "[" in text):
        return False
    elements, _ = _elements(text)
    return any(not isinstance(e, str) for e in elements)


def unescape(text: str) -> str:
    """What a pattern without wildcards matches."""
    if "\\" not in text:
        return text
    out = []
    i = 0
    while i < len(text):
        if text[i] == "\\" and i + 1 < len(text):
            i += 1
        out.append(text[i])
        i += 1
    return "".join(out)


class _Bracket:
    """A bracket expression."""

    __slots__ = ("negated", "items")

    def __init__(self, negated: bool, items: list):
        self.negated = negated
        self.items = items

    def matches(self, c: str) -> bool:
        for item in self.items:
            if isinstance(item, str):
                found = c == item
            elif isinstance(item, tuple):
                found = item[0] <= c <= item[1]
            else:
                found = item(c)
            if found:
                return not self.negated
        return self.negated


def _bracket(text: str, i: int) -> tuple[_Bracket, int] | None:
    """Reads the bracket expression at text[i] == "[" and returns it with the position behind it.

    It is None if the bracket is not closed.
    """
    n = len(text)
    at = i + 1
    negated = at < n and text[at] in "!^"
    at += negated
    items: list = []
    first = True
    while at < n:
        c = text[at]
        if c == "]" and not first:
            return _Bracket(negated, items), at + 1
        first = False
        if c == "[" and text.startswith("[:", at):
            end = text.find(":]", at + 2)
            if end >= 0:
                items.append(_CLASSES.get(text[at + 2 : end], lambda c: False))
                at = end + 2
                continue
        if c == "\\" and at + 1 < n:
            at += 1
            c = text[at]
        at += 1
        if at + 1 < n and text[at] == "-" and text[at + 1] != "]":
            at += 1
            if text[at] == "\\" and at + 1 < n:
                at += 1
            items.append((c, text[at]))
            at += 1
        else:
            items.append(c)
    return None


def _elements(text: str) -> tuple[list, bool]:
    """Elements (a character, None for ?, True for *, a _Bracket) and whether all are characters."""
    elements: list = []
    plain = True
    i = 0
    while i < len(text):
        c = text[i]
        i += 1
        if c == "\\" and i < len(text):
            elements.append(text[i])
            i += 1
        elif c == "*":
            plain = False
            if not elements or elements[-1] is not True:
                elements.append(True)
        elif c == "?":
            plain = False
            elements.append(None)
        elif c == "[" and (found := _bracket(text, i - 1)) is not None:
            plain = False
            elements.append(found[0])
            i = found[1]
        else:
            elements.append(c)
    return elements, plain


class Pattern:
    """A compiled pattern."""

    def __init__(self, elements: list):
        self.elements = elements
        self.stars = sum(1 << i for i, e in enumerate(elements) if e is True)
        self.masks: dict[str, int] = {}
        self.final = 1 << len(elements)
        self.start = 1 | (self.stars & 1) << 1
        self.work = 0  # characters looked at by `prefix`, ever

    def _mask(self, c: str) -> int:
        mask = 0
        for i, e in enumerate(self.elements):
            if e is None or (e == c if isinstance(e, str) else e is not True and e.matches(c)):
                mask |= 1 << i
        self.masks[c] = mask
        return mask

    def fullmatch(self, text: str) -> bool:
        """Whether the pattern matches the whole text."""
        states, stars, masks = self.start, self.stars, self.masks
        for c in text:
            mask = masks.get(c)
            if mask is None:
                mask = self._mask(c)
            states = (states & mask) << 1 | states & stars
            states |= (states & stars) << 1
            if not states:
                return False
        return bool(states & self.final)

    def prefix(self, text: str, longest: bool, start: int = 0) -> int:
        """End of the shortest or longest match that begins at `start`, or -1."""
        states, stars, masks, final = self.start, self.stars, self.masks, self.final
        found = start if states & final else -1
        if found >= 0 and not longest:
            return found
        at = start
        for at in range(start, len(text)):
            c = text[at]
            mask = masks.get(c)
            if mask is None:
                mask = self._mask(c)
            states = (states & mask) << 1 | states & stars
            states |= (states & stars) << 1
            if not states:
                break
            if states & final:
                found = at + 1
                if not longest:
                    break
        self.work += at - start
        return found


@functools.lru_cache(2048)
def compile_pattern(text: str) -> Pattern:
    """Returns the pattern of a text, remembered by text."""
    return Pattern(_elements(text)[0])


@functools.lru_cache(2048)
def _reversed(text: str) -> Pattern:
    return Pattern(_elements(text)[0][::-1])


def matches(text: str, pattern: str) -> bool:
    """Whether the whole text matches."""
    return compile_pattern(pattern).fullmatch(text)


def strip_prefix(text: str, pattern: str, longest: bool) -> str:
    """Removes the shortest or longest match at the start: ${name#...} and ${name##...}."""
    end = compile_pattern(pattern).prefix(text, longest)
    return text[end:] if end > 0 else text


def strip_suffix(text: str, pattern: str, longest: bool) -> str:
    """Removes the shortest or longest match at the end: ${name%...} and ${name%%...}."""
    end = _reversed(pattern).prefix(text[::-1], longest)
    return text[: len(text) - end] if end > 0 else text


def replace(
    text: str, pattern: str, replacement: str, kind: str, tick: Callable[[int], None]
) -> str:
    """Returns ${text/pattern/replacement}.

    Args:
      kind: "/" replaces the first match, "//" all, "/#" at the start, "/%" at the end.
      tick: is told of the work, 64 characters at a time.
    """
    compiled = compile_pattern(pattern)
    if not pattern:
        if kind in ("/", "//"):
            return text
        return replacement + text if kind == "/#" else text + replacement
    if kind == "/#":
        end = compiled.prefix(text, True)
        return text if end < 0 else replacement + text[end:]
    if kind == "/%":
        end = _reversed(pattern).prefix(text[::-1], True)
        return text if end < 0 else text[: len(text) - end] + replacement
    out = []
    at = 0
    done = compiled.work
    while at <= len(text):
        if compiled.work - done > 6400:
            tick((compiled.work - done) >> 6)
            done = compiled.work
        end = compiled.prefix(text, True, at)
        if end > at or (end == at and not text):
            out.append(replacement)
            at = end
            if kind == "/" or not text:
                break
        else:
            out.append(text[at : at + 1])
            at += 1
    return "".join(out) + text[at:]
