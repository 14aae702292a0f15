"""Step checkpoints by Orbax: what makes a killed training go on instead of starting again.

A checkpoint holds everything that the rest of the training is a function of: the train state, the
metrics so far, the random key of the data order (a step's place in it follows from the state's
step), the policy version, and the examples of an on-policy round, which no finished artefact holds.
It lies beside the artefact that is being made, outlives the process, and goes when the artefact is
sealed. Saving is asynchronous: a checkpoint counts only when `wait` has confirmed it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtransfer.runtime import distributed, processes
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest
from subtransfer.runtime.progress import note
from subtransfer.store import buckets
from subtransfer.store.files import (
    check_readable,
    os_errors,
    reading,
    refusal,
    set_aside,
    storage_errors,
    unreadable,
    vanished,
)
from subtransfer.store.workdir import opened

# Seconds within which a file system shows to all processes what one of them has written: NFS keeps
# what it knows of a folder for up to a minute.
LISTING = 90.0


@dataclasses.dataclass(frozen=True)
class CheckpointSchedule:
    """When checkpoints are saved and how many stay.

    Attributes:
      every_seconds: since the last one; 0 is never.
      every_steps: since the last one, rounded up to whole dispatches; 0 is never.
      keep: newest checkpoints that stay; with 2, a damaged one leaves another to fall back to.
    """

    every_seconds: float = 0.0
    every_steps: int = 0
    keep: int = 2


@dataclasses.dataclass
class TrainingProgress:
    """How far a training has come, besides its state.

    Attributes:
      curves: each metric, one float a step from the stage's first on.
      rng: key data of the data order that the steps are in, or ().
      policy_version: the on-policy round.
      rollouts: what the on-policy rounds so far have made (JSON).
      examples: the arrays of the round's training episodes, or {} where a finished artefact has
        them.
    """

    curves: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    rng: tuple[int, ...] = ()
    policy_version: int = 0
    rollouts: dict[str, Any] = dataclasses.field(default_factory=dict)
    examples: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(x) for x in leaves])


def _sum(x: jax.Array) -> jax.Array:
    """Sums an array's words, each times an odd number that tells its place, modulo 2^32.

    The array keeps its shape: flattening one that is sharded would gather it on every device.
    """
    size = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(x, size).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)  # in row-major order
    stride = 1
    for axis in reversed(range(x.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place += along * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def fingerprint(state: Any) -> list[int]:
    """Returns one number a leaf, from all its bits and their places.

    It is the same however the leaf is sharded.
    """
    return [int(n) for n in distributed.to_host(_sums(jax.tree.leaves(state)))]


def _checksums(arrays: Any) -> Any:
    return jax.tree.map(lambda array: zlib.crc32(np.ascontiguousarray(array).tobytes()), arrays)


def _hush() -> None:
    """Leaves it to us to say what is wrong with a checkpoint.

    Orbax and TensorStore would add logs and tracebacks.

    A failed save is raised in Orbax's thread, too. And after the first failure of many parallel
    reads or writes Orbax closes its event loop, to which TensorStore goes on to report.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)

    def without(hook: Callable[[Any], Any], ours: Callable[[Any], bool]) -> Callable[[Any], Any]:
        def quiet(event: Any) -> None:
            if not ours(event):
                hook(event)

        quiet.hushed = True  # type: ignore[attr-defined]  # so that no hook is wrapped twice
        return hook if getattr(hook, "hushed", False) else quiet

    def from_closed_loop(event: Any) -> bool:
        return "Event loop is closed" in str(event.exc_value)

    def from_orbax(event: Any) -> bool:
        return type(event.thread).__module__.startswith("orbax.")

    sys.unraisablehook = without(sys.unraisablehook, from_closed_loop)
    threading.excepthook = without(threading.excepthook, from_orbax)


class _Always:
    """Tells Orbax to save whenever it is asked to.

    Its own policy would skip a save while another is under way.
    """

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        return True


