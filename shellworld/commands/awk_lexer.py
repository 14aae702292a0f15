"""Splits awk programs into tokens, as mawk 1.3.4 reads them."""

from __future__ import annotations

import re

from shellworld.commands import Unsupported

BUILTINS = {
    "length": (0, 1),
    "substr": (2, 3),
    "index": (2, 2),
    "split": (2, 3),
    "sub": (2, 3),
    "gsub": (2, 3),
    "match": (2, 2),
    "sprintf": (1, 99),
    "sin": (1, 1),
    "cos": (1, 1),
    "atan2": (2, 2),
    "exp": (1, 1),
    "log": (1, 1),
    "sqrt": (1, 1),
    "int": (1, 1),
    "tolower": (1, 1),
    "toupper": (1, 1),
    "system": (1, 1),
    "close": (1, 1),
    "fflush": (0, 1),
}
_FOREIGN = {"rand", "srand", "systime", "strftime", "mktime"}
KEYWORDS = set(
    "BEGIN END function func if else while for do break continue next nextfile exit return delete "
    "in getline print"
    " printf".split()
)
_TOKEN = re.compile(
    r"(?P<skip>(?:[ "
    r"\t\r]|\\\r?\n|#[^\n]*)+)|(?P<newline>\n)|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<word>[A-Za-z_]\w*)|(?P<string>\"(?:\\.|[^\"\\\n])*\")"
    r"|(?P<op>\+\+|--|\+=|-=|\*=|/=|%=|\^=|==|<=|>=|!=|&&|\|\||>>|!~|[-+*/%^!~<>=?:;,(){}\[\]$|&])",
    re.DOTALL,
)
_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
    '"': '"',
    "\\": "\\",
}


class AwkError(Exception):
    """A program that mawk refuses; `at_end`: it sees that only when it has read the whole."""

    at_end = False


def unescape(text: str) -> str:
    """A string literal's text; unknown escapes stay, as mawk has it."""

    def one(match: re.Match) -> str:
        word = match[1]
        if word[0] in "01234567":
            return chr(int(word, 8) & 255)
        if word[0] == "x" and len(word) > 1:
            return chr(int(word[1:], 16))
        if word == "\n":
            return ""
        return _ESCAPES.get(word, "\\" + word)

    return re.sub(r"\\([0-7]{1,3}|x[0-9A-Fa-f]{1,2}|.)", one, text, flags=re.DOTALL)


class Lexer:
    """A program, token by token.

    Attributes:
      kind, value: the token: the operator or keyword itself, or what sort of token it is, and its
        text.
    """

    def __init__(self, text: str):
        self.text = text
        self.at = 0
        self.kind = self.value = ""

    def advance(self) -> None:
        """Reads the next token into `kind` and `value`.

        `kind` is the operator or keyword itself, or what sort of token it is.
        """
        while True:
            if self.at >= len(self.text):
                self.kind, self.value = "end", ""
                return
            match = _TOKEN.match(self.text, self.at)
            if match is None:
                raise AwkError("syntax error")
            self.at = match.end()
            if match.lastgroup != "skip":
                break
        self.value = match[0]
        self.kind = match.lastgroup or ""
        if self.kind == "newline":
            self.kind = "\n"
        elif self.kind == "op":
            self.kind = self.value
        elif self.kind == "word":
            word = self.value
            if word in KEYWORDS:
                self.kind = "function" if word == "func" else word
            elif word in BUILTINS:
                self.kind = "builtin"
            elif word in _FOREIGN:
                raise Unsupported(f"awk {word}")
            else:
                self.kind = "call" if self.text.startswith("(", self.at) else "name"

    def regex(self) -> str:
        """A regular expression's text; the token is its opening slash."""
        start = self.at if self.kind == "/" else self.at - 1
        match = re.compile(r"(?:\\.|\[\^?\]?[^\]\n]*\]|[^/\n\\\[]|\[)*/").match(self.text, start)
        if match is None:
            raise AwkError("runaway regular expression")
        self.at = match.end()
        self.kind = "string"
        self.advance()
        return match[0][:-1].replace("\\/", "/")

    def accept(self, kind: str) -> bool:
        """Reads a token of this kind, if there is one."""
        if self.kind == kind:
            self.advance()
            return True
        return False

    def expect(self, kind: str) -> None:
        """Reads a token of this kind; a syntax error if there is none."""
        if not self.accept(kind):
            raise AwkError(f"syntax error at or near {self.value or 'end of file'}")

    def newlines(self) -> None:
        """Skips newlines."""
        while self.kind == "\n":
            self.advance()

    def ends(self) -> None:
        """The end of a simple statement."""
        if self.kind in (";", "\n"):
            self.advance()
            self.newlines()
        elif self.kind not in ("}", "end", "else", "while"):
            raise AwkError(f"syntax error at or near {self.value}")
