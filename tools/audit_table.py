"""Prints how well classifiers tell the trajectories of two policies apart, for several runs.

    python -m tools.audit_table WORKDIR...

A row for each run, model and two policies: the mean AUC over training seeds of what a classifier is
shown, with the lowest and the highest end of the seeds' intervals, as markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.analysis import audit, verdicts
from subtransfer.report import files, tables
from subtransfer.runtime.errors import exit_status
from subtransfer.store.files import user_path
from subtransfer.studies import runs

SHOWN = (audit.TEXT, audit.BEHAVIOUR)


def rows(workdirs: Iterable[Path]) -> list[list[str]]:
    """Returns the cells of the table.

    Args:
      workdirs: of finished runs, or of sweeps.

    Raises:
      UserError: one holds no results, or they are damaged.
    """
    out = []
    for workdir in workdirs:
        for folder in runs.folders(workdir):
            found = files.read_bundle(folder).get("audit", {"comparisons": [], "bound": 1.0})
            of_two: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
            for record in found["comparisons"]:
                whose = (verdicts.whose(record["first"]), verdicts.whose(record["second"]))
                which = (record["model"], *whose, record.get("own", ""))
                of_two.setdefault(which, []).append(record)
            for (model, first, second, own), records in of_two.items():
                two = f"{first}, {second}" + (f"; own of {own}" if own else "")
                cells = [_cell(records, shown, found["bound"]) for shown in SHOWN]
                out.append([folder.name, model, two, *cells])
    return out


def _cell(records: Sequence[Mapping[str, Any]], shown: str, bound: float) -> str:
    """The mean AUC over training seeds, and how far their intervals reach; bold above the bound."""
    known = [one for one in records if one["features"] == shown and one["auc"] is not None]
    if not known:
        return "too few"
    mean = float(np.mean([one["auc"] for one in known]))
    low, high = min(one["low"] for one in known), max(one["high"] for one in known)
    text = f"{mean:.2f}"
    return f"{f'**{text}**' if mean > bound else text} [{low:.2f}, {high:.2f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workdirs",
        nargs="+",
        type=user_path,
        metavar="WORKDIR",
        help="of finished runs, or of a sweep",
    )
    workdirs = parser.parse_args(arguments).workdirs
    heading = ["run", "model", "whose trajectories"]
    heading += [f"AUC of {verdicts.SHOWN[shown]}" for shown in SHOWN]
    return exit_status(lambda: print(tables.markdown(heading, rows(workdirs))))


if __name__ == "__main__":
    sys.exit(main())
