"""Runs a sweep on this machine: worker processes take the ready stages of all members.

Any number of such commands, on any machines that see the workdir, share the work by their claims.
Results of a member lie in WORKDIR/runs/MEMBER, the state of all in WORKDIR/sweep.json, the output
of a stage in WORKDIR/logs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from subtransfer.runtime import preemption
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.progress import steady
from subtransfer.store import artifacts
from subtransfer.store.claims import POLL, Claims, Patience
from subtransfer.store.exclusive import PUBLISHING, exclusively
from subtransfer.store.files import atomic_write, os_errors
from subtransfer.store.workdir import CLAIMS, MEMBERS, SWEEP
from subtransfer.sweeps.devices import DeviceShare
from subtransfer.sweeps.requests import LOGS, StageOutcome, StageRequest, log_path, to_line
from subtransfer.sweeps.schedule import Schedule, SweepPlan

_STATE_EVERY = 20.0  # seconds between two writings of sweep.json, at least
_STARTS = 3  # workers that may die before they are ready, one after the other


@dataclasses.dataclass
class Worker:
    """A worker process and what it is doing.

    Attributes:
      number: of its share of the machine.
      process: the operating system's.
      channel: this command's end of the socket to it.
      ready: whether it takes requests.
      stage: number of the stage that it makes; None while it waits.
      member: number of the member that its last stage was made for.
      received: the beginning of a line.
    """

    number: int
    process: subprocess.Popen[bytes]
    channel: socket.socket
    ready: bool = False
    stage: int | None = None
    member: int | None = None
    received: bytes = b""

    def outcomes(self) -> list[StageOutcome] | None:
        """Returns what has arrived; None when the worker is gone."""
        try:
            data = self.channel.recv(1 << 16)
        except ConnectionError:
            return None
        if not data:
            return None
        # A message may arrive in parts.
        *lines, self.received = (self.received + data).split(b"\n")
        return [StageOutcome(**json.loads(line)) for line in lines]


class Runner:
    """One command's part of a sweep.

    Args:
      plan: of the sweep.
      workdir: exists.
      shares: what each worker gets of the machine, one a worker.
      command: given the number of the worker's end of its channel, the arguments that start one.
      publish: copies result files: given the artefacts "results" and "report" of a member, a
        folder, and the folders of the member's stages by name.
      retries: how often a stage is tried again whose worker died or whose failure may go away.
      log: takes lines for people.

    Attributes:
      schedule: the state of every stage and member.
      published: how many members' results were published.
      events: how many stages were "computed", "redone" and "reused".
    """

    def __init__(
        self,
        plan: SweepPlan,
        workdir: Path,
        shares: Sequence[DeviceShare],
        command: Callable[[int], list[str]],
        *,
        publish: Callable[[Path, Path, Path, dict[str, str]], None],
        retries: int,
        log: Callable[[str], None],
    ):
        self.plan = plan
        self.workdir = Path(workdir)
        self._shares = shares
        self._command = command
        self._publish_to = publish
        self._log = log
        for folder in (LOGS, CLAIMS):
            (self.workdir / folder).mkdir(exist_ok=True)
        self.schedule = Schedule(plan, finished(plan, self.workdir), retries)
        self._claims = Claims(self.workdir / CLAIMS)
        self._patience = Patience()
        self._expired: dict[int, int] = {}  # stage -> number of its claim whose lease has run out
        self._workers: dict[int, Worker] = {}
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0  # of workers, one after the other
        self._written = 0.0  # when sweep.json was
        self.published = 0
        self.events = {"computed": 0, "redone": 0, "reused": 0}

    def run(self) -> None:
        """Works until every member has its results or has failed.

        Raises:
          UserError: no worker can be started, or results cannot be published.
          preemption.Preempted: a notice has come; all workers have saved what they were doing.
        """
        self._write_state()
        try:
            with steady("sweep", self._status) as tick:
                while True:
                    self._publish()
                    if self.schedule.over:
                        break
                    self._look_elsewhere()
                    self._give_work()
                    tick()
                    # Not longer: other commands finish stages, too, and say nothing here.
                    for key, _ in self._selector.select(POLL):
                        self._hear(key.data)
        finally:
            with contextlib.suppress(OSError):
                self._write_state()
            self._stop()
            self._claims.close()

    # -- workers

    def _start(self, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        log = self.workdir / LOGS / f"worker-{os.getpid()}-{number}.log"
        with log.open("ab") as output, self._shares[number].start() as environment:
            process = subprocess.Popen(
                self._command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=[theirs.fileno()],
                # a signal to this command's group reaches them once, from here
                start_new_session=True,
            )
        # Only the worker holds its end now, so that its death closes the channel.
        theirs.close()
        worker = Worker(number, process, ours)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _give_work(self) -> None:
        """Starts workers as long as stages are left for them, and gives one to each that waits."""
        for number in range(len(self._shares)):
            if number not in self._workers and len(self._workers) < self.schedule.left:
                self._workers[number] = self._start(number)
        for worker in self._workers.values():
            if not worker.ready or worker.stage is not None:
                continue
            choice = self.schedule.next(worker.member)
            if choice is None:
                continue
            stage, number = choice
            worker.stage, worker.member = stage, number
            node, member = self.plan.nodes[stage], self.plan.members[number]
            request = StageRequest(
                member.name,
                member.overrides,
                node.name,
                node.folder,
                self._expired.pop(stage, None),
            )
            self.schedule.started(stage)
            with contextlib.suppress(OSError):  # it has just died, which its channel will say
                worker.channel.sendall(to_line(request))

    def _hear(self, worker: Worker) -> None:
        outcomes = worker.outcomes()
        if outcomes is None:
            self._died(worker)
            return
        for outcome in outcomes:
            if outcome.what == "ready":
                worker.ready = True
                self._failed_starts = 0
                continue
            stage, worker.stage = worker.stage, None
            assert stage is not None, "a worker answers to requests only"
            if outcome.what == "busy":
                self.schedule.busy(stage)
            elif outcome.what == "failed":
                self._failed(stage, outcome.sentence, transient=outcome.transient)
                if outcome.transient:  # whatever the worker holds may be the reason
                    self._dismiss(worker)
            else:
                self.events[outcome.what] += 1
                self.schedule.done(stage)

    def _died(self, worker: Worker) -> None:
        """Tries a dead worker's stage again.

        It was killed, ran out of memory, lost its claim, or its part of the machine is taken away.
        """
        self._dismiss(worker)
        code = worker.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        if worker.stage is not None:
            # A signal, or a lost claim: neither says that the stage is at fault.
            transient = code < 0 or code == preemption.EXIT_CODE
            self._failed(worker.stage, f"its worker ended with {how}", transient=transient)
        elif not worker.ready:
            self._failed_starts += 1
            if self._failed_starts == _STARTS:
                log = self.workdir / LOGS / f"worker-{os.getpid()}-{worker.number}.log"
                lines = log.read_text(errors="replace").strip().splitlines()
                last = f": {lines[-1]}" if lines else ""
                raise UserError(f"Workers cannot be started ({how}{last}); see {log}.")

    def _dismiss(self, worker: Worker) -> None:
        """Closes a worker's channel, upon which it ends, and waits for that."""
        self._selector.unregister(worker.channel)
        worker.channel.close()
        worker.process.wait()
        del self._workers[worker.number]

    def _stop(self) -> None:
        """Ends all workers; those that train save first.

        A second signal ends them where they stand.
        """
        workers = list(self._workers.values())
        for worker in workers:
            worker.channel.close()
        try:
            with preemption.raising_again():
                for worker in workers:
                    worker.process.wait()
        except BaseException:
            for worker in workers:
                worker.process.kill()
            raise
        finally:
            self._workers.clear()
            self._selector.close()

    # -- stages

    def _failed(self, stage: int, sentence: str, *, transient: bool) -> None:
        node = self.plan.nodes[stage]
        again = self.schedule.failed(stage, sentence, transient=transient)
        how = "is tried again" if again else "failed"
        self._log(f"{node.name} {how}: {sentence} (log: {self._log_of(stage)})")

    def _log_of(self, stage: int) -> Path:
        return log_path(self.workdir, self.plan.nodes[stage].folder)

    def _look_elsewhere(self) -> None:
        """Asks what has become of the stages that other commands were making."""
        for stage in tuple(self.schedule.elsewhere):
            folder = self.plan.nodes[stage].folder
            if artifacts.is_whole(self.workdir / folder):
                self.schedule.done(stage)
                self.events["reused"] += 1
                continue
            claim = self._claims.look(folder)
            if claim is None or claim.free or (claim.owner and claim.owner.dead()):
                self.schedule.again(stage)
            elif self._patience.exhausted(claim):
                # The worker may take this claim, and no later one, over.
                self._expired[stage] = claim.number
                self.schedule.again(stage)

    # -- results

    def _publish(self) -> None:
        while self.schedule.completed:
            member = self.schedule.completed.pop()
            results = self.workdir / self.plan.node(member, "results").folder
            report = self.workdir / self.plan.node(member, "report").folder
            into = self.workdir / MEMBERS / self.plan.members[member].name
            with exclusively(self._claims, PUBLISHING):
                self._publish_to(results, report, into, self.plan.folders_of(member))
            self.published += 1
            if time.monotonic() - self._written > _STATE_EVERY:
                self._write_state()

    def _status(self) -> tuple[int, int, str]:
        """For the progress line: stages done, stages in all, and the rest of it."""
        done, total = self.schedule.counts()
        text = (
            f"{self.published}/{len(self.plan.members)} members, "
            f"{len(self.schedule.running)} stages being made"
        )
        if self.schedule.elsewhere:
            text += f", {len(self.schedule.elsewhere)} elsewhere"
        if self.schedule.failures:
            text += f", {len(self.schedule.failures)} members failed"
        return done, total, text

    def _write_state(self) -> None:
        """Writes sweep.json: every member with its state, its folder of results and its stages."""
        rows = [json.dumps(self._state_of(number)) for number in range(len(self.plan.members))]
        with os_errors(self.workdir):
            atomic_write(self.workdir / SWEEP, '{"members": [\n' + ",\n".join(rows) + "\n]}\n")
        self._written = time.monotonic()

    def _state_of(self, number: int) -> dict[str, Any]:
        """What sweep.json says of a member; its state is "done", "failed" or "to do"."""
        member = self.plan.members[number]
        failure = self.schedule.failures.get(number)
        if failure:
            state = "failed"
        elif self.schedule.unfinished(number):
            state = "to do"
        else:
            state = "done"
        row: dict[str, Any] = {
            "name": member.name,
            "overrides": dict(member.overrides),
            "state": state,
            "results": f"{MEMBERS}/{member.name}",
            "stages": self.plan.folders_of(number),
        }
        if failure:
            log = self._log_of(failure.stage).relative_to(self.workdir)
            row["failed"] = self.plan.nodes[failure.stage].name
            row["error"] = failure.sentence
            row["log"] = str(log)
        return row


def finished(plan: SweepPlan, workdir: Path) -> set[int]:
    """Returns the numbers of the plan's stages whose whole artefacts are there."""
    try:
        there = set(os.listdir(workdir))
    except FileNotFoundError:
        return set()
    found = set()
    with os_errors(workdir):
        for number, node in enumerate(plan.nodes):
            if node.folder in there and artifacts.is_whole(workdir / node.folder):
                found.add(number)
    return found
