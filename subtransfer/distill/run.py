"""What accompanies a training: how it is shown, what is recorded of it, and how it is kept from being lost."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtransfer import distributed, metrics, preemption, processes
from subtransfer.distill.checkpoints import Checkpoints, Progress
from subtransfer.errors import UserError
from subtransfer.progress import note, progress


@dataclasses.dataclass(frozen=True)
class Window:
    """Steps of a stage that are to be profiled, rounded outwards to whole dispatches: `first` to `last`, counted from 1."""

    first: int
    last: int
    folder: Path


class Run:
    """A training under way. Alone it only collects the metrics; with checkpoints it survives the process.

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
        self.label, self._advance, self._checkpoints, self._writer = label, advance, checkpoints, writer
        self._peak_flops, self._window = peak_flops, window
        self.progress = Progress()
        self.facts: dict[str, float] = {}
        self._dispatches = 0

    @property
    def curves(self) -> dict[str, list[float]]:
        """Each metric, one float a step from the stage's first on."""
        return self.progress.curves

    def resumed(self, state: Any) -> Any:
        """The newest checkpoint's state in the shardings of `state`, whose arrays are given up for it, or None without one."""
        found = self._checkpoints.load(state) if self._checkpoints else None
        step = int(found[0].step) if found else 0
        if self._writer:
            self._writer.start(step)
        if found is None:
            return None
        state, self.progress = found
        note(f"{self.label} goes on from step {step}")
        self._advance(step)
        return state

    def enter_order(self, rng: tuple[int, ...], *, resumed: bool) -> None:
        """Notes the key of the data order that the steps to come are in; one that is gone on with must be the checkpoint's.

        Raises:
          UserError: it is another.
        """
        if resumed and self.progress.rng not in ((), rng):
            raise UserError(f"The checkpoint of {self.label} was saved in another data order: delete its folder in .steps.")
        self.progress.rng = rng

    @contextlib.contextmanager
    def dispatch(self, first: int, steps: int) -> Iterator[Cost]:
        """Around the steps `first` + 1, ..., `first` + `steps`: times them, and profiles them if asked to."""
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
        self, first: int, metrics: Mapping[str, np.ndarray], shown: Mapping[str, np.ndarray], facts: Mapping[str, float]
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
        """Saves the state after a dispatch if a checkpoint is due, or if the machine is about to be taken away.

        Raises:
          preemption.Preempted: it is; what could be saved has been.
        """
        leaving = distributed.anywhere(preemption.noticed())
        if self._checkpoints and (leaving or self._checkpoints.due(int(state.step))):
            self._save(state, confirm=leaving)
        if leaving:
            raise preemption.Preempted

    def leave(self, state: Any) -> None:
        """Saves the state, which `progress` describes, and ends the run: a notice has come while something else was done."""
        if self._checkpoints:
            self._save(state, confirm=True)
        raise preemption.Preempted

    def _save(self, state: Any, *, confirm: bool) -> None:
        self._checkpoints.save(int(state.step), state, self.progress)
        if confirm:
            self._checkpoints.wait()
            note(f"{self.label}: saved at step {self._checkpoints.confirmed}")

    def diverged(self, state: Any, step: int, batch: Mapping[str, np.ndarray]) -> UserError:
        """The error for a loss or gradient that is no number; keeps the state before the step, and the batch of it.

        Args:
          state: the state before the step that went wrong.
          step: that step, counted from 1.
          batch: its arrays.
        """
        sentence = f"The loss or gradient of {self.label} became NaN or infinite at step {step}: lower its learning rate."
        if not self._checkpoints:
            return UserError(sentence)
        self._checkpoints.save(int(state.step), state, self.progress)
        self._checkpoints.wait()
        folder = self._checkpoints.folder
        path = folder / f"batch-of-step-{step}.npz"
        if processes.leads():
            np.savez(path, **batch)
        return UserError(
            f"{sentence} That step's batch is kept in {path}, and the state before it in {folder / str(step - 1)}."
        )


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
        return {"step_seconds": step, "tokens_per_second": tokens / step, **mfu, **metrics.device_memory()}


@contextlib.contextmanager
def open_run(label: str, steps: int, checkpoints: Checkpoints, writer: metrics.Writer, **options) -> Iterator[Run]:
    """A stage's training of `steps` steps, with a progress line, its checkpoints and its metrics; `options` as of `Run`.

    A SIGTERM waits until the training has saved.
    """
    with progress(label, steps, "steps") as advance, preemption.deferred():
        try:
            yield Run(label, advance, checkpoints, writer, **options)
            checkpoints.wait()
        finally:
            checkpoints.close()
            writer.close()
