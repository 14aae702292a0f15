"""Parses POSIX regular expressions into the tree that `regexes.py` describes.

It refuses what the GNU library and mawk refuse.
"""

from __future__ import annotations

import re

from shellworld.interpreter.result import Unsupported

ANY = "."  # always compiled with re.DOTALL
MAX_DEPTH = 40
MAX_REPEAT = 32767
CLASSES = {  # inside a Python class; the locale is C: bytes beyond ASCII are in none
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "0-9a-zA-Z",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r" \t\n\v\f\r",
    "blank": r" \t",
    "punct": r"!-/:-@\[-`{-~",
    "print": " -~",
    "graph": "!-~",
    "cntrl": r"\x00-\x1f\x7f",
    "xdigit": "0-9A-Fa-f",
}
_WORDS = {"w": r"\w", "W": r"\W", "s": r"\s", "S": r"\S"}
_PLACES = {"b": "word", "B": "nword", "<": "wstart", ">": "wend", "`": "bos", "'": "eos"}
_AWK_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_INTERVAL = re.compile(r"(\d*)(?:(,)(\d*))?")


class RegexError(Exception):
    """A pattern that the real tool refuses; the message is the GNU library's."""


def literal(char: str) -> tuple:
    """A node for exactly this character."""
    return "set", re.escape(char)


def _class_char(char: str) -> str:
    return "\\" + char if char in r"\]^-[&~|" else char


