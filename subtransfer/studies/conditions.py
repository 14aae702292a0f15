"""Conditions on rows, as SQL writes them: `objective = 'sft' and config.base.width in (32, 64) and
not purity is null`.

Names need no quotes for their dots, and those of config fields no "config.". As in SQL a comparison
with nothing (null) is neither true nor false, and a row passes only if the whole is true.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from subtransfer.config.checks import nearest
from subtransfer.runtime.errors import UserError

Row = Mapping[str, Any]
Test = Callable[[Row], bool | None]

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<text>'(?:[^']|'')*')|"(?P<quoted>[^"]*)"
    |(?P<word>[A-Za-z_][\w.]*)|(?P<sign><=|>=|<>|!=|==|[=<>(),]))""",
    re.VERBOSE,
)
_SIGNS = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_KINDS = {bool: "true or false", str: "a text in single quotes", float: "a number"}


def resolve(name: str, columns: Mapping[str, type]) -> str:
    """A column's full name.

    Raises:
      UserError: there is no such column.
    """
    for full in (name, f"config.{name}"):
        if full in columns:
            return full
    raise UserError(f"There is no column {name!r}; the nearest is {nearest(name, columns)!r}.")


def parse(text: str, columns: Mapping[str, type]) -> Callable[[Row], bool]:
    """The condition as a function of a row; empty text holds everywhere.

    Args:
      columns: the type of each, of bool, int, float and str.

    Raises:
      UserError: it is no condition, or compares with something of another type.
    """
    if not text.strip():
        return lambda row: True
    test = _Parser(text, columns).whole()
    return lambda row: test(row) is True


def _not(test: Test) -> Test:
    def negated(row: Row) -> bool | None:
        found = test(row)
        return None if found is None else not found

    return negated


def _decided(tests: list[Test], decisive: bool) -> Test:
    """The first decisive one decides (false of "and", true of "or"); else anything unknown leaves
    the whole unknown.
    """

    def joined(row: Row) -> bool | None:
        found = [test(row) for test in tests]
        return decisive if decisive in found else None if None in found else not decisive

    return joined


class _Parser:
    """Recursive descent: or, and, not, parentheses, comparison."""

    def __init__(self, text: str, columns: Mapping[str, type]):
        self.text, self.columns, self.at = text, columns, 0
        self.tokens: list[tuple[str, str]] = []
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                raise UserError(
                    f"The condition {text!r} cannot be read at {text[place:].strip()!r}."
                )
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            place = match.end()

    def whole(self) -> Test:
        test = self.either()
        if self.at < len(self.tokens):
            raise self.wrong("'and', 'or' or the end")
        return test

    def wrong(self, expected: str) -> UserError:
        there = repr(self.tokens[self.at][1]) if self.at < len(self.tokens) else "its end"
        return UserError(f"The condition {self.text!r} has {there} where {expected} should be.")

    def take(self, *words: str) -> bool:
        """Whether the next tokens are these words or signs; if so they are passed."""
        coming = self.tokens[self.at : self.at + len(words)]
        found = [
            value.lower() if kind in ("word", "sign") else None for kind, value in coming
        ] == list(words)
        self.at += len(words) if found else 0
        return found

    def either(self) -> Test:
        tests = [self.both()]
        while self.take("or"):
            tests.append(self.both())
        return tests[0] if len(tests) == 1 else _decided(tests, True)

    def both(self) -> Test:
        tests = [self.negated()]
        while self.take("and"):
            tests.append(self.negated())
        return tests[0] if len(tests) == 1 else _decided(tests, False)

    def negated(self) -> Test:
        if self.take("not"):
            return _not(self.negated())
        if self.take("("):
            test = self.either()
            if not self.take(")"):
                raise self.wrong("')'")
            return test
        return self.comparison()

    def comparison(self) -> Test:
        if self.at >= len(self.tokens) or self.tokens[self.at][0] not in ("word", "quoted"):
            raise self.wrong("the name of a column")
        name = resolve(self.tokens[self.at][1], self.columns)
        self.at += 1
        if self.take("is", "not", "null"):
            return lambda row: row.get(name) is not None
        if self.take("is", "null"):
            return lambda row: row.get(name) is None
        absent = self.take("not", "in")
        if absent or self.take("in"):
            test = self.member(name)
            return _not(test) if absent else test
        sign = next((sign for sign in _SIGNS if self.take(sign)), None)
        if sign is None:
            raise self.wrong("=, !=, <, <=, >, >=, in or is")
        value, compare = self.literal(name), _SIGNS[sign]
        return lambda row: None if row.get(name) is None else compare(row[name], value)

    def member(self, name: str) -> Test:
        if not self.take("("):
            raise self.wrong("'('")
        values = [self.literal(name)]
        while self.take(","):
            values.append(self.literal(name))
        if not self.take(")"):
            raise self.wrong("',' or ')'")
        return lambda row: None if row.get(name) is None else row[name] in values

    def literal(self, name: str) -> Any:
        """A value of the column's type."""
        wanted = {int: float}.get(self.columns[name], self.columns[name])
        kind, token = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        value: Any = None
        if kind == "text":
            value = token[1:-1].replace("''", "'")
        elif kind == "number":
            value = float(token)
        elif kind == "word" and token.lower() in ("true", "false"):
            value = token.lower() == "true"
        if type(value) is not wanted:
            raise self.wrong(f"{_KINDS[wanted]} (as {name} is)")
        self.at += 1
        return value
