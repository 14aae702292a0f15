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
from launch.jobs import Job, Launch
from subtransfer.runtime.errors import UserError

VENV = "$HOME/subtransfer-venv"  # made by setup_machine.sh
EXTRAS = {"tpu": "tpu", "gpu": "cuda", "cpu": ""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def check(options: argparse.Namespace, launch: Launch) -> None:
    """Refuses what SkyPilot cannot run."""
    kubernetes = options.infra.split("/")[0] in ("k8s", "kubernetes")
    if launch.machine.slices > 1:
        raise UserError(
            "SkyPilot starts single TPU slices: use the engines queued or xpk for --slices."
        )
    if launch.workdir.kind == "path":
        raise UserError(
            "A path is a disk that goes with its machine: give gs://, nfs:// or, on Kubernetes, volume://."
        )
    if launch.workdir.kind == "volume" and not kubernetes:
        raise UserError(
            "volume:// is of Kubernetes: give --infra=k8s, or a gs:// or nfs:// workdir."
        )
    if launch.workdir.kind == "nfs" and kubernetes:
        raise UserError(
            "Pods mount no NFS share by themselves: make a volume of it (docs/cloud.md) and give volume://NAME."
        )
    if kubernetes and not options.image:
        raise UserError(
            "On Kubernetes, SkyPilot needs --image=IMAGE: build launch/Dockerfile (docs/cloud.md)."
        )
    if options.queued and (launch.machine.kind != "tpu" or options.infra.split("/")[0] != "gcp"):
        raise UserError("--queued is of Cloud TPUs: leave it out, or give --infra=gcp and a TPU.")


def render(options: argparse.Namespace, launch: Launch) -> dict[str, str]:
    """Files by name."""
    return {f"{job.name}.yaml": _yaml(_task(options, launch, job), job) for job in launch.jobs}


def _task(options: argparse.Namespace, launch: Launch, job: Job) -> dict[str, Any]:
    machine, workdir = launch.machine, launch.workdir
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
    task["run"] = _run(options, launch, job)
    return task


def _run(options: argparse.Namespace, launch: Launch, job: Job) -> str:
    python = "python" if options.image else f'"{VENV}/bin/python"'
    flags = [shlex.quote(argument) for argument in job.arguments]
    before = ""
    if launch.machine.kind == "tpu":
        flags += jobs.processes(launch.machine)
    elif launch.machine.nodes > 1:
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


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def _yaml(task: dict[str, Any], job: Job) -> str:
    head = f"# Member {job.member} of the sweep.\n" if job.member else ""
    return head + yaml.dump(task, Dumper=_Dumper, sort_keys=False, width=1000)


def commands(options: argparse.Namespace, launch: Launch, folder: Path) -> list[list[str]]:
    """What submits the files of `render`, run from the repository's root."""
    return [
        ["sky", "jobs", "launch", "--yes", "--detach-run", str(folder / f"{job.name}.yaml")]
        for job in launch.jobs
    ]


def validate(options: argparse.Namespace, launch: Launch, folder: Path) -> list[str]:
    """SkyPilot's own parser reads every file. Returns a line a job."""
    files = [str(folder / f"{job.name}.yaml") for job in launch.jobs]
    return clients.python(
        options, "skypilot", clients.SCRIPTS / "check_skypilot.py", *files
    ).splitlines()


def missing(options: argparse.Namespace) -> str:
    """What submitting needs and this machine lacks, or ""."""
    if options.infra.split("/")[0] in ("k8s", "kubernetes"):
        return clients.kubernetes_missing()
    if options.infra.split("/")[0] == "gcp":
        return clients.google_missing()
    return ""


def status(options: argparse.Namespace, launch: Launch) -> list[list[str]]:
    """Commands that print the jobs' states."""
    return [["sky", "jobs", "queue", "--all"]]


def teardown(options: argparse.Namespace, launch: Launch) -> list[list[str]]:
    """Commands that end the jobs and give their machines back."""
    return [["sky", "jobs", "cancel", "--yes", "--name", job.name] for job in launch.jobs]
