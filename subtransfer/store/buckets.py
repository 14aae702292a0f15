"""Workdirs in an object store: what is finished here is copied there, and fetched from there.

Artefacts rest on the rename of a folder that others see as a whole, on locks and on fsync
(`artifacts.py`); an object store has none of them. So a run works in a folder of its own machine,
and each folder that is finished (a sealed artefact, a confirmed checkpoint) is copied file by file,
the list of its files last: without the list it does not count. A run on another machine fetches
what it needs. One run at a time may use an address, as what is claimed here is not claimed there:
the address has a claim of its own (`bucket_claims.py`).

Files travel by fsspec: gs:// with gcsfs, s3:// with s3fs, az:// with adlfs.
`fetch`, `put` and the others do nothing for a path below no workdir that was attached to one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import parse_json
from subtransfer.store.bucket_claims import BucketClaim

PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # scheme -> what fsspec needs for it
_REMEDY = "remove it, or choose another --workdir"
_LIST = ".whole"  # beside the folder X there, X.whole: {file: bytes}
_FILES = "files.json"  # there: the names of the files that belong to no finished folder
# Which these are.
_LOOSE = ("*", "stages/*", "metrics/**/*", ".steps/*/*.npz", ".steps/*/journals/*.log")
_OF_THIS_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
)

_attached: dict[Path, Mirror] = {}


def parse(address: str) -> tuple[str, str]:
    """Splits an address into its scheme and what follows it, "BUCKET/FOLDER".

    Raises:
      UserError: it is none that is known.
    """
    found = re.fullmatch(r"(\w+)://([^/]+(?:/[^/]+)*)/?", address)
    if found is None or found[1] not in PACKAGES:
        known = ", ".join(f"{scheme}://BUCKET/FOLDER" for scheme in PACKAGES)
        raise UserError(
            f"--workdir={address} cannot be read: give a path of the file system, or one of "
            f"{known}."
        )
    return found[1], found[2]


def attach(address: str, local: Path) -> None:
    """Makes `local` the place where a run works whose workdir is the address.

    Raises:
      UserError: the address cannot be read, or the package for it is not installed.
    """
    scheme, _ = parse(address)
    # They warn of every request without credentials, and say what we say.
    for name in (PACKAGES[scheme], "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _attached[local] = Mirror(address, local)


def detach(local: Path) -> None:
    """Undoes `attach`."""
    _attached.pop(local, None)


def claim(workdir: Path, lease: float, stall: float, log: Callable[[str], None]) -> None:
    """Takes the address for this run alone, until `release`.

    Args:
      workdir: the folder here.
      lease: seconds of silence after which another run may take over.
      stall: seconds without progress after which this run falls silent; 0 is never.
      log: takes lines for people.

    Raises:
      UserError: another run uses the address.
    """
    if mirror := _mirror_of(workdir):
        mirror.claim(lease, stall, log)


def release(workdir: Path) -> None:
    """Gives back what `claim` has taken."""
    if mirror := _mirror_of(workdir):
        mirror.release()


def holds(folder: Path) -> bool:
    """Whether a finished folder of this name is there."""
    mirror = _mirror_of(folder)
    return mirror is not None and mirror.holds(folder)


def fetch_files(workdir: Path) -> None:
    """Copies from there the loose files that are not here, or of which only a beginning is.

    A beginning is here where another machine went on with the file.
    """
    if mirror := _mirror_of(workdir):
        mirror.fetch_files()


def fetch(folder: Path) -> None:
    """Copies a finished folder from there if it is not here."""
    if mirror := _mirror_of(folder):
        mirror.fetch(folder)


def fetch_all(parent: Path) -> None:
    """Copies from there the finished folders below a folder that are not here."""
    if mirror := _mirror_of(parent):
        for folder in mirror.listed(parent):
            mirror.fetch(folder)


def put(folder: Path) -> None:
    """Copies a finished folder that is not there yet, and all loose files that have changed."""
    if mirror := _mirror_of(folder):
        mirror.put(folder)
        mirror.put_files()


def prune(parent: Path) -> None:
    """Removes there the finished folders below a folder that are no longer here."""
    if mirror := _mirror_of(parent):
        for folder in mirror.listed(parent):
            if not folder.exists():
                mirror.drop(folder)


def drop(folder: Path) -> None:
    """Removes a folder there, with all that lies below it."""
    if mirror := _mirror_of(folder):
        mirror.drop(folder)


def tidy(parent: Path) -> None:
    """Removes there the folders below `parent` that are named as finished ones.

    They are step checkpoints of stages that were finished by runs that died before they could
    remove them.
    """
    if mirror := _mirror_of(parent):
        mirror.tidy(parent)


def put_files(workdir: Path) -> None:
    """Copies the loose files that have changed: results, metrics, histories."""
    if mirror := _mirror_of(workdir):
        mirror.put_files()


def _mirror_of(path: Path) -> Mirror | None:
    for local, mirror in _attached.items():
        if path.is_relative_to(local):
            return mirror
    return None


class Mirror:
    """A folder of this machine and the address that holds what is finished in it.

    All methods raise a UserError if the address cannot be reached, and the system's own errors if
    this disk fails.

    Args:
      address: SCHEME://BUCKET/FOLDER.
      local: the folder of this machine.
    """

    def __init__(self, address: str, local: Path):
        import fsspec  # most runs need none of it

        self.address, self.local = address, local
        self._sent: dict[str, tuple[int, int]] = {}  # name -> size and time of change, as copied
        self._finished: set[Path] = set()  # the folders that are whole there, by their names here
        self._claim: BucketClaim | None = None
        with self._errors():
            self._files, self._root = fsspec.core.url_to_fs(address)
            self.listed(local)

    def claim(self, lease: float, stall: float, log: Callable[[str], None]) -> None:
        """See the function of this name."""
        with self._errors():
            self._claim = BucketClaim(self._files, self._root, self.address, lease, stall)
            self._claim.take(log)
            self.listed(self.local)  # what another run has finished while this one waited

    def release(self) -> None:
        """See the function of this name."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around all that changes something there: only who holds the claim may."""
        with self._errors():
            if self._claim is not None:
                self._claim.check()
            yield

    def _there(self, path: Path) -> str:
        """The name there of a file or folder here."""
        return f"{self._root}/{path.relative_to(self.local).as_posix()}"

    def _list_of(self, folder: Path) -> str:
        return self._there(folder) + _LIST

    def _names(self, parent: Path) -> list[str]:
        """What lies there directly below a folder."""
        self._files.invalidate_cache()  # others write, too
        there = self._root if parent == self.local else self._there(parent)
        try:
            found = self._files.ls(there, detail=False)
        except FileNotFoundError:
            return []
        # A store may list the folder itself among what lies in it.
        names = {PurePosixPath(name).name for name in found if name.strip("/") != there.strip("/")}
        return sorted(names)

    def _read(self, name: str, shape: Any) -> Any:
        """Reads a JSON file there.

        Raises:
          FileNotFoundError: it is not there.
          UserError: it does not hold what this module writes.
        """
        data = self._files.cat_file(name)
        place = f"{name} of the workdir {self.address}"
        value = parse_json(data, place, shape, _REMEDY)
        problem = _strays(value)
        if problem:
            raise UserError(f"{place} does not hold what it should ({problem}): {_REMEDY}.")
        return value

    def listed(self, parent: Path) -> list[Path]:
        """Returns the folders below `parent` that are finished there, by their names here."""
        with self._errors():
            names = self._names(parent)
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
            # Until it has proved whole: what is made here instead takes its place.
            self._finished.discard(folder)
            # The next run removes what is left of this one.
            made = self.local / f".{folder.name}.tmp-fetched"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            try:
                sizes = self._read(self._list_of(folder), {str: int})
                for name, size in sizes.items():
                    self._get(f"{self._there(folder)}/{name}", made / name)
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
        with self._writing():
            if folder in self._finished:
                return
            # The list goes last: until it is there, whatever has arrived does not count.
            sizes = {}
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    self._put(path)
                    sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
            self._files.pipe_file(self._list_of(folder), json.dumps(sizes).encode())
            self._finished.add(folder)

    def drop(self, folder: Path) -> None:
        """See the function of this name."""
        with self._writing():
            below = f"{folder.relative_to(self.local).as_posix()}/"
            gone = [name for name in self._sent if name.startswith(below)]
            if gone:
                for name in gone:
                    del self._sent[name]
                self._put_names(sorted(self._sent))
            # The list first: what has a list is whole.
            for name in (self._list_of(folder), self._there(folder)):
                self._files.invalidate_cache()
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm(name, recursive=name == self._there(folder))
            self._finished.discard(folder)

    def tidy(self, parent: Path) -> None:
        """See the function of this name."""
        with self._errors():
            names = self._names(parent)
        for name in names:
            # Step checkpoints lie in a folder that is named as the artefact.
            if self.local / name in self._finished:
                self.drop(parent / name)

    def put_files(self) -> None:
        """See the function of this name."""
        with self._writing():
            paths: set[Path] = set()
            for pattern in _LOOSE:
                paths.update(path for path in self.local.glob(pattern) if path.is_file())
            changed = False
            for path in sorted(paths):
                name, status = path.relative_to(self.local).as_posix(), path.stat()
                stamp = status.st_size, status.st_mtime_ns
                # Names with a dot are files that are being written.
                if not path.name.startswith(".") and self._sent.get(name) != stamp:
                    self._put(path)
                    self._sent[name] = stamp
                    changed = True
            if changed:
                self._put_names(sorted(self._sent))

    def _put_names(self, names: list[str]) -> None:
        self._files.pipe_file(f"{self._root}/{_FILES}", json.dumps(names).encode())

    def fetch_files(self) -> None:
        """See the function of this name."""
        with self._errors():
            self._files.invalidate_cache()
            try:
                names = self._read(f"{self._root}/{_FILES}", [str])
            except FileNotFoundError:
                names = []
            for name in names:
                here, there = self.local / name, f"{self._root}/{name}"
                try:
                    # Logs only grow: the longer one is the later one.
                    if not here.exists() or here.stat().st_size < self._files.size(there):
                        self._get(there, here)
                        self._sent[name] = here.stat().st_size, here.stat().st_mtime_ns
                except FileNotFoundError:  # went with its stage, as its run died
                    self._remove_empty(here.parent)

    def _remove_empty(self, folder: Path) -> None:
        """Removes a folder here, and those above it, as far as they are empty."""
        with contextlib.suppress(OSError):
            while folder != self.local:
                folder.rmdir()
                folder = folder.parent

    def _put(self, path: Path) -> None:
        """Copies one file there; an object appears when all of it has arrived."""
        self._files.put_file(str(path), self._there(path))

    def _get(self, name: str, path: Path) -> None:
        """Copies one file from there; one that is cut off does not appear under its name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.tmp-fetched")
        self._files.get_file(name, str(part))
        part.replace(path)

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


def _strays(names: Any) -> str:
    """Says which of some files would lie outside of its folder, or "".

    The lists of a bucket are written by whoever may write to it, and become paths here.
    """
    for name in names:
        path = PurePosixPath(name)
        outside = not path.parts or path.is_absolute() or ".." in path.parts
        if outside or "\\" in name or "\0" in name:
            return f"{name!r} is no name of a file below it"
    return ""
