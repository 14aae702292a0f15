"""Reads words: quotes, parameters, substitutions.

This is half of the parser; `parser.Parser` adds the commands.
"""

from __future__ import annotations

import abc
import re

from shellworld.interpreter.result import Unsupported
from shellworld.language import ast
from shellworld.language.quoting import ansi_c

PLAIN = re.compile(r"[\w./,:=+@%^\-~\]*?\[{}!#\x80-\U0010ffff]+")
# A word of such characters alone.
WHOLE = re.compile(r"[\w./,:=+@%^#!}\]\-\x80-\U0010ffff]+(?=[ \t\n;&|<>)]|\Z)")
SAFE = re.compile(r"[\w./,:=+@%^#!}\]\-\x80-\U0010ffff]*\Z|\[\Z")  # nothing here is ever expanded
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ASSIGN = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?=)")
DIGITS = re.compile(r"[0-9]+")
META = " \t\n;&|<>()"
MAX_DEPTH = 60


class ShellSyntaxError(Exception):
    """The message as bash prints it after "bash: "."""


def make_word(parts: list[ast.Part], position: int = -1) -> ast.Word:
    """A word of parts; neighbours of one kind are joined, and its plain text is found."""
    joined: list[ast.Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, ast.Quoted) and isinstance(last, ast.Quoted):
            joined[-1] = ast.Quoted(last.text + part.text)
        elif isinstance(part, ast.Literal) and isinstance(last, ast.Literal):
            joined[-1] = ast.Literal(last.text + part.text)
        else:
            joined.append(part)
    texts = []
    for part in joined:
        if isinstance(part, ast.Quoted) or isinstance(part, ast.Literal) and SAFE.match(part.text):
            texts.append(part.text)
    plain = "".join(texts) if len(texts) == len(joined) else None
    return ast.Word(tuple(joined), plain, position)


