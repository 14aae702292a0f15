"""Reading commands: the grammar of bash from complete lines down to simple commands and [[ ]]."""

from __future__ import annotations

import re

from subtransfer.settings.shell import ast
from subtransfer.settings.shell.braces import expand_braces
from subtransfer.settings.shell.lexer import ASSIGN, META, NAME, Lexer, ShellSyntaxError, make_word
from subtransfer.settings.shell.result import Unsupported

RESERVED = frozenset("if then elif else fi for while until do done case esac in function { } ! [[ ]] time select coproc".split())
CLOSERS = frozenset("then elif else fi do done esac }".split())
DECLARATIONS = frozenset("declare typeset local export readonly".split())
_BLANK = re.compile(r"(?:[ \t]|\\\n)+")
_RESERVED = re.compile(r"(?:[a-z]+|[{}!]|\[\[|\]\])(?=[\s;&|<>()]|\Z|\\\n)")
_OPERATOR = re.compile(r"&&|\|\||;;&|;;|;&|\|&|[;&|()\n]")
_REDIRECT = re.compile(r"(\d*)(<<<|<<-|<<|<>|<&|>&|>>|>\||<(?!\()|>(?!\()|&>>|&>)")
_UNARY = frozenset("-" + c for c in "abcdefghknoprstuvwxzGLNORS")
_BINARY = frozenset("= == != =~ < > -eq -ne -lt -le -gt -ge -nt -ot -ef".split())
_NOWHERE: tuple[ast.Redirect, ...] = ()


