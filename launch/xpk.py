"""xpk workloads on GKE: JobSets that Kueue admits, on one TPU slice or several.

There is one command a job; xpk writes the JobSet.
The JobSet starts all hosts again when one ends with status 75 or is killed, and fails on every
other status. On GKE each container finds the others by the variables that the TPU webhook sets,
which JAX reads (`--distributed=auto`). Flags:
https://github.com/AI-Hypercomputer/xpk/blob/main/docs/usage/workloads.md
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import yaml

from launch import clients, jobs
from launch.jobs import Job, Submission
from subtransfer.runtime.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this engine."""
    parser.add_argument(
        "--cluster", required=True, help="Name of the GKE cluster, made by `xpk cluster create`."
    )
    parser.add_argument("--project", required=True, help="Google Cloud project.")
    parser.add_argument("--zone", required=True, help="Of the cluster.")
    parser.add_argument(
        "--image", required=True, help="Container image, built from launch/Dockerfile."
    )
    parser.add_argument(
        "--storage",
        required=True,
        help="Storage attached to the cluster by xpk, which --workdir lies in.",
    )
    parser.add_argument(
        "--priority", default="medium", choices=["very-low", "low", "medium", "high", "very-high"]
    )
    # xpk's node pools have machines of 4 chips, also for 8 chips of v5e and v6e.
    parser.set_defaults(host_chips=4)
    parser.add_argument(
        "--max_restarts", type=jobs.positive, default=100, help="Of a job (default: 100)."
    )


def check(options: argparse.Namespace, submission: Submission) -> None:
    """Refuses what xpk cannot run."""
    jobs.check_image(submission)
    if submission.machine.kind != "tpu":
        raise UserError(
            "xpk is used for TPUs here: run GPU jobs on Kubernetes with the engine skypilot and "
            "--infra=k8s."
        )
    if submission.workdir.kind != "path":
        raise UserError(
            "xpk mounts storages, not URLs: give --workdir as a path below the mount point of "
            "--storage."
        )


def render(options: argparse.Namespace, submission: Submission) -> dict[str, str]:
    """Returns the files by name: none, as xpk takes flags."""
    return {}


def commands(options: argparse.Namespace, submission: Submission, folder: Path) -> list[list[str]]:
    """Returns the commands that submit the jobs."""
    return [_create(options, submission, job) for job in submission.jobs]


def _create(options: argparse.Namespace, submission: Submission, job: Job) -> list[str]:
    program = [
        "python",
        "-m",
        "subtransfer.launch",
        *job.arguments,
        *jobs.processes(submission.machine),
    ]
    return [
        "xpk",
        "workload",
        "create",
        f"--workload={job.name}",
        *_where(options),
        f"--tpu-type={submission.machine.google}",
        f"--num-slices={submission.machine.slices}",
        f"--docker-image={options.image}",
        f"--storage={options.storage}",
        f"--priority={options.priority}",
        f"--max-restarts={options.max_restarts}",
        f"--restart-on-exit-codes={jobs.RESTART}",
        "--termination-grace-period-seconds=120",  # a dispatch under way, and a checkpoint
        "--no-use-parallel-containers",  # one process a host, whatever the generation
        f"--command=exec {shlex.join(program)}",  # exec: xpk's shell passes SIGTERM on to its child
    ]


def _where(options: argparse.Namespace) -> list[str]:
    return [
        f"--cluster={options.cluster}",
        f"--project={options.project}",
        f"--zone={options.zone}",
    ]


def validate(options: argparse.Namespace, submission: Submission, folder: Path) -> list[str]:
    """Lets xpk's dry run write each JobSet, and reads it back; returns a line a job."""
    lines = []
    for job, command in zip(submission.jobs, commands(options, submission, folder), strict=True):
        manifest = folder / f"{job.name}.jobset.yaml"
        clients.run(
            options,
            "xpk",
            [*command, "--dry-run", "--skip-validation", f"--output-manifest-file={manifest}"],
        )
        lines.append(f"{job.name}: {_checked(manifest, submission)}")
    return lines


def _checked(manifest: Path, submission: Submission) -> str:
    """What a JobSet asks for.

    Raises:
      UserError: not what was meant.
    """
    jobset = yaml.safe_load(manifest.read_text())
    [replicated] = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    slices, hosts = replicated["replicas"], spec["parallelism"]
    codes = [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"]]
    machine = submission.machine
    restarts = all(jobs.RESTART in of_rule for of_rule in codes)
    if not restarts or (slices, slices * hosts) != (machine.slices, machine.hosts):
        raise UserError(
            f"{manifest} is not what was meant: {slices} slices of {hosts} hosts, restarts on "
            f"{codes}."
        )
    return f"{jobset['kind']} of {slices} x {hosts} hosts, restarted on status {jobs.RESTART}"


def missing(options: argparse.Namespace) -> str:
    """Says what submitting needs and this machine lacks, or ""."""
    return clients.google_missing() or clients.kubernetes_missing()


def status(options: argparse.Namespace, submission: Submission) -> list[list[str]]:
    """Returns commands that print the jobs' states."""
    return [["xpk", "workload", "list", *_where(options), f"--filter-by-job={submission.name}"]]


def teardown(options: argparse.Namespace, submission: Submission) -> list[list[str]]:
    """Returns commands that end the jobs."""
    return [
        ["xpk", "workload", "delete", *_where(options), f"--workload={job.name}", "--force"]
        for job in submission.jobs
    ]