class Lexer(abc.ABC):
    """A cursor over the text, and the reading of words."""

    def __init__(self, text: str, depth: int = 0):
        self.s = text
        self.i = 0
        self.n = len(text)
        self.depth = depth
        self.bashisms: list[str] = []  # what sh would read otherwise
        # Pieces of this text and what else could stand there for a plain reader.
        self.masks: list[tuple[int, int, str]] = []

    # Commands are the subclass's; substitutions contain them.
    @abc.abstractmethod
    def parse_until_paren(self) -> ast.List:
        """The commands up to the parenthesis that closes a substitution."""

    def line(self, at: int | None = None) -> int:
        """Returns the number of the line that a position is on; by default the cursor's."""
        return self.s.count("\n", 0, self.i if at is None else at) + 1

    def fail_eof(self, wanted: str, at: int) -> ShellSyntaxError:
        """Returns the error for a quote or bracket that is never closed."""
        return ShellSyntaxError(
            f"-c: line {self.line(at)}: unexpected EOF while looking for matching `{wanted}'"
        )

    def enter(self) -> None:
        """Counts one more level of nesting; Unsupported beyond MAX_DEPTH."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("deeply nested syntax")

    # -- words -------------------------------------------------------------------------

    def read_word(self, parts: list[ast.Part] | None = None) -> ast.Word:
        """The word at the cursor, up to an unquoted metacharacter; parts may be empty at one.

        Args:
          parts: what of the word has been read already.
        """
        start = self.i
        s, n = self.s, self.n
        if parts is None:
            if m := WHOLE.match(s, start):
                self.i = m.end()
                return ast.Word((ast.Literal(m[0]),), m[0], start)
            parts = []
        while self.i < n:
            m = PLAIN.match(s, self.i)
            if m:
                parts.append(ast.Literal(m[0]))
                self.i = m.end()
                continue
            c = s[self.i]
            if c in META:
                if c in "<>" and s.startswith("(", self.i + 1) and not parts:
                    parts.append(self.process_substitution())
                    continue
                if (
                    c == "("
                    and parts
                    and isinstance(parts[-1], ast.Literal)
                    and parts[-1].text[-1:] in "?*+@!"
                ):
                    raise ShellSyntaxError(self.unexpected("("))
                break
            self.unquoted(c, parts)
        return make_word(parts, start)

    def unexpected(self, token: str) -> str:
        """Bash's two lines about a token that should not be there."""
        begin = self.s.rfind("\n", 0, self.i) + 1
        end = self.s.find("\n", self.i)
        shown = self.s[begin : end if end >= 0 else self.n]
        number = self.line()
        if token == "\n":
            token = "newline"
        place = f"-c: line {number}:"
        return f"{place} syntax error near unexpected token `{token}'\nbash: {place} `{shown}'"

    def unquoted(self, c: str, parts: list[ast.Part]) -> None:
        """Reads one item that starts with the non-plain character c outside double quotes."""
        s = self.s
        if c == "\\":
            if self.i + 1 >= self.n:
                parts.append(ast.Quoted("\\"))
                self.i += 1
            else:
                if s[self.i + 1] != "\n":
                    parts.append(ast.Quoted(s[self.i + 1]))
                self.i += 2
        elif c == "'":
            parts.append(ast.Quoted(self.single_quoted(self.i)))
        elif c == '"':
            parts.append(self.double_quoted())
        elif c == "$":
            if s.startswith(("'", '"'), self.i + 1):
                self.bashisms.append("$'...'")
            if s.startswith("'", self.i + 1):
                parts.append(ast.Quoted(self.ansi_quoted()))
            elif s.startswith('"', self.i + 1):
                self.i += 1
                parts.append(self.double_quoted())
            else:
                parts.append(self.dollar(False))
        elif c == "`":
            parts.append(self.backquoted(False))
        else:
            parts.append(ast.Literal(c))
            self.i += 1

    def single_quoted(self, at: int) -> str:
        """Reads '...' that begins at `at` and returns what is inside."""
        end = self.s.find("'", at + 1)
        if end < 0:
            raise self.fail_eof("'", at)
        self.i = end + 1
        return self.s[at + 1 : end]

    def ansi_quoted(self) -> str:
        """Reads $'...' and returns what it stands for."""
        start = self.i
        at = start + 2
        while at < self.n and self.s[at] != "'":
            at += 2 if self.s[at] == "\\" else 1
        if at >= self.n:
            raise self.fail_eof("'", start)
        self.i = at + 1
        return ansi_c(self.s[start + 2 : at])

    def double_quoted(self) -> ast.DoubleQuoted:
        """Reads "..." with the parameters and substitutions inside."""
        start = self.i
        self.i += 1
        parts = self.quoted_parts('"')
        if self.i >= self.n:
            raise self.fail_eof('"', start)
        self.i += 1
        return ast.DoubleQuoted(tuple(parts))

    def quoted_parts(self, stop: str, escapes: str = '$`"\\') -> list[ast.Part]:
        """Parts as inside double quotes, up to an unescaped `stop` ("" for the end of the text)."""
        parts: list[ast.Part] = []
        s = self.s
        text = ""
        special = re.compile(r'[$`\\"]' if stop == '"' else r"[$`\\]")
        while self.i < self.n:
            m = special.search(s, self.i)
            end = m.start() if m else self.n
            text += s[self.i : end]
            self.i = end
            if not m:
                break
            c = m[0]
            if c == "\\":
                following = s[end + 1 : end + 2]
                if following == "\n":
                    pass
                elif following and following in escapes:
                    text += following
                else:
                    text += "\\" + following
                self.i += 2
                continue
            if c == stop:
                break
            if text:
                parts.append(ast.Quoted(text))
                text = ""
            parts.append(self.dollar(True) if c == "$" else self.backquoted(True))
        self.i = min(self.i, self.n)
        if text:
            parts.append(ast.Quoted(text))
        return parts

    # -- substitutions -----------------------------------------------------------------

    def dollar(self, quoted: bool) -> ast.Part:
        """$name, ${...}, $(...), $((...)), or a lone dollar."""
        s = self.s
        c = s[self.i + 1 : self.i + 2]
        if c == "{":
            return self.parameter(quoted)
        if c == "(":
            if (
                s.startswith("((", self.i + 1)
                and (end := self.arithmetic_end(self.i + 3)) is not None
            ):
                text = s[self.i + 3 : end]
                self.i = end + 2
                return ast.Arithmetic(self.sub(text).expression())
            start = self.i
            self.i += 2
            body = self.parse_until_paren()
            if not body.items:  # the grammar does not know $()
                self.masks.append((start, self.i, "w" * (self.i - start)))
            return ast.CommandSubstitution(body)
        if c == "[":
            raise Unsupported("$[...]")
        m = NAME.match(s, self.i + 1)
        if m:
            self.i = m.end()
            return ast.Parameter(m[0])
        if c and c in "0123456789@*#?$!-":
            self.i += 2
            return ast.Parameter(c)
        self.i += 1
        return ast.Quoted("$") if quoted else ast.Literal("$")

    def sub(self, text: str) -> Lexer:
        """A parser of the same kind for a piece of text."""
        inner = type(self)(text, self.depth)
        inner.bashisms = self.bashisms
        return inner

    def expression(self) -> ast.Word:
        """Reads the whole text as the inside of $((...)).

        Quotes vanish; parameters and substitutions are expanded.
        """
        parts = self.quoted_parts("")
        return make_word(
            [ast.Quoted(p.text.replace('"', "")) if isinstance(p, ast.Quoted) else p for p in parts]
        )

    def arithmetic_end(self, at: int) -> int | None:
        """Returns where the "))" is that closes an arithmetic expression starting at `at`.

        It is None if something else stands there.
        """
        depth = 0
        s = self.s
        while at < self.n:
            c = s[at]
            if c == "\\":
                at += 1
            elif c in "'\"":
                end = s.find(c, at + 1)
                if end < 0:
                    return None
                at = end
            elif c == "(":
                depth += 1
            elif c == ")":
                if depth == 0:
                    return at if s.startswith("))", at) else None
                depth -= 1
            at += 1
        return None

    def process_substitution(self) -> ast.ProcessSubstitution:
        """Reads <(...) or >(...)."""
        direction = self.s[self.i]
        self.bashisms.append(f"{direction}(...)")
        self.i += 2
        return ast.ProcessSubstitution(direction, self.parse_until_paren())

    def backquoted(self, quoted: bool) -> ast.CommandSubstitution:
        """Reads `...`; inside double quotes a backslash before a double quote goes, too."""
        start = self.i
        at = start + 1
        text = ""
        s = self.s
        while at < self.n and s[at] != "`":
            if s[at] == "\\" and at + 1 < self.n and s[at + 1] in ('$`\\"' if quoted else "$`\\"):
                at += 1
            text += s[at]
            at += 1
        if at >= self.n:
            raise self.fail_eof("`", start)
        self.i = at + 1
        # The grammar cannot read all backquotes that bash can (none of an empty pair, for one), so
        # it gets what is inside alone, and here a word in its place.
        self.masks.append((start, self.i, "w" * (self.i - start)))
        inner = self.sub(text)
        inner.enter()
        return inner.substitution()

    @abc.abstractmethod
    def substitution(self) -> ast.CommandSubstitution:
        """The whole text as what stood in backquotes."""

    def parameter(self, quoted: bool) -> ast.Parameter:
        """${...} at the cursor."""
        start = self.i
        s = self.s
        self.enter()
        self.i += 2
        p = ast.Parameter("")
        c = s[self.i : self.i + 1]
        following = s[self.i + 1 : self.i + 2]
        if (
            c == "#"
            and following
            and following not in "}-:=+?%/^,#"
            or c == "#"
            and re.match(r"#[@*#?$!-]\}", s[self.i : self.i + 3])
        ):
            p.length = True
            self.i += 1
        elif c == "!" and following and (following.isalnum() or following in "_@*#"):
            p.indirect = True
            self.i += 1
        m = NAME.match(s, self.i) or DIGITS.match(s, self.i)
        if m:
            p.name = m[0]
            self.i = m.end()
        elif self.i < self.n and s[self.i] in "@*#?$!-":
            p.name = s[self.i]
            self.i += 1
        else:
            self.bad_substitution(start)
        if s.startswith("[", self.i) and NAME.fullmatch(p.name):
            p.index = self.subscript()
        self.operator(p, quoted, start)
        if (
            p.index is not None
            or p.indirect
            or p.operator[:1] in tuple("/^,@")
            or p.operator == ":"
        ):
            self.bashisms.append("${...} with an index, / ^ , @ : or !")
        if not s.startswith("}", self.i):
            if self.i >= self.n:
                raise self.fail_eof("}", start)
            self.bad_substitution(start)
        self.i += 1
        self.depth -= 1
        return p

    def bad_substitution(self, start: int) -> None:
        """Refuses a ${...} of a form that is not simulated."""
        raise Unsupported("substitution " + self.s[start : start + 20].split("\n")[0])

    def subscript(self) -> ast.Word:
        """[...] at the cursor; the index as a word."""
        start = self.i
        self.i += 1
        parts: list[ast.Part] = []
        depth = 0
        while self.i < self.n:
            c = self.s[self.i]
            if c == "[":
                depth += 1
            elif c == "]":
                if not depth:
                    break
                depth -= 1
            if c in "\\'\"$`":
                self.unquoted(c, parts)
            else:
                parts.append(ast.Literal(c))
                self.i += 1
        if self.i >= self.n:
            raise self.fail_eof("]", start)
        self.i += 1
        if self.s[start : self.i] == "[*]":
            return ast.Word((ast.Literal("*"),), "*")
        return make_word(parts)

    def operator(self, p: ast.Parameter, quoted: bool, start: int) -> None:
        """The operator of ${name...} and its words, up to the closing brace."""
        s = self.s
        c = s[self.i : self.i + 1]
        if c == "}" or not c:
            return
        if p.indirect and c in "*@" and s.startswith("}", self.i + 1):
            p.operator = "names"
            self.i += 1
        elif p.length:
            self.bad_substitution(start)
        elif c == ":" and s[self.i + 1 : self.i + 2] in tuple("-=?+"):
            p.operator = s[self.i : self.i + 2]
            self.i += 2
            p.argument = self.argument("}", quoted, quoted)
        elif c in "-=?+":
            p.operator = c
            self.i += 1
            p.argument = self.argument("}", quoted, quoted)
        elif c == ":":
            p.operator = ":"
            self.i += 1
            p.argument = self.argument(":}", False, True)
            if s.startswith(":", self.i):
                self.i += 1
                p.second = self.argument("}", False, True)
        elif c in "#%^,":
            p.operator = c * (2 if s.startswith(c, self.i + 1) else 1)
            self.i += len(p.operator)
            p.argument = self.argument("}", quoted, False)
        elif c == "/":
            p.operator = "/"
            self.i += 1
            if s[self.i : self.i + 1] in tuple("/#%"):
                p.operator += s[self.i]
                self.i += 1
            p.argument = self.argument("/}", quoted, False)
            if s.startswith("/", self.i):
                self.i += 1
                p.second = self.argument("}", quoted, False)
        elif (
            c == "@"
            and s[self.i + 1 : self.i + 2] in tuple("QULuEa")
            and s.startswith("}", self.i + 2)
        ):
            p.operator = "@"
            p.argument = ast.Word((), s[self.i + 1])
            self.i += 2
        else:
            self.bad_substitution(start)

    def argument(self, stop: str, quoted: bool, literal_quotes: bool) -> ast.Word:
        """An operator's word, up to a character of `stop`.

        Args:
          stop: characters that end it outside quotes and braces.
          quoted: whether ${...} stands in double quotes: then a backslash is special only before
            some characters.
          literal_quotes: whether a single quote stands for itself.
        """
        parts: list[ast.Part] = []
        s = self.s
        while self.i < self.n and s[self.i] not in stop:
            c = s[self.i]
            if (
                c == "\\"
                and quoted
                and literal_quotes
                and s[self.i + 1 : self.i + 2] not in tuple('$`"\\}\n')
            ):
                parts.append(ast.Quoted("\\"))
                self.i += 1
            elif c == "'" and literal_quotes:
                parts.append(ast.Quoted("'"))
                self.i += 1
            elif c in "\\'\"$`":
                self.unquoted(c, parts)
            else:
                parts.append(ast.Literal(c))
                self.i += 1
        return make_word(parts)
