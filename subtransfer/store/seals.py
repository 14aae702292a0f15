"""Seals: the sizes and SHA-256 of an artefact's files, and of a set of published ones.

A size is looked at wherever an artefact is; a file's bytes are hashed when it is read as an input,
once a process as long as its size and its time of change stay the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import misfit, read_json
from subtransfer.store.files import atomic_write, reading, sync

MARKER = "artifact.json"  # written last: a folder that has it is whole
SUMS = "SHA256SUMS"  # beside published files, in the form that `sha256sum -c` reads
SMALL = 2**26  # bytes up to which a file is hashed before anyone asks for it
_REMEDY = "delete its folder and run the same command again"
_SUMS = re.compile(r"([0-9a-f]{64}  [^/\n]+\n)+")
_REMEDY_SUMS = "run the command that wrote them again"

# What a file was when it proved whole: (digest, size, time of change, inode).
_proved: dict[Path, tuple[str, int, int, int]] = {}


def seal(folder: Path, key: Mapping[str, Any]) -> None:
    """Writes the marker of an artefact, after every file of it is safely on disk."""
    sizes, digests = {}, {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name = file.relative_to(folder).as_posix()
            sizes[name] = file.stat().st_size
            digests[name] = sha256(file)
            sync(file)
    record = {"key": key, "sizes": sizes, "digests": digests}
    atomic_write(folder / MARKER, json.dumps(record, indent=1, sort_keys=True))


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a finished artefact: its marker, and each file at its recorded size.

    Raises:
      UserError: the folder cannot be read now, which does not say that it is damaged.
    """
    with reading(folder):
        try:
            marker = _marker(folder)
            if marker is None:
                return False
            sizes = marker["sizes"].items()
            return all((folder / name).stat().st_size == size for name, size in sizes)
        except (UserError, FileNotFoundError, NotADirectoryError):
            return False


def check(folder: Path, below: str = "", at_most: int | None = None) -> None:
    """Checks that an artefact's files are what was sealed.

    What has no marker, or one of a version that recorded no digests, passes. So does a file that is
    missing, of which its reader knows more to say.

    Args:
      folder: of the artefact.
      below: a file or a folder in it; "" is all of it.
      at_most: larger files are left to who reads them, in bytes; None is none.

    Raises:
      UserError: a file is another, or cannot be read now.
    """
    with reading(folder):
        marker = _marker(folder)
        if marker is None:
            return
        for name, digest in marker.get("digests", {}).items():
            if below and name != below and not name.startswith(f"{below}/"):
                continue
            if at_most is None or marker["sizes"][name] <= at_most:
                _check_file(folder / name, digest, folder)


def check_input(path: Path) -> None:
    """As `check`, for a file or folder right below an artefact's, of whatever size."""
    check(path.parent, path.name)


def _check_file(file: Path, digest: str, folder: Path) -> None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return
    proof = (digest, status.st_size, status.st_mtime_ns, status.st_ino)
    if _proved.get(file) == proof:
        return
    if sha256(file) != digest:
        raise UserError(
            f"{file} is damaged (its SHA-256 is not the one that was sealed): bring the file back, "
            f"or delete {folder} and run again to make it anew."
        )
    _proved[file] = proof


def _marker(folder: Path) -> dict[str, Any] | None:
    """The marker of an artefact, or None without one.

    Raises:
      UserError: it is damaged.
    """
    path = folder / MARKER
    marker = read_json(path, {"sizes": {str: int}}, _REMEDY, default=None)
    if marker is not None and "digests" in marker:
        problem = misfit(marker, {"digests": dict.fromkeys(marker["sizes"], str)})
        if problem:
            raise UserError(f"{path} does not hold what it should ({problem}): {_REMEDY}.")
    return marker


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def sums_of(files: Mapping[str, bytes]) -> str:
    """Returns the text of `SUMS` for files that are published together, by name."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    return "".join(lines)


def sums(folder: Path) -> str:
    """Returns the text of a folder's `SUMS`, or "" where there is none.

    Raises:
      UserError: it is there, and is no such list: nothing could be checked against it.
    """
    try:
        text = (folder / SUMS).read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""
    if not _SUMS.fullmatch(text):
        raise UserError(f"{folder / SUMS} is damaged: {_REMEDY_SUMS}.")
    return text


def check_sums(folder: Path, text: str) -> None:
    """Checks that published files are those that were published together.

    Who copies some of them need not copy all: one that is missing passes.

    Args:
      folder: of the files.
      text: of `sums`, as it was before anyone read them.

    Raises:
      UserError: a file is another, or another set has been published meanwhile.
    """
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        file = folder / name
        if name and file.is_file() and sha256(file) != digest:
            raise UserError(
                f"{file} is not the file that was published with the others beside it (its "
                f"SHA-256 is not the one in {SUMS}): {_REMEDY_SUMS}."
            )
    if sums(folder) != text:
        raise UserError(f"The results in {folder} are being replaced: try again.")
