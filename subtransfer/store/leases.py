"""Who makes what in a folder that several processes share, without a server: claims that expire.

The claim on NAME is the file `NAME.N` with the highest number N; whoever creates it holds it. Files
are created exclusively (O_EXCL), so that of several takers exactly one succeeds, and their numbers
only grow until the thing is made: one that looked long ago cannot take away what another has taken
since. A holder changes a counter in its file every few seconds. A holder that is silent for its
lease, by the clock of whoever wants the claim, or whose process on this machine is dead, has lost
it; a holder that has lost it ends its process. Assumed are exclusive creation and that an opened
file shows what was written before another closed it: local file systems and NFS (3 and later) do
that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from subtransfer.runtime.preemption import EXIT_CODE

LEASE = 60.0  # seconds of silence after which a claim is lost
POLL = 0.5  # seconds between two looks at a claim that another holds


def _kernel() -> str:
    """Names this kernel since it was started, and the process numbers that this process sees; ""
    where that is not known.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # /proc is that of other process numbers
            return ""
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink(
            "/proc/self/ns/pid"
        )
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process was started, in ticks since the kernel was; "" if it is dead, a zombie or
    unknown.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that can hold claims.

    Attributes:
      token: its own.
      host, pid: where a person finds it.
      kernel, born: what tells another process on the same kernel whether it still lives.
    """

    token: str
    host: str
    pid: int
    kernel: str
    born: str

    @classmethod
    def this(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), pid, _kernel(), _born(pid))

    def dead(self) -> bool:
        """Whether this process can tell that it lives no more."""
        return (
            bool(self.kernel and self.born)
            and self.kernel == _kernel()
            and _born(self.pid) != self.born
        )

    def __str__(self) -> str:
        return f"{self.host}, pid {self.pid}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim as it stands in its file.

    Attributes:
      number: of its file.
      owner: None while it is being written.
      beat: changes as long as its owner lives.
      lease: seconds that it may be silent.
      free: given back.
    """

    name: str
    number: int
    owner: Owner | None = None
    beat: str = ""
    lease: float = LEASE
    free: bool = False


class Patience:
    """Counts for how long claims have been silent, by this process's own clock and only while this
    process runs itself.
    """

    def __init__(self):
        self._seen: dict[
            str, tuple[tuple[int, str], float, float]
        ] = {}  # name: (number, beat), silence, last look

    def over(self, claim: Claim) -> bool:
        """Whether a claim, looked at again and again, has been silent for its lease."""
        now, state = time.monotonic(), (claim.number, claim.beat)
        before, silence, last = self._seen.get(claim.name, (None, 0.0, now))
        # A machine that slept does not find all others dead when it wakes up.
        silence = silence + min(now - last, claim.lease / 4) if state == before else 0.0
        self._seen[claim.name] = state, silence, now
        return silence >= claim.lease


class Lost(Exception):
    """Another process has taken a claim over."""