class Checkpoints:
    """The step checkpoints of one stage.

    The folder is made by the first save; leftovers of dead runs are removed on opening.

    Args:
      folder: where they lie.
      label: the stage, for messages.
      schedule: when they are saved.

    Attributes:
      confirmed: the newest step that is known to be on disk, or None.
    """

    def __init__(self, folder: Path, label: str, schedule: CheckpointSchedule):
        self.folder = Path(folder).absolute()
        self.label = label
        self.schedule = schedule
        self.confirmed: int | None = None
        self._workdir = self.folder.parent.parent
        self._opened = opened(self._workdir)  # who trains without a store has no workdir opened
        self._pending: int | None = None
        self._last_step, self._last_time = 0, time.monotonic()

    @functools.cached_property
    def _orbax(self):
        # Imported when something is saved or found: half a second that short stages never pay.
        from orbax.checkpoint import v1 as ocp

        _hush()
        with os_errors(self._workdir):
            return ocp.training.Checkpointer(
                self.folder,
                save_decision_policy=_Always(),
                preservation_policy=ocp.training.preservation_policies.LatestN(self.schedule.keep),
                cleanup_tmp_directories=True,
            )

    def due(self, step: int) -> bool:
        """Whether the time or the steps since the last checkpoint ask for one.

        The answer is the same in every process.
        """
        schedule = self.schedule
        if schedule.every_steps and step - self._last_step >= schedule.every_steps:
            return True
        if not schedule.every_seconds:
            return False
        # Clocks differ, and a save needs all processes: the leader's decides.
        passed = time.monotonic() - self._last_time
        return distributed.from_leader(passed >= schedule.every_seconds)

    def save(self, step: int, state: Any, progress: TrainingProgress) -> None:
        """Begins to save, after the save before has been confirmed.

        Args:
          step: how many steps the state has taken.
          state: a tree of arrays, which may be donated when this returns.
          progress: how far the training has come besides.

        Raises:
          UserError: this one, or the one before, could not be written.
        """
        self.wait()
        # A notice may come at a step that was just saved.
        if step == self.confirmed:
            return
        self._check_workdir()
        curves = {name: np.asarray(values, np.float32) for name, values in progress.curves.items()}
        # Orbax refuses trees without leaves.
        arrays: dict[str, Any] = {}
        if curves:
            arrays["curves"] = curves
        if progress.examples:
            arrays["examples"] = progress.examples
        record = {
            "rng": [int(n) for n in progress.rng],
            "policy_version": progress.policy_version,
            "rollouts": copy.deepcopy(progress.rollouts),  # written later, while the run goes on
            "state": fingerprint(state),
            "arrays": _checksums(arrays),
        }
        checkpointables = {"state": state}
        if arrays:
            checkpointables["arrays"] = arrays
        with self._refusals(step):
            self._orbax.save_checkpointables_async(
                step, checkpointables, custom_metadata={**record, "digest": digest(record)}
            )
        self._pending = step
        self._last_step, self._last_time = step, time.monotonic()

    def wait(self) -> None:
        """Waits for a save under way and confirms it.

        Raises:
          UserError: it could not be written.
        """
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        try:
            with self._refusals(step):
                self._orbax.wait()
        finally:
            self._check_workdir(step)
        buckets.put(self.folder / str(step))
        buckets.prune(self.folder)
        self.confirmed = step

    def _check_workdir(self, saved: int | None = None) -> None:
        """Checks that the workdir is still there.

        If it vanishes during a save, Orbax makes another, with that save alone.

        Args:
          saved: the step of a save that may have done so; what it made is removed.

        Raises:
          UserError: the workdir has vanished.
        """
        if self._workdir.is_dir() and opened(self._workdir) == self._opened:
            return
        if saved is not None:
            for made in (self.folder / str(saved), *self.folder.glob(f"{saved}.*")):
                shutil.rmtree(made, ignore_errors=True)
            with contextlib.suppress(OSError):  # the first that is not empty
                for folder in (self.folder, self.folder.parent, self._workdir):
                    folder.rmdir()
        raise vanished(self._workdir)

    def _refusals(self, step: int) -> contextlib.AbstractContextManager[None]:
        what = f"The checkpoint of {self.label} at step {step} could not be saved"
        kept = f"; the last whole one is of step {self.confirmed}" if self.confirmed else ""
        return storage_errors(self._workdir, what + kept)

    def load(self, state: Any) -> tuple[Any, TrainingProgress] | None:
        """Returns the newest whole checkpoint, or None without one.

        A damaged one is said to be so and set aside, and the one before is tried.

        Args:
          state: whose shardings the loaded state gets; its own arrays are given up for it.

        Raises:
          UserError: one cannot be read now, which does not say that it is damaged.
        """
        with os_errors(self._workdir):
            buckets.fetch_all(self.folder)
        if not distributed.from_leader(self.folder.is_dir()):
            return None
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        with reading(self.folder):
            # What another process sees of a shared folder may be old: the leader's list counts.
            steps = processes.agree([checkpoint.step for checkpoint in self._orbax.checkpoints])
            self._await(steps)
        # Their memory goes to the loaded ones: two states may not fit.
        if steps:
            jax.tree.map(lambda x: x.delete(), state)
        for step in reversed(steps):
            reason, record, loaded = self._read(step, abstract)
            # Processes agree before each collective step: what is damaged may be damaged for one of
            # them only.
            readable = not distributed.anywhere(bool(reason))
            if readable and not distributed.anywhere(not self._as_saved(step, record, loaded)):
                self.confirmed = self._last_step = step
                return loaded["state"], _progress(record, loaded["arrays"])
            reason = reason or "not what was saved"
            # A library may take for missing what it could not read.
            if processes.leads():
                check_readable(self.folder / str(step))
            note(
                f"{self.label}: the checkpoint of step {step} is damaged ({reason}); going back "
                "to the one before"
            )
            del loaded  # its memory is needed for the one before
            if processes.leads():
                set_aside(self.folder / str(step))
            processes.barrier(f"damaged/{self.label}/{step}")
            self._orbax.reload()
        return None

    def _await(self, steps: Sequence[int]) -> None:
        """Waits until this process sees the checkpoints that the leader sees.

        Raises:
          UserError: it still does not after `LISTING` seconds.
        """
        begin = time.monotonic()
        while unseen := set(steps) - {found.step for found in self._orbax.checkpoints}:
            if time.monotonic() - begin > LISTING:
                raise unreadable(
                    f"{self.label}: the checkpoint of step {max(unseen)} in {self.folder}",
                    f"the first process sees it, this one has not for {LISTING:.0f} s",
                )
            time.sleep(0.1)
            self._orbax.reload()

    def _read(self, step: int, abstract: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint.

        Returns:
          (what is wrong with it, or ""; its record; {"state", "arrays"}).

        Raises:
          UserError: it cannot be read now.
        """
        try:
            record = dict(self._orbax.checkpointables_metadata(step).custom_metadata or {})
            # What is checked against the record must first be known to be what was recorded.
            if record.pop("digest", None) != digest(record):
                return "its description is not what was saved", {}, {}
            wanted = {"state": abstract}
            if record["arrays"]:
                wanted["arrays"] = None
            loaded = self._orbax.load_checkpointables(step, wanted)
            arrays = jax.tree.map(np.asarray, loaded.get("arrays", {}))
            return "", record, {**loaded, "arrays": arrays}
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            self._stop_if_refused(step, error)
            return type(error).__name__, {}, {}

    def _as_saved(self, step: int, record: dict[str, Any], loaded: dict[str, Any]) -> bool:
        try:
            return (
                fingerprint(loaded["state"]) == record["state"]
                and _checksums(loaded["arrays"]) == record["arrays"]
            )
        except Exception as error:
            self._stop_if_refused(step, error)
            raise

    def _stop_if_refused(self, step: int, error: Exception) -> None:
        """Raises the sentence about an error that says nothing of what the checkpoint holds.

        Other processes are ended by the end of this one.
        """
        self._check_workdir()
        why = refusal(error)
        if not why and isinstance(error, jax.errors.JaxRuntimeError):  # a device's
            why = str(error).partition("\n")[0]
        if why:
            what = f"{self.label}: the checkpoint of step {step} in {self.folder}"
            raise unreadable(what, why) from error

    def close(self) -> None:
        """Waits for what is under way, without a word about whether it succeeded."""
        if "_orbax" in self.__dict__:
            try:
                self._orbax.close()
            except Exception as error:  # the run is ending for a reason of its own, which says more
                note(
                    f"{self.label}: the last checkpoint could not be finished "
                    f"({type(error).__name__})"
                )
            with contextlib.suppress(UserError):  # likewise
                self._check_workdir(self._pending)


def _progress(record: dict[str, Any], arrays: dict[str, Any]) -> TrainingProgress:
    """How far a training had come, from a checkpoint's record and arrays."""
    curves = {}
    for name, array in arrays.get("curves", {}).items():
        curves[name] = array.tolist()
    return TrainingProgress(
        curves=curves,
        rng=tuple(record["rng"]),
        policy_version=record["policy_version"],
        rollouts=record["rollouts"],
        examples=arrays.get("examples", {}),
    )
