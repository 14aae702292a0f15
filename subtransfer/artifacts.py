"""The artefact store: one folder a stage, named by what determines it, written atomically."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer import preemption, processes
from subtransfer.errors import UserError
from subtransfer.schema import canonical_json

MARKER = "artifact.json"  # written last: a folder that has it is whole
STEPS = ".steps"  # holds the step checkpoints of unfinished stages


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON-serialisable value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@contextlib.contextmanager
def os_errors(folder: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into sentences about `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"No space left in {folder}: free some and run the same command again; finished stages are kept."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"Cannot write to {folder}: make it writable or choose another --workdir.") from error
        if error.errno == errno.ENOTDIR or (error.errno == errno.EEXIST and not folder.is_dir()):
            raise UserError(f"{folder} is not a folder: choose another --workdir.") from error
        # A stage's folder is made by the run itself, so that one that is missing was taken away.
        parent = Path(os.fsdecode(error.filename)).parent if error.filename is not None else folder
        gone = parent.is_relative_to(folder) and not parent.is_dir()
        if error.errno == errno.ENOENT and (gone or not folder.is_dir()):
            raise UserError(f"The workdir {folder} has vanished: run the same command again.") from error
        raise


_SYSTEM = {
    "No space left": errno.ENOSPC,
    "File too large": errno.EFBIG,
    "quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "Permission denied": errno.EACCES,
    "No such file": errno.ENOENT,
}


@contextlib.contextmanager
def storage_errors(folder: Path, what: str) -> Iterator[None]:
    """As `os_errors`, around a library that wraps the system's words in errors of its own; sentences begin with `what`."""
    try:
        with os_errors(folder):
            try:
                yield
            except UserError:
                raise
            except Exception as error:
                texts, cause = "", error
                while cause is not None:
                    texts, cause = f"{texts} {cause}", cause.__cause__ or cause.__context__
                number = next((number for words, number in _SYSTEM.items() if words in texts), None)
                if number is None:
                    raise UserError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
                raise OSError(number, os.strerror(number), str(folder)) from error
    except UserError as error:
        raise UserError(f"{what}. {error}") from error


def steps_folder(path: Path) -> Path:
    """Where the step checkpoints lie that belong to an unfinished artefact."""
    return path.parent / STEPS / path.name


def set_aside(path: Path) -> None:
    """Renames something damaged to a name that nothing looks for; one a name is kept."""
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Writes a file so that a reader sees the old or the new content, never a part."""
    if isinstance(data, str):
        data = data.encode()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Store:
    """The stages of a workdir. Used as a context manager; one run at a time holds it.

    Of several processes of a run the first writes; the others compute alongside, throw their copies away, and wait for the
    seal. All must see the workdir.

    Attributes:
      events: (what happened, stage) in order; what is "reused", "computed" or "redone".

    Raises:
      UserError: the workdir cannot be made or written, or another run holds it.
    """

    def __init__(self, workdir: Path):
        self.workdir = Path(workdir)
        self.events: list[tuple[str, str]] = []
        self._lock = None

    def __enter__(self) -> Store:
        token = processes.share("workdir", self._open() if processes.leads() else None)
        if not processes.leads():
            try:
                same = (self.workdir / ".lock").read_text() == token
            except OSError:
                same = False
            if not same:
                raise UserError(f"{self.workdir} is not the same folder in every process: choose one that all of them share.")
        return self

    def _open(self) -> str:
        """Takes the lock and removes what runs left that died; returns what only this run can have written into the lock."""
        with os_errors(self.workdir):
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._lock = (self.workdir / ".lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise UserError(f"Another run is using {self.workdir}: wait for it, or choose another --workdir.") from error
        token = os.urandom(16).hex()
        with os_errors(self.workdir):
            self._lock.truncate(0)
            self._lock.write(token)
            self._lock.flush()
        # The lock is ours, so whatever temporaries there are belong to runs that died.
        self._interrupted = {p.name.split(".tmp-")[0][1:] for p in self.workdir.glob(".*.tmp-*")}
        for path in self.workdir.glob(".*.tmp-*"):
            shutil.rmtree(path, ignore_errors=True)
        return token

    def __exit__(self, *_: Any) -> None:
        if self._lock is not None:
            self._lock.close()

    def stage(self, name: str, key: Mapping[str, Any], build: Callable[[Path], None], *, log: Callable[[str], None]) -> Path:
        """Returns the folder of a stage's artefact; calls `build(folder)` to make it unless a whole one is there.

        A build that fails leaves nothing behind but its step checkpoints, and touches no other artefact.
        """
        folder = f"{name}-{digest(key)}"
        path = self.workdir / folder
        preemption.check()
        leads = processes.leads()
        whole = processes.share(f"whole/{folder}", str(is_whole(path)) if leads else None) == "True"
        if whole:
            what = "reused"
        elif leads:
            what = self._make(path, key, build)
        else:
            with tempfile.TemporaryDirectory() as copy:
                build(Path(copy))
            what = None
        what = processes.share(f"sealed/{folder}", what if leads else None)
        if leads:
            shutil.rmtree(steps_folder(path), ignore_errors=True)
        self.events.append((what, name))
        log(f"[{what}] {name}" + (" (an earlier attempt was cut off)" if what == "redone" else ""))
        return path

    def _make(self, path: Path, key: Mapping[str, Any], build: Callable[[Path], None]) -> str:
        """Builds, seals and renames; returns "computed", or "redone" where there were remains of an earlier attempt."""
        damaged = path.exists()
        begun = damaged or path.name in self._interrupted or steps_folder(path).is_dir()
        temporary = self.workdir / f".{path.name}.tmp-{os.getpid()}"
        with os_errors(self.workdir):
            if damaged:
                shutil.rmtree(path)
            temporary.mkdir()
            try:
                build(temporary)
                _seal(temporary, key)
                temporary.rename(path)
                _sync(self.workdir)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return "redone" if begun else "computed"


def is_whole(path: Path) -> bool:
    """Whether a folder holds a finished artefact: its marker, and every file at its recorded size."""
    try:
        sizes = json.loads((path / MARKER).read_text())["sizes"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _seal(folder: Path, key: Mapping[str, Any]) -> None:
    """Writes the marker, after every file is safely on disk."""
    sizes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
            _sync(file)
    atomic_write(folder / MARKER, json.dumps({"key": key, "sizes": sizes}, indent=1, sort_keys=True))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_params(path: Path, params: Any) -> None:
    """Writes a tree of nested dicts of arrays as one safetensors file, names joined by "/"; one of several processes does."""
    if not processes.leads():
        return
    from safetensors.numpy import save

    flat: dict[str, np.ndarray] = {}

    def collect(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                collect(f"{prefix}/{name}" if prefix else name, child)
        else:
            flat[prefix] = np.ascontiguousarray(np.asarray(node))

    collect("", params)
    atomic_write(path, save(dict(sorted(flat.items()))))


def load_params(path: Path) -> dict[str, Any]:
    """Reads what `save_params` wrote.

    Raises:
      UserError: the file is missing, truncated or no safetensors file.
    """
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, which safetensors needs
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        flat = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: delete its folder and run again to make it anew.") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): delete its folder and run again to make it anew.") from error
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree
