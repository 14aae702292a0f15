"""Digests of checkpoints: what a Hugging Face directory is known by, wherever it lies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from subtransfer.runtime import processes
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import read_json
from subtransfer.runtime.progress import progress
from subtransfer.store.files import atomic_write

FILE = ".digests.json"  # in a workdir, or in a cache of checkpoints
# Of the files beside a checkpoint, those that transformers or this package reads.
_OF_A_CHECKPOINT = (".json", ".safetensors", ".jinja", ".model", ".txt")

# What this process knows: a file's path -> its size, its two times of change, its digest.
_known: dict[str, list[object]] = {}


def of_checkpoint(directory: Path, workdir: Path) -> str:
    """Returns the SHA-256 over the names and bytes of a checkpoint's files, in hex.

    The workdir remembers each file's digest with its size and its times of change (of its bytes and
    of its entry, which a copy with the old time has anew): tens of gigabytes are read once.

    Raises:
      UserError: the directory does not exist.
    """
    if not directory.is_dir():
        raise UserError(
            f"There is no checkpoint directory {directory}: give a local Hugging Face directory."
        )
    paths = [path for path in sorted(directory.iterdir()) if path.suffix in _OF_A_CHECKPOINT]
    # Names and not paths: a checkpoint that is moved is still the same one.
    names = []
    for path, digest in zip(paths, _of_files(directory, paths, workdir), strict=True):
        names.append([path.name, digest])
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def of_file(path: Path, folder: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hex.

    Args:
      path: the file.
      folder: remembers the digest, as a workdir does of `of_checkpoint`.
    """
    return _of_files(path, [path], folder)[0]


def _of_files(label: Path, paths: list[Path], folder: Path) -> list[str]:
    """The digests of files, read or remembered in a folder."""
    stamps: dict[Path, tuple[str, list[object]]] = {}
    for path in paths:
        status = path.stat()
        stamp: list[object] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        stamps[path] = str(path.resolve()), stamp
    if _unread(stamps):
        remedy = "delete it, and the digests are reckoned anew"
        _known.update(read_json(folder / FILE, {str: [object]}, remedy, default={}))
        _read(label, stamps, folder)
    return [str(_known[where][3]) for where, _ in stamps.values()]


def _unread(stamps: dict[Path, tuple[str, list[object]]]) -> list[Path]:
    """The files whose digests are not known."""
    # A file of the same size and times of change is taken for the one that was read.
    return [path for path, (where, stamp) in stamps.items() if _known.get(where, [])[:3] != stamp]


def _read(label: Path, stamps: dict[Path, tuple[str, list[object]]], workdir: Path) -> None:
    """Reads the files whose digests are not known, and remembers these."""
    new = _unread(stamps)
    if not new:
        return
    total = sum(path.stat().st_size for path in new) >> 20
    with progress(f"reading {label}", total, "MiB") as advance:
        for path in new:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            where, stamp = stamps[path]
            _known[where] = [*stamp, digest]
            advance(path.stat().st_size >> 20)
    if workdir.is_dir() and processes.leads():
        atomic_write(workdir / FILE, json.dumps(_known, sort_keys=True))


def check_checkpoint(directory: Path, wanted: str, artefact: Path) -> None:
    """Checks that a directory holds the checkpoint that an artefact was made from.

    Args:
      directory: where the checkpoint should lie.
      wanted: its digest.
      artefact: the folder that stands for it, in a workdir.

    Raises:
      UserError: it is not there, or another one is.
    """
    remedy = (
        "put it back there, or name its directory of now (--config.base.checkpoint=DIR of a run, "
        "load_policy(..., checkpoint=DIR), --checkpoint=DIR of tools/export.py)"
    )
    if not directory.is_dir():
        raise UserError(f"The checkpoint {directory} that {artefact} stands for is gone: {remedy}.")
    found = of_checkpoint(directory, artefact.parent)
    if found != wanted:
        raise UserError(
            f"{directory} holds another checkpoint (SHA-256 {found[:16]}) than the one that "
            f"{artefact} stands for ({wanted[:16]}): {remedy}. A new run from what lies there now "
            "makes stages of its own."
        )
