"""How soon a command's first token is sampled: of a first start, and of those after it.

    python tools/bench_start.py --model=DIR
    python tools/bench_start.py --geometry=smollm2-135m

Each start is a process of its own: it imports the package, loads the weights, compiles what
sampling needs and writes one token for each prompt, in slots with room for --more_tokens. All keep
compiled programs in one folder, which is empty at the first start, as a run's workdir is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags
from peers import command, models

from subtransfer.rollout.policy import Policy
from subtransfer.rollout.sampling import Sampling
from subtransfer.rollout.saved_policy import load_policy

_MODEL = flags.DEFINE_string(
    "model", None, "A Hugging Face directory, instead of random weights of a geometry."
)
_GEOMETRY = flags.DEFINE_string(
    "geometry", "smollm2-135m", "0.2m, 10m, smollm2-135m, or a Llama of models/presets.py."
)
_ROWS = flags.DEFINE_integer("rows", 8, "Prompts.", lower_bound=1)
_PROMPT = flags.DEFINE_integer("prompt_tokens", 32, "Tokens of each prompt.", lower_bound=1)
_MORE = flags.DEFINE_integer("more_tokens", 512, "Tokens that may follow.", lower_bound=1)
_STARTS = flags.DEFINE_integer("starts", 3, "Starts, one after the other.", lower_bound=2)
_CHILD = flags.DEFINE_bool("child", False, "Be one of the starts.")
flags.DEFINE_string("json", None, "A file for the results.")


def first_token(policy: Policy) -> None:
    """Samples one token for each prompt, in slots that have room for more."""
    prompts = [[1 + row] * _PROMPT.value for row in range(_ROWS.value)]
    every_id = range(policy.cfg.vocab_size)
    policy.sample(prompts, Sampling(1.0), max_new_tokens=_MORE.value, stop_ids=every_id)


def start(folder: Path, model: Path | str) -> float:
    """Seconds of one start."""
    begin = time.perf_counter()
    arguments = ["--child", f"--model={model}"]
    for flag in (_ROWS, _PROMPT, _MORE):
        arguments.append(f"--{flag.name}={flag.value}")
    subprocess.run(
        [sys.executable, __file__, *arguments],
        check=True,
        env={
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            # As `launch.py` sets it.
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        },
    )
    return time.perf_counter() - begin


def run(folder: Path) -> dict[str, Any]:
    """All starts; returns what --json writes."""
    model = Path(
        _MODEL.value or models.write(folder / "model", _GEOMETRY.value, "llama", "float32")
    )
    seconds = []
    for number in range(_STARTS.value):
        seconds.append(start(folder, model))
        print(f"start {number + 1}: {seconds[-1]:.1f} s to the first token and out", flush=True)
    return {
        "model": _MODEL.value or _GEOMETRY.value,
        "rows": _ROWS.value,
        "more_tokens": _MORE.value,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "seconds": seconds,
    }


def checked_run() -> dict[str, Any]:
    """The benchmark, or one of its starts."""
    if _CHILD.value:
        first_token(load_policy(_MODEL.value))
        return {}
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder))


if __name__ == "__main__":
    sys.exit(command.main(sys.argv, checked_run))
