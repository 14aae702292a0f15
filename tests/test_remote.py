"""Workdirs in a bucket, by gcsfs and an emulator of Google Cloud Storage: what is finished there is
found there.
"""

import concurrent.futures
import dataclasses
import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest

from subtransfer.runtime import progress
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts, buckets, history
from subtransfer.store.bucket_claims import BucketClaim
from subtransfer.store.journal import Journals
from subtransfer.store.workdir import steps_folder
from subtransfer.training.checkpoints import Checkpoints, CheckpointSchedule, TrainingProgress
from tests import test_kills
from tests.launching import launch

gcsfs = pytest.importorskip("gcsfs")
# gcsfs gives aiohttp its blocks as bytes, which are large.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def bucket():
    """A bucket of an emulator that runs as a process of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.bucket_emulator", "start"]
    flags = ["--host=localhost", f"--port={port}", "--in-memory", "--default-bucket=bucket"]
    process = subprocess.Popen(
        [*command, *flags],
        cwd=test_kills.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
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
        buckets.attach(f"{bucket}/{request.node.name}", folder)
        buckets.fetch_files(folder)
        attached.append(folder)
        return folder

    yield attach
    for folder in attached:
        buckets.detach(folder)


def _built(text):
    def build(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "text").write_text(text)
        (folder / "empty").touch()

    return build


@pytest.fixture
def there(bucket, request):
    """What lies at this test's address, as another program sees it: a function that returns a
    path's names, and the file system of the bucket.
    """

    class There:
        files = gcsfs.GCSFileSystem(use_listings_cache=False, skip_instance_cache=True)
        root = f"{bucket}/{request.node.name}".removeprefix("gs://")

        def names(self, folder):
            return sorted(
                name.rpartition("/")[2] for name in self.files.ls(f"{self.root}/{folder}")
            )

        def remove(self, name):
            self.files.rm_file(f"{self.root}/{name}")

        def write(self, name, text):
            self.files.pipe_file(f"{self.root}/{name}", text.encode())

        def exists(self, name):
            return self.files.exists(f"{self.root}/{name}")

    return There()


def _stage(folder, text="made", name="corpus", log=None):
    with artifacts.Store(folder) as store:
        path = store.stage(
            name, {"key": 1}, _built(text), log=(log if log is not None else []).append
        )
        return path, store.events


def test_another_machine_makes_nothing_again(machine):
    path, events = _stage(machine("one"))
    assert events == [("computed", "corpus")]
    (path.parent / "results.csv").write_text("1\n")
    buckets.put_files(path.parent)
    again, events = _stage(machine("two"), "never")
    assert events == [("reused", "corpus")]
    assert (again / "deep" / "text").read_text() == "made" and (again / "empty").read_text() == ""
    assert (again.parent / "results.csv").read_text() == "1\n"
    assert {record["what"] for record in history.read(again.parent)} == {"begun", "computed"}


def test_a_copy_without_its_list_or_a_file_does_not_count(machine, there):
    path, _ = _stage(machine("one"))
    there.remove(f"{path.name}/deep/text")
    assert _stage(machine("two"), "again")[1] == [("computed", "corpus")]
    third, events = _stage(
        machine("three"), "never"
    )  # what was made took the place of what was broken
    assert events == [("reused", "corpus")] and (third / "deep" / "text").read_text() == "again"
    there.remove(f"{path.name}.whole")
    assert _stage(machine("four"), "and again")[1] == [("computed", "corpus")]
    last, events = _stage(machine("five"), "never")
    assert events == [("reused", "corpus")] and (last / "deep" / "text").read_text() == "and again"
    assert not list(last.parent.glob(".*tmp*"))


def test_steps_of_what_is_finished_are_removed(machine, there):
    path, _ = _stage(machine("one"))
    for name in (path.name, "student-of-another"):
        there.write(f".steps/{name}/20/state", "x")
    _stage(machine("two"))
    assert there.names(".steps") == ["student-of-another"]


OUTSIDE = ["../outside", "a/../../outside", "/tmp/outside", ".", ""]


@pytest.mark.parametrize("name", OUTSIDE, ids=["above", "around", "root", "itself", "nothing"])
def test_lists_name_nothing_outside_of_the_workdir(machine, there, tmp_path, name):
    """Whoever may write to the bucket writes no files elsewhere on the machines that use it."""
    path, _ = _stage(machine("one"))
    there.write(f"{path.name}.whole", json.dumps({name: 4}))
    with pytest.raises(UserError, match=r"\.whole of the workdir .* no name of a file below it"):
        _stage(machine("two"))
    there.write("files.json", json.dumps([name]))
    with pytest.raises(UserError, match=r"files\.json of the workdir .* no name of a file below"):
        machine("three")
    assert not list(tmp_path.rglob("outside")) and not Path("/tmp/outside").exists()


@pytest.mark.parametrize(
    "text", ["[3]", "{}", "[", "\x00"], ids=["numbers", "object", "cut", "bytes"]
)
def test_lists_that_no_run_has_written_are_named(machine, there, text):
    machine("one")
    there.write("files.json", text)
    with pytest.raises(UserError, match=r"files\.json of the workdir .* remove it"):
        machine("two")


def test_checkpoints_are_there_and_only_those_that_are_kept(machine, there):
    state = {"step": jnp.array(0), "weights": jnp.arange(6.0)}
    name = "student.sft.seed0-0123456789abcdef"

    def checkpoints(folder):
        return Checkpoints(
            steps_folder(folder / name), "student.sft.seed0", CheckpointSchedule(keep=2)
        )

    with artifacts.Store(one := machine("one")):
        saved = checkpoints(one)
        for step in (10, 20, 30):
            now = {"step": jnp.array(step), "weights": step + jnp.arange(6.0)}
            saved.save(step, now, TrainingProgress({"loss": [0.5] * step}, (1, 2)))
            saved.wait()
        saved.close()
    assert there.names(f".steps/{name}") == ["20", "20.whole", "30", "30.whole"]
    shutil.rmtree(one)  # the machine is lost
    with artifacts.Store(two := machine("two")):
        fresh = checkpoints(two)
        found, progress = fresh.load(state)
        fresh.close()
    assert (
        int(found["step"]) == 30
        and progress.curves == {"loss": [0.5] * 30}
        and progress.rng == (1, 2)
    )
    np.testing.assert_array_equal(found["weights"], 30 + np.arange(6.0))
    # What a finished artefact needs no more is not kept there either.
    buckets.drop(steps_folder(two / name))
    assert not there.exists(f".steps/{name}")


def test_loose_files_are_copied_as_they_change(machine):
    one = machine("one")
    (one / "metrics" / "student").mkdir(parents=True)
    log = one / "metrics" / "student" / "log.jsonl"
    log.write_text("1\n")
    buckets.put_files(one)
    with log.open("a") as file:
        file.write("2\n")
    buckets.put_files(one)
    (one / ".compiled").mkdir()
    (one / ".compiled" / "program").write_text("of this machine")
    buckets.put_files(one)
    two = machine("two")
    again = two / "metrics" / "student" / "log.jsonl"
    assert again.read_text() == "1\n2\n" and not (two / ".compiled").exists()
    again.write_text("1\n2\n3\n")
    buckets.put_files(two)
    assert machine("one") == one and log.read_text() == "1\n2\n3\n"
    log.write_text("1\n2\n3\n4\n")  # killed before it was copied
    machine("one")
    buckets.put_files(one)
    machine("two")
    assert again.read_text() == "1\n2\n3\n4\n"


def test_a_journal_goes_on_on_another_machine_and_goes_with_its_stage(machine, there):
    one = machine("one")
    with artifacts.Store(one):
        journal = Journals(one / "rollouts-1", "rollouts", 0.001).open("lane", {})
        journal.append(b"0")
        journal.append(b"1")  # is there with the file that ended
        journal.append(b"2")
        # The machine is lost.
    two = machine("two")
    with artifacts.Store(two):
        again = Journals(two / "rollouts-1", "rollouts", 120.0).open("lane", {})
        assert again.records[:2] == [b"0", b"1"]
        again.append(b"next")
        again.close()
        shutil.rmtree(two / ".steps")
        buckets.drop(two / ".steps" / "rollouts-1")
    assert not there.exists(".steps/rollouts-1/journals")
    assert not (machine("three") / ".steps").exists()
    # A list that names what has gone, as a kill may leave it, hinders nobody.
    there.write("files.json", '[".steps/rollouts-1/journals/lane.000000.00.000000.log"]')
    assert not (machine("four") / ".steps").exists()


@pytest.mark.parametrize("address", ["ftp://host/folder", "gs://", "gs://bucket//folder"])
def test_addresses_that_cannot_be(address):
    with pytest.raises(UserError, match="cannot be read: give a path"):
        buckets.parse(address)


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named(tmp_path):
    with pytest.raises(UserError, match="pip install s3fs"):
        buckets.attach("s3://bucket/folder", tmp_path)


def test_a_bucket_that_is_not_there_is_told_before_any_work(tmp_path):
    buckets.attach("gs://nowhere/folder", tmp_path)
    try:
        with pytest.raises(UserError, match="gs://nowhere/folder cannot be reached"):
            _stage(tmp_path)
        assert not list(tmp_path.glob("corpus*"))
    finally:
        buckets.detach(tmp_path)


def test_a_plan_knows_what_the_bucket_holds(machine):
    path, _ = _stage(machine("one"))
    two = machine("two")
    assert (
        buckets.holds(two / path.name)
        and not buckets.holds(two / "corpus-of-another")
        and not buckets.holds(path / "deep")
    )


@pytest.mark.parametrize(
    "flags",
    [
        ["--config=configs/smoke.py", "--sweep"],
        ["--coordinator=a:1", "--num_processes=2", "--process_id=0"],
    ],
)
def test_what_several_processes_share_is_no_bucket(tmp_path, flags):
    assert "mount the bucket" in _refused(
        f"--local={tmp_path}", "--workdir=gs://bucket/folder", *flags
    )


def test_a_run_in_a_folder_works_nowhere_else(tmp_path):
    assert "--local goes with a --workdir in a bucket" in _refused(
        f"--local={tmp_path}", f"--workdir={tmp_path}"
    )


def _refused(*flags):
    done = launch(flags, test_kills.ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# -- one run at a time -----------------------------------------------------------------------------


def _claim(bucket, request, lease=1.0):
    files = gcsfs.GCSFileSystem(use_listings_cache=False, skip_instance_cache=True)
    address = f"{bucket}/{request.node.name}"
    return BucketClaim(files, address.removeprefix("gs://"), address, lease)


def test_a_second_run_is_refused_while_the_first_lives(machine, bucket, request):
    lines = []
    with artifacts.Store(machine("one"), lease=1.0):
        second = _claim(bucket, request)
        begin = time.monotonic()
        with pytest.raises(UserError, match=r"is in use by another run .*, pid \d+\)"):
            second.take(lines.append)
        assert time.monotonic() - begin < 1.5 and "was claimed by" in lines[0]
    second = _claim(bucket, request)  # given back: at once
    second.take(lines.append)
    assert len(lines) == 1
    with pytest.raises(UserError, match="is in use by another run"):
        _stage(machine("three"))
    second.release()
    assert _stage(machine("three"))[1] == [("computed", "corpus")]


def test_a_lost_machine_is_waited_for_and_what_wakes_up_writes_nothing(machine, bucket, request):
    """Its process on another machine cannot be looked at: only its silence says so."""
    lost = _claim(bucket, request, lease=1.0)
    lost._owner = dataclasses.replace(lost._owner, kernel="another")
    lost._beating = lambda: None
    lost.take(print)
    lines = []
    taker = _claim(bucket, request, lease=1.0)
    begin = time.monotonic()
    taker.take(lines.append)
    assert 0.9 < time.monotonic() - begin < 10 and "watching for 1 s" in lines[0]
    with pytest.raises(UserError, match="was taken over by another run"):
        lost.check()
    taker.check()
    taker.release()
    lost.release()
    taker = _claim(bucket, request)
    begin = time.monotonic()
    taker.take(lines.append)  # what the lost one wrote on its way out does not count
    assert time.monotonic() - begin < 0.9
    taker.release()


def test_a_dead_process_of_this_machine_is_not_waited_for(machine, bucket, request):
    code = """
