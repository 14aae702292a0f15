"""A workdir in an object store: what is finished here is copied there, and fetched from there where
it is not here.

Artefacts rest on the rename of a folder that others see as a whole, on locks and on fsync
(`artifacts.py`); an object store has none of them. So a run works in a folder of its own machine,
and each folder that is finished (a sealed artefact, a confirmed checkpoint) is copied file by file,
the list of its files last: without the list it does not count. A run on another machine fetches
what it needs. One run at a time may use an address, as what is claimed here is not claimed there.

The store is whatever `etils.epath` reaches: gs:// with gcsfs, s3:// with s3fs, az:// with adlfs.
`fetch`, `put` and the others do nothing for a path below no workdir that was attached to one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from subtransfer.runtime.errors import UserError

if TYPE_CHECKING:
    from etils import epath

PACKAGES = {
    "gs": "gcsfs",
    "s3": "s3fs",
    "az": "adlfs",
}  # what fsspec, under epath, needs for a scheme
_LIST = ".whole"  # beside the folder X there, X.whole: {file: bytes}
_FILES = "files.json"  # there: the names of the files that belong to no finished folder
_LOOSE = ("*", "stages/*", "metrics/**/*", ".steps/*/*.npz")  # which these are
_OF_THIS_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
)
_BLOCK = 1 << 24

_attached: dict[Path, Mirror] = {}


def parse(address: str) -> tuple[str, str]:
    """The scheme of an address and what follows it, "BUCKET/FOLDER".

    Raises:
      UserError: it is none that epath knows.
    """
    found = re.fullmatch(r"(\w+)://([^/]+(?:/[^/]+)*)/?", address)
    if found is None or found[1] not in PACKAGES:
        known = ", ".join(f"{scheme}://BUCKET/FOLDER" for scheme in PACKAGES)
        raise UserError(
            f"--workdir={address} cannot be read: give a path of the file system, or one of {known}."
        )
    return found[1], found[2]


def attach(address: str, local: Path) -> None:
    """From now on, `local` is the place where a run works whose workdir is the address.

    Raises:
      UserError: the address cannot be read, or the package for it is not installed.
    """
    scheme, _ = parse(address)
    for name in (
        PACKAGES[scheme],
        "google.auth",
    ):  # which warn of every request without credentials, and say what we say
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _attached[local] = Mirror(address, local)


def detach(local: Path) -> None:
    """Undoes `attach`."""
    _attached.pop(local, None)


def holds(folder: Path) -> bool:
    """Whether a finished folder of this name is there."""
    mirror = _of(folder)
    return mirror is not None and mirror.holds(folder)


def fetch_files(workdir: Path) -> None:
    """Makes the loose files that are not here, or only their beginning: another machine went on
    with them.
    """
    if mirror := _of(workdir):
        mirror.fetch_files()


def fetch(folder: Path) -> None:
    """Makes a finished folder that is there and not here."""
    if mirror := _of(folder):
        mirror.fetch(folder)


def fetch_all(parent: Path) -> None:
    """Makes those of the finished folders below a folder that are there and not here."""
    if mirror := _of(parent):
        for folder in mirror.listed(parent):
            mirror.fetch(folder)


def put(folder: Path) -> None:
    """Copies a finished folder that is not there yet, and all loose files that have changed."""
    if mirror := _of(folder):
        mirror.put(folder)
        mirror.put_files()


def prune(parent: Path) -> None:
    """Removes the finished folders below a folder that are there and no longer here."""
    if mirror := _of(parent):
        for folder in mirror.listed(parent):
            if not folder.exists():
                mirror.drop(folder)


def drop(folder: Path) -> None:
    """Removes a folder there, with all that lies below it."""
    if mirror := _of(folder):
        mirror.drop(folder)


def tidy(parent: Path) -> None:
    """Removes there what lies below a folder by the name of a finished one: its run died before it
    could.
    """
    if mirror := _of(parent):
        mirror.tidy(parent)


def put_files(workdir: Path) -> None:
    """Copies the loose files that have changed: results, metrics, histories."""
    if mirror := _of(workdir):
        mirror.put_files()


def _of(path: Path) -> Mirror | None:
    return next((mirror for local, mirror in _attached.items() if path.is_relative_to(local)), None)


class Mirror:
    """A folder of this machine and the address that holds what is finished in it.

    All methods raise a UserError if the address cannot be reached, and the system's own errors if
    this disk fails.
    """

    def __init__(self, address: str, local: Path):
        from etils import epath  # most runs need none of it

        self.address, self.local = address, local
        self._sent: dict[str, tuple[int, int]] = {}
        self._finished: set[Path] = set()  # the folders that are whole there, by their names here
        with self._errors():
            self._there = epath.Path(address)
            self.listed(local)

    def _at(self, path: Path) -> epath.Path:
        return self._there / path.relative_to(self.local).as_posix()

    def _list(self, folder: Path) -> epath.Path:
        return self._at(folder.with_name(folder.name + _LIST))

    def listed(self, parent: Path) -> list[Path]:
        """The folders below `parent` that are finished there, as they are or would be named
        here.
        """
        with self._errors():
            there = self._at(parent)
            names = sorted(path.name for path in there.iterdir()) if there.exists() else []
        found = [parent / name.removesuffix(_LIST) for name in names if name.endswith(_LIST)]
        self._finished.update(found)
        return found

    def holds(self, folder: Path) -> bool:
        """See the function of this name."""
        return folder in self._finished

    def fetch(self, folder: Path) -> None:
        """See the function of this name."""
        with self._errors():
            if folder.exists() or folder not in self._finished:
                return
            self._finished.discard(
                folder
            )  # until it has proved whole: what is made here instead takes its place
            made = (
                self.local / f".{folder.name}.tmp-fetched"
            )  # the next run removes what is left of it
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            try:
                for name, size in json.loads(self._list(folder).read_text()).items():
                    _copy(self._at(folder) / name, made / name)
                    if (made / name).stat().st_size != size:
                        return
                folder.parent.mkdir(parents=True, exist_ok=True)
                made.rename(folder)
                self._finished.add(folder)
            except FileNotFoundError:  # was being removed as its run died
                return
            finally:
                shutil.rmtree(made, ignore_errors=True)

    def put(self, folder: Path) -> None:
        """See the function of this name."""
        with self._errors():
            if folder in self._finished:
                return
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            for path in files:
                _copy(path, self._at(path))
            sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
            self._list(folder).write_text(json.dumps(sizes))
            self._finished.add(folder)

    def drop(self, folder: Path) -> None:
        """See the function of this name."""
        with self._errors():
            self._list(folder).unlink(missing_ok=True)  # first: what has a list is whole
            self._finished.discard(folder)
            if self._at(folder).exists():
                self._at(folder).rmtree()

    def tidy(self, parent: Path) -> None:
        """See the function of this name."""
        with self._errors():
            names = (
                [path.name for path in self._at(parent).iterdir()]
                if self._at(parent).exists()
                else []
            )
        for name in names:
            if self.local / name in self._finished:
                self.drop(parent / name)

    def put_files(self) -> None:
        """See the function of this name."""
        with self._errors():
            changed = False
            for path in sorted(
                {path for pattern in _LOOSE for path in self.local.glob(pattern) if path.is_file()}
            ):
                name, status = path.relative_to(self.local).as_posix(), path.stat()
                stamp = status.st_size, status.st_mtime_ns
                if not path.name.startswith(".") and self._sent.get(name) != stamp:
                    _copy(path, self._at(path))
                    self._sent[name] = stamp
                    changed = True
            if changed:
                (self._there / _FILES).write_text(json.dumps(sorted(self._sent)))

    def fetch_files(self) -> None:
        """See the function of this name."""
        with self._errors():
            names = (
                json.loads((self._there / _FILES).read_text())
                if (self._there / _FILES).exists()
                else []
            )
            (self._there / _FILES).write_text(
                json.dumps(names)
            )  # who may not write is told before any work
            for name in names:
                here, there = self.local / name, self._there / name
                if not here.exists() or here.stat().st_size < there.stat().length:
                    _copy(there, here)
                    self._sent[name] = here.stat().st_size, here.stat().st_mtime_ns

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            package = PACKAGES[parse(self.address)[0]]
            raise UserError(
                f"The workdir {self.address} needs the package {package}: pip install {package}."
            ) from error
        except UserError:
            raise
        except Exception as error:  # whatever the store's client raises
            if isinstance(error, OSError) and error.errno in _OF_THIS_DISK:
                raise
            words = str(error).partition("\n")[0]
            raise UserError(
                f"The workdir {self.address} cannot be reached ({type(error).__name__}: {words}). "
                f"What is finished is kept in {self.local}: run the same command again."
            ) from error


def _copy(source: epath.Path | Path, target: epath.Path | Path) -> None:
    """Of one file; a copy here that is cut off leaves no file of this name, as one there does by
    itself.
    """
    here = isinstance(target, Path)  # which an epath.Path is not
    part = target.with_name(f".{target.name}.tmp-fetched") if here else target
    if here:
        target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, part.open("wb") as write:
        shutil.copyfileobj(read, write, _BLOCK)
    if here:
        part.replace(target)
