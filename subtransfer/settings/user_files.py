"""Settings from Python files of users: loaded once, and known by their contents."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Setting
from subtransfer.store import messages


@dataclasses.dataclass
class _File:
    """A file of a user's.

    Attributes:
      path: where it is.
      sha256: of its text.
      data: name -> SHA-256 of each file that it read its tasks from.
    """

    path: Path
    sha256: str
    data: dict[str, str] = dataclasses.field(default_factory=dict)


_loaded: dict[tuple[Path, str], tuple[_File, Setting]] = {}
_loading: list[_File] = []  # innermost last


def load(path: str) -> Setting:
    """The setting that a file defines; the same object as long as the file's text is the same.

    Raises:
      UserError: for every mistake in it; the sentence names the file.
    """
    return _load(Path(path))[1]


def identity(path: str) -> dict[str, Any]:
    """What decides a file's setting, for keys: its name, its text, and what tasks it reads.

    Raises:
      UserError: as `load`.
    """
    file, _ = _load(Path(path))
    out: dict[str, Any] = {"file": file.path.stem, "sha256": file.sha256}
    if file.data:
        out["data"] = dict(sorted(file.data.items()))
    return out


def tasks_from(path: str) -> list[messages.Prompt]:
    """Tasks from a JSONL file beside the file that calls this; see `store.messages.read_prompts`.

    A line has an "instruction" (or a TRL "prompt"), and "kind", "split", "tool", "facts" and
    "tree" as far as they are not to be chosen or drawn.

    Raises:
      UserError: for every mistake in it.
    """
    # Beside the file that asks, wherever the command runs; else, as in a notebook, where that is.
    folder = _loading[-1].path.parent if _loading else Path()
    prompts = messages.read_prompts(folder / path)
    if _loading:
        # Its text is not in the setting's file, but decides the tasks as much.
        digest = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        _loading[-1].data[path] = digest
    return prompts


def _load(path: Path) -> tuple[_File, Setting]:
    if not path.is_file():
        raise UserError(
            f"setting: there is no file {path}; give the path of a Python file that defines "
            "SETTING (docs/own_habit.md)."
        )
    raw = path.read_bytes()
    # By path and text: a file that is edited while a process runs is another setting.
    key = (path.resolve(), hashlib.sha256(raw).hexdigest())
    if key not in _loaded:
        file = _File(path, key[1])
        _loaded[key] = file, _run(file, raw)
    return _loaded[key]


def _run(file: _File, raw: bytes) -> Setting:
    """Runs a file's text and takes the setting out of it."""
    name = f"subtransfer_setting_{file.sha256[:16]}"
    spec = importlib.util.spec_from_loader(name, None, origin=str(file.path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file.path)
    sys.modules[name] = module  # dataclasses and annotations look their module up there
    _loading.append(file)
    try:
        with _failures_of(file.path):
            # Text and digest are of one reading: an edit in between cannot make a key untrue.
            exec(compile(raw, str(file.path), "exec"), module.__dict__)
            make = getattr(module, "get_setting", None)
            setting = make() if callable(make) else getattr(module, "SETTING", None)
            if not isinstance(setting, Setting):
                raise UserError(
                    "the file defines no SETTING = Habit(...), and no get_setting() that returns "
                    "one; add it."
                )
    finally:
        _loading.pop()
    # Its name seeds the tasks, so that two files with one habit draw different ones.
    setting.name = file.path.stem
    return setting


@contextlib.contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    """Around code of a user's file: its errors become sentences that begin with the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except SyntaxError as error:
        raise UserError(
            f"{path}, line {error.lineno}: no Python ({error.msg}); mend the line."
        ) from error
    except (Exception, SystemExit) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{path}{_line_of(path, error)}: fails with {words}; mend the line."
        ) from error


def _line_of(path: Path, error: BaseException) -> str:
    """Where in a file an error passed through it: ", line N", or "" if nowhere."""
    trace, line = error.__traceback__, ""
    # The last line of the file that was passed, as it is the nearest to the mistake.
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return line
