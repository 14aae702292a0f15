"""Files that are written whole or not at all, and sentences for what the system refuses."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from subtransfer.runtime.errors import UserError

# Libraries wrap the system's errors in errors of their own, which leave only its words.
_ERRNO_BY_WORDS = {
    "No space left": errno.ENOSPC,
    "File too large": errno.EFBIG,
    "quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "Permission denied": errno.EACCES,
    "No such file": errno.ENOENT,
}

_BLOCK = 2**24  # bytes read at once
# What these say is true of what was read: it is not there, or another kind of thing.
_OF_WHAT_IS_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
# How libraries pass on that something could not be read: names of absl's statuses, and the
# system's words.
_REFUSALS = (
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CANCELLED",
    "ABORTED",
    *(
        os.strerror(number)
        for number in (
            errno.EIO,
            errno.ESTALE,
            errno.ETIMEDOUT,
            errno.EACCES,
            errno.EPERM,
            errno.ENOMEM,
            errno.EAGAIN,
            errno.EBUSY,
            errno.EMFILE,
            errno.ENFILE,
            errno.ENOTCONN,
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
            errno.ENETUNREACH,
        )
    ),
)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Writes a file so that a reader sees the old or the new content, never a part."""
    if isinstance(data, str):
        data = data.encode()
    temporary = _temporary(path)
    try:
        _write_through(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def user_path(text: str) -> Path:
    """Returns a path of the command line; shells expand no "~" that follows "="."""
    return Path(text).expanduser()


def new_file(flag: str, path: str | Path) -> Path:
    """Returns the path of a file that a flag asks for, once it is clear that it can be written.

    Who computes for minutes first is told before, and not after.

    Args:
      flag: as the user gives it, e.g. "--out".
      path: of the file.

    Raises:
      UserError: its folder is not there, or it is a folder itself.
    """
    path = user_path(str(path))
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} for {flag}={path}: make it first.")
    if path.is_dir():
        raise UserError(f"{flag}={path} is a folder: give the name of a file in it.")
    return path


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files as `atomic_write` does, none before all of them lie on the disk.

    Of what a process left that was killed here, nothing stays. No other process may write these
    files meanwhile.

    Args:
      folder: exists.
      files: contents by name, in the order in which they appear.
    """
    for name in files:
        for left in folder.glob(f".{glob.escape(name)}.tmp-*"):
            left.unlink(missing_ok=True)
    staged: dict[Path, Path] = {}
    try:
        for name, data in files.items():
            staged[folder / name] = _temporary(folder / name)
            _write_through(staged[folder / name], data)
        for path, temporary in staged.items():
            temporary.replace(path)
    except BaseException:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    # Others may write the same file at the same time, so that the name is this call's own.
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> None:
    """Renames something damaged to a name that nothing looks for; one a name is kept."""
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def refusal(error: BaseException) -> str:
    """Says what hindered a reading at present, or "" if the error is about what was read.

    Memory that is short, a server that does not answer or a permission that is missing says
    nothing about a file: it may be whole.

    Args:
      error: as raised; what it was raised from counts, too.
    """
    cause: BaseException | None = error
    while cause is not None:
        words = str(cause).partition("\n")[0][:200]
        if isinstance(cause, OSError):
            hindered = cause.errno not in _OF_WHAT_IS_THERE
        else:
            hindered = isinstance(cause, MemoryError)
        if hindered or any(phrase in str(cause) for phrase in _REFUSALS):
            return f"{type(cause).__name__}: {words}" if words else type(cause).__name__
        cause = cause.__cause__ or cause.__context__
    return ""


def unreadable(what: str, why: str) -> UserError:
    """Returns the sentence about something that cannot be read at present."""
    return UserError(
        f"{what} cannot be read now ({why}): nothing was changed; run the same command again when "
        "it can be read."
    )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what hinders the reading of a file or folder at present into a sentence.

    Raises:
      UserError: in place of such an error; errors about what was read pass.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = refusal(error)
        if not why:
            raise
        raise unreadable(str(path), why) from error


def check_readable(folder: Path) -> None:
    """Reads every byte below a folder, to see that all of it can be read.

    Raises:
      UserError: something cannot be read now.
    """
    with reading(folder):
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                with file.open("rb") as opened_file:
                    while opened_file.read(_BLOCK):
                        pass


def vanished(workdir: Path) -> UserError:
    """Returns the sentence about a workdir that was there, and is no more."""
    return UserError(f"The workdir {workdir} has vanished: run the same command again.")


@contextlib.contextmanager
def os_errors(folder: Path) -> Iterator[None]:
    """Turns what the operating system refuses within a folder into sentences about it.

    Whatever fails once the folder is gone becomes the sentence that it has vanished.

    Raises:
      UserError: in place of an OSError that a user can mend; other errors pass.
    """
    try:
        yield
    except OSError as error:
        sentence = _sentence(error, folder)
        if sentence is None:
            raise
        raise sentence from error
    except Exception as error:
        # Such as a reader's sentence about a file that it misses, because the folder is gone.
        if folder.is_dir():
            raise
        raise vanished(folder) from error


def _sentence(error: OSError, folder: Path) -> UserError | None:
    """The sentence for an error of the system, or None if there is none."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"No space left in {folder}: free some and run the same command again; "
            "finished stages are kept."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"Cannot write to {folder}: make it writable or choose another --workdir.")
    path = folder if error.filename is None else Path(os.fsdecode(error.filename))
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return _about_a_file_in_the_way(path, folder)
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"The name of {path} is too long for the file system: choose another.")
    if error.errno == errno.EISDIR:
        # Of a renaming, the second name is the one that is taken.
        taken = path if error.filename2 is None else Path(os.fsdecode(error.filename2))
        return UserError(
            f"{taken} is a folder where a file belongs: move it away and run the same command "
            "again."
        )
    # A stage's folder is made by the run itself, so that one that is missing was taken away.
    parent = path if error.filename is None else path.parent
    gone = parent.is_relative_to(folder) and not parent.is_dir()
    if error.errno == errno.ENOENT and (gone or not folder.is_dir()):
        return vanished(folder)
    return None


