"""Reading commands: the grammar of bash from complete lines down to compound commands."""

from __future__ import annotations

import re

from shellworld.interpreter.result import Unsupported
from shellworld.language import ast
from shellworld.language.braces import expand_braces
from shellworld.language.grammar import command_places
from shellworld.language.lexer import META, NAME, ShellSyntaxError
from shellworld.language.simple_parser import SimpleParser

CLOSERS = frozenset("then elif else fi do done esac }".split())


class Parser(SimpleParser):
    """A recursive descent over the text of a script.

    It raises ShellSyntaxError or Unsupported at the first thing that it refuses.
    """

    # -- lists -------------------------------------------------------------------------

    def substitution(self) -> ast.CommandSubstitution:
        """The whole text as what stood in backquotes: its complete lines, and what is wrong."""
        items: list[ast.AndOr] = []
        kept = 0
        try:
            while self.complete_line(items):
                kept = len(items)
        except ShellSyntaxError as problem:
            error = str(problem).replace("-c: line", "command substitution: line")
            return ast.CommandSubstitution(ast.List(tuple(items[:kept])), error)
        self.agree()
        return ast.CommandSubstitution(ast.List(tuple(items)))

    def agree(self) -> None:
        """Asks the grammar about this text.

        Raises:
          Unsupported: it does not see the same commands in the same places.
        """
        text = self.s
        # What it is known to misread is replaced by something as long that it reads well: [ is an
        # ordinary command to bash; here-documents become input from a file, and words with signs
        # in them plain ones.
        for start, end, instead in self.masks:
            text = text[:start] + instead + text[end:]
        places = command_places(text)
        if places is None:
            raise Unsupported("syntax that the grammar of bash does not know")
        if not places.issuperset(self.places):
            raise Unsupported("syntax that can be read in two ways")

    def complete_line(self, items: list[ast.AndOr]) -> bool:
        """Appends the commands of the next line, or of all lines of a compound command.

        Returns:
          False at the end of the text.
        """
        self.newlines()
        if self.i >= self.n:
            return False
        while True:
            items.append(self.and_or())
            self.skip()
            if self.i >= self.n or self.s[self.i] == "\n":
                if self.i < self.n:
                    self.newline()
                self.flush()
                return True
            c = self.s[self.i]
            if c not in ";&" or self.s.startswith(";;", self.i) or self.s.startswith(";&", self.i):
                raise self.unexpected_here()
            # A line may go on behind ; and &, and ends with the text or its newline.
            items[-1].background = c == "&"
            self.i += 1
            self.skip()
            if self.i >= self.n or self.s[self.i] == "\n":
                if self.i < self.n:
                    self.newline()
                self.flush()
                return True

    def flush(self) -> None:
        """At the end of the text, here-documents without body are empty."""
        if self.pending and self.i >= self.n:
            self.i = self.n - 1
            self.newline()
            self.i = self.n

    def parse_until_paren(self) -> ast.List:
        """A list up to the closing parenthesis, which is passed; for (...), $(...) and <(...)."""
        start = self.i
        self.enter()
        # Here-documents asked for inside are read at the first newline inside, those from before
        # the parenthesis at the first newline behind it.
        outer, self.pending = self.pending, []
        body = self.compound_list(")")
        if self.i >= self.n:
            raise self.fail_eof(")", start)
        self.i += 1
        self.pending = outer + self.pending
        self.depth -= 1
        return body

    def compound_list(self, stop: str) -> ast.List:
        """Reads commands up to a `stop`, which is left at the cursor.

        A stop is ")", ";;" or a reserved word in CLOSERS.
        """
        items: list[ast.AndOr] = []
        while True:
            self.newlines()
            if self.i >= self.n:
                return ast.List(tuple(items))
            c = self.s[self.i]
            if (c == ")" and stop == ")") or (
                stop == ";;" and self.s.startswith((";;", ";&"), self.i)
            ):
                return ast.List(tuple(items))
            # In parentheses a word such as `done` closes nothing; `command` refuses it.
            if self.reserved() in CLOSERS and stop != ")":
                return ast.List(tuple(items))
            items.append(self.and_or())
            self.skip()
            c = self.s[self.i : self.i + 1]
            if c and c in ";&" and not self.s.startswith((";;", ";&"), self.i):
                items[-1].background = c == "&"
                self.i += 1
            elif (
                c
                and c != "\n"
                and not (c == ")" and stop == ")")
                and not (c == ";" and stop == ";;")
                and self.reserved() not in CLOSERS
            ):
                raise self.unexpected_here()

    def body(self) -> ast.List:
        """A compound list that may not be empty."""
        body = self.compound_list("")
        if not body.items:
            raise self.unexpected_here()
        return body

    def and_or(self) -> ast.AndOr:
        """Reads pipelines joined by && and ||."""
        first = self.pipeline()
        rest: list[tuple[str, ast.Pipeline]] = []
        while True:
            self.skip()
            operator = self.s[self.i : self.i + 2]
            if operator not in ("&&", "||"):
                return ast.AndOr(first, tuple(rest))
            self.i += 2
            self.newlines()
            rest.append((operator, self.pipeline()))

    def pipeline(self) -> ast.Pipeline:
        """Reads a pipeline, with the `!` and `time` before it."""
        negated = timed = False
        self.skip()
        while (word := self.reserved()) in ("!", "time"):
            if word == "time":
                timed = True
                # The grammar takes `time` for a command of its own.
                self.masks.append((self.i, self.i + 4, "    "))
            else:
                negated = not negated
            self.i += len(word)
            self.skip()
        if timed and self.s.startswith("-", self.i):
            raise Unsupported("time with options")
        if (negated or timed) and (self.i >= self.n or self.s[self.i] in ";\n&"):
            raise Unsupported("! or time without a command")
        commands = [self.command()]
        merge = []
        while True:
            self.skip()
            if not self.s.startswith("|", self.i) or self.s.startswith("||", self.i):
                break
            merge.append(self.s.startswith("|&", self.i))
            if merge[-1]:
                self.bashisms.append("|&")
            self.i += 2 if merge[-1] else 1
            self.newlines()
            if self.reserved() == "!":
                raise self.unexpected_here()
            commands.append(self.command())
        return ast.Pipeline(tuple(commands), negated, (*merge, False), timed)

    # -- commands ----------------------------------------------------------------------

    def command(self) -> ast.Command:
        """Reads one command, simple or compound."""
        self.skip()
        s = self.s
        line = self.line()
        # `((` begins arithmetic only if a `))` ends it; else it is a subshell in a subshell.
        if s.startswith("((", self.i) and (end := self.arithmetic_end(self.i + 2)) is not None:
            text = self.sub(s[self.i + 2 : end]).expression()
            self.i = end + 2
            self.bashisms.append("((...))")
            return ast.ArithmeticCommand(self.redirects(), line, text)
        if s.startswith("(", self.i):
            self.i += 1
            body = self.parse_until_paren()
            if not body.items:
                self.i -= 1
                raise self.unexpected_here()
            return ast.Subshell(self.redirects(), line, body)
        word = self.reserved()
        if not word:
            return self.simple(line)
        if word in CLOSERS or word in ("in", "]]"):
            # These two are reserved only within `for`, `case` and `[[`.
            if word in ("in", "]]"):
                return self.simple(line)
            raise self.unexpected_here()
        self.enter()
        start = self.i
        self.i += len(word)
        node = self.compound(word, line, start)
        self.depth -= 1
        return node

    def compound(self, word: str, line: int, start: int) -> ast.Command:
        """Reads the compound command that the reserved word begins, which has been read."""
        if word == "{":
            body = self.body()
            self.expect("}")
            return ast.Group(self.redirects(), line, body)
        if word == "if":
            return self.if_command(line)
        if word in ("while", "until"):
            condition = self.body()
            body = self.do_group()
            return ast.While(self.redirects(), line, condition, body, word == "until")
        if word == "for":
            return self.for_command(line)
        if word == "case":
            return self.case_command(line)
        if word in ("[[", "function"):
            self.bashisms.append(word)
        if word == "[[":
            test = self.condition_or()
            self.condition_blank()
            if self.reserved() != "]]":
                raise self.condition_error()
            self.i += 2
            return ast.Condition(self.redirects(), line, test)
        if word == "function":
            self.skip()
            name = self.read_word()
            if name.plain is None or not name.plain:
                raise Unsupported("function name")
            self.skip()
            m = re.compile(r"\([ \t]*\)").match(self.s, self.i)
            if m:
                self.i = m.end()
            return self.function(name.plain, line)
        raise Unsupported(word)

    def redirects(self) -> tuple[ast.Redirect, ...]:
        """Redirections behind a compound command."""
        found = []
        while (redirect := self.redirect()) is not None:
            found.append(redirect)
        self.skip()
        if self.i < self.n and self.s[self.i] not in ";&|)\n<>" and self.reserved() not in CLOSERS:
            raise self.unexpected_here()
        return tuple(found)

    def if_command(self, line: int) -> ast.If:
        """Reads an `if` after its first word, up to `fi`."""
        branches = []
        otherwise = None
        condition = self.body()
        self.expect("then")
        branches.append((condition, self.body()))
        while True:
            self.newlines()
            word = self.reserved()
            if word == "elif":
                self.i += 4
                condition = self.body()
                self.expect("then")
                branches.append((condition, self.body()))
            elif word == "else":
                self.i += 4
                otherwise = self.body()
                self.expect("fi")
                break
            else:
                self.expect("fi")
                break
        return ast.If(self.redirects(), line, tuple(branches), otherwise)

    def do_group(self) -> ast.List:
        """Reads the `do ... done` of a while or until loop."""
        self.newlines()
        if self.s.startswith(";", self.i) and not self.s.startswith(";;", self.i):
            self.i += 1
        self.expect("do")
        body = self.body()
        self.expect("done")
        return body

    def for_command(self, line: int) -> ast.Command:
        """Reads a `for` after its first word, of words or of arithmetic."""
        self.skip()
        if self.s.startswith("((", self.i):
            end = self.arithmetic_end(self.i + 2)
            if end is None:
                raise self.unexpected_here()
            pieces = self.s[self.i + 2 : end].split(";")
            if len(pieces) != 3:
                raise Unsupported("for (( )) of this form")
            self.bashisms.append("for ((...))")
            start, condition, step = (self.sub(piece.strip()).expression() for piece in pieces)
            self.i = end + 2
            self.skip()
            body = self.loop_body()
            return ast.ForArithmetic(self.redirects(), line, start, condition, step, body)
        m = NAME.match(self.s, self.i)
        if not m:
            word = self.read_word()
            if not word.parts:
                raise self.unexpected_here()
            raise ShellSyntaxError(
                f"line {line}: `{self.s[word.position : self.i]}': not a valid identifier"
            )
        self.i = m.end()
        if self.i < self.n and self.s[self.i] not in META:
            raise Unsupported("for variable")
        self.newlines()
        words = None
        if self.reserved() == "in":
            self.i += 2
            found = []
            while True:
                self.skip()
                if self.i >= self.n or self.s[self.i] in ";\n":
                    break
                before = self.i
                word = self.read_word()
                if not word.parts:
                    self.i = before
                    raise self.unexpected_here()
                found += expand_braces(word)
            words = tuple(found)
        body = self.loop_body()
        return ast.For(self.redirects(), line, m[0], words, body)

    def loop_body(self) -> ast.List:
        """Reads the `do ... done` or `{ ... }` of a for loop."""
        self.skip()
        if self.s.startswith(";", self.i) and not self.s.startswith(";;", self.i):
            self.i += 1
        self.newlines()
        if self.reserved() == "{":
            self.i += 1
            body = self.body()
            self.expect("}")
            return body
        self.expect("do")
        body = self.body()
        self.expect("done")
        return body

    def case_command(self, line: int) -> ast.Case:
        """Reads a `case` after its first word, up to `esac`."""
        self.skip()
        word = self.read_word()
        if not word.parts:
            raise self.unexpected_here()
        self.expect("in")
        items = []
        while True:
            self.newlines()
            if self.reserved() == "esac":
                self.i += 4
                break
            if self.s.startswith("(", self.i):
                self.i += 1
            patterns = []
            while True:
                self.skip()
                pattern = self.read_word()
                if not pattern.parts:
                    raise self.unexpected_here()
                patterns.append(pattern)
                self.skip()
                if not self.s.startswith("|", self.i):
                    break
                self.i += 1
            if not self.s.startswith(")", self.i):
                raise self.unexpected_here()
            self.i += 1
            # The last item needs no `;;` before `esac`.
            body = self.compound_list(";;")
            end = next((e for e in (";;&", ";;", ";&") if self.s.startswith(e, self.i)), "")
            self.i += len(end)
            if end in (";&", ";;&"):
                self.bashisms.append(end)
            items.append(ast.CaseItem(tuple(patterns), body, end or ";;"))
            if not end:
                self.expect("esac")
                break
        return ast.Case(self.redirects(), line, word, tuple(items))

    def function(self, name: str, line: int) -> ast.Function:
        """Reads the body of a function, which must be a compound command."""
        self.newlines()
        word = self.reserved()
        if not self.s.startswith("(", self.i) and word not in (
            "{",
            "[[",
            "if",
            "for",
            "while",
            "until",
            "case",
        ):
            raise self.unexpected_here()
        self.enter()
        body = self.command()
        self.depth -= 1
        return ast.Function((), line, name, body)
