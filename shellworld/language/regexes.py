"""POSIX regular expressions, as GNU tools and mawk read them, on top of Python's `re`.

Basic and extended ones. A pattern is parsed here, strictly, into a small tree; the tree is printed
as a Python pattern. Where Python would answer otherwise than POSIX (it takes the first alternative,
POSIX the longest match), or could backtrack for very long, the tree is run by `automaton.py`
instead. The nodes are tuples:

    ("set", python)            one character, as a Python pattern
    ("cat", nodes), ("alt", nodes), ("empty",)
    ("rep", node, low, high)   repetition; high None is no limit
    ("group", number, node)
    ("back", number)           back-reference
    ("at", kind)               bol, eol, bos, eos, word, nword, wstart, wend, after_nonword,
                               before_nonword
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable

from shellworld.interpreter.result import Unsupported
from shellworld.language.automaton import Automaton, member
from shellworld.language.regex_parser import RegexError, parse

__all__ = ["Match", "Regex", "RegexError", "compile_regex"]

MAX_COST = 3e7  # of one backtracking search, in steps
_ASCII = [chr(n) for n in range(128)] + ["é"]  # the last stands for all others
_ALL = (1 << len(_ASCII)) - 1
_AT = {
    "bos": r"\A",
    "eos": r"\Z",
    "word": r"\b",
    "nword": r"\B",
    "wstart": r"\b(?=\w)",
    "wend": r"\b(?<=\w)",
    "after_nonword": r"(?<!\w)",
    "before_nonword": r"(?!\w)",
}


def _python(tree: tuple, lines: bool) -> str:
    """The tree as a Python pattern."""
    match tree[0]:
        case "set":
            return tree[1]
        case "cat":
            return "".join(
                f"(?:{_python(t, lines)})" if t[0] == "alt" else _python(t, lines) for t in tree[1]
            )
        case "alt":
            return "|".join(_python(t, lines) for t in tree[1])
        case "group":
            return f"({_python(tree[2], lines)})"
        case "back":
            return f"(?:\\{tree[1]})"
        case "at":
            if tree[1] in ("bol", "eol"):
                if lines:
                    return "^" if tree[1] == "bol" else "$"
                return r"\A" if tree[1] == "bol" else r"\Z"
            return _AT[tree[1]]
        case "rep":
            _, body, low, high = tree
            text = _python(body, lines)
            if body[0] not in ("set", "group", "back"):
                text = f"(?:{text})"
            sign = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((low, high))
            return text + (sign or f"{{{low},{'' if high is None else high}}}")
    return ""


@functools.lru_cache(4096)
def _mask(python: str, flags: int) -> int:
    """The ASCII characters of a set, as bits."""
    test = member(python, flags)
    return sum(1 << n for n, char in enumerate(_ASCII) if test(char))


class Analysis:
    """What must be known of a tree to trust Python with it."""

    def __init__(self, tree: tuple, flags: int):
        self.flags = flags | re.DOTALL
        self.exact = True  # Python finds the longest match too
        self.backs = False
        self._variable = 0  # characters that variable parts so far may take
        self.constant, self.degree = self._cost(tree, 0)
        self._walk(tree)

    def _first(self, tree: tuple) -> tuple[int, bool]:
        """The characters it may start with, and whether it may be empty."""
        match tree[0]:
            case "set":
                return _mask(tree[1], self.flags), False
            case "group":
                return self._first(tree[2])
            case "rep":
                mask, empty = self._first(tree[1])
                return mask, empty or tree[2] == 0
            case "alt":
                firsts = [self._first(t) for t in tree[1]]
                return functools.reduce(int.__or__, (m for m, _ in firsts)), any(
                    e for _, e in firsts
                )
            case "cat":
                mask = 0
                for item in tree[1]:
                    more, empty = self._first(item)
                    mask |= more
                    if not empty:
                        return mask, False
                return mask, True
            case "back":
                return _ALL, True
        return 0, True

    def _distinct(self, options: list[tuple]) -> bool:
        """Whether at most one of the alternatives can match at a position."""
        firsts = [self._first(t) for t in options]
        seen = 0
        for mask, empty in firsts:
            if empty or mask & seen:
                break
            seen |= mask
        else:
            return True
        words = []
        for option in options:
            if _literal(option):
                words.append(option[1])
            elif option[0] == "cat" and all(map(_literal, option[1])):
                words.append("\0".join([item[1] for item in option[1]]))
        if len(words) < len(options) or self.flags & re.IGNORECASE:
            return False
        for word, other in itertools.product(words, words):
            # By identity: equal single characters are one object, and Python's `re` makes one set
            # of them; longer words that are equal are two, and it would try them one by one.
            if word is not other and (other + "\0").startswith(word + "\0"):
                return False
        return True

    def _cost(self, tree: tuple, after: int) -> tuple[float, float]:
        """Bounds the ways to match at one place: (constant, degree) for constant * n ** degree.

        Args:
          after: what may follow the node.
        """
        match tree[0]:
            case "group":
                return self._cost(tree[2], after)
            case "cat":
                constant, degree = 1.0, 0.0
                for item in reversed(tree[1]):
                    c, d = self._cost(item, after)
                    constant, degree = constant * c, degree + d
                    mask, empty = self._first(item)
                    after = mask | after if empty else mask
                return constant, degree
            case "alt":
                costs = [self._cost(t, after) for t in tree[1]]
                join = max if self._distinct(list(tree[1])) else sum
                return float(join(c for c, _ in costs)), max(d for _, d in costs)
            case "rep":
                _, body, low, high = tree
                first, empty = self._first(body)
                c, d = self._cost(body, first | after)
                if (c > 1 or d or empty) and (high is None or high > 1):
                    if high is None or d or empty:
                        return 1.0, math.inf
                    return min(c**high, 1e30), 0.0
                if first & after == 0 or low == high:
                    return c, d
                return (c, d + 1) if high is None else (c * (high - low + 1), d)
            case "back":
                self.backs = True
        return 1.0, 0.0

    def _walk(self, tree: tuple) -> None:
        """Finds parts where taking the most first need not give the longest match."""
        match tree[0]:
            case "group":
                self._walk(tree[2])
            case "cat":
                for item in tree[1]:
                    self._walk(item)
            case "alt":
                if not self._distinct(list(tree[1])):
                    self.exact = False
                for item in tree[1]:
                    self._walk(item)
            case "rep":
                _, body, low, high = tree
                first, _ = self._first(body)
                if body[0] == "set":
                    if low != high:
                        self._variable |= first
                    return
                if low != high and first & self._variable:
                    self.exact = False
                self._walk(body)
                if self._trailing(body) & first:
                    self.exact = False

    def _trailing(self, tree: tuple) -> int:
        """The characters of the variable part that a tree ends with."""
        match tree[0]:
            case "group":
                return self._trailing(tree[2])
            case "cat":
                return self._trailing(tree[1][-1])
            case "alt":
                return functools.reduce(int.__or__, map(self._trailing, tree[1]))
            case "rep":
                return self._first(tree[1])[0] if tree[2] != tree[3] else 0
        return 0


def _literal(tree: tuple) -> bool:
    return tree[0] == "set" and (
        len(tree[1]) == 1 or (len(tree[1]) == 2 and tree[1][0] == "\\" and not tree[1][1].isalnum())
    )


class Match:
    """A match without groups, with the methods of re.Match that the commands use."""

    __slots__ = ("_text", "_start", "_end")

    def __init__(self, text: str, start: int, end: int):
        self._text, self._start, self._end = text, start, end

    def start(self) -> int:
        """Returns where the match begins."""
        return self._start

    def end(self) -> int:
        """Returns where the match ends."""
        return self._end

    def span(self) -> tuple[int, int]:
        """Returns where the match begins and ends."""
        return self._start, self._end

    def group(self, number: int = 0) -> str | None:
        """Returns the matched text; an automaton knows no other group."""
        return self._text[self._start : self._end] if number == 0 else None


class Regex:
    """A compiled POSIX regular expression.

    Attributes:
      groups: how many groups it has.
      test: (text) -> true if it matches anywhere.
      find: (text, start=0) -> the leftmost longest match (re.Match or Match), or None. Groups are
        those of Python.
    """

    __slots__ = ("groups", "test", "find", "_python", "_tree", "_flags", "_analysis", "_automaton")

    def __init__(self, tree: tuple, groups: int, flags: int):
        self.groups = groups
        self._flags = flags
        self._tree = tree
        self._python = re.compile(_python(tree, bool(flags & re.MULTILINE)), flags | re.DOTALL)
        self._analysis = analysis = Analysis(tree, flags)
        self._automaton: Automaton | None = None
        cheap = analysis.degree == 0 and analysis.constant < 1000
        self.test: Callable = self._python.search if cheap else self._test
        self.find: Callable = self._python.search if cheap and analysis.exact else self._find

    def _cheap(self, length: int) -> bool:
        a = self._analysis
        return a.degree < 12 and a.constant * (length + 1.0) ** (a.degree + 1) <= MAX_COST

    def _dfa(self) -> Automaton:
        if self._automaton is None:
            if self._analysis.backs:
                raise Unsupported("back-reference in a regular expression of this kind")
            self._automaton = Automaton(self._tree, self._flags)
        return self._automaton

    def _test(self, text: str) -> object:
        return self._python.search(text) if self._cheap(len(text)) else self._dfa().test(text)

    def _find(self, text: str, start: int = 0) -> re.Match | Match | None:
        cheap = self._cheap(len(text))
        if cheap and self._analysis.exact:
            return self._python.search(text, start)
        span = self._dfa().find(text, start)
        if span is None:
            return None
        if not self.groups:
            return Match(text, *span)
        if cheap and (match := self._python.fullmatch(text, *span)):
            return match
        raise Unsupported("groups in a regular expression of this kind")


@functools.lru_cache(1024)
def compile_regex(
    pattern: str,
    syntax: str = "bre",
    dialect: str = "grep",
    ignore_case: bool = False,
    lines: bool = False,
    whole: str = "",
) -> Regex:
    """Compiles a pattern.

    Args:
      pattern: the text, as characters or as bytes (`options.to_bytes`), like the texts it will
        meet; the locale is C.
      syntax: bre, ere, emacs (find's default) or fixed (grep -F).
      dialect: grep, sed (also bash's =~ and find) or awk: what odd patterns mean.
      ignore_case: as -i.
      lines: ^ and $ also match at newlines inside the text (sed's M).
      whole: "word" as grep -w, "line" as grep -x.

    Raises:
      RegexError: with the message of the GNU library.
      Unsupported: for what is real but not simulated.
    """
    tree, groups = parse(pattern, syntax, dialect)
    if whole:
        sides = ("after_nonword", "before_nonword") if whole == "word" else ("bos", "eos")
        tree = ("cat", [("at", sides[0]), tree, ("at", sides[1])])
    flags = re.ASCII | (re.IGNORECASE if ignore_case else 0) | (re.MULTILINE if lines else 0)
    try:
        return Regex(tree, groups, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise Unsupported(f"regular expression {pattern[:40]!r}") from error
