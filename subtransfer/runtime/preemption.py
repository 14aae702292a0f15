"""Notices that a run has to end: it saves, says so, and asks to be run again.

A notice is SIGTERM (a machine is about to be taken away), SIGUSR1, SIGUSR2 or SIGXCPU (a batch
system says that time is nearly over), SIGHUP (the terminal is gone) or SIGINT (Ctrl-C). The first
one ends the run: at once where nothing would be lost by it, otherwise (inside `deferred`) as soon
as whoever asked for the delay has saved. A second SIGTERM or a second Ctrl-C ends the process where
it stands, which loses no more than SIGKILL; the others may come again and again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

# EX_TEMPFAIL of sysexits.h: the same command, run again, goes on. Launchers are told to restart on
# it.
EXIT_CODE = 75
INTERRUPTED = 128 + signal.SIGINT  # as of a process that Ctrl-C ended: nobody is to restart it

# Windows has few of them.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
NOTICES = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# What people send, and mean when they send it twice. A terminal's end comes as several SIGHUPs,
# SIGXCPU every second, and batch systems repeat themselves.
_TWICE_ENDS = (signal.SIGTERM, signal.SIGINT)
# `nohup` has SIGHUP ignored, a shell's background job SIGINT: that stays as it is.
_LEFT_IGNORED = ("SIGHUP", "SIGINT")

_noticed = threading.Event()
_first: signal.Signals | None = None
_deferrals = 0
_at_once = False


class Preempted(BaseException):
    """The run ends because of a notice; like KeyboardInterrupt, no handler of errors catches it.

    A text, if there is one, is the sentence to end with in the place of `sentence()`.
    """


def listen(*, at_once: bool = False) -> None:
    """Takes notices from now on; to be called by the main thread.

    Args:
      at_once: nothing would be lost by ending right now, as while modules are imported, within
        which an exception may be turned into another. A later call without it begins what can be
        lost.

    Raises:
      Preempted: a notice has come before.
    """
    global _at_once
    _at_once = at_once
    _hush_where_nothing_can_be_raised()
    for notice in NOTICES:
        ignored = signal.getsignal(notice) is signal.SIG_IGN
        if signal.getsignal(notice) is _notice or (ignored and notice.name in _LEFT_IGNORED):
            continue
        signal.signal(notice, _notice)
        if notice in _TWICE_ENDS and sys.platform == "linux":
            _once(notice)
    check()


def _hush_where_nothing_can_be_raised() -> None:
    """Keeps Python from printing a notice that comes within a callback of the garbage collector.

    Python drops what is raised there. The notice is kept all the same: `check` finds it.
    """
    report = sys.unraisablehook
    if getattr(report, "hushed_notices", False):
        return

    def quiet(event: Any) -> None:
        if not (event.exc_type and issubclass(event.exc_type, Preempted)):
            report(event)

    quiet.hushed_notices = True  # type: ignore[attr-defined]
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
    global _first
    if number in _TWICE_ENDS:
        # Where the kernel has not done so already: the second one ends the process.
        signal.signal(number, signal.SIG_DFL)
    if _noticed.is_set():
        return
    _first = signal.Signals(number)
    _noticed.set()
    if _at_once:
        _say(f"{_word()} before anything was begun; run the same command again.")
        os._exit(status())
    if not _deferrals:
        raise Preempted
    hurry = "; a second one does not wait" if number in _TWICE_ENDS else ""
    _say(f"{_first.name}: what is being done is saved, then the run ends{hurry}.")


def _say(line: str) -> None:
    """Writes a line to standard error from within a handler, where Python's streams may be busy."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), f"\n{line}\n".encode())


def _word() -> str:
    if _first is None:
        return "preempted"
    return f"{'interrupted' if _first == signal.SIGINT else 'preempted'} ({_first.name})"


def status() -> int:
    """The exit status of a run that a notice ends: 130 after Ctrl-C, otherwise `EXIT_CODE`."""
    return INTERRUPTED if _first == signal.SIGINT else EXIT_CODE


def sentence() -> str:
    """What a run says that a notice ends."""
    return f"{_word()}; what was done is kept, run the same command again to go on."


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


@contextlib.contextmanager
def raising_again() -> Iterator[None]:
    """Lets a second SIGTERM or Ctrl-C raise Preempted in a block instead of ending the process.

    For whoever has to end others first.
    """

    def again(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Preempted

    listening = [notice for notice in NOTICES if notice in _TWICE_ENDS and _noticed.is_set()]
    before = {}
    for notice in listening:
        if signal.getsignal(notice) is not signal.SIG_IGN:
            before[notice] = signal.signal(notice, again)
    try:
        yield
    finally:
        for notice, handler in before.items():
            signal.signal(notice, handler)
