"""All figures of an accelerator in one command, within ten minutes.

    python -m tools.gpu_report --out=DIR            # on a machine with a GPU
    python -m tools.gpu_report --out=DIR --small    # the same parts at toy size, on any machine

Each part is another tool's command in a process of its own, with a time limit: decoding
(`bench_rollout`), training steps (`bench_train`), populations (`bench_population`), the quickstart
(`subtransfer.launch`). Weights are random, of the named geometries: speed does not depend on their
values. What a part found is written to DIR/parts as soon as it is there; after each part the table
(DIR/gpu_report.md) and its rows (DIR/gpu_report.json) are written again. The same command goes on
where an earlier one was cut off: parts that are done are kept, others are run again.

It ends with 0, or with 1 if a part has failed or found no time; the table has a line that says why.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.runtime.json_files import read_json
from subtransfer.store.files import user_path

ROOT = Path(__file__).parent.parent
# The last lines of a failed part's output are looked through for its reason.
REASON = 200
# Seconds that a part must have left to be begun.
LEAST = 10.0


@dataclasses.dataclass(frozen=True)
class Part:
    """One command and what its results mean.

    Attributes:
      name: of its files, and what --parts takes.
      command: arguments of Python; "{json}" is where results are wanted, "{workdir}" a folder.
      seconds: its limit.
      rows: from the results (the command's JSON and "seconds", by the clock) to lines of the table.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    rows: Callable[[dict[str, Any]], list[Row]]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, how much, and as a share of which limit."""

    what: str
    value: str
    share: str = ""


def share(value: float | None, of: str) -> list[str]:
    """A fraction as text; nothing for a device of which nothing is published."""
    return [f"{value:.0%} of {of}"] if value is not None else []


def decoding(found: dict[str, Any]) -> list[Row]:
    """One line a batch size."""
    limits = {row["batch"]: row for row in found["limits"]["ours"]}
    rows = []
    for line in found["lines"]:
        limit, what = limits[line["batch"]], f"decode {found['geometry']} ({found['dtype']})"
        fractions = share(limit["bandwidth"], "a measured copy's bandwidth")
        fractions += share(limit["published"], "the published one")
        value = f"{line['rate']:,.0f} tokens/s" if not line["error"] else line["error"]
        rows.append(Row(f"{what}, {line['batch']} rows", value, ", ".join(fractions)))
    return rows


def training(found: dict[str, Any]) -> list[Row]:
    """One line an objective, with both counts of attention's operations."""
    batch, length = found["batch"]
    trained = f"LoRA {found['lora_rank']}" if found["lora_rank"] else "all weights"
    what = f"train {found['geometry']} ({found['dtype']}, {trained}, remat {found['remat']}"
    rows = []
    for line in found["lines"]:
        speed = batch * length / line["median"]
        shares = [f"{line['tflops_causal']:.3g} TFLOP/s with causal scores"]
        shares += share(line["mfu_causal"], "the peak")
        shares += [f"{line['tflops_whole']:.3g} with whole ones"]
        shares += share(line["mfu_whole"], "the peak")
        rows.append(
            Row(
                f"{what}, {found['attention']}), {line['objective']}, {batch} x {length} tokens",
                f"{1e3 * line['median']:,.1f} ms a step, {speed:,.0f} tokens/s",
                ", ".join(shares),
            )
        )
    return rows


def population(found: dict[str, Any]) -> list[Row]:
    """One line an objective and way of training."""
    return [
        Row(
            f"population of {found['members']}, {objective}, {name}",
            f"{ms:.3f} ms a member's step",
            f"{got['ratio'][name]:.2f}x one by one",
        )
        for objective, got in found["objectives"].items()
        for name, ms in got["ms_a_member_step"].items()
    ]


def whole_run(config: str, found: dict[str, Any]) -> list[Row]:
    """One line, with the start of Python and compilation."""
    return [Row(f"a run of {config}, by the clock", f"{found['seconds']:.0f} s")]


def _decode(geometry: str, seconds: float, batches: str, *options: str) -> Part:
    command = (
        "tools/bench_rollout.py",
        "--peers=",
        f"--geometry={geometry}",
        f"--batches={batches}",
        "--json={json}",
        *options,
    )
    return Part(f"decode_{geometry}", command, seconds, decoding)


def _train(geometry: str, lora_rank: int, seconds: float, *options: str) -> Part:
    command = (
        "tools/bench_train.py",
        "--alone",
        f"--geometry={geometry}",
        f"--lora_rank={lora_rank}",
        "--objectives=sft",
        "--json={json}",
        *options,
    )
    tuning = "lora" if lora_rank else "full"
    return Part(f"train_{geometry}_{tuning}", command, seconds, training)


def _population(members: int, seconds: float, *options: str) -> Part:
    command = (
        "tools/bench_population.py",
        f"--members={members}",
        "--objectives=sft",
        "--json={json}",
        *options,
    )
    return Part(f"population_{members}", command, seconds, population)


def _run(config: str, seconds: float) -> Part:
    command = ("-m", "subtransfer.launch", f"--config={config}", "--workdir={workdir}")
    return Part("quickstart", command, seconds, functools.partial(whole_run, config))


_BF16 = ("--dtype=bfloat16",)
_STEPS = (*_BF16, "--attention=cudnn", "--length=2048", "--steps=4", "--rounds=3")
# In the order of what one would miss most, should time run out.
PARTS = (
    _decode("0.2m", 45, "64,256,1024"),
    _decode("smollm2-135m", 60, "8,64,256", *_BF16),
    _decode("llama3.2-1b", 60, "8,64,256", *_BF16),
    _train("llama3.2-1b", 16, 60, *_STEPS, "--batch=8", "--remat=projections"),
    _population(64, 60, "--rounds=3"),
    _decode("llama3.1-8b", 90, "8,64,256", *_BF16),
    _train("llama3.1-8b", 16, 90, *_STEPS, "--batch=4", "--remat=full"),
    _train("llama3.2-1b", 0, 60, *_STEPS, "--batch=8", "--remat=projections"),
    _train("smollm2-135m", 16, 45, *_STEPS, "--batch=16"),
    _train("smollm2-135m", 0, 45, *_STEPS, "--batch=16"),
    _population(256, 90, "--rounds=3"),
    _run("configs/quickstart.py", 300),
)
_TOY = ("--steps=1", "--rounds=1", "--batch=2")
SMALL = (
    _decode("0.2m", 120, "2", "--prompt_tokens=4", "--new_tokens=4", "--repeats=1"),
    _train("0.2m", 16, 120, *_TOY, "--length=8"),
    _train("0.2m", 0, 120, *_TOY, "--length=8"),
    _population(2, 120, *_TOY),
    _run("configs/smoke.py", 240),
)


def machine() -> dict[str, str]:
    """The device, its driver, JAX's version and the date.

    JAX is asked in a process of its own, which gives the device's memory back.
    """
    code = "import jax; print(jax.__version__); print(jax.devices()[0].device_kind)"
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    if asked.returncode:
        raise UserError(f"JAX finds no device: {_reason(asked.stderr)}")
    version, device = asked.stdout.splitlines()[-2:]
    return {
        "device": device,
        "driver": _driver(),
        "jax": version,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _driver() -> str:
    """NVIDIA's driver; "none" where its tool is not there."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return said.stdout.split("\n")[0].strip() or "none"


def _reason(output: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or ["it said nothing"])[-1][:REASON]


def measure(part: Part, out: Path, seconds: float) -> dict[str, Any]:
    """Runs a part; returns {"rows", "found"}, or {"error": why there are none}.

    Args:
      part: what is run.
      out: the report's folder; output goes to parts/NAME.log.
      seconds: after these it and the processes that it started are ended.
    """
    results = out / "parts" / f"{part.name}.found.json"
    results.unlink(missing_ok=True)
    workdir = out / "parts" / part.name
    words = (
        word.replace("{json}", str(results)).replace("{workdir}", str(workdir))
        for word in part.command
    )
    log = out / "parts" / f"{part.name}.log"
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return {"error": f"not done within {seconds:.0f} s"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    taken = time.monotonic() - begin
    if status:
        return {"error": f"exit status {status}: {_reason(log.read_text(errors='replace'))}"}
    found = json.loads(results.read_text()) if results.exists() else {}
    found["seconds"] = taken
    return {"rows": [dataclasses.astuple(row) for row in part.rows(found)], "found": found}


def table(about: dict[str, str], found: dict[str, dict[str, Any]]) -> str:
    """The report as Markdown, its parts in the order of `found`."""
    head = ", ".join(f"{name} {value}" for name, value in about.items())
    lines = [
        f"{head}. Random weights of the named geometries.",
        "",
        "| what | measured | share of a limit |",
        "| --- | --- | --- |",
    ]
    for name, got in found.items():
        rows = [(name, got["error"], "")] if "error" in got else got["rows"]
        # A bar would begin a cell of its own.
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def kept(file: Path, device: str) -> dict[str, Any] | None:
    """What an earlier command found of a part, or None.

    Raises:
      UserError: it is damaged, or of another device.
    """
    shape = {"device": str, "rows": [[str]], "found": dict}
    got = read_json(file, shape, "give another folder as --out", default=None)
    if got is not None and got["device"] != device:
        raise UserError(
            f"{file} is of another device ({got['device']}, here is {device}): give another "
            "folder as --out."
        )
    return got


def report(parts: Sequence[Part], out: Path, limit: float) -> list[str]:
    """Measures all parts that are not there yet; returns the names of those that failed.

    Args:
      parts: in the order in which they are run.
      out: the report's folder.
      limit: seconds in all.
    """
    begin = time.monotonic()
    (out / "parts").mkdir(parents=True, exist_ok=True)
    about = machine()
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        file = out / "parts" / f"{part.name}.json"
        earlier = kept(file, about["device"])
        left = limit - (time.monotonic() - begin)
        if earlier is not None:
            found[part.name] = earlier
        elif left < LEAST:
            found[part.name] = {
                "error": f"not begun: the {limit:.0f} s are over; the same command goes on here"
            }
        else:
            print(f"{part.name} ...", flush=True)
            found[part.name] = measure(part, out, min(part.seconds, left))
            if "error" not in found[part.name]:
                _write(file, json.dumps({"device": about["device"], **found[part.name]}))
        _write(out / "gpu_report.json", json.dumps({"machine": about, "parts": found}, indent=2))
        _write(out / "gpu_report.md", table(about, found))
    print(table(about, found))
    return [name for name, got in found.items() if "error" in got]


def _write(file: Path, text: str) -> None:
    """A file that is there as a whole or not at all."""
    whole = file.with_name(file.name + ".new")
    whole.write_text(text)
    whole.replace(file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 if a part has no figures; 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=user_path, required=True, help="a folder for the report")
    parser.add_argument("--small", action="store_true", help="toy sizes, for any machine")
    parser.add_argument("--limit", type=float, default=600, help="seconds in all")
    parser.add_argument("--parts", help="only these, by name, with commas")
    given = parser.parse_args(arguments)
    failed: list[str] = []

    def work() -> None:
        parts = SMALL if given.small else PARTS
        names = [part.name for part in parts]
        wanted = given.parts.split(",") if given.parts else names
        for name in wanted:
            if name not in names:
                raise UserError(f"There is no part {name!r}: choose among {', '.join(names)}.")
        failed.extend(report([p for p in parts if p.name in wanted], given.out, given.limit))

    return exit_status(work) or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
