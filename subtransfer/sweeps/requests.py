"""What goes between a sweep's command and its workers, as JSON lines over a socket."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOGS = "logs"  # a workdir's folder of the outputs of stages, and of workers that make none


@dataclasses.dataclass(frozen=True)
class StageRequest:
    """Asks a worker to make a stage.

    Attributes:
      member: name of the member of the sweep that needs it.
      overrides: the member's config fields.
      stage: the stage's name.
      folder: the name of its artefact's folder.
      expired: the number of a claim on it whose lease has run out, if there is one.
    """

    member: str
    overrides: Mapping[str, Any]
    stage: str
    folder: str
    expired: int | None = None


@dataclasses.dataclass(frozen=True)
class StageOutcome:
    """Says what became of a stage that was asked for.

    Attributes:
      what: "reused", "computed", "redone", "busy" (another makes it) or "failed"; "ready" of a
        worker that has started.
      sentence: why it failed.
      transient: whether trying again may help.
    """

    what: str
    sentence: str = ""
    transient: bool = False


def to_line(message: StageRequest | StageOutcome) -> bytes:
    """Returns a message as one line."""
    return (json.dumps(dataclasses.asdict(message)) + "\n").encode()


def log_path(workdir: Path, folder: str) -> Path:
    """Returns where a stage's output lies.

    Args:
      workdir: of the sweep.
      folder: the name of the stage's folder.
    """
    return workdir / LOGS / f"{folder}.log"
