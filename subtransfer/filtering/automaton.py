"""A regular expression followed character by character: has a text that goes on a match in it?

`re` can only search whole texts. What a token completes must be known for each of a vocabulary's
tokens behind each of a corpus's texts, so the expression becomes an automaton whose states are made
as they are met. All of `re` that looks at most one character back is understood, and looks ahead of
one character, or of several at the end of an alternative.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

# The reader of `re` itself, so that both mean the same. It has no public name.
from re import _parser as re_parser
from typing import Any

_parser: Any = re_parser
_CATEGORIES = {
    "CATEGORY_WORD": re.compile(r"\w"),
    "CATEGORY_DIGIT": re.compile(r"\d"),
    "CATEGORY_SPACE": re.compile(r"\s"),
}

# The state of a text that holds a match, whatever follows.
FOUND = 0
_END = -1
# A test of the characters on both sides of a place, each as a signature; `_END` is no character.
_Test = Callable[[int, int], bool]


class UnfollowableError(ValueError):
    """The expression has something that cannot be followed character by character."""


class Automaton:
    """Follows texts, and says where an expression matches in them, as `re.search` does.

    Args:
      pattern: the expression, for texts in lower case.
      apart: characters that are to be told from all others (see `signature`).

    Raises:
      UnfollowableError: the expression looks back further than a character, or has references.
    """

    def __init__(self, pattern: str, apart: Iterable[str] = ()):
        self._predicates: dict[tuple, int] = {}
        self._characters: list[tuple] = []
        # Nodes of the nondeterministic automaton, by number.
        self._moves: list[list[tuple[int, int]]] = []  # (predicate, target) that take a character
        self._jumps: list[list[tuple[_Test | None, int]]] = []  # that take none
        self._looks_back = 0
        self._begin, self._final = self._node(), self._node()
        self._sequence(_parser.parse(pattern), self._begin, self._final, last=True)
        for character in apart:
            self._predicate((("LITERAL", ord(character)),))
        # The highest character that is named; above, only categories tell characters apart.
        self._highest = max(
            (bound for tests in self._predicates for _, bound in _bounds(tests)), default=0
        )
        self._signatures: dict[Any, int] = {}
        # States: (nodes, the signature of the character before), made as they are met.
        self._states: list[tuple[frozenset[int], int]] = [(frozenset(), _END)]
        self._numbers: dict[tuple[frozenset[int], int], int] = {}
        self._next: dict[tuple[int, int], int] = {}
        self.start = self._state(frozenset(), _END)

    # -- following a text --------------------------------------------------------------------------

    def signature(self, character: str) -> int:
        """Returns which of the expression's tests a character passes, as bits.

        Characters of one signature are the same to it.
        """
        key: Any = character
        if ord(character) > self._highest:
            key = tuple(bool(test.match(character)) for test in _CATEGORIES.values())
        if key not in self._signatures:
            bits = 0
            for tests, number in self._predicates.items():
                bits |= _passes(tests, character) << number
            self._signatures[key] = bits
        return self._signatures[key]

    def step(self, state: int, signature: int) -> int:
        """Returns the state behind one more character."""
        key = (state, signature)
        if key not in self._next:
            self._next[key] = self._stepped(state, signature)
        return self._next[key]

    def ends(self, state: int) -> bool:
        """Says whether a text that ends here holds a match."""
        if state == FOUND:
            return True
        return self._final in self._closure(state, _END)

    def _stepped(self, state: int, signature: int) -> int:
        if state == FOUND:
            return FOUND
        reached = self._closure(state, signature)
        if self._final in reached:
            return FOUND
        targets = set()
        for node in reached:
            for predicate, target in self._moves[node]:
                if signature >> predicate & 1:
                    targets.add(target)
        # A search may begin anywhere. Of the character only what tests look back at is kept.
        return self._state(frozenset(targets), signature & self._looks_back)

    def _closure(self, state: int, ahead: int) -> set[int]:
        """The nodes that are reached at a place without taking a character."""
        nodes, behind = self._states[state]
        reached, left = set(), [self._begin, *nodes]
        while left:
            node = left.pop()
            if node in reached:
                continue
            reached.add(node)
            for test, target in self._jumps[node]:
                if test is None or test(behind, ahead):
                    left.append(target)
        return reached

    def _state(self, nodes: frozenset[int], behind: int) -> int:
        key = (nodes, behind)
        if key not in self._numbers:
            self._numbers[key] = len(self._states)
            self._states.append(key)
        return self._numbers[key]

    # -- building it from an expression ------------------------------------------------------------

    def _node(self) -> int:
        self._moves.append([])
        self._jumps.append([])
        return len(self._moves) - 1

    def _predicate(self, tests: tuple) -> int:
        return self._predicates.setdefault(tests, len(self._predicates))

    def _sequence(self, parsed: Sequence, begin: int, end: int, *, last: bool) -> None:
        """Adds a path from `begin` to `end`; `last`: the expression is over behind it."""
        parts = list(parsed)
        at = begin
        for number, (op, argument) in enumerate(parts):
            over = number == len(parts) - 1
            target = end if over else self._node()
            self._part(str(op), argument, at, target, last=last and over)
            at = target
        if not parts:
            self._jumps[begin].append((None, end))

    def _part(self, op: str, argument: Any, begin: int, end: int, *, last: bool) -> None:
        tests = _tests(op, argument)
        if tests is not None:
            self._moves[begin].append((self._predicate(tests), end))
        elif op == "BRANCH":
            for alternative in argument[1]:
                self._sequence(alternative, begin, end, last=last)
        elif op == "SUBPATTERN":
            _, add_flags, del_flags, inner = argument
            if add_flags or del_flags:
                raise UnfollowableError("flags within it")
            self._sequence(inner, begin, end, last=last)
        elif op in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, inner = argument
            self._repeat(low, high, inner, begin, end)
        elif op == "AT":
            self._jumps[begin].append((self._at(str(argument)), end))
        elif op in ("ASSERT", "ASSERT_NOT"):
            self._look(op, argument, begin, end, last=last)
        elif op != "FAILURE":  # which is a part that nothing passes
            raise UnfollowableError(f"{op.lower().replace('_', ' ')} in it")

    def _repeat(self, low: int, high: Any, inner: Sequence, begin: int, end: int) -> None:
        at = begin
        for _ in range(low):
            after = self._node()
            self._sequence(inner, at, after, last=False)
            at = after
        if high is _parser.MAXREPEAT:
            # A node of its own, as a loop into `at` would let other paths in.
            loop = self._node()
            self._jumps[at].append((None, loop))
            self._sequence(inner, loop, loop, last=False)
            self._jumps[loop].append((None, end))
            return
        self._jumps[at].append((None, end))
        for _ in range(high - low):
            after = self._node()
            self._sequence(inner, at, after, last=False)
            self._jumps[after].append((None, end))
            at = after

    def _at(self, where: str) -> _Test:
        if where in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return lambda behind, ahead: behind == _END
        # `$` also stands before a last newline, which makes no difference to a text that goes on.
        if where in ("AT_END", "AT_END_STRING"):
            return lambda behind, ahead: ahead == _END
        if where not in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
            raise UnfollowableError(f"{where.lower().replace('_', ' ')} in it")
        word = self._predicate((("CATEGORY_WORD", None),))
        self._looks_back |= 1 << word
        wanted = where == "AT_BOUNDARY"

        def boundary(behind: int, ahead: int) -> bool:
            return (_holds(behind, word) != _holds(ahead, word)) == wanted

        return boundary

    def _look(self, op: str, argument: Any, begin: int, end: int, *, last: bool) -> None:
        direction, inner = argument
        wanted = op == "ASSERT"
        predicates = []
        for part_op, part in inner:
            tests = _tests(str(part_op), part)
            if tests is None:
                raise UnfollowableError("a look around at more than single characters in it")
            predicates.append(self._predicate(tests))
        if len(predicates) == 1:
            (predicate,) = predicates
            back = direction < 0
            if back:
                self._looks_back |= 1 << predicate

            def test(behind: int, ahead: int) -> bool:
                return _holds(behind if back else ahead, predicate) == wanted

            self._jumps[begin].append((test, end))
            return
        if direction < 0 or wanted or not last:
            raise UnfollowableError("a look around of several characters in it")
        # What must not follow is followed until it is over or something else comes.
        at = begin
        for number, predicate in enumerate(predicates):

            def otherwise(behind: int, ahead: int, predicate: int = predicate) -> bool:
                return not _holds(ahead, predicate)

            self._jumps[at].append((otherwise, end))
            if number < len(predicates) - 1:
                after = self._node()
                self._moves[at].append((predicate, after))
                at = after


def _holds(signature: int, predicate: int) -> bool:
    return signature != _END and bool(signature >> predicate & 1)


def _tests(op: str, argument: Any) -> tuple | None:
    """What a part that takes one character asks of it; None if the part is another."""
    if op in ("LITERAL", "NOT_LITERAL"):
        return ((op, argument),)
    if op == "ANY":
        return (("NOT_LITERAL", 10),)
    if op == "IN":
        tests = []
        for kind, value in argument:
            name = str(value) if str(kind) == "CATEGORY" else str(kind)
            tests.append((name, None if str(kind) in ("CATEGORY", "NEGATE") else value))
        return tuple(tests)
    return None


def _passes(tests: tuple, character: str) -> bool:
    """Whether a character passes one of the tests, or none if they are negated."""
    passed = any(_one(kind, value, character) for kind, value in tests)
    return passed != (tests[0][0] == "NEGATE")


def _one(kind: str, value: Any, character: str) -> bool:
    if kind == "NEGATE":
        return False
    if kind == "LITERAL":
        return ord(character) == value
    if kind == "NOT_LITERAL":
        return ord(character) != value
    if kind == "RANGE":
        return value[0] <= ord(character) <= value[1]
    negated = "_NOT_" in kind
    return bool(_CATEGORIES[kind.replace("_NOT_", "_")].match(character)) != negated


def _bounds(tests: tuple) -> Iterable[tuple[str, int]]:
    """The characters that tests name."""
    for kind, value in tests:
        if value is not None:
            yield kind, value[1] if kind == "RANGE" else value
