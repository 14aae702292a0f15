"""What of the config a stage says that it reads, and a view of the config that gives nothing else.

    @reads("teacher", "distill.max_tokens")
    def alone(out, context, ...): ...

The declared fields are what the stage's key holds (`keys.py`). Its function gets a `View` that
raises `UndeclaredRead` for any other field, so that what is read is in the key. This module is part
of every stage's code, and therefore imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., None])

# How a run is saved and watched; no result depends on it, so that every stage may read it.
WATCHED = ("checkpoint", "metrics")
# The same, and how a run lies on its devices, on which only the last bits of sums depend: no key
# holds these but the one of the results, which record their mesh.
HOW = (*WATCHED, "mesh")
# Any stage may draw random numbers: every key holds the seed.
ALWAYS = ("seed",)
EVERYTHING = "*"  # declared by what records the whole config; all but `WATCHED`


class UndeclaredRead(Exception):
    """A stage has read a field that its key does not hold: a bug of this package."""


def reads(*fields: str) -> Callable[[Function], Function]:
    """Declares the config fields that a stage's function reads.

    Args:
      fields: dotted names; that of a whole room stands for all its fields, `EVERYTHING` for all.
    """

    def declared(function: Function) -> Function:
        function.reads = fields  # type: ignore[attr-defined]  # a function's own attribute
        return function

    return declared


class View(Mapping[str, Any]):
    """The declared fields of a config, read as attributes or items.

    Args:
      fields: the config, or a room of it.
      declared: dotted names.
      stage: for the error's sentence.
      prefix: "", or the room's name and a dot.
    """

    def __init__(
        self, fields: Mapping[str, Any], declared: Iterable[str], stage: str, prefix: str = ""
    ):
        self._fields, self._declared = fields, frozenset(declared)
        self._stage, self._prefix = stage, prefix

    def __getitem__(self, name: str) -> Any:
        path = self._prefix + name
        # `WATCHED` is read by name also where everything is declared: no key holds it.
        if EVERYTHING in self._declared and path not in WATCHED or path in self._declared:
            return self._fields[name]
        if any(field.startswith(path + ".") for field in self._declared):
            return View(self._fields[name], self._declared, self._stage, path + ".")
        raise UndeclaredRead(
            f"{self._stage} reads config.{path}, which its key does not hold: "
            "name it in the @reads(...) of its function."
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for by copying and printing, never a field
            raise AttributeError(name)
        return self[name]

    def __contains__(self, name: object) -> bool:
        # Whether a field is there is a read, too; absent ones are for the config to refuse.
        self[str(name)]
        return True

    def __iter__(self) -> Iterator[str]:
        if EVERYTHING in self._declared:
            return (name for name in self._fields if name not in WATCHED)
        raise UndeclaredRead(
            f"{self._stage} goes through all fields of config.{self._prefix.rstrip('.')}: "
            "name them in the @reads(...) of its function."
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)
