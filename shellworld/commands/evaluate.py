"""expr, and bc for what needs no more than whole numbers."""

from __future__ import annotations

import re
from typing import Any

from shellworld.commands import Context, Unsupported, command
from shellworld.commands.options import from_bytes, to_bytes, usage
from shellworld.language.regexes import RegexError, compile_regex

_LEVELS = (
    ("|",),
    ("&",),
    ("<", "<=", "=", "==", "!=", ">=", ">"),
    ("+", "-"),
    ("*", "/", "%"),
    (":",),
)
_KEYWORDS = ("match", "substr", "index", "length")
MAX_DEPTH = 60


class _ExprError(Exception):
    """A wrong expression; ends expr with status 2 (3 for trouble with a pattern)."""


class _Expr:
    def __init__(self, words: list[str]):
        self.words = words
        self.at = 0
        self.depth = 0

    def next(self) -> str:
        if self.at >= len(self.words):
            before = self.words[self.at - 1] if self.words else ""
            raise _ExprError(f"syntax error: missing argument after '{before}'")
        self.at += 1
        return self.words[self.at - 1]

    def parse(self, level: int = 0) -> str:
        if level == len(_LEVELS):
            return self.operand()
        left = self.parse(level + 1)
        while self.at < len(self.words) and self.words[self.at] in _LEVELS[level]:
            operator = self.next()
            left = self.apply(operator, left, self.parse(level + 1))
        return left

    def operand(self) -> str:
        word = self.next()
        if word == "(":
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise Unsupported("expr of this depth")
            value = self.parse()
            if self.at >= len(self.words):
                raise _ExprError(f"syntax error: expecting ')' after '{self.words[-1]}'")
            if self.next() != ")":
                raise _ExprError(
                    f"syntax error: expecting ')' instead of '{self.words[self.at - 1]}'"
                )
            return value
        if word == ")":
            raise _ExprError("syntax error: unexpected ')'")
        if word == "+":
            return self.next()
        if word in _KEYWORDS:
            return self.keyword(word)
        return word

    def keyword(self, word: str) -> str:
        text = self.operand()
        if word == "length":
            return str(len(text))
        second = self.operand()
        if word == "match":
            return self.apply(":", text, second)
        if word == "index":
            return str(min((at + 1 for at, char in enumerate(text) if char in second), default=0))
        third = self.operand()
        if not (_is_number(second) and _is_number(third)) or int(second) < 1 or int(third) < 1:
            return ""
        return text[int(second) - 1 : int(second) - 1 + int(third)]

    def apply(self, operator: str, left: str, right: str) -> str:
        if operator == "|":
            return left if not _null(left) else right if not _null(right) else "0"
        if operator == "&":
            return "0" if _null(left) or _null(right) else left
        if operator == ":":
            try:
                regex = compile_regex(right, "bre", "sed")
            except RegexError as error:
                raise _ExprError(str(error)) from error
            match = regex.find(left)
            matched = match is not None and match.start() == 0
            if regex.groups:
                return (match.group(1) or "") if matched else ""
            return str(match.end()) if matched else "0"
        if operator in _LEVELS[2]:
            a: Any = left
            b: Any = right
            if _is_number(left) and _is_number(right):
                a, b = int(left), int(right)
            answer = {
                "<": a < b,
                "<=": a <= b,
                "=": a == b,
                "==": a == b,
                "!=": a != b,
                ">=": a >= b,
                ">": a > b,
            }[operator]
            return str(int(answer))
        if not (_is_number(left) and _is_number(right)):
            raise _ExprError("non-integer argument")
        a, b = int(left), int(right)
        if max(len(left), len(right)) > 1000:
            raise Unsupported("expr with such numbers")
        if operator in "/%" and b == 0:
            raise _ExprError("division by zero")
        if operator in "/%":
            quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
            return str(quotient if operator == "/" else a - quotient * b)
        return str({"+": a + b, "-": a - b, "*": a * b}[operator])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", text) is not None


def _null(text: str) -> bool:
    return text == "" or re.fullmatch(r"-?0+", text) is not None


@command("expr")
def expr(ctx: Context, argv: list[str]) -> int:
    """expr: all its operators."""
    words = [to_bytes(word) for word in argv[1:]]
    if words[:1] == ["--"]:
        words = words[1:]
    if words in (["--help"], ["--version"]):
        raise Unsupported(f"expr {words[0]}")
    if not words:
        return usage(ctx, "missing operand", 2)
    parser = _Expr(words)
    try:
        value = parser.parse()
        if parser.at < len(words):
            raise _ExprError(f"syntax error: unexpected argument '{words[parser.at]}'")
    except _ExprError as error:
        return ctx.fail(str(error), 2)
    ctx.write(from_bytes(value) + "\n")
    return int(_null(value))


_BC = re.compile(r"[\d\s+\-*()]*")


@command("bc")
def bc(ctx: Context, argv: list[str]) -> int:
    """bc: lines of sums, differences and products of whole numbers."""
    options = [word for word in argv[1:] if word not in ("-q", "--quiet")]
    if options and options != ["-l"]:
        raise Unsupported("bc with options or files")
    out = []
    for line in re.split("[\n;]", ctx.stdin):
        ctx.tick()
        line = line.strip()
        if not line:
            continue
        if line == "quit":
            break
        if (
            not _BC.fullmatch(line)
            or len(line) > 200
            or re.search(r"\d\s+\d|\+\+|--|\*\s*\*|\(\s*\)|\)\s*[\d(]|\d\s*\(", line)
        ):
            raise Unsupported("bc of more than whole numbers")
        out.append(f"{_sum(line)}\n")
    if any(len(row) > 69 for row in out):
        raise Unsupported("bc of such numbers")
    ctx.write("".join(out))
    return 0


def _sum(line: str) -> int:
    """The value of an expression of whole numbers, +, -, * and parentheses."""
    tokens = re.findall(r"\d+|[-+*()]", line)
    tokens.append("")
    at = depth = 0

    def take() -> str:
        nonlocal at
        at += 1
        return tokens[at - 1]

    def factor() -> int:
        nonlocal depth
        token = take()
        if token == "-":
            return -factor()
        if token == "(":
            depth += 1
            if depth > MAX_DEPTH:
                raise Unsupported("bc of this depth")
            value = total()
            if take() != ")":
                raise Unsupported("bc with errors")
            return value
        if not token.isdigit():
            raise Unsupported("bc with errors")
        return int(token)

    def product() -> int:
        value = factor()
        while tokens[at] == "*":
            take()
            value *= factor()
        return value

    def total() -> int:
        value = product()
        while tokens[at] in ("+", "-"):
            value = value + product() if take() == "+" else value - product()
        return value

    value = total()
    if tokens[at]:
        raise Unsupported("bc with errors")
    return value
