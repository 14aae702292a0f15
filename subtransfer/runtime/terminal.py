"""Standard output and error that never end a run: a lost reader costs no computation."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any

# A full disk may have room again later; what else fails is taken for lost.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EINTR, errno.EAGAIN)


def survive_lost_readers() -> None:
    """Lets the process go on when nobody reads what it prints.

    `| head -1` closes the pipe while the run still prints, `>&-` closes standard output before it
    begins, and the disk of a log may be full. To be called before anything is opened: a file must
    not get the number of a closed stream.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _to_nowhere(number)
    sys.stdout = surviving(sys.stdout)
    sys.stderr = surviving(sys.stderr)


def surviving(stream: Any) -> Any:
    """Returns a text stream that drops what cannot be written.

    Args:
      stream: to write to, or None, as Python has it for a closed one.
    """
    if stream is None:
        stream = open(os.devnull, "w")  # noqa: SIM115 - it is open as long as the process
    return stream if isinstance(stream, _Surviving) else _Surviving(stream)


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


class _Surviving:
    """A stream whose writes do not fail; all else is the stream's own."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        if error.errno in _PASSING:
            return
        # Python would try to write what is left again as it ends, and would then fail.
        with contextlib.suppress(OSError, ValueError):
            _to_nowhere(self._stream.fileno())
