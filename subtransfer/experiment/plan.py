"""One stage of a plan, and the version of the code that its artefact depends on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from subtransfer.store import artifacts, provenance
from subtransfer.store.schema import canonical_json


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    Attributes:
      name: what it makes, e.g. "student.forward_kl.seed1".
      key: JSON-serialisable, everything that determines its artefact.
      digest: of the key (`artifacts.digest`).
      work: one line for the plan: how much there is to do.
      memory: estimated peak bytes on each device, when asked.
      flops: estimated floating-point operations, when asked; 0 where these are not what takes the
        time.
      build: makes the artefact in an empty folder.
    """

    name: str
    key: Mapping[str, Any]
    digest: str
    work: str
    memory: Callable[[], int]
    flops: Callable[[], float]
    build: Callable[[Path], None]

    @functools.cached_property
    def folder(self) -> str:
        return f"{self.name}-{self.digest}"

    def facts(self) -> dict[str, Any]:
        """What is recorded when this process makes it: the estimated work, and who made it."""
        return {"flops": self.flops(), **provenance.facts()}

    @property
    def inputs(self) -> list[str]:
        """The folders of the artefacts that it reads."""
        return [f"{name}-{digest}" for name, digest in self.key["inputs"].items()]


class Digests:
    """`artifacts.digest` of keys, of whose "config" many have the same parts: each part is written
    once.
    """

    def __init__(self):
        self._texts: dict[int, tuple[str, Any]] = {}

    def of(self, key: Mapping[str, Any]) -> str:
        config = ",".join(
            [f'"{name}":{self._text(part)}' for name, part in sorted(key["config"].items())]
        )
        rest = canonical_json({name: value for name, value in key.items() if name != "config"})
        return artifacts.digest_of(
            f'{{"config":{{{config}}},{rest[1:]}'
        )  # "config" is the first in the alphabet

    def _text(self, part: Any) -> str:
        if type(part) is int:
            return str(part)
        found = self._texts.get(id(part))
        if found is None:
            found = self._texts[id(part)] = (
                canonical_json(part),
                part,
            )  # kept, so that the id stays its own
        return found[0]


@functools.cache
def code_version(*, report: bool) -> str:
    """Hash of the sources that an artefact depends on: changed code makes new artefacts, never
    mixes with old ones.

    Only the last stages depend on `report/`; none depends on how runs are launched, planned, shared
    out, shown and stored, nor on what is made of the results of many.
    """
    root = Path(__file__).parent.parent
    outside = (
        "launch.py",
        "sweeps/",
        "studies/",
        "analysis/scaling",
        "store/artifacts",
        "store/leases",
        "store/buckets",
    )
    outside += (
        "store/provenance",
        "runtime/processes",
        "runtime/progress",
        "runtime/preemption",
        "training/checkpoints",
    )
    outside += ("training/run.py", "training/metrics", "experiment/costs") + (
        () if report else ("report/",)
    )
    h = hashlib.sha256(jax.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(outside):
            h.update(name.encode() + path.read_bytes())
    return h.hexdigest()[:16]
