"""The artefact store: one folder a stage, named by what determines it, written atomically.

A stage is claimed, so that no other process makes it meanwhile (`claims.py`); built in a temporary
folder; sealed by a marker that lists its files; and renamed to its final name.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from subtransfer.runtime import preemption, processes
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest
from subtransfer.runtime.progress import moved
from subtransfer.store import buckets, exclusive, history
from subtransfer.store.claims import (
    LEASE,
    POLL,
    STALL,
    Claim,
    ClaimLost,
    Claims,
    HeldClaim,
    Owner,
    Patience,
)
from subtransfer.store.files import os_errors, sync, vanished
from subtransfer.store.seals import is_whole, seal
from subtransfer.store.workdir import CLAIMS, STEPS, opened, steps_folder


class Busy(Exception):
    """A stage is being made by another process; `claim` says by whom."""

    def __init__(self, claim: Claim):
        super().__init__(claim.name)
        self.claim = claim


class Store:
    """The stages of a workdir, which several runs may share. Used as a context manager.

    Each run claims what it makes. Of several processes of one run the first claims and writes; the
    others compute alongside, throw their copies away, and wait for the seal. All must see the
    workdir.

    Args:
      workdir: the folder; it is made if it is not there.
      lease: seconds of silence after which another run may take over what this one is making.
      stall: seconds without progress after which this one falls silent; 0 is never.

    Attributes:
      events: (what happened, stage) in order; what is "reused", "computed" or "redone".

    Raises:
      UserError: the workdir cannot be made or written, or is not the same in every process.
    """

    def __init__(self, workdir: Path, lease: float = LEASE, stall: float = STALL):
        self.workdir = Path(workdir)
        self.events: list[tuple[str, str]] = []
        self._lease, self._stall = lease, stall
        self._claims_of_leader: Claims | None = None
        self._interrupted: set[str] = set()  # folders of stages that dead runs were making

    @property
    def _claims(self) -> Claims:
        claims = self._claims_of_leader
        assert claims is not None, "only the first process of an entered store has claims"
        return claims

    def __enter__(self) -> Store:
        leads = processes.leads()
        # A file with a name that nobody can guess: who sees it sees the same folder.
        mark = processes.share("workdir", self._open() if leads else None)
        marker = self.workdir / CLAIMS / mark
        if not leads and not marker.exists():
            raise UserError(
                f"{self.workdir} is not the same folder in every process: choose one that all of "
                "them share."
            )
        # All have looked before it goes.
        processes.barrier("workdir")
        if leads:
            marker.unlink(missing_ok=True)
        return self

    def _open(self) -> str:
        """Removes what dead runs have left.

        Returns:
          The name of a file among the claims that only this run can have made.
        """
        with os_errors(self.workdir):
            (self.workdir / CLAIMS).mkdir(parents=True, exist_ok=True)
            # Before any work: who may not write there is told now, too.
            buckets.claim(self.workdir, self._lease, self._stall, print)
            buckets.fetch_files(self.workdir)
            buckets.tidy(self.workdir / STEPS)
            self._claims_of_leader = Claims(self.workdir / CLAIMS, self._lease, stall=self._stall)
            mark = f"run-{self._claims.owner.token}"
            (self.workdir / CLAIMS / mark).touch()
            for path in self.workdir.glob(".*.tmp-*"):
                name = path.name[1:].rpartition(".tmp-")[0]
                # Whoever made the folder claimed the stage first.
                claim = self._claims.look(name)
                if claim is None or claim.free or (claim.owner and claim.owner.dead()):
                    self._interrupted.add(name)
                    shutil.rmtree(path, ignore_errors=True)
        return mark

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # An error on the way out would hide what ended the run, which says more.
        hidden = () if kind is None else (UserError, OSError)
        try:
            with contextlib.suppress(*hidden):
                buckets.put_files(self.workdir)
        finally:
            buckets.release(self.workdir)
            if self._claims_of_leader is not None:
                self._claims_of_leader.close()

    @contextlib.contextmanager
    def exclusively(self, name: str) -> Iterator[None]:
        """Lets one process at a time do what has this name; the first process of a run calls it."""
        with exclusive.exclusively(self._claims, name):
            yield

    def stage(
        self,
        name: str,
        key: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        log: Callable[[str], None],
        facts: Mapping[str, Any] | None = None,
    ) -> Path:
        """Returns the folder of a stage's artefact, which is made unless a whole one is there.

        What another run is making is waited for. A build that fails leaves nothing behind but its
        step checkpoints, and touches no other artefact.

        Args:
          name: of the stage, e.g. "student.sft.seed0".
          key: all that determines the artefact (JSON).
          build: makes the artefact in an empty folder.
          log: takes lines for people.
          facts: recorded with the computation (JSON).

        Raises:
          UserError: for what `build` raises as such, and for what the system refuses.
          preemption.Preempted: a notice has come, or another run has taken over what several
            processes were making.
        """
        folder = f"{name}-{digest(key)}"
        path = self.workdir / folder
        preemption.check()
        moved()
        leads = processes.leads()
        with os_errors(self.workdir):
            buckets.fetch(path)
        held = self._claim(path, log) if leads else None
        # The others cannot look for themselves: what they see of a shared folder may be old.
        whole = processes.share(f"whole/{folder}", str(held is None) if leads else None) == "True"
        what = "reused"
        if whole:
            # An attempt whose connection broke may have left it here alone.
            buckets.put(path)
        elif leads:
            while held is not None:
                try:
                    what = self._make(path, key, build, held, facts or {})
                    held = None
                except ClaimLost as lost:
                    # What is built once more needs all processes, and the others wait already.
                    if processes.several():
                        raise preemption.Preempted(
                            f"error: {lost} Run the same command in every process again to go on."
                        ) from lost
                    held = self._claim(path, log)
            buckets.put(path)
            buckets.drop(steps_folder(path))
        else:
            # Collective operations need all processes, though only one writes what counts.
            with tempfile.TemporaryDirectory() as copy:
                build(Path(copy))
        what = processes.share(f"sealed/{folder}", what if leads else None)
        self.events.append((what, name))
        log(f"[{what}] {name}" + (" (an earlier attempt was cut off)" if what == "redone" else ""))
        return path

    def try_stage(
        self,
        name: str,
        key: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        expired: int | None,
        facts: Mapping[str, Any],
    ) -> str:
        """As `stage`, in a run of one process, but without waiting.

        Args:
          name: of the stage.
          key: all that determines the artefact (JSON).
          build: makes the artefact in an empty folder.
          expired: the number of a claim on it whose lease has run out.
          facts: recorded with the computation (JSON).

        Returns:
          What happened: "reused", "computed" or "redone".

        Raises:
          Busy: another is making it.
        """
        path = self.workdir / f"{name}-{digest(key)}"
        preemption.check()
        moved()
        held = self._try_claim(path, expired)
        if held is None:
            return "reused"
        try:
            return self._make(path, key, build, held, facts)
        except ClaimLost as error:
            raise Busy(self._claims.look(path.name) or Claim(path.name, 0)) from error

    def _try_claim(self, path: Path, expired: int | None = None) -> HeldClaim | None:
        """Returns the claim on a stage, or None if it is finished.

        Raises:
          Busy: another holds it.
        """
        with os_errors(self.workdir):
            if is_whole(path):
                # Its maker may have died between the seal and the removal of its checkpoints.
                shutil.rmtree(steps_folder(path), ignore_errors=True)
                return None
            _check_replaceable(path)
            held = self._claims.take(path.name, expired)
            if held is None:
                claim = self._claims.look(path.name)
                if claim is None:  # finished, or given back, at this moment
                    return self._try_claim(path, expired)
                raise Busy(claim)
            if is_whole(path):  # another has finished it before the claim was ours
                held.release(made=True)
                return None
            return held

    def _claim(self, path: Path, log: Callable[[str], None]) -> HeldClaim | None:
        """As `_try_claim`, but waits for others."""
        patience = Patience()
        expired: int | None = None
        waited_for: Owner | None = None
        while True:
            try:
                return self._try_claim(path, expired)
            except Busy as busy:
                claim = busy.claim
            if claim.owner != waited_for:
                waited_for = claim.owner
                log(f"[waiting] {path.name} is being made by {waited_for}")
            expired = claim.number if patience.exhausted(claim) else None
            if expired is None:
                preemption.check()
                time.sleep(POLL)

    def _make(
        self,
        path: Path,
        key: Mapping[str, Any],
        build: Callable[[Path], None],
        held: HeldClaim,
        facts: Mapping[str, Any],
    ) -> str:
        """Builds, seals and renames.

        Returns:
          "computed", or "redone" where there were remains of an earlier attempt.

        Raises:
          ClaimLost: another has taken the stage over.
        """
        begin = time.monotonic()
        made = False
        owner = self._claims.owner
        damaged = path.exists()
        with os_errors(self.workdir):
            redone = damaged or path.name in self._interrupted or steps_folder(path).is_dir()
            # The claim is ours: what earlier holders left is given up.
            for earlier in self._claims.owners(path.name):
                left = self._temporary(path, earlier)
                redone |= left.exists()
                shutil.rmtree(left, ignore_errors=True)
            what = "redone" if redone else "computed"
            temporary = self._temporary(path, owner)
            try:
                history.append(self.workdir, path.name, "begun", owner, facts)
                temporary.mkdir()
                build(temporary)
                seal(temporary, key)
                # From here on nobody can have taken the claim over, so that the rename is ours.
                held.confirm()
                if damaged:
                    shutil.rmtree(path)
                temporary.rename(path)  # fails if there is another's
                # A rename is on the disk only when the folder that holds the name is.
                sync(self.workdir)
                made = True
                seconds = round(time.monotonic() - begin, 3)
                history.append(self.workdir, path.name, what, owner, {**facts, "seconds": seconds})
                shutil.rmtree(steps_folder(path), ignore_errors=True)
            except Exception as error:
                if not opened(self.workdir):
                    raise vanished(self.workdir) from error
                if not held.beat():  # the other has removed what was being written
                    raise ClaimLost(f"The claim on {path.name} was taken over.") from error
                raise
            finally:
                if not made:
                    shutil.rmtree(temporary, ignore_errors=True)
                if not opened(self.workdir):
                    # What a library has made again in place of a workdir that has vanished.
                    with contextlib.suppress(OSError):
                        self.workdir.rmdir()
                with contextlib.suppress(OSError):  # of a workdir that has vanished
                    held.release(made=made)
        return what

    def _temporary(self, path: Path, owner: Owner) -> Path:
        return self.workdir / f".{path.name}.tmp-{owner.token}"


def _check_replaceable(path: Path) -> None:
    """Refuses to build what could not take its place afterwards.

    Raises:
      UserError: the artefact's place is taken by something that is no folder of its own.
    """
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link to {path.readlink()}, where there is no whole artefact: "
            "bring that folder back, or remove the link to make the artefact anew."
        )
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{path} is a file where a folder belongs: move it away and run the same command again."
        )
