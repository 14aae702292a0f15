"""Claims: one holder at a time, whoever dies, sleeps or is far away."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from subtransfer.store import artifacts, history
from subtransfer.store.claims import Claim, ClaimLost, Claims, HeldClaim, Patience

ROOT = Path(__file__).parent.parent


@pytest.fixture
def two(tmp_path):
    """Two processes' claims on one folder, as far as one process can play two."""
    lost = []
    pair = [Claims(tmp_path, 60, lost.append) for _ in range(2)]
    yield pair
    for claims in pair:
        claims.close()
    assert not lost


def test_one_holds_it_until_it_is_given_back_or_made(two):
    one, other = two
    held = one.take("a.b")
    assert (
        other.take("a.b") is None
        and one.take("a.b") is None
        and other.look("a.b").owner == one.owner
    )
    assert (elsewhere := other.take("a")) and elsewhere.beat()  # another name
    held.release(made=False)
    again = other.take("a.b")
    assert (
        again.beat()
        and one.take("a.b") is None
        and [owner.token for owner in other.owners("a.b")][1] == one.owner.token
    )
    again.confirm()
    again.release(made=True)
    assert one.look("a.b") is None and not [
        f for f in os.listdir(one.folder) if f.startswith("a.b")
    ]


def test_of_many_takers_one_succeeds(tmp_path):
    claims = [Claims(tmp_path) for _ in range(8)]
    for round_ in range(20):
        got, gate = [], threading.Barrier(8)

        def take(mine, got=got, gate=gate, name=f"n{round_}"):
            gate.wait()
            got.append(mine.take(name))

        threads = [threading.Thread(target=take, args=(mine,)) for mine in claims]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sum(held is not None for held in got) == 1
    [mine.close() for mine in claims]


def test_a_holder_that_was_taken_over_knows_it(two):
    one, other = two
    held = one.take("x")
    assert other.take("x", expired=7) is None  # not the claim that was seen to be silent
    taken = other.take("x", expired=0)
    assert not held.beat()
    with pytest.raises(ClaimLost):
        held.confirm()
    held.release(made=False)
    assert taken.beat() and one.take("x") is None  # giving back what is lost changes nothing
    taken.release(made=True)


