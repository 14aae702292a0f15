"""JSON in files: one way to write it, and one way to read it and to say what is wrong with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from subtransfer.runtime.errors import UserError

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode
_NO_DEFAULT: Any = object()
_WORDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same value always gives the same bytes."""
    return _CANONICAL(value)


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON-serialisable value."""
    return digest_of_text(canonical_json(value))


def digest_of_text(text: str) -> str:
    """16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_json(path: Path, shape: Any, remedy: str, *, default: Any = _NO_DEFAULT) -> Any:
    """Reads a JSON file whose value must have a certain shape.

    Args:
      path: the file.
      shape: what the value must be, as in `misfit`.
      remedy: how the sentence about a bad file ends, e.g. "run the same command again".
      default: returned where there is no such file.

    Raises:
      UserError: there is no such file and no default, or it is no JSON of this shape.
      OSError: the file cannot be read now, which says nothing about what it holds.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        if default is not _NO_DEFAULT:
            return default
        raise UserError(f"There is no file {path}: {remedy}.") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder where a file belongs: move it away.") from error
    return parse_json(data, str(path), shape, remedy)


def read_json_lines(path: Path, shape: Any, remedy: str) -> Iterator[Any]:
    """Reads a file of one JSON value a line, each of the same shape.

    A last line without its end is left out: whoever wrote it was killed meanwhile.

    Args:
      path: the file; one that is missing has no lines.
      shape: what each value must be, as in `misfit`.
      remedy: how the sentence about a bad line ends.

    Raises:
      UserError: another line is no JSON of this shape.
      OSError: the file cannot be read now.
    """
    try:
        # What follows the last end of a line is nothing, or a line that was cut off.
        *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        yield parse_json(line, f"{path}, line {number},", shape, remedy)


def parse_json(data: bytes | str, place: str, shape: Any, remedy: str) -> Any:
    """Reads JSON that does not lie in a file of its own, whose value must have a certain shape.

    Args:
      data: UTF-8, or text.
      place: what the sentence about bad data begins with, e.g. "FILE, line 3,".
      shape: what the value must be, as in `misfit`.
      remedy: how the sentence ends.

    Raises:
      UserError: it is no JSON of this shape.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise UserError(f"{place} is damaged ({error}): {remedy}.") from error
    problem = misfit(value, shape)
    if problem:
        raise UserError(f"{place} does not hold what it should ({problem}): {remedy}.")
    return value


def misfit(value: Any, shape: Any, where: str = "") -> str:
    """Says in what a value differs from a shape, or "" if it does not.

    Args:
      value: as JSON gives it.
      shape: a type (float takes whole numbers, too; object takes anything); a tuple of types, for
        any of them; [SHAPE], a list of such; {str: SHAPE}, an object with any names; or
        {"name": SHAPE, ...}, an object that has these names and may have others.
      where: the value's place in the file, for the sentence.

    Raises:
      TypeError: the shape is none.
    """
    if isinstance(shape, (type, tuple)):
        return _misfit_of_type(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _is_no(value, list, where)
        places = ((f"{where}[{i}]", item, shape[0]) for i, item in enumerate(value))
    elif isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return _is_no(value, dict, where)
        if str in shape:
            places = ((f"{where}.{name}", item, shape[str]) for name, item in value.items())
        else:
            missing = [name for name in shape if name not in value]
            if missing:
                return f"{where.lstrip('.') or 'it'} has no {missing[0]!r}"
            places = ((f"{where}.{name}", value[name], part) for name, part in shape.items())
    else:
        raise TypeError(f"{shape!r} is no shape")
    for place, item, part in places:
        problem = misfit(item, part, place)
        if problem:
            return problem
    return ""


def _misfit_of_type(value: Any, kinds: Any, where: str) -> str:
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    # Python's True is an int; JSON's true is no number.
    if isinstance(value, bool):
        fits = bool in wanted or object in wanted
    else:
        fits = isinstance(value, wanted) or (float in wanted and isinstance(value, int))
    return "" if fits else _is_no(value, wanted[0], where)


def _is_no(value: Any, kind: type, where: str) -> str:
    found = _WORDS.get(type(value), type(value).__name__)
    return f"{where.lstrip('.') or 'it'} is {found} and not {_WORDS.get(kind, kind.__name__)}"