def _about_a_file_in_the_way(path: Path, folder: Path) -> UserError | None:
    """The sentence about a file where a folder was to be, or None if there is no such file."""
    obstacle = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
    if obstacle is None:
        return None
    if folder.is_relative_to(obstacle):
        return UserError(f"{folder} is not a folder: choose another --workdir.")
    if obstacle.is_relative_to(folder):
        return UserError(
            f"{obstacle} is a file where a folder belongs: move it away and run the same "
            "command again."
        )
    return None


@contextlib.contextmanager
def storage_errors(folder: Path, what: str) -> Iterator[None]:
    """As `os_errors`, around a library that wraps the system's words in errors of its own.

    Args:
      folder: the workdir.
      what: what could not be done; the sentence begins with it.

    Raises:
      UserError: for every error.
    """
    try:
        with os_errors(folder):
            try:
                yield
            except UserError:
                raise
            except Exception as error:
                number = _errno_of(error)
                if number is None:
                    first_line = str(error).partition("\n")[0]
                    raise UserError(f"{type(error).__name__}: {first_line}") from error
                raise OSError(number, os.strerror(number), str(folder)) from error
    except UserError as error:
        raise UserError(f"{what}. {error}") from error


def _errno_of(error: BaseException) -> int | None:
    """The system's number for an error, from its words and those of all its causes."""
    words = ""
    cause: BaseException | None = error
    while cause is not None:
        words = f"{words} {cause}"
        cause = cause.__cause__ or cause.__context__
    for phrase, number in _ERRNO_BY_WORDS.items():
        if phrase in words:
            return number
    return None
