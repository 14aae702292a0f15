"""The one writer of training metrics: JSONL, TensorBoard and, if asked for, Weights & Biases.

Metrics lie in WORKDIR/metrics, outside of the artefacts: they hold times, which no two runs share.
A record is one step. A training that goes on from a checkpoint first drops what was written after
it, so that no step is there twice.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from subtransfer.runtime import processes
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import read_json_lines
from subtransfer.store.files import atomic_write

FOLDER = "metrics"


class Writer:
    """The metrics of one stage; of several processes the first writes.

    Args:
      artifact: the stage's artefact: its name names the files, its workdir holds them.
      scope: what every metric's name begins with, as in "distill/forward_kl".
      tensorboard: whether to write event files, too.
      wandb: a Weights & Biases project, or "".

    Attributes:
      path: the JSONL file.
    """

    def __init__(self, artifact: Path, scope: str, *, tensorboard: bool, wandb: str):
        folder = artifact.parent / FOLDER
        self.path = folder / f"{artifact.name}.jsonl"
        self._scope, self._name = scope, artifact.name
        self._events_folder = folder / "tensorboard" / artifact.name if tensorboard else None
        self._project = wandb
        self._file: TextIO | None = None
        self._events: _EventFile | None = None
        self._wandb: Any = None

    def start(self, step: int) -> None:
        """Begins after `step`: what earlier attempts wrote up to it stays, the rest goes.

        Raises:
          UserError: an earlier attempt's file is damaged, or Weights & Biases refuses.
        """
        if not processes.leads():
            return
        kept = self._written_until(step)
        self.path.parent.mkdir(exist_ok=True)
        # Steps after the checkpoint are taken again, and would be there twice.
        atomic_write(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self.path.open("a")
        if self._events_folder:
            # TensorBoard would show the steps of all files in a folder: they are drawn anew.
            shutil.rmtree(self._events_folder, ignore_errors=True)
            self._events = _EventFile(self._events_folder)
            for record in kept:
                self._events.write(record)
        if self._project:
            self._wandb = _wandb_run(self._project, self._name, self.path.parent)

    def _written_until(self, step: int) -> list[dict[str, Any]]:
        """The records of earlier attempts up to a step."""
        records: list[dict[str, Any]] = []
        if not step:
            return records
        remedy = "delete the file, which holds metrics for people only"
        for record in read_json_lines(self.path, {"step": int}, remedy):
            if record["step"] > step:
                break
            records.append(record)
        return records

    def write(
        self,
        first: int,
        metrics: Mapping[str, Sequence[float] | np.ndarray],
        facts: Mapping[str, float],
    ) -> None:
        """Writes the steps `first`, `first + 1`, ...

        Args:
          first: number of the first step, counted from 1.
          metrics: by name, one value a step.
          facts: by name, numbers that are written with the last step.

        Raises:
          OSError: the disk refuses.
        """
        if self._file is None:
            return
        steps = len(next(iter(metrics.values())))
        for i in range(steps):
            values = {f"{self._scope}/{name}": float(all_[i]) for name, all_ in metrics.items()}
            if i == steps - 1:
                for name, fact in facts.items():
                    values[f"{self._scope}/{name}"] = float(fact)
            step = first + i
            record = {"step": step, **values}
            self._file.write(json.dumps(record) + "\n")
            if self._events:
                self._events.write(record)
            # It takes no step twice: what an earlier attempt logged cannot be taken back.
            if self._wandb and step > self._wandb.step:
                self._wandb.log(values, step=step)
        # Once a dispatch: whoever watches sees steps at once, and a disk that fails is noticed.
        self._file.flush()
        if self._events:
            self._events.flush()

    def close(self) -> None:
        """Ends all of them, also if one cannot write what it has left."""
        with contextlib.ExitStack() as sinks:
            if self._wandb:
                sinks.callback(self._wandb.finish)
            for sink in (self._events, self._file):
                if sink is not None:
                    sinks.callback(sink.close)


def _wandb_run(project: str, name: str, folder: Path) -> Any:
    """A run of Weights & Biases.

    One that goes on keeps its identity; steps that it has already are not logged again.

    Raises:
      UserError: there is no access to it.
    """
    # Not among the packages that are required.
    import wandb

    settings = wandb.Settings(console="off", quiet=True)
    try:
        return wandb.init(
            project=project, id=name, name=name, dir=folder, resume="allow", settings=settings
        )
    except wandb.errors.Error as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"Weights & Biases does not begin the run {name} ({reason}): log in with "
            "`wandb login`, set WANDB_MODE=offline, or leave metrics.wandb empty."
        ) from error


class _EventFile:
    """TensorBoard's events in a new file of `folder`.

    A refusal of the system is raised to whoever writes: tensorboardX's usual writer has a thread
    that dies of it, and then whoever goes on to write waits for that thread for ever.
    """

    def __init__(self, folder: Path):
        from tensorboardX.record_writer import RecordWriter  # writes at once, without a thread

        folder.mkdir(parents=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._records = RecordWriter(str(folder / name))
        # Readers take a file without this first event for an older form.
        self._write_event(file_version="brain.Event:2")

    def write(self, record: Mapping[str, Any]) -> None:
        values = []
        for name, value in record.items():
            if name != "step":
                values.append({"tag": name, "simple_value": value})
        self._write_event(step=record["step"], summary={"value": values})

    def _write_event(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()
