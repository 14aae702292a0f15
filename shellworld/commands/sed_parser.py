"""Parses sed scripts as GNU sed 4.9 does."""

from __future__ import annotations

import dataclasses
import re

from shellworld.commands import Unsupported
from shellworld.language.regexes import Regex, RegexError, compile_regex

_CHARS = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_NUMBERED = re.compile(r"d(\d{1,3})|o([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|c(.)", re.DOTALL)


class SedError(Exception):
    """A script that sed refuses: the message after "-e expression #1, "."""


@dataclasses.dataclass(slots=True)
class Address:
    """One address. `kind`: line, last, step, zero, re, and for the second also plus, multiple."""

    kind: str
    first: int = 0
    step: int = 0
    regex: Regex | None = None  # None where kind is "re": the last one used


@dataclasses.dataclass(slots=True)
class Sed:
    r"""One command.

    Attributes:
      name: the command's letter.
      start, end, negated: addresses and "!".
      text: of a, i, c; the label of b, t, T, :; the file of r, R, w, W; the characters of y.
      number: the exit code of q, Q; the width of l; the n-th match of s (0: the first).
      regex, parts, flags: of s; parts are text, group numbers and "\0" + letter for changes of
        case.
      target: of }, {, b, t, T: where to go on.
      active, until, begun: state of a range; one that begins at a line number begins once.
    """

    name: str
    start: Address | None = None
    end: Address | None = None
    negated: bool = False
    text: str = ""
    number: int = 0
    regex: Regex | None = None
    parts: tuple = ()
    flags: str = ""
    table: dict[int, str] | None = None
    target: int = 0
    active: bool = False
    until: int = -1
    begun: bool = False


def _numbered(match: re.Match) -> str:
    decimal, octal, hexadecimal, control = match.groups()
    if control:
        return chr(ord(control.upper()) ^ 0x40)
    if octal:
        code = int(octal, 8) & 255
    elif decimal:
        code = int(decimal) & 255
    else:
        code = int(hexadecimal, 16)
    return chr(code)


def regex_escapes(text: str) -> str:
    r"""Turns \n, \t, \xHH ... of a regular expression into characters.

    Those that would be special there stay escaped.
    """
    out, at = [], 0
    while at < len(text):
        if text[at] != "\\" or at + 1 == len(text):
            out.append(text[at])
            at += 1
            continue
        match = _NUMBERED.match(text, at + 1)
        char = text[at + 1]
        if match:
            char = _numbered(match)
            out.append("\\" + char if char in "*.[]^$\\/+?(){}|" else char)
            at = match.end()
        else:
            out.append(_CHARS[char] if char in "afnrtv" else "\\" + char)
            at += 2
    return "".join(out)


def text_escapes(text: str) -> str:
    r"""Returns the text of a, i, c: backslashes go, \t and others become characters."""
    out, at = [], 0
    while at < len(text):
        if text[at] == "\\" and at + 1 < len(text):
            match = _NUMBERED.match(text, at + 1)
            out.append(_numbered(match) if match else _CHARS.get(text[at + 1], text[at + 1]))
            at = match.end() if match else at + 2
        else:
            out.append("" if text[at] == "\\" else text[at])
            at += 1
    return "".join(out)


