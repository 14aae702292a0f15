"""What each worker of a sweep gets of this machine.

It is found out without touching a device: those are for the workers.
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
    """Returns "cpu", "gpu" or "tpu": what JAX will choose in a worker."""
    # Found out without JAX, which would take the devices that the workers need.
    asked = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if asked:
        return {"cuda": "gpu", "rocm": "gpu"}.get(asked, asked)
    # The library may be installed on a machine without the chip, and the other way round.
    if importlib.util.find_spec("libtpu") and _tpu_chips():
        return "tpu"
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if any(map(importlib.util.find_spec, plugins)) and _gpus():
        return "gpu"
    return "cpu"


def _gpus() -> list[str]:
    """NVIDIA GPUs as CUDA_VISIBLE_DEVICES names them."""
    # Set, but empty, it hides all of them.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def _tpu_chips() -> int:
    devices = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    return len(devices)


@dataclasses.dataclass(frozen=True)
class DeviceShare:
    """What one worker gets.

    Attributes:
      environment: variables that are set for it.
      cores: that it may run on; empty: all.
    """

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: frozenset[int] = frozenset()

    @contextlib.contextmanager
    def start(self) -> Iterator[dict[str, str]]:
        """Yields the worker's environment; a process that is started within inherits the cores."""
        # A process inherits the cores of the one that starts it.
        all_cores = os.sched_getaffinity(0) if self.cores else None
        if all_cores:
            os.sched_setaffinity(0, self.cores)
        try:
            yield {**os.environ, **self.environment}
        finally:
            if all_cores:
                os.sched_setaffinity(0, all_cores)


def _cores(workers: int) -> list[frozenset[int]]:
    """Equal shares of this process's cores.

    They are equal so that it makes no difference which worker computes what.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [frozenset()] * workers
    cores = sorted(os.sched_getaffinity(0))
    each = max(len(cores) // workers, 1)
    parts = []
    for worker in range(workers):
        places = range(worker * each, (worker + 1) * each)
        # With more workers than cores, some share one.
        parts.append(frozenset(cores[place % len(cores)] for place in places))
    return parts


def shares(workers: int) -> tuple[list[DeviceShare], int, str]:
    """Divides this machine's devices and cores over workers.

    Returns:
      Each worker's share, how many devices each has, and a phrase about it.

    Raises:
      UserError: so many workers cannot share this machine's devices.
    """
    kind = platform()
    if kind == "tpu":
        if workers > 1:
            raise UserError(
                f"--workers={workers} cannot share a TPU, whose chips one process holds: use "
                "--workers=1, or start the same command on several machines."
            )
        return [DeviceShare()], max(_tpu_chips(), 1), "1 worker with all TPU chips"
    if kind == "gpu":
        return _shares_of_gpus(workers, _gpus() or ["0"])
    return _shares_of_cpu(workers)


def _shares_of_gpus(workers: int, gpus: list[str]) -> tuple[list[DeviceShare], int, str]:
    shares = []
    if workers <= len(gpus):
        # Equal parts: plans count on the same number of devices in every worker.
        each = len(gpus) // workers
        for worker in range(workers):
            own_gpus = gpus[worker * each : (worker + 1) * each]
            shares.append(DeviceShare({"CUDA_VISIBLE_DEVICES": ",".join(own_gpus)}))
        words = f"{_count(workers, 'worker')} with {_count(each, 'GPU')} each"
        return shares, each, words
    fullest = -(-workers // len(gpus))  # workers on one GPU, at most
    # Each would else take three quarters of the memory for itself; a tenth is left to the driver.
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / fullest:.3f}"}
    for worker in range(workers):
        gpu = gpus[worker % len(gpus)]
        shares.append(DeviceShare({"CUDA_VISIBLE_DEVICES": gpu, **memory}))
    return shares, 1, f"{workers} workers, up to {fullest} on a GPU with a part of its memory"


def _shares_of_cpu(workers: int) -> tuple[list[DeviceShare], int, str]:
    flags = os.environ.get("XLA_FLAGS", "")
    # One CPU may play several devices, and plans must count as many as the workers will see.
    forced = re.search(r"--xla_force_host_platform_device_count=(\d+)", flags)
    devices = int(forced[1]) if forced else int(os.environ.get("JAX_NUM_CPU_DEVICES", 1))
    cores = _cores(workers)
    words = _count(workers, "worker")
    if cores[0]:
        words += f" with {_count(len(cores[0]), 'CPU core')} each"
    return [DeviceShare(cores=part) for part in cores], max(devices, 1), words


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