def test_silence_is_counted_by_the_observer_while_it_runs(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    patience = Patience()

    def after(seconds, beat="1", number=0):
        now[0] += seconds
        return patience.exhausted(Claim("x", number, beat=beat, lease=60))

    assert not after(0) and not after(1000)  # the observer slept, not the holder
    assert not after(14) and not after(14) and not after(14) and after(14)
    assert (
        not after(10, beat="2")
        and not any(after(15, beat="2") for _ in range(3))
        and after(15, beat="2")
    )
    assert not after(15, beat="2", number=1)  # another holder


def test_the_thread_keeps_a_claim_up_and_reports_its_loss(tmp_path):
    lost = threading.Event()
    one, other = Claims(tmp_path, 0.2, lambda _: lost.set()), Claims(tmp_path, 0.2)
    one.take("x")
    beats = set()
    for _ in range(100):
        beats.add(other.look("x").beat)
        time.sleep(0.01)
    assert len(beats) > 3 and not lost.is_set()
    other.take("x", expired=0).release(made=False)
    assert lost.wait(5)
    one.close()
    other.close()


HOLDER = """
import sys, time
from subtransfer.store.claims import Claims
claims = Claims(sys.argv[1], float(sys.argv[2]))
print(claims.take("x") is not None, flush=True)
time.sleep(60)
"""


def _holder(folder, lease=60):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(lease)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().strip() == "True"
    return process


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_dead_process_of_this_machine_is_no_holder(tmp_path):
    process, claims = _holder(tmp_path), Claims(tmp_path)
    claim = claims.look("x")
    assert claims.take("x") is None and not claim.owner.dead()
    process.kill()
    while process.poll() is None and not claim.owner.dead():
        time.sleep(0.01)
    assert claims.look("x").owner.dead()  # also as a zombie, before anybody has waited for it
    process.communicate()
    assert (held := claims.take("x")) and not claims.owner.dead()
    # The same number, but another process: born at another time, on another kernel, or among other
    # process numbers.
    record = json.loads((path := claims.path("x", 1)).read_text())
    for field, dead in (("born", True), ("kernel", False)):
        path.write_text(json.dumps(record | {"owner": record["owner"] | {field: "other"}}))
        assert claims.look("x").owner.dead() == dead
    held.release(made=True)
    claims.close()


def test_a_half_written_claim_is_left_to_its_lease(tmp_path):
    (tmp_path / "x.0").write_text('{"beat": "0000')
    claims = Claims(tmp_path)
    assert claims.take("x") is None and claims.look("x") == Claim("x", 0, beat='{"beat": "0000')
    claims.take("x", expired=0).release(made=True)
    assert not os.listdir(tmp_path)
    claims.close()


def test_of_two_on_a_mounted_bucket_the_first_to_send_its_file_has_it(two, monkeypatch):
    """There, exclusive creation succeeds for both; the second is told when it closes the file
    (ESTALE).
    """
    one, other = two
    one.take("x").release(made=False)
    theirs = one.path("x", 0).read_text().replace('"free"', '"held"')

    def dup(file):
        monkeypatch.undo()
        other.path("y", 0).write_text(theirs)
        raise OSError(errno.ESTALE, "stale")

    monkeypatch.setattr(os, "dup", dup)
    assert other.take("y") is None and other.look("y").owner == one.owner


def test_a_process_that_slept_too_long_ends_itself(tmp_path):
    process, claims = _holder(tmp_path, 0.4), Claims(tmp_path, 0.4)
    process.send_signal(signal.SIGSTOP)
    patience = Patience()
    while not patience.exhausted(claims.look("x")):
        time.sleep(0.05)
    held = claims.take("x", expired=0)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75 and err.startswith("error: the claim on x was taken over"), err
    assert isinstance(held, HeldClaim) and held.beat()
    claims.close()


MEMBERS = 6
HOMES = [
    ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"],
    [
        "bwrap",
        "--bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        "--unshare-net",
        "--unshare-pid",
        "--die-with-parent",
    ],
]


def _isolated():
    """A command that runs another without a network and among its own process numbers, or None."""
    for prefix in HOMES:
        if (
            shutil.which(prefix[0])
            and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
        ):
            return prefix
    return None


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_two_homes_share_one_workdir_and_one_dies(tmp_path, seed):
    """Neither sees the other's processes or network, so that only leases tell who lives: nothing
    lost, nothing twice.
    """
    import random

    from tests import stub_sweep

    prefix = _isolated()
    if prefix is None:
        pytest.skip("needs bubblewrap, or unshare as root")
    options = {"members": MEMBERS, "workers": 1, "seconds": 0.6, "lease": 2.0, "retries": 2}

    def home(number):
        folder = tmp_path / f"home{number}"
        folder.mkdir()
        command = [
            *prefix,
            sys.executable,
            "-m",
            "tests.stub_sweep",
            str(tmp_path / "w"),
            json.dumps(options),
        ]
        with (folder / "log").open("w") as log:
            env = os.environ | {"HOME": str(folder)}
            return subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=env, start_new_session=True
            )

    homes = [home(0), home(1)]
    rng = random.Random(f"homes/{seed}")
    while not list((tmp_path / "w").glob(".student*.tmp-*")):
        assert all(process.poll() is None for process in homes)
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.5))
    victim = homes.pop(rng.randrange(2))
    os.killpg(
        victim.pid, signal.SIGKILL
    )  # its first process; the others of its namespace go with it
    victim.wait()
    assert homes[0].wait(timeout=120) == 0, [
        (tmp_path / f"home{i}" / "log").read_text() for i in range(2)
    ]
    _nothing_lost_nothing_twice(tmp_path / "w", stub_sweep.plan(MEMBERS))
    assert len({record["owner"] for record in history.read(tmp_path / "w")}) >= 2


def _nothing_lost_nothing_twice(workdir, plan, kills=1):
    for node in plan.nodes:
        assert artifacts.is_whole(workdir / node.folder)
    sealed = [record["stage"] for record in history.read(workdir) if record["what"] != "begun"]
    assert len(sealed) == len(set(sealed)) and set(sealed) <= {node.folder for node in plan.nodes}
    # A kill between a seal and its line loses the line, and leaves the claim on what is there for
    # all to take.
    assert len(sealed) >= len(plan.nodes) - kills
    assert len({file.stem for file in (workdir / ".claims").iterdir()}) <= kills
    assert not list(workdir.glob(".*.tmp-*"))
    assert sorted(p.name for p in (workdir / "runs").iterdir()) == [
        member.name for member in plan.members
    ]
    for i, member in enumerate(plan.members):
        assert (
            workdir / "runs" / member.name / "results.csv"
        ).read_text() == f"results {i}\nreport {i}\n"


