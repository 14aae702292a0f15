"""How a worker of a sweep finds out how the stages of its members are made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtransfer.config.sweep import Member, expand
from subtransfer.experiment.graph import Experiment
from subtransfer.runtime import sharding
from subtransfer.sweeps.requests import StageRequest
from subtransfer.sweeps.service import StageBuild


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
