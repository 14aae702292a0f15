"""A sweep of stages that only write a file: its command, and its plan.

python -m tests.stub_sweep WORKDIR '{"members": 6, "workers": 2, "seconds": 0.05, ...}'
"""

import json
import sys
from array import array
from pathlib import Path

from subtransfer.runtime import preemption
from subtransfer.runtime.errors import UserError
from subtransfer.store.files import atomic_write
from subtransfer.sweeps.devices import DeviceShare
from subtransfer.sweeps.runner import Runner
from subtransfer.sweeps.schedule import PlannedStage, SweepPlan
from tests.stub_worker import NAMES, folder


class Member:
    def __init__(self, number):
        self.name, self.overrides = f"m{number:04d}", {"number": number}


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


def main(workdir, options):
    workdir, given = Path(workdir), json.loads(options)
    preemption.listen()
    try:
        workdir.mkdir(exist_ok=True)

        def command(channel):
            return [
                sys.executable,
                "-m",
                "tests.stub_worker",
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
