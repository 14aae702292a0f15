"""Claims: who makes what in a folder that several processes share, without a server.

A claim says that its owner is making the thing of that name, and it expires: its lease is the
number of seconds that the owner may be silent. A thread speaks for the owner, but only as long as
the owner's work goes on: one that hangs falls silent, too. No library does this over a shared file
system without a server or locks that network file systems may lack, so it is done here.

The claim on NAME is the file `NAME.N` with the highest number N; whoever creates it holds it. Files
are created exclusively (O_EXCL), so that of several takers exactly one succeeds, and their numbers
only grow until the thing is made: one that looked long ago cannot take away what another has taken
since. An owner changes a counter in its file every few seconds. An owner that is silent for its
lease, by the clock of whoever wants the claim, or whose process on this machine is dead, has lost
it; an owner that has lost it ends its process. Assumed are exclusive creation and that an opened
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
from subtransfer.runtime.progress import moved, movements

LEASE = 60.0  # seconds of silence after which a claim is lost
STALL = 3 * 3600.0  # seconds without progress after which a claim is no longer kept up
POLL = 0.5  # seconds between two looks at a claim that another holds
_PROC = Path("/proc")


def _kernel() -> str:
    """Names this kernel since its start, and the process numbers that this process sees.

    Returns:
      "" where that is not known.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # /proc is that of other process numbers
            return ""
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink(
            "/proc/self/ns/pid"
        )
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """When a process was started, in ticks since the kernel was.

    Returns:
      "" if the process is dead or a zombie; None if it may live and does not show itself.
    """
    try:
        after_name = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        # Mounted with hidepid, /proc shows nobody else's processes; signals do know them.
        return None if _exists(pid) else ""
    # Fields of proc(5) after the name, which may hold spaces: the state, and the time of start.
    state, start = after_name[0], after_name[19]
    return "" if state in "ZX" else start


