"""Puts a run's result files where people look for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from subtransfer.store import provenance, seals
from subtransfer.store.files import os_errors, write_together

FILES = ("results.csv", "effects.csv", "results.jsonl", "results.json", "report.html")


def publish(results: Path, report: Path, into: Path, folders: Mapping[str, str]) -> None:
    """Copies the result files out of a run's last two artefacts, and writes stages.json.

    SHA256SUMS comes last and names the set: readers refuse files that do not belong together, as a
    kill may leave them. Who calls this holds the claim `exclusive.PUBLISHING`.

    Args:
      results, report: the folders of the two artefacts.
      into: where to.
      folders: the folder of each stage's artefact, by the stage's name.

    Raises:
      UserError: a file is not as its stage sealed it, or cannot be read or written.
    """
    with os_errors(into):
        seals.check(results)
        seals.check(report)
        text = json.dumps(dict(folders), indent=1, sort_keys=True) + "\n"
        files = {provenance.STAGES: text.encode()}
        # Copies and not links: workdirs are moved, and artefacts deleted.
        for name in FILES:
            source = report if name == "report.html" else results
            files[name] = (source / name).read_bytes()
        into.mkdir(parents=True, exist_ok=True)
        write_together(into, files | {seals.SUMS: seals.sums_of(files).encode()})
