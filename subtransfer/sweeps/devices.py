"""What each worker of a sweep gets of this machine, found out without touching a device: those are for the workers."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from subtransfer.errors import UserError


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what JAX will choose in a worker."""
    asked = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if asked:
        return {"cuda": "gpu", "rocm": "gpu"}.get(asked, asked)
    if importlib.util.find_spec("libtpu") and _tpu_chips():
        return "tpu"
    if any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)) and _gpus():
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


def shares(workers: int) -> tuple[list[dict[str, str]], int, str]:
    """Returns (each worker's environment variables, how many devices each has, a sentence about it).

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
        return [{}], max(_tpu_chips(), 1), "1 worker with all TPU chips"
    if kind == "gpu":
        gpus = _gpus() or ["0"]
        if workers <= len(gpus):
            each = len(gpus) // workers
            parts = [gpus[i * each : (i + 1) * each] for i in range(workers)]
            return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts], each, f"{workers} workers of {each} GPUs each"
        fullest = -(-workers // len(gpus))
        memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / fullest:.3f}"}
        owns = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], **memory} for i in range(workers)]
        return owns, 1, f"{workers} workers, up to {fullest} on a GPU, each with its part of the memory"
    forced = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    devices = int(forced[1]) if forced else int(os.environ.get("JAX_NUM_CPU_DEVICES", 1))
    return [{}] * workers, max(devices, 1), f"{workers} workers on {os.cpu_count()} CPU cores"
