"""Step checkpoints of a training that is under way, by Orbax: what makes a killed run go on instead
of starting again.

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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtransfer.runtime import distributed, processes
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.progress import note
from subtransfer.store import artifacts, buckets


@dataclasses.dataclass(frozen=True)
class Policy:
    """When checkpoints are saved and how many stay.

    Attributes:
      every_seconds, every_steps: since the last one; 0 is never. Steps are rounded up to whole
        dispatches.
      keep: newest checkpoints that stay; with 2, a damaged one leaves another to fall back to.
    """

    every_seconds: float = 0.0
    every_steps: int = 0
    keep: int = 2


@dataclasses.dataclass
class Progress:
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
    def one(x):
        size = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(x, size).astype(jnp.uint32).reshape(-1)
        return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)

    return jnp.stack([one(x) for x in leaves])


def fingerprint(state: Any) -> list[int]:
    """One number a leaf, from all its bits and their places, the same however it is sharded;
    computed where the arrays lie.
    """
    return [int(n) for n in distributed.to_host(_sums(jax.tree.leaves(state)))]


def _checksums(arrays: Any) -> Any:
    return jax.tree.map(lambda array: zlib.crc32(np.ascontiguousarray(array).tobytes()), arrays)


def _as_saved(record: dict[str, Any], loaded: dict[str, Any]) -> bool:
    return (
        fingerprint(loaded["state"]) == record["state"]
        and _checksums(loaded["arrays"]) == record["arrays"]
    )


def _hush() -> None:
    """Leaves it to us to say what is wrong with a checkpoint: Orbax and TensorStore would add logs
    and tracebacks.

    A failed save is raised in Orbax's thread, too. And after the first failure of many parallel
    reads or writes Orbax closes its event loop, to which TensorStore goes on to report.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)

    def without(hook, ours):
        def quiet(event):
            if not ours(event):
                hook(event)

        quiet.hushed = True
        return hook if getattr(hook, "hushed", False) else quiet

    closed = "Event loop is closed"
    sys.unraisablehook = without(sys.unraisablehook, lambda event: closed in str(event.exc_value))
    threading.excepthook = without(
        threading.excepthook, lambda event: type(event.thread).__module__.startswith("orbax.")
    )


class _Always:
    """Whether to save is decided here, not by Orbax, whose own policy skips a save while another is
    under way.
    """

    def should_save(self, step, previous_steps, *, context) -> bool:
        return True


