"""Shell variables: scalars and arrays, attributes, local scopes, and what is exported."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from shellworld.language.arithmetic import ArithmeticFault, evaluate


class ShellError(Exception):
    """Ends the current command with status 1 and "bash: line N: MESSAGE".

    Attributes:
      fatal: it ends the shell, too, as ${x?} and set -u do.
    """

    def __init__(self, message: str, fatal: bool = False, status: int = 1):
        super().__init__(message)
        self.fatal = fatal
        self.status = status
        self.stderr: Any = None  # where it is reported, if not to the shell's own stderr


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """A value and its attributes; never changed in place, so that subshells can share it.

    Attributes:
      value: text; or {index: text} of an array (indices are numbers, or texts if `associative`);
        None if declared only.
      fold: "" or "l" or "u": what case assigned text gets.
    """

    value: str | dict | None = None
    exported: bool = False
    readonly: bool = False
    integer: bool = False
    associative: bool = False
    fold: str = ""

    def text(self, index: int | str = 0) -> str | None:
        """A scalar's value, or an array's element."""
        value = self.value
        if isinstance(value, dict):
            return value.get("0" if self.associative and index == 0 else index)
        return value if index == 0 else None

    def elements(self) -> list[str]:
        """All values, an array's by index."""
        if isinstance(self.value, dict):
            return [self.value[k] for k in self.indices()]
        return [] if self.value is None else [self.value]

    def indices(self) -> list:
        """The indices of an array, in order; 0 for a scalar."""
        if isinstance(self.value, dict):
            return list(self.value) if self.associative else sorted(self.value)
        return [] if self.value is None else [0]


DECLARED = Variable(exported=True)  # one that is handed on as soon as it has a value


@functools.lru_cache(1024)
def _exported(value: str) -> Variable:
    return Variable(value, exported=True)


@functools.lru_cache(4096)
def _bucket(name: str) -> int:
    """Where a name stands in bash's table of variables, from which it makes environments."""
    number = 2166136261  # FNV-1 of 32 bits, in 1024 buckets
    for byte in name.encode("utf-8", "surrogateescape"):
        number = (number * 16777619 & 0xFFFFFFFF) ^ byte
    return number & 1023


@functools.lru_cache(4096)
def _dash_bucket(name: str) -> int:
    """Where a name stands in dash's table of variables."""
    data = name.encode("utf-8", "surrogateescape")
    return ((data[0] << 4) + sum(data)) % 39


