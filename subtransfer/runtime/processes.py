"""Several processes that run one program: they find each other, watch each other, end together.

Each process beats once a second in the key-value store of JAX's coordination service, and listens
to the others. One that is not heard of any more, or that says that it has ended, ends the others
with a sentence that names it. JAX's own heartbeat would end them as well, later, with a C++ stack
trace and without a name.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from subtransfer.runtime import terminal
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.preemption import EXIT_CODE

PULSE = 1.0  # seconds between two beats
_WEEK_MS = 7 * 24 * 3600 * 1000  # longer than any wait that the watch does not end


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    peer_timeout: int,
    join_timeout: int = 300,
) -> None:
    """Becomes one of several processes; to be called before anything touches a device.

    Args:
      coordinator: HOST:PORT of process 0; None is found out (Cloud TPU, Slurm), as are the others.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      peer_timeout: seconds after which a process that is not heard of counts as dead.
      join_timeout: seconds that it waits for the others.

    Raises:
      UserError: the others were not found.
    """
    global _membership
    import jax

    _divert_native_logs()

    def aborted(log: str) -> None:
        if _membership:
            _membership.aborted(log)
        elif "DEADLINE_EXCEEDED" in log:
            line = f"error: The processes did not find each other within {join_timeout} s"
            os.write(
                sys.stderr.fileno(),
                f"{line}: start the same command in all of them (--join_timeout).\n".encode(),
            )
            os._exit(2)

    _on_abort(aborted)
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours (preemption.py)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # Later than our own watch, which ends the process with a sentence.
            heartbeat_timeout_seconds=4 * peer_timeout + 10,
            initialization_timeout=join_timeout,
        )
    except (RuntimeError, ValueError) as error:
        if coordinator is None and "should be defined" in str(error):
            raise UserError(
                "--distributed=auto finds no variables of Cloud TPU, Slurm or Open MPI: give "
                "--coordinator, --num_processes and --process_id."
            ) from error
        raise UserError(
            f"The processes did not find each other: {str(error).splitlines()[0]}"
        ) from error
    _membership = _Membership(peer_timeout, join_timeout)


_membership: _Membership | None = None


class _Membership:
    """This process among its peers."""

    def __init__(self, peer_timeout: int, join_timeout: int):
        from jax._src.distributed import global_state  # the only door to the key-value store

        client: Any = global_state.client
        self.client = client
        self.me: int = global_state.process_id
        self.timeout = peer_timeout
        client.key_value_set(f"name/{self.me}", f"{socket.gethostname()}, pid {os.getpid()}")
        self.names: dict[int, str] = {}
        for peer in range(global_state.num_processes):
            self.names[peer] = client.blocking_key_value_get(f"name/{peer}", 1000 * join_timeout)
        self.over = threading.Event()
        self.leaving = 0  # the exit status of a process that ends early
        self._watch = threading.Thread(target=self._watching, name="peers", daemon=True)
        self._watch.start()

    def _watching(self) -> None:
        # peer -> its last beat, and how many beats of our own ago that was
        heard = {peer: ("", 0) for peer in self.names if peer != self.me}
        beat = 0
        # Silence is counted in beats of our own: a machine that sleeps does not find all others
        # dead when it wakes up.
        while not self.over.wait(PULSE):
            beat += 1
            try:
                self.client.key_value_set(f"pulse/{self.me}", str(beat), allow_overwrite=True)
                ended = dict(self.client.key_value_dir_get("ended/"))
                pulses = dict(self.client.key_value_dir_get("pulse/"))
            except RuntimeError:
                # The store lives in process 0.
                if not self.over.is_set():
                    self.lost(0)
                return
            for key, last in ended.items():
                code, sentence = json.loads(last)
                peer = int(key.rpartition("/")[2])
                self._exit(code, f"process {peer} ({self.names[peer]}) has ended: {sentence}")
            for peer, (before, silent) in heard.items():
                now = pulses.get(f"pulse/{peer}", "")
                heard[peer] = (now, 0 if now != before else silent + 1)
                if heard[peer][1] * PULSE >= self.timeout:
                    self.lost(peer)

    def lost(self, peer: int) -> NoReturn:
        """Ends this process, because a peer is dead."""
        self._exit(
            EXIT_CODE,
            f"process {peer} ({self.names[peer]}) is dead, so that this one ends too; what was "
            "done is kept, run the same command in every process again to go on.",
        )

    def _exit(self, code: int, sentence: str) -> NoReturn:
        os.write(sys.stderr.fileno(), f"error: {sentence}\n".encode())
        os._exit(code)  # without handlers that would wait for the dead

    def aborted(self, log: str) -> None:
        """Ends this process, which C++ is about to abort, in a way that says why."""
        if "distributed service detected fatal errors" in log:
            if self.leaving:  # the first process has heard that this one ends, and was quicker
                os._exit(self.leaving)
            self.lost(0)  # of any other the watch knows first


def leads() -> bool:
    """Whether this process is the one that writes artefacts, reports and lines."""
    return _membership is None or _membership.me == 0


def barrier(name: str) -> None:
    """Waits until every process is here, for as long as it takes.

    The watch ends what waits for the dead.
    """
    if _membership:
        _membership.client.wait_at_barrier(name, _WEEK_MS)


def share(key: str, text: str | None) -> str:
    """Returns the text of the process that leads, in every process.

    Args:
      key: of this exchange; each is used once.
      text: of the process that leads; the others pass None.
    """
    if not _membership:
        assert text is not None, "the only process leads"
        return text
    if text is not None:
        _membership.client.key_value_set(key, text)
    return _membership.client.blocking_key_value_get(key, _WEEK_MS)


def agree(value: Any) -> Any:
    """Returns the value of the process that leads, in every process.

    All call it equally often, in one order.

    Args:
      value: JSON.
    """
    if not _membership:
        return value
    number = next(_agreed)
    return json.loads(share(f"agreed/{number}", json.dumps(value) if leads() else None))


_agreed = itertools.count()


def several() -> bool:
    """Whether this is one of several processes."""
    return _membership is not None


def await_verdict() -> None:
    """After an error that a dead peer may have caused: returns only if no peer is dead."""
    if _membership:
        # If a peer is dead, the watch ends this process meanwhile.
        time.sleep(_membership.timeout + 3 * PULSE)


def leave(code: int, sentence: str) -> int:
    """Ends this process's part; the others end with it if it ends early.

    Args:
      code: the exit status; other than 0 if this process ends early.
      sentence: why, for the others.

    Returns:
      `code`.
    """
    if not _membership:
        return code
    if code:
        _membership.leaving = code
        _membership.over.set()
        _membership.client.key_value_set(f"ended/{_membership.me}", json.dumps([code, sentence]))
        # The key-value store may live in this process: it stays until the others have read it.
        time.sleep(3 * PULSE)
        end(code)
    import jax

    # Nobody watches any more once all are here: who is then gone has ended well.
    barrier("end")
    _membership.over.set()
    jax.distributed.shutdown()
    return code


def end(code: int) -> NoReturn:
    """Ends the process; after an error at once.

    The interpreter would wait for all threads, and a save that was refused leaves some of Orbax's,
    which wait for five minutes for what will not come.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    sys.exit(0)


# -- the C++ side

_native_log: int | None = None
_handlers: list[Any] = []


def _divert_native_logs() -> None:
    """Sends what C++ writes to standard error into a file without a name.

    Python goes on writing to the terminal.
    """
    global _native_log
    sys.stderr.flush()
    sys.stderr = terminal.surviving(os.fdopen(os.dup(2), "w", buffering=1))
    with tempfile.TemporaryFile() as file:
        _native_log = os.dup(file.fileno())
        os.dup2(file.fileno(), 2)


def _on_abort(tell: Callable[[str], None]) -> None:
    """Calls `tell(log)` when C++ code aborts.

    JAX's client does so as soon as its coordinator is gone; no exception says so.
    """

    def aborted(number: int) -> None:
        assert _native_log is not None
        size = os.lseek(_native_log, 0, os.SEEK_END)
        log = os.pread(_native_log, 20_000, max(size - 20_000, 0)).decode(errors="replace")
        tell(log)
        os.write(sys.stderr.fileno(), log.encode())
        os._exit(128 + signal.SIGABRT)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _handlers.append(handler)  # C keeps only its address
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
