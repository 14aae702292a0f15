"""What accompanies a training: its progress line, its metrics, its checkpoints and its profile."""

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
from subtransfer.training.checkpoints import Checkpoints, TrainingProgress


@dataclasses.dataclass(frozen=True)
class ProfiledSteps:
    """Steps of a stage that are to be profiled, rounded outwards to whole dispatches.

    Attributes:
      first: counted from 1.
      last: counted from 1, included.
      folder: where the profile is written.
    """

    first: int
    last: int
    folder: Path


class TrainingMonitor:
    """Watches over a training under way.

    Alone it only collects the metrics; with checkpoints the training survives the process.

    Args:
      label: the stage, for messages.
      advance: called with the number of steps that are done, to show progress.
      checkpoints: of the stage, or None.
      writer: of its metrics, or None.
      peak_flops: of all devices, a second; 0 if not stated.
      window: the steps to be profiled, or None.

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
        window: ProfiledSteps | None = None,
    ):
        self.label = label
        self._advance = advance
        self._checkpoints = checkpoints
        self._writer = writer
        self._peak_flops = peak_flops
        self._window = window
        self.progress = TrainingProgress()
        self.facts: dict[str, float] = {}
        self._dispatches = 0

    @property
    def curves(self) -> dict[str, list[float]]:
        """The metrics by name, each one float a step from the stage's first on."""
        return self.progress.curves

    @property
    def learners(self) -> Sequence[TrainingMonitor]:
        """The monitors whose metrics are recorded: this one alone."""
        return [self]

    def start(self, step: int) -> None:
        """Begins what is shown and written after `step`."""
        if self._writer:
            self._writer.start(step)
        if step:
            self._advance(step)

    def resumed(self, state: Any) -> Any:
        """Returns the newest checkpoint's state, or None without one.

        Args:
          state: whose shardings it gets; its arrays are given up for it if there is one.
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
        """Notes the key of the data order that the steps to come are in.

        Args:
          rng: the key's data.
          resumed: the training goes on in this order, so that it must be the checkpoint's.

        Raises:
          UserError: it is another.
        """
        if resumed and self.progress.rng not in ((), rng):
            raise UserError(
                f"The checkpoint of {self.label} was saved in another data order: delete its "
                "folder in .steps."
            )
        self.progress.rng = rng

    @contextlib.contextmanager
    def dispatch(self, first: int, steps: int) -> Iterator[DispatchCost]:
        """Times the steps `first` + 1, ..., `first` + `steps`, and profiles them if asked to.

        Yields what they cost, which is known when the block has ended.
        """
        window = self._window
        cost = DispatchCost(self._dispatches > 0, self._peak_flops)
        # The first dispatch compiles, and its time says nothing.
        self._dispatches += 1
        profiled = False
        # Any overlap: a program runs all steps of a dispatch, and cannot be profiled in parts.
        if window is not None and first < window.last and first + steps >= window.first:
            profiled = True
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
        metrics: Mapping[str, Sequence[float] | np.ndarray],
        shown: Mapping[str, Sequence[float] | np.ndarray],
        facts: Mapping[str, float],
    ) -> None:
        """Adds the metrics of the steps after `first`.

        Args:
          first: steps before these.
          metrics: float32 [K] each, a value a step; the curves of an artefact are made of them.
          shown: likewise, what is written for people.
          facts: written with the last step, as are the monitor's own `facts`.
        """
        for name, values in metrics.items():
            self.curves.setdefault(name, []).extend(map(float, values))
        steps = len(next(iter(metrics.values())))
        if self._writer and steps:
            self._writer.write(first + 1, shown, {**facts, **self.facts})
        self._advance(steps)

    def keep(self, state: Any) -> None:
        """Saves the state after a dispatch if a checkpoint is due, or a notice has come.

        Raises:
          preemption.Preempted: a notice has come; what could be saved has been.
        """
        # One that is told to leave takes the others along: a step needs all of them.
        leaving = distributed.anywhere(preemption.noticed())
        if self._checkpoints and (leaving or self._checkpoints.due(steps_done(state))):
            self._save(state, confirm=leaving)
        if leaving:
            raise preemption.Preempted

    def leave(self, state: Any) -> None:
        """Saves the state, which `progress` describes, and ends the run.

        To be called when a notice has come while something else than training was done.

        Raises:
          preemption.Preempted: always.
        """
        if self._checkpoints:
            self._save(state, confirm=True)
        raise preemption.Preempted

    def _save(self, state: Any, *, confirm: bool) -> None:
        assert self._checkpoints is not None
        self._checkpoints.save(steps_done(state), state, self.progress)
        if confirm:
            self._checkpoints.wait()
            note(f"{self.label}: saved at step {self._checkpoints.confirmed}")

    def fail(self, step: int, state: Any, batch: Mapping[str, np.ndarray]) -> None:
        """Ends a training whose loss or gradient is no number.

        The state before the step and the batch of the step are kept.

        Args:
          step: the step that went wrong, counted from 1.
          state: the state before it.
          batch: the step's arrays by name.

        Raises:
          UserError: always.
        """
        if not self._checkpoints:
            raise UserError(diverged(self.label, step))
        # The step was not taken, so that this is the state before it.
        self._checkpoints.save(steps_done(state), state, self.progress)
        self._checkpoints.wait()
        folder = self._checkpoints.folder
        path = folder / f"batch-of-step-{step}.npz"
        if processes.leads():
            arrays: dict[str, Any] = dict(batch)
            np.savez(path, **arrays)
        raise UserError(
            f"{diverged(self.label, step)} That step's batch is kept in {path}, and the state "
            f"before it in {folder / str(step - 1)}."
        )


def diverged(label: str, step: int) -> str:
    """Returns the sentence about a training that has no finite loss or gradient at a step.

    Args:
      label: the stage.
      step: counted from 1.
    """
    return (
        f"The loss or gradient of {label} became NaN or infinite at step {step}: lower its "
        "learning rate."
    )


def steps_done(state: Any) -> int:
    """Returns how many steps a state has taken; of several side by side, the most."""
    return int(np.max(distributed.to_host(state.step)))


class LearnerMonitor(TrainingMonitor):
    """Watches over one training of several that go on side by side."""

    def fail(self, step: int, state: Any, batch: Mapping[str, np.ndarray]) -> None:
        """Says what is wrong; the learner stays at the state before, and the others go on."""
        note(f"{diverged(self.label, step)} The others of its population go on.")


class PopulationMonitor(TrainingMonitor):
    """Watches over several trainings side by side, whose states are one stack.

    One checkpoint holds them all. In it each metric has one value a step and learner, NaN where a
    learner has taken no such step. A learner that failed is one that has taken fewer steps than it
    was to take and the others have.

    Args:
      label: of the population, for messages.
      learners: the monitors of its trainings.
      **options: as of `TrainingMonitor`.
    """

    def __init__(self, label: str, learners: Sequence[LearnerMonitor], **options: Any):
        super().__init__(label, **options)
        self._learners = list(learners)

    @property
    def learners(self) -> Sequence[TrainingMonitor]:
        """The monitors whose metrics are recorded: one a training."""
        return self._learners

    def resumed(self, state: Any) -> Any:
        """As of one training; each learner goes on from its own step."""
        state = super().resumed(state)
        if state is None:
            steps = [0] * len(self._learners)
        else:
            steps = distributed.to_host(state.step).tolist()
        # A checkpoint holds lists of values by learner in the place of numbers.
        stacked: dict[str, Any] = self.curves
        for i, (learner, step) in enumerate(zip(self._learners, steps, strict=True)):
            curves = {}
            for name, rows in stacked.items():
                curves[name] = [row[i] for row in rows[:step]]
            learner.progress = TrainingProgress(curves)
            learner.start(step)
        return state

    def _save(self, state: Any, *, confirm: bool) -> None:
        steps = steps_done(state)
        names: dict[str, None] = {}  # in order, each once
        for learner in self._learners:
            names.update(dict.fromkeys(learner.curves))
        for name in names:
            # NaN where a learner has taken no such step: rows of a stack have one length.
            values = np.full((steps, len(self._learners)), np.nan, np.float32)
            for i, learner in enumerate(self._learners):
                values[: len(learner.curves[name]), i] = learner.curves[name]
            stacked: list[Any] = values.tolist()
            self.progress.curves[name] = stacked
        super()._save(state, confirm=confirm)


@dataclasses.dataclass
class DispatchCost:
    """What a dispatch cost.

    Attributes:
      compiled: whether its program was there already; else the time says nothing.
      peak_flops: of all devices, a second; 0 if not stated.
      seconds: set when the dispatch is over.
    """

    compiled: bool
    peak_flops: float
    seconds: float = 0.0

    def facts(self, steps: int, tokens: int, flops: float) -> dict[str, float]:
        """Returns metrics of the dispatch: "step_seconds", "tokens_per_second", "mfu", memory.

        Args:
          steps: of the dispatch.
          tokens: of a step.
          flops: floating-point operations of a step.
        """
        # Compiling takes longer than many dispatches: as a speed it would mislead.
        if not self.compiled:
            return device_memory()
        seconds = self.seconds / steps
        facts = {"step_seconds": seconds, "tokens_per_second": tokens / seconds}
        if self.peak_flops:
            facts["mfu"] = flops / seconds / self.peak_flops
        return facts | device_memory()


def device_memory() -> dict[str, float]:
    """Returns the memory of this process's first device, if its backend tells.

    "device_bytes" are in use, "device_peak_bytes" the most so far.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    named = {"device_bytes": "bytes_in_use", "device_peak_bytes": "peak_bytes_in_use"}
    return {name: stats[key] for name, key in named.items() if key in stats}