import os, sys, gcsfs
from subtransfer.store.bucket_claims import BucketClaim
files = gcsfs.GCSFileSystem(use_listings_cache=False)
claim = BucketClaim(files, sys.argv[1], sys.argv[1], 600.0)
claim.take(print)
os._exit(0)
"""
    root = f"{bucket}/{request.node.name}".removeprefix("gs://")
    subprocess.run([sys.executable, "-c", code, root], check=True, cwd=test_kills.ROOT)
    taker = _claim(bucket, request)
    taker.take(lambda line: pytest.fail(line))
    taker.release()


def test_of_many_takers_one_succeeds(bucket, request):
    claims = [_claim(bucket, request, lease=2.0) for _ in range(6)]

    def take(claim):
        try:
            claim.take(lambda line: None)
        except UserError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(take, claims))
    assert sum(taken) == 1
    for claim in claims:
        claim.release()


def test_a_store_without_conditions_lets_one_have_it():
    """Where a client overwrites whatever was asked, who reads its own back has it."""

    class Careless(fsspec.get_filesystem_class("memory")):
        store, pseudo_dirs = {}, [""]
        cachable = False

        def pipe_file(self, path, value, mode="overwrite", **kwargs):
            super().pipe_file(path, value, mode="overwrite", **kwargs)

    one, two = (BucketClaim(Careless(), "/w", "memory://w", 2.0) for _ in range(2))
    create, waiting = two._create, threading.Event()

    def late(number):
        waiting.set()  # it has looked, and found nothing
        create(number)

    two._create = late
    writing = one._write

    def slow(number, **how):
        assert waiting.wait(10)
        writing(number, **how)

    one._write = slow
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = [pool.submit(claim.take, lambda line: None) for claim in (one, two)]
        errors = [future.exception() for future in found]
    assert sum(error is None for error in errors) == 1
    assert sum(isinstance(error, UserError) for error in errors) == 1
    one.release()
    two.release()


def test_a_run_that_hangs_falls_silent_until_it_goes_on():
    """Then another run may take over after the lease; one that goes on in time keeps its claim."""
    files = fsspec.filesystem("memory")
    claim = BucketClaim(files, "/hanging", "memory://hanging", 0.2, stall=0.3)
    claim.take(lambda line: None)
    try:
        first = claim._look().beat
        silent = _beats_until_silence(claim)
        assert silent != first
        progress.moved()
        deadline = time.monotonic() + 10
        while claim._look().beat == silent and time.monotonic() < deadline:
            time.sleep(0.05)
        assert claim._look().beat != silent
        _beats_until_silence(claim)
        other = BucketClaim(files, "/hanging", "memory://hanging", 0.2)
        other.take(lambda line: None)
        with pytest.raises(UserError, match="was taken over by another run"):
            claim.check()
        other.release()
    finally:
        claim.release()


def _beats_until_silence(claim):
    """The beat that none follows for many intervals."""
    last, since = claim._look().beat, time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        if claim._look().beat != last:
            last, since = claim._look().beat, time.monotonic()
    return last


@pytest.mark.parametrize("text", ["[]", "{", '{"owner": {}, "beat": 1, "lease": 1, "free": false}'])
def test_a_damaged_claim_is_left_to_its_lease(bucket, request, there, text):
    there.write(".claims/run.7", text)
    taker = _claim(bucket, request, lease=0.5)
    taker.take(lambda line: None)
    assert there.names(".claims") == ["run.8"]
    taker.release()


def test_a_bucket_that_goes_away_loses_nothing(machine, monkeypatch):
    one = machine("one")
    with monkeypatch.context() as patch:
        patch.setattr(fsspec.filesystem("gs"), "put_file", _refuse)
        with pytest.raises(
            UserError, match=r"cannot be reached .* is kept in .*one: run the same command again"
        ):
            _stage(one)
    assert _stage(one, "never")[1] == [("reused", "corpus")]
    assert _stage(machine("two"), "never")[1] == [("reused", "corpus")]


def _refuse(*_):
    raise ConnectionResetError(104, "Connection reset by peer")


@pytest.mark.slow
def test_a_lost_machine_loses_no_more_than_its_last_checkpoint(tmp_path, bucket):
    """Killed in its training and in its on-policy rounds, each time with its disk; the end has an
    undisturbed run's bytes.
    """
    address, there = f"{bucket}/lost", gcsfs.GCSFileSystem(use_listings_cache=False)  # others write

    def started(name):
        return test_kills.Launched(
            tmp_path / name, f"--workdir={address}", f"--local={tmp_path / name}"
        )

    def confirmed(stage):
        return there.glob(f"{address}/.steps/{stage}*/*.whole")

    test_kills.finish(test_kills.launch(tmp_path / "sound"))
    for stage in ("student.forward_kl.", "student.reverse_kl."):
        run, deadline = started(stage), time.monotonic() + 300
        while run.running() and not confirmed(stage) and time.monotonic() < deadline:
            time.sleep(0.05)
        run.signal(signal.SIGKILL)
        code, log = run.wait()
        assert code == -signal.SIGKILL, log[-3000:]
        shutil.rmtree(tmp_path / stage)
    log = test_kills.finish([started("last")])
    assert "student.reverse_kl.seed0 goes on from step" in log
    last = tmp_path / "last" / "gs" / "bucket" / "lost"
    for name in ("results.csv", "results.jsonl"):
        assert (last / name).read_bytes() == (tmp_path / "sound" / name).read_bytes()
    made = [
        record["stage"] for record in history.read(last) if record["what"] in ("computed", "redone")
    ]
    assert len(made) == len(set(made)) and not there.exists(f"{address}/.steps")
    assert set(json.loads(there.cat(f"{address}/files.json"))) > {
        "results.csv",
        "results.jsonl",
        "report.html",
    }
