"""Perl's regular expressions (`grep -P`), where Python's have the same meaning."""

from __future__ import annotations

import re
import re._constants as codes
import re._parser as sre
from collections.abc import Callable, Iterable
from typing import Any

from shellworld.interpreter.result import Unsupported
from shellworld.language.regex_parser import CLASSES, RegexError
from shellworld.language.regexes import MAX_COST, Analysis

_FOREIGN = re.compile(
    r"\\(?:[pPXRGQEKCgkNoHVulULz]|x\{|c|0)|\(\?(?![:=!]|<[=!])|\(\*|\[\[[.=]|[*+?}]\+|\\h|\{,",
    re.DOTALL,
)
# What Python may one day read as sets of sets.
_NESTED = re.compile(r"\[\^?\]?[^\]]*(?:\[|--|&&|~~|\|\|)")
_CLASS = re.compile(r"\[:(\w+):\]")


class _Perl:
    r"""A compiled pattern with `test` and `find`, as `regexes.Regex` has them.

    A group "kept" is what \K leaves of the match.
    """

    def __init__(self, compiled: re.Pattern, constant: float, degree: float):
        self._compiled = compiled
        self._constant, self._degree = constant, degree
        self._kept = "kept" in compiled.groupindex
        self.test: Callable = self.find

    def find(self, text: str, start: int = 0) -> _Kept | re.Match | None:
        if self._degree > 8 or self._constant * (len(text) + 1.0) ** (self._degree + 1) > MAX_COST:
            raise Unsupported("grep -P of this cost")
        match = self._compiled.search(text, start)
        return _Kept(match) if match and self._kept else match


class _Kept:
    def __init__(self, match: re.Match):
        self._match = match

    def span(self) -> tuple[int, int]:
        return self._match.span("kept")

    def start(self) -> int:
        return self._match.start("kept")

    def end(self) -> int:
        return self._match.end("kept")


def perl_regex(pattern: str, ignore_case: bool) -> _Perl:
    """Compiles a pattern.

    Raises:
      Unsupported: Perl and Python may differ on it.
      RegexError: neither knows it.
    """
    head, kept, tail = pattern.partition("\\K")
    if kept and (
        head.count("\\\\") or head.count("(") != head.count(")") or "|" in pattern or "\\K" in tail
    ):
        raise Unsupported("grep -P with this \\K")
    for part in (head, tail):
        if _FOREIGN.search(re.sub(r"\\\\", "", part)):
            raise Unsupported("grep -P with such a pattern")
    text = f"(?:{head})(?P<kept>{tail})" if kept else pattern
    if (names := _CLASS.findall(text)) and not all(name in CLASSES for name in names):
        raise RegexError("unknown POSIX class name")
    if _NESTED.search(re.sub(r"\\.", "", _CLASS.sub("", text), flags=re.DOTALL)):
        raise Unsupported("grep -P with such a set")
    text = _CLASS.sub(lambda m: CLASSES[m[1]], text)
    flags = re.ASCII | (re.IGNORECASE if ignore_case else 0)
    try:
        tree = sre.parse(text, flags)
        compiled = re.compile(text, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise Unsupported("grep -P with such a pattern") from error
    analysis = Analysis(_convert(tree), flags)
    return _Perl(compiled, analysis.constant, analysis.degree)


def _convert(items: Iterable[tuple[Any, Any]]) -> tuple:
    """Python's parsed pattern as a tree of `regexes.py`, for its cost alone."""
    nodes: list[tuple] = []
    for code, value in items:
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            low, high, body = value
            nodes.append(("rep", _convert(body), low, None if high is codes.MAXREPEAT else high))
        elif code is codes.SUBPATTERN:
            nodes.append(("group", 0, _convert(value[3])))
        elif code is codes.BRANCH:
            nodes.append(("alt", [_convert(branch) for branch in value[1]]))
        elif code is codes.LITERAL:
            nodes.append(("set", re.escape(chr(value))))
        elif code is codes.IN and len(value) == 1 and value[0][0] is codes.CATEGORY:
            nodes.append(("set", _CATEGORIES.get(value[0][1], ".")))
        elif code is codes.IN and all(
            item[0] in (codes.LITERAL, codes.RANGE, codes.NEGATE) for item in value
        ):
            nodes.append(("set", f"[{''.join(map(_in, value))}]"))
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            nodes.append(_convert(value[1]))
        elif code is codes.AT:
            nodes.append(("at", "bol"))
        elif code is codes.GROUPREF:
            nodes.append(("back", value))
        else:
            nodes.append(("set", "."))
    return ("cat", nodes) if nodes else ("empty",)


_CATEGORIES = {codes.CATEGORY_DIGIT: r"\d", codes.CATEGORY_SPACE: r"\s", codes.CATEGORY_WORD: r"\w"}


def _in(item: tuple) -> str:
    code, value = item
    if code is codes.NEGATE:
        return "^"
    ends = (value, value) if code is codes.LITERAL else value
    return "-".join(f"\\U{end:08x}" for end in ends)
