"""The functions of awk."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from shellworld.commands.awk_lexer import AwkError
from shellworld.commands.awk_runtime import AwkFailure, split_text
from shellworld.commands.awk_values import Array, Field, Value, format_text, number, text_of
from shellworld.language.regexes import Regex

if TYPE_CHECKING:
    from shellworld.commands.awk_compiler import Compiler, Expression

_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_UPPER = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _safe(function: Callable[..., float]) -> Callable[..., float]:
    def call(*values: float) -> float:
        try:
            return float(function(*values))
        except OverflowError:
            return math.inf
        except ValueError:
            return -math.inf if values[0] == 0 and function is math.log else -math.nan

    return call


_MATH = {
    "sin": _safe(math.sin),
    "cos": _safe(math.cos),
    "atan2": _safe(math.atan2),
    "exp": _safe(math.exp),
    "log": _safe(math.log),
    "sqrt": _safe(math.sqrt),
    "int": _safe(math.trunc),
}


def compile_builtin(compiler: Compiler, name: str, arguments: list[tuple]) -> Expression:
    """A call of a built-in function."""
    runtime, variables = compiler.runtime, compiler.runtime.variables

    def text(value: Value) -> str:
        return text_of(value, variables["CONVFMT"])

    if name in ("sub", "gsub"):
        return _substitute(compiler, name == "gsub", arguments)
    if name == "split":
        return _split(compiler, arguments)
    if name == "match":
        subject, pattern = compiler.expression(arguments[0]), compiler.pattern(arguments[1])

        def match() -> float:
            found = pattern().find(text(subject()))
            start, end = found.span() if found else (-1, -2)
            variables["RSTART"], variables["RLENGTH"] = float(start + 1), float(end - start)
            return float(start + 1)

        return match
    if name == "length" and arguments and arguments[0][0] == "variable":
        value = compiler.argument(arguments[0])

        def length() -> float:
            found = value()
            if isinstance(found, (str, float)):
                return float(len(text(found)))
            return float(len(found)) if isinstance(found, Array) else 0.0

        return length
    values = [compiler.expression(argument) for argument in arguments]
    if name in _MATH:
        function = _MATH[name]
        return lambda: function(*(number(value()) for value in values))
    if name == "length":
        return lambda: float(len(text(values[0]() if values else runtime.get(0))))
    if name == "substr":
        return lambda: _substr(text(values[0]()), *(number(value()) for value in values[1:]))
    if name == "index":
        return lambda: float(text(values[0]()).find(text(values[1]())) + 1)
    if name == "sprintf":

        def sprintf() -> str:
            template, *rest = [value() for value in values]
            result, enough = format_text(text(template), rest, variables["CONVFMT"])
            if not enough:
                raise AwkFailure("not enough arguments passed to sprintf")
            return result

        return sprintf
    if name in ("tolower", "toupper"):
        table = _LOWER if name == "tolower" else _UPPER
        return lambda: text(values[0]()).translate(table)
    if name == "system":
        return lambda: runtime.system(text(values[0]()))
    if name == "close":
        return lambda: runtime.close(text(values[0]()))

    def fflush() -> float:
        for value in values:
            value()
        runtime.flush()
        return 0.0

    return fflush


def _substr(text: str, start: float, length: float = 2147483647.0) -> str:
    """Mawk's substr: both numbers are cut to whole ones, and a start below 0 lengthens the part."""
    if math.isnan(start) or math.isnan(length):
        return ""
    first, count = (int(max(min(n, 2147483647.0), -2147483647.0)) for n in (start, length))
    if first < 0:
        count -= first
    first = max(first, 1)
    return str(text[first - 1 : first - 1 + max(count, 0)])


def _split(compiler: Compiler, arguments: list[tuple]) -> Expression:
    if arguments[1][0] != "variable":
        raise AwkError("syntax error: split needs an array")
    subject, array = compiler.expression(arguments[0]), compiler.array(arguments[1][1])
    runtime = compiler.runtime
    separator: Callable[[], str | Regex]
    if len(arguments) < 3:
        separator = lambda: runtime.text("FS")  # noqa: E731
    elif arguments[2][0] == "regex":
        separator = compiler.pattern(arguments[2])
    else:
        given = compiler.expression(arguments[2])
        separator = lambda: text_of(given())  # noqa: E731

    def split() -> float:
        parts = split_text(text_of(subject(), runtime.variables["CONVFMT"]), separator())
        where = array()
        where.clear()
        where.by_text = False
        where.numbers.clear()
        runtime.ctx.tick(len(parts) >> 4)
        for at, part in enumerate(parts, 1):
            where[where.use(float(at), "%d")] = Field(part)
        return float(len(parts))

    return split


def _replacement(text: str) -> list[str | None]:
    """A replacement's pieces; None stands for the match."""
    pieces: list[str | None] = []
    piece = ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\" and text[at + 1 : at + 2] in ("&", "\\"):
            piece += text[at + 1]
            at += 2
            continue
        if char == "&":
            pieces += [piece, None]
            piece = ""
        else:
            piece += char
        at += 1
    return [*pieces, piece]


def _substitute(compiler: Compiler, everywhere: bool, arguments: list[tuple]) -> Expression:
    pattern, replacement = compiler.pattern(arguments[0]), compiler.expression(arguments[1])
    target = arguments[2] if len(arguments) > 2 else ("field", ("number", 0.0))
    if target[0] not in ("variable", "index", "field", "group"):
        raise AwkError("syntax error: sub and gsub need a variable")
    locate, get, put = compiler.place(target)
    variables, ctx = compiler.runtime.variables, compiler.runtime.ctx

    def substitute() -> float:
        regex = pattern()
        pieces = _replacement(text_of(replacement(), variables["CONVFMT"]))
        place = locate()
        text = text_of(get(place), variables["CONVFMT"])
        out: list[str] = []
        copied = at = count = 0
        while at <= len(text) and (match := regex.find(text, at)):
            start, end = match.span()
            if not (start == end == copied and count):  # no empty match right behind another
                out.append(text[copied:start])
                out += [text[start:end] if piece is None else piece for piece in pieces]
                copied = end
                count += 1
                ctx.tick()
                if not everywhere:
                    break
            at = end if end > start else end + 1
        if count:
            out.append(text[copied:])
            result = "".join(out)
            ctx.meter.word(len(result))
            put(place, result)
        return float(count)

    return substitute
