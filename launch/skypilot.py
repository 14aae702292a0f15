"""SkyPilot managed jobs: Cloud TPU slices, GPU clouds and Kubernetes. One YAML file a job.

SkyPilot watches each job from a controller of its own, starts it again elsewhere when its machines
are taken away, and when it ends with status 75. Fields:
https://docs.skypilot.co/en/latest/reference/yaml-spec.html
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import yaml

from launch import clients, jobs, workdirs
from launch.jobs import Job, Submission
from subtransfer.runtime.errors import UserError

VENV = "$HOME/subtransfer-venv"  # made by setup_machine.sh
EXTRAS = {"tpu": "tpu", "gpu": "cuda", "cpu": ""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this engine."""
    parser.add_argument(
        "--infra",
        default="gcp",
        help="Where: CLOUD[/REGION[/ZONE]] or k8s[/CONTEXT] (default: gcp).",
    )
    parser.add_argument(
        "--spot",
        action="store_true",
        help="Machines that may be taken away, at a fraction of the price.",
    )
    parser.add_argument("--queued", action="store_true", help="Cloud TPUs as queued resources.")
    parser.add_argument(
        "--image", help="Container image instead of the setup script; needed on Kubernetes."
    )
    parser.add_argument(
        "--disk", type=jobs.positive, default=100, help="GiB of the machines' disks (default: 100)."
    )


def check(options: argparse.Namespace, submission: Submission) -> None:
    """Refuses what SkyPilot cannot run."""
    kubernetes = options.infra.split("/")[0] in ("k8s", "kubernetes")
    if submission.machine.slices > 1:
        raise UserError(
            "SkyPilot starts single TPU slices: use the engines queued or xpk for --slices."
        )
    if submission.workdir.kind == "path":
        raise UserError(
            "A path is a disk that goes with its machine: give gs://, nfs:// or, on Kubernetes, "
            "volume://."
        )
    if submission.workdir.kind == "volume" and not kubernetes:
        raise UserError(
            "volume:// is of Kubernetes: give --infra=k8s, or a gs:// or nfs:// workdir."
        )
    if submission.workdir.kind == "nfs" and kubernetes:
        raise UserError(
            "Pods mount no NFS share by themselves: make a volume of it (docs/cloud.md) and give "
            "volume://NAME."
        )
    if kubernetes and not options.image:
        raise UserError(
            "On Kubernetes, SkyPilot needs --image=IMAGE: build launch/Dockerfile (docs/cloud.md)."
        )
    if options.queued and (
        submission.machine.kind != "tpu" or options.infra.split("/")[0] != "gcp"
    ):
        raise UserError("--queued is of Cloud TPUs: leave it out, or give --infra=gcp and a TPU.")


def render(options: argparse.Namespace, submission: Submission) -> dict[str, str]:
    """Returns the files by name."""
    return {
        f"{job.name}.yaml": _yaml(_task(options, submission, job), job) for job in submission.jobs
    }


def _task(options: argparse.Namespace, submission: Submission, job: Job) -> dict[str, Any]:
    machine, workdir = submission.machine, submission.workdir
    resources: dict[str, Any] = {
        "infra": options.infra,
        "use_spot": options.spot,
        "disk_size": options.disk,
        "job_recovery": {
            "max_restarts_on_errors": jobs.ERRORS,
            "recover_on_exit_codes": [jobs.RESTART],
        },
    }
    if machine.kind == "tpu":
        resources["accelerators"] = f"tpu-{machine.google}:1"
        if options.infra.split("/")[0] == "gcp":
            resources["accelerator_args"] = {"runtime_version": machine.runtime}
            if options.queued:
                resources["accelerator_args"]["gcp_queued_resource"] = True
    elif machine.kind == "gpu":
        resources["accelerators"] = f"{machine.name}:{machine.size}"
    if options.image:
        resources["image_id"] = f"docker:{options.image}"
    task: dict[str, Any] = {
        "name": job.name,
        "workdir": ".",
        "num_nodes": machine.nodes,
        "resources": resources,
    }
    if workdir.kind == "gs":
        task["file_mounts"] = {
            workdirs.MOUNT: {"source": f"gs://{workdir.source}", "mode": "MOUNT"}
        }
    elif workdir.kind == "volume":
        task["volumes"] = {workdirs.MOUNT: workdir.source}
    setup = [workdirs.mount_nfs(workdir)] if workdir.kind == "nfs" else []
    if not options.image:
        setup.append(f"bash launch/setup_machine.sh {EXTRAS[machine.kind]}".rstrip())
    if setup:
        task["setup"] = "set -e\n" + "\n".join(setup) + "\n"
    task["run"] = _run(options, submission, job)
    return task


def _run(options: argparse.Namespace, submission: Submission, job: Job) -> str:
    python = "python" if options.image else f'"{VENV}/bin/python"'
    flags = [shlex.quote(argument) for argument in job.arguments]
    before = ""
    if submission.machine.kind == "tpu":
        flags += jobs.processes(submission.machine)
    elif submission.machine.nodes > 1:
        before = 'head=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")\n'
        flags += [
            f'--coordinator="$head:{jobs.COORDINATOR_PORT}"',
            '--num_processes="$SKYPILOT_NUM_NODES"',
            '--process_id="$SKYPILOT_NODE_RANK"',
        ]
    # exec lets SIGTERM reach the program.
    return before + " \\\n  ".join([f"exec {python} -m subtransfer.launch", *flags]) + "\n"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


def _represented(dumper: _Dumper, text: str) -> Any:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represented)


def _yaml(task: dict[str, Any], job: Job) -> str:
    head = f"# Member {job.member} of the sweep.\n" if job.member else ""
    return head + yaml.dump(task, Dumper=_Dumper, sort_keys=False, width=1000)


def commands(options: argparse.Namespace, submission: Submission, folder: Path) -> list[list[str]]:
    """Returns what submits the files of `render`, run from the repository's root."""
    return [
        ["sky", "jobs", "launch", "--yes", "--detach-run", str(folder / f"{job.name}.yaml")]
        for job in submission.jobs
    ]


def validate(options: argparse.Namespace, submission: Submission, folder: Path) -> list[str]:
    """Lets SkyPilot's own parser read every file; returns a line a job."""
    files = [str(folder / f"{job.name}.yaml") for job in submission.jobs]
    return clients.python(
        options, "skypilot", clients.SCRIPTS / "check_skypilot.py", *files
    ).splitlines()


def missing(options: argparse.Namespace) -> str:
    """Says what submitting needs and this machine lacks, or ""."""
    if options.infra.split("/")[0] in ("k8s", "kubernetes"):
        return clients.kubernetes_missing()
    if options.infra.split("/")[0] == "gcp":
        return clients.google_missing()
    return ""


def status(options: argparse.Namespace, submission: Submission) -> list[list[str]]:
    """Returns commands that print the jobs' states."""
    return [["sky", "jobs", "queue", "--all"]]


def teardown(options: argparse.Namespace, submission: Submission) -> list[list[str]]:
    """Returns commands that end the jobs and give their machines back."""
    return [["sky", "jobs", "cancel", "--yes", "--name", job.name] for job in submission.jobs]
