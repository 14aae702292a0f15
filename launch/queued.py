"""Cloud TPU queued resources, by gcloud alone: one startup script a job.

They give single slices and several, on demand or spot.
Google's queue gives the slices when there are some; each host then runs the script as root, at
every boot. The program runs in the container that launch/Dockerfile builds, is run again as long as
it ends with status 75, and when it is done the first host deletes the queued resource, machines and
all. A spot slice that is taken away is not asked for again by Google: let `teardown` delete what is
left of the request, and `submit` once more; the run goes on.
https://cloud.google.com/tpu/docs/queued-resources,
https://cloud.google.com/tpu/docs/multislice-introduction
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
from pathlib import Path

from launch import clients, jobs, workdirs
from launch.jobs import Job, Submission
from subtransfer.runtime.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this engine."""
    parser.add_argument("--project", required=True, help="Google Cloud project.")
    parser.add_argument("--zone", required=True, help="Where the TPUs are: us-west4-a, ...")
    parser.add_argument(
        "--image",
        required=True,
        help="Container image in Artifact Registry, built from launch/Dockerfile.",
    )
    parser.add_argument(
        "--service_account",
        required=True,
        help="Of the hosts: reads the image, writes the workdir, deletes.",
    )
    parser.add_argument(
        "--spot",
        action="store_true",
        help="Slices that may be taken away, at a fraction of the price.",
    )


def check(options: argparse.Namespace, submission: Submission) -> None:
    """Refuses what queued resources cannot run."""
    jobs.check_image(submission)
    if submission.machine.kind != "tpu":
        raise UserError("Queued resources are TPUs: use the engine skypilot for GPUs.")
    if submission.workdir.kind not in ("gs", "nfs"):
        raise UserError(
            "A TPU VM mounts a bucket or an NFS share: give --workdir as gs:// or nfs://."
        )


def render(options: argparse.Namespace, submission: Submission) -> dict[str, str]:
    """Returns the files by name."""
    return {f"{job.name}.sh": _script(options, submission, job) for job in submission.jobs}


def _script(options: argparse.Namespace, submission: Submission, job: Job) -> str:
    workdir = submission.workdir
    mount = workdirs.mount_nfs(workdir) if workdir.kind == "nfs" else workdirs.mount_bucket(workdir)
    program = shlex.join(
        ["python", "-m", "subtransfer.launch", *job.arguments, *jobs.processes(submission.machine)]
    )
    registry = options.image.split("/")[0]
    delete = shlex.join(
        ["gcloud", *_resource(options, "delete", job.name), "--force", "--quiet", "--async"]
    )
    mounted = f"{workdirs.MOUNT}:{workdirs.MOUNT}"
    member = f"# Member {job.member} of the sweep.\n" if job.member else ""
    return f"""#!/bin/bash
{member}set -euo pipefail
export HOME=/root
{mount}
gcloud auth configure-docker {shlex.quote(registry)} --quiet
docker pull --quiet {shlex.quote(options.image)}
status={jobs.RESTART}
errors=0
while [ "$status" -ne 0 ]; do
  status=0
  # --net=host and --privileged: libtpu's own devices, metadata and ports.
  docker run --rm --init --net=host --privileged --stop-timeout=120 -v {mounted} \\
    {shlex.quote(options.image)} \\
    {program} || status=$?
  if [ "$status" -ne 0 ] && [ "$status" -ne {jobs.RESTART} ]; then
    errors=$((errors + 1))
    if [ "$errors" -gt {jobs.ERRORS} ]; then break; fi
  fi
  sleep 5
done
worker=$(curl -fsS -H Metadata-Flavor:Google \\
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
if [ "$worker" -eq 0 ]; then
  {delete}
fi
exit "$status"
"""


def _resource(options: argparse.Namespace, verb: str, *name: str) -> list[str]:
    where = [f"--project={options.project}", f"--zone={options.zone}"]
    return ["compute", "tpus", "queued-resources", verb, *name, *where]


def commands(options: argparse.Namespace, submission: Submission, folder: Path) -> list[list[str]]:
    """Returns the commands that submit the files of `render`."""
    machine = submission.machine
    made = []
    for job in submission.jobs:
        slices = [f"--node-id={job.name}"]
        if machine.slices > 1:
            slices = [f"--node-count={machine.slices}", f"--node-prefix={job.name}"]
        made.append(
            [
                "gcloud",
                *_resource(options, "create", job.name),
                *slices,
                f"--accelerator-type={machine.google}",
                f"--runtime-version={machine.runtime}",
                f"--service-account={options.service_account}",
                f"--metadata-from-file=startup-script={folder / f'{job.name}.sh'}",
                *(["--spot"] if options.spot else []),
            ]
        )
    return made


def validate(options: argparse.Namespace, submission: Submission, folder: Path) -> list[str]:
    """Lets bash and gcloud's own parser read what was rendered; returns a line a job."""
    lines = []
    for job, command in zip(submission.jobs, commands(options, submission, folder), strict=True):
        clients.run(options, "queued", ["bash", "-n", str(folder / f"{job.name}.sh")])
        _parsed(command)
        lines.append(f"{job.name}: read by bash and gcloud")
    return lines


def _parsed(command: list[str]) -> None:
    """Lets gcloud read a command's flags without carrying it out.

    An account that does not exist gets no further.

    Raises:
      UserError: gcloud does not take the flags.
    """
    try:
        done = subprocess.run(
            [*command, "--account=nobody@invalid", "--quiet"], capture_output=True, text=True
        )
    except FileNotFoundError:
        raise UserError(clients.google_missing()) from None
    if done.returncode == 2:  # of gcloud: the flags were not understood
        raise UserError(
            f"gcloud does not take `{shlex.join(command)}`: {done.stderr.strip().splitlines()[0]}"
        )


def missing(options: argparse.Namespace) -> str:
    """Says what submitting needs and this machine lacks, or ""."""
    return clients.google_missing()


def status(options: argparse.Namespace, submission: Submission) -> list[list[str]]:
    """Returns commands that print the jobs' states."""
    names = f"--filter=name~/{submission.name}(-[0-9]+)?$"
    columns = "--format=table(name.basename(),state.state)"
    return [["gcloud", *_resource(options, "list"), names, columns]]


def teardown(options: argparse.Namespace, submission: Submission) -> list[list[str]]:
    """Returns commands that end the jobs and give their slices back."""
    return [
        ["gcloud", *_resource(options, "delete", job.name), "--force", "--quiet", "--async"]
        for job in submission.jobs
    ]