class _Parser:
    def __init__(self, pattern: str, syntax: str, dialect: str):
        self.text = pattern
        self.at = 0
        self.dialect = dialect
        self.extended = syntax == "ere"
        self.emacs = syntax == "emacs"
        self.groups = 0
        self.depth = 0
        self.closed: set[int] = set()

    # -- tokens: (kind, value) ---------------------------------------------------------

    def token(self) -> tuple[str, str]:
        """The next operator or character, without taking it."""
        text, at = self.text, self.at
        if at >= len(text):
            return "end", ""
        char = text[at]
        if char == "\\":
            if at + 1 == len(text):
                raise RegexError("Trailing backslash")
            following = text[at + 1]
            if self.dialect == "awk":
                return "escape", "\\" + following
            operators = "()|" if self.emacs else "" if self.extended else "(){|+?"
            if following in operators or (
                following == "}" and not self.extended and not self.emacs
            ):
                return following, "\\" + following
            return "escape", "\\" + following
        if char in "*.[^$":
            return char, char
        if self.extended and char in "(){|+?" or self.emacs and char in "+?":
            return ("char", char) if char == "{" and self.dialect == "awk" else (char, char)
        return "char", char

    def take(self) -> tuple[str, str]:
        token = self.token()
        self.at += len(token[1])
        return token

    # -- grammar -----------------------------------------------------------------------

    def alternatives(self) -> tuple:
        """Up to a closing parenthesis or the end."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("regular expression of this depth")
        options = [self.sequence()]
        while self.token()[0] == "|":
            self.take()
            options.append(self.sequence())
        self.depth -= 1
        return options[0] if len(options) == 1 else ("alt", options)

    def sequence(self) -> tuple:
        items: list[tuple] = []
        while True:
            kind, value = self.token()
            if kind in ("end", "|") or (kind == ")" and (self.depth > 1 or self.refuses_close())):
                break
            if not items or (items == [("at", "bol")] and not self.extended):
                if kind in ("*", "+", "?", "{") and self.leading(kind, items):
                    continue
                kind, value = self.token()
            self.take()
            items.append(self.item(kind, value, items))
            while self.repeat(items):
                pass
        if not items:
            if self.dialect == "awk" and self.text:
                raise RegexError("missing operand")
            return ("empty",)
        return items[0] if len(items) == 1 else ("cat", items)

    def refuses_close(self) -> bool:
        """Whether an unmatched closing parenthesis is an error, as for all but grep -E and mawk."""
        if self.extended and self.dialect in ("grep", "awk"):
            return False
        raise RegexError("Unmatched ) or \\)")

    def leading(self, kind: str, items: list[tuple]) -> bool:
        """Reads a repetition with nothing before it; true if it was skipped, not a character."""
        if self.dialect == "awk":
            raise RegexError("missing operand")
        if self.extended:
            if self.dialect == "sed":
                raise RegexError("Invalid preceding regular expression")
            self.take()
            if kind != "*" or self.token()[0] in ("*", "+", "?", "{"):
                raise Unsupported(f"{kind} at the start of a regular expression")
            return True
        if kind == "{" and self.dialect == "sed":
            raise RegexError("Invalid preceding regular expression")
        if kind == "{":
            raise Unsupported("{ at the start of a regular expression")
        self.take()
        items.append(literal(kind))
        while self.repeat(items):
            pass
        return True

    def item(self, kind: str, value: str, items: list[tuple]) -> tuple:
        if kind == "char":
            return literal(value)
        if kind == ".":
            return ("set", ANY)
        if kind == "[":
            return self.bracket()
        if kind == "(":
            self.groups += 1
            number = self.groups
            # mawk takes an empty pair of parentheses behind something else, and only there.
            empty = self.dialect == "awk" and items and self.token()[0] == ")"
            body = ("empty",) if empty else self.alternatives()
            if self.take()[0] != ")":
                raise RegexError("missing ')'" if self.dialect == "awk" else "Unmatched ( or \\(")
            self.closed.add(number)
            return ("group", number, body)
        if kind == "^":
            return ("at", "bol") if self.extended or not items else literal("^")
        if kind == "$":
            if self.dialect == "awk" and not items and self.token()[0] == "(":
                raise Unsupported("awk: a group behind $")  # mawk panics
            return (
                ("at", "eol")
                if self.extended or self.token()[0] in ("end", ")", "|")
                else literal("$")
            )
        if kind == "escape":
            return self.escape(value[1])
        return literal(value[-1])

    def escape(self, char: str) -> tuple:
        if self.dialect == "awk":
            if char in "01234567":
                digits = re.compile("[0-7]{1,3}").match(self.text, self.at - 1)
                assert digits is not None  # char is one
                self.at += len(digits[0]) - 1
                return literal(chr(int(digits[0], 8) & 255))
            return literal(_AWK_ESCAPES.get(char, char))
        if char in _WORDS:
            return ("set", _WORDS[char])
        if char in _PLACES:
            return ("at", _PLACES[char])
        if char in "123456789" and not self.emacs:
            if int(char) not in self.closed:
                raise RegexError("Invalid back reference")
            return ("back", int(char))
        return literal(char)

    def interval(self) -> tuple[int, int | None] | None:
        """Reads what follows an opening brace; None, with nothing read, if it is a character.

        grep -E takes a brace that begins no interval as a character.
        """
        close = "}" if self.extended else "\\}"
        end = self.text.find(close, self.at)
        match = _INTERVAL.fullmatch(self.text, self.at, end) if end >= 0 else None
        lenient = self.extended and self.dialect == "grep"
        if match is None or not (match[1] or match[2]):
            if lenient:
                return None
            bounds = re.compile(r"[\d,]*").match(self.text, self.at)
            assert bounds is not None  # it may be empty
            if end < 0 and bounds.end() >= len(self.text):
                raise RegexError("Unmatched \\{")
            raise RegexError("Unmatched \\{" if end < 0 else "Invalid content of \\{\\}")
        low = int(match[1] or 0)
        high = low if not match[2] else int(match[3]) if match[3] else None
        if high is not None and high < low:
            raise RegexError("Invalid content of \\{\\}")
        if max(low, high or 0) > MAX_REPEAT:
            raise RegexError("Regular expression too big")
        self.at = end + len(close)
        return low, high

    def repeat(self, items: list[tuple]) -> bool:
        """Applies a repetition to the last item, if one follows."""
        kind = self.token()[0]
        if kind not in ("*", "+", "?", "{"):
            return False
        before = self.at
        self.take()
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(kind, (0, 0))
        if kind == "{":
            bounds = self.interval()
            if bounds is None:
                self.at = before + 1
                items.append(literal("{"))
                return True
            low, high = bounds
        body = items[-1]
        if body[0] == "at":
            raise Unsupported("repeated anchor in a regular expression")
        if body[0] == "rep" and (low, high) == (0, None) and body[2] in (0, 1) and body[3] is None:
            items[-1] = ("rep", body[1], 0, None)  # a** is a*
        elif body[0] == "rep" and (
            not self.extended or (body[1][0] != "set" and (high is None or high > 1))
        ):
            raise Unsupported("repeated repetition in a regular expression")
        else:
            items[-1] = ("rep", body, low, high)
        return True

    def bracket(self) -> tuple:
        """A bracket expression; the opening bracket is taken."""
        text, start = self.text, self.at
        negated = text.startswith("^", self.at)
        self.at += negated
        parts: list[str] = []
        first = True
        while True:
            if self.at >= len(text):
                raise RegexError("Unmatched [, [^, [:, [., or [=")
            if text[self.at] == "]" and not first:
                break
            first = False
            if text.startswith("[:", self.at):
                end = text.find(":]", self.at + 2)
                if end < 0:
                    raise RegexError("Unmatched [, [^, [:, [., or [=")
                name = text[self.at + 2 : end]
                if name not in CLASSES:
                    raise RegexError("Invalid character class name")
                parts.append(CLASSES[name])
                self.at = end + 2
                continue
            low = self.bracket_char()
            if (
                text.startswith("-", self.at)
                and self.at + 1 < len(text)
                and text[self.at + 1] != "]"
            ):
                self.at += 1
                high = self.bracket_char()
                if low > high:
                    raise RegexError("Invalid range end")
                parts.append(f"{_class_char(low)}-{_class_char(high)}")
            else:
                parts.append(_class_char(low))
        content = text[start : self.at]
        self.at += 1
        if self.dialect != "awk" and len(content) > 2 and content[0] == ":" and content[-1] == ":":
            raise RegexError("character class syntax is [[:space:]], not [:space:]")
        return "set", f"[{'^' if negated else ''}{''.join(parts)}]"

    def bracket_char(self) -> str:
        text, char = self.text, self.text[self.at]
        if char == "[" and text[self.at + 1 : self.at + 2] in (".", "="):
            mark = text[self.at + 1]
            end = text.find(mark + "]", self.at + 2)
            if end < 0:
                raise RegexError("Unmatched [, [^, [:, [., or [=")
            name = text[self.at + 2 : end]
            if len(name) != 1:
                raise Unsupported(f"[[{mark}{name}{mark}]] in a regular expression")
            self.at = end + 2
            return name
        if char == "\\" and self.dialect == "awk" and self.at + 1 < len(text):
            self.at += 2
            node = self.escape(text[self.at - 1])
            return re.sub(r"\\(.)", r"\1", node[1], flags=re.DOTALL)
        self.at += 1
        return char


def parse(pattern: str, syntax: str, dialect: str) -> tuple[tuple, int]:
    """(tree, number of groups); see `regexes.compile_regex`."""
    if len(pattern) > 10_000:
        raise Unsupported("regular expression of this size")
    if syntax == "fixed":
        return ("cat", [literal(c) for c in pattern]) if pattern else ("empty",), 0
    parser = _Parser(pattern, syntax, dialect)
    tree = parser.alternatives()
    return tree, parser.groups
