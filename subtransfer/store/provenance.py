"""Provenance: the versions, sources and devices that made a run's results.

The workdir's history recorded them for each of its stages.

These are facts of one machine and one day. They stand in the history and in no artefact, whose
bytes they would change; beside published results lies `stages.json`, which says whose records are
theirs.
"""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from subtransfer import __version__
from subtransfer.runtime.json_files import read_json
from subtransfer.store import history

STAGES = "stages.json"
FACTS = (
    "package_version",
    "git_revision",
    "jax_version",
    "python_version",
    "platform",
    "device_kind",
    "device_count",
)


def git_revision(package: Path | None = None) -> str | None:
    """Returns the commit that the sources come from, or None outside of a checkout.

    It ends with "-dirty" if files that git knows were changed.

    Args:
      package: the package's folder; default: this one's.
    """
    package = package or Path(__file__).parent.parent
    # An environment inside of somebody else's checkout is not the package's own.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    revision = _git(package, "rev-parse", "HEAD")
    if not revision:
        return None
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{revision}-dirty" if changed else revision


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def facts() -> dict[str, Any]:
    """Returns `FACTS` of this process, as JSON types; the revision is the one it began with."""
    device = jax.devices()[0]
    return {
        "package_version": __version__,
        "git_revision": git_revision(),
        "jax_version": jax.__version__,
        "python_version": platform.python_version(),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
    }


def stages(run: Path) -> dict[str, str]:
    """Returns the folder of each stage of published results, by name; {} where it is not known.

    Raises:
      UserError: the run's stages.json is damaged.
    """
    return read_json(run / STAGES, {str: str}, "run the run's command again", default={})


class History:
    """What a workdir's history says of who made its artefacts.

    Raises:
      UserError: a line of the history is damaged.
    """

    def __init__(self, workdir: Path):
        self._records: dict[str, list[Mapping[str, Any]]] = {}  # by the stage's folder
        for record in history.read(workdir):
            self._records.setdefault(record["stage"], []).append(record)

    def of(self, run: Path) -> dict[str, Any]:
        """Returns `FACTS` of a run as text: all values that its stages were made with.

        "stages" are the run's stages: name -> folder. {} if they are unknown.

        Raises:
          UserError: the run's stages.json is damaged.
        """
        folders = stages(run)
        if not folders:
            return {}
        records: list[Mapping[str, Any]] = []
        for folder in folders.values():
            records.extend(self._records.get(folder, ()))
        found: dict[str, Any] = {}
        for name in FACTS:
            found[name] = joined(record.get(name) for record in records)
        return found | {"stages": folders}


def joined(values: Iterable[Any]) -> str | None:
    """Joins different values to one text, sorted; None if none is known."""
    known = {str(value) for value in values if value is not None}
    return ", ".join(sorted(known)) or None
