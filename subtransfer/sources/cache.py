"""The folder in which fetched and converted checkpoints are kept between runs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from subtransfer.runtime.errors import UserError

VARIABLE = "SUBTRANSFER_CACHE"  # the environment's, with another folder
_DEFAULT = "~/.cache/subtransfer/checkpoints"


def root() -> Path:
    """The cache's folder; it may not be there yet."""
    return Path(os.environ.get(VARIABLE) or _DEFAULT).expanduser()


def kept(name: str, write: Callable[[Path], None]) -> Path:
    """The folder of a name in the cache, which is made where it is not there yet.

    It appears whole or not at all, also where several processes ask for it at once: one makes it,
    the others wait.

    Args:
      name: what the folder holds is decided by its name.
      write: fills an empty folder that then gets the name.

    Raises:
      UserError: the cache cannot be written.
    """
    place = root() / name
    if place.is_dir():
        return place
    with _locked(name):
        # Another process may have made it meanwhile.
        if place.is_dir():
            return place
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root()))
        try:
            write(temporary)
            temporary.chmod(0o755)
            temporary.rename(place)
        except OSError as error:
            raise _unusable(error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return place


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """Holds a name's lock, which a process that ends gives back, however it ends."""
    path = root() / f".{name}.lock"
    try:
        root().mkdir(parents=True, exist_ok=True)
        file = path.open("w")
        with contextlib.suppress(OSError):  # where there are no locks, the work is done twice
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise _unusable(error) from error
    with file:
        yield


def _unusable(error: OSError) -> UserError:
    reason = error.strerror or str(error)
    remedy = "make room there, or name" if error.errno == errno.ENOSPC else "name"
    return UserError(
        f"The cache of checkpoints {root()} cannot be written ({reason}): {remedy} another folder "
        f"in the environment variable {VARIABLE}."
    )
