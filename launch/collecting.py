"""Brings the results of jobs from their workdir into a folder of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from launch.jobs import Submission
from subtransfer.runtime.errors import UserError

# Tables and reports of a sweep's members, and the logs of its stages; a single run's lie in the
# workdir itself.
FOLDERS = ("runs", "logs")


def commands(submission: Submission, into: Path) -> list[list[str]]:
    """Returns the commands that copy results out of a bucket."""
    source = f"gs://{submission.workdir.source}/{submission.workdir.folder}".rstrip("/")
    rsync = ["gcloud", "storage", "rsync"]
    made = [[*rsync, source, str(into)]]  # the files of the workdir itself, not its folders
    if submission.spread != "run":
        for name in FOLDERS:
            made.append([*rsync, "--recursive", f"{source}/{name}", str(into / name)])
    return made


def copy(workdir: Path, into: Path) -> int:
    """Copies results out of a folder; returns the number of files.

    Raises:
      UserError: there is no such folder here.
    """
    if not workdir.is_dir():
        raise UserError(
            f"There is no folder {workdir} on this machine: mount the share, and say where with "
            "--mounted=DIR."
        )
    paths = [path for path in workdir.iterdir() if not path.name.startswith(".")]
    for name in FOLDERS:
        paths.extend((workdir / name).rglob("*"))
    files = [path for path in paths if path.is_file()]
    for path in files:
        target = into / path.relative_to(workdir)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return len(files)
