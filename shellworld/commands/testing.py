"""test and [."""

from __future__ import annotations

from shellworld.commands import Context, Unsupported, builtin, command
from shellworld.interpreter.conditions import (
    COMPARISONS,
    FILE_TESTS,
    compare_files,
    compare_numbers,
    file_test,
    is_set,
    option_is_on,
)
from shellworld.interpreter.variables import ShellError

_UNARY = FILE_TESTS | {"-n", "-z", "-t", "-v", "-o", "-R"}
_BINARY = COMPARISONS | {"=", "==", "!=", "<", ">", "-nt", "-ot", "-ef"}


# Dash has no ==, no -v, and other ways with -a and -o.
_POSIX_FREE = frozenset({"==", "-v", "-o", "-a"})


class _Fault(Exception):
    pass


class _Test:
    """Evaluates by the number of arguments, as POSIX says, and by precedence beyond four."""

    def __init__(self, ctx: Context, in_shell: bool):
        self.ctx = ctx
        self.in_shell = in_shell

    def evaluate(self, args: list[str]) -> bool:
        n = len(args)
        if n == 0:
            return False
        if n == 1:
            return args[0] != ""
        if n == 2:
            if args[0] == "!":
                return args[1] == ""
            if args[0] in _UNARY:
                return self.unary(args[0], args[1])
            raise _Fault(f"{args[0]}: unary operator expected")
        if n == 3:
            if args[1] in _BINARY:
                return self.binary(*args)
            if args[1] in ("-a", "-o"):
                return (
                    (args[0] != "" and args[2] != "")
                    if args[1] == "-a"
                    else (args[0] != "" or args[2] != "")
                )
            if args[0] == "!":
                return not self.evaluate(args[1:])
            if args[0] == "(" and args[2] == ")":
                return args[1] != ""
            raise _Fault(f"{args[1]}: binary operator expected")
        if n == 4:
            if args[0] == "!":
                return not self.evaluate(args[1:])
            if args[0] == "(" and args[3] == ")":
                return self.evaluate(args[1:3])
        self.args = args
        self.at = 0
        value = self.disjunction()
        if self.at < len(args):
            raise _Fault("too many arguments")
        return value

    def disjunction(self) -> bool:
        value = self.conjunction()
        while self.at < len(self.args) and self.args[self.at] == "-o":
            self.at += 1
            right = self.conjunction()
            value = value or right
        return value

    def conjunction(self) -> bool:
        value = self.term()
        while self.at < len(self.args) and self.args[self.at] == "-a":
            self.at += 1
            right = self.term()
            value = value and right
        return value

    def term(self) -> bool:
        args, negated = self.args, False
        while self.at < len(args) and args[self.at] == "!":
            negated = not negated
            self.at += 1
        if self.at >= len(args):
            raise _Fault("argument expected")
        if self.at + 2 < len(args) and args[self.at + 1] in _BINARY:
            value = self.binary(*args[self.at : self.at + 3])
            self.at += 3
        elif args[self.at] == "(":
            self.at += 1
            value = self.disjunction()
            if self.at >= len(args) or args[self.at] != ")":
                raise _Fault("`)' expected")
            self.at += 1
        elif args[self.at] in _UNARY and self.at + 1 < len(args):
            value = self.unary(args[self.at], args[self.at + 1])
            self.at += 2
        else:
            value = args[self.at] != ""
            self.at += 1
        return value != negated

    def unary(self, operator: str, text: str) -> bool:
        if operator in ("-n", "-z"):
            return (text == "") == (operator == "-z")
        if operator == "-t":
            self.integer(text)
            return False
        if operator in ("-v", "-o", "-R"):
            if not self.in_shell:
                raise _Fault(f"{operator}: unary operator expected")
            return (
                is_set(self.ctx.shell, text)
                if operator == "-v"
                else operator == "-o" and option_is_on(self.ctx.shell, text)
            )
        return file_test(operator, self.ctx.path(text), self.ctx.fs, self.ctx.who)

    def binary(self, left: str, operator: str, right: str) -> bool:
        if operator in ("=", "=="):
            return left == right
        if operator == "!=":
            return left != right
        if operator in ("<", ">"):
            return left < right if operator == "<" else left > right
        if operator in COMPARISONS:
            return compare_numbers(operator, self.integer(left), self.integer(right))
        return compare_files(
            operator, self.ctx.path(left), self.ctx.path(right), self.ctx.fs, self.ctx.who
        )

    def integer(self, text: str) -> int:
        stripped = text.strip()
        digits = stripped[1:] if stripped[:1] in ("-", "+") else stripped
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
            raise _Fault(f"{text}: integer expression expected")
        return int(stripped)


def _run(ctx: Context, argv: list[str], in_shell: bool) -> int:
    args = argv[1:]
    if argv[0] == "[":
        if not args or args[-1] != "]":
            return ctx.fail("missing `]'", 2)
        args = args[:-1]
    try:
        if in_shell and ctx.shell.posix and not _POSIX_FREE.isdisjoint(args):
            raise Unsupported("test == in sh")
        return int(not _Test(ctx, in_shell).evaluate(args))
    except (_Fault, ShellError) as fault:
        return ctx.fail(str(fault), 2)


@builtin("test", "[")
def test(ctx: Context, argv: list[str]) -> int:
    """Tests files, texts and numbers, as the builtin does."""
    return _run(ctx, argv, True)


@command("test", "[")
def test_program(ctx: Context, argv: list[str]) -> int:
    """Tests files, texts and numbers, as the program does."""
    return _run(ctx, argv, False)
