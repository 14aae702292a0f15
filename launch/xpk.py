"""xpk workloads on GKE: JobSets that Kueue admits, on one TPU slice or several. One command a job;
xpk writes the JobSet.

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
from launch.jobs import Job, Launch
from subtransfer.runtime.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    parser.set_defaults(
        host_chips=4
    )  # xpk's node pools have machines of 4 chips, also for 8 chips of v5e and v6e
    parser.add_argument(
        "--max_restarts", type=jobs.positive, default=100, help="Of a job (default: 100)."
    )


def check(options: argparse.Namespace, launch: Launch) -> None:
    """Refuses what xpk cannot run."""
    jobs.check_image(launch)
    if launch.machine.kind != "tpu":
        raise UserError(
            "xpk is used for TPUs here: run GPU jobs on Kubernetes with the engine skypilot and --infra=k8s."
        )
    if launch.workdir.kind != "path":
        raise UserError(
            "xpk mounts storages, not URLs: give --workdir as a path below the mount point of --storage."
        )


def render(options: argparse.Namespace, launch: Launch) -> dict[str, str]:
    """Files by name: none, as xpk takes flags."""
    return {}


def commands(options: argparse.Namespace, launch: Launch, folder: Path) -> list[list[str]]:
    """What submits the jobs."""
    return [_create(options, launch, job) for job in launch.jobs]


def _create(options: argparse.Namespace, launch: Launch, job: Job) -> list[str]:
    program = [
        "python",
        "-m",
        "subtransfer.launch",
        *job.arguments,
        *jobs.processes(launch.machine),
    ]
    return [
        "xpk",
        "workload",
        "create",
        f"--workload={job.name}",
        *_where(options),
        f"--tpu-type={launch.machine.google}",
        f"--num-slices={launch.machine.slices}",
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


def validate(options: argparse.Namespace, launch: Launch, folder: Path) -> list[str]:
    """Xpk's dry run writes each JobSet, which is read back. Returns a line a job."""
    lines = []
    for job, command in zip(launch.jobs, commands(options, launch, folder), strict=True):
        manifest = folder / f"{job.name}.jobset.yaml"
        clients.run(
            options,
            "xpk",
            [*command, "--dry-run", "--skip-validation", f"--output-manifest-file={manifest}"],
        )
        lines.append(f"{job.name}: {_checked(manifest, launch)}")
    return lines


def _checked(manifest: Path, launch: Launch) -> str:
    """What a JobSet asks for.

    Raises:
      UserError: not what was meant.
    """
    jobset = yaml.safe_load(manifest.read_text())
    [replicated] = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    slices, hosts = replicated["replicas"], spec["parallelism"]
    codes = [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"]]
    if (slices, slices * hosts) != (launch.machine.slices, launch.machine.hosts) or any(
        jobs.RESTART not in c for c in codes
    ):
        raise UserError(
            f"{manifest} is not what was meant: {slices} slices of {hosts} hosts, restarts on {codes}."
        )
    return f"{jobset['kind']} of {slices} x {hosts} hosts, restarted on status {jobs.RESTART}"


def missing(options: argparse.Namespace) -> str:
    """What submitting needs and this machine lacks, or ""."""
    return clients.google_missing() or clients.kubernetes_missing()


def status(options: argparse.Namespace, launch: Launch) -> list[list[str]]:
    """Commands that print the jobs' states."""
    return [["xpk", "workload", "list", *_where(options), f"--filter-by-job={launch.name}"]]


def teardown(options: argparse.Namespace, launch: Launch) -> list[list[str]]:
    """Commands that end the jobs."""
    return [
        ["xpk", "workload", "delete", *_where(options), f"--workload={job.name}", "--force"]
        for job in launch.jobs
    ]
