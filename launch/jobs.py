"""The jobs of a submission: which commands run, on how many machines, in which workdir.

They are the same for every engine.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from launch import machines, workdirs
from subtransfer.config import reading as configuration
from subtransfer.config import sweep
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.preemption import EXIT_CODE

ROOT = Path(__file__).resolve().parent.parent  # of the repository, which is what machines get
RESTART = EXIT_CODE  # "run the same command again": engines restart on it as often as it takes
ERRORS = 3  # restarts after any other exit status, before a job counts as failed

# Port of the first host's coordinator, where an engine does not say where the processes are.
COORDINATOR_PORT = 8476


@dataclasses.dataclass(frozen=True)
class Job:
    """One job: a command that may be killed at any moment and run again.

    Attributes:
      name: for the engines, of lower-case letters, digits and hyphens, at most 40 characters.
      member: name of the sweep's member, if the job is one member's.
      arguments: of `python -m subtransfer.launch`, without how several processes find each other.
    """

    name: str
    member: str | None
    arguments: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Submission:
    """What was asked for, read and checked.

    Attributes:
      name: what the names of its jobs begin with.
      config: path of the config file in the repository.
      jobs: at least one.
      machine: of each job.
      workdir: of all.
      spread: "run" (no sweep), "shared" (jobs share a sweep) or "members" (one job a member).
      reason: why, where the spread was not given; else "".
    """

    name: str
    config: str
    jobs: tuple[Job, ...]
    machine: machines.Machine
    workdir: workdirs.Workdir
    spread: str
    reason: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that all engines share."""
    parser.add_argument("--config", required=True, help="Config file, inside this repository.")
    parser.add_argument(
        "--workdir",
        required=True,
        help="gs://BUCKET/DIR, nfs://HOST/EXPORT/DIR, volume://NAME/DIR or a path.",
    )
    parser.add_argument(
        "--accelerator", required=True, help="Of a job: tpu-v5e-16, H100:8 (a host) or cpu."
    )
    parser.add_argument(
        "--slices", type=positive, default=1, help="TPU slices of a job (default: 1)."
    )
    parser.add_argument(
        "--nodes", type=positive, default=1, help="Hosts of a job on GPUs or CPUs (default: 1)."
    )
    parser.add_argument(
        "--sweep", action="store_true", help="The config file's sweep(), not one run."
    )
    parser.add_argument(
        "--spread",
        choices=["shared", "members"],
        help="shared: --jobs times the sweep's command on one workdir. members: one job a member. "
        "Default: members where a job has several hosts, else shared.",
    )
    parser.add_argument(
        "--jobs", type=positive, default=1, help="Jobs that share the work (default: 1)."
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=1,
        help="Worker processes of a job of a sweep (default: 1).",
    )
    parser.add_argument(
        "--name", help="What the names of jobs begin with; default: the config file's."
    )
    parser.set_defaults(host_chips=8)  # a TPU VM's; an engine may have smaller hosts


def positive(text: str) -> int:
    """Reads a whole number above 0 from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def plan(options: argparse.Namespace, overrides: dict[str, str]) -> Submission:
    """Reads the flags, expands and checks the config or the sweep.

    Args:
      options: of `add_arguments`.
      overrides: dotted config field -> text; they apply to all members of a sweep.

    Raises:
      UserError: for every mistake, before anything is rendered.
    """
    machine = machines.parse(options.accelerator, options.slices, options.nodes, options.host_chips)
    workdir = workdirs.parse(options.workdir)
    config = _inside(options.config)
    name = slug(options.name or Path(config).stem, 32)
    if machine.slices > 1:
        overrides = {**overrides, "mesh.slices": str(machine.slices)}
    common = (f"--config={config}", f"--workdir={workdir.path}")
    given = tuple(f"--config.{field}={text}" for field, text in overrides.items())
    spread, reason = _spread(options, machine)
    jobs = []
    if spread == "members":
        members = sweep.members(options.config, overrides)
        for job_name, member in zip(_numbered(name, len(members)), members, strict=True):
            jobs.append(Job(job_name, member.name, (*common, *member.flags(), *given)))
    else:
        if options.sweep:
            sweep.members(options.config, overrides)
            given = ("--sweep", f"--workers={options.workers}", *given)
        else:
            configuration.load(options.config, overrides)
        names = [name] if options.jobs == 1 else _numbered(name, options.jobs)
        for job_name in names:
            jobs.append(Job(job_name, None, (*common, *given)))
    if len(jobs) > 1 and not workdir.shared:
        raise UserError(
            f"--workdir={options.workdir}: {len(jobs)} jobs cannot share a bucket, as gcsfuse "
            "shows a file to other machines only when it is closed; give an NFS share "
            "(nfs://HOST/EXPORT/FOLDER, such as Filestore), or one job."
        )
    return Submission(name, config, tuple(jobs), machine, workdir, spread, reason)


def _numbered(name: str, count: int) -> list[str]:
    """Names of jobs, with numbers of as many digits as the last one has."""
    digits = len(str(count - 1))
    return [f"{name}-{number:0{digits}d}" for number in range(count)]


def _spread(options: argparse.Namespace, machine: machines.Machine) -> tuple[str, str]:
    if not options.sweep:
        if options.spread or options.workers != 1:
            raise UserError("--spread and --workers are of sweeps: add --sweep.")
        return "run", ""
    spread, reason = options.spread, ""
    if not spread and machine.hosts > 1:
        spread = "members"
        reason = (
            f"one job a member, as a sweep's workers are of one host and a job has {machine.hosts}"
        )
    elif not spread:
        spread = "shared"
        reason = "the same command in each job, so that no host waits for one member's last stage"
    if spread == "shared" and machine.hosts > 1:
        raise UserError(
            "--spread=shared: a sweep's workers are of one host, and a job here has "
            f"{machine.hosts}."
        )
    if spread == "members" and (options.jobs, options.workers) != (1, 1):
        raise UserError(
            "--spread=members makes one job a member, without workers: leave out --jobs and "
            "--workers."
        )
    return spread, reason


def _inside(config: str) -> str:
    """The config file's path in the repository."""
    path = Path(config).expanduser().resolve()
    if not path.is_file():
        raise UserError(
            f"There is no config file {config}: give one with --config=FILE, such as "
            "configs/quickstart.py."
        )
    if not path.is_relative_to(ROOT):
        raise UserError(
            f"{config} lies outside of {ROOT}, which is what machines get: copy it to configs/."
        )
    return path.relative_to(ROOT).as_posix()


def slug(text: str, longest: int) -> str:
    """Returns a name that Kubernetes, SkyPilot and Slurm take.

    It has lower-case letters, digits and hyphens, and begins with a letter.

    Args:
      text: what it is made of.
      longest: characters, at most.
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name or not name[0].isalpha():
        name = f"run-{name}".strip("-")
    return name[:longest].rstrip("-")


def check_image(submission: Submission) -> None:
    """Refuses a config file that the container does not have.

    Raises:
      UserError: it lies elsewhere than in configs/.
    """
    if not submission.config.startswith("configs/"):
        raise UserError(
            "The container has the config files of configs/ only (launch/Dockerfile): move "
            f"{submission.config} there."
        )


def processes(machine: machines.Machine) -> Sequence[str]:
    """Returns the flags of several processes where JAX finds out by itself who they are.

    It does on Cloud TPU, in a JobSet on TPUs, and on Slurm.
    """
    return ("--distributed=auto",) if machine.hosts > 1 else ()
