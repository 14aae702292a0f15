"""A workdir's history: what was computed in it, when, where and by which process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subtransfer.runtime.json_files import read_json_lines
from subtransfer.store.claims import Owner
from subtransfer.store.workdir import HISTORY

_REMEDY = "delete that line, which changes no artefact"


def append(workdir: Path, stage: str, what: str, owner: Owner, facts: Mapping[str, Any]) -> None:
    """Adds a line to the file of one process.

    Each process has a file of its own, and a line of a few hundred bytes is written as a whole, so
    that no two writers meet.

    Args:
      workdir: whose history it is.
      stage: the folder of the stage.
      what: "begun", "computed" or "redone".
      owner: the process.
      facts: what else is recorded (JSON).
    """
    who = {"owner": owner.token, "host": owner.host, "pid": owner.pid}
    line = json.dumps({"stage": stage, "what": what, **who, **facts}) + "\n"
    path = workdir / HISTORY / f"{owner.token}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())


def read(workdir: Path) -> list[dict[str, Any]]:
    """Reads what was computed in a workdir: a record for each beginning and one for each end.

    Records have "stage" (the folder), "what" ("begun", "computed" or "redone"), "owner", "host",
    "pid", what the stage's maker added, and, at an end, "seconds". A kill between the sealing of an
    artefact and its line loses the line, never the artefact.

    Raises:
      UserError: a line is damaged.
    """
    records: list[dict[str, Any]] = []
    for path in sorted((Path(workdir) / HISTORY).glob("*.jsonl")):
        records.extend(read_json_lines(path, {"stage": str, "what": str}, _REMEDY))
    return records
