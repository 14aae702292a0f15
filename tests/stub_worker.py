"""The worker of `stub_sweep`: its stages only write a file.

python -m tests.stub_worker WORKDIR '{"channel": 5, "lease": 60, "seconds": 0.05, ...}'

It imports neither jax nor the runner, so that many can be started.
"""

import json
import os
import random
import socket
import sys
import time
from pathlib import Path

from subtransfer.runtime import preemption
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest
from subtransfer.store import artifacts
from subtransfer.sweeps.service import StageBuild, serve

NAMES = ("base", "student", "results", "report")  # each reads the one before; the base is shared


def key(stage, member):
    return {"stage": stage, "member": None if stage == "base" else member}


def folder(stage, member):
    return f"{stage}-{digest(key(stage, member))}"


def task(options, workdir):
    def of(job):
        number = job.overrides["number"]

        def build(out):
            before = NAMES[NAMES.index(job.stage) - 1] if job.stage != "base" else None
            if before:
                assert artifacts.is_whole(workdir / folder(before, number)), "an input is missing"
            time.sleep(options["seconds"] * random.Random(job.folder).random())
            trouble = options.get("trouble", {}).get(f"{job.stage} {number}")
            marks = workdir / f"tried-{job.folder}"
            if trouble:
                with marks.open("a") as file:
                    file.write("x")
            if trouble and len(marks.read_text()) <= options.get("troubles", 1000):
                if trouble == "exit":
                    os._exit(9)
                raise {"user": UserError, "network": ConnectionError, "bug": KeyError}[trouble](
                    f"no {job.stage}"
                )
            (out / "file").write_text(f"{job.stage} {number if job.stage != 'base' else ''}\n")

        return StageBuild(key(job.stage, number), build, {"flops": 0})

    return of


def main(workdir, options):
    workdir, given = Path(workdir), json.loads(options)
    preemption.listen()
    try:
        if given.get("broken"):
            raise RuntimeError("no device")
        with artifacts.Store(workdir, given["lease"]) as store:
            serve(socket.socket(fileno=given["channel"]), store, task(given, workdir))
        return 0
    except preemption.Preempted:
        return preemption.EXIT_CODE
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        print(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