class Parser:
    """Parses one script (all -e and -f joined by newlines).

    Args:
      script: the text.
      extended: -E.
    """

    def __init__(self, script: str, extended: bool):
        self.text = script
        self.at = 0
        self.extended = extended
        self.commands: list[Sed] = []
        self._open: list[int] = []

    # -- characters --------------------------------------------------------------------

    def peek(self) -> str:
        """Returns the next character, which stays; "" at the end."""
        return self.text[self.at : self.at + 1]

    def next(self) -> str:
        """Reads a character; "" at the end."""
        char = self.text[self.at : self.at + 1]
        self.at += 1
        return char

    def skip(self, chars: str) -> None:
        """Skips any of these characters."""
        while self.peek() and self.peek() in chars:
            self.at += 1

    def fail(self, message: str) -> SedError:
        """Returns the error with the place that has been reached."""
        return SedError(f"char {min(self.at, len(self.text))}: {message}")

    def number(self) -> int:
        """Reads a number, whose first digit is at the cursor."""
        match = re.compile(r"[0-9]{1,9}").match(self.text, self.at)
        assert match is not None  # the caller has seen a digit
        self.at = match.end()
        return int(match[0])

    def to_line_end(self) -> str:
        """Reads the rest of the line."""
        end = self.text.find("\n", self.at)
        end = len(self.text) if end < 0 else end
        word, self.at = self.text[self.at : end], end
        return word

    # -- pieces ------------------------------------------------------------------------

    def delimited(self, delimiter: str, regex: bool) -> str | None:
        """Up to the next delimiter, which is taken; None if there is none."""
        out: list[str] = []
        text = self.text
        while self.at < len(text):
            char = text[self.at]
            if char == delimiter:
                self.at += 1
                return "".join(out)
            if char == "\\" and self.at + 1 < len(text):
                following = text[self.at + 1]
                self.at += 2
                if following == delimiter:
                    out.append(
                        following if regex or delimiter not in "&123456789" else "\\" + following
                    )
                elif following == "\n" and regex:
                    out.append("\n")
                else:
                    out.append("\\" + following)
                continue
            if char == "[" and regex:
                bracket = re.compile(
                    r"\[\^?\]?(?:\[:\w+:\]|\[\.[^.]+\.\]|\[=[^=]+=\]|[^\]\n])*\]"
                ).match(text, self.at)
                if bracket:
                    out.append(bracket[0])
                    self.at = bracket.end()
                    continue
            if char == "\n":  # only behind a backslash
                return None
            out.append(char)
            self.at += 1
        return None

    def compile(self, pattern: str, flags: str) -> Regex | None:
        """Compiles a regular expression; None for an empty one, which is the last one used."""
        if not pattern:
            return None
        try:
            flags = flags.upper()
            return compile_regex(
                regex_escapes(pattern),
                "ere" if self.extended else "bre",
                "sed",
                "I" in flags,
                "M" in flags,
            )
        except RegexError as error:
            raise self.fail(str(error)) from error

    def address(self, second: bool) -> Address | None:
        """Reads an address; None if there is none."""
        char = self.peek()
        if char.isdigit():
            first = self.number()
            self.skip(" \t")
            if self.peek() == "~" and not second:
                self.at += 1
                self.skip(" \t")
                step = self.number() if self.peek().isdigit() else 0
                return Address("step", first, step) if step else Address("line", first)
            if first == 0 and not second:
                return Address("zero")
            return Address("line", first)
        if second and char in ("+", "~") and char:
            self.at += 1
            if not self.peek().isdigit():
                raise self.fail("expected number after +/~")
            return Address("plus" if char == "+" else "multiple", self.number())
        if char == "$":
            self.at += 1
            return Address("last")
        if char in ("/", "\\") and char:
            self.at += 1
            delimiter = self.next() if char == "\\" else "/"
            if not delimiter or delimiter == "\n":
                raise self.fail("unexpected `,'")
            pattern = self.delimited(delimiter, True)
            if pattern is None:
                raise self.fail("unterminated address regex")
            flags = ""
            while self.peek() in ("I", "M") and self.peek():
                flags += self.next()
            return Address("re", regex=self.compile(pattern, flags))
        return None

    def replacement(self, text: str) -> tuple:
        """Takes the replacement of s apart (see Sed.parts)."""
        parts: list[str | int] = [""]

        def add(part: str) -> None:
            if isinstance(parts[-1], str) and not parts[-1].startswith("\0"):
                parts[-1] += part
            else:
                parts.append(part)

        at = 0
        while at < len(text):
            char = text[at]
            at += 1
            if char == "&":
                parts.append(0)
            elif char == "\\" and at < len(text):
                match = _NUMBERED.match(text, at)
                char = text[at]
                if match:
                    add(_numbered(match))
                    at = match.end()
                    continue
                at += 1
                if char.isdigit():
                    parts.append(int(char))
                elif char in "LUEul":
                    parts.append("\0" + char)
                else:
                    add(_CHARS.get(char, char))
            else:
                if char == "\0":
                    raise Unsupported("sed with NUL in a replacement")
                add(char)
        return tuple(part for part in parts if part != "")

    def substitution(self, command: Sed) -> None:
        """Reads the rest of an s command."""
        delimiter = self.next()
        pattern = self.delimited(delimiter, True) if delimiter and delimiter not in "\n\\" else None
        replacement = self.delimited(delimiter, False) if pattern is not None else None
        if pattern is None or replacement is None:
            raise self.fail("unterminated `s' command")
        flags, number = "", 0
        while True:
            char = self.peek()
            if char.isdigit():
                if number:
                    self.at += 1
                    raise self.fail("multiple number options to `s' command")
                number = self.number()
                if number == 0:
                    raise self.fail("number option to `s' command may not be zero")
                continue
            self.at += 1
            if char and char in "gpIiMm":
                if char in flags and char in "gp":
                    raise self.fail(f"multiple `{char}' options to `s' command")
                flags += char
            elif char == "e":
                raise Unsupported("sed s///e")
            elif char == "w":
                command.text = self.file_name()
                break
            elif char in ("", "\n", ";"):
                break
            elif char in "}#":
                self.at -= 1
                break
            elif char not in " \t\r":
                raise self.fail("unknown option to `s'")
        command.regex = self.compile(pattern, flags)
        command.parts = self.replacement(replacement)
        command.flags, command.number = flags, number
        most = max((p for p in command.parts if isinstance(p, int)), default=0)
        if command.regex is not None and most > command.regex.groups:
            raise self.fail(f"invalid reference \\{most} on `s' command's RHS")

    def transliteration(self, command: Sed) -> None:
        """Reads the rest of a y command."""
        delimiter = self.next()
        sides = []
        for _ in range(2):
            side = self.delimited(delimiter, False) if delimiter else None
            if side is None:
                raise self.fail("unterminated `y' command")
            sides.append(re.sub(r"\\(.)", lambda m: _CHARS.get(m[1], m[1]), side, flags=re.DOTALL))
        if len(sides[0]) != len(sides[1]):
            raise self.fail("strings for `y' command are different lengths")
        command.table = {ord(a): b for a, b in reversed(list(zip(*sides, strict=True)))}

    def file_name(self) -> str:
        """Reads a file's name, which takes the rest of the line."""
        self.skip(" \t")
        name = self.to_line_end()
        if not name:
            raise self.fail("missing filename in r/R/w/W commands")
        return name

    def label(self) -> str:
        """Reads a label up to a blank, a semicolon or a brace."""
        label = re.compile(r"[^\s;}]*").match(self.text, self.at)
        assert label is not None  # it may be empty
        self.at = label.end()
        return label[0]

    def appended(self) -> str:
        """The text of a, i and c."""
        self.skip(" \t")
        if not self.peek():
            raise self.fail("expected \\ after `a', `c' or `i'")
        if self.peek() == "\\":
            self.at += 1
            here = self.at
            self.skip(" \t")
            if self.peek() == "\n":
                self.at += 1
            elif not self.peek():
                return ""
            else:
                self.at = here
        elif self.peek() == "\n":
            raise self.fail("expected \\ after `a', `c' or `i'")
        match = re.compile(r"(?:\\.|[^\\\n])*\\?", re.DOTALL).match(self.text, self.at)
        assert match is not None  # it may be empty
        self.at = match.end() + 1
        return text_escapes(match[0]) + "\n"

    # -- commands ----------------------------------------------------------------------

    def parse(self) -> list[Sed]:
        """All commands, with jumps resolved. Raises SedError, Unsupported."""
        while True:
            self.skip(" \t\n;")
            if self.at >= len(self.text):
                break
            self.command()
        if self._open:
            raise SedError("char 0: unmatched `{'")
        labels = {c.text: i for i, c in enumerate(self.commands) if c.name == ":"}
        for command in self.commands:
            if command.name in "btT":
                if command.text and command.text not in labels:
                    raise SedError(f"!can't find label for jump to `{command.text}'")
                command.target = labels[command.text] if command.text else len(self.commands)
        return self.commands

    def command(self) -> None:
        """Reads one command with its addresses, and appends it."""
        command = Sed("", self.address(False))
        if command.start is not None:
            self.skip(" \t")
            if self.peek() == ",":
                self.at += 1
                self.skip(" \t")
                command.end = self.address(True)
                if command.end is None:
                    self.at += 1
                    raise self.fail("unexpected `,'")
                self.skip(" \t")
            if command.start.kind == "zero" and (command.end is None or command.end.kind != "re"):
                self.at += 1
                raise self.fail("invalid usage of line address 0")
        if self.peek() == "!":
            self.at += 1
            command.negated = True
            self.skip(" \t")
            if self.peek() == "!":
                self.at += 1
                raise self.fail("multiple `!'s")
        name = command.name = self.next()
        if not name or name in "\n;":
            raise self.fail("missing command")
        if name == "#":
            if command.start is not None:
                raise self.fail("comments don't accept any addresses")
            self.to_line_end()
            return
        if name == "}":
            if not self._open:
                raise self.fail("unexpected `}'")
            if command.start is not None:
                raise self.fail("} doesn't want any addresses")
            # A block that is not entered is jumped over.
            self.commands[self._open.pop()].target = len(self.commands)
            self.finish()
            return
        self.commands.append(command)
        if name == "{":
            self._open.append(len(self.commands) - 1)
        elif name in "=dDFgGhHnNpPxz":
            self.finish()
        elif name in "aic":
            command.text = self.appended()
        elif name == "s":
            self.substitution(command)
        elif name == "y":
            self.transliteration(command)
            self.finish()
        elif name in "rRwW":
            command.text = self.file_name()
        elif name in "qQl":
            if name != "l" and command.end is not None:
                raise self.fail("command only uses one address")
            self.skip(" \t")
            # q and Q: the status to end with. l: where to fold; -1 is as the option -l says.
            command.number = self.number() if self.peek().isdigit() else -1 if name == "l" else 0
            self.finish()
        elif name in "btT":
            self.skip(" \t")
            command.text = self.label()
        elif name == ":":
            if command.start is not None:
                raise self.fail(": doesn't want any addresses")
            self.skip(" \t")
            command.text = self.label()
            if not command.text:
                raise self.fail('":" lacks a label')
        elif name in "ev":
            raise Unsupported(f"sed {name}")
        else:
            raise self.fail(f"unknown command: `{name}'")

    def finish(self) -> None:
        """What may follow a command that takes nothing."""
        self.skip(" \t\r")
        char = self.peek()
        if char and char not in "\n;}#":
            self.at += 1
            raise self.fail("extra characters after command")
