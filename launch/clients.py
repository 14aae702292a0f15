"""The engines' own clients, in environments apart from ours, and the credentials that they need.

Their pins collide with ours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path

from subtransfer.runtime.errors import UserError
from subtransfer.store.files import user_path
from tools.peers import environment

SCRIPTS = Path(__file__).resolve().parent / "inside"  # what runs in the clients' environments
CACHE = Path("~/.cache/subtransfer/clients").expanduser()
# Engines with an environment of their own, and the command in it.
CLIENTS = {"skypilot": "sky", "xpk": "xpk", "slurm": "python"}
_INSTALL = "python -m launch.submit {engine} install"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of engines that have a client."""
    parser.add_argument(
        "--client",
        type=user_path,
        help=f"The client's environment; default: one in {_short(CACHE)}, by install.",
    )


def _short(path: Path) -> str:
    return str(path).replace(str(Path.home()), "~", 1)


def _pins(engine: str) -> tuple[str, ...]:
    lines = (Path(__file__).parent / f"requirements-{engine}.txt").read_text().splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def install(engine: str) -> Path:
    """Makes the environment of an engine's client, if it is not there yet; returns it."""
    return environment.install(engine, _pins(engine), CACHE).parent.parent


def home(options: argparse.Namespace, engine: str) -> Path:
    """Returns the environment of an engine's client.

    Raises:
      UserError: it is not installed.
    """
    folder = options.client or environment.place(engine, _pins(engine), CACHE)
    complete = options.client or environment.installed(folder)
    if not complete or not (folder / "bin" / CLIENTS[engine]).exists():
        raise UserError(
            f"The client of {engine} is not in {folder}: install it with "
            f"`{_INSTALL.format(engine=engine)}`."
        )
    return folder


def surroundings(options: argparse.Namespace, engine: str) -> dict[str, str]:
    """Returns the environment variables with which an engine's commands are found."""
    variables = {**os.environ, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    if engine in CLIENTS:
        variables["PATH"] = f"{home(options, engine) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return variables


def run(
    options: argparse.Namespace, engine: str, command: list[str], cwd: Path | None = None
) -> str:
    """Runs a command of an engine and returns its output.

    Raises:
      UserError: it is not there, or fails; with its last words.
    """
    try:
        done = subprocess.run(
            command,
            env=surroundings(options, engine),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except FileNotFoundError:
        raise UserError(
            f"There is no command {command[0]}: install it, or put it on PATH."
        ) from None
    if done.returncode:
        words = [line for line in done.stdout.splitlines() if line.strip()][-8:]
        raise UserError(
            f"`{' '.join(command[:4])} ...` ends with status {done.returncode}: "
            + "\n  ".join(words)
        )
    return done.stdout


def python(options: argparse.Namespace, engine: str, script: Path, *arguments: str) -> str:
    """Runs a script of ours in a client's environment and returns its output."""
    return run(
        options, engine, [str(home(options, engine) / "bin" / "python"), str(script), *arguments]
    )


# -- credentials


def _says(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def google_missing() -> str:
    """Says what a command on Google Cloud lacks here, in one sentence, or ""."""
    if not shutil.which("gcloud"):
        return (
            "There is no gcloud: install the Google Cloud CLI "
            "(https://cloud.google.com/sdk/docs/install)."
        )
    if not _says("gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)"):
        return (
            "No Google account is logged in: run `gcloud auth login`, and "
            "`gcloud auth application-default login`."
        )
    default = "~/.config/gcloud/application_default_credentials.json"
    if not user_path(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", default)).is_file():
        return (
            "There are no application-default credentials: run "
            "`gcloud auth application-default login`."
        )
    if not _says("gcloud", "config", "get-value", "project"):
        return "No Google Cloud project is set: run `gcloud config set project PROJECT`."
    return ""


def kubernetes_missing() -> str:
    """Says what a command on a Kubernetes cluster lacks here, in one sentence, or ""."""
    if not shutil.which("kubectl"):
        return "There is no kubectl: install it (`gcloud components install kubectl`)."
    if not _says("kubectl", "config", "current-context"):
        return (
            "kubectl has no cluster: run "
            "`gcloud container clusters get-credentials CLUSTER --location=ZONE`."
        )
    return ""


def slurm_missing() -> str:
    """Says what a submission to Slurm lacks here, in one sentence, or ""."""
    if not all(map(shutil.which, ("sbatch", "srun"))):
        return (
            "There is no sbatch or srun on this machine: run this on a login node of a Slurm "
            "cluster."
        )
    return ""
