"""Files of a user's own that add objectives, probes, teachers, controls and transforms.

A plugin is a Python file that calls `register` of these modules; `--config.plugins=("mine.py",)`
names it. It is executed once in a process, with all rights of the process: it is code, as a config
file is. Its records count only in configs that name it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from subtransfer.config import fields
from subtransfer.runtime import registry
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.user_code import failures_of

_loaded: dict[str, str] = {}  # path -> the digest of what was executed


def load(paths: Sequence[str], folder: str | Path = ".") -> tuple[str, ...]:
    """Executes the plugins that have not been yet; one whose file has changed is executed anew.

    Args:
      paths: of the files, "~" allowed.
      folder: what relative ones are relative to.

    Returns:
      Their absolute paths, which are the `origin` of their records.

    Raises:
      UserError: a file is missing, named twice or fails, or what it registers cannot be.
    """
    found = tuple(str((Path(folder) / Path(path).expanduser()).resolve()) for path in paths)
    for path in found:
        if found.count(path) > 1:
            raise UserError(f"plugins names {path} twice: leave one out.")
        _load(path)
    fields.brought(found)  # refuses a field that is there already
    return found


def _load(path: str) -> None:
    if not Path(path).is_file():
        raise UserError(f"plugins: there is no file {path}.")
    text = Path(path).read_bytes()
    now = hashlib.sha256(text).hexdigest()
    if _loaded.get(path) == now:
        return
    # What its earlier text registered would otherwise be there twice.
    unload(path)
    name = f"subtransfer_plugin_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"plugins: {path} is no Python file, whose name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    # The text that was hashed is executed: an edit in between cannot make a key untrue.
    with registry.registering(path), failures_of(f"The plugin {path}", path):
        exec(compile(text, path, "exec"), module.__dict__)
    _loaded[path] = now


def digest(origin: str) -> str:
    """SHA-256 of a plugin's text as it was executed: part of the key of what its records decide.

    Args:
      origin: of a record; "" has the digest "".
    """
    return _loaded[origin] if origin else ""


def unload(path: str) -> None:
    """Takes back what a plugin has registered; nothing if it is not loaded."""
    if _loaded.pop(path, None) is not None:
        registry.forget(path)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Around a test: plugins that are loaded within are unloaded at its end."""
    before = set(_loaded)
    try:
        yield
    finally:
        for path in set(_loaded) - before:
            unload(path)