@contextlib.contextmanager
def open_monitor(
    label: str, steps: int, checkpoints: Checkpoints, writer: metrics.Writer, **options: Any
) -> Iterator[TrainingMonitor]:
    """Watches over a stage's training, with a progress line, its checkpoints and its metrics.

    A SIGTERM waits until the training has saved.

    Args:
      label: the stage.
      steps: of the training.
      checkpoints: of the stage.
      writer: of its metrics.
      **options: as of `TrainingMonitor`.
    """
    with _accompanied(label, steps, checkpoints, [writer]) as advance:
        yield TrainingMonitor(label, advance, checkpoints, writer, **options)


@contextlib.contextmanager
def open_population_monitor(
    label: str,
    steps: int,
    checkpoints: Checkpoints,
    writers: Mapping[str, metrics.Writer],
    **options: Any,
) -> Iterator[PopulationMonitor]:
    """As `open_monitor`, of a population.

    Args:
      label: of the population.
      steps: of all learners together.
      checkpoints: of the population.
      writers: of metrics, by learner's label.
      **options: as of `TrainingMonitor`.
    """
    with _accompanied(label, steps, checkpoints, list(writers.values())) as advance:
        learners = [
            LearnerMonitor(name, advance, writer=writer) for name, writer in writers.items()
        ]
        yield PopulationMonitor(label, learners, checkpoints=checkpoints, **options)


@contextlib.contextmanager
def _accompanied(
    label: str, steps: int, checkpoints: Checkpoints, writers: Sequence[metrics.Writer]
) -> Iterator[Callable[[int], None]]:
    with progress(label, steps, "steps") as advance, preemption.deferred():
        try:
            yield advance
            # Here, where a refused save is still an error of the training.
            checkpoints.wait()
        finally:
            checkpoints.close()
            for writer in writers:
                writer.close()
