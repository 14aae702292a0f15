"""Reads tokens: blanks, newlines with their here-documents, reserved words, [[ ... ]]."""

from __future__ import annotations

import re

from shellworld.interpreter.result import Unsupported
from shellworld.language import ast
from shellworld.language.lexer import Lexer, ShellSyntaxError, make_word

RESERVED = frozenset(
    "if then elif else fi for while until do done case esac in function { } ! [[ ]] time select "
    "coproc".split()
)
_SKIPPED = frozenset(" \t\\#")  # what blanks, line continuations and comments begin with
_BLANK = re.compile(r"(?:[ \t]|\\\n)+")
_RESERVED = re.compile(r"(?:[a-z]+|[{}!]|\[\[|\]\])(?=[\s;&|<>()]|\Z|\\\n)")
_OPERATOR = re.compile(r"&&|\|\||;;&|;;|;&|\|&|[;&|()\n]")
_UNARY = frozenset("-" + c for c in "abcdefghknoprstuvwxzGLNORS")
_BINARY = frozenset("= == != =~ < > -eq -ne -lt -le -gt -ge -nt -ot -ef".split())


class Tokens(Lexer):
    """The cursor's movements between words."""

    def __init__(self, text: str, depth: int = 0):
        super().__init__(text, depth)
        # Here-documents whose bodies come at the next newline.
        self.pending: list[tuple[ast.Redirect, str, bool, bool, int]] = []
        self.warnings: list[str] = []
        self.places: list[int] = []  # where the simple commands of this very text begin

    # -- tokens ------------------------------------------------------------------------

    def skip(self) -> None:
        """Blanks, line continuations and a comment."""
        if self.s[self.i : self.i + 1] not in _SKIPPED:
            return
        m = _BLANK.match(self.s, self.i)
        if m:
            self.i = m.end()
        if self.s.startswith("#", self.i):
            end = self.s.find("\n", self.i)
            self.i = end if end >= 0 else self.n

    def newlines(self) -> None:
        """Skips blanks and newlines, and reads the here-documents that begin behind these."""
        while True:
            self.skip()
            if not self.s.startswith("\n", self.i):
                return
            self.newline()

    def newline(self) -> None:
        """Passes a newline and the bodies of the here-documents that wait for it."""
        self.i += 1
        pending, self.pending = self.pending, []
        for redirect, delimiter, quoted, tabs, line in pending:
            self.heredoc(redirect, delimiter, quoted, tabs, line)

    def heredoc(
        self, redirect: ast.Redirect, delimiter: str, quoted: bool, tabs: bool, line: int
    ) -> None:
        """Reads the body of a here-document into its redirection.

        Args:
          redirect: takes the body as its target.
          delimiter: the line that ends it.
          quoted: nothing in it is expanded.
          tabs: leading tabs are removed (<<-).
          line: the number of the line that it was asked for on.
        """
        lines = []
        start = self.i
        while True:
            if self.i >= self.n:
                self.warnings.append(
                    f"line {self.line()}: warning: here-document at line {line} delimited by "
                    f"end-of-file (wanted `{delimiter}')"
                )
                break
            end = self.s.find("\n", self.i)
            end = self.n if end < 0 else end
            text = self.s[self.i : end]
            self.i = min(end + 1, self.n)
            text = text.lstrip("\t") if tabs else text
            if text == delimiter:
                self.i = end  # the newline stays to end the command
                self.i += self.i < self.n
                break
            backslashes = len(text) - len(text.rstrip("\\"))
            if end == self.n and not quoted and backslashes % 2:
                raise Unsupported("here-document cut behind a backslash")  # bash adds byte 255
            lines.append(text + "\n")  # also where the end of the input cuts the last line
        self.masks.append(
            (start, self.i, "".join("\n" if c == "\n" else " " for c in self.s[start : self.i]))
        )
        body = "".join(lines)
        if quoted:
            redirect.target = ast.Word((ast.Quoted(body),), body)
        else:
            inner = self.sub(body)
            redirect.target = make_word(inner.quoted_parts("", "$`\\"))

    def reserved(self) -> str:
        """The reserved word at the cursor, or ""."""
        m = _RESERVED.match(self.s, self.i)
        return m[0] if m and m[0] in RESERVED else ""

    def expect(self, word: str) -> None:
        """Reads a reserved word; a syntax error if something else stands there."""
        self.newlines()
        if self.reserved() != word:
            raise self.unexpected_here()
        self.i += len(word)

    def unexpected_here(self) -> ShellSyntaxError:
        """Returns the syntax error that bash reports for the token at the cursor."""
        self.skip()
        if self.i >= self.n:
            last = self.line() + (0 if self.s.endswith("\n") else 1)
            return ShellSyntaxError(f"-c: line {last}: syntax error: unexpected end of file")
        m = _OPERATOR.match(self.s, self.i) or re.compile(r"[<>]+|[^\s;&|<>()]+").match(
            self.s, self.i
        )
        return ShellSyntaxError(self.unexpected(m[0] if m else self.s[self.i]))

    # -- [[ ]] -------------------------------------------------------------------------

    def condition_blank(self) -> None:
        """Skips what may stand between the words of [[ ]]."""
        self.newlines()

    def condition_error(self) -> Unsupported:
        """Returns the refusal of a [[ ]] that is not understood."""
        return Unsupported("[[ ]] of this form")

    def condition_or(self) -> ast.Test:
        """Reads tests joined by ||."""
        left = self.condition_and()
        self.condition_blank()
        if self.s.startswith("||", self.i):
            self.i += 2
            return ast.Logical("||", left, self.condition_or())
        return left

    def condition_and(self) -> ast.Test:
        """Reads tests joined by &&."""
        left = self.condition_term()
        self.condition_blank()
        if self.s.startswith("&&", self.i):
            self.i += 2
            return ast.Logical("&&", left, self.condition_and())
        return left

    def condition_term(self) -> ast.Test:
        """Reads a test, a negated one or one in parentheses."""
        self.condition_blank()
        self.enter()
        try:
            if self.reserved() == "!":
                self.i += 1
                return ast.Logical("!", self.condition_term())
            if self.s.startswith("(", self.i):
                self.i += 1
                test = self.condition_or()
                self.condition_blank()
                if not self.s.startswith(")", self.i):
                    raise self.condition_error()
                self.i += 1
                return test
            return self.condition_primary()
        finally:
            self.depth -= 1

    def condition_primary(self) -> ast.Test:
        """Reads a test of one word, of two words, or of a word's being empty."""
        word = self.condition_word()
        raw = (
            word.plain if len(word.parts) == 1 and isinstance(word.parts[0], ast.Literal) else None
        )
        if raw in _UNARY:
            before = self.i
            self.skip()
            m = _RESERVED.match(self.s, self.i)
            if not (m and m[0] == "]]") and self.s[self.i : self.i + 1] not in tuple("&|)\n") + (
                "",
            ):
                if raw in ("-o", "-R", "-v", "-t", "-N", "-G", "-O", "-u", "-g", "-k") and raw in (
                    "-R",
                    "-N",
                ):
                    raise Unsupported(f"[[ {raw} ]]")
                return ast.Unary(raw, self.condition_word())
            self.i = before
        self.skip()
        m = re.compile(r"(?:=~|==|!=|=|<|>|-[a-z]{2})(?=\s)").match(self.s, self.i)
        if m and m[0] in _BINARY:
            self.i = m.end()
            self.skip()
            return ast.Binary(
                m[0], word, self.regex_word() if m[0] == "=~" else self.condition_word()
            )
        return ast.Unary("-n", word)

    def condition_word(self) -> ast.Word:
        """Reads a word of [[ ]]; "]]" is none."""
        self.skip()
        try:
            word = self.read_word()
        except ShellSyntaxError as error:
            if self.s.startswith("(", self.i):
                raise Unsupported("extended pattern") from error
            raise
        if not word.parts or word.plain == "]]":
            raise self.condition_error()
        return word

    def regex_word(self) -> ast.Word:
        """The right side of =~, in which parentheses and | are ordinary."""
        parts: list[ast.Part] = []
        depth = 0
        start = self.i
        while self.i < self.n:
            c = self.s[self.i]
            if c in "()":
                depth += 1 if c == "(" else -1
                if depth < 0:
                    break
            elif c in " \t\n" and not depth or c in "&;<>" and not depth or c == "\n":
                break
            if c in "\\'\"$`":
                self.unquoted(c, parts)
            else:
                parts.append(ast.Literal(c))
                self.i += 1
        if not parts:
            raise self.condition_error()
        return make_word(parts, start)
