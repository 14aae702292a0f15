"""One stage of a plan."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from subtransfer.store import provenance


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    Attributes:
      name: what it makes, e.g. "student.forward_kl.seed1".
      key: JSON-serialisable, everything that determines its artefact (`keys.py`).
      digest: of the key (`digest`).
      work: one line for the plan: how much there is to do.
      memory: estimated peak bytes on each device, when asked.
      flops: estimated floating-point operations, when asked; 0 where these are not what takes the
        time.
      worked_by: the model whose speed decides how long that takes; "" where none does.
      episodes: that it runs; their operations are among `flops`.
      build: makes the artefact in an empty folder.
    """

    name: str
    key: Mapping[str, Any]
    digest: str
    work: str
    memory: Callable[[], int]
    flops: Callable[[], float]
    worked_by: str
    episodes: int
    build: Callable[[Path], None]

    @functools.cached_property
    def folder(self) -> str:
        """The name of its artefact's folder."""
        return f"{self.name}-{self.digest}"

    def facts(self) -> dict[str, Any]:
        """What is recorded when this process makes it: the estimated work, and who made it."""
        return {"flops": self.flops(), **provenance.facts()}

    @property
    def inputs(self) -> list[str]:
        """The folders of the artefacts that it reads."""
        return [f"{name}-{digest}" for name, digest in self.key["inputs"].items()]
