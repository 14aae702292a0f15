"""What every stage's function gets: its view of the config, where artefacts lie, and random keys.

Only plain data, so that a stage's code is what its own module imports.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from subtransfer import settings
from subtransfer.experiment.declared import View
from subtransfer.settings.base import Setting
from subtransfer.store import seals
from subtransfer.store.journal import Journals

if TYPE_CHECKING:
    from subtransfer.training.monitor import ProfiledSteps


@dataclasses.dataclass
class Resident:
    """What the stages of one process keep for each other: nothing that changes a result.

    Attributes:
      bases: loaded models by their folders, the least recently used one first.
      tuned: likewise policies that were tuned from them.
      tokenizers: likewise tokenizers.
      settings: by name.
      checkpoints: where the checkpoints lie that imported bases stand for, by the bases' folders.
    """

    bases: dict[Path, Any] = dataclasses.field(default_factory=dict)
    tuned: dict[Path, Any] = dataclasses.field(default_factory=dict)
    tokenizers: dict[Path, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, Setting] = dataclasses.field(default_factory=dict)
    checkpoints: dict[Path, Path] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a stage's function works with.

    Attributes:
      stage: its name.
      config: the fields that it declares.
      mesh: where the arrays live.
      path: stage name -> folder of its artefact, finished or not; see `input`.
      resident: what is loaded already.
      scope: the word below which its metrics are shown.
      window: steps of its training to be profiled, or None.
    """

    stage: str
    config: View
    mesh: Any
    path: Callable[[str], Path]
    resident: Resident
    scope: str = ""
    window: ProfiledSteps | None = None

    @property
    def setting(self) -> Setting:
        """The config's setting; one object for all stages of a process."""
        name, loaded = self.config.setting, self.resident.settings
        if name not in loaded:
            loaded[name] = settings.get(name)
        return loaded[name]

    def input(self, name: str) -> Path:
        """Returns the folder of a finished artefact to read from, whose small files are as sealed.

        Raises:
          UserError: one is another, or cannot be read now.
        """
        folder = self.path(name)
        seals.check(folder, at_most=seals.SMALL)
        return folder

    @property
    def journals(self) -> Journals:
        """Where the stage writes down what it samples, to go on there after a kill."""
        every_seconds = self.config.checkpoint.every_seconds
        return Journals(self.path(self.stage), self.stage, every_seconds)

    def key(self, *labels: Any) -> jax.Array:
        """A random key from the config's seed and labels.

        Labels enter by their CRC-32, which is the same on every machine and in every run.
        """
        key = jax.random.key(self.config.seed)
        # One after the other: ("student", 1) and ("student1",) are different keys.
        for label in labels:
            key = jax.random.fold_in(key, zlib.crc32(str(label).encode()))
        return key
