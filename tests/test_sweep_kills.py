"""A real sweep of tiny models, killed again and again: the bytes of an undisturbed one, and of its
members run one by one.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from subtransfer.store import history
from tests.test_kills import TINY

ROOT = Path(__file__).parent.parent
CONFIG = f"""
from subtransfer.config import apply_overrides, defaults
from subtransfer.config.sweep import product, vary

def get_config():
    config = defaults()
    apply_overrides(config, dict(field.split("=", 1) for field in {TINY!r}))
    return config

def sweep():
    return product(vary("distill.objective", "sft", "reverse_kl"), vary("distill.batch_size", 4, 8))
"""
RESULTS = ("results.csv", "results.json", "results.jsonl", "report.html")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers in /proc"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


def _launch(config, workdir, *more):
    command = [
        sys.executable,
        "-m",
        "subtransfer.launch",
        f"--config={config}",
        f"--workdir={workdir}",
        *more,
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _sweep(config, workdir, *more):
    return _launch(config, workdir, "--sweep", "--workers=2", "--retries=10", *more)


def _finish(process):
    out, _ = process.communicate()
    assert process.returncode == 0, out[-3000:]
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, config):
    workdir = tmp_path_factory.mktemp("undisturbed") / "w"
    _finish(_sweep(config, workdir))
    return workdir


def _members(workdir):
    return json.loads((workdir / "sweep.json").read_text())["members"]


def _same(workdir, undisturbed, kills=0):
    """The same artefacts and results, and every stage sealed once."""
    folders = sorted(p.name for p in undisturbed.iterdir() if (p / "artifact.json").is_file())
    assert folders == sorted(p.name for p in workdir.iterdir() if (p / "artifact.json").is_file())
    for path in undisturbed.glob("*/**/*"):
        relative = path.relative_to(undisturbed)
        if path.is_file() and relative.parts[0] in folders:
            assert (workdir / relative).read_bytes() == path.read_bytes(), relative
    for member in _members(undisturbed):
        for name in RESULTS:
            where = Path(member["results"]) / name
            assert (workdir / where).read_bytes() == (undisturbed / where).read_bytes(), where
    sealed = [record["stage"] for record in history.read(workdir) if record["what"] != "begun"]
    assert len(sealed) == len(set(sealed)) and set(sealed) <= set(folders)
    assert not list(workdir.glob(".*.tmp-*")) and not list(workdir.glob(".steps/*"))
    # A kill between a seal and its line in the history loses the line, and leaves the claim on what
    # is there.
    claimed = {file.stem for file in (workdir / ".claims").iterdir()}
    assert len(claimed) <= kills and len(sealed) >= len(folders) - kills and claimed <= set(folders)


def _workers(pid):
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]


def test_killed_five_times(tmp_path, config, undisturbed):
    """Three times a worker, twice everything, in the middle of stages; at last a notice, and
    another restart.
    """
    rng, workdir = random.Random("sweep/real"), tmp_path / "w"
    process = _sweep(config, workdir)

    def await_stage(pattern):
        begin = time.time()
        while not any(path.stat().st_mtime >= begin - 1 for path in workdir.glob(pattern)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))

    whole = 0
    for pattern in (
        ".base*.tmp-*",
        ".teacher*.tmp-*",
        ".student*.tmp-*",
        ".student*.tmp-*",
        ".probe*.tmp-*",
    ):
        await_stage(pattern)
        workers = _workers(process.pid)
        if pattern in (".teacher*.tmp-*", ".probe*.tmp-*"):
            whole += 1
            for pid in (process.pid, *workers):
                os.kill(pid, signal.SIGKILL)
            process.communicate()
            process = _sweep(config, workdir)
        else:
            os.kill(rng.choice(workers), signal.SIGKILL)
    await_stage(".*.tmp-*")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 75 and "preempted" in out and "Traceback" not in out, out
    _finish(_sweep(config, workdir))
    assert whole == 2
    _same(workdir, undisturbed, kills=7)  # the whole command counts for two workers
    out = _finish(_sweep(config, workdir))
    assert (
        "0 to do" in out
        and "4 of 4 members have their results" in out
        and "0 stages computed here" in out
    )


def test_members_run_one_by_one_give_the_same_bytes(tmp_path, config, undisturbed):
    for number, member in enumerate(_members(undisturbed)):
        flags = [f"--config.{field}={value}" for field, value in member["overrides"].items()]
        _finish(_launch(config, tmp_path / str(number), *flags))
        for name in RESULTS:
            alone = (tmp_path / str(number) / name).read_bytes()
            assert alone == (undisturbed / member["results"] / name).read_bytes(), (
                member["name"],
                name,
            )


def test_two_commands_share_a_workdir(tmp_path, config, undisturbed):
    """Each with a worker; one of the members is also run without --sweep at the same time."""
    member = _members(undisturbed)[0]
    flags = [f"--config.{field}={value}" for field, value in member["overrides"].items()]
    workdir = tmp_path / "w"
    processes = [
        _launch(config, workdir, "--sweep"),
        _launch(config, workdir, *flags),
        _launch(config, workdir, "--sweep"),
    ]
    for process in processes:
        _finish(process)
    _same(workdir, undisturbed)
    for name in RESULTS:
        assert (workdir / name).read_bytes() == (
            undisturbed / member["results"] / name
        ).read_bytes()
