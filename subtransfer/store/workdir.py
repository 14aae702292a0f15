"""What lies where in a workdir, besides the artefacts themselves."""

from __future__ import annotations

from pathlib import Path

STEPS = ".steps"  # the step checkpoints of unfinished stages
JOURNALS = "journals"  # among them: what stages without steps have done so far
CLAIMS = ".claims"  # who is making what
HISTORY = "stages"  # what was computed: a file for each process that computed something
MEMBERS = "runs"  # the results of a sweep's members
SWEEP = "sweep.json"  # a sweep's own account of its members


def steps_folder(artifact: Path) -> Path:
    """Where the step checkpoints lie that belong to an unfinished artefact."""
    return artifact.parent / STEPS / artifact.name


def opened(workdir: Path) -> bool:
    """Whether a store has opened this folder as a workdir.

    A library that misses the folder may make another in its place; that one holds no claims.
    Inodes would not tell: a mounted bucket may number them anew.
    """
    return (workdir / CLAIMS).is_dir()
