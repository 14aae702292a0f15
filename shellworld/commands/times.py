"""Logical time as text, and the commands date and sleep."""

from __future__ import annotations

import datetime
import functools
import re

from shellworld.commands import Context, Unsupported, command
from shellworld.commands.options import Options, quote, tool

HALF_YEAR = 31556952 // 2
_DIRECTIVE = re.compile(r"%([-_0^#]*)(\d*)(:{0,3}[a-zA-Z%+])")
_DAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split()
_MONTHS = (
    "January February March April May June July August September October November December".split()
)
_EXPANDED = {
    "D": "%m/%d/%y",
    "F": "%Y-%m-%d",
    "T": "%H:%M:%S",
    "R": "%H:%M",
    "c": "%a %b %e %H:%M:%S %Y",
    "x": "%m/%d/%y",
    "X": "%H:%M:%S",
    "r": "%I:%M:%S %p",
    "h": "%b",
    "+": "%a %b %e %H:%M:%S %Z %Y",
}


def at(seconds: int) -> datetime.datetime:
    """Returns seconds since the epoch as a date in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


@functools.lru_cache(4096)
def strftime(template: str, seconds: int, nanoseconds: int = 0) -> str:
    """Returns a time as date +FORMAT prints it, in UTC and the C locale.

    Raises:
      Unsupported: for rare directives.
    """
    moment = at(seconds)

    def one(m: re.Match) -> str:
        flag, width, letter = m[1][-1:], m[2], m[3]
        if letter in _EXPANDED:
            return strftime(_EXPANDED[letter], seconds)
        numbers = {
            "Y": (moment.year, 4),
            "m": (moment.month, 2),
            "d": (moment.day, 2),
            "H": (moment.hour, 2),
            "M": (moment.minute, 2),
            "S": (moment.second, 2),
            "j": (moment.timetuple().tm_yday, 3),
            "y": (moment.year % 100, 2),
            "C": (moment.year // 100, 2),
            "I": ((moment.hour - 1) % 12 + 1, 2),
            "s": (seconds, 1),
            "u": (moment.isoweekday(), 1),
            "w": (moment.isoweekday() % 7, 1),
            "V": (moment.isocalendar()[1], 2),
            "G": (moment.isocalendar()[0], 4),
            "U": (int(moment.strftime("%U")), 2),
            "W": (int(moment.strftime("%W")), 2),
            "N": (nanoseconds, 9),
            "q": ((moment.month + 2) // 3, 1),
        }
        blank = {"e": ("d", 2), "k": ("H", 2), "l": ("I", 2)}
        if letter in blank:
            value, digits = numbers[blank[letter][0]][0], 2
            if flag == "-":
                return str(value)
            fill = "0" if flag == "0" else ""
            return f"{value:{fill}{width or digits}d}"
        if letter in numbers:
            value, digits = numbers[letter]
            if letter == "N" and width:
                return f"{value:09d}"[: int(width)]
            if flag == "-":
                return str(value)
            return f"{value:{width or digits}d}" if flag == "_" else f"{value:0{width or digits}d}"
        texts = {
            "a": _DAYS[moment.isoweekday() % 7][:3],
            "A": _DAYS[moment.isoweekday() % 7],
            "b": _MONTHS[moment.month - 1][:3],
            "B": _MONTHS[moment.month - 1],
            "p": "AM" if moment.hour < 12 else "PM",
            "P": "am" if moment.hour < 12 else "pm",
            "Z": "UTC",
            "z": "+0000",
            ":z": "+00:00",
            "n": "\n",
            "t": "\t",
            "%": "%",
        }
        if letter not in texts or width:
            raise Unsupported(f"time format %{letter}")
        return texts[letter].upper() if flag == "^" else texts[letter]

    return _DIRECTIVE.sub(one, template)


_RELATIVE = re.compile(
    r"([+-]?)\s*(\d+)?\s*(second|sec|minute|min|hour|day|week|fortnight|month|year)s?(\s+ago)?",
    re.I,
)
_UNITS = {
    "second": 1,
    "sec": 1,
    "minute": 60,
    "min": 60,
    "hour": 3600,
    "day": 86400,
    "week": 604800,
    "fortnight": 1209600,
}
_ISO = re.compile(
    r"(\d{4})-(\d{1,2})-(\d{1,2})(?:[T "
    r"]\s*(\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?)?\s*(?:Z|UTC|\+00:?00)?"
)


def parse_date(text: str, now: int) -> int | None:
    """Returns the seconds since the epoch of a date as -d takes it; None if it is none.

    Raises:
      Unsupported: for rare forms.
    """
    text = text.strip()
    m = re.fullmatch(r"@(-?\d{1,12})(?:\.\d*)?", text)
    if m:
        return int(m[1])
    start = now
    rest = text
    m = _ISO.match(text)
    if m:
        try:
            parts = [int(g or 0) for g in m.groups()]
            start = int(datetime.datetime(*parts, tzinfo=datetime.UTC).timestamp())  # type: ignore[misc, arg-type]
        except ValueError:
            return None
        rest = text[m.end() :].strip()
    for word, shift in (("now", 0), ("today", 0), ("yesterday", -86400), ("tomorrow", 86400)):
        if rest.lower().startswith(word):
            start += shift
            rest = rest[len(word) :].strip()
    while rest:
        m = _RELATIVE.match(rest)
        if not m:
            if re.search(r"[a-zA-Z]{3}|\d", rest) and not re.fullmatch(
                r"[a-z]+|[\d-]+|\w+ \w+", rest
            ):
                raise Unsupported("date of this form")
            if re.match(
                r"(mon|tue|wed|thu|fri|sat|sun|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|next|last|noon|mid|\d)",
                rest,
                re.I,
            ):
                raise Unsupported("date of this form")
            return None
        amount = int(m[2] or 1) * (-1 if (m[1] == "-") != bool(m[4]) else 1)
        unit = m[3].lower()
        if unit in ("month", "year"):
            moment = at(start)
            month = moment.year * 12 + moment.month - 1 + amount * (12 if unit == "year" else 1)
            first = datetime.datetime(month // 12, month % 12 + 1, 1, tzinfo=datetime.UTC)
            start = int(first.timestamp()) + (moment.day - 1) * 86400 + start % 86400
        else:
            start += amount * _UNITS[unit]
        rest = rest[m.end() :].strip()
    return start if text else now - now % 86400


@tool(
    "date",
    short="d:uRr:I::s:f:",
    long="date=d: utc=u universal=u rfc-email=R reference=r: iso-8601=I:: set=s: file=f: "
    "rfc-3339=rfc-3339:",
)
def date(ctx: Context, options: Options, operands: list[str]) -> int:
    """Prints a time: -d, -r, -R, -I, -u, +FORMAT."""
    seconds: int | None = ctx.fs.clock
    template = "%a %b %e %H:%M:%S %Z %Y"
    for option, value in options:
        if option == "d":
            seconds = parse_date(value, ctx.fs.clock)
            if seconds is None:
                return ctx.fail(f"invalid date {quote(value)}")
        elif option == "r":
            if not ctx.fs.exists(ctx.path(value), ctx.who):
                return ctx.fail(f"{value}: No such file or directory")
            seconds = ctx.fs.stat(ctx.path(value), ctx.who).mtime
        elif option == "R":
            template = "%a, %d %b %Y %H:%M:%S %z"
        elif option == "I":
            forms = {
                "": "%F",
                "date": "%F",
                "hours": "%FT%H%:z",
                "minutes": "%FT%H:%M%:z",
                "seconds": "%FT%H:%M:%S%:z",
            }
            if value not in forms:
                raise Unsupported("date -I")
            template = forms[value]
        elif option == "rfc-3339":
            template = {"date": "%F", "seconds": "%F %H:%M:%S%:z"}.get(value) or "%F %H:%M:%S.%N%:z"
        elif option != "u":
            raise Unsupported(f"date -{option}")
    if len(operands) > 1:
        return ctx.fail(f"extra operand {quote(operands[1])}")
    if operands:
        if not operands[0].startswith("+"):
            raise Unsupported("setting the date")
        template = operands[0][1:]
    assert seconds is not None
    if not 0 <= seconds < 2**35:
        raise Unsupported("date outside 1970..3058")
    ctx.write(strftime(template, seconds) + "\n")
    return 0


@command("sleep")
def sleep(ctx: Context, argv: list[str]) -> int:
    """Moves the world's clock on, and waits for nothing."""
    total = 0.0
    if len(argv) == 1:
        ctx.error("sleep: missing operand\nTry 'sleep --help' for more information.\n")
        return 1
    for word in argv[1:]:
        m = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smhd]?)", word)
        if not m:
            if word in ("infinity", "inf", "--help", "--version"):
                raise Unsupported(f"sleep {word}")
            ctx.error(
                f"sleep: invalid time interval {quote(word)}\nTry 'sleep --help' for more "
                "information.\n"
            )
            return 1
        total += float(m[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[m[2]]
    ctx.fs.clock += min(int(total), 10**9)
    return 0
