"""`subtransfer.launch --sweep`: from a config file to the results of all members."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console

from subtransfer.config.sweep import expand
from subtransfer.experiment.publishing import publish
from subtransfer.store import history
from subtransfer.store.files import os_errors
from subtransfer.studies import sweep_page, table
from subtransfer.sweeps import devices, show
from subtransfer.sweeps.planning import plan as make_plan
from subtransfer.sweeps.runner import Runner, finished


def run(
    config_file: str,
    overrides: dict[str, str],
    workdir: Path | None,
    console: Console,
    *,
    workers: int,
    retries: int,
    lease: float,
    dry_run: bool,
) -> int:
    """Expands, shows and runs a sweep.

    Args:
      config_file: with a get_config() and a sweep().
      overrides: dotted config field -> text; they apply to all members.
      workdir: of all members; default: runs/NAME.
      console: where the plan and the end are printed.
      workers: worker processes of this machine.
      retries: how often a stage is tried again whose failure may go away.
      lease: seconds of silence after which another process may take over.
      dry_run: only prints the plan.

    Returns:
      The exit status: 0, or 1 if members have failed.

    Raises:
      UserError: nothing was begun, or the workdir cannot be used.
    """
    import jax

    # This process must not hold the devices that its workers need.
    jax.config.update("jax_platforms", "cpu")
    shares, count, in_words = devices.shares(workers)
    begin = time.monotonic()
    sweep = expand(config_file, overrides)
    workdir = workdir or Path("runs") / sweep.base.name
    plan = make_plan(sweep, workdir, count, to_run=not dry_run)
    rates = show.Rates.of(history.read(workdir))
    show.print_plan(plan, finished(plan, workdir), rates, workdir, in_words, workers, console)
    if dry_run:
        return 0

    with os_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    settings = {
        "config": str(config_file),
        "overrides": overrides,
        "workdir": str(workdir),
        "lease": lease,
        "stall": sweep.base.checkpoint.stall_seconds,
    }

    def worker(channel: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "subtransfer.sweeps.worker",
            json.dumps(settings | {"channel": channel}),
        ]

    with os_errors(workdir):
        runner = Runner(
            plan,
            workdir,
            shares,
            worker,
            publish=publish,
            retries=retries,
            log=lambda line: print(line, flush=True),
        )
        runner.run()
    failures = runner.schedule.failures
    show.print_end(plan, failures, runner.events, time.monotonic() - begin, workdir, console)
    if runner.published:
        console.print(
            f"Table: {table.write(workdir)}; page: {sweep_page.write(workdir)}", soft_wrap=True
        )
    return 1 if failures else 0
