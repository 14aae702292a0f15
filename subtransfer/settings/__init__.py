"""The settings: built-in ones by name, and those of users' files by path."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Setting


@dataclasses.dataclass(frozen=True)
class BuiltIn:
    """A setting that comes with the package.

    Attributes:
      module: the module that defines it; imported when it is asked for, so that nothing else loads
        the shell.
      name: of the class in it.
      summary: one line for lists of settings.
    """

    module: str
    name: str
    summary: str


BUILT_IN = {
    "api": BuiltIn("subtransfer.settings.api", "ApiSetting", "file-system tools; deletion"),
    "bash": BuiltIn("subtransfer.settings.bash", "BashSetting", "a shell; chmod"),
}
NAMES = tuple(BUILT_IN)


def is_file(name: str) -> bool:
    """Whether a config's `setting` is the path of a user's file."""
    return name.endswith(".py")


def source(name: str) -> str:
    """What a setting's code begins with: a built-in one's module, or the path of a user's file.

    Its imports, and theirs, are the setting's code; the text of a user's file is its `identity`.
    """
    return name if is_file(name) else BUILT_IN[name].module


def get(name: str) -> Setting:
    """The setting of a name of `NAMES`, or of the path of a Python file (see `habit.py`).

    Raises:
      UserError: there is no such setting, or the file has a mistake; the sentence names it.
    """
    if is_file(name):
        from subtransfer.settings import user_files

        return user_files.load(name)
    if name not in BUILT_IN:
        raise UserError(
            f"There is no setting {name!r}: give one of {', '.join(NAMES)}, or the path of a file "
            "that ends in .py."
        )
    built_in = BUILT_IN[name]
    return getattr(importlib.import_module(built_in.module), built_in.name)()


def identity(name: str) -> Any:
    """What decides a setting, as JSON for keys: a built-in one's name, or a file's contents.

    Raises:
      UserError: as `get`.
    """
    if is_file(name):
        from subtransfer.settings import user_files

        return user_files.identity(name)
    return name