class Checkpoints:
    """The step checkpoints of one stage. The folder is made by the first save; leftovers of dead
    runs are removed on opening.

    Args:
      folder: where they lie.
      label: the stage, for messages.
      policy: when they are saved.
    """

    def __init__(self, folder: Path, label: str, policy: Policy):
        self.folder, self.label, self.policy = Path(folder).absolute(), label, policy
        self._workdir = self.folder.parent.parent
        self._opened = artifacts.opened(self._workdir)  # not by one who trains without a store
        self.confirmed: int | None = None  # the newest step that is known to be on disk
        self._pending: int | None = None
        self._last_step, self._last_time = 0, time.monotonic()

    @functools.cached_property
    def _orbax(self):
        # Imported when something is saved or found: half a second that short stages never pay.
        from orbax.checkpoint import v1 as ocp

        _hush()
        with artifacts.os_errors(self._workdir):
            return ocp.training.Checkpointer(
                self.folder,
                save_decision_policy=_Always(),
                preservation_policy=ocp.training.preservation_policies.LatestN(self.policy.keep),
                cleanup_tmp_directories=True,
            )

    def due(self, step: int) -> bool:
        """Whether the time or the steps since the last checkpoint ask for one; the same answer in
        every process.
        """
        p = self.policy
        if p.every_steps and step - self._last_step >= p.every_steps:
            return True
        return bool(p.every_seconds) and distributed.from_leader(
            time.monotonic() - self._last_time >= p.every_seconds
        )

    def save(self, step: int, state: Any, progress: Progress) -> None:
        """Begins to save, after the save before has been confirmed; the state may be donated when
        this returns.

        Raises:
          UserError: this one, or the one before, could not be written.
        """
        self.wait()
        if step == self.confirmed:
            return
        self._check_workdir()
        curves = {name: np.asarray(values, np.float32) for name, values in progress.curves.items()}
        arrays = {
            kind: tree
            for kind, tree in (("curves", curves), ("examples", progress.examples))
            if tree
        }
        record = {
            "rng": [int(n) for n in progress.rng],
            "policy_version": progress.policy_version,
            "rollouts": copy.deepcopy(progress.rollouts),  # written later, while the run goes on
            "state": fingerprint(state),
            "arrays": _checksums(arrays),
        }
        with self._refusals(step):
            self._orbax.save_checkpointables_async(
                step,
                {"state": state, **({"arrays": arrays} if arrays else {})},
                custom_metadata={**record, "digest": artifacts.digest(record)},
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
        """That the workdir is still there. If it vanishes during a save, Orbax makes another, with
        that save alone.

        Args:
          saved: the step of a save that may have done so; what it made is removed.

        Raises:
          UserError: the workdir has vanished.
        """
        if self._workdir.is_dir() and artifacts.opened(self._workdir) == self._opened:
            return
        if saved is not None:
            for made in (self.folder / str(saved), *self.folder.glob(f"{saved}.*")):
                shutil.rmtree(made, ignore_errors=True)
            with contextlib.suppress(OSError):  # the first that is not empty
                for folder in (self.folder, self.folder.parent, self._workdir):
                    folder.rmdir()
        raise artifacts.vanished(self._workdir)

    def _refusals(self, step: int):
        what = f"The checkpoint of {self.label} at step {step} could not be saved"
        kept = f"; the last whole one is of step {self.confirmed}" if self.confirmed else ""
        return artifacts.storage_errors(self._workdir, what + kept)

    def load(self, state: Any) -> tuple[Any, Progress] | None:
        """The newest whole checkpoint in the shardings of `state`, whose own arrays are given up
        for it; None without one.

        A damaged one is said to be, set aside, and the one before is tried.
        """
        with artifacts.os_errors(self._workdir):
            buckets.fetch_all(self.folder)
        if not distributed.from_leader(self.folder.is_dir()):
            return None
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        steps = [checkpoint.step for checkpoint in self._orbax.checkpoints]
        if steps:
            jax.tree.map(lambda x: x.delete(), state)
        for step in reversed(steps):
            # Processes agree before each collective step: what is damaged may be damaged for one of
            # them only.
            reason, record, loaded = self._read(step, abstract)
            if not distributed.anywhere(bool(reason)) and not distributed.anywhere(
                not _as_saved(record, loaded)
            ):
                self.confirmed = self._last_step = step
                arrays = loaded["arrays"]
                curves = {name: array.tolist() for name, array in arrays.get("curves", {}).items()}
                known = record["policy_version"], record["rollouts"], arrays.get("examples", {})
                return loaded["state"], Progress(curves, tuple(record["rng"]), *known)
            reason = reason or "not what was saved"
            note(
                f"{self.label}: the checkpoint of step {step} is damaged ({reason}); going back to the one before"
            )
            loaded = None
            if processes.leads():
                artifacts.set_aside(self.folder / str(step))
            processes.barrier(f"damaged/{self.label}/{step}")
            self._orbax.reload()
        return None

    def _read(self, step: int, abstract: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """What is wrong with a checkpoint (or ""), its description, and {"state", "arrays"}."""
        try:
            record = dict(self._orbax.checkpointables_metadata(step).custom_metadata or {})
            if record.pop("digest", None) != artifacts.digest(record):
                return "its description is not what was saved", {}, {}
            wanted = {"state": abstract, **({"arrays": None} if record["arrays"] else {})}
            loaded = self._orbax.load_checkpointables(step, wanted)
            return (
                "",
                record,
                {**loaded, "arrays": jax.tree.map(np.asarray, loaded.get("arrays", {}))},
            )
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            return type(error).__name__, {}, {}

    def close(self) -> None:
        """Waits for what is under way, without a word about whether it succeeded."""
        if "_orbax" in self.__dict__:
            try:
                self._orbax.close()
            except Exception as error:  # the run is ending for a reason of its own, which says more
                note(
                    f"{self.label}: the last checkpoint could not be finished ({type(error).__name__})"
                )
            with contextlib.suppress(UserError):  # likewise
                self._check_workdir(self._pending)
