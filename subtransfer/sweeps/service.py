"""How a worker of a sweep serves: it makes the stages that it is asked for.

A worker ends when the other end of its socket is closed, as it is when its parent dies; a stage
under way is saved first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from subtransfer.runtime import preemption
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest
from subtransfer.store import artifacts
from subtransfer.sweeps.requests import StageOutcome, StageRequest, log_path, to_line


@dataclasses.dataclass(frozen=True)
class StageBuild:
    """A stage as the store takes it.

    Attributes:
      key: all that determines the artefact (JSON).
      build: makes the artefact in an empty folder.
      facts: recorded with it (JSON).
    """

    key: Mapping[str, Any]
    build: Callable[[Path], None]
    facts: Mapping[str, Any]


# What goes away by itself: the network, a file server, memory that another process took.
_TRANSIENT_NAMES = (
    "EAGAIN EINTR EIO ESTALE ETIMEDOUT ECONNRESET ECONNREFUSED ECONNABORTED EHOSTDOWN "
    "EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET ENOMEM EPIPE EREMOTEIO"
)
# Not every system has all of them.
_TRANSIENT = {getattr(errno, name) for name in _TRANSIENT_NAMES.split() if hasattr(errno, name)}
_STATUSES = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED")


def transient(error: BaseException) -> bool:
    """Whether the same work may succeed another time.

    It never does after a mistake of the user's or of the program's.
    """
    if isinstance(error, (ConnectionError, TimeoutError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno in _TRANSIENT
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return of_jax and str(error).startswith(_STATUSES)


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Sends what is written meanwhile to standard output and error to the end of a file.

    It goes there also from C++.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # The descriptors themselves are exchanged, as C++ knows nothing of Python's streams.
    kept = [os.dup(number) for number in (1, 2)]
    with path.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.dup2(kept[number - 1], number)
            os.close(kept[number - 1])


def serve(
    channel: socket.socket,
    store: artifacts.Store,
    build_of: Callable[[StageRequest], StageBuild],
) -> None:
    """Makes the stages that are asked for until the channel is closed.

    Args:
      channel: the worker's end of the socket.
      store: entered.
      build_of: finds out how a stage is made; its UserErrors are outcomes.

    Raises:
      preemption.Preempted: the channel was closed, or a SIGTERM has come, while a stage was being
        made.
    """
    requests: queue.SimpleQueue[StageRequest | None] = queue.SimpleQueue()
    file = channel.makefile("r", encoding="utf-8")

    def listen() -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in file:
                requests.put(StageRequest(**json.loads(line)))
        requests.put(None)
        # The other end is gone. A stage under way saves and ends as after a notice.
        if not preemption.noticed():
            os.kill(os.getpid(), signal.SIGTERM)

    def answer(outcome: StageOutcome) -> None:
        with contextlib.suppress(OSError):  # nobody is there any more
            channel.sendall(to_line(outcome))

    answer(StageOutcome("ready"))
    threading.Thread(target=listen, name="requests", daemon=True).start()
    while request := requests.get():
        with _output_to(log_path(store.workdir, request.folder)):
            outcome = _make(request, store, build_of)
        answer(outcome)


def _make(
    request: StageRequest,
    store: artifacts.Store,
    build_of: Callable[[StageRequest], StageBuild],
) -> StageOutcome:
    stage = request.stage
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"--- {now} {stage} for {request.member}, pid {os.getpid()}", flush=True)
    try:
        made = build_of(request)
        # The command planned with sources that this worker may have read later.
        if f"{stage}-{digest(made.key)}" != request.folder:
            raise UserError(
                "The package or the config file was changed while the sweep ran: start it again."
            )
        what = store.try_stage(
            stage, made.key, made.build, expired=request.expired, facts=made.facts
        )
        print(f"[{what}] {stage}", flush=True)
        return StageOutcome(what)
    except artifacts.Busy as busy:
        print(f"[busy] {stage} is being made by {busy.claim.owner}", flush=True)
        return StageOutcome("busy")
    except UserError as error:
        print(f"error: {error}", flush=True)
        return StageOutcome("failed", str(error))
    except Exception as error:
        # What is raised by a notice may arrive as another error: an import turns it into one.
        preemption.check()
        traceback.print_exc()
        first_line = (str(error).splitlines() or [""])[0]
        return StageOutcome(
            "failed", f"{type(error).__name__}: {first_line}", transient=transient(error)
        )
