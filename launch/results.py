"""Brings the results of a launch from its workdir into a folder of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from launch.jobs import Launch
from subtransfer.runtime.errors import UserError

# Tables and reports of a sweep's members, and the logs of its stages; a single run's lie in the
# workdir itself.
FOLDERS = ("runs", "logs")


def commands(launch: Launch, into: Path) -> list[list[str]]:
    """What copies results out of a bucket."""
    source = f"gs://{launch.workdir.source}/{launch.workdir.folder}".rstrip("/")
    made = [
        ["gcloud", "storage", "rsync", source, str(into)]
    ]  # the files of the workdir itself, not its folders
    if launch.spread != "run":
        made += [
            ["gcloud", "storage", "rsync", "--recursive", f"{source}/{name}", str(into / name)]
            for name in FOLDERS
        ]
    return made


def copy(workdir: Path, into: Path) -> int:
    """Copies results out of a folder. Returns the number of files.

    Raises:
      UserError: there is no such folder here.
    """
    if not workdir.is_dir():
        raise UserError(
            f"There is no folder {workdir} on this machine: mount the share, and say where with --mounted=DIR."
        )
    files = [path for path in workdir.iterdir() if path.is_file() and not path.name.startswith(".")]
    files += [path for name in FOLDERS for path in (workdir / name).rglob("*") if path.is_file()]
    for path in files:
        target = into / path.relative_to(workdir)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return len(files)
