"""A sweep of stages that only write a file: its command (`run`), its worker (`work`), and its plan.

python -m tests.stub_sweep run WORKDIR '{"members": 6, "workers": 2, "seconds": 0.05, ...}'
"""

import json
import random
import socket
import sys
import time
from array import array
from pathlib import Path

from subtransfer.runtime import preemption
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest
from subtransfer.store import artifacts
from subtransfer.store.files import atomic_write
from subtransfer.sweeps.devices import DeviceShare
from subtransfer.sweeps.runner import Runner
from subtransfer.sweeps.schedule import PlannedStage, SweepPlan
from subtransfer.sweeps.service import StageBuild, serve

NAMES = ("base", "student", "results", "report")  # each reads the one before; the base is shared


class Member:
    def __init__(self, number):
        self.name, self.overrides = f"m{number:04d}", {"number": number}


def key(stage, member):
    return {"stage": stage, "member": None if stage == "base" else member}


def folder(stage, member):
    return f"{stage}-{digest(key(stage, member))}"


def plan(count):
    made = SweepPlan([Member(i) for i in range(count)], [], [], [""] * count)
    numbers = {}
    for i in range(count):
        own = array("L")
        for before, name in zip((None, *NAMES), NAMES, strict=False):
            if folder(name, i) not in numbers:
                numbers[folder(name, i)] = len(made.nodes)
                inputs = array("L", [numbers[folder(before, i)]] if before else [])
                made.nodes.append(PlannedStage(name, folder(name, i), inputs, 0.0))
            made.nodes[numbers[folder(name, i)]].users.append(i)
            own.append(numbers[folder(name, i)])
        made.stages.append(own)
    return made


def publish(results, report, into, folders):
    into.mkdir(parents=True, exist_ok=True)
    atomic_write(
        into / "results.csv", (results / "file").read_bytes() + (report / "file").read_bytes()
    )


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
                    import os

                    os._exit(9)
                raise {"user": UserError, "network": ConnectionError, "bug": KeyError}[trouble](
                    f"no {job.stage}"
                )
            (out / "file").write_text(f"{job.stage} {number if job.stage != 'base' else ''}\n")

        return StageBuild(key(job.stage, number), build, {"flops": 0})

    return of


def main(mode, workdir, options):
    workdir, given = Path(workdir), json.loads(options)
    preemption.listen()
    try:
        if mode == "work" and given.get("broken"):
            raise RuntimeError("no device")
        if mode == "work":
            with artifacts.Store(workdir, given["lease"]) as store:
                serve(socket.socket(fileno=given["channel"]), store, task(given, workdir))
            return 0
        workdir.mkdir(exist_ok=True)

        def command(channel):
            return [
                sys.executable,
                "-m",
                "tests.stub_sweep",
                "work",
                str(workdir),
                json.dumps(given | {"channel": channel}),
            ]

        runner = Runner(
            plan(given["members"]),
            workdir,
            [DeviceShare()] * given["workers"],
            command,
            publish=publish,
            retries=given["retries"],
            log=lambda line: print(line, flush=True),
        )
        runner.run()
        return 1 if runner.schedule.failures else 0
    except preemption.Preempted:
        return preemption.status()
    except UserError as error:
        print(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
