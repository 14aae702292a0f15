"""The operators of ${name...} that work on text.

They are removal, replacement, case, slices, and quoting for reuse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shellworld.interpreter.result import Unsupported
from shellworld.interpreter.variables import ShellError
from shellworld.language import ast, pattern
from shellworld.language.quoting import ansi_c, quote_value

if TYPE_CHECKING:
    from shellworld.interpreter.expand import Expander


def operate(
    expander: Expander, p: ast.Parameter, value: str | list[str] | None
) -> str | list[str] | None:
    """Applies the operator of ${name...} (other than - = ? +) to a text or to each of a list."""
    operator = p.operator
    if operator == ":":
        return _slice(expander, p, value)
    if operator == "@":
        return _transform(expander, p, value)
    if value is None:
        value = ""
    assert p.argument is not None
    source = expander.pattern(p.argument)
    if operator[0] == "/":
        replacement = expander.text(p.second) if p.second is not None else ""
        if (
            p.second is not None
            and any(isinstance(q, ast.Parameter | ast.CommandSubstitution) for q in p.second.parts)
            and "&" in replacement
        ):
            raise Unsupported("& in a replacement")
        if p.second is not None and any(
            isinstance(q, ast.Literal) and "&" in q.text for q in p.second.parts
        ):
            raise Unsupported("& in a replacement")

        def apply(text: str) -> str:
            expander.shell.meter.tick(len(text) >> 4)
            new = pattern.replace(text, source, replacement, operator, expander.shell.meter.tick)
            expander.shell.meter.word(len(new))
            return new

    elif operator[0] == "#":

        def apply(text: str) -> str:
            return pattern.strip_prefix(text, source, operator == "##")

    elif operator[0] == "%":

        def apply(text: str) -> str:
            return pattern.strip_suffix(text, source, operator == "%%")

    else:

        def apply(text: str) -> str:
            return _change_case(text, source or "?", operator)

    return [apply(element) for element in value] if isinstance(value, list) else apply(value)


def _change_case(text: str, source: str, operator: str) -> str:
    change = str.upper if operator[0] == "^" else str.lower

    def one(c: str) -> str:
        changed = change(c)
        return changed if len(changed) == 1 and pattern.matches(c, source) else c

    if len(operator) == 1:
        return one(text[0]) + text[1:] if text else text
    return "".join(one(c) for c in text)


def _slice(
    expander: Expander, p: ast.Parameter, value: str | list[str] | None
) -> str | list[str] | None:
    """Returns ${name:offset:length}; of a list, some of its elements.

    The positional parameters count from 1, and $0 is before them.
    """
    assert p.argument is not None
    scope = expander.shell.scope
    if value is None:
        return ""
    offset = scope.evaluate(expander.text(p.argument))
    length = scope.evaluate(expander.text(p.second)) if p.second is not None else None
    if isinstance(value, list):
        if p.index is None:
            value = [expander.shell.arg0, *value]
        elif scope.names.get(p.name) is not None and isinstance(scope.names[p.name].value, dict):
            return _slice_array(expander, p, offset, length)
        size = len(value)
    else:
        if not value.isascii():
            raise Unsupported("${name:offset} of bytes beyond ASCII")
        size = len(value)
    start = offset if offset >= 0 else size + offset
    if start < 0 or start > size:
        return [] if isinstance(value, list) else ""
    if length is None:
        return value[start:]
    if length < 0:
        if isinstance(value, list):
            raise ShellError(f"{length}: substring expression < 0")
        end = size + length
        if end < start:
            raise ShellError(f"{length}: substring expression < 0")
        return value[start:end]
    return value[start : start + length]


def _slice_array(
    expander: Expander, p: ast.Parameter, offset: int, length: int | None
) -> list[str]:
    """Slices of arrays go by index: elements from the first index >= offset on."""
    values = expander.shell.scope.names[p.name].value
    assert isinstance(values, dict)
    keys = list(values)
    if not expander.shell.scope.names[p.name].associative:
        keys.sort()
        if offset < 0:
            offset += (keys[-1] + 1) if keys else 0
            if offset < 0:
                return []
        keys = [k for k in keys if k >= offset]
    else:
        keys = keys[max(offset - 1, 0) :] if offset >= 0 else keys[offset:]
    if length is not None and length < 0:
        raise ShellError(f"{length}: substring expression < 0")
    return [values[k] for k in (keys if length is None else keys[:length])]


def _transform(
    expander: Expander, p: ast.Parameter, value: str | list[str] | None
) -> str | list[str] | None:
    """${name@Q} and its kin."""
    kind = p.argument.plain if p.argument is not None else ""
    variable = expander.shell.scope.names.get(p.name)
    if kind == "a":
        if variable is None:
            return ""
        flags = "A" if variable.associative else "a" if isinstance(variable.value, dict) else ""
        return (
            flags
            + "i" * variable.integer
            + variable.fold
            + "r" * variable.readonly
            + "x" * variable.exported
        )
    if value is None:
        return None
    change = {
        "Q": quote_value,
        "U": str.upper,
        "L": str.lower,
        "u": lambda text: text[:1].upper() + text[1:],
        "E": ansi_c,
    }[kind or ""]
    return [change(element) for element in value] if isinstance(value, list) else change(value)
