"""What a run asks, written down before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import write_json


@reads()
def prereg(out: Path, context: Context, *, registered: Mapping[str, Any]) -> None:
    """Writes prereg.json: `registration.registered`, which is all of the stage's key."""
    write_json(out / "prereg.json", dict(registered))