class Parser(Lexer):
    """A recursive descent over the text; raises ShellSyntaxError or Unsupported at the first thing that it refuses."""

    def __init__(self, text: str, depth: int = 0):
        super().__init__(text, depth)
        self.pending: list[tuple[ast.Redirect, str, bool, bool, int]] = []  # here-documents whose bodies come at the next newline
        self.warnings: list[str] = []
        self.places: list[int] = []  # where the simple commands of this very text begin
        self.brackets: list[int] = []  # where the words of [ commands are that are a bracket

    # -- tokens ------------------------------------------------------------------------------------------------------

    def skip(self) -> None:
        """Blanks, line continuations and a comment."""
        m = _BLANK.match(self.s, self.i)
        if m:
            self.i = m.end()
        if self.s.startswith("#", self.i):
            end = self.s.find("\n", self.i)
            self.i = end if end >= 0 else self.n

    def newlines(self) -> None:
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

    def heredoc(self, redirect: ast.Redirect, delimiter: str, quoted: bool, tabs: bool, line: int) -> None:
        lines = []
        while True:
            if self.i >= self.n:
                self.warnings.append(
                    f"line {self.line()}: warning: here-document at line {line} delimited by end-of-file (wanted `{delimiter}')"
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
            lines.append(text + ("\n" if end < self.n else ""))
        body = "".join(lines)
        if quoted:
            redirect.target = ast.Word((ast.Quoted(body),), body)
        else:
            inner = self.sub(body)
            redirect.target = make_word(inner.quoted_parts("", '$`\\'))

    def reserved(self) -> str:
        """The reserved word at the cursor, or ""."""
        m = _RESERVED.match(self.s, self.i)
        return m[0] if m and m[0] in RESERVED else ""

    def expect(self, word: str) -> None:
        self.newlines()
        if self.reserved() != word:
            raise self.unexpected_here()
        self.i += len(word)

    def unexpected_here(self) -> ShellSyntaxError:
        self.skip()
        if self.i >= self.n:
            last = self.line() + (0 if self.s.endswith("\n") else 1)
            return ShellSyntaxError(f"-c: line {last}: syntax error: unexpected end of file")
        m = _OPERATOR.match(self.s, self.i) or re.compile(r"[<>]+|[^\s;&|<>()]+").match(self.s, self.i)
        return ShellSyntaxError(self.unexpected(m[0] if m else self.s[self.i]))

    # -- lists -------------------------------------------------------------------------------------------------------

    def parse_all(self) -> ast.List:
        """The whole text."""
        items: list[ast.AndOr] = []
        while self.complete_line(items):
            pass
        return ast.List(tuple(items))

    def complete_line(self, items: list[ast.AndOr]) -> bool:
        """Appends the commands of the next line (all lines of a compound command); False at the end of the text."""
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
        outer, self.pending = self.pending, []
        body = self.compound_list(")")
        if self.i >= self.n:
            raise self.fail_eof(")", start)
        self.i += 1
        self.pending = outer + self.pending
        self.depth -= 1
        return body

    def compound_list(self, stop: str) -> ast.List:
        """Commands up to a `stop`: ")", ";;" or a reserved word in CLOSERS, which is left at the cursor."""
        items: list[ast.AndOr] = []
        while True:
            self.newlines()
            if self.i >= self.n:
                return ast.List(tuple(items))
            c = self.s[self.i]
            if (c == ")" and stop == ")") or (stop == ";;" and self.s.startswith((";;", ";&"), self.i)):
                return ast.List(tuple(items))
            if self.reserved() in CLOSERS and stop != ")":
                return ast.List(tuple(items))
            items.append(self.and_or())
            self.skip()
            c = self.s[self.i : self.i + 1]
            if c and c in ";&" and not self.s.startswith((";;", ";&"), self.i):
                items[-1].background = c == "&"
                self.i += 1
            elif c and c != "\n" and not (c == ")" and stop == ")") and not (c == ";" and stop == ";;") and self.reserved() not in CLOSERS:
                raise self.unexpected_here()

    def body(self) -> ast.List:
        """A compound list that may not be empty."""
        body = self.compound_list("")
        if not body.items:
            raise self.unexpected_here()
        return body

    def and_or(self) -> ast.AndOr:
        first = self.pipeline()
        rest = []
        while True:
            self.skip()
            operator = self.s[self.i : self.i + 2]
            if operator not in ("&&", "||"):
                return ast.AndOr(first, tuple(rest))
            self.i += 2
            self.newlines()
            rest.append((operator, self.pipeline()))

    def pipeline(self) -> ast.Pipeline:
        negated = False
        self.skip()
        while (word := self.reserved()) in ("!", "time"):
            if word == "time":
                raise Unsupported("time")
            negated = not negated
            self.i += len(word)
            self.skip()
        if negated and (self.i >= self.n or self.s[self.i] in ";\n&"):
            raise Unsupported("! without a command")
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
        return ast.Pipeline(tuple(commands), negated, (*merge, False))

    # -- commands ----------------------------------------------------------------------------------------------------

    def command(self) -> ast.Command:
        self.skip()
        s = self.s
        line = self.line()
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
        self.newlines()
        if self.s.startswith(";", self.i) and not self.s.startswith(";;", self.i):
            self.i += 1
        self.expect("do")
        body = self.body()
        self.expect("done")
        return body

    def for_command(self, line: int) -> ast.Command:
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
            raise ShellSyntaxError(f"line {line}: `{self.s[word.position : self.i]}': not a valid identifier")
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
        self.newlines()
        word = self.reserved()
        if not self.s.startswith("(", self.i) and word not in ("{", "[[", "if", "for", "while", "until", "case"):
            raise self.unexpected_here()
        self.enter()
        body = self.command()
        self.depth -= 1
        return ast.Function(_NOWHERE, line, name, body)

    # -- simple commands ---------------------------------------------------------------------------------------------

    def simple(self, line: int) -> ast.Command:
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
            word = self.read_word()
            if not word.parts:
                raise self.unexpected_here()
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
                self.brackets += [w.position for w in words if isinstance(w, ast.Word) and w.plain in ("[", "]")]
        return ast.Simple(tuple(assignments), tuple(words), tuple(redirects), line)

    def function_parens(self, word: ast.Word | ast.Assignment, line: int) -> ast.Function:
        m = re.compile(r"\([ \t]*\)").match(self.s, self.i)
        if not m:
            self.i += 1
            raise self.unexpected_here()
        if not isinstance(word, ast.Word) or word.plain is None or len(word.parts) != 1 or not isinstance(word.parts[0], ast.Literal):
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
            try:
                index = self.subscript()
            except ShellSyntaxError:
                self.i = start
                return None
            operator = re.compile(r"\+?=").match(self.s, self.i)
            if not operator:
                self.i = start
                return None
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

    def array(self) -> ast.ArrayValue:
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
            if self.s.startswith("{", self.i) and re.compile(r"\{[A-Za-z_]\w*\}[<>]").match(self.s, self.i):
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
            if any(not isinstance(p, ast.Literal | ast.Quoted | ast.DoubleQuoted) for p in word.parts) or "$" in raw or "`" in raw:
                raise Unsupported("here-document delimiter with expansions")
            delimiter = "".join(q.text for p in word.parts for q in (p.parts if isinstance(p, ast.DoubleQuoted) else [p]))  # type: ignore[union-attr]
            redirect = ast.Redirect("<<", fd, word)
            self.pending.append((redirect, delimiter, quoted, operator == "<<-", line))
            return redirect
        if operator in ("<<<", "&>", "&>>") or operator == ">&" and not (word.plain or "x").strip("0123456789-") == "":
            self.bashisms.append(operator)
        if operator == "<>":
            raise Unsupported("<> redirection")
        return ast.Redirect(operator, fd, word)

    # -- [[ ]] -------------------------------------------------------------------------------------------------------

    def condition_blank(self) -> None:
        self.newlines()

    def condition_error(self) -> ShellSyntaxError | Unsupported:
        return Unsupported("[[ ]] of this form") if self.i < self.n else self.unexpected_here()

    def condition_or(self) -> ast.Test:
        left = self.condition_and()
        self.condition_blank()
        if self.s.startswith("||", self.i):
            self.i += 2
            return ast.Logical("||", left, self.condition_or())
        return left

    def condition_and(self) -> ast.Test:
        left = self.condition_term()
        self.condition_blank()
        if self.s.startswith("&&", self.i):
            self.i += 2
            return ast.Logical("&&", left, self.condition_and())
        return left

    def condition_term(self) -> ast.Test:
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
        word = self.condition_word()
        raw = word.plain if len(word.parts) == 1 and isinstance(word.parts[0], ast.Literal) else None
        if raw in _UNARY:
            before = self.i
            self.skip()
            m = _RESERVED.match(self.s, self.i)
            if not (m and m[0] == "]]") and self.s[self.i : self.i + 1] not in tuple("&|)\n") + ("",):
                if raw in ("-o", "-R", "-v", "-t", "-N", "-G", "-O", "-u", "-g", "-k") and raw in ("-R", "-N"):
                    raise Unsupported(f"[[ {raw} ]]")
                return ast.Unary(raw, self.condition_word())  # type: ignore[arg-type]
            self.i = before
        self.skip()
        m = re.compile(r"(?:=~|==|!=|=|<|>|-[a-z]{2})(?=\s)").match(self.s, self.i)
        if m and m[0] in _BINARY:
            self.i = m.end()
            self.skip()
            return ast.Binary(m[0], word, self.regex_word() if m[0] == "=~" else self.condition_word())
        return ast.Unary("-n", word)

    def condition_word(self) -> ast.Word:
        self.skip()
        word = self.read_word()
        m = re.compile(r"[?*+@!]\Z").search(self.s[word.position : self.i])
        if m and self.s.startswith("(", self.i):
            raise Unsupported("extended pattern")
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
