"""`subtransfer.launch --sweep`: from a config file to the results of all members."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console

from subtransfer.config.sweep import expand
from subtransfer.experiment.publishing import publish
from subtransfer.store import artifacts
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
    """Expands, shows and runs a sweep; returns the exit status: 0, or 1 if members have failed.

    Raises:
      UserError: nothing was begun, or the workdir cannot be used.
    """
    import jax

    jax.config.update(
        "jax_platforms", "cpu"
    )  # in this process, which must not hold what its workers need
    shares, count, in_words = devices.shares(workers)
    begin = time.monotonic()
    sweep = expand(config_file, overrides)
    workdir = workdir or Path("runs") / sweep.base.name
    plan = make_plan(sweep, workdir, count, to_run=not dry_run)
    rates = show.Rates.of(artifacts.history(workdir))
    show.print_plan(plan, finished(plan, workdir), rates, workdir, in_words, workers, console)
    if dry_run:
        return 0

    with artifacts.os_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    settings = {
        "config": str(config_file),
        "overrides": overrides,
        "workdir": str(workdir),
        "lease": lease,
    }

    def worker(channel: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "subtransfer.sweeps.worker",
            json.dumps(settings | {"channel": channel}),
        ]

    with artifacts.os_errors(workdir):
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
