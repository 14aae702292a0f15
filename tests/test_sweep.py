"""Sweeps: the helpers, expansion and its refusals, the plan, and the runner with stages that only
write a file.
"""

import gc
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from subtransfer.config import reading as configuration
from subtransfer.config.sweep import Member, chain, expand, members, product, seeds, vary, zipped
from subtransfer.experiment.graph import Experiment
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import digest
from subtransfer.store import history
from subtransfer.sweeps import command, devices
from subtransfer.sweeps.planning import plan
from subtransfer.sweeps.schedule import Schedule
from subtransfer.sweeps.show import Rates
from tests import stub_sweep
from tests.test_claims import _nothing_lost_nothing_twice

ROOT = Path(__file__).parent.parent
HEAD = "from subtransfer.config import defaults\nfrom subtransfer.config import *\ndef get_config():\n    return defaults()\n"


def _file(tmp_path, body, head=HEAD):
    path = tmp_path / "config.py"
    path.write_text(
        head + "def sweep():\n" + "".join(f"    {line}\n" for line in body.splitlines())
    )
    return str(path)


# -- helpers ---------------------------------------------------------------------------------------------------------


def test_names_and_order():
    two = product(vary("base.width", 16, 32), vary("distill.objective", "sft", "sft,forward_kl"))
    assert [member.name for member in two] == [
        "width=16,objective=sft",
        "width=16,objective=sft+forward_kl",
        "width=32,objective=sft",
        "width=32,objective=sft+forward_kl",
    ]
    assert two[1].flags() == ["--config.base.width=16", "--config.distill.objective=sft,forward_kl"]
    assert [member.name for member in seeds(2, first=5)] == ["seed=5", "seed=6"]
    # The last part alone would not say which learning rate.
    assert vary("distill.learning_rate", 1e-3)[0].name == "distill.learning_rate=0.001"
    (named,) = vary("tuning.targets", {"attention": ("q", "k")})
    assert named == Member("targets=attention", {"tuning.targets": ("q", "k")})
    assert named.flags() == ["--config.tuning.targets=('q', 'k')"]
    assert vary("tuning.targets", ("q", "k"))[0].name == "targets=q+k"
    pairs = zipped(vary("base.width", 16, 32), vary("base.mlp_width", 48, 96))
    assert pairs[1] == Member("width=32,mlp_width=96", {"base.width": 32, "base.mlp_width": 96})
    assert chain(pairs, seeds(1)) == [*pairs, *seeds(1)]
    assert product([Member("", {})], seeds(1)) == seeds(1) and product() == [Member("", {})]
    with pytest.raises(UserError, match="one length, and got 2, 1"):
        zipped(seeds(2), seeds(1))
    with pytest.raises(UserError, match="more than one sets seed"):
        product(seeds(2), seeds(2))


FIELDS = {
    "base.width": st.integers(1, 4),
    "distill.learning_rate": st.floats(1e-5, 1, allow_subnormal=False),
    "distill.objective": st.sampled_from(["sft", "forward_kl"]),
    "distill.mask_unsafe": st.booleans(),
    "seed": st.integers(0, 3),
}
AXES = st.lists(st.sampled_from(list(FIELDS)), min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.tuples(
        *(
            st.tuples(st.just(name), st.lists(FIELDS[name], min_size=1, max_size=4))
            for name in names
        )
    )
)


@given(AXES)
def test_names_differ_exactly_where_overrides_do(axes):
    made = product(*(vary(field, *values) for field, values in axes))
    overrides = {json.dumps(dict(member.overrides), sort_keys=True) for member in made}
    assert len({member.name for member in made}) == len(overrides)
    expected = 1
    for _, values in axes:
        expected *= len(values)
    assert len(made) == expected


@given(AXES, AXES)
def test_products_are_associative_and_chains_distribute(axes, more):
    one, two = ([vary(field, *values) for field, values in some] for some in (axes, more))
    third = [Member("x", {})]
    assert product(product(*one), third) == product(*one, third)
    assert product(chain(product(*one), product(*two)), third) == chain(
        product(*one, third), product(*two, third)
    )
    assert zipped(product(*one)) == product(*one)


@given(AXES)
def test_the_command_line_gives_the_same_config(axes):
    (member, *_) = product(*(vary(field, *values) for field, values in axes))
    given_, typed = (
        configuration.Config.of(configuration.defaults()),
        configuration.Config.of(configuration.defaults()),
    )
    configuration.apply_overrides(typed, member.overrides)
    texts = dict(flag.removeprefix("--config.").split("=", 1) for flag in member.flags())
    configuration.apply_overrides(given_, texts)
    assert given_ == typed and configuration.Config.of(configuration.defaults()) != {}


