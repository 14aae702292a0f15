"""Lists what lies in a workdir that no given config asks for any more, and removes it on request.

    python tools/clean.py runs/study --config=configs/quickstart.py --sweep=configs/scaling.py
    python tools/clean.py runs/mine --config=mine.py --config.num_seeds=5 --config=mine.py --delete

Each --config=FILE is a run and each --sweep=FILE a sweep that still needs its stages; the
--config.FIELD=VALUE after it are its own, as on its command line. Listed are stages of other
configs, of other code and of other versions of libraries, each with its size and age; checkpoints
of what is finished; what was set aside as damaged or cut off; claims of dead runs; compiled
programs. Nothing is removed without --delete. Results, tables, reports and the history stay, and so
does what is not recognised and what a living run is making. Give the configs of all runs that go
on in the workdir: a run reads stages that it does not claim.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from subtransfer.config import reading as configuration
from subtransfer.config import sweep
from subtransfer.experiment.graph import Experiment
from subtransfer.launch import split_overrides
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.store import cleaning
from subtransfer.store.files import user_path

_USAGE = "python tools/clean.py WORKDIR... --config=FILE [--config.FIELD=VALUE]... [--delete]"


class _Asked:
    """A run or a sweep that still needs its stages: a config file and its overrides."""

    def __init__(self, kind: str, file: str):
        self.kind, self.file, self.arguments = kind, file, []

    def stages(self, workdir: Path) -> set[str]:
        """The folders of its stages in a workdir."""
        _, overrides = split_overrides(self.arguments)
        if self.kind == "--config":
            return _stages(configuration.load(self.file, overrides), workdir)
        expanded = sweep.expand(self.file, overrides)
        out: set[str] = set()
        for member in expanded.members:
            out |= _stages(expanded.config(member), workdir)
        return out


def _stages(config: configuration.Config, workdir: Path) -> set[str]:
    # No key holds the devices, so that a plan for those that are not here asks for the same.
    experiment = Experiment(config, workdir, sharding.plan_mesh(**config.mesh))
    return {stage.folder for stage in experiment.plan.values()}


def read(arguments: Sequence[str]) -> tuple[list[Path], list[_Asked], bool]:
    """Reads the command line.

    Returns:
      The workdirs, what is asked for, and whether to delete.

    Raises:
      UserError: something is missing, unknown or in the wrong place.
    """
    workdirs: list[Path] = []
    asked: list[_Asked] = []
    delete = False
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, _, value = argument.partition("=")
        if argument.startswith("--config."):
            if not asked:
                raise UserError(f"{argument} belongs to no config: write it after its --config.")
            if not value and rest and not rest[0].startswith("--"):
                argument = f"{argument}={rest.pop(0)}"
            asked[-1].arguments.append(argument)
        elif name in ("--config", "--sweep"):
            if "=" not in argument:
                value = rest.pop(0) if rest else ""
            asked.append(_Asked(name, value))
        elif argument == "--delete":
            delete = True
        elif argument.startswith("-"):
            raise UserError(f"There is no flag {argument}: {_USAGE}.")
        else:
            workdirs.append(user_path(argument))
    if not workdirs:
        raise UserError(f"No workdir is given: {_USAGE}.")
    if not asked:
        raise UserError(
            "No config is given, so that nothing would be asked for any more: name those whose "
            "stages are to stay, with --config=FILE or --sweep=FILE."
        )
    for workdir in workdirs:
        if "://" in str(workdir) or ":/" in str(workdir):
            raise UserError(
                f"{workdir} is no folder: clean the folder of this machine that a run works in, or "
                "a mount; what lies in the bucket itself goes with the store's own command, such "
                "as gcloud storage rm."
            )
        if not workdir.is_dir():
            raise UserError(f"There is no workdir {workdir}: give the folder of a run.")
    return workdirs, asked, delete


def clean(arguments: Sequence[str]) -> None:
    """Does what the command line asks for."""
    workdirs, asked, delete = read(arguments)
    for workdir in workdirs:
        wanted: set[str] = set()
        for one in asked:
            wanted |= one.stages(workdir)
        found = cleaning.look(workdir, wanted)
        _show(workdir, found)
        if not delete:
            continue
        foreign = [name for name in found.at_work if name not in wanted]
        if foreign:
            raise UserError(
                f"A run is at work in {workdir} that no given config describes (it makes "
                f"{foreign[0]}): give its config, too, or wait for its end."
            )
        _delete(workdir, found)
    if not delete:
        print("Nothing was removed: add --delete to remove what is listed.")


def _delete(workdir: Path, found: cleaning.Findings) -> None:
    gone = freed = 0
    for leftover, removed in cleaning.remove(workdir, found.leftovers):
        if removed:
            gone, freed = gone + 1, freed + leftover.size
        else:
            print(f"{leftover.path} stays: it is in use since")
    print(f"{gone} of {len(found.leftovers)} removed, {_size(freed)} freed.")


def _show(workdir: Path, found: cleaning.Findings) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a log file has room
    table = Table("what", "name", "size", "age", "why", title=str(workdir), box=None)
    now = time.time()
    for leftover in found.leftovers:
        table.add_row(
            leftover.kind,
            os.path.relpath(leftover.path, workdir),
            _size(leftover.size),
            _age(now - leftover.changed),
            leftover.why,
        )
    console.print(table)
    total = sum(leftover.size for leftover in found.leftovers)
    print(f"{len(found.leftovers)} can go, {_size(total)}; {_size(found.kept)} stay.")
    for name in found.at_work:
        print(f"A living run is making {name}.")
    if found.unknown:
        print(f"Not recognised and left alone: {', '.join(found.unknown)}.")


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if {"--help", "-h"} & set(given):
        print(__doc__)
        return 0
    return exit_status(lambda: clean(given))


if __name__ == "__main__":
    sys.exit(main())
