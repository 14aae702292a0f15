"""What a sweep costs beside its stages.

    python -m tools.bench_sweep [--members=1000] [--json=FILE]

Expansion: the members of two sweeps are validated and laid out; one of the quickstart (109 stages a
member), one of the size of a scaling study. Running: members whose stages only write a file are run
by one worker process, and the same stages again by a single process without a sweep; the difference
is what scheduling costs. What is not as it must be is an error.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from subtransfer.config.sweep import expand
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts
from subtransfer.sweeps.devices import DeviceShare
from subtransfer.sweeps.planning import plan
from subtransfer.sweeps.requests import StageRequest
from subtransfer.sweeps.runner import Runner
from tests import stub_sweep
from tools.peers import command

_MEMBERS = flags.DEFINE_integer("members", 1000, "Of each sweep.", lower_bound=100)
flags.DEFINE_string("json", None, "A file for the results.")

EXPANSION = 5.0  # seconds for all members
OVERHEAD = 0.020  # seconds a run
HEAD = """
from subtransfer.config import defaults
from subtransfer.config import product, seeds, vary

def get_config():
    config = defaults()
    {change}
    return config

def sweep():
    rates = [(1 + i) / 1e4 for i in range(10)]
    widths = vary("base.width", 16, 32, 48, 64, 96)
    return product(widths, vary("distill.learning_rate", *rates), seeds({seeds}))
"""
SWEEPS = {
    "quickstart": "pass",
    "study": "config.num_seeds = 1; arms = config.arms; "
    "arms.benign_teacher = arms.self_distilled = arms.unsanitized = arms.overt = False",
}


def _memory() -> float:
    """MiB that this process has had resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _processor(who: int = resource.RUSAGE_SELF) -> float:
    return sum(resource.getrusage(who)[:2])


def expansion(folder: Path, members: int) -> dict[str, Any]:
    """Measures seconds and memory of laying out each sweep.

    The first one comes after a small one, which imports and traces.
    """
    found = {}
    for name, change in {"": "pass", **SWEEPS}.items():
        path = folder / "config.py"
        path.write_text(HEAD.format(change=change, seeds=members // 50 if name else 1))
        gc.collect()
        before, begin, cpu = _memory(), time.perf_counter(), _processor()
        made = plan(expand(str(path), {}), folder / "nowhere", 1)
        seconds, cpu = time.perf_counter() - begin, _processor() - cpu
        if name:
            found[name] = {
                "members": len(made.members),
                "stages": sum(map(len, made.stages)),
                "different": len(made.nodes),
                "seconds": round(seconds, 2),
                "processor_seconds": round(cpu, 2),
                "MiB": round(_memory() - before),
            }
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    return found


def running(folder: Path, members: int) -> dict[str, Any]:
    """Seconds a run of a sweep of stub stages, and of the same stages without a sweep."""
    folder.mkdir()
    options = {"members": members, "workers": 1, "seconds": 0.0, "lease": 60}
    workdirs = [folder / "alone", folder / "sweep"]
    for workdir in workdirs:
        workdir.mkdir()
    made = stub_sweep.plan(members)
    task, begin = stub_sweep.task(options, workdirs[0]), time.perf_counter()
    with artifacts.Store(workdirs[0]) as store:
        for at, member in enumerate(made.members):
            for node in (made.nodes[n] for n in made.stages[at]):
                one = task(StageRequest(member.name, member.overrides, node.name, node.folder))
                store.stage(node.name, one.key, one.build, log=lambda line: None)
            results, report = (
                workdirs[0] / made.node(at, name).folder for name in ("results", "report")
            )
            stub_sweep.publish(results, report, workdirs[0] / "runs" / member.name, {})
    alone = time.perf_counter() - begin

    def worker(channel: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "tests.stub_sweep",
            "work",
            str(workdirs[1]),
            json.dumps(options | {"channel": channel}),
        ]

    before, cpu, begin = _memory(), _processor(), time.perf_counter()
    runner = Runner(
        made, workdirs[1], [DeviceShare()], worker, publish=stub_sweep.publish, retries=0, log=print
    )
    runner.run()
    seconds = time.perf_counter() - begin
    if runner.schedule.failures or runner.events["computed"] != len(made.nodes):
        raise UserError("Not every stage of the stub sweep was made: see its logs.")
    found = {
        "members": members,
        "stages": len(made.nodes),
        "ms_a_run": round(1e3 * seconds / members, 2),
        "ms_a_run_without_a_sweep": round(1e3 * alone / members, 2),
        "overhead_ms_a_run": round(1e3 * (seconds - alone) / members, 2),
        "processor_ms_a_run_of_the_command": round(1e3 * (_processor() - cpu) / members, 2),
        "MiB": round(_memory() - before),
    }
    print(f"running: {json.dumps(found)}", flush=True)
    return found


def run() -> dict[str, Any]:
    """Both; returns what --json writes.

    Raises:
      UserError: a limit is not kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "running": running(Path(folder) / "w", _MEMBERS.value),
            **expansion(Path(folder), _MEMBERS.value),
        }
    slow = [
        name
        for name in SWEEPS
        if found[name]["processor_seconds"] > EXPANSION * _MEMBERS.value / 1000
    ]
    if slow:
        raise UserError(
            f"Expansion of {', '.join(slow)} took more than {EXPANSION:g} s for 1,000 members."
        )
    if found["running"]["overhead_ms_a_run"] > 1e3 * OVERHEAD:
        raise UserError(f"A run's overhead is above {1e3 * OVERHEAD:g} ms.")
    return found


if __name__ == "__main__":
    sys.exit(command.main(sys.argv, run))
