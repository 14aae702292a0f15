"""Workdirs in a bucket, by gcsfs and an emulator of Google Cloud Storage: what is finished there is found there."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from subtransfer import artifacts, remote
from subtransfer.distill.checkpoints import Checkpoints, Policy, Progress
from subtransfer.errors import UserError
from tests import test_kills

gcsfs = pytest.importorskip("gcsfs")
# gcsfs gives aiohttp its blocks as bytes, which are large.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def bucket():
    """A bucket of an emulator that runs as a process of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("gcp-storage-emulator")
    flags = ["--host=localhost", f"--port={port}", "--in-memory", "--default-bucket=bucket"]
    process = subprocess.Popen([command, "start", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
            patch.setenv("FSSPEC_GCS_TOKEN", "anon")  # or each request looks for credentials first
            patch.setenv(
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
            )  # or asks for the bucket's kind by gRPC, which it has not
            deadline = time.monotonic() + 60
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("localhost", port)) == 0:
                        break
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield "gs://bucket"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def machine(tmp_path, bucket, request):
    """A function that attaches the folder of a machine, by its name, to this test's address."""
    attached = []

    def attach(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        remote.attach(f"{bucket}/{request.node.name}", folder)
        attached.append(folder)
        return folder

    yield attach
    for folder in attached:
        remote.detach(folder)


def _built(text):
    def build(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "text").write_text(text)
        (folder / "empty").touch()

    return build


def _stage(folder, text="made", name="corpus", log=None):
    with artifacts.Store(folder) as store:
        path = store.stage(name, {"key": 1}, _built(text), log=(log if log is not None else []).append)
        return path, store.events


def test_another_machine_makes_nothing_again(machine):
    path, events = _stage(machine("one"))
    assert events == [("computed", "corpus")]
    (path.parent / "results.csv").write_text("1\n")
    remote.put_files(path.parent)
    again, events = _stage(machine("two"), "never")
    assert events == [("reused", "corpus")]
    assert (again / "deep" / "text").read_text() == "made" and (again / "empty").read_text() == ""
    assert (again.parent / "results.csv").read_text() == "1\n"
    assert {record["what"] for record in artifacts.history(again.parent)} == {"begun", "computed"}


def test_a_copy_without_its_list_or_a_file_does_not_count(machine, bucket, request):
    path, _ = _stage(machine("one"))
    there = epath.Path(f"{bucket}/{request.node.name}")
    (there / path.name / "deep" / "text").unlink()
    assert _stage(machine("two"), "again")[1] == [("computed", "corpus")]
    (there / f"{path.name}.whole").unlink()
    again, events = _stage(machine("three"), "and again")
    assert events == [("computed", "corpus")]
    fourth, events = _stage(machine("four"))
    assert events == [("reused", "corpus")] and (fourth / "deep" / "text").read_text() == "and again"
    assert not list(fourth.parent.glob(".*tmp*"))


def test_checkpoints_are_there_and_only_those_that_are_kept(machine, bucket, request):
    state = {"step": jnp.array(0), "weights": jnp.arange(6.0)}
    name = "student.sft.seed0-0123456789abcdef"

    def checkpoints(folder):
        return Checkpoints(artifacts.steps_folder(folder / name), "student.sft.seed0", Policy(keep=2))

    with artifacts.Store(one := machine("one")):
        saved = checkpoints(one)
        for step in (10, 20, 30):
            now = {"step": jnp.array(step), "weights": step + jnp.arange(6.0)}
            saved.save(step, now, Progress({"loss": [0.5] * step}, (1, 2)))
            saved.wait()
        saved.close()
    there = epath.Path(f"{bucket}/{request.node.name}/.steps/{name}")
    assert sorted(path.name for path in there.iterdir()) == ["20", "20.whole", "30", "30.whole"]
    shutil.rmtree(one)  # the machine is lost
    with artifacts.Store(two := machine("two")):
        fresh = checkpoints(two)
        found, progress = fresh.load(state)
        fresh.close()
    assert int(found["step"]) == 30 and progress.curves == {"loss": [0.5] * 30} and progress.rng == (1, 2)
    np.testing.assert_array_equal(found["weights"], 30 + np.arange(6.0))
    # What a finished artefact needs no more is not kept there either.
    remote.drop(artifacts.steps_folder(two / name))
    assert not there.exists()


def test_loose_files_are_copied_as_they_change(machine):
    one = machine("one")
    (one / "metrics" / "student").mkdir(parents=True)
    log = one / "metrics" / "student" / "log.jsonl"
    log.write_text("1\n")
    remote.put_files(one)
    with log.open("a") as file:
        file.write("2\n")
    remote.put_files(one)
    (one / ".compiled").mkdir()
    (one / ".compiled" / "program").write_text("of this machine")
    remote.put_files(one)
    two = machine("two")
    again = two / "metrics" / "student" / "log.jsonl"
    assert again.read_text() == "1\n2\n" and not (two / ".compiled").exists()
    again.write_text("1\n2\n3\n")
    remote.put_files(two)
    assert machine("one") == one and log.read_text() == "1\n2\n3\n"
    log.write_text("1\n2\n3\n4\n")  # killed before it was copied
    machine("one")
    remote.put_files(one)
    machine("two")
    assert again.read_text() == "1\n2\n3\n4\n"


@pytest.mark.parametrize(
    "address, words",
    [
        ("ftp://host/folder", "cannot be read: give a path"),
        ("gs://", "cannot be read: give a path"),
        ("gs://nowhere/folder", "gs://nowhere/folder cannot be reached"),
        ("s3://bucket/folder", "pip install s3fs"),
    ],
)
def test_addresses_that_cannot_be(tmp_path, address, words):
    with pytest.raises(UserError, match=words):
        remote.attach(address, tmp_path)


@pytest.mark.parametrize(
    "flags", [["--config=configs/smoke.py", "--sweep"], ["--coordinator=a:1", "--num_processes=2", "--process_id=0"]]
)
def test_what_several_processes_share_is_no_bucket(tmp_path, flags):
    command = [sys.executable, "-m", "subtransfer.launch", f"--local={tmp_path}", "--workdir=gs://bucket/folder", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=test_kills.ROOT)
    assert done.returncode == 2 and "mount the bucket" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_bucket_that_goes_away_loses_nothing(machine, monkeypatch):
    one = machine("one")
    with monkeypatch.context() as patch:
        patch.setattr(remote.shutil, "copyfileobj", _refuse)
        with pytest.raises(UserError, match=r"cannot be reached .* is kept in .*one: run the same command again"):
            _stage(one)
    assert _stage(one, "never")[1] == [("reused", "corpus")]
    assert _stage(machine("two"), "never")[1] == [("reused", "corpus")]


def _refuse(*_):
    raise ConnectionResetError(104, "Connection reset by peer")


@pytest.mark.slow
def test_a_lost_machine_loses_no_more_than_its_last_checkpoint(tmp_path, bucket):
    """Killed in its training and in its on-policy rounds, each time with its disk; the end has an undisturbed run's bytes."""
    address, there = f"{bucket}/lost", gcsfs.GCSFileSystem(use_listings_cache=False)  # others write

    def started(name, workdir):
        return test_kills.Launched(tmp_path / name, f"--workdir={workdir}", f"--local={tmp_path / name}")

    def confirmed(stage):
        return there.glob(f"{address}/.steps/{stage}*/*.whole")

    test_kills.finish([started("sound", tmp_path / "sound")])
    for stage in ("student.forward_kl.", "student.reverse_kl."):
        run, deadline = started(stage, address), time.monotonic() + 300
        while run.running() and not confirmed(stage) and time.monotonic() < deadline:
            time.sleep(0.05)
        run.signal(signal.SIGKILL)
        code, log = run.wait()
        assert code == -signal.SIGKILL, log[-3000:]
        shutil.rmtree(tmp_path / stage)
    log = test_kills.finish([started("last", address)])
    assert "student.reverse_kl.seed0 goes on from step" in log
    last = tmp_path / "last" / "gs" / "bucket" / "lost"
    for name in ("results.csv", "results.jsonl"):
        assert (last / name).read_bytes() == (tmp_path / "sound" / name).read_bytes()
    made = [record["stage"] for record in artifacts.history(last) if record["what"] in ("computed", "redone")]
    assert len(made) == len(set(made)) and not there.exists(f"{address}/.steps")
    assert set(json.loads(there.cat(f"{address}/files.json"))) > {"results.csv", "results.jsonl", "report.html"}
