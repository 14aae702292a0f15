"""SIGTERM, the notice that a machine is about to be taken away: the run saves and ends for now.

The first SIGTERM ends the run with `EXIT_CODE`: at once where nothing would be lost by it,
otherwise (inside `deferred`) as soon as whoever asked for the delay has saved. A second one ends
the process where it stands, which loses no more than SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

# EX_TEMPFAIL of sysexits.h: the same command, run again, goes on. Launchers are told to restart on
# it.
EXIT_CODE = 75

_noticed = threading.Event()
_deferrals = 0


class Preempted(BaseException):
    """The run ends because of a notice; like KeyboardInterrupt, no handler of errors catches it."""


def listen() -> None:
    """Takes SIGTERM from now on; to be called by the main thread."""
    _hush_where_nothing_can_be_raised()
    signal.signal(signal.SIGTERM, _notice)
    if sys.platform == "linux":
        _once(signal.SIGTERM)


def _hush_where_nothing_can_be_raised() -> None:
    """Keeps Python from printing a notice that comes within a callback of the garbage collector.

    Python drops what is raised there. The notice is kept all the same: `check` finds it.
    """
    report = sys.unraisablehook

    def quiet(event: Any) -> None:
        if not (event.exc_type and issubclass(event.exc_type, Preempted)):
            report(event)

    sys.unraisablehook = quiet


class _Sigaction(ctypes.Structure):
    """Linux's `struct sigaction`, as the C library has it on 64 bits."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_uint),
        ("restorer", ctypes.c_void_p),
    ]


def _once(number: int) -> None:
    """Lets the kernel forget the handler as it calls it, so that a second signal ends the process.

    It does so whatever keeps Python waiting: Python runs handlers between two of its instructions,
    that is, not while a program is compiled.
    """
    libc, action = ctypes.CDLL(None), _Sigaction()
    libc.sigaction(number, None, ctypes.byref(action))
    action.flags |= 0x80000000  # SA_RESETHAND
    libc.sigaction(number, ctypes.byref(action), None)


def _notice(number: int, frame: Any) -> None:
    # Where the kernel has not done so already: the second one ends the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _noticed.set()
    if not _deferrals:
        raise Preempted


def noticed() -> bool:
    """Whether a notice has come."""
    return _noticed.is_set()


def check() -> None:
    """Raises Preempted if a notice has come: called where a thread can stop."""
    if _noticed.is_set():
        raise Preempted


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets a notice wait for a block, which asks `noticed()` by itself whenever it can save."""
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1
