"""Brace expansion: a{b,c}d and {1..5}, a matter of the text alone, done when a word is read."""

from __future__ import annotations

import itertools
import re

from shellworld.interpreter.result import LimitExceeded
from shellworld.language import ast
from shellworld.language.lexer import make_word

LIMIT = 20_000  # words that one word may become
CHARACTERS = 2_000_000  # of them together
_RANGE = re.compile(r"(?:(-?\d+)\.\.(-?\d+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.(-?\d+))?")

Item = str | ast.Part  # a character of unquoted text, or another part


def expand_braces(word: ast.Word) -> list[ast.Word]:
    """The words that a word stands for; itself if it has no braces to expand."""
    if word.plain is not None or not any(
        isinstance(p, ast.Literal) and "{" in p.text for p in word.parts
    ):
        return [word]
    items: list[Item] = []
    for part in word.parts:
        items.extend(part.text if isinstance(part, ast.Literal) else [part])
    expanded = _expand(items)
    if len(expanded) == 1 and expanded[0] == items:
        return [word]
    return [_join(found, word.position) for found in expanded if found]


def _join(items: list[Item], position: int) -> ast.Word:
    return make_word([ast.Literal(i) if isinstance(i, str) else i for i in items], position)


def _expand(items: list[Item]) -> list[list[Item]]:
    start = 0
    while True:
        found = _group(items, start)
        if found is None:
            return [items]
        begin, end, commas = found
        head, tail = items[:begin], items[end + 1 :]
        if commas:
            middles = []
            for before, behind in itertools.pairwise([begin, *commas, end]):
                middles += _expand(items[before + 1 : behind])
        else:
            sequence = _sequence(items[begin + 1 : end])
            if sequence is None:
                start = begin + 1
                continue
            middles = sequence
        tails = _expand(tail)
        words = len(middles) * len(tails)
        size = (
            words * len(head)
            + len(tails) * sum(map(len, middles))
            + len(middles) * sum(map(len, tails))
        )
        if words > LIMIT or size > CHARACTERS:
            raise LimitExceeded("memory", 137)
        return [head + middle + rest for middle, rest in itertools.product(middles, tails)]


def _group(items: list[Item], start: int) -> tuple[int, int, list[int]] | None:
    """Finds the first balanced {...} from `start` on that has a comma or looks like a range."""
    for begin in range(start, len(items)):
        if items[begin] != "{":
            continue
        depth = 0
        commas: list[int] = []
        for at in range(begin, len(items)):
            if items[at] == "{":
                depth += 1
            elif items[at] == "}":
                depth -= 1
                if depth == 0:
                    if commas or ".." in "".join(
                        i if isinstance(i, str) else "\0" for i in items[begin:at]
                    ):
                        return begin, at, commas
                    break
            elif items[at] == "," and depth == 1:
                commas.append(at)
    return None


def _sequence(items: list[Item]) -> list[list[Item]] | None:
    if not all(isinstance(i, str) for i in items):
        return None
    m = _RANGE.fullmatch("".join(items))  # type: ignore[arg-type]
    if not m or any(len(g) > 18 for g in (m[1], m[2], m[5]) if g):
        return None
    step = abs(int(m[5] or 1)) or 1
    low, high = (int(m[1]), int(m[2])) if m[1] else (ord(m[3]), ord(m[4]))
    if abs(high - low) // step >= LIMIT:
        raise LimitExceeded("memory", 137)
    numbers = range(low, high + 1, step) if low <= high else range(low, high - 1, -step)
    if not m[1]:
        return [[chr(n)] if chr(n).isalnum() else [ast.Quoted(chr(n))] for n in numbers]
    padded = any(re.match(r"-?0\d", g) for g in (m[1], m[2]))
    width = max(len(m[1]), len(m[2])) if padded else 0
    return [list(f"{n:0{width}d}") for n in numbers]