class Held:
    """A claim of this process. Made by `Claims.take`."""

    def __init__(self, claims: Claims, name: str, number: int):
        self.name = name
        self._claims, self._number, self._beat = claims, number, 0
        self._lock = threading.Lock()
        self._file = self._create(number)

    def _create(self, number: int) -> int:
        """A new claim file, which nobody else can then create.

        Raises:
          FileExistsError: somebody else has.
        """
        path = self._claims.path(self.name, number)
        file = os.open(
            path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o666
        )
        try:
            self._write(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.close(file)
            if (
                error.errno == errno.ESTALE
            ):  # a mounted bucket: of two that created it, the first to send it has it
                raise FileExistsError(path) from error
            raise
        return file

    def _write(self, file: int, free: bool = False) -> None:
        record = {
            "beat": f"{self._beat:012d}",
            "state": "free" if free else "held",
            "lease": self._claims.lease,
            "owner": dataclasses.asdict(self._claims.owner),
        }
        os.pwrite(file, json.dumps(record).encode(), 0)  # always of the same length
        os.close(
            os.dup(file)
        )  # on closing, network file systems send what was written; others have no need of it

    def beat(self) -> bool:
        """Shows that the holder lives; returns whether it still holds the claim."""
        with self._lock:
            if self._file < 0:
                return True  # given back meanwhile
            here, after = (self._claims.path(self.name, self._number + i).exists() for i in (0, 1))
            if after or not here and self._claims.folder.is_dir():
                return False
            self._beat += 1
            self._write(self._file)
            return True

    def confirm(self) -> None:
        """Takes the claim anew: from here on, nobody can have taken it over before.

        Raises:
          Lost: somebody has.
        """
        with self._lock:
            try:
                file = self._create(self._number + 1)
            except FileExistsError:
                raise Lost(
                    f"The claim on {self.name} was taken over: this process was silent for too long."
                ) from None
            os.close(self._file)
            self._file, self._number = file, self._number + 1

    def release(self, *, made: bool) -> None:
        """Gives the claim back; once the thing is `made`, there is nothing to be claimed any
        more.
        """
        self._claims.forget(self)
        with self._lock:
            if self._claims.path(self.name, self._number + 1).exists():
                pass  # another's now
            elif made:
                for number in self._claims.numbers(self.name):
                    self._claims.path(self.name, number).unlink(missing_ok=True)
            else:
                self._write(self._file, free=True)
            os.close(self._file)
            self._file = -1


class Claims:
    """The claims in a folder, for one process. A thread keeps up those that it holds.

    Args:
      folder: exists, and all processes see it.
      lease: seconds of silence after which this process's claims may be taken over.
      on_loss: called with a sentence when a claim is found to be another's; by default it ends the
        process, as everything that it goes on to write would come between what the other writes.
    """

    def __init__(
        self, folder: Path, lease: float = LEASE, on_loss: Callable[[str], Any] | None = None
    ):
        self.folder, self.lease, self.owner = Path(folder), lease, Owner.this()
        self._held: list[Held] = []
        self._on_loss = on_loss or _end
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}"

    def numbers(self, name: str) -> list[int]:
        """Of the claim's files, ascending."""
        ends = (file.rpartition(".") for file in os.listdir(self.folder))
        return sorted(int(number) for stem, _, number in ends if stem == name and number.isdigit())

    def look(self, name: str) -> Claim | None:
        """The claim on a name as it is now."""
        return next(self._read(name), None)

    def owners(self, name: str) -> list[Owner]:
        """All who have held it since it was last made."""
        return [claim.owner for claim in self._read(name) if claim.owner]

    def _read(self, name: str) -> Iterator[Claim]:
        for number in reversed(self.numbers(name)):
            try:
                text = self.path(name, number).read_text()
            except FileNotFoundError:  # given back meanwhile
                continue
            try:
                record = json.loads(text)
                owner = Owner(**record["owner"])
                yield Claim(
                    name, number, owner, record["beat"], record["lease"], record["state"] == "free"
                )
            except (ValueError, KeyError, TypeError):
                yield Claim(name, number, beat=text)

    def take(self, name: str, over: int | None = None) -> Held | None:
        """Claims a name if nobody holds it, or nobody who lives.

        Args:
          over: the number of a claim whose lease has run out.

        Returns:
          None if another holds it.
        """
        while True:
            claim = self.look(name)
            if claim and not (
                claim.free or claim.number == over or claim.owner and claim.owner.dead()
            ):
                return None
            try:
                held = Held(self, name, claim.number + 1 if claim else 0)
            except FileExistsError:  # somebody was quicker
                continue
            self._held.append(held)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beating, name="claims", daemon=True)
                self._thread.start()
            return held

    def _beating(self) -> None:
        while not self._over.wait(min(5.0, self.lease / 4)):
            for held in tuple(self._held):
                try:
                    kept = held.beat()
                except OSError:  # a share that does not answer: the lease goes on running
                    continue
                if not kept and held in self._held:
                    self._on_loss(
                        f"the claim on {held.name} was taken over, as this process was silent for more than {self.lease:g} s; "
                        "run the same command again to go on."
                    )

    def forget(self, held: Held) -> None:
        """No longer keeps a claim up."""
        if held in self._held:
            self._held.remove(held)

    def close(self) -> None:
        """Ends the thread; claims that are still held are left to their lease."""
        self._over.set()
        if self._thread:
            self._thread.join()


def _end(sentence: str) -> NoReturn:
    os.write(sys.stderr.fileno(), f"error: {sentence}\n".encode())
    os._exit(EXIT_CODE)
