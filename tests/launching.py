"""Runs `subtransfer.launch` in a process of its own that need not import everything again."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Processes are forked from one that has imported everything and touched no device: most of a short
# run's time is imports.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "subtransfer.launch",
        "subtransfer.experiment.graph",
        "tensorflow_datasets",
        "transformers",
        "orbax.checkpoint",
        "tensorboardX",
    ]
)


def run_forked(arguments, folder, outputs, environment):
    """The body of a forked process: `launch.main` in `folder`; `outputs` are the two streams'."""
    os.environ.update({"JAX_PLATFORMS": "cpu", **environment})
    os.setsid()
    os.chdir(folder)
    for number, output in enumerate(outputs, start=1):
        with open(output, "ab", buffering=0) as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    from subtransfer import launch

    code = launch.main(["launch", *arguments])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch(arguments, folder, environment=None) -> subprocess.CompletedProcess:
    """Runs the command to its end; returns what `subprocess.run` would of `python -m`."""
    with tempfile.TemporaryDirectory() as outputs:
        paths = [Path(outputs) / name for name in ("out", "err")]
        process = FORKS.Process(
            target=run_forked,
            args=(list(map(str, arguments)), str(folder), list(map(str, paths)), environment or {}),
        )
        process.start()
        process.join()
        out, err = (path.read_text() if path.is_file() else "" for path in paths)
    return subprocess.CompletedProcess(arguments, process.exitcode, out, err)
