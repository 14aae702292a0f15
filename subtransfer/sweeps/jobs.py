"""What goes between a sweep and its workers, and how a worker serves: JSON lines over a socket.

A job says which stage of which member is to be made, the answer what became of it. A worker ends
when the other end is closed, as it is when its parent dies; a stage under way is saved first.
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
from subtransfer.store import artifacts

LOGS = "logs"  # of stages, and of workers that make none


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker is told to make.

    Attributes:
      member: the member's name; overrides: its fields.
      stage: the stage's name; folder: its artefact's.
      over: the number of a claim on it whose lease has run out.
    """

    member: str
    overrides: Mapping[str, Any]
    stage: str
    folder: str
    over: int | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A job as the store takes it: a key, what makes the artefact, and facts to be recorded with
    it.
    """

    key: Mapping[str, Any]
    build: Callable[[Path], None]
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a job.

    Attributes:
      what: "reused", "computed", "redone", "busy" (another makes it) or "failed"; "ready" of a
        worker that has started.
      seconds: that it took.
      number, holder: of the other's claim.
      sentence: why it failed.
      transient: whether trying again may help.
    """

    what: str
    seconds: float = 0.0
    number: int | None = None
    holder: str = ""
    sentence: str = ""
    transient: bool = False


# What goes away by itself: the network, a file server, memory that another process took.
_ERRNOS = {
    getattr(errno, name)
    for name in "EAGAIN EINTR EIO ESTALE ETIMEDOUT ECONNRESET ECONNREFUSED ECONNABORTED EHOSTDOWN EHOSTUNREACH ENETDOWN "
    "ENETUNREACH ENETRESET ENOMEM EPIPE EREMOTEIO".split()
    if hasattr(errno, name)
}
_STATUSES = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED")


def transient(error: BaseException) -> bool:
    """Whether the same work may succeed another time: never for a mistake of the user's or of the
    program's.
    """
    if isinstance(error, (ConnectionError, TimeoutError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno in _ERRNOS
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and str(error).startswith(
        _STATUSES
    )


def log_path(workdir: Path, folder: str) -> Path:
    """Where a stage's output lies."""
    return workdir / LOGS / f"{folder}.log"


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Everything that is written meanwhile to standard output and error goes to the end of a file,
    also from C++.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
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


def serve(channel: socket.socket, store: artifacts.Store, task_of: Callable[[Job], Task]) -> None:
    """Makes what it is told until the channel is closed.

    Args:
      store: entered.
      task_of: finds out what a job is; its UserErrors are answers.

    Raises:
      preemption.Preempted: the channel was closed, or a SIGTERM has come, while a stage was being
        made.
    """
    jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    file = channel.makefile("rw", encoding="utf-8")

    def listen() -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in file:
                jobs.put(Job(**json.loads(line)))
        jobs.put(None)
        if not preemption.noticed():
            os.kill(os.getpid(), signal.SIGTERM)

    def answer(what: Answer) -> None:
        with contextlib.suppress(OSError):  # nobody is there any more
            channel.sendall((json.dumps(dataclasses.asdict(what)) + "\n").encode())

    answer(Answer("ready"))
    threading.Thread(target=listen, name="jobs", daemon=True).start()
    while job := jobs.get():
        with _output_to(log_path(store.workdir, job.folder)):
            result = _make(job, store, task_of)
        answer(result)


def _make(job: Job, store: artifacts.Store, task_of: Callable[[Job], Task]) -> Answer:
    begin = time.monotonic()
    print(
        f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {job.stage} for {job.member}, pid {os.getpid()}",
        flush=True,
    )
    try:
        task = task_of(job)
        if f"{job.stage}-{artifacts.digest(task.key)}" != job.folder:
            raise UserError(
                "The package or the config file was changed while the sweep ran: start it again."
            )
        what = store.try_stage(job.stage, task.key, task.build, over=job.over, facts=task.facts)
        print(f"[{what}] {job.stage}", flush=True)
        return Answer(what, time.monotonic() - begin)
    except artifacts.Busy as busy:
        print(f"[busy] {job.stage} is being made by {busy.claim.owner}", flush=True)
        return Answer("busy", number=busy.claim.number, holder=str(busy.claim.owner))
    except UserError as error:
        print(f"error: {error}", flush=True)
        return Answer("failed", sentence=str(error))
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        return Answer(
            "failed", sentence=f"{type(error).__name__}: {first}", transient=transient(error)
        )
