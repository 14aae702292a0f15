"""Adds stages to a plan: their keys, and what builds their artefacts.

`Planner.add(name, function, ...)` is given a function of `stages/`, its arguments and the names of
the stages that it reads; what that makes of a config is the key, and with it the folder's name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from subtransfer import settings
from subtransfer.config import reading as configuration
from subtransfer.experiment import context, keys, names
from subtransfer.experiment.declared import ALWAYS, EVERYTHING, HOW, View
from subtransfer.experiment.plan import Stage
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.field import nearest
from subtransfer.training import metrics
from subtransfer.training.monitor import ProfiledSteps


class Planner:
    """The stages of a run, in the order in which they are added.

    Args:
      config: the run's.
      workdir: where artefacts lie.
      mesh: where arrays will lie.
      sources: the source files that keys are made of.

    Attributes:
      plan: the stages by name.
      resident: what the stages of this process keep for each other.
    """

    def __init__(
        self, config: configuration.Config, workdir: Path, mesh: Any, sources: keys.Sources
    ):
        self.plan: dict[str, Stage] = {}
        self.resident = context.Resident()
        self._config, self._workdir, self._mesh, self._sources = config, workdir, mesh, sources
        self._digests = keys.Digests()
        self._parts: dict[tuple[str, ...], dict[str, Any]] = {}
        self._codes: dict[Any, dict[str, Any]] = {}
        self._full = config.tuning.method == "full"
        self._profiled: tuple[str, ProfiledSteps] | None = None

    def path(self, name: str) -> Path:
        """Where a stage's artefact lies."""
        return self._workdir / self.plan[name].folder

    def add(
        self,
        name: str,
        function: Callable[..., None],
        *,
        fields: tuple[str, ...] = (),
        origins: tuple[str, ...] = (),
        inputs: Iterable[str] = (),
        work: str,
        memory: Callable[[], int] = int,
        flops: Callable[[], float] = float,
        worked_by: str = "",
        episodes: int = 0,
        config: configuration.Config | None = None,
        **arguments: Any,
    ) -> str:
        """Adds a stage to the plan, unless it is there already; returns its name.

        Args:
          name: of the stage.
          function: makes its artefact; one of `stages/`.
          fields: config fields that it reads beside those that it declares.
          origins: of the records whose functions it calls, where these are a plugin's.
          inputs: names of the stages whose artefacts the function reads.
          work, memory, flops, worked_by, episodes: as of `Stage`.
          config: what the function reads of; default: the run's config.
          arguments: of the function, JSON values.

        Raises:
          RuntimeError: another stage has the same name, a bug.
        """
        declared = function.reads  # type: ignore[attr-defined]
        if fields:
            declared = (*declared, *fields)
        declared = self._with_effect(declared)
        key = {
            "arguments": arguments,
            "code": self._code(function, origins),
            "config": self._fields(declared, config),
            "inputs": {given: self.plan[given].digest for given in inputs},
            "kind": names.kind(name),
            "seed": self._config.seed,
        }
        digest = self._digests.of(key)
        if name not in self.plan:
            build = functools.partial(self._make, name, function, config, declared, arguments)
            self.plan[name] = Stage(
                name, key, digest, work, memory, flops, worked_by, episodes, build
            )
        # Arms ask for what they need, and several need the same teacher or rollouts.
        elif self.plan[name].digest != digest:
            raise RuntimeError(f"Two different stages are named {name}.")
        return name

    def put_first(self, name: str) -> None:
        """Has a stage made before all others."""
        others = dict(self.plan)
        first = others.pop(name)
        self.plan.clear()
        self.plan[name] = first
        self.plan.update(others)

    def _with_effect(self, declared: tuple[str, ...]) -> tuple[str, ...]:
        """Leaves out the declared fields that change nothing, as the config stands."""
        if not self._full:
            return declared
        # Where all weights are trained, nobody reads how adapters would be.
        return tuple("tuning.method" if field == "tuning" else field for field in declared)

    def _make(
        self,
        name: str,
        function: Callable[..., None],
        config: configuration.Config | None,
        declared: tuple[str, ...],
        arguments: Mapping[str, Any],
        out: Path,
    ) -> None:
        """Makes a stage's artefact in the empty folder `out`."""
        profiled = self._profiled is not None and self._profiled[0] == name
        given = context.Context(
            name,
            View(config or self._config, (*declared, *ALWAYS, *HOW), name),
            self._mesh,
            self.path,
            self.resident,
            names.metrics_scope(name),
            self._profiled[1] if self._profiled and profiled else None,
        )
        function(out, given, **arguments)

    def _fields(
        self, declared: tuple[str, ...], config: configuration.Config | None
    ) -> dict[str, Any]:
        """The part of a key that holds declared fields; one object wherever it is the same."""
        # A base's own fields are no other stage's: there is nothing to share.
        if config is not None:
            return keys.config_of(config, declared)
        if declared not in self._parts:
            self._parts[declared] = keys.config_of(self._config, declared)
        return self._parts[declared]

    def _code(self, function: Callable[..., None], origins: tuple[str, ...]) -> dict[str, Any]:
        """The part of a key that holds the code of a function, and of plugins that it calls."""
        question = (function, origins)
        if question not in self._codes:
            modules = [function.__module__]
            # Settings are looked up by name, so no import statement leads to the one in use.
            declared = function.reads  # type: ignore[attr-defined]
            if "setting" in declared or EVERYTHING in declared:
                modules.append(settings.source(self._config.setting))
            self._codes[question] = self._sources.code(modules, filter(None, origins))
        return self._codes[question]

    def profile(self, text: str) -> None:
        """Has a stage's steps profiled, "STAGE:FIRST-LAST".

        Raises:
          UserError: no such stage trains anything, or these are no steps.
        """
        stage, _, steps = text.partition(":")
        first, _, last = steps.partition("-")
        trained = []
        for name, planned in self.plan.items():
            # One that was trained with others is taken out of their stage, and trains nothing.
            trained_with_others = any(map(names.is_population, planned.key["inputs"]))
            if names.is_trained(name) and not trained_with_others:
                trained.append(name)
        if stage not in trained:
            near = nearest(stage, trained)
            raise UserError(
                f"--profile names {stage!r}, which trains nothing here; "
                f"the nearest stage is {near!r}."
            )
        if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
            raise UserError(
                f"--profile={text} is not of the form STAGE:FIRST-LAST, with steps counted from 1."
            )
        folder = self._workdir / metrics.FOLDER / "profile" / stage
        self._profiled = stage, ProfiledSteps(int(first), int(last), folder)
