"""What made a run's results: versions, sources and devices, as the workdir's history recorded them
for each of its stages.

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
from subtransfer.store import artifacts

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
    """The commit that the sources come from, with "-dirty" if files that git knows were changed;
    None outside of a checkout.

    Args:
      package: the package's folder; default: this one's.
    """
    package = package or Path(__file__).parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", package, *arguments],
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An environment inside of somebody else's checkout is not the package's own.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    revision, changed = (
        git("rev-parse", "HEAD"),
        git("status", "--porcelain", "--untracked-files=no", "--", "."),
    )
    return revision and revision + ("-dirty" if changed else "")


@functools.cache
def facts() -> dict[str, Any]:
    """`FACTS` of this process, as JSON types; the revision is the one that it began with."""
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
    """The folder of each stage of published results, by name; {} where it is not known.

    Raises:
      UserError: the run's stages.json is damaged.
    """
    return read_json(run / STAGES, {str: str}, "run the run's command again", default={})


class History:
    """What a workdir's history says of who made its artefacts."""

    def __init__(self, workdir: Path):
        self._makers: dict[str, list[Mapping[str, Any]]] = {}
        for record in artifacts.history(workdir):
            self._makers.setdefault(record["stage"], []).append(record)

    def of(self, run: Path) -> dict[str, Any]:
        """`FACTS` of a run as text (all values that its stages were made with), and "stages": name
        -> folder; {} if unknown.

        Raises:
          UserError: the run's stages.json is damaged.
        """
        own = stages(run)
        if not own:
            return {}
        makers = [record for folder in own.values() for record in self._makers.get(folder, ())]
        return {name: joined(record.get(name) for record in makers) for name in FACTS} | {
            "stages": own
        }


def joined(values: Iterable[Any]) -> str | None:
    """Different values as one text, sorted; None if none is known."""
    return ", ".join(sorted({str(value) for value in values if value is not None})) or None
