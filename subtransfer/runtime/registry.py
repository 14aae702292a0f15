"""Records by name: what an objective, a probe, a teacher, a control or a transform is.

Each kind has one registry in the module that defines it. The package registers its own records
when that module is imported; a user's file (a plugin, see `config/plugins.py`) adds more. Every
record has a `name`, and an `origin`: "" where it is the package's own, else the plugin's path.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any, Generic, Protocol, TypeVar

from subtransfer.runtime.errors import UserError


class Record(Protocol):
    """What every registered record has, besides what its kind is made of."""

    @property
    def name(self) -> str:
        """Unique among the records of its kind."""

    @property
    def origin(self) -> str:
        """The plugin's path, or ""."""


R = TypeVar("R", bound=Any)

LONGEST = 64  # characters of a name: folders are named after several at once

_REGISTRIES: list[Registry[Any]] = []
_origin = ""  # of the plugin that is being executed
_changes = 0  # of any registry


class Registry(Generic[R]):
    """The records of one kind, in the order in which they were registered.

    Args:
      kind: what one of them is called in sentences, such as "objective".
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._records: dict[str, R] = {}
        _REGISTRIES.append(self)

    def register(self, record: R) -> R:
        """Adds a record; while a plugin is being executed, its path becomes the record's origin.

        Raises:
          UserError: the name is no identifier, or another record has it.
        """
        if _origin:
            record = dataclasses.replace(record, origin=_origin)
        where = f" of {record.origin}" if record.origin else ""
        name = record.name
        if not (name.isidentifier() and name.isascii() and len(name) <= LONGEST):
            raise UserError(
                f"The {self.kind}{where} cannot be named {name!r}: use at most {LONGEST} letters, "
                "digits and _."
            )
        if record.name in self._records:
            other = self._records[record.name].origin or "the package itself"
            raise UserError(
                f"The {self.kind} {record.name!r}{where} exists already, in {other}: "
                "choose another name."
            )
        global _changes
        self._records[record.name] = record
        _changes += 1
        return record

    def get(self, name: str) -> R:
        """The record of a name.

        Raises:
          UserError: there is none.
        """
        if name not in self._records:
            known = ", ".join(self._records)
            raise UserError(
                f"There is no {self.kind} {name!r} among {known}: if it comes from a file of "
                "yours, name the file in --config.plugins."
            )
        return self._records[name]

    def among(self, plugins: Collection[str]) -> list[R]:
        """The package's own records, then those of the given plugins, each in order.

        Args:
          plugins: absolute paths, as in the `plugins` of a config that has been read.
        """
        return [r for r in self._records.values() if not r.origin or r.origin in plugins]

    def names(self, plugins: Collection[str] = ()) -> tuple[str, ...]:
        """The names of `among(plugins)`."""
        return tuple(record.name for record in self.among(plugins))

    def everything(self) -> list[R]:
        """All records, of all plugins that have been loaded."""
        return list(self._records.values())

    def remove(self, origin: str) -> None:
        """Takes out all records of a plugin."""
        self._records = {n: r for n, r in self._records.items() if r.origin != origin}


@contextlib.contextmanager
def registering(origin: str) -> Iterator[None]:
    """Around the code of a plugin: its records get this origin, and go again if it fails."""
    global _origin
    outer, _origin = _origin, origin
    try:
        yield
    except BaseException:
        forget(origin)
        raise
    finally:
        _origin = outer


def forget(origin: str) -> None:
    """Takes the records of a plugin out of every registry."""
    global _changes
    _changes += 1
    for registry in _REGISTRIES:
        registry.remove(origin)


def version() -> int:
    """A number that differs whenever any registry has changed.

    What is derived from the registries may be kept as long as it is the same.
    """
    return _changes