def _exists(pid: int) -> bool:
    """Whether some process, whoever's, has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that can hold claims.

    Attributes:
      token: random, of this process alone.
      host: name of its machine, for people.
      pid: its process number there, for people.
      kernel: with `born`, tells another process on the same kernel whether it still lives.
      born: when it was started.
    """

    token: str
    host: str
    pid: int
    kernel: str
    born: str

    @classmethod
    def this(cls) -> Owner:
        """Returns this process as an owner."""
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), pid, _kernel(), _born(pid) or "")

    def dead(self) -> bool:
        """Whether this process can tell that the owner lives no more."""
        if not (self.kernel and self.born) or self.kernel != _kernel():
            return False
        born = _born(self.pid)
        # What cannot be known is left to the lease.
        return born is not None and born != self.born

    def __str__(self) -> str:
        return f"{self.host}, pid {self.pid}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim as it stands in its file.

    Attributes:
      name: of what is claimed.
      number: of its file.
      owner: None while it is being written.
      beat: changes as long as its owner lives.
      lease: seconds that the owner may be silent.
      free: whether it was given back.
    """

    name: str
    number: int
    owner: Owner | None = None
    beat: str = ""
    lease: float = LEASE
    free: bool = False


class Patience:
    """Counts for how long claims have been silent.

    It counts by this process's own clock, and only while this process runs itself.
    """

    def __init__(self) -> None:
        # name -> (number, beat), seconds of silence, time of the last look
        self._seen: dict[str, tuple[tuple[int, str] | None, float, float]] = {}

    def exhausted(self, claim: Claim) -> bool:
        """Whether a claim, looked at again and again, has been silent for its lease."""
        now, state = time.monotonic(), (claim.number, claim.beat)
        before, silence, last = self._seen.get(claim.name, (None, 0.0, now))
        if state == before:
            # A machine that slept does not find all others dead when it wakes up.
            silence += min(now - last, claim.lease / 4)
        else:
            silence = 0.0
        self._seen[claim.name] = state, silence, now
        return silence >= claim.lease


class ClaimLost(Exception):
    """Another process has taken a claim over."""


class HeldClaim:
    """A claim that this process holds. Made by `Claims.take`.

    Args:
      claims: of this process.
      name: of what is claimed.
      number: of the file that is created.

    Raises:
      FileExistsError: another has created it.
    """

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
            # On a mounted bucket both may create it; the first to send it has it.
            if error.errno == errno.ESTALE:
                raise FileExistsError(path) from error
            raise
        return file

    def _write(self, file: int, free: bool = False) -> None:
        record = {
            "beat": f"{self._beat:012d}",  # of fixed width, as is all else
            "state": "free" if free else "held",
            "lease": self._claims.lease,
            "owner": dataclasses.asdict(self._claims.owner),
        }
        os.pwrite(file, json.dumps(record).encode(), 0)  # always of the same length
        # On closing, network file systems send what was written; others have no need of it.
        os.close(os.dup(file))

    def beat(self, *, silently: bool = False) -> bool:
        """Shows that the owner lives; returns whether it still holds the claim.

        Args:
          silently: only asks whether it does.
        """
        with self._lock:
            if self._file < 0:
                return True  # given back meanwhile
            # Whoever takes the claim over creates the next file; whoever makes the thing in its
            # place removes them all. A folder that is gone says neither.
            here = self._claims.path(self.name, self._number).exists()
            after = self._claims.path(self.name, self._number + 1).exists()
            if after or (not here and self._claims.folder.is_dir()):
                return False
            if not silently:
                self._beat += 1
                self._write(self._file)
            return True

    def confirm(self) -> None:
        """Takes the claim anew: from here on, nobody can have taken it over before.

        Raises:
          ClaimLost: somebody has.
        """
        with self._lock:
            try:
                file = self._create(self._number + 1)
            except FileExistsError:
                raise ClaimLost(
                    f"The claim on {self.name} was taken over: this process was silent for too "
                    "long."
                ) from None
            os.close(self._file)
            self._file, self._number = file, self._number + 1

    def release(self, *, made: bool) -> None:
        """Gives the claim back.

        Args:
          made: the thing is there, so that nothing is to be claimed any more.
        """
        # First, so that the thread that beats does not take the files' absence for a loss.
        self._claims.forget(self)
        with self._lock:
            if self._claims.path(self.name, self._number + 1).exists():
                pass  # another's now
            elif made:
                # In ascending order: the highest, which counts, goes last.
                for number in self._claims.numbers(self.name):
                    self._claims.path(self.name, number).unlink(missing_ok=True)
            else:
                self._write(self._file, free=True)
            os.close(self._file)
            self._file = -1


class Claims:
    """The claims in a folder, for one process. A thread keeps up those that it holds.

    Args:
      folder: it exists, and all processes see it.
      lease: seconds of silence after which this process's claims may be taken over.
      stall: seconds without progress (`progress.moved`) after which it falls silent, as when it
        hangs; 0 is never.
      on_loss: called with a sentence when a claim is found to be another's; by default it ends the
        process, as everything that it goes on to write would come between what the other writes.
    """

    def __init__(
        self,
        folder: Path,
        lease: float = LEASE,
        on_loss: Callable[[str], Any] | None = None,
        *,
        stall: float = STALL,
    ):
        self.folder = Path(folder)
        self.lease = lease
        self.stall = stall
        self.owner = Owner.this()
        self._held: list[HeldClaim] = []
        self._on_loss = on_loss or _end
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def path(self, name: str, number: int) -> Path:
        """Returns the file of one claim on a name."""
        return self.folder / f"{name}.{number}"

    def numbers(self, name: str) -> list[int]:
        """Returns the numbers of the files of a name's claims, ascending."""
        numbers = []
        for file in os.listdir(self.folder):
            stem, _, number = file.rpartition(".")
            if stem == name and number.isdigit():
                numbers.append(int(number))
        return sorted(numbers)

    def look(self, name: str) -> Claim | None:
        """Returns the claim on a name as it is now, or None if there is none."""
        return next(self._read(name), None)

    def owners(self, name: str) -> list[Owner]:
        """Returns all who have held the claim since the thing was last made."""
        return [claim.owner for claim in self._read(name) if claim.owner]

    def _read(self, name: str) -> Iterator[Claim]:
        for number in reversed(self.numbers(name)):
            try:
                text = self.path(name, number).read_text(errors="replace")
            except FileNotFoundError:  # given back meanwhile
                continue
            try:
                record = json.loads(text)
                owner, free = Owner(**record["owner"]), record["state"] == "free"
                yield Claim(name, number, owner, record["beat"], record["lease"], free)
            except (ValueError, KeyError, TypeError):
                # Being written, or damaged: it is left to its lease.
                yield Claim(name, number, beat=text)

    def take(self, name: str, expired: int | None = None) -> HeldClaim | None:
        """Claims a name if nobody holds it, or nobody who lives.

        Args:
          name: of what is to be made.
          expired: the number of a claim whose lease has run out.

        Returns:
          None if another holds it.
        """
        while True:
            claim = self.look(name)
            number = 0
            if claim:
                dead = claim.owner is not None and claim.owner.dead()
                if not (claim.free or dead or claim.number == expired):
                    return None
                number = claim.number + 1
            try:
                held = HeldClaim(self, name, number)
            except FileExistsError:  # somebody was quicker
                continue
            moved()  # a process that has waited for long begins now
            self._held.append(held)
            # One thread beats for all claims, and only in a process that holds some.
            if self._thread is None:
                self._thread = threading.Thread(target=self._beating, name="claims", daemon=True)
                self._thread.start()
            return held

    def _beating(self) -> None:
        # Four beats within a lease: one that comes late costs nothing.
        interval = min(5.0, self.lease / 4)
        stillness = Stillness(self.stall, interval)
        while not self._over.wait(interval):
            stalled = stillness.stalled(busy=bool(self._held))
            for held in tuple(self._held):
                try:
                    kept = held.beat(silently=stalled)
                except OSError:  # a share that does not answer: the lease goes on running
                    continue
                if not kept and held in self._held:
                    self._on_loss(
                        f"the claim on {held.name} was taken over, as this process was silent for "
                        f"more than {self.lease:g} s; run the same command again to go on."
                    )

    def forget(self, held: HeldClaim) -> None:
        """No longer keeps a claim up."""
        if held in self._held:
            self._held.remove(held)

    def close(self) -> None:
        """Ends the thread; claims that are still held are left to their lease."""
        self._over.set()
        if self._thread:
            self._thread.join()


