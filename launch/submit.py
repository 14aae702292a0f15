"""Runs a config or a sweep on a real engine, from the repository's root.

    python -m launch.submit ENGINE ACTION --config=... --workdir=... --accelerator=... [--sweep]
    [--config.FIELD=VALUE ...]

Engines: skypilot (managed jobs), queued (Cloud TPU queued resources), xpk (JobSet and Kueue on
GKE), slurm (submitit). Actions: install the engine's client in an environment of its own; render
files into a folder and print the commands that submit them (the default); validate them offline
with the engine's own parser; submit; status; collect results into a folder; teardown. `python -m
launch.submit ENGINE render --help` has the flags, docs/cloud.md the way from an empty project.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import clients, collecting, jobs, queued, skypilot, slurm, xpk
from launch.jobs import Submission
from subtransfer.launch import split_overrides
from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.store.files import user_path

ENGINES = {"skypilot": skypilot, "queued": queued, "xpk": xpk, "slurm": slurm}
ACTIONS = {
    "render": "Write the files and print the commands that submit them.",
    "validate": "Render, and let the engine's own parser read it; nothing leaves this machine.",
    "submit": "Render, and start the jobs.",
    "status": "Ask the engine for the jobs' states.",
    "collect": "Copy tables, reports and logs from the workdir to --into.",
    "teardown": "End the jobs and give their machines back.",
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="python -m launch.submit", description=_first_line(__doc__), allow_abbrev=False
    )
    engines = top.add_subparsers(dest="engine", required=True, metavar="ENGINE")
    for name, engine in ENGINES.items():
        of_engine = engines.add_parser(name, help=_first_line(engine.__doc__))
        actions = of_engine.add_subparsers(dest="action", required=True)
        if name in clients.CLIENTS:
            actions.add_parser(
                "install", help="Make the environment of the client, if it is not there."
            )
        for action, words in ACTIONS.items():
            flags = actions.add_parser(action, help=words, description=words, allow_abbrev=False)
            jobs.add_arguments(flags)
            engine.add_arguments(flags)
            if name in clients.CLIENTS:
                clients.add_arguments(flags)
            if action in ("render", "validate", "submit"):
                flags.add_argument(
                    "--out",
                    type=user_path,
                    help="Folder of what is rendered; default: build/launch/NAME.",
                )
            if action == "collect":
                flags.add_argument(
                    "--into",
                    type=user_path,
                    required=True,
                    help="Folder of this machine.",
                )
                flags.add_argument(
                    "--mounted",
                    type=user_path,
                    help="Where this machine has the workdir, if that is no bucket.",
                )
    return top


def _first_line(doc: str | None) -> str:
    return (doc or "").partition("\n")[0]


def render(
    engine: Any, options: argparse.Namespace, submission: Submission
) -> tuple[Path, list[list[str]]]:
    """Writes the files.

    Returns:
      Their folder, and the commands that submit them, which it has in submit.sh.
    """
    folder = options.out or Path("build") / "launch" / submission.name
    folder.mkdir(parents=True, exist_ok=True)
    made = engine.commands(options, submission, folder)
    lines = ["#!/bin/bash", "set -e", *map(shlex.join, made)]
    files = engine.render(options, submission) | {"submit.sh": "\n".join(lines) + "\n"}
    for name, text in files.items():
        _write_private(folder / name, text)
    return folder, made


def _write_private(path: Path, text: str) -> None:
    """Writes a file that nobody else can read: lines before a job may hold secrets."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def act(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Does what the command line asks for; returns the exit status.

    Args:
      options: of `parser`.
      overrides: dotted config field -> text.

    Raises:
      UserError: for every mistake.
    """
    engine: Any = ENGINES[options.engine]
    if options.action == "install":
        print(clients.install(options.engine))
        return 0
    submission = jobs.plan(options, overrides)
    engine.check(options, submission)
    if options.action == "collect":
        return _collect(options, submission)
    if options.action in ("status", "teardown"):
        _need(engine.missing(options))
        verb = engine.status if options.action == "status" else engine.teardown
        return _run(options, verb(options, submission), all_of_them=True)
    if options.action == "submit":
        _need(engine.missing(options))
    folder, made = render(engine, options, submission)
    if submission.reason:
        print(f"--spread={submission.spread}: {submission.reason}.")
    chips, each = submission.machine.chips, _count(submission.machine.hosts, "host")
    if chips:
        each = f"{_count(chips, 'accelerator')}, {each}"
    print(f"{_count(len(submission.jobs), 'job')} in {folder}; each has {each}.")
    if options.action == "validate":
        print("\n".join(engine.validate(options, submission, folder)))
    elif options.action == "submit":
        return _run(options, made)
    else:
        print("\n".join(shlex.join(command) for command in made))
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _need(missing: str) -> None:
    if missing:
        raise UserError(missing)


def _run(
    options: argparse.Namespace, commands: list[list[str]], *, all_of_them: bool = False
) -> int:
    """Runs commands one after the other, before the user's eyes; returns the worst status.

    They are run as far as they succeed, or all of them.
    """
    surroundings = clients.surroundings(options, options.engine)
    worst = 0
    for command in commands:
        print(f"+ {shlex.join(command)}", flush=True)
        try:
            status = subprocess.run(command, env=surroundings, cwd=jobs.ROOT).returncode
        except FileNotFoundError:
            raise UserError(
                f"There is no command {command[0]}: install it, or put it on PATH."
            ) from None
        worst = max(worst, status)
        if status and not all_of_them:
            break
    return worst


def _collect(options: argparse.Namespace, submission: Submission) -> int:
    if submission.workdir.kind == "gs" and not options.mounted:
        _need(clients.google_missing())
        options.into.mkdir(parents=True, exist_ok=True)
        return _run(options, collecting.commands(submission, options.into.resolve()))
    if not options.mounted and submission.workdir.kind != "path":
        raise UserError(
            f"{options.workdir} is no folder of this machine: mount it, and say where with "
            "--mounted=DIR."
        )
    count = collecting.copy(options.mounted or Path(submission.workdir.path), options.into)
    print(f"{count} files in {options.into}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      The exit status: 2 for a user's mistake, else that of the command that failed, or 0.
    """
    worst = 0

    def work() -> None:
        nonlocal worst
        rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        # Without an action, the files are rendered.
        without_action = len(rest) > 1 and rest[0] in ENGINES and rest[1].startswith("--")
        if without_action and rest[1] != "--help":
            rest.insert(1, "render")
        worst = act(parser().parse_args(rest), overrides)

    return exit_status(work) or worst


if __name__ == "__main__":
    sys.exit(main())