# -- expansion and its refusals --------------------------------------------------------------------------------------

REFUSED = {
    "no sweep": (None, "describes no sweep"),
    "empty": ("return []", "returns no members"),
    "no list": ("return 3", "must return a list of members, not int"),
    "no member": ("return [3]", "returns 3, which is no member"),
    "fields in a list": (
        "from subtransfer.config.sweep import Member; return [Member('a', [('seed', 1)])]",
        "which is no member: a name and a mapping of config fields",
    ),
    "a field without a name": ("return [('a', {1: 2})]", "which is no member"),
    "a name that is no text": ("return [(1, {'seed': 1})]", "which is no member"),
    "fails": ("return 1 / 0", "fails with ZeroDivisionError"),
    "same name": (
        "return [('a', {'seed': 1}), ('a', {'seed': 2})]",
        "Two members of the sweep are named 'a'",
    ),
    "same config": (
        "return [('a', {'seed': 1}), ('b', {'seed': 1})]",
        "'a' and 'b' of the sweep are the same experiment",
    ),
    "same by default": (
        "return [('a', {}), ('b', {'seed': 0})]",
        "'a' and 'b' of the sweep are the same experiment",
    ),
    "no folder": ("return [('a/b', {})]", "Member 1 of the sweep cannot be named 'a/b'"),
    "no name": ("return product()", "Member 1 of the sweep cannot be named ''"),
    "parent": ("return [('..', {})]", "cannot be named '..'"),
    "unknown field": (
        "return vary('distill.rat', 1)",
        "Member 'distill.rat=1' of the sweep: There is no config field 'distill.rat'; the nearest",
    ),
    "wrong type": (
        "return [('a', {'seed': 'x'})]",
        "Member 'a' of the sweep: --config.seed takes an integer, not 'x'",
    ),
    "wrong kind": (
        "return [('a', {'base.width': 1.5})]",
        "Member 'a' of the sweep: base.width is set to 1.5, which is no int",
    ),
    "out of range": (
        "return vary('base.width', 64, 0)",
        "Member 'width=0' of the sweep: base.width=0 cannot be",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, tmp_path):
    body, message = REFUSED[case]
    path = _file(tmp_path, body) if body else str(ROOT / "configs" / "quickstart.py")
    with pytest.raises(UserError) as refused:
        members(path, {})
    assert message in str(refused.value)


def test_overrides_of_the_command_line_apply_to_all_members(tmp_path):
    path = _file(tmp_path, "return product(vary('base.width', 16, 32), seeds(2))")
    sweep = expand(path, {"base.width": "48", "distill.learning_rate": "1"})
    config = sweep.config(sweep.members[0])
    assert (
        config.base.width == 48
        and config.distill.learning_rate == 1.0
        and sweep.base.base.width == 64
    )
    with pytest.raises(
        UserError,
        match="'width=16,seed=0' and 'width=32,seed=0' of the sweep are the same experiment",
    ):
        members(path, {"base.width": "48"})
    assert [member.name for member in members(path, {"base.steps": "1"})][:2] == [
        "width=16,seed=0",
        "width=16,seed=1",
    ]


def test_members_share_stages_and_have_those_of_single_runs(tmp_path):
    path = _file(
        tmp_path,
        "return product(vary('distill.learning_rate', 1e-3, 2e-3), vary('distill.objective', 'sft', 'forward_kl'))",
    )
    # Whatever bases are shipped.
    given = {"num_seeds": "1", "base.from_scratch": "true"}
    sweep = expand(path, given)
    made = plan(sweep, tmp_path, 1)
    for at, member in enumerate(sweep.members):
        texts = dict(flag.removeprefix("--config.").split("=", 1) for flag in member.flags())
        alone = Experiment(
            configuration.load(path, texts | given),
            tmp_path,
            sharding.plan_mesh(devices=1),
        )
        assert [made.nodes[n].folder for n in made.stages[at]] == [
            stage.folder for stage in alone.plan.values()
        ]
        assert all(stage.digest == digest(stage.key) for stage in alone.plan.values())
        done = set()
        for number in made.stages[at]:  # inputs come first
            assert set(made.nodes[number].inputs) <= done
            done.add(number)
    shared = {node.name for node in made.nodes if len(node.users) == 4}
    assert {
        "corpus",
        "base",
        "base_other",
        "teacher.trait.seed0",
        "sanitize.benign.seed0",
        "probe.base.seed0",
    } <= shared
    assert made.node(0, "student.sft.seed0").users.tolist() == [0] and len(set(made.geometry)) == 1
    with pytest.raises(UserError, match="does not use all 1 devices"):
        plan(expand(path, {"mesh.fsdp": "2"}), tmp_path, 1, to_run=True)


def test_a_thousand_members_are_light(tmp_path):
    """What is kept of a member is a few numbers: neither configs nor what builds its stages."""
    path = _file(
        tmp_path,
        "return product(vary('distill.learning_rate', *[(1 + i) / 1e4 for i in range(100)]), seeds(10))",
    )
    few = {
        "num_seeds": "1",
        "distill.objective": "sft",
        "arms.other_init": "false",
        "arms.benign_teacher": "false",
    }
    few |= {"arms.self_distilled": "false", "arms.unsanitized": "false", "arms.overt": "false"}
    sweep = expand(path, few)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = plan(sweep, tmp_path, 1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    gc.collect()
    assert not [
        thing for thing in gc.get_objects() if type(thing) is Experiment
    ]  # isinstance asks proxies
    stages = len(made.stages[0])
    assert len(made.members) == 1000 and all(len(own) == stages for own in made.stages)
    # A seed's base, teacher, rollouts and their probes are shared; a learning rate has a student,
    # its probes and results.
    assert len(made.nodes) == 10 * (stages - 5) + 1000 * 5
    assert grown < 32 << 10


def test_the_plan_is_shown_with_what_it_costs(tmp_path):
    path = _file(
        tmp_path, "return vary('distill.learning_rate', *[(1 + i) / 1e4 for i in range(40)])"
    )
    few = {
        "num_seeds": "1",
        "base.from_scratch": "true",
        "distill.objective": "sft",
        "arms.other_init": "false",
        "arms.benign_teacher": "false",
    }
    few |= {"arms.self_distilled": "false", "arms.unsanitized": "false", "arms.overt": "false"}

    def shown(workdir):
        console = Console(record=True, width=144, file=io.StringIO())
        options = {"workers": 2, "retries": 2, "lease": 60.0, "dry_run": True}
        assert command.run(path, few, workdir, console, **options) == 0
        return console.export_text()

    text = shown(tmp_path / "w")
    first, second, *_ = (
        line.split()
        for line in text.splitlines()
        if line.lstrip().startswith("distill.learning_rate=")
    )
    assert (
        first[:4] == ["distill.learning_rate=0.0001", "12", "7", "12"]
        and second[3] == "5"
        and len(second) == 5
    )
    assert "... and 10 more members." in text and not (tmp_path / "w").exists()
    assert "40 members with 480 stages, of which 207 are different and 7 shared; 207 to do" in text
    assert "nothing has been computed in this workdir yet" in text
    made = plan(expand(path, few), tmp_path / "w", 1)
    (tmp_path / "w" / "stages").mkdir(parents=True)
    record = {
        "stage": made.node(0, "base").folder,
        "what": "computed",
        "seconds": 60,
        "flops": made.node(0, "base").flops,
    }
    (tmp_path / "w" / "stages" / "x.jsonl").write_text(json.dumps(record) + "\n")
    text = shown(tmp_path / "w")
    assert (
        "min of one worker" in text
        and "from the times of the 1 stages computed in this workdir so far" in text
    )


# -- the schedule ----------------------------------------------------------------------------------------------------


def test_depth_first_and_failures_stop_only_who_needs_them():
    schedule = Schedule(stub_sweep.plan(3), set(), retries=1)
    name = lambda choice: (schedule.plan.nodes[choice[0]].name, choice[1])  # noqa: E731
    base = schedule.next(None)
    assert name(base) == ("base", 0)
    schedule.started(base[0])
    assert schedule.next(None) is None and schedule.left == 10
    assert schedule.failed(base[0], "killed", transient=True) and schedule.next(0) == base
    schedule.done(base[0])
    first, second = schedule.next(1), schedule.next(2)
    assert name(first) == ("student", 1) and name(second) == ("student", 2)
    schedule.started(first[0])
    schedule.done(first[0])
    assert name(schedule.next(1)) == ("results", 1) and name(schedule.next(None)) == ("student", 0)
    assert not schedule.failed(second[0], "bad", transient=False) and list(schedule.failures) == [2]
    while choice := schedule.next(1):
        schedule.started(choice[0])
        schedule.done(choice[0])
    assert schedule.over and sorted(schedule.completed) == [0, 1] and schedule.unfinished(2) == 3


@given(st.integers(1, 8), st.randoms(use_true_random=False))
def test_any_course_of_events_ends(count, rng):
    """Whatever is found done, fails, or is made elsewhere: every member ends, and no stage is begun
    before its inputs.
    """
    made = stub_sweep.plan(count)
    schedule = Schedule(made, {n for n in range(len(made.nodes)) if rng.random() < 0.2}, retries=1)
    running = []
    for _ in range(1000):
        if schedule.over:
            break
        choice = schedule.next(rng.choice([None, *range(count)]))
        if choice and len(running) < 3:
            number, member = choice
            assert number in made.stages[member] and member not in schedule.failures
            assert all(schedule.state[given_] == 4 for given_ in made.nodes[number].inputs)
            schedule.started(number)
            running.append(number)
        elif running:
            number = running.pop(rng.randrange(len(running)))
            what = rng.random()
            if what < 0.2:
                schedule.failed(number, "x", transient=rng.random() < 0.5)
            elif what < 0.3:
                schedule.busy(number)
            else:
                schedule.done(number)
        for number in tuple(schedule.elsewhere):
            rng.choice([schedule.again, schedule.done])(number)
    assert schedule.over and len(schedule.completed) + len(schedule.failures) == count


# -- the runner ------------------------------------------------------------------------------------------------------


def _start(workdir, **options):
    options = {"members": 6, "workers": 2, "seconds": 0.05, "lease": 60, "retries": 2} | options
    command = [sys.executable, "-m", "tests.stub_sweep", str(workdir), json.dumps(options)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _finish(process):
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


def _children(pid):
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]


def _states(workdir):
    return {row["name"]: row for row in json.loads((workdir / "sweep.json").read_text())["members"]}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers in /proc")
@pytest.mark.parametrize(
    ("most", "members", "seconds"),
    [(4, 10, 0.4), pytest.param(12, 24, 0.2, marks=pytest.mark.slow)],
)
def test_killed_again_and_again(tmp_path, most, members, seconds):
    """Single workers and, each third time, the whole command with SIGKILL, at random moments: all
    is done, and no stage was sealed twice.
    """
    rng, workdir, kills = random.Random("sweep/kills"), tmp_path / "w", 0
    process = _start(workdir, members=members, seconds=seconds, retries=50)
    while process.poll() is None:
        time.sleep(rng.uniform(0.1, 0.7))
        workers = _children(process.pid)
        # Workers that never get to work are an error, rightly: only those that did are killed.
        at_work = sorted(set(workers) & {record["pid"] for record in history.read(workdir)})
        if kills < most and at_work:
            kills += 1
            if kills % 3 == 2:
                for pid in (process.pid, *workers):
                    os.kill(pid, signal.SIGKILL)
                process.communicate()
                process = _start(workdir, members=members, seconds=seconds, retries=50)
            else:
                os.kill(rng.choice(at_work), signal.SIGKILL)
    code, out = _finish(process)
    assert code == 0, out
    assert kills >= most // 2
    _nothing_lost_nothing_twice(workdir, stub_sweep.plan(members), kills)
    assert all(row["state"] == "done" for row in _states(workdir).values())
    again = _start(workdir, members=members)
    assert _finish(again)[0] == 0 and not list(
        (workdir / "logs").glob(f"worker-{again.pid}-*")
    )  # nothing to do: no workers


def test_failures_are_retried_if_they_may_go_away_and_named_if_not(tmp_path):
    trouble = {"student 0": "user", "student 1": "bug", "results 2": "network", "student 3": "exit"}
    code, out = _finish(_start(tmp_path / "w", trouble=trouble, retries=2))
    assert code == 1, out
    states = _states(tmp_path / "w")
    assert [states[f"m{i:04d}"]["state"] for i in range(6)] == ["failed"] * 4 + ["done"] * 2
    assert [states[f"m{i:04d}"].get("error") for i in range(4)] == [
        "no student",
        "KeyError: 'no student'",
        "ConnectionError: no results",
        "its worker ended with exit status 9",
    ]
    tries = {
        path.name.split("-")[1]: len(path.read_text()) for path in (tmp_path / "w").glob("tried-*")
    }
    assert (
        sorted(len(p.read_text()) for p in (tmp_path / "w").glob("tried-*")) == [1, 1, 1, 3]
        and tries["results"] == 3
    )
    log = (tmp_path / "w" / states["m0001"]["log"]).read_text()
    assert "Traceback" in log and "KeyError" in log and log.startswith("--- ")
    assert (
        out.count("is tried again: ConnectionError: no results") == 2
        and "results failed: ConnectionError" in out
    )
    # What goes away is done at last, also what had failed in an earlier command.
    code, out = _finish(_start(tmp_path / "w", trouble=trouble, troubles=4))
    assert (
        code == 1 and [row["state"] for row in _states(tmp_path / "w").values()].count("done") == 3
    ), out
    assert _states(tmp_path / "w")["m0002"]["state"] == "done"
    assert _finish(_start(tmp_path / "w", workers=1))[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_notice_ends_workers_and_command(tmp_path, number):
    ignored = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs ignore it, and theirs, too
    process = _start(tmp_path / "w", seconds=3)
    signal.signal(signal.SIGINT, ignored)
    while not list((tmp_path / "w").glob(".base*.tmp-*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    code, out = _finish(process)
    assert code == {signal.SIGTERM: 75, signal.SIGINT: 130}[number], out
    assert (
        not list((tmp_path / "w").glob(".*.tmp-*"))
        and history.read(tmp_path / "w")[-1]["what"] == "begun"
    )
    claims = list((tmp_path / "w" / ".claims").iterdir())
    assert all(json.loads(claim.read_text())["state"] == "free" for claim in claims)
    assert _finish(_start(tmp_path / "w", workers=1))[0] == 0
    _nothing_lost_nothing_twice(tmp_path / "w", stub_sweep.plan(6))


def test_workers_that_cannot_start_end_the_sweep_with_their_last_line(tmp_path):
    process = _start(tmp_path / "w", broken=True)
    code, out = _finish(process)
    assert (
        code == 2
        and "Workers cannot be started (exit status 1: RuntimeError: no device)" in out
        and "worker-" in out
    ), out


# -- estimates -------------------------------------------------------------------------------------------------------


def test_estimates_come_from_stages_of_the_same_kind():
    def record(stage, seconds, flops, what="computed"):
        return {"stage": stage, "what": what, "seconds": seconds, "flops": flops}

    history = [
        record("student.sft.seed0-00", 10, 1e9),
        record("student.sft.seed1-00", 30, 1e9),
        record("probe.base.seed0-00", 6, 3e9),
        record("report-00", 0.5, 0),
        record("student.sft.seed1-00", 999, 1e9, "redone"),
        {"stage": "student.sft.seed0-00", "what": "begun"},
    ]
    rates = Rates.of(history)
    node = lambda name, flops: stub_sweep.PlannedStage(name, "", [], flops)  # noqa: E731
    assert rates.count == 4
    assert rates.seconds(node("student.kl.seed0", 2e9)) == pytest.approx(40)
    assert rates.seconds(node("probe.base.seed0", 1e9)) == pytest.approx(2)
    assert rates.seconds(node("base", 5e9)) == pytest.approx(
        46
    )  # nothing is known of its kind: all kinds together
    assert rates.seconds(node("report", 0)) == 0.5 and rates.seconds(node("corpus", 0)) == 0.0
    assert Rates.of([]).seconds(node("base", 1e9)) is None


# -- what workers get ------------------------------------------------------------------------------------------------


def test_workers_share_the_machine(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 6})
    given_, count, words = devices.shares(2)
    assert [sorted(share.cores) for share in given_] == [[0, 1], [2, 3]] and count == 8
    assert words == "2 workers with 2 CPU cores each"
    assert [sorted(share.cores) for share in devices.shares(6)[0]] == [[0], [1], [2], [3], [6], [0]]
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4,5,7")
    given_, count, _ = devices.shares(2)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in given_] == [
        "0,1",
        "4,5",
    ] and count == 2
    given_, count, _ = devices.shares(10)
    assert (
        given_[7].environment
        == {"CUDA_VISIBLE_DEVICES": "4", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"}
        and count == 1
    )
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert devices.shares(1)[0] == [devices.DeviceShare()]
    with pytest.raises(UserError, match="cannot share a TPU"):
        devices.shares(2)


def test_a_worker_inherits_its_cores():
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    with devices.DeviceShare({"A": "b"}, frozenset({core})).start() as environment:
        command = [
            sys.executable,
            "-c",
            "import os; print(os.sched_getaffinity(0), os.environ['A'])",
        ]
        out = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    assert out == f"{{{core}}} b\n" and os.sched_getaffinity(0) == before
