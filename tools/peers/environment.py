"""Environments of foreign programs, made on demand, and the benchmark's peers that run in them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from subtransfer.runtime.errors import UserError

PINS = {
    "torch": ("torch==2.13.0", "transformers==5.23.*", "accelerate"),
    "train": ("torch==2.13.0", "transformers==5.23.*", "trl==0.25.*", "peft==0.21.*"),
    "tunix": ("google-tunix==0.1.7", "jax==0.10.2", "transformers==5.12.*"),
}


def interpreter(name: str, cache: Path, platform: str) -> Path:
    """The Python of a peer's environment; the first time, it is installed (minutes)."""
    pins = PINS[name]
    if name == "tunix" and platform == "gpu":
        pins = (*pins, "jax[cuda13]==0.10.2")
    return install(name, pins, cache)


def place(name: str, pins: tuple[str, ...], cache: Path) -> Path:
    """The folder of an environment with these packages for this Python."""
    digest = hashlib.sha256(" ".join((sys.version, *pins)).encode()).hexdigest()[:8]
    return cache / f"{name}-{digest}"


def installed(folder: Path) -> bool:
    """Whether an environment's installation was finished."""
    return (folder / "ready").is_file()


def install(name: str, pins: tuple[str, ...], cache: Path) -> Path:
    """The Python of an environment with these packages, which is made if it is not there.

    Raises:
      UserError: pip fails.
    """
    folder = place(name, pins, cache)
    python = folder / "bin" / "python"
    if not installed(folder):
        print(f"installing {' '.join(pins)} in {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", *pins], stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise UserError(
                f"{name} could not be installed in {folder}: {done.stderr.strip().splitlines()[-1]}"
            )
        (folder / "ready").touch()
    return python


class Peer:
    """A peer's process: a request in, its answer out, idle in between.

    A request is {"do": "generate" | "continuous" | "greedy", "checkpoint", "dtype", "device",
    "threads", "prompts", "new_tokens", "rows", "seed"}; an answer {"seconds", "tokens"}, with
    "rows" for "greedy", or {"error"}. The training peer's are in `train_peer.py`.
    """

    def __init__(self, name: str, python: Path, device: str, log: Path):
        script = Path(__file__).with_name(f"{name}_peer.py")
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [python, script, device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.name, self.log = name, log
        self.versions = self._read()["versions"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"The peer {self.name} ended with status {self._process.wait()}: see {self.log}."
            )
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()
        self._log.close()
