"""The one writer of training metrics: JSONL, TensorBoard and, if asked for, Weights & Biases; and
what a step should cost.

Metrics lie in WORKDIR/metrics, outside of the artefacts: they hold times, which no two runs share.
A record is one step. A training that goes on from a checkpoint first drops what was written after
it, so that no step is there twice.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from subtransfer.runtime import processes
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts

FOLDER = "metrics"


class Writer:
    """The metrics of one stage; of several processes the first writes.

    Args:
      artifact: the stage's artefact: its name names the files, its workdir holds them.
      scope: what every metric's name begins with, as in "distill/forward_kl".
      tensorboard: whether to write event files, too.
      wandb: a Weights & Biases project, or "".
    """

    def __init__(self, artifact: Path, scope: str, *, tensorboard: bool, wandb: str):
        self._scope, self._name = scope, artifact.name
        self.path = artifact.parent / FOLDER / f"{artifact.name}.jsonl"
        self._events = (
            artifact.parent / FOLDER / "tensorboard" / artifact.name if tensorboard else None
        )
        self._project = wandb
        self._file = self._board = self._wandb = None

    def start(self, step: int) -> None:
        """Begins after `step`: what earlier attempts wrote up to it stays, the rest goes."""
        if not processes.leads():
            return
        kept = []
        if step and self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # cut off by a kill
                    break
                if record["step"] > step:
                    break
                kept.append(record)
        self.path.parent.mkdir(exist_ok=True)
        artifacts.atomic_write(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self.path.open("a")
        if self._events:
            shutil.rmtree(self._events, ignore_errors=True)
            self._board = _EventFile(self._events)
            for record in kept:
                self._board.write(record)
        if self._project:
            self._wandb = _wandb_run(self._project, self._name, self.path.parent)

    def write(
        self, first: int, metrics: Mapping[str, Sequence[float]], facts: Mapping[str, float]
    ) -> None:
        """Writes the steps `first`, `first + 1`, ...: `metrics` have one value a step, `facts` are
        of the last one.
        """
        if self._file is None:
            return
        steps = len(next(iter(metrics.values())))
        for i in range(steps):
            values = {name: float(of_step[i]) for name, of_step in metrics.items()}
            if i == steps - 1:
                values |= {name: float(value) for name, value in facts.items()}
            record = {
                "step": first + i,
                **{f"{self._scope}/{name}": value for name, value in values.items()},
            }
            self._file.write(json.dumps(record) + "\n")
            if self._board:
                self._board.write(record)
            if self._wandb and first + i > self._wandb.step:
                self._wandb.log({k: v for k, v in record.items() if k != "step"}, step=first + i)
        self._file.flush()
        if self._board:
            self._board.flush()

    def close(self) -> None:
        with (
            contextlib.ExitStack() as sinks
        ):  # all of them, also if one cannot write what it has left
            if self._wandb:
                sinks.callback(self._wandb.finish)
            for sink in (self._board, self._file):
                if sink is not None:
                    sinks.callback(sink.close)


def _wandb_run(project: str, name: str, folder: Path):
    """A run of Weights & Biases. One that goes on keeps its identity; steps that it has already are
    not logged again.

    Raises:
      UserError: there is no access to it.
    """
    import wandb

    settings = wandb.Settings(console="off", quiet=True)
    try:
        return wandb.init(
            project=project, id=name, name=name, dir=folder, resume="allow", settings=settings
        )
    except wandb.errors.Error as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"Weights & Biases does not begin the run {name} ({reason}): log in with `wandb login`, set WANDB_MODE=offline, or "
            "leave metrics.wandb empty."
        ) from error


class _EventFile:
    """TensorBoard's events in a new file of `folder`; a refusal of the system is raised to whoever
    writes.

    tensorboardX's own writer has a thread that dies of it, and then whoever goes on to write waits
    for that thread for ever.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self._file = (
            folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        ).open("wb")
        self._event(file_version="brain.Event:2")

    def write(self, record: Mapping[str, Any]) -> None:
        values = [
            {"tag": name, "simple_value": value} for name, value in record.items() if name != "step"
        ]
        self._event(step=record["step"], summary={"value": values})

    def _event(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        data = Event(wall_time=time.time(), **content).SerializeToString()
        size = struct.pack("<Q", len(data))
        self._file.write(
            size
            + struct.pack("<I", masked_crc32c(size))
            + data
            + struct.pack("<I", masked_crc32c(data))
        )

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def step_flops(cfg, *, tokens: int, length: int, full: bool, teacher=None) -> float:
    """Floating-point operations that a training step has to make, over all devices; what is
    recomputed does not count.

    As in PaLM (Chowdhery et al. 2204.02311, appendix B): forward, 2 a token and parameter of a
    product, and causal attention's 2 x 2 x length / 2 x width of the heads a layer. The backward
    pass is twice that, or once where only adapters are trained; a live teacher's forward comes on
    top.

    Args:
      cfg: the decoder's geometry.
      tokens: of the batch, padding included.
      length: of a row.
      full: all weights are trained.
      teacher: the geometry of a live teacher, or None.
    """

    def forward(cfg) -> float:
        embedding = 0 if cfg.tied_embeddings else cfg.vocab_size * cfg.width
        return (
            2 * (cfg.num_params - embedding)
            + 2 * length * cfg.num_layers * cfg.num_heads * cfg.head_width
        )

    return tokens * ((3 if full else 2) * forward(cfg) + (forward(teacher) if teacher else 0))


def device_memory() -> dict[str, float]:
    """{"device_bytes": in use, "device_peak_bytes": the most so far} of this process's first
    device, if its backend tells.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    named = {"device_bytes": "bytes_in_use", "device_peak_bytes": "peak_bytes_in_use"}
    return {name: stats[key] for name, key in named.items() if key in stats}
