"""What each worker of a sweep gets of this machine, found out without touching a device: those are
for the workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from subtransfer.runtime.errors import UserError


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what JAX will choose in a worker."""
    asked = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if asked:
        return {"cuda": "gpu", "rocm": "gpu"}.get(asked, asked)
    if importlib.util.find_spec("libtpu") and _tpu_chips():
        return "tpu"
    if (
        any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
        and _gpus()
    ):
        return "gpu"
    return "cpu"


def _gpus() -> list[str]:
    """NVIDIA GPUs as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def _tpu_chips() -> int:
    return len(list(Path("/dev").glob("accel[0-9]*")) + list(Path("/dev").glob("vfio/[0-9]*")))


@dataclasses.dataclass(frozen=True)
class Share:
    """What one worker gets.

    Attributes:
      environment: variables that are set for it.
      cores: that it may run on; empty: all.
    """

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: frozenset[int] = frozenset()

    @contextlib.contextmanager
    def start(self) -> Iterator[dict[str, str]]:
        """Around the start of the worker's process, which inherits the cores; yields its
        environment.
        """
        all_cores = os.sched_getaffinity(0) if self.cores else None
        if all_cores:
            os.sched_setaffinity(0, self.cores)
        try:
            yield {**os.environ, **self.environment}
        finally:
            if all_cores:
                os.sched_setaffinity(0, all_cores)


def _cores(workers: int) -> list[frozenset[int]]:
    """Equal shares of this process's cores, so that it makes no difference which worker computes
    what.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [frozenset()] * workers
    cores = sorted(os.sched_getaffinity(0))
    each = max(len(cores) // workers, 1)
    return [
        frozenset(cores[(i * each + j) % len(cores)] for j in range(each)) for i in range(workers)
    ]


def shares(workers: int) -> tuple[list[Share], int, str]:
    """Returns (each worker's share, how many devices each has, a phrase about it).

    Raises:
      UserError: so many workers cannot share this machine's devices.
    """
    kind = platform()
    if kind == "tpu":
        if workers > 1:
            raise UserError(
                f"--workers={workers} cannot share a TPU, whose chips one process holds: use --workers=1, or start the same "
                "command on several machines."
            )
        return [Share()], max(_tpu_chips(), 1), "1 worker with all TPU chips"
    if kind == "gpu":
        gpus = _gpus() or ["0"]
        if workers <= len(gpus):
            each = len(gpus) // workers
            parts = [gpus[i * each : (i + 1) * each] for i in range(workers)]
            environments = [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]
            return (
                [Share(env) for env in environments],
                each,
                f"{_count(workers, 'worker')} with {_count(each, 'GPU')} each",
            )
        fullest = -(-workers // len(gpus))
        memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / fullest:.3f}"}
        environments = [
            {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], **memory} for i in range(workers)
        ]
        return (
            [Share(env) for env in environments],
            1,
            f"{workers} workers, up to {fullest} on a GPU with a part of its memory",
        )
    forced = re.search(
        r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    devices = int(forced[1]) if forced else int(os.environ.get("JAX_NUM_CPU_DEVICES", 1))
    cores = _cores(workers)
    each = f" with {_count(len(cores[0]), 'CPU core')} each" if cores[0] else ""
    return [Share(cores=own) for own in cores], max(devices, 1), _count(workers, "worker") + each


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