class Stillness:
    """For how long nothing has gone on in this process, for a thread that beats.

    Args:
      limit: seconds after which the process counts as stalled; 0: it never does.
      interval: seconds between two beats.
    """

    def __init__(self, limit: float, interval: float):
        self._limit, self._interval = limit, interval
        self._seen, self._last = movements(), time.monotonic()
        self._still = 0.0

    def stalled(self, *, busy: bool = True) -> bool:
        """Returns whether the process is stalled; says so on stderr when it has become it.

        Args:
          busy: whether there is anything that should go on.
        """
        before, self._seen, now = self._seen, movements(), time.monotonic()
        was = bool(self._limit) and self._still >= self._limit
        # While the process itself was stopped, nothing could go on.
        stands = self._still + min(now - self._last, 2 * self._interval)
        self._still, self._last = (stands if self._seen == before and busy else 0.0), now
        found = bool(self._limit) and self._still >= self._limit
        if found and not was:
            _say(
                f"no progress for {self._still:.0f} s (checkpoint.stall_seconds): another run may "
                "take over what this one is making."
            )
        return found


def _end(sentence: str) -> NoReturn:
    # At once and without handlers: these would write what is now another's to write.
    _say(f"error: {sentence}")
    os._exit(EXIT_CODE)


def _say(line: str) -> None:
    # Not by Python's streams: whoever hangs may hang in one.
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"{line}\n".encode())
