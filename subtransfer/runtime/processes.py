"""The life of several processes that run one program: they find each other, watch each other, and
end together.

Each process beats once a second in the key-value store of JAX's coordination service, and listens
to the others. One that is not heard of any more, or that says that it has ended, ends the others
with a sentence that names it. JAX's own heartbeat would end them as well, later, with a C++ stack
trace and without a name.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from typing import NoReturn

from subtransfer.runtime.errors import UserError
from subtransfer.runtime.preemption import EXIT_CODE

PULSE = 1.0  # seconds between two beats


def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None, *, peer_timeout: int
) -> None:
    """Becomes one of several processes; to be called before anything touches a device.

    Args:
      coordinator, num_processes, process_id: as of `jax.distributed.initialize`; None is found out
        (Cloud TPU, Slurm).
      peer_timeout: seconds after which a process that is not heard of counts as dead.

    Raises:
      UserError: the others were not found.
    """
    global _life
    import jax

    _divert_native_logs()
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours (preemption.py)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=4 * peer_timeout + 10,
            initialization_timeout=300,
        )
    except (RuntimeError, ValueError) as error:
        if coordinator is None and "should be defined" in str(error):
            raise UserError(
                "--distributed=auto finds no variables of Cloud TPU, Slurm or Open MPI: give --coordinator, --num_processes "
                "and --process_id."
            ) from error
        raise UserError(
            f"The processes did not find each other: {str(error).splitlines()[0]}"
        ) from error
    _life = _Life(peer_timeout)


_life: _Life | None = None


class _Life:
    """This process among its peers."""

    def __init__(self, peer_timeout: int):
        from jax._src.distributed import global_state  # the only door to the key-value store

        self.client, self.me, self.timeout = (
            global_state.client,
            global_state.process_id,
            peer_timeout,
        )
        self.client.key_value_set(f"name/{self.me}", f"{socket.gethostname()}, pid {os.getpid()}")
        everyone = range(global_state.num_processes)
        self.names = {i: self.client.blocking_key_value_get(f"name/{i}", 300_000) for i in everyone}
        self.over = threading.Event()
        self._watch = threading.Thread(target=self._watching, name="peers", daemon=True)
        _on_abort(self._aborted)
        self._watch.start()

    def _watching(self) -> None:
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
            f"process {peer} ({self.names[peer]}) is dead, so that this one ends too; what was done is kept, run the same "
            "command in every process again to go on.",
        )

    def _exit(self, code: int, sentence: str) -> NoReturn:
        os.write(sys.stderr.fileno(), f"error: {sentence}\n".encode())
        os._exit(code)  # without handlers that would wait for the dead

    def _aborted(self, log: str) -> None:
        if "distributed service detected fatal errors" in log:
            self.lost(0)  # of any other the watch knows first


def leads() -> bool:
    """Whether this process is the one that writes artefacts, reports and lines."""
    return _life is None or _life.me == 0


def barrier(name: str) -> None:
    """Waits until every process is here, for as long as it takes: the watch ends what waits for the
    dead.
    """
    if _life:
        _life.client.wait_at_barrier(name, 7 * 24 * 3600 * 1000)


def share(key: str, text: str | None) -> str:
    """A text from the process that leads (the others pass None), for all; each key is used once."""
    if not _life:
        return text
    if text is not None:
        _life.client.key_value_set(key, text)
    return _life.client.blocking_key_value_get(key, 7 * 24 * 3600 * 1000)


def await_verdict() -> None:
    """After an error that a dead peer may have caused: returns only if no peer is dead."""
    if _life:
        time.sleep(_life.timeout + 3 * PULSE)


def leave(code: int, sentence: str) -> int:
    """Ends this process's part; the others end with it if it ends early (`code` is not 0). Returns
    `code`.
    """
    if not _life:
        return code
    if code:
        _life.over.set()
        _life.client.key_value_set(f"ended/{_life.me}", json.dumps([code, sentence]))
        time.sleep(
            3 * PULSE
        )  # the store may live in this process: it stays until the others have read it
        end(code)
    import jax

    barrier("end")
    _life.over.set()
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


# -- the C++ side ----------------------------------------------------------------------------------------------------

_native_log: int | None = None
_handlers: list = []


def _divert_native_logs() -> None:
    """Sends what C++ writes to standard error into a file without a name: Python goes on writing to
    the terminal.
    """
    global _native_log
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with tempfile.TemporaryFile() as file:
        _native_log = os.dup(file.fileno())
        os.dup2(file.fileno(), 2)


def _on_abort(tell) -> None:
    """Calls `tell(log)` when C++ code aborts, as JAX's client does as soon as its coordinator is
    gone; no exception says so.
    """

    def aborted(number):
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
