"""Parses awk programs into tuples whose first item names the construct."""

from __future__ import annotations

import re

from shellworld.commands import Unsupported
from shellworld.commands.awk_lexer import BUILTINS, KEYWORDS, AwkError, Lexer, unescape

MAX_DEPTH = 60


class Parser(Lexer):
    """One program.

    Attributes:
      begin, end, rules: [(pattern or None, statement or None)]; functions: {name: (parameters,
        statement)}.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self.begin: list[tuple] = []
        self.end: list[tuple] = []
        self.rules: list[tuple] = []
        self.functions: dict[str, tuple[list[str], tuple]] = {}
        self.depth = 0
        self.outside = False  # in BEGIN or END, where there is no next record
        self.advance()
        self.program()

    # -- program -----------------------------------------------------------------------

    def program(self) -> None:
        """Reads all rules and functions."""
        while True:
            while self.kind in ("\n", ";"):
                self.advance()
            if self.kind == "end":
                return
            if self.accept("function"):
                self.function()
            elif self.kind in ("BEGIN", "END"):
                where = self.begin if self.kind == "BEGIN" else self.end
                self.advance()
                if self.kind != "{":
                    raise AwkError("syntax error")
                self.outside = True
                where.append(self.block())
                self.outside = False
            else:
                pattern = body = None
                if self.kind != "{":
                    pattern = self.expression()
                    if self.accept(","):
                        self.newlines()
                        pattern = ("range", pattern, self.expression())
                if self.kind == "{":
                    body = self.block()
                elif self.kind not in ("\n", ";", "end"):
                    raise AwkError(f"syntax error at or near {self.value}")
                self.rules.append((pattern, body))

    def function(self) -> None:
        """Reads a function after the word `function`."""
        name = self.value
        if self.kind not in ("call", "name"):
            raise AwkError("syntax error")
        self.advance()
        self.expect("(")
        parameters = []
        while self.kind == "name":
            parameters.append(self.value)
            self.advance()
            if not self.accept(","):
                break
            self.newlines()
        self.expect(")")
        self.newlines()
        if name in self.functions or len(set(parameters)) < len(parameters):
            raise AwkError(f"function {name} is defined twice")
        self.functions[name] = parameters, self.block()

    # -- statements --------------------------------------------------------------------

    def block(self) -> tuple:
        """Reads statements in braces."""
        self.expect("{")
        statements: list[tuple] = []
        while True:
            while self.kind in ("\n", ";"):
                self.advance()
            if self.accept("}"):
                return ("block", statements)
            if self.kind == "end":
                raise AwkError("unexpected end of file")
            statements.append(self.statement())

    def nested(self) -> tuple:
        """Reads the statement that an `if` or a loop governs; it may be empty."""
        self.newlines()
        if self.accept(";"):
            return ("block", [])
        return self.statement()

    def statement(self) -> tuple:
        """Reads a statement, counting how deep it is nested."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("awk program of this depth")
        result = self.one_statement()
        self.depth -= 1
        return result

    def one_statement(self) -> tuple:
        """Reads a statement with what ends it."""
        kind = self.kind
        if kind == "{":
            block = self.block()
            return block
        if kind not in KEYWORDS or kind in ("getline", "in", "delete", "print", "printf"):
            simple = self.simple()
            self.ends()
            return simple
        self.advance()
        if kind == "if":
            self.expect("(")
            test = self.expression()
            self.expect(")")
            then = self.nested()
            mark = self.at, self.kind, self.value
            while self.kind in ("\n", ";"):
                self.advance()
            if self.accept("else"):
                return ("if", test, then, self.nested())
            self.at, self.kind, self.value = mark
            return ("if", test, then, None)
        if kind == "while":
            self.expect("(")
            test = self.expression()
            self.expect(")")
            return ("while", test, self.nested())
        if kind == "do":
            body = self.nested()
            while self.kind in ("\n", ";"):
                self.advance()
            self.expect("while")
            self.expect("(")
            test = self.expression()
            self.expect(")")
            self.ends()
            return ("do", body, test)
        if kind == "for":
            return self.for_loop()
        value = None
        if kind in ("exit", "return") and self.kind not in (";", "\n", "}", "end"):
            value = self.expression()
        elif self.outside and kind in ("next", "nextfile"):
            raise AwkError(f"improper use of {kind}")
        elif kind not in ("exit", "return", "break", "continue", "next", "nextfile"):
            raise AwkError(f"syntax error at or near {kind}")
        self.ends()
        return (kind, value)

    def for_loop(self) -> tuple:
        """Reads a `for` after its word: over the keys of an array, or with three clauses."""
        self.expect("(")
        match = re.compile(r"\s*in\s+([A-Za-z_]\w*)\s*\)").match(self.text, self.at)
        if self.kind == "name" and match:
            variable = self.value
            self.at = match.end()
            self.advance()
            return ("forin", variable, match[1], self.nested())
        first = test = step = None
        if self.kind != ";":
            first = self.simple()
        self.expect(";")
        self.newlines()
        if self.kind != ";":
            test = self.expression()
        self.expect(";")
        self.newlines()
        if self.kind != ")":
            step = self.simple()
        self.expect(")")
        return ("for", first, test, step, self.nested())

    def simple(self) -> tuple:
        """Reads a print, a delete or an expression."""
        if self.kind in ("print", "printf"):
            return self.output()
        if self.accept("delete"):
            name = self.value
            if self.kind not in ("name", "call"):
                raise AwkError("syntax error")
            self.advance()
            if self.accept("["):
                index = self.arguments("]")
                return ("delete", name, index)
            return ("delete", name, None)
        return ("expression", self.expression())

    def output(self) -> tuple:
        """Reads print or printf with its items and redirection."""
        kind = self.kind
        self.advance()
        items: list[tuple] = []
        if self.kind not in (";", "\n", "}", "end", ">", ">>", "|"):
            items = [self.expression(no_gt=True)]
            while self.accept(","):
                self.newlines()
                items.append(self.expression(no_gt=True))
            if len(items) == 1 and items[0][0] == "grouped":
                items = items[0][1]
        if kind == "printf" and not items:
            raise AwkError("no arguments in call to printf")
        target = None
        if self.kind in (">", ">>", "|"):
            mode = self.kind
            self.advance()
            target = (mode, self.conditional(self.concatenation(True), True))
        return (kind, items, target)

    # -- expressions, loosest first ----------------------------------------------------

    def arguments(self, close: str) -> list[tuple]:
        """Reads expressions with commas between them, up to the closing token."""
        items = []
        self.newlines()
        while self.kind != close:
            items.append(self.expression())
            self.newlines()
            if not self.accept(","):
                break
            self.newlines()
        self.expect(close)
        return items

    def expression(self, no_gt: bool = False) -> tuple:
        """Reads an expression.

        Args:
          no_gt: `>` is no comparison, as in print.
        """
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("awk program of this depth")
        test = self.disjunction(no_gt)
        if self.kind in ("=", "+=", "-=", "*=", "/=", "%=", "^="):
            if test[0] not in ("variable", "index", "field"):
                raise AwkError("syntax error at or near =")
            operator = self.kind
            self.advance()
            self.newlines()
            test = ("assign", operator[:-1], test, self.expression(no_gt))
        else:
            test = self.conditional(test, no_gt)
        self.depth -= 1
        return test

    def conditional(self, test: tuple, no_gt: bool) -> tuple:
        """Reads what follows a test: `? then : else`, or nothing."""
        if not self.accept("?"):
            return test
        self.newlines()
        then = self.expression(no_gt)
        self.newlines()
        self.expect(":")
        self.newlines()
        return ("choose", test, then, self.expression(no_gt))

    def disjunction(self, no_gt: bool) -> tuple:
        """Reads operands of ||."""
        left = self.conjunction(no_gt)
        while self.accept("||"):
            self.newlines()
            left = ("or", left, self.conjunction(no_gt))
        return left

    def conjunction(self, no_gt: bool) -> tuple:
        """Reads operands of &&."""
        left = self.membership(no_gt)
        while self.accept("&&"):
            self.newlines()
            left = ("and", left, self.membership(no_gt))
        return left

    def membership(self, no_gt: bool) -> tuple:
        """Reads operands of `in`."""
        left = self.matching(no_gt)
        while self.kind == "in":
            self.advance()
            name = self.value
            if self.kind != "name":
                raise AwkError("syntax error")
            self.advance()
            left = ("in", left[1] if left[0] == "grouped" else [left], name)
        if left[0] == "grouped" and not no_gt:
            raise AwkError("syntax error")
        return left

    def matching(self, no_gt: bool) -> tuple:
        """Reads operands of ~ and !~."""
        left = self.comparison(no_gt)
        while self.kind in ("~", "!~"):
            negated = self.kind == "!~"
            self.advance()
            left = ("match", negated, left, self.comparison(no_gt))
        return left

    def comparison(self, no_gt: bool) -> tuple:
        """Reads operands of < <= == != >= >, and of `| getline`."""
        left = self.concatenation(no_gt)
        while True:
            if self.kind in ("<", "<=", "==", "!=", ">=") or (self.kind == ">" and not no_gt):
                operator = self.kind
                self.advance()
                left = ("compare", operator, left, self.concatenation(no_gt))
            elif self.kind == "|" and re.compile(r"[ \t]*getline\b").match(self.text, self.at):
                self.advance()
                self.advance()
                left = ("getline", "|", left, self.target())
            else:
                return left

    def concatenation(self, no_gt: bool) -> tuple:
        """Reads values side by side."""
        left = self.additive()
        while self.kind in (
            "number",
            "string",
            "name",
            "call",
            "builtin",
            "$",
            "!",
            "(",
            "-",
            "+",
            "++",
            "--",
        ):
            if self.kind == "!" and self.text.startswith(("~", "="), self.at):
                break
            left = ("concat", left, self.additive())
        return left

    def additive(self) -> tuple:
        """Reads operands of + and -."""
        left = self.multiplicative()
        while self.kind in ("+", "-"):
            operator = self.kind
            self.advance()
            left = ("arithmetic", operator, left, self.multiplicative())
        return left

    def multiplicative(self) -> tuple:
        """Reads operands of *, / and %."""
        left = self.unary()
        while self.kind in ("*", "/", "%"):
            operator = self.kind
            self.advance()
            left = ("arithmetic", operator, left, self.unary())
        return left

    def unary(self) -> tuple:
        """Reads a value with ! - + before it."""
        if self.kind in ("!", "-", "+"):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise Unsupported("awk program of this depth")
            operator = self.kind
            self.advance()
            inner = ("unary", operator, self.unary())
            self.depth -= 1
            return inner
        return self.power()

    def power(self) -> tuple:
        """Reads operands of ^, which takes its right side first."""
        left = self.postfix()
        if self.accept("^"):
            right = self.unary() if self.kind in ("-", "+", "!") else self.power()
            return ("arithmetic", "^", left, right)
        return left

    def postfix(self) -> tuple:
        """Reads a value with ++ or -- behind it."""
        value = self.primary()
        if self.kind in ("++", "--") and value[0] in ("variable", "index", "field"):
            operator = self.kind
            self.advance()
            return ("step", operator[0], False, value)
        return value

    def target(self) -> tuple | None:
        """The variable that getline fills, if one is named."""
        if self.kind == "$" or self.kind == "name":
            return self.primary()
        return None

    def primary(self) -> tuple:
        """Reads a number, string, regular expression, variable, field, call or parentheses."""
        kind, value = self.kind, self.value
        if kind in ("/", "/="):
            return ("regex", self.regex())
        self.advance()
        if kind == "number":
            return ("number", float(value))
        if kind == "string":
            return ("string", unescape(value[1:-1]))
        if kind == "$":
            if self.kind in ("++", "--"):
                operator = self.kind
                self.advance()
                return ("field", ("step", operator[0], True, self.primary()))
            if self.kind in ("-", "+", "!"):
                return ("field", self.unary())
            return ("field", self.primary())
        if kind in ("++", "--"):
            place = self.primary()
            if place[0] not in ("variable", "index", "field"):
                raise AwkError("syntax error")
            return ("step", kind[0], True, place)
        if kind == "(":
            self.newlines()
            items = self.arguments(")")
            if len(items) == 1:
                return ("group", items[0])
            if not items:
                raise AwkError("syntax error")
            return ("grouped", items)
        if kind == "name":
            if self.accept("["):
                index = self.arguments("]")
                return ("index", value, index)
            return ("variable", value)
        if kind == "call":
            self.expect("(")
            return ("call", value, self.arguments(")"))
        if kind == "builtin":
            items = []
            given = self.kind == "("
            if given:
                self.advance()
                items = self.arguments(")")
            elif value != "length":
                raise AwkError("syntax error")
            low, high = BUILTINS[value]
            if not low <= len(items) <= high:
                raise AwkError(f"wrong number of arguments in call to {value}")
            return ("builtin", value, items)
        if kind == "getline":
            target = self.target()
            if self.accept("<"):
                return ("getline", "<", self.primary(), target)
            return ("getline", "", None, target)
        raise AwkError(f"syntax error at or near {value or 'end of file'}")