# -- processes that do not show themselves, and processes that hang ------------------------------


def test_a_process_that_does_not_show_itself_is_left_to_its_lease(tmp_path, monkeypatch):
    """As where /proc is mounted with hidepid: only that a number is free says that it is dead."""
    process, claims = _holder(tmp_path), Claims(tmp_path)
    (tmp_path / "proc").mkdir()
    monkeypatch.setattr("subtransfer.store.claims._PROC", tmp_path / "proc")
    assert not claims.look("x").owner.dead() and claims.take("x") is None
    process.kill()
    process.communicate()  # nobody has the number any more
    assert claims.look("x").owner.dead()
    claims.take("x").release(made=True)
    claims.close()


HIDDEN = """
import sys
from pathlib import Path
from subtransfer.store.claims import Claims
claims = Claims(Path(sys.argv[1]))
claim = claims.look("x")
print(Path(f"/proc/{claim.owner.pid}").exists(), claim.owner.dead(), claims.take("x"))
"""


def test_another_users_living_process_keeps_its_claim_under_hidepid(tmp_path):
    """Two users of one machine whose /proc shows to each only what is theirs."""
    script = f"""
    mount -t proc -o hidepid=2 none /proc || exit 99
    cd {ROOT}
    setpriv --reuid=65534 --regid=65534 --clear-groups {sys.executable} -c '{HOLDER}' {tmp_path} 60 &
    holder=$!
    while ! grep -qs held {tmp_path}/x.0; do sleep 0.02; kill -0 $holder || exit 98; done
    setpriv --reuid=65533 --regid=65533 --clear-groups {sys.executable} -c '{HIDDEN}' {tmp_path}
    kill -9 $holder; wait $holder
    setpriv --reuid=65533 --regid=65533 --clear-groups {sys.executable} -c '{HIDDEN}' {tmp_path}
    """
    private = ["unshare", "--pid", "--mount", "--fork", "--kill-child"]
    if not shutil.which("setpriv") or subprocess.run([*private, "true"]).returncode:
        pytest.skip("needs root, unshare and setpriv")
    # Both users write here; pytest's own folders are closed to others.
    above = [p for p in tmp_path.parents if p.is_relative_to(tempfile.gettempdir())]
    for folder in (tmp_path, *above[:-1]):
        folder.chmod(0o777)
    done = subprocess.run([*private, "bash", "-c", script], capture_output=True, text=True)
    if done.returncode == 99:
        pytest.skip("/proc cannot be mounted here")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["True", "False False None"], (done.stdout, done.stderr)
    assert lines[2].startswith("False True <subtransfer.store.claims.HeldClaim"), done.stdout


HANGING = """
import sys, time
from subtransfer.runtime.progress import moved
from subtransfer.store.claims import Claims
claims = Claims(sys.argv[1], float(sys.argv[2]), stall=1.0)
print(claims.take("x") is not None, flush=True)
for _ in range(15):  # longer than the limit, but it goes on
    time.sleep(0.1)
    moved()
print("hangs", flush=True)
time.sleep(60)
"""


def test_who_hangs_loses_its_claim_and_ends(tmp_path):
    """Its threads live on; they fall silent, and end it once another has taken over."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(tmp_path), "0.4"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    claims, patience = Claims(tmp_path, 0.4), Patience()
    assert process.stdout.readline() == "True\n"
    assert process.stdout.readline() == "hangs\n"
    assert claims.take("x") is None
    begin = time.monotonic()
    while not patience.exhausted(claims.look("x")):
        assert time.monotonic() - begin < 60
        time.sleep(0.02)
    assert time.monotonic() - begin > 0.9  # the limit, and then the lease
    held = claims.take("x", expired=claims.look("x").number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert err.startswith("no progress for ") and "the claim on x was taken over" in err, err
    held.release(made=True)
    claims.close()
