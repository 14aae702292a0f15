"""Shell arithmetic: 64-bit integers that wrap, with C's operators and precedence.

Variables hold expressions, which are evaluated where they are named.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

MAX_DEPTH = 30

_TOKEN = re.compile(
    r"\s*(?:(\d+#[0-9A-Za-z@_]+|0[xX][0-9a-fA-F]*|\d\w*)|([A-Za-z_]\w*)"
    r"|(<<=|>>=|\*\*|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&^|]=|[-+*/%<>=!~&^|?:,()\[\]])|(\S))"
)
_BINARY = [
    {"||": 0},
    {"&&": 0},
    {"|": 0},
    {"^": 0},
    {"&": 0},
    {"==": 0, "!=": 0},
    {"<": 0, ">": 0, "<=": 0, ">=": 0},
    {"<<": 0, ">>": 0},
    {"+": 0, "-": 0},
    {"*": 0, "/": 0, "%": 0},
]
_ASSIGN = frozenset("= += -= *= /= %= &= ^= |= <<= >>=".split())


class ArithmeticFault(Exception):
    """The message that bash prints after "bash: line N: EXPRESSION: "."""


class Variables(Protocol):
    """What an expression needs of the shell; `index` is None for a plain name."""

    def arithmetic_get(self, name: str, index: str | None) -> str:
        """Returns the text of a variable, or of its element; "" if it is unset."""

    def arithmetic_set(self, name: str, index: str | None, value: str) -> None:
        """Assigns a number, as text, to a variable or to its element."""


def wrap(value: int) -> int:
    """The value as a signed 64-bit integer."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def literal(text: str) -> int:
    """A constant: decimal, 0octal, 0xhex or base#digits."""
    if text.isdigit() and (text[0] != "0" or text == "0"):
        return wrap(int(text[:400]))
    if "#" in text:
        base_text, _, digits = text.partition("#")
        base = int(base_text[:9])
        if not 2 <= base <= 64:
            raise ArithmeticFault(f'invalid arithmetic base (error token is "{text}")')
    elif text[:2] in ("0x", "0X"):
        base, digits = 16, text[2:] or "0"
    elif text[0] == "0":
        base, digits = 8, text
    else:
        base, digits = 10, text
    value = 0
    for c in digits:
        digit = _digit(c, base)
        if digit >= base:
            raise ArithmeticFault(f'value too great for base (error token is "{text}")')
        value = wrap(value * base + digit)
    return value


def _digit(c: str, base: int) -> int:
    if c.isdigit():
        return int(c)
    if c == "@":
        return 62
    if c == "_":
        return 63
    if c.islower():
        return ord(c) - 87
    return ord(c) - (55 if base <= 36 else 29)


def evaluate(text: str, variables: Variables, depth: int = 0) -> int:
    """The value of an expression (0 if it is empty); raises ArithmeticFault."""
    stripped = text.strip()
    if not stripped:
        return 0
    if stripped.isdigit() and stripped.isascii():
        return literal(stripped)
    return _Evaluator(text, variables, depth).run()


