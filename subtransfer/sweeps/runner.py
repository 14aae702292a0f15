"""Runs a sweep on this machine: N worker processes take the ready stages of all members; any number
of such commands, on any machines that see the workdir, share the work by their claims.

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
from subtransfer.store.leases import POLL, Claims, Patience
from subtransfer.sweeps.devices import Share
from subtransfer.sweeps.jobs import LOGS, Answer, Job, log_path
from subtransfer.sweeps.schedule import Plan, Schedule

RUNS, STATE = artifacts.MEMBERS, artifacts.SWEEP
_STATE_EVERY = 20.0  # seconds between two writings of it, at least
_STARTS = 3  # workers that may die before they are ready, one after the other


@dataclasses.dataclass
class Worker:
    """A worker process and what it is doing.

    Attributes:
      stage: number of the node that it makes; None: it waits. member: for which member; the last
        one's, while it waits.
    """

    number: int
    process: subprocess.Popen
    channel: socket.socket
    ready: bool = False
    stage: int | None = None
    member: int | None = None
    received: bytes = b""

    def answers(self) -> list[Answer] | None:
        """What has arrived; None at the end."""
        try:
            data = self.channel.recv(1 << 16)
        except ConnectionError:
            return None
        if not data:
            return None
        *lines, self.received = (self.received + data).split(b"\n")
        return [Answer(**json.loads(line)) for line in lines]


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
    """

    def __init__(
        self,
        plan: Plan,
        workdir: Path,
        shares: Sequence[Share],
        command: Callable[[int], list[str]],
        *,
        publish: Callable[[Path, Path, Path, dict[str, str]], None],
        retries: int,
        log: Callable[[str], None],
    ):
        self.plan, self.workdir = plan, Path(workdir)
        self._shares, self._command, self._publish_to, self._log = shares, command, publish, log
        for folder in (LOGS, artifacts.CLAIMS):
            (self.workdir / folder).mkdir(exist_ok=True)
        self.schedule = Schedule(plan, finished(plan, self.workdir), retries)
        self._claims = Claims(self.workdir / artifacts.CLAIMS)
        self._patience = Patience()
        self._over: dict[
            int, int
        ] = {}  # stage -> the number of a claim on it whose lease has run out
        self._workers: dict[int, Worker] = {}
        self._selector = selectors.DefaultSelector()
        self._stillborn = 0
        self.published, self._written = 0, 0.0
        self.events = {"computed": 0, "redone": 0, "reused": 0}

    def run(self) -> None:
        """Until every member has its results or has failed.

        Raises:
          UserError: no worker can be started, or results cannot be published.
          preemption.Preempted, KeyboardInterrupt: all workers have saved what they were doing.
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
                    for key, _ in self._selector.select(POLL):
                        self._hear(key.data)
        finally:
            with contextlib.suppress(OSError):
                self._write_state()
            self._stop()

    # -- workers -----------------------------------------------------------------------------------------------------

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
        theirs.close()
        worker = Worker(number, process, ours)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _give_work(self) -> None:
        """Starts workers as long as there are stages left for them, and gives each that waits a
        stage.
        """
        for number in range(len(self._shares)):
            if number not in self._workers and len(self._workers) < self.schedule.left:
                self._workers[number] = self._start(number)
        for worker in self._workers.values():
            if not worker.ready or worker.stage is not None:
                continue
            choice = self.schedule.next(worker.member)
            if choice is None:
                continue
            worker.stage, worker.member = choice
            node, member = self.plan.nodes[worker.stage], self.plan.members[worker.member]
            job = Job(
                member.name,
                member.overrides,
                node.name,
                node.folder,
                self._over.pop(worker.stage, None),
            )
            self.schedule.started(worker.stage)
            with contextlib.suppress(OSError):  # it has just died, which its channel will say
                worker.channel.sendall((json.dumps(dataclasses.asdict(job)) + "\n").encode())

    def _hear(self, worker: Worker) -> None:
        answers = worker.answers()
        if answers is None:
            self._died(worker)
            return
        for answer in answers:
            if answer.what == "ready":
                worker.ready, self._stillborn = True, 0
                continue
            stage, worker.stage = worker.stage, None
            if answer.what == "busy":
                self.schedule.busy(stage)
            elif answer.what == "failed":
                self._failed(stage, answer.sentence, transient=answer.transient)
                if answer.transient:  # whatever it holds may be the reason
                    self._dismiss(worker)
            else:
                self.events[answer.what] += 1
                self.schedule.done(stage)

    def _died(self, worker: Worker) -> None:
        """Its stage is tried again: it was killed, ran out of memory, lost its claim, or its
        machine part is taken away.
        """
        self._dismiss(worker)
        code = worker.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        if worker.stage is not None:
            transient = code < 0 or code == preemption.EXIT_CODE
            self._failed(worker.stage, f"its worker ended with {how}", transient=transient)
        elif not worker.ready:
            self._stillborn += 1
            if self._stillborn == _STARTS:
                log = self.workdir / LOGS / f"worker-{os.getpid()}-{worker.number}.log"
                tail = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise UserError(
                    f"Workers cannot be started ({how}{': ' if tail else ''}{''.join(tail)}); see {log}."
                )

    def _dismiss(self, worker: Worker) -> None:
        """Closes a worker's channel, upon which it ends, and waits for that."""
        self._selector.unregister(worker.channel)
        worker.channel.close()
        worker.process.wait()
        del self._workers[worker.number]

    def _stop(self) -> None:
        """Ends all workers; those that train save first. A second signal ends them where they
        stand.
        """
        workers = list(self._workers.values())
        for worker in workers:
            worker.channel.close()
        try:
            for worker in workers:
                worker.process.wait()
        except BaseException:
            for worker in workers:
                worker.process.kill()
            raise
        finally:
            self._workers.clear()
            self._selector.close()

    # -- stages ------------------------------------------------------------------------------------------------------

    def _failed(self, stage: int, sentence: str, *, transient: bool) -> None:
        node = self.plan.nodes[stage]
        again = self.schedule.failed(stage, sentence, transient=transient)
        self._log(
            f"{node.name} {'is tried again' if again else 'failed'}: {sentence} (log: {self._log_of(stage)})"
        )

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
            elif self._patience.over(claim):
                self._over[stage] = claim.number
                self.schedule.again(stage)

    # -- results -----------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        while self.schedule.completed:
            member = self.schedule.completed.pop()
            results, report = (
                self.workdir / self.plan.node(member, name).folder for name in ("results", "report")
            )
            folders = {
                self.plan.nodes[n].name: self.plan.nodes[n].folder for n in self.plan.stages[member]
            }
            self._publish_to(
                results, report, self.workdir / RUNS / self.plan.members[member].name, folders
            )
            self.published += 1
            if time.monotonic() - self._written > _STATE_EVERY:
                self._write_state()

    def _status(self) -> tuple[int, int, str]:
        """For the progress line: stages done, stages in all, and the rest of it."""
        done, total = self.schedule.counts()
        text = f"{self.published}/{len(self.plan.members)} members, {len(self.schedule.running)} stages being made"
        if self.schedule.elsewhere:
            text += f", {len(self.schedule.elsewhere)} elsewhere"
        if self.schedule.failures:
            text += f", {len(self.schedule.failures)} members failed"
        return done, total, text

    def _write_state(self) -> None:
        """sweep.json: every member with its state ("done", "failed" or "to do"), its folder of
        results and its stages.
        """
        rows = []
        for number, member in enumerate(self.plan.members):
            failure = self.schedule.failures.get(number)
            row: dict[str, Any] = {
                "name": member.name,
                "overrides": dict(member.overrides),
                "state": "failed"
                if failure
                else "to do"
                if self.schedule.unfinished(number)
                else "done",
                "results": f"{RUNS}/{member.name}",
                "stages": {
                    self.plan.nodes[n].name: self.plan.nodes[n].folder
                    for n in self.plan.stages[number]
                },
            }
            if failure:
                stage = self.plan.nodes[failure.stage]
                log = self._log_of(failure.stage).relative_to(self.workdir)
                row |= {"failed": stage.name, "error": failure.sentence, "log": str(log)}
            rows.append(json.dumps(row))
        with artifacts.os_errors(self.workdir):
            artifacts.atomic_write(
                self.workdir / STATE, '{"members": [\n' + ",\n".join(rows) + "\n]}\n"
            )
        self._written = time.monotonic()


def finished(plan: Plan, workdir: Path) -> set[int]:
    """Numbers of the plan's nodes whose whole artefacts are there."""
    try:
        there = set(os.listdir(workdir))
    except FileNotFoundError:
        return set()
    return {
        n
        for n, node in enumerate(plan.nodes)
        if node.folder in there and artifacts.is_whole(workdir / node.folder)
    }
