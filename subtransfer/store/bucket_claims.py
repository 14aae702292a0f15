"""One run at a time at an address of an object store: a claim there, kept up by a heartbeat.

The claim is the object `.claims/run.N` with the highest number N. It is created on the condition
that there is none of this name (Cloud Storage: ifGenerationMatch=0; S3: If-None-Match; both by
fsspec's mode="create"), so that of several takers one succeeds, and then read back, which tells of
a store whose client ignores the condition that another's object took the place of ours. Its owner
changes a counter in it every few seconds. Whoever finds a claim looks at it for its lease: one that
changes is alive, and the run is refused; one that does not is taken over by the next number.

An object store cannot refuse the writes of a run that was silent for its lease and wakes up: the
run looks for itself before each of them, and ends if its claim is another's. What it wrote in the
moment between looking and writing stays; artefacts are named after all that determines them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from subtransfer.runtime import preemption
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import parse_json
from subtransfer.store.claims import POLL, STALL, Claim, Owner, Patience, Stillness

_FOLDER, _NAME = ".claims", "run"
_SHAPE = {"owner": dict, "beat": int, "lease": float, "free": bool}


class BucketClaim:
    """The claim of this process on an address, which it may or may not hold.

    Args:
      files: an fsspec file system.
      root: the address in it.
      address: as the user gave it.
      lease: seconds of silence after which another run may take over.
      stall: seconds without progress after which this one falls silent; 0 is never.
    """

    def __init__(self, files: Any, root: str, address: str, lease: float, stall: float = STALL):
        self._files, self._folder = files, f"{root}/{_FOLDER}"
        self._address, self._lease, self._stall = address, lease, stall
        self._owner = Owner.this()
        self._number: int | None = None  # of the object that is ours
        self._beat = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        # The thread that beats must not write what another thread has just given back.
        self._lock = threading.Lock()

    def take(self, log: Callable[[str], None]) -> None:
        """Claims the address; waits for the lease of one who gives no sign of life.

        Args:
          log: takes lines for people.

        Raises:
          UserError: another run is alive there.
          preemption.Preempted: a notice has come while it waited.
        """
        patience, first = Patience(), None
        while self._number is None:
            claim = self._look()
            if claim is None:
                self._create(0)
                continue
            dead = claim.owner is not None and claim.owner.dead()
            if claim.free or dead or patience.exhausted(claim):
                self._create(claim.number + 1)
                continue
            state = claim.number, claim.beat
            if first is None:
                first = state
                log(
                    f"[waiting] {self._address} was claimed by {claim.owner or 'another run'}: "
                    f"watching for {claim.lease:g} s whether that run lives"
                )
            elif state != first:
                raise UserError(
                    f"The workdir {self._address} is in use by another run "
                    f"({claim.owner or 'unknown'}): wait for its end, or choose another --workdir."
                )
            preemption.check()
            time.sleep(min(POLL, claim.lease / 20))
        self._thread = threading.Thread(target=self._beating, name="bucket claim", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Looks whether the claim is still ours; does nothing where it was never taken.

        Raises:
          UserError: another run has taken it over.
        """
        if self._number is not None and max(self._numbers(), default=-1) > self._number:
            raise UserError(
                f"The workdir {self._address} was taken over by another run, as this one was "
                f"silent for more than {self._lease:g} s: run the same command again when that "
                "run has ended."
            )

    def release(self) -> None:
        """Gives the claim back, if it is ours; errors of the store are left to the lease."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._number is not None:
            with self._lock, contextlib.suppress(Exception):
                if max(self._numbers()) == self._number:
                    self._write(self._number, free=True)
            self._number = None

    def _create(self, number: int) -> None:
        """Creates the object of a number; it is ours unless another was quicker."""
        try:
            self._write(number, mode="create")
        except FileExistsError:
            return
        # A client that ignores the condition lets the last writer win: who reads its own back
        # after all who looked at the same time have written has it.
        time.sleep(min(POLL, self._lease / 20))
        claim, numbers = self._read(number), self._numbers()
        # Who looked long ago may create a number that others have left behind since.
        if claim is None or claim.owner != self._owner or max(numbers) != number:
            return
        self._number = number
        # The highest one counts; the rest would only grow.
        for lower in numbers:
            if lower < number:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(self._path(lower))

    def _beating(self) -> None:
        # Four beats within a lease: one that comes late costs nothing.
        interval = min(15.0, self._lease / 4)
        stillness = Stillness(self._stall, interval)
        while not self._over.wait(interval):
            if stillness.stalled():
                continue  # whoever waits may take over; `check` tells this run, should it wake up
            # A store that does not answer: the lease goes on running.
            with self._lock, contextlib.suppress(Exception):
                if max(self._numbers(), default=-1) > (self._number or 0):
                    return  # `check` says so to who goes on writing
                self._beat += 1
                self._write(self._number or 0)

    def _write(self, number: int, *, free: bool = False, **how: Any) -> None:
        record = {
            "owner": dataclasses.asdict(self._owner),
            "beat": self._beat,
            "lease": self._lease,
            "free": free,
        }
        self._files.pipe_file(self._path(number), json.dumps(record).encode(), **how)

    def _path(self, number: int) -> str:
        return f"{self._folder}/{_NAME}.{number}"

    def _numbers(self) -> list[int]:
        """The numbers of the claims that are there."""
        self._files.invalidate_cache()  # others write, too
        try:
            found = self._files.ls(self._folder, detail=False)
        except FileNotFoundError:
            return []
        numbers = []
        for path in found:
            stem, _, number = PurePosixPath(path).name.rpartition(".")
            if stem == _NAME and number.isdecimal():
                numbers.append(int(number))
        return sorted(numbers)

    def _look(self) -> Claim | None:
        """The claim that counts, or None where there is none."""
        for number in reversed(self._numbers()):
            claim = self._read(number)
            if claim is not None:
                return claim
        return None

    def _read(self, number: int) -> Claim | None:
        try:
            data = self._files.cat_file(self._path(number))
        except FileNotFoundError:  # its run was tidying up
            return None
        try:
            record = parse_json(data, self._path(number), _SHAPE, "remove it")
            owner = Owner(**record["owner"])
        except (UserError, TypeError):
            # Damaged, or of another version: it is left to its lease.
            return Claim(_NAME, number, beat=repr(data), lease=self._lease)
        beat = str(record["beat"])
        return Claim(_NAME, number, owner, beat, record["lease"], record["free"])
