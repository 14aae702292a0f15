"""Reads simple commands: assignments, arrays, words, redirections.

Function definitions are here, too, as they begin like commands.
"""

from __future__ import annotations

import abc
import re

from shellworld.interpreter.result import Unsupported
from shellworld.language import ast
from shellworld.language.braces import expand_braces
from shellworld.language.lexer import ASSIGN, META, NAME, ShellSyntaxError
from shellworld.language.tokens import Tokens

DECLARATIONS = frozenset("declare typeset local export readonly".split())
_REDIRECT = re.compile(r"(\d*)(<<<|<<-|<<|<>|<&|>&|>>|>\||<(?!\()|>(?!\()|&>>|&>)")


# Unquoted words with signs in them.
_ODD = re.compile(r"[\w./-]*[={}\[\]*?!^%+@,:~#][^\s'\"$`\\<>()]*")


class SimpleParser(Tokens):
    """Everything below compound commands."""

    @abc.abstractmethod
    def function(self, name: str, line: int) -> ast.Function:
        """The body of a function; compound commands are the subclass's."""

    # -- words -------------------------------------------------------------------------

    def simple(self, line: int) -> ast.Command:
        """Reads a simple command, or the definition of a function that begins like one."""
        assignments: list[ast.Assignment] = []
        words: list[ast.Word | ast.Assignment] = []
        redirects: list[ast.Redirect] = []
        declaring = False
        while True:
            self.skip()
            if self.i >= self.n:
                break
            redirect = self.redirect()
            if redirect is not None:
                redirects.append(redirect)
                continue
            if self.s[self.i] in META:
                if self.s[self.i] == "(" and len(words) == 1 and not assignments and not redirects:
                    return self.function_parens(words[0], line)
                if self.s[self.i] not in "<>" or not self.s.startswith("(", self.i + 1):
                    break
            if (not words or declaring) and (assignment := self.assignment()) is not None:
                (words if words else assignments).append(assignment)
                continue
            word = self.with_subscript() if not words else None
            word = word or self.read_word()
            if not word.parts:
                raise self.unexpected_here()
            raw = self.s[word.position : self.i]
            if _ODD.fullmatch(raw):
                self.masks.append((word.position, self.i, "w" * len(raw)))
            expanded = expand_braces(word)
            if len(expanded) != 1:
                self.bashisms.append("{...}")
            words += expanded
            if not declaring and len(words) == len(expanded):
                declaring = word.plain in DECLARATIONS
        if not words and not assignments and not redirects:
            raise self.unexpected_here()
        if self.i < self.n and self.s[self.i] == "(":
            raise self.unexpected_here()
        if words and isinstance(words[0], ast.Word):
            self.places.append(words[0].position)
            if words[0].plain == "[":
                found = [
                    w.position for w in words if isinstance(w, ast.Word) and w.plain in ("[", "]")
                ]
                self.masks += [(at, at + 1, "T") for at in found]
        return ast.Simple(tuple(assignments), tuple(words), tuple(redirects), line)

    def function_parens(self, word: ast.Word | ast.Assignment, line: int) -> ast.Function:
        """Reads the () behind a function's name, and its body."""
        m = re.compile(r"\([ \t]*\)").match(self.s, self.i)
        if not m:
            self.i += 1
            raise self.unexpected_here()
        if (
            not isinstance(word, ast.Word)
            or word.plain is None
            or len(word.parts) != 1
            or not isinstance(word.parts[0], ast.Literal)
        ):
            raise Unsupported("function name")
        self.i = m.end()
        return self.function(word.plain, line)

    def assignment(self) -> ast.Assignment | None:
        """An assignment at the cursor, or None."""
        m = ASSIGN.match(self.s, self.i)
        index = None
        if m:
            name, append = m[1], m[2] == "+="
            if append:
                self.bashisms.append("+=")
            self.i = m.end()
        else:
            m = NAME.match(self.s, self.i)
            if not m or not self.s.startswith("[", m.end()):
                return None
            start = self.i
            self.i = m.end()
            places = len(self.places)
            try:
                index = self.subscript()
            except ShellSyntaxError:
                self.i = start
                return None
            inside = (m.end() + 1, self.i - 1)
            operator = re.compile(r"\+?=").match(self.s, self.i)
            if not operator:
                self.i = start
                del self.places[places:]
                return None
            if re.search(r"\s", self.s[slice(*inside)]) and len(self.places) == places:
                self.masks.append((*inside, "1" * (inside[1] - inside[0])))
            self.bashisms.append("array")
            name, append = m[0], operator[0] == "+="
            self.i = operator.end()
        if self.s.startswith("(", self.i):
            if index is not None:
                raise self.unexpected_here()
            self.i += 1
            self.bashisms.append("array")
            return ast.Assignment(name, self.array(), append)
        return ast.Assignment(name, self.read_word(), append, index)

    def with_subscript(self) -> ast.Word | None:
        """A command's name that begins as an element of an array does, or None.

        Bash reads the brackets to the end before it knows that nothing is assigned, with the blanks
        and operators in them: `a[b | c] d` is one command.
        """
        m = NAME.match(self.s, self.i)
        if not m or not self.s.startswith("[", m.end()):
            return None
        start, places = self.i, len(self.places)
        self.i = m.end()
        index = self.subscript()
        inside = (ast.Literal(f"{m[0]}["), *index.parts, ast.Literal("]"))
        if len(self.places) == places:  # no commands in it, which the grammar is to see
            self.masks.append((start, self.i, "w" * (self.i - start)))
        rest = self.read_word(list(inside))
        return ast.Word(rest.parts, rest.plain, start)

    def array(self) -> ast.ArrayValue:
        """Reads the elements of an array up to its closing parenthesis."""
        items: list[ast.Word | ast.Assignment] = []
        while True:
            self.newlines()
            if self.i >= self.n:
                raise self.fail_eof(")", self.i)
            if self.s[self.i] in ";&|<>(":
                raise Unsupported("array of this form")
            if self.s[self.i] == ")":
                self.i += 1
                return ast.ArrayValue(tuple(items))
            if self.s[self.i] == "[":
                start = self.i
                index = self.subscript()
                operator = re.compile(r"\+?=").match(self.s, self.i)
                if operator:
                    self.i = operator.end()
                    items.append(ast.Assignment("", self.read_word(), operator[0] == "+=", index))
                    continue
                self.i = start
            word = self.read_word()
            if not word.parts:
                raise self.unexpected_here()
            items += expand_braces(word)

    def redirect(self) -> ast.Redirect | None:
        """A redirection at the cursor, or None."""
        self.skip()
        m = _REDIRECT.match(self.s, self.i)
        if not m:
            if self.s.startswith("{", self.i) and re.compile(r"\{[A-Za-z_]\w*\}[<>]").match(
                self.s, self.i
            ):
                raise Unsupported("{variable}> redirection")
            return None
        if m[2].startswith("&") and m[1]:
            return None
        line = self.line()
        operator = m[2]
        self.i = m.end()
        self.skip()
        start = self.i
        word = self.read_word()
        if not word.parts:
            raise self.unexpected_here()
        fd = int(m[1]) if m[1] else 0 if operator.startswith("<") else 1
        if fd > 9:
            raise Unsupported("file descriptors above 9")
        if operator in ("<<", "<<-"):
            raw = self.s[start : self.i]
            quoted = any(c in raw for c in "'\"\\")
            if (
                any(
                    not isinstance(p, ast.Literal | ast.Quoted | ast.DoubleQuoted)
                    for p in word.parts
                )
                or "$" in raw
                or "`" in raw
            ):
                raise Unsupported("here-document delimiter with expansions")
            delimiter = ""
            for part in word.parts:
                for piece in part.parts if isinstance(part, ast.DoubleQuoted) else (part,):
                    assert isinstance(piece, ast.Literal | ast.Quoted)
                    delimiter += piece.text
            redirect = ast.Redirect("<<", fd, word)
            self.masks.append((m.start(2), m.end(2), "<".rjust(len(operator))))
            self.pending.append((redirect, delimiter, quoted, operator == "<<-", line))
            return redirect
        if (
            operator in ("<<<", "&>", "&>>")
            or operator == ">&"
            and (word.plain or "x").strip("0123456789-")
        ):
            self.bashisms.append(operator)
        if operator == "<>":
            raise Unsupported("<> redirection")
        return ast.Redirect(operator, fd, word)
