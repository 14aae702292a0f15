"""Slurm, by submitit: one array of jobs from one JSON file.

`--local` runs the same jobs on this machine, without Slurm.

Slurm warns a job with SIGUSR2 before its time ends or it is preempted: the program saves, ends with
status 75, and the job is put back into the queue. What runs in submitit's environment is
`inside/slurm_jobs.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from launch import clients, jobs
from launch.jobs import Submission
from subtransfer.runtime.errors import UserError

FILE = "jobs.json"


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 < hours < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and finite")
    return hours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this engine."""
    parser.add_argument("--partition", help="Default: the cluster's.")
    parser.add_argument("--account", help="Default: yours.")
    parser.add_argument(
        "--hours",
        type=_hours,
        default=24.0,
        help="Wall time of one try; the next goes on (default: 24).",
    )
    parser.add_argument("--cpus", type=jobs.positive, help="Cores of a process (default: 8).")
    parser.add_argument("--memory", type=jobs.positive, help="GB of a host (default: 64).")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Any other option of sbatch.",
    )
    parser.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="Shell line before a job: module load.",
    )
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="Python with subtransfer, on the nodes (default: this one).",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="Run on this machine by submitit's local executor, and wait.",
    )


def check(options: argparse.Namespace, submission: Submission) -> None:
    """Refuses what Slurm cannot run."""
    if submission.machine.kind == "tpu":
        raise UserError("Slurm has no TPUs: use the engines skypilot, queued or xpk.")
    if submission.workdir.kind != "path":
        raise UserError(
            "Slurm's nodes mount nothing by themselves: give --workdir as a path that all nodes "
            "see."
        )
    if options.local and submission.machine.hosts > 1:
        raise UserError(f"--local is this machine: --nodes={submission.machine.hosts} are more.")
    of_slurm = ("partition", "account", "cpus", "memory", "sbatch")
    if options.local and (given := [name for name in of_slurm if getattr(options, name)]):
        raise UserError(f"--{given[0]} is for Slurm, and --local runs without it: leave one out.")
    if any("=" not in option for option in options.sbatch):
        raise UserError("--sbatch takes KEY=VALUE, such as --sbatch=qos=high.")


def render(options: argparse.Namespace, submission: Submission) -> dict[str, str]:
    """Returns the files by name."""
    machine = submission.machine
    # Where a job has several hosts, JAX wants a process for each GPU on Slurm.
    tasks = max(machine.size, 1) if machine.hosts > 1 else 1
    parameters: dict[str, Any] = {
        "name": submission.name,
        "timeout_min": max(round(options.hours * 60), 1),
        "nodes": machine.hosts,
        "tasks_per_node": tasks,
        "gpus_per_node": machine.size,
        "local_setup" if options.local else "slurm_setup": options.setup,
    }
    if not options.local:
        parameters |= {
            "cpus_per_task": options.cpus or 8,
            "mem_gb": options.memory or 64,
            "slurm_partition": options.partition,
            "slurm_account": options.account,
            "slurm_signal_delay_s": 180,  # a dispatch under way, and a checkpoint
            "slurm_additional_parameters": {
                "requeue": True,
                **dict(option.split("=", 1) for option in options.sbatch),
            },
        }
    parameters = {name: value for name, value in parameters.items() if value}
    described = []
    for job in submission.jobs:
        flags = (*job.arguments, *jobs.processes(machine))
        command = [options.python, "-m", "subtransfer.launch", *flags]
        described.append({"name": job.name, "member": job.member, "command": command})
    content = {
        "cluster": "local" if options.local else "slurm",
        "parameters": parameters,
        "restart": jobs.RESTART,
        "jobs": described,
    }
    return {FILE: json.dumps(content, indent=2) + "\n"}


def _inside(verb: str, folder: Path) -> list[str]:
    """The command that does something in submitit's environment."""
    script = clients.SCRIPTS.relative_to(jobs.ROOT) / "slurm_jobs.py"
    return ["python", str(script), verb, str(folder / FILE)]


def commands(options: argparse.Namespace, submission: Submission, folder: Path) -> list[list[str]]:
    """Returns the command that submits the file of `render`.

    It is run from the repository's root in submitit's environment.
    """
    return [_inside("submit", folder)]


def validate(options: argparse.Namespace, submission: Submission, folder: Path) -> list[str]:
    """Lets submitit itself make the sbatch file; returns what it says."""
    return clients.run(options, "slurm", _inside("validate", folder), cwd=jobs.ROOT).splitlines()


def missing(options: argparse.Namespace) -> str:
    """Says what submitting needs and this machine lacks, or ""."""
    return "" if options.local else clients.slurm_missing()


def status(options: argparse.Namespace, submission: Submission) -> list[list[str]]:
    """Returns commands that print the jobs' states."""
    if options.local:
        raise UserError(
            "--local waits for its jobs and says how they end: there is nothing to ask for "
            "afterwards."
        )
    finished = ["sacct", f"--name={submission.name}", "-X", "-o", "JobID,State,Elapsed,ExitCode"]
    return [["squeue", "--me", f"--name={submission.name}"], finished]


def teardown(options: argparse.Namespace, submission: Submission) -> list[list[str]]:
    """Returns commands that end the jobs."""
    if options.local:
        raise UserError("--local waits for its jobs: end them with Ctrl-C.")
    return [["scancel", "--me", f"--name={submission.name}"]]
