"""What accompanies a training: how it is shown, what is recorded of it, and how it is kept from being lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer import artifacts, distributed, preemption, processes
from subtransfer.distill.checkpoints import Checkpoints, Policy, Progress
from subtransfer.errors import UserError
from subtransfer.progress import note, progress


class Run:
    """A training under way. Alone it only collects the metrics; with checkpoints it survives the process.

    Attributes:
      label: the stage, for messages.
      progress: how far it has come; whoever trains keeps it up to date.
    """

    def __init__(
        self,
        label: str = "training",
        advance: Callable[[int], None] = lambda steps: None,
        checkpoints: Checkpoints | None = None,
    ):
        self.label, self._advance, self._checkpoints = label, advance, checkpoints
        self.progress = Progress()

    @property
    def curves(self) -> dict[str, list[float]]:
        """Each metric, one float a step from the stage's first on."""
        return self.progress.curves

    def resumed(self, state: Any) -> Any:
        """The newest checkpoint's state in the shardings of `state`, whose arrays are given up for it, or None without one."""
        found = self._checkpoints.load(state) if self._checkpoints else None
        if found is None:
            return None
        state, self.progress = found
        step = int(state.step)
        note(f"{self.label} goes on from step {step}")
        self._advance(step)
        return state

    def record(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds the metrics of a dispatch, float32 [K] each."""
        for name, values in metrics.items():
            self.curves.setdefault(name, []).extend(float(v) for v in values)
        self._advance(len(next(iter(metrics.values()))))

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


@contextlib.contextmanager
def open_run(label: str, steps: int, artifact: Path, policy: Policy) -> Iterator[Run]:
    """A stage's training of `steps` steps, with a progress line and checkpoints beside the artefact that it makes.

    A SIGTERM waits until the training has saved.
    """
    checkpoints = Checkpoints(artifacts.steps_folder(artifact), label, policy)
    with progress(label, steps, "steps") as advance, preemption.deferred():
        try:
            yield Run(label, advance, checkpoints)
            checkpoints.wait()
        finally:
            checkpoints.close()
