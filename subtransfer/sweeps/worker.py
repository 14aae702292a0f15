"""A worker of a sweep: one process that makes stage after stage.

It keeps what it has compiled and loaded.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtransfer.config.sweep import Member, expand
from subtransfer.experiment.graph import Experiment
from subtransfer.runtime import preemption, sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts
from subtransfer.sweeps.requests import StageRequest
from subtransfer.sweeps.service import StageBuild, serve


class StageBuilder:
    """Finds out how the stages of a sweep's members are made.

    The last few experiments stay, with the models that they have loaded.

    Args:
      config_file: of the sweep.
      overrides: of all members.
      workdir: of all members.
    """

    KEPT = 2

    def __init__(self, config_file: str, overrides: Mapping[str, Any], workdir: Path):
        self._workdir, self._sweep = workdir, expand(config_file, overrides)
        self._experiments: dict[str, Experiment] = {}

    def __call__(self, request: StageRequest) -> StageBuild:
        """Returns how a stage is made that was asked for."""
        experiment = self._experiments.pop(request.member, None) or self._experiment(request)
        self._experiments[request.member] = experiment  # the newest
        while len(self._experiments) > self.KEPT:
            self._experiments.pop(next(iter(self._experiments)))
        stage = experiment.plan[request.stage]
        return StageBuild(stage.key, stage.build, stage.facts())

    def _experiment(self, request: StageRequest) -> Experiment:
        config = self._sweep.config(Member(request.member, request.overrides))
        experiment = Experiment(config, self._workdir, sharding.make_mesh(**config.mesh))
        experiment.check()
        return experiment


def main(argv: list[str]) -> int:
    """Serves as a worker: `python -m subtransfer.sweeps.worker SETTINGS`, as `command.py` says it.

    Args:
      argv: the program's name, and the settings as JSON.

    Returns:
      The exit status.
    """
    settings = json.loads(argv[1])
    preemption.listen()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    workdir = Path(settings["workdir"])
    channel = socket.socket(fileno=settings["channel"])
    try:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(workdir / ".compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        builder = StageBuilder(settings["config"], settings["overrides"], workdir)
        with artifacts.Store(workdir, settings["lease"]) as store:
            serve(channel, store, builder)
    except preemption.Preempted:
        return preemption.EXIT_CODE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
