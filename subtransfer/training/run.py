"""What accompanies a training: how it is shown, what is recorded of it, and how it is kept from
being lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtransfer.runtime import distributed, preemption, processes
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.progress import note, progress
from subtransfer.training import metrics
from subtransfer.training.checkpoints import Checkpoints, Progress


@dataclasses.dataclass(frozen=True)
class Window:
    """Steps of a stage that are to be profiled, rounded outwards to whole dispatches: `first` to
    `last`, counted from 1.
    """

    first: int
    last: int
    folder: Path


class Run:
    """A training under way. Alone it only collects the metrics; with checkpoints it survives the
    process.

    Attributes:
      label: the stage, for messages.
      progress: how far it has come; whoever trains keeps it up to date.
      facts: numbers that go with the metrics of the steps to come.
    """

    def __init__(
        self,
        label: str = "training",
        advance: Callable[[int], None] = lambda steps: None,
        checkpoints: Checkpoints | None = None,
        writer: metrics.Writer | None = None,
        peak_flops: float = 0.0,
        window: Window | None = None,
    ):
        self.label, self._advance, self._checkpoints, self._writer = (
            label,
            advance,
            checkpoints,
            writer,
        )
        self._peak_flops, self._window = peak_flops, window
        self.progress = Progress()
        self.facts: dict[str, float] = {}
        self._dispatches = 0

    @property
    def curves(self) -> dict[str, list[float]]:
        """Each metric, one float a step from the stage's first on."""
        return self.progress.curves

    @property
    def members(self) -> Sequence[Run]:
        """Whose metrics are recorded: its own."""
        return [self]

    def start(self, step: int) -> None:
        """Begins what is shown and written after `step`."""
        if self._writer:
            self._writer.start(step)
        if step:
            self._advance(step)

    def resumed(self, state: Any) -> Any:
        """The newest checkpoint's state in the shardings of `state`, whose arrays are given up for
        it, or None without one.
        """
        found = self._checkpoints.load(state) if self._checkpoints else None
        if found is None:
            self.start(0)
            return None
        state, self.progress = found
        step = steps_done(state)
        self.start(step)
        note(f"{self.label} goes on from step {step}")
        return state

    def enter_order(self, rng: tuple[int, ...], *, resumed: bool) -> None:
        """Notes the key of the data order that the steps to come are in; one that is gone on with
        must be the checkpoint's.

        Raises:
          UserError: it is another.
        """
        if resumed and self.progress.rng not in ((), rng):
            raise UserError(
                f"The checkpoint of {self.label} was saved in another data order: delete its folder in .steps."
            )
        self.progress.rng = rng

    @contextlib.contextmanager
    def dispatch(self, first: int, steps: int) -> Iterator[Cost]:
        """Around the steps `first` + 1, ..., `first` + `steps`: times them, and profiles them if
        asked to.
        """
        window, cost = self._window, Cost(self._dispatches > 0, self._peak_flops)
        profiled = window is not None and first < window.last and first + steps >= window.first
        self._dispatches += 1
        if profiled:
            jax.profiler.start_trace(str(window.folder))
        begin = time.perf_counter()
        try:
            yield cost
        finally:
            cost.seconds = time.perf_counter() - begin
            if profiled:
                jax.profiler.stop_trace()

    def record(
        self,
        first: int,
        metrics: Mapping[str, np.ndarray],
        shown: Mapping[str, np.ndarray],
        facts: Mapping[str, float],
    ) -> None:
        """Adds the metrics of the steps after `first`, float32 [K] each.

        Args:
          metrics: what the curves of an artefact are made of.
          shown: what is written for people; `facts` and `Run.facts` with the last step.
        """
        for name, values in metrics.items():
            self.curves.setdefault(name, []).extend(float(v) for v in values)
        steps = len(next(iter(metrics.values())))
        if self._writer and steps:
            self._writer.write(first + 1, shown, {**facts, **self.facts})
        self._advance(steps)

    def keep(self, state: Any) -> None:
        """Saves the state after a dispatch if a checkpoint is due, or if the machine is about to be
        taken away.

        Raises:
          preemption.Preempted: it is; what could be saved has been.
        """
        leaving = distributed.anywhere(preemption.noticed())
        if self._checkpoints and (leaving or self._checkpoints.due(steps_done(state))):
            self._save(state, confirm=leaving)
        if leaving:
            raise preemption.Preempted

    def leave(self, state: Any) -> None:
        """Saves the state, which `progress` describes, and ends the run: a notice has come while
        something else was done.
        """
        if self._checkpoints:
            self._save(state, confirm=True)
        raise preemption.Preempted

    def _save(self, state: Any, *, confirm: bool) -> None:
        self._checkpoints.save(steps_done(state), state, self.progress)
        if confirm:
            self._checkpoints.wait()
            note(f"{self.label}: saved at step {self._checkpoints.confirmed}")

    def fail(self, step: int, state: Any, batch: Mapping[str, np.ndarray]) -> None:
        """Ends a training whose loss or gradient is no number; keeps the state before the step, and
        the batch of it.

        Args:
          step: the step that went wrong, counted from 1.
          state: the state before it.
          batch: its arrays.

        Raises:
          UserError: always.
        """
        if not self._checkpoints:
            raise UserError(diverged(self.label, step))
        self._checkpoints.save(steps_done(state), state, self.progress)
        self._checkpoints.wait()
        folder = self._checkpoints.folder
        path = folder / f"batch-of-step-{step}.npz"
        if processes.leads():
            np.savez(path, **batch)
        raise UserError(
            f"{diverged(self.label, step)} That step's batch is kept in {path}, and the state before it in "
            f"{folder / str(step - 1)}."
        )


