"""The statements of awk, compiled to closures that say what ended them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shellworld.commands.awk_lexer import AwkError
from shellworld.commands.awk_runtime import AwkFailure
from shellworld.commands.awk_values import format_text, text_of

if TYPE_CHECKING:
    from shellworld.commands.awk_compiler import Compiler, Statement


def compile_statement(compiler: Compiler, node: tuple) -> Statement:
    """Returns a function that runs a statement and says how it ended.

    It gives None, or "break", "continue", "next", "nextfile" or "return".
    """
    kind = node[0]
    if kind in ("break", "continue", "next", "nextfile"):
        return lambda: kind
    return _COMPILERS[kind](compiler, *node[1:])


def _block(compiler: Compiler, items: list[tuple]) -> Statement:
    statements = [compiler.statement(item) for item in items]
    if len(statements) == 1:
        return statements[0]

    def run() -> str | None:
        for statement in statements:
            ended = statement()
            if ended:
                return ended
        return None

    return run


def _expression(compiler: Compiler, node: tuple) -> Statement:
    value = compiler.expression(node)

    def run() -> None:
        value()

    return run


def _if(compiler: Compiler, test: tuple, then: tuple, other: tuple | None) -> Statement:
    condition, first = compiler.condition(test), compiler.statement(then)
    second = compiler.statement(other) if other is not None else lambda: None
    return lambda: first() if condition() else second()


def _for(
    compiler: Compiler, first: tuple | None, test: tuple | None, step: tuple | None, body: tuple
) -> Statement:
    start = compiler.statement(first) if first else lambda: None
    condition = compiler.condition(test) if test else lambda: True
    advance = compiler.statement(step) if step else lambda: None
    inner, tick = compiler.statement(body), compiler.runtime.ctx.tick

    def run() -> str | None:
        start()
        while condition():
            tick()
            ended = inner()
            if ended and ended != "continue":
                return None if ended == "break" else ended
            advance()
        return None

    return run


def _while(compiler: Compiler, test: tuple, body: tuple) -> Statement:
    return _for(compiler, None, test, None, body)


def _do(compiler: Compiler, body: tuple, test: tuple) -> Statement:
    condition, inner, tick = (
        compiler.condition(test),
        compiler.statement(body),
        compiler.runtime.ctx.tick,
    )

    def run() -> str | None:
        while True:
            tick()
            ended = inner()
            if ended and ended != "continue":
                return None if ended == "break" else ended
            if not condition():
                return None

    return run


def _forin(compiler: Compiler, variable: str, array: str, body: tuple) -> Statement:
    locate, _, put = compiler.place(("variable", variable))
    get, inner, tick = compiler.array(array), compiler.statement(body), compiler.runtime.ctx.tick

    def run() -> str | None:
        for key in get().ordered():
            tick()
            put(locate(), key)
            ended = inner()
            if ended and ended != "continue":
                return None if ended == "break" else ended
        return None

    return run


def _exit(compiler: Compiler, value: tuple | None) -> Statement:
    code = compiler.expression(value) if value else lambda: None
    return lambda: compiler.leave(code())


def _return(compiler: Compiler, value: tuple | None) -> Statement:
    if not compiler.locals and value is None and not compiler.program.functions:
        raise AwkError("return outside function body")
    get = compiler.expression(value) if value else None

    def run() -> str:
        if get is not None:
            compiler.result = get()
        return "return"

    return run


def _delete(compiler: Compiler, name: str, items: list[tuple] | None) -> Statement:
    array = compiler.array(name)
    if items is None:

        def clear() -> None:
            array().clear()

        return clear
    key, variables = compiler.key(items), compiler.runtime.variables

    def run() -> None:
        where = array()
        where.pop(text_of(key(), variables["CONVFMT"]), None)

    return run


def _print(compiler: Compiler, items: list[tuple], target: tuple | None) -> Statement:
    runtime, variables = compiler.runtime, compiler.runtime.variables
    values = [compiler.expression(item) for item in items]
    write = _writer(compiler, target)
    if not values:

        def write_record() -> None:
            write(text_of(runtime.get(0)) + text_of(variables["ORS"]))

        return write_record

    def run() -> None:
        ofmt = variables["OFMT"]
        texts = [text_of(value(), ofmt) for value in values]
        write(text_of(variables["OFS"]).join(texts) + text_of(variables["ORS"]))

    return run


def _printf(compiler: Compiler, items: list[tuple], target: tuple | None) -> Statement:
    variables = compiler.runtime.variables
    values = [compiler.expression(item) for item in items]
    write = _writer(compiler, target)

    def run() -> None:
        template, *rest = [value() for value in values]
        text, enough = format_text(text_of(template), rest, variables["CONVFMT"])
        write(text)
        if not enough:
            raise AwkFailure("not enough arguments passed to printf")

    return run


def _writer(compiler: Compiler, target: tuple | None) -> Callable[[str], None]:
    runtime = compiler.runtime
    if target is None:
        return runtime.write
    mode, node = target
    name = compiler.expression(node)
    return lambda text: runtime.print_to(mode, text_of(name()), text)


_COMPILERS: dict[str, Callable[..., Statement]] = {
    "block": _block,
    "expression": _expression,
    "if": _if,
    "for": _for,
    "while": _while,
    "do": _do,
    "forin": _forin,
    "exit": _exit,
    "return": _return,
    "delete": _delete,
    "print": _print,
    "printf": _printf,
}
