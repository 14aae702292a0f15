"""One stage of a plan, and the version of the code that its artefact depends on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from subtransfer import artifacts, provenance


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    Attributes:
      name: what it makes, e.g. "student.forward_kl.seed1".
      key: JSON-serialisable, everything that determines its artefact.
      work: one line for the plan: how much there is to do.
      memory: estimated peak bytes on each device, when asked.
      flops: estimated floating-point operations, when asked; 0 where these are not what takes the time.
      build: makes the artefact in an empty folder.
    """

    name: str
    key: Mapping[str, Any]
    work: str
    memory: Callable[[], int]
    flops: Callable[[], float]
    build: Callable[[Path], None]

    @functools.cached_property
    def digest(self) -> str:
        return artifacts.digest(self.key)

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.digest}"

    def facts(self) -> dict[str, Any]:
        """What is recorded when this process makes it: the estimated work, and who made it."""
        return {"flops": self.flops(), **provenance.facts()}

    @property
    def inputs(self) -> list[str]:
        """The folders of the artefacts that it reads."""
        return [f"{name}-{digest}" for name, digest in self.key["inputs"].items()]


@functools.cache
def code_version(*, report: bool) -> str:
    """Hash of the sources that an artefact depends on: changed code makes new artefacts, never mixes with old ones.

    Only the last stages depend on `report/`; none depends on how runs are launched, planned, shared out, shown and stored, nor
    on what is made of the results of many.
    """
    root = Path(__file__).parent
    outside = ("sweep", "scaling", "report/scaling", "report/sweep", "distill/checkpoints.py", "distill/run.py")
    outside += () if report else ("report/",)
    names = "launch progress artifacts provenance claims costs preemption processes metrics conditions runs table"
    outside += tuple(f"{name}.py" for name in names.split())
    h = hashlib.sha256(jax.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(outside):
            h.update(name.encode() + path.read_bytes())
    return h.hexdigest()[:16]