def diverged(label: str, step: int) -> str:
    """The sentence about a training whose step `step`, counted from 1, has no finite loss or
    gradient.
    """
    return f"The loss or gradient of {label} became NaN or infinite at step {step}: lower its learning rate."


def steps_done(state: Any) -> int:
    """Steps that a state has taken; of several side by side, those of the one that is furthest."""
    return int(np.max(distributed.to_host(state.step)))


class MemberRun(Run):
    """One training of several that go on side by side: what is shown and recorded of it."""

    def fail(self, step: int, state: Any, batch: Mapping[str, np.ndarray]) -> None:
        """Says so; the member stays at the state before the step, and the others go on."""
        note(f"{diverged(self.label, step)} The others of its population go on.")


class Cohort(Run):
    """Several trainings side by side, whose states are one stack: one checkpoint holds them all.

    In a checkpoint each metric has one value a step and member, NaN where a member has taken no
    such step. A member that failed is one that has taken fewer steps than its recipe and the others
    ask for.
    """

    def __init__(self, label: str, members: Sequence[MemberRun], **options: Any):
        super().__init__(label, **options)
        self._members = list(members)

    @property
    def members(self) -> Sequence[Run]:
        return self._members

    def resumed(self, state: Any) -> Any:
        state = super().resumed(state)
        steps = (
            np.zeros(len(self._members), int) if state is None else distributed.to_host(state.step)
        )
        for i, (member, step) in enumerate(zip(self._members, steps.tolist(), strict=True)):
            member.progress = Progress(
                {name: [values[i] for values in all_[:step]] for name, all_ in self.curves.items()}
            )
            member.start(step)
        return state

    def _save(self, state: Any, *, confirm: bool) -> None:
        steps = steps_done(state)
        for name in {name: None for member in self._members for name in member.curves}:
            values = np.full((steps, len(self._members)), np.nan, np.float32)
            for i, member in enumerate(self._members):
                values[: len(member.curves[name]), i] = member.curves[name]
            self.progress.curves[name] = values.tolist()
        super()._save(state, confirm=confirm)


@dataclasses.dataclass
class Cost:
    """What a dispatch cost.

    Attributes:
      compiled: whether its program was there already: else the time says nothing.
      peak_flops: of all devices, a second; 0 if not stated.
      seconds: set when the dispatch is over.
    """

    compiled: bool
    peak_flops: float
    seconds: float = 0.0

    def facts(self, steps: int, tokens: int, flops: float) -> dict[str, float]:
        """Metrics of `steps` steps of so many tokens and operations each."""
        if not self.compiled:
            return metrics.device_memory()
        step = self.seconds / steps
        mfu = {"mfu": flops / step / self.peak_flops} if self.peak_flops else {}
        return {
            "step_seconds": step,
            "tokens_per_second": tokens / step,
            **mfu,
            **metrics.device_memory(),
        }


@contextlib.contextmanager
def open_run(
    label: str, steps: int, checkpoints: Checkpoints, writer: metrics.Writer, **options
) -> Iterator[Run]:
    """A stage's training of `steps` steps, with a progress line, its checkpoints and its metrics;
    `options` as of `Run`.

    A SIGTERM waits until the training has saved.
    """
    with _opened(label, steps, checkpoints, [writer]) as advance:
        yield Run(label, advance, checkpoints, writer, **options)


@contextlib.contextmanager
def open_cohort(
    label: str,
    steps: int,
    checkpoints: Checkpoints,
    writers: Mapping[str, metrics.Writer],
    **options,
) -> Iterator[Cohort]:
    """As `open_run`, of a population: `steps` are those of all members together, `writers` are by
    member's label.
    """
    with _opened(label, steps, checkpoints, list(writers.values())) as advance:
        members = [MemberRun(name, advance, writer=writer) for name, writer in writers.items()]
        yield Cohort(label, members, checkpoints=checkpoints, **options)


@contextlib.contextmanager
def _opened(label, steps, checkpoints, writers) -> Iterator[Callable[[int], None]]:
    with progress(label, steps, "steps") as advance, preemption.deferred():
        try:
            yield advance
            checkpoints.wait()
        finally:
            checkpoints.close()
            for writer in writers:
                writer.close()
