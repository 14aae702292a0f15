"""The page, drawn only from the results' files."""

from __future__ import annotations

from pathlib import Path

from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.report import run_page


@reads()
def report(out: Path, context: Context, *, results: str) -> None:
    """Writes report.html of the results of the stage `results`."""
    run_page.write_report(context.input(results), out)