class Scope:
    """All variables of a shell, with the frames of the functions that are running.

    Attributes:
      names: variables by name.
      frames: for each running function, what its local variables hide.
      computed: gives the value of a variable that is made when it is read, such as RANDOM; None for
        other names.
      dash: whether the shell is dash, which hands variables on in another order.
    """

    def __init__(
        self,
        exported: Mapping[str, str],
        computed: Callable[[str], str | None],
        dash: bool = False,
    ):
        self.dash = dash
        self.inherited = "_" in exported and not dash
        self.names: dict[str, Variable] = {
            name: _exported(value) for name, value in exported.items()
        }
        self.frames: list[dict[str, Variable | None]] = []
        self.computed = computed
        self._env: dict[str, str] | None = None

    def fork(self, computed: Callable[[str], str | None]) -> Scope:
        """Returns a copy for a subshell, whose changes are not seen here."""
        copy = Scope.__new__(Scope)
        copy.names = self.names.copy()
        copy.frames = [frame.copy() for frame in self.frames]
        copy.computed = computed
        copy.dash = self.dash
        copy.inherited = self.inherited
        copy._env = self._env
        return copy

    def get(self, name: str) -> str | None:
        """The value of a scalar (element 0 of an array), or None."""
        variable = self.names.get(name)
        if variable is not None:
            value = variable.value
            return value if value is None or isinstance(value, str) else variable.text()
        return self.computed(name)

    def set(self, name: str, value: str, append: bool = False) -> None:
        """Assigns to a scalar, or to element 0 of an array."""
        old = self.names.get(name)
        if old is None:
            self.names[name] = Variable(value)
            return
        if isinstance(old.value, dict):
            self.set_element(name, "0" if old.associative else 0, value, append)
            return
        value = self._converted(name, old, value, old.value if append else None)
        if old.exported:
            self._env = None
        self.names[name] = dataclasses.replace(old, value=value)

    def _converted(self, name: str, variable: Variable, value: str, old: str | None) -> str:
        """Returns what an assignment stores, after the attributes.

        Raises:
          ShellError: the variable is read-only.
        """
        if variable.readonly:
            raise ShellError(f"{name}: readonly variable")
        if variable.integer:
            number = self.evaluate(value)
            return str(number + (self.evaluate(old or "0") if old is not None else 0))
        value = (old or "") + value
        if variable.fold == "l":
            return value.lower()
        return value.upper() if variable.fold == "u" else value

    def set_element(self, name: str, index: int | str, value: str, append: bool = False) -> None:
        """Sets an element of an array, or appends to it; a scalar becomes an array.

        Raises:
          ShellError: the variable is read-only, or a negative index is before the first element.
        """
        old = self.names.get(name) or Variable()
        values: dict[Any, str] = {}
        if isinstance(old.value, dict):
            values = dict(old.value)
        elif old.value is not None:
            values[0] = old.value
        if isinstance(index, int) and index < 0:
            index += max(values, default=-1) + 1
            if index < 0:
                raise ShellError(f"{name}[{index}]: bad array subscript")
        values[index] = self._converted(name, old, value, values.get(index, "") if append else None)
        self.names[name] = dataclasses.replace(old, value=values)

    def set_array(self, name: str, values: dict, associative: bool) -> None:
        """Replaces all elements of an array; ShellError if the variable is read-only."""
        old = self.names.get(name) or Variable()
        if old.readonly:
            raise ShellError(f"{name}: readonly variable")
        self.names[name] = dataclasses.replace(old, value=values, associative=associative)

    def declare(self, name: str, **attributes: Any) -> None:
        """Changes attributes; makes the variable if there is none."""
        self._env = None
        self.names[name] = dataclasses.replace(self.names.get(name) or Variable(), **attributes)

    def handed_on(self, env: Mapping[str, str], path: str) -> dict[str, str]:
        """Returns a program's environment with `_`, the path that it is started by.

        Bash appends it, or has it where it stands among the variables if it was given one itself.
        """
        if not self.inherited:
            return {**env, "_": path}
        items = list(env.items())
        at = len(items)
        while at and _bucket(items[at - 1][0]) > _bucket("_"):
            at -= 1
        return dict([*items[:at], ("_", path), *items[at:]])

    def unset(self, name: str) -> None:
        """Removes a variable; ShellError if it is read-only."""
        variable = self.names.get(name)
        if variable is not None:
            if variable.readonly:
                raise ShellError(f"{name}: cannot unset: readonly variable")
            if variable.exported:
                self._env = None
            del self.names[name]

    def unset_element(self, name: str, index: int | str) -> None:
        """Removes one element of an array, if it is there."""
        variable = self.names.get(name)
        if variable is not None and isinstance(variable.value, dict):
            values = dict(variable.value)
            if isinstance(index, int) and index < 0:
                index += max(values, default=-1) + 1
            values.pop(index, None)
            self.names[name] = dataclasses.replace(variable, value=values)

    def make_local(self, name: str) -> None:
        """Hides the variable until the running function returns."""
        frame = self.frames[-1]
        if name not in frame:
            old = frame[name] = self.names.get(name)
            self._env = None
            if old is None or not old.exported:
                self.names.pop(name, None)
                self.names[name] = Variable()
            else:
                self.names[name] = Variable(exported=True)

    def leave(self) -> None:
        """Restores what the returning function's local variables hid."""
        for name, old in self.frames.pop().items():
            self._env = None
            if old is None:
                self.names.pop(name, None)
            else:
                self.names[name] = old

    def exported(self) -> dict[str, str]:
        """The environment of a program, in the shell's own order; not to be changed."""
        if self._env is None:
            names = [name for name, v in self.names.items() if v.exported]
            names.sort(key=_dash_bucket if self.dash else _bucket)
            found = ((name, self.names[name]) for name in names)
            self._env = {name: v.value for name, v in found if isinstance(v.value, str)}
        return self._env

    # -- arithmetic --------------------------------------------------------------------

    def evaluate(self, expression: str) -> int:
        """Value of an arithmetic expression; raises ShellError."""
        try:
            return evaluate(expression, self)
        except ArithmeticFault as fault:
            raise ShellError(f"{expression.strip()}: {fault}") from fault

    def index(self, name: str, text: str) -> int | str:
        """An array subscript's meaning: a key, or a number by arithmetic."""
        variable = self.names.get(name)
        if variable is not None and variable.associative:
            return text
        return self.evaluate(text)

    def arithmetic_get(self, name: str, index: str | None) -> str:
        """Returns the text of a variable, or of its element, for arithmetic; "" if it is unset."""
        if index is None:
            return self.get(name) or ""
        variable = self.names.get(name)
        if variable is None:
            return ""
        key = self.index(name, index)
        if isinstance(key, int) and key < 0 and isinstance(variable.value, dict):
            key += max(variable.value, default=-1) + 1
        return variable.text(key) or ""

    def arithmetic_set(self, name: str, index: str | None, value: str) -> None:
        """Assigns what arithmetic gives to a variable or to its element."""
        if index is None:
            self.set(name, value)
        else:
            self.set_element(name, self.index(name, index), value)
