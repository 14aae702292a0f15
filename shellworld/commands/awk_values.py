"""awk's values: text to numbers and back, comparison, formats, the order of keys.

All as mawk does it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

from shellworld.commands import Unsupported

MAX_INT = 2147483647


class Field(str):
    """Text from input: it compares as a number if it looks like one."""

    __slots__ = ()


class _Nothing(Field):
    """The value of a variable that was never set: both "" and 0."""

    __slots__ = ()


UNSET = _Nothing("")
Value = float | str
_NUMBER = re.compile(
    r"[ \t\n\r\f\v]*[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
)
_LETTERS = re.compile(r"[ \t\n\r\f\v]*[-+]?(?:inf|nan)", re.IGNORECASE)
_SPEC = re.compile(r"%([-+ #0]*)(\*|\d*)(?:\.(\*|\d*))?([hlL]*)(.?)", re.DOTALL)


def number(value: Value) -> float:
    """The number that a value stands for."""
    if isinstance(value, float):
        return value
    match = _NUMBER.match(value)
    if match is None:
        if value and _LETTERS.match(value):
            raise Unsupported("awk with inf and nan as text")
        return 0.0
    text = match[0]
    if "x" in text or "X" in text:
        return float(int(text, 16))
    return float(text)


def looks_numeric(text: str) -> bool:
    """Whether a text from the input counts as a number, blanks around it aside."""
    match = _NUMBER.match(text)
    return match is not None and not text[match.end() :].strip(" \t\n\r\f\v")


def text_of(value: Value, form: str = "%.6g") -> str:
    """The text that a value stands for; `form` is CONVFMT or OFMT."""
    if not isinstance(value, float):
        return value
    # mawk prints whole numbers of 32 bits as such, whatever the format says.
    if -MAX_INT - 1 <= value <= MAX_INT and value == int(value):
        return str(int(value))
    if math.isnan(value):
        return "nan" if math.copysign(1.0, value) > 0 else "-nan"
    if form == "%.6g":
        return f"{value:.6g}"
    return format_text(form, [value])[0]


def truth(value: Value) -> bool:
    """Whether a value is true: a number that is not 0, a text that is not empty."""
    if isinstance(value, float):
        return value != 0.0
    if isinstance(value, Field) and looks_numeric(value):
        return number(value) != 0.0
    return value != ""


def compare(left: Value, right: Value, convfmt: str) -> int:
    """Below, at or above 0."""
    numeric = True
    for value in (left, right):
        if not isinstance(value, float) and not (
            isinstance(value, Field) and (value is UNSET or looks_numeric(value))
        ):
            numeric = False
    if numeric:
        a, b = number(left), number(right)
        return (a > b) - (a < b)
    x, y = text_of(left, convfmt), text_of(right, convfmt)
    return (x > y) - (x < y)


def _integer(value: Value) -> int:
    x = number(value)
    if math.isnan(x):
        return -MAX_INT - 1
    return int(max(min(x, MAX_INT), -MAX_INT))


def format_text(template: str, values: list[Value], convfmt: str = "%.6g") -> tuple[str, bool]:
    """printf: the text and whether there were enough values; it ends where they did not suffice."""
    out: list[str] = []
    at = used = 0

    def take() -> Value:
        nonlocal used
        used += 1
        return values[used - 1]

    for match in _SPEC.finditer(template):
        out.append(template[at : match.start()])
        at = match.end()
        flags, width, precision, _, kind = match.groups()
        if kind == "%" and not (flags or width or precision):
            out.append("%")
            continue
        if kind == "" or kind not in "diouxXeEfFgGcs":
            raise Unsupported(f"awk printf %{kind}")
        stars = (width == "*") + (precision == "*")
        if used + stars + 1 > len(values):
            return "".join(out), False
        if width == "*":
            width = str(_integer(take()))
        if precision == "*":
            precision = str(_integer(take()))
        if int(width or 0) > 10_000 or int(precision or 0) > 10_000:
            raise Unsupported("awk printf of this width")
        value = take()
        spec = f"%{flags}{width}" + ("" if precision is None else f".{precision}")
        if kind in "di":
            out.append(_digits(spec + "d", _integer(value), flags, precision))
        elif kind in "ouxX":
            whole = int(max(min(number(value), 2.0**32 - 1), 0.0))
            out.append(_alternate(spec, kind, whole, flags))
        elif kind == "c":
            char = chr(int(value) & 255) if isinstance(value, float) else value[:1]
            out.append(f"%{flags.replace('0', '')}{width}s" % char)
        elif kind == "s":
            spec = spec.replace("0", "", flags.count("0")).translate({ord(c): None for c in "+ #"})
            out.append(f"{spec}s" % text_of(value, convfmt))
        else:
            x = number(value)
            if math.isinf(x) or math.isnan(x):
                raise Unsupported("awk printf of inf and nan")
            out.append((spec + kind) % x)
    out.append(template[at:])
    return "".join(out), True


def _digits(spec: str, value: int, flags: str, precision: str | None) -> str:
    # C ignores the flag 0 where a precision is given; Python does not.
    if precision is not None and "0" in flags:
        spec = spec.replace("0", "", 1)
    return spec % value


def _alternate(spec: str, kind: str, value: int, flags: str) -> str:
    if kind == "u":
        return (spec.replace("+", "").replace(" ", "") + "d") % value
    if "#" in flags and kind == "o":
        if set(spec) - set("%#"):
            raise Unsupported("awk printf %#o with a width")
        return f"0{value:o}" if value else "0"
    if "#" in flags and value == 0:
        spec = spec.replace("#", "")
    return (spec + kind) % value


def _hash(text: str) -> int:
    """FNV-1a, by which mawk spreads keys."""
    h = 2166136261
    for char in text:
        h = ((h ^ ord(char)) * 16777619) & 0xFFFFFFFF
    return h


class Array(dict):
    """An awk array: keys are text.

    Its order is kept so that for-in goes through it as mawk's hash table does. mawk keeps 64
    lists by hash, each with the key last used first; a key used as a number enters them only
    once a key was used as text, or at a loop.
    """

    __slots__ = ("by_text", "numbers")

    def __init__(self) -> None:
        super().__init__()
        self.by_text = False
        self.numbers: set[str] = set()

    def use(self, key: Value, convfmt: str, create: bool = True) -> str | None:
        """The key as text, present unless `create` is false; None if it is not there."""
        text = text_of(key, convfmt)
        if isinstance(key, float) and key == int(key):
            if self.by_text:
                if text in self.numbers and text in self:
                    return text
            elif text not in self and not create:
                return None
            self.numbers.add(text)
        elif not self.by_text:
            self.associate()
        if text in self:
            self[text] = self.pop(text)
        elif create:
            self[text] = UNSET
        else:
            return None
        return text

    def associate(self) -> None:
        """Gives the keys used as numbers their places among the texts."""
        self.by_text = True
        buckets: list[list[str]] = [[] for _ in range(64)]
        for key in self:
            # mawk's table of numbers has 64 lists, too, by the number itself.
            buckets[int(key) & 63].insert(0, key)
        values = dict(self)
        self.clear()
        for bucket in buckets:
            for key in bucket:
                self[key] = values[key]

    def ordered(self) -> list[str]:
        """The keys as for-in visits them."""
        if len(self) > 128:
            raise Unsupported("awk for-in over more than 128 keys")
        if not self.by_text:
            self.associate()
        lists: list[list[str]] = [[] for _ in range(64)]
        for key in self:
            lists[_hash(key) & 63].insert(0, key)
        return list(itertools.chain.from_iterable(lists))


def _divide(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if not a or a != a else math.copysign(math.inf, a)


def _modulo(a: float, b: float) -> float:
    return math.fmod(a, b) if b and not math.isinf(a) else -math.nan


def _power(a: float, b: float) -> float:
    try:
        result = a**b
    except OverflowError:
        return math.inf
    except ZeroDivisionError:
        return math.inf
    return result if isinstance(result, float) else -math.nan


OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "%": _modulo,
    "^": _power,
}
ORDERS: dict[str, Callable[[int], bool]] = {
    "<": lambda c: c < 0,
    "<=": lambda c: c <= 0,
    "==": lambda c: c == 0,
    "!=": lambda c: c != 0,
    ">": lambda c: c > 0,
    ">=": lambda c: c >= 0,
}
