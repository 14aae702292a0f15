"""Regular expressions as an automaton: the longest match from each start, in linear time.

`regexes.py` uses it where Python's `re` would choose another match than POSIX or backtrack without
bound. States of the deterministic automaton are made as texts need them and kept with the compiled
pattern.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from shellworld.interpreter.result import Unsupported

SET, SPLIT, ASSERT, ACCEPT = range(4)
EDGE, NEWLINE, WORD, OTHER = range(4)  # what lies beside a position
MAX_STATES = 4000  # of the nondeterministic automaton
MAX_CACHED = 2000  # of the deterministic one
MAX_STEPS = 2_000_000  # of one search


def _kind(char: str) -> int:
    if char == "\n":
        return NEWLINE
    return WORD if char == "_" or (char.isascii() and char.isalnum()) else OTHER


_ASSERTIONS: dict[str, Callable[[int, int, bool], bool]] = {
    "bol": lambda before, after, lines: before == EDGE or (lines and before == NEWLINE),
    "eol": lambda before, after, lines: after == EDGE or (lines and after == NEWLINE),
    "bos": lambda before, after, lines: before == EDGE,
    "eos": lambda before, after, lines: after == EDGE,
    "word": lambda before, after, lines: (before == WORD) != (after == WORD),
    "nword": lambda before, after, lines: (before == WORD) == (after == WORD),
    "wstart": lambda before, after, lines: before != WORD and after == WORD,
    "after_nonword": lambda before, after, lines: before != WORD,
    "before_nonword": lambda before, after, lines: after != WORD,
    "wend": lambda before, after, lines: before == WORD and after != WORD,
}


@functools.lru_cache(4096)
def member(python: str, flags: int) -> Callable[[str], object]:
    """Whether a character is in a one-character Python pattern."""
    return re.compile(python, flags).match


class Automaton:
    """The automaton of a tree of `regexes.py`.

    Args:
      tree: without back-references (Unsupported).
      flags: re.IGNORECASE and re.MULTILINE are obeyed.
    """

    def __init__(self, tree: tuple, flags: int):
        self._flags = flags | re.DOTALL
        self._lines = bool(flags & re.MULTILINE)
        self._nodes: list[list] = []
        accept = self._node(ACCEPT)
        start = self._build(tree, accept)
        anywhere = self._node(SPLIT, None, 0, start)
        self._nodes[anywhere][2] = self._node(SET, member("(?s:.)", 0), anywhere)
        self._starts = frozenset((start,)), frozenset((anywhere,))
        self._forget()

    def _forget(self) -> None:
        self._ids: dict[tuple[frozenset[int], int], int] = {}
        self._sets: list[tuple[frozenset[int], int]] = []
        self._steps: list[dict[str, tuple[bool, int]]] = []

    def _node(self, kind: int, data: object = None, first: int = -1, second: int = -1) -> int:
        if len(self._nodes) >= MAX_STATES:
            raise Unsupported("regular expression of this size")
        self._nodes.append([kind, data, first, second])
        return len(self._nodes) - 1

    def _build(self, tree: tuple, then: int) -> int:
        match tree[0]:
            case "empty":
                return then
            case "set":
                return self._node(SET, member(tree[1], self._flags), then)
            case "at":
                return self._node(ASSERT, _ASSERTIONS[tree[1]], then)
            case "group":
                return self._build(tree[2], then)
            case "cat":
                for item in reversed(tree[1]):
                    then = self._build(item, then)
                return then
            case "alt":
                first, *rest = (self._build(item, then) for item in tree[1])
                for other in rest:
                    first = self._node(SPLIT, None, first, other)
                return first
            case "rep":
                _, body, low, high = tree
                if high is None:
                    loop = self._node(SPLIT, None, -1, then)
                    self._nodes[loop][2] = self._build(body, loop)
                    then = loop
                else:
                    end = then
                    for _ in range(high - low):
                        then = self._node(SPLIT, None, self._build(body, then), end)
                for _ in range(low):
                    then = self._build(body, then)
                return then
        raise Unsupported("back-reference in a regular expression of this kind")

    def _closure(self, nodes: frozenset[int], before: int, after: int) -> tuple[bool, list[int]]:
        """Whether the end is reached, and the sets that may take the next character."""
        seen, takers, accepted = set(nodes), [], False
        stack = list(nodes)
        while stack:
            number = stack.pop()
            kind, data, first, second = self._nodes[number]
            if kind == SET:
                takers.append(number)
                continue
            if kind == ACCEPT:
                accepted = True
                continue
            if kind == ASSERT and not data(before, after, self._lines):
                continue
            for following in (first, second):
                if following >= 0 and following not in seen:
                    seen.add(following)
                    stack.append(following)
        return accepted, takers

    def _state(self, nodes: frozenset[int], before: int) -> int:
        key = nodes, before
        if key not in self._ids:
            if not nodes:
                return -1
            self._ids[key] = len(self._sets)
            self._sets.append(key)
            self._steps.append({})
        return self._ids[key]

    def _step(self, state: int, char: str) -> tuple[bool, int]:
        nodes, before = self._sets[state]
        accepted, takers = self._closure(nodes, before, _kind(char))
        following = frozenset(self._nodes[n][2] for n in takers if self._nodes[n][1](char))
        step = self._steps[state][char] = accepted, self._state(following, _kind(char))
        return step

    def _run(self, text: str, start: int, anywhere: bool) -> tuple[int, int]:
        """Returns the end of the longest match from start, or -1, and the count of characters read.

        If it searches, the match may begin anywhere from `start` on; the first found counts.
        """
        if len(self._sets) > MAX_CACHED:
            self._forget()
        state = self._state(self._starts[anywhere], _kind(text[start - 1]) if start else EDGE)
        steps, best = self._steps, -1
        for at in range(start, len(text)):
            char = text[at]
            accepted, state = steps[state].get(char) or self._step(state, char)
            if accepted:
                best = at
                if anywhere:
                    return best, at - start
            if state < 0:
                return best, at - start + 1
            if len(steps) > 10 * MAX_CACHED:
                raise Unsupported("regular expression of this complexity")
        nodes, before = self._sets[state]
        if self._closure(nodes, before, EDGE)[0]:
            best = len(text)
        return best, len(text) - start

    def test(self, text: str) -> bool:
        """Whether it matches anywhere in the text."""
        return self._run(text, 0, True)[0] >= 0

    def find(self, text: str, start: int = 0) -> tuple[int, int] | None:
        """Bounds of the leftmost longest match from start on, or None."""
        end, steps = self._run(text, start, True)
        if end < 0:
            return None
        for first in range(start, end + 1):
            longest, read = self._run(text, first, False)
            if longest >= 0:
                return first, longest
            steps += read
            if steps > MAX_STEPS:
                raise Unsupported("regular expression of this cost")
        return None
