"""Compiles parsed awk programs to closures over a `Runtime`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shellworld.commands import Unsupported
from shellworld.commands.awk_builtins import compile_builtin
from shellworld.commands.awk_lexer import AwkError
from shellworld.commands.awk_parser import Parser
from shellworld.commands.awk_runtime import AwkFailure, Runtime, regex_of
from shellworld.commands.awk_statements import compile_statement
from shellworld.commands.awk_values import (
    OPERATIONS,
    ORDERS,
    UNSET,
    Array,
    Field,
    Value,
    compare,
    number,
    text_of,
    truth,
)
from shellworld.language.regexes import Regex

Expression = Callable[[], Any]
# What ends it: None, "break", "continue", "next", "nextfile", "return".
Statement = Callable[[], str | None]


class _Exit(Exception):
    pass


class Compiler:
    """Turns a parsed program into functions."""

    def __init__(self, program: Parser, runtime: Runtime):
        self.program = program
        self.runtime = runtime
        self.frame: list[dict[str, Any]] = []  # the locals of the functions being run
        self.locals: set[str] = set()  # while a function is compiled
        self.bodies: dict[str, Statement] = {}
        self.result: Value = UNSET
        self.exit_code = 0
        for name, (parameters, body) in program.functions.items():
            self.locals = set(parameters)
            self.bodies[name] = self.statement(body)
        self.locals = set()

    # -- places ------------------------------------------------------------------------

    def scope(self, name: str) -> Callable[[], dict[str, Any]]:
        """Returns a function that gives the dictionary in which a variable lives."""
        if name in self.locals:
            frame = self.frame
            return lambda: frame[-1]
        variables = self.runtime.variables
        return lambda: variables

    def array(self, name: str) -> Callable[[], Array]:
        """Returns a function that gives the array of a name, made when it is first used."""
        if name in self.program.functions:
            raise AwkError(f"{name} is a function")
        scope = self.scope(name)

        def get() -> Array:
            where = scope()
            value = where.get(name, UNSET)
            if value is UNSET:
                value = where[name] = Array()
            if not isinstance(value, Array):
                if isinstance(value, _Reference):
                    return value.array()
                raise AwkFailure(f"type error: {name} is not an array")
            return value

        return get

    def variable(self, name: str) -> Expression:
        """Compiles the reading of a variable."""
        runtime = self.runtime
        if name == "NF":
            return lambda: float(len(runtime.get_fields()))
        if name in self.program.functions:
            raise AwkError(f"syntax error: {name} is a function")
        scope = self.scope(name)

        def get() -> Value:
            value = scope().get(name, UNSET)
            if isinstance(value, Array):
                raise AwkFailure(f"type error: {name} is an array")
            return UNSET if isinstance(value, _Reference) else value

        return get

    def key(self, items: list[tuple]) -> Expression:
        """The subscript: a value, or several joined by SUBSEP."""
        parts = [self.expression(item) for item in items]
        if len(parts) == 1:
            return parts[0]
        variables = self.runtime.variables

        def joined() -> str:
            convfmt = variables["CONVFMT"]
            return text_of(variables["SUBSEP"], convfmt).join(
                [text_of(part(), convfmt) for part in parts]
            )

        return joined

    def place(
        self, node: tuple
    ) -> tuple[Callable[[], Any], Callable[[Any], Value], Callable[[Any, Value], None]]:
        """Returns (locate, get, set) of something that can be assigned.

        What locate gives is handed to the others, so that an index is evaluated once.
        """
        runtime, variables = self.runtime, self.runtime.variables
        if node[0] == "group":
            return self.place(node[1])
        if node[0] == "field":
            index = self.expression(node[1])
            return (lambda: int(number(index()))), runtime.get, runtime.set
        if node[0] == "index":
            array, key = self.array(node[1]), self.key(node[2])

            def locate() -> tuple[Array, str | None]:
                wanted = key()
                where = array()
                return where, where.use(wanted, variables["CONVFMT"])

            def put(at: tuple[Array, str | None], value: Value) -> None:
                at[0][at[1]] = value

            return locate, lambda at: at[0].get(at[1], UNSET), put
        if node[0] != "variable":
            raise AwkError("syntax error")
        name = node[1]
        get = self.variable(name)
        if name in self.locals:
            frame = self.frame

            def put_local(_: None, value: Value) -> None:
                frame[-1][name] = value

            return (lambda: None), (lambda _: get()), put_local
        if name in ("NF", "FS", "RS"):
            return (lambda: None), (lambda _: get()), (lambda _, value: runtime.assign(name, value))

        def put_global(_: None, value: Value) -> None:
            variables[name] = value

        return (lambda: None), (lambda _: get()), put_global

    # -- expressions -------------------------------------------------------------------

    def expression(self, node: tuple) -> Expression:
        """Compiles an expression to a function of nothing that returns its value."""
        return getattr(self, "_" + node[0])(*node[1:])

    def _number(self, value: float) -> Expression:
        return lambda: value

    def _string(self, value: str) -> Expression:
        return lambda: value

    def _variable(self, name: str) -> Expression:
        return self.variable(name)

    def _group(self, inner: tuple) -> Expression:
        return self.expression(inner)

    def _grouped(self, items: list[tuple]) -> Expression:
        raise AwkError("syntax error")

    def _regex(self, text: str) -> Expression:
        test, runtime = regex_of(text).test, self.runtime
        return lambda: 1.0 if test(runtime.get(0)) else 0.0

    def _field(self, index: tuple) -> Expression:
        get = self.runtime.get
        if index[0] == "number":
            fixed = int(index[1])
            return lambda: get(fixed)
        at = self.expression(index)
        return lambda: get(int(number(at())))

    def _index(self, name: str, items: list[tuple]) -> Expression:
        locate, get, _ = self.place(("index", name, items))
        return lambda: get(locate())

    def _in(self, items: list[tuple], name: str) -> Expression:
        array, key, variables = self.array(name), self.key(items), self.runtime.variables
        return lambda: 0.0 if array().use(key(), variables["CONVFMT"], False) is None else 1.0

    def _assign(self, operator: str, target: tuple, value: tuple) -> Expression:
        locate, get, put = self.place(target)
        right = self.expression(value)
        if not operator:

            def assign() -> Value:
                result = right()
                put(locate(), result)
                return result

            return assign
        operation = OPERATIONS[operator]

        def update() -> float:
            addend = number(right())
            at = locate()
            result = operation(number(get(at)), addend)
            put(at, result)
            return result

        return update

    def _step(self, operator: str, before: bool, target: tuple) -> Expression:
        locate, get, put = self.place(target)
        delta = 1.0 if operator == "+" else -1.0

        def step() -> float:
            at = locate()
            old = number(get(at))
            put(at, old + delta)
            return old + delta if before else old

        return step

    def _choose(self, test: tuple, then: tuple, other: tuple) -> Expression:
        holds = self.condition(test)
        first, second = self.expression(then), self.expression(other)
        return lambda: first() if holds() else second()

    def _or(self, left: tuple, right: tuple) -> Expression:
        first, second = self.condition(left), self.condition(right)
        return lambda: 1.0 if first() or second() else 0.0

    def _and(self, left: tuple, right: tuple) -> Expression:
        first, second = self.condition(left), self.condition(right)
        return lambda: 1.0 if first() and second() else 0.0

    def condition(self, node: tuple) -> Callable[[], bool]:
        """Compiles an expression to a function that returns whether it is true."""
        value = self.expression(node)
        return lambda: truth(value())

    def pattern(self, node: tuple) -> Callable[[], Regex]:
        """A regular expression given as one, or as text."""
        if node[0] == "regex":
            fixed = regex_of(node[1])
            return lambda: fixed
        value, variables = self.expression(node), self.runtime.variables
        return lambda: regex_of(text_of(value(), variables["CONVFMT"]))

    def _match(self, negated: bool, left: tuple, right: tuple) -> Expression:
        value, pattern, variables = (
            self.expression(left),
            self.pattern(right),
            self.runtime.variables,
        )

        def match() -> float:
            text = text_of(value(), variables["CONVFMT"])
            return 1.0 if bool(pattern().test(text)) != negated else 0.0

        return match

    def _compare(self, operator: str, left: tuple, right: tuple) -> Expression:
        first, second = self.expression(left), self.expression(right)
        accept, variables = ORDERS[operator], self.runtime.variables
        return lambda: 1.0 if accept(compare(first(), second(), variables["CONVFMT"])) else 0.0

    def _concat(self, left: tuple, right: tuple) -> Expression:
        first, second = self.expression(left), self.expression(right)
        variables, meter = self.runtime.variables, self.runtime.ctx.meter

        def concat() -> str:
            convfmt = variables["CONVFMT"]
            start = text_of(first(), convfmt)
            result = start + text_of(second(), convfmt)
            if len(result) > 10_000:
                meter.word(len(result))
                meter.tick(len(result) >> 12)
            return str(result)

        return concat

    def _arithmetic(self, operator: str, left: tuple, right: tuple) -> Expression:
        first, second = self.expression(left), self.expression(right)
        operation = OPERATIONS[operator]
        return lambda: operation(number(first()), number(second()))

    def _unary(self, operator: str, inner: tuple) -> Expression:
        if operator == "!":
            test = self.condition(inner)
            return lambda: 0.0 if test() else 1.0
        value = self.expression(inner)
        if operator == "-":
            return lambda: 0.0 - number(value())
        return lambda: number(value())

    def _getline(self, mode: str, source: tuple | None, target: tuple | None) -> Expression:
        runtime = self.runtime
        name = self.expression(source) if source is not None else None
        put = None
        if target is not None:
            locate, _, setter = self.place(target)
            put = lambda text: setter(locate(), Field(text))  # noqa: E731

        def getline() -> float:
            status, record = runtime.getline(mode, text_of(name(), "%.6g") if name else "")
            if record is not None:
                if put is not None:
                    put(record)
                else:
                    runtime.set_record(record)
                if mode == "|":
                    runtime.variables["NR"] = number(runtime.variables["NR"]) + 1.0
            return status

        return getline

    def _call(self, name: str, arguments: list[tuple]) -> Expression:
        if name not in self.program.functions:
            error = AwkError(f"function {name} never defined")
            error.at_end = True
            raise error
        parameters = self.program.functions[name][0]
        if len(arguments) > len(parameters):
            raise AwkError(f"too many arguments in call to {name}")
        values = [self.argument(node) for node in arguments]
        frame, bodies, meter = self.frame, self.bodies, self.runtime.ctx.meter

        def call() -> Value:
            meter.tick()
            if len(frame) > 60:
                raise Unsupported("awk recursion of this depth")
            local = {p: v() for p, v in zip(parameters, values, strict=False)}
            frame.append(local)
            self.result = UNSET
            try:
                bodies[name]()
            finally:
                frame.pop()
            result, self.result = self.result, UNSET
            return result

        return call

    def argument(self, node: tuple) -> Expression:
        """An argument: arrays go by reference, and what was never set may become one."""
        if node[0] != "variable" or node[1] == "NF":
            return self.expression(node)
        name = node[1]
        scope = self.scope(name)

        def get() -> Any:
            where = scope()
            value = where.get(name, UNSET)
            return _Reference(where, name) if value is UNSET else value

        return get

    def _builtin(self, name: str, arguments: list[tuple]) -> Expression:
        return compile_builtin(self, name, arguments)

    # -- statements --------------------------------------------------------------------

    def statement(self, node: tuple) -> Statement:
        """Compiles a statement (see awk_statements.py)."""
        return compile_statement(self, node)

    def leave(self, code: Value | None) -> None:
        """Runs `exit`, with its code if there is one."""
        if code is not None:
            self.exit_code = int(number(code)) & 255
        raise _Exit

    # -- the whole ---------------------------------------------------------------------

    def run(self) -> int:
        """Runs BEGIN, the rules over all input, and END."""
        runtime, program = self.runtime, self.program
        begin = [self.statement(body) for body in program.begin]
        rules = [
            (self.rule(pattern), self.statement(body or ("print", [], None)))
            for pattern, body in program.rules
        ]
        end = [self.statement(body) for body in program.end]
        try:
            for body in begin:
                body()
            if rules or end:
                self.loop(rules)
        except _Exit:
            runtime.ctx.endless = False  # it has not asked for more
        try:
            for body in end:
                body()
        except _Exit:
            pass
        runtime.close_all()
        return self.exit_code

    def loop(self, rules: list[tuple[Callable[[], bool] | None, Statement]]) -> None:
        """Runs the rules on each record of the input."""
        runtime = self.runtime
        while (record := runtime.next_record()) is not None:
            runtime.set_record(record)
            for test, body in rules:
                if test is None or test():
                    ended = body()
                    if ended == "next":
                        break
                    if ended == "nextfile":
                        runtime.reader = None
                        break

    def rule(self, pattern: tuple | None) -> Callable[[], bool] | None:
        """Compiles a pattern to a test of the record; None if all records are selected."""
        if pattern is None:
            return None
        if pattern[0] != "range":
            return self.condition(pattern)
        first, last = self.condition(pattern[1]), self.condition(pattern[2])
        active = False

        def inside() -> bool:
            nonlocal active
            if not active and not first():
                return False
            active = not last()
            return True

        return inside


class _Reference:
    """A variable never set, handed to a function.

    It becomes an array there if the function uses it as one.
    """

    def __init__(self, where: dict[str, Any], name: str):
        self.where, self.name = where, name

    def array(self) -> Array:
        value = self.where.get(self.name, UNSET)
        if isinstance(value, _Reference):
            return value.array()
        if not isinstance(value, Array):
            value = self.where[self.name] = Array()
        return value
