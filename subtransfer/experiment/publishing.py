"""Puts a run's result files where people look for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from subtransfer.store import provenance
from subtransfer.store.files import atomic_write, os_errors

FILES = ("results.csv", "results.jsonl", "results.json", "report.html")


def publish(results: Path, report: Path, into: Path, folders: Mapping[str, str]) -> None:
    """Copies the result files out of a run's last two artefacts, and writes stages.json.

    Args:
      results, report: the folders of the two artefacts.
      into: where to.
      folders: the folder of each stage's artefact, by the stage's name.
    """
    with os_errors(into):
        into.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(folders), indent=1, sort_keys=True) + "\n"
        atomic_write(into / provenance.STAGES, text)
        # Copies and not links: workdirs are moved, and artefacts deleted.
        for name in FILES:
            source = report if name == "report.html" else results
            atomic_write(into / name, (source / name).read_bytes())