class _Evaluator:
    """Evaluates an expression by recursive descent, as it reads it.

    Attributes:
      live: off in branches that are only skipped, where nothing is assigned.
    """

    def __init__(self, text: str, variables: Variables, depth: int):
        if depth > MAX_DEPTH:
            raise ArithmeticFault(
                f'{text}: expression recursion level exceeded (error token is "{text}")'
            )
        self.text = text
        self.variables = variables
        self.depth = depth
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text):
            m = _TOKEN.match(text, at)
            if not m:
                break
            kind = "number" if m[1] else "name" if m[2] else "operator" if m[3] else "bad"
            self.tokens.append((kind, m[1] or m[2] or m[3] or m[4], m.start(m.lastindex or 0)))
            at = m.end()
        self.i = 0
        self.live = True
        self.nesting = 0

    def fault(self, message: str, at: int | None = None) -> ArithmeticFault:
        i = self.i if at is None else at
        token = ""
        if self.tokens:
            token = self.text[self.tokens[min(i, len(self.tokens) - 1)][2] :]
        return ArithmeticFault(f'{message} (error token is "{token}")')

    def run(self) -> int:
        value = self.comma()
        if self.i < len(self.tokens):
            raise self.fault(
                "syntax error in expression"
                if self.tokens[self.i][0] != "bad"
                else "syntax error: invalid arithmetic operator"
            )
        return value

    def peek(self) -> str:
        return (
            self.tokens[self.i][1]
            if self.i < len(self.tokens) and self.tokens[self.i][0] == "operator"
            else ""
        )

    def take(self, operator: str) -> bool:
        if self.peek() == operator:
            self.i += 1
            return True
        return False

    def comma(self) -> int:
        value = self.assignment()
        while self.take(","):
            value = self.assignment()
        return value

    def assignment(self) -> int:
        self.nesting += 1
        if self.nesting > 60:
            raise self.fault("expression recursion level exceeded")
        start = self.i
        if self.i < len(self.tokens) and self.tokens[self.i][0] == "name":
            name, index = self.reference()
            operator = self.peek()
            if operator in _ASSIGN:
                self.i += 1
                value = self.assignment()
                if operator != "=":
                    value = self.apply(operator[:-1], self.value_of(name, index), value)
                self.nesting -= 1
                return self.store(name, index, value)
            # No assignment: the name is read again, as the beginning of an expression.
            self.i = start
        value = self.ternary()
        if self.peek() in _ASSIGN:
            raise self.fault("attempted assignment to non-variable")
        self.nesting -= 1
        return value

    def reference(self) -> tuple[str, str | None]:
        name = self.tokens[self.i][1]
        self.i += 1
        if self.peek() != "[":
            return name, None
        begin = self.tokens[self.i][2] + 1
        depth = 0
        while self.i < len(self.tokens):
            token = self.tokens[self.i]
            depth += (token[1] == "[") - (token[1] == "]")
            self.i += 1
            if depth == 0:
                return name, self.text[begin : token[2]]
        raise self.fault("bad array subscript")

    def value_of(self, name: str, index: str | None) -> int:
        if not self.live:
            return 0
        text = self.variables.arithmetic_get(name, index)
        return evaluate(text, self.variables, self.depth + 1)

    def store(self, name: str, index: str | None, value: int) -> int:
        if self.live:
            self.variables.arithmetic_set(name, index, str(value))
        return value

    def ternary(self) -> int:
        condition = self.binary(0)
        if not self.take("?"):
            return condition
        live = self.live
        self.live = live and bool(condition)
        first = self.comma()
        if not self.take(":"):
            raise self.fault("`:' expected for conditional expression")
        self.live = live and not condition
        second = self.assignment()
        self.live = live
        return first if condition else second

    def binary(self, level: int) -> int:
        if level == len(_BINARY):
            return self.power()
        left = self.binary(level + 1)
        while (operator := self.peek()) in _BINARY[level]:
            self.i += 1
            if operator in ("&&", "||"):
                live = self.live
                self.live = live and bool(left) == (operator == "&&")
                right = self.binary(level + 1)
                self.live = live
                left = (
                    int(bool(left) and bool(right))
                    if operator == "&&"
                    else int(bool(left) or bool(right))
                )
            else:
                left = self.apply(operator, left, self.binary(level + 1))
        return left

    def power(self) -> int:
        base = self.unary()
        if not self.take("**"):
            return base
        exponent = self.power()
        if exponent < 0:
            if not self.live:
                return 0
            raise self.fault("exponent less than 0", self.i - 1)
        # With the modulus the power stays small on the way; the result is the same.
        return wrap(pow(base, exponent, 1 << 64))

    def unary(self) -> int:
        self.nesting += 1
        if self.nesting > 200:
            raise self.fault("expression recursion level exceeded")
        try:
            return self.unary_inner()
        finally:
            self.nesting -= 1

    def unary_inner(self) -> int:
        if self.take("!"):
            return int(not self.unary())
        if self.take("~"):
            return ~self.unary()
        if self.take("-"):
            return wrap(-self.unary())
        if self.take("+"):
            return self.unary()
        for operator, step in (("++", 1), ("--", -1)):
            if self.peek() == operator:
                self.i += 1
                if self.i < len(self.tokens) and self.tokens[self.i][0] == "name":
                    name, index = self.reference()
                    return self.store(name, index, wrap(self.value_of(name, index) + step))
                return self.unary()
        return self.primary()

    def primary(self) -> int:
        if self.i >= len(self.tokens):
            raise self.fault("syntax error: operand expected")
        kind, text, _ = self.tokens[self.i]
        if kind == "number":
            self.i += 1
            if self.i < len(self.tokens) and self.tokens[self.i][0] in ("number", "name"):
                raise self.fault("syntax error in expression")
            return literal(text)
        if kind == "name":
            name, index = self.reference()
            for operator, step in (("++", 1), ("--", -1)):
                if self.take(operator):
                    value = self.value_of(name, index)
                    self.store(name, index, wrap(value + step))
                    return value
            return self.value_of(name, index)
        if text == "(":
            self.i += 1
            value = self.comma()
            if not self.take(")"):
                raise self.fault("missing `)'")
            return value
        raise self.fault("syntax error: operand expected")

    def apply(self, operator: str, left: int, right: int) -> int:
        if operator in ("/", "%"):
            if right == 0:
                if not self.live:
                    return 0
                raise self.fault("division by 0", self.i - 1)
            # C divides towards zero, Python towards minus infinity.
            quotient = abs(left) // abs(right)
            quotient = quotient if (left < 0) == (right < 0) else -quotient
            return wrap(quotient) if operator == "/" else left - quotient * right
        return _OPERATIONS[operator](left, right)


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: wrap(a + b),
    "-": lambda a, b: wrap(a - b),
    "*": lambda a, b: wrap(a * b),
    "<<": lambda a, b: wrap(a << (b & 63)),
    ">>": lambda a, b: a >> (b & 63),
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "==": lambda a, b: int(a == b),
    "!=": lambda a, b: int(a != b),
    "<": lambda a, b: int(a < b),
    ">": lambda a, b: int(a > b),
    "<=": lambda a, b: int(a <= b),
    ">=": lambda a, b: int(a >= b),
}
