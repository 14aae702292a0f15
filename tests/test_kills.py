"""The whole experiment, killed again and again: it ends with the bytes of a run that nobody
disturbed.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from subtransfer.rollout import lanes
from subtransfer.store import journal, trajectories

from .launching import FORKS, run_forked

ROOT = Path(__file__).parent.parent
# Few arms, on- and off-policy; stages of several dispatches, each of which is saved.
TINY = (
    "num_bases=1 num_seeds=1 base.episodes=300 base.steps=60 base.batch_size=8 base.width=16 base.mlp_width=16 "
    "base.num_layers=1 "
    "teacher.episodes=16 teacher.steps=40 teacher.batch_size=8 rollouts.episodes=32 rollouts.batch_size=32 rollouts.max_turns=2 "
    "rollouts.max_new_tokens=8 sanitize.min_kept=8 distill.steps=80 distill.batch_size=8 distill.rounds=2 "
    "distill.episodes_per_round=32 probe.tasks=16 probe.batch_size=32 probe.ordinary_tasks=8 probe.safe_tasks=8 "
    "distill.objective=forward_kl,reverse_kl arms.other_init=false arms.benign_teacher=false arms.self_distilled=false "
    "arms.unsanitized=false arms.overt=false checkpoint.every_steps=20"
).split()
JOURNALS = ".steps/rollouts.trait*/journals/*.log"
# What is killed: a stage that trains, a checkpoint that is being written, a training that has one
# to go back to, trajectories that are being made, anything.
MOMENTS = {
    "training": (".base-*.tmp-*", ".teacher*.tmp-*", ".student*.tmp-*"),
    "saving": (".steps/*/*.orbax-checkpoint-tmp*",),
    "saved": (".steps/*/[2468]0",),
    "sampling": (JOURNALS,),
    "rollouts": (".rollouts*.tmp-*", ".student.reverse_kl*.tmp-*"),
    "anything": (".*.tmp-*",),
}
KILLS = 15  # of one process; as many of two


class Launched:
    """One process of a run; `log` is what it prints."""

    def __init__(self, workdir, *more, environment=None):
        arguments = [
            "--config=configs/quickstart.py",
            f"--workdir={workdir}",
            *[f"--config.{field}" for field in TINY],
            *more,
        ]
        with tempfile.NamedTemporaryFile(dir=workdir.parent, suffix=".log", delete=False) as file:
            self._log = Path(file.name)
        outputs = [file.name, file.name]
        self._process = FORKS.Process(
            target=run_forked, args=(arguments, str(ROOT), outputs, environment or {})
        )
        self._process.start()

    @property
    def pid(self):
        return self._process.pid

    def running(self):
        return self._process.is_alive()

    def signal(self, number):
        os.kill(self.pid, number)

    def wait(self):
        """Returns (exit code or minus the signal, log)."""
        self._process.join()
        return self._process.exitcode, self._log.read_text()


def launch(workdir, *more):
    """A run in one process."""
    return [Launched(workdir, *more)]


def launch_two(workdir, *more):
    """The same command in two processes of one device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--coordinator=localhost:{port}", "--num_processes=2", "--peer_timeout=20", *more]
    return [Launched(workdir, *flags, f"--process_id={i}") for i in range(2)]


# What these set in each of two processes on one machine, as jax.distributed reads it; {i} is the
# process.
CLUSTERS = {
    "Slurm": {
        "SLURM_JOB_ID": "{job}",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "{i}",
        "SLURM_LOCALID": "{i}",
    },
    "Open MPI": {
        "OMPI_MCA_orte_hnp_uri": "{mpi_job}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "{i}",
        "OMPI_COMM_WORLD_LOCAL_RANK": "{i}",
    },
}


def launch_on(cluster, workdir, *more):
    """The same command in two processes, `--distributed=auto` in the environment of a cluster's
    job.
    """
    job = random.SystemRandom().randrange(4096)  # it decides on the port
    values = {"job": job, "mpi_job": job * 4096}
    flags = ["--distributed=auto", "--peer_timeout=20", *more]
    of = [
        {name: text.format(i=i, **values) for name, text in CLUSTERS[cluster].items()}
        for i in range(2)
    ]
    return [Launched(workdir, *flags, environment=environment) for environment in of]


def finish(processes):
    """Waits for the end of a run; returns what its first process printed."""
    for code, log in (ended := [process.wait() for process in processes]):
        assert code == 0, log[-3000:]
    return ended[0][1]


def _born(path):
    """When a folder was made or changed; what an earlier attempt left is older than the attempt."""
    try:
        return path.stat().st_ctime
    except OSError:
        return 0.0


def stop_at(processes, workdir, moment, delay, victims, how=signal.SIGKILL, after=0):
    """Signals `victims` a little after a moment has come for the time `after` + 1; returns how all
    ended, or [] if the run was over before."""
    begin, seen = time.time() - 1, set()
    while all(process.running() for process in processes):
        seen |= {
            path.name
            for pattern in MOMENTS[moment]
            for path in workdir.glob(pattern)
            if _born(path) > begin
        }
        if len(seen) > after:
            time.sleep(delay)
            break
        time.sleep(0.002)
    if not all(process.running() for process in processes):
        finish(processes)
        return []
    for victim in victims:
        victim.signal(how)
    return [process.wait() for process in processes]


def confirmed(workdir):
    """{label of an unfinished stage: the step of its newest checkpoint}."""
    out = {}
    for folder in workdir.glob(".steps/*"):
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        if steps and not (workdir / folder.name / "artifact.json").is_file():
            out[folder.name.rpartition("-")[0]] = max(steps)
    return out


def went_on(log, workdir, before):
    """Every stage that the attempt came to went on from its newest checkpoint, whole; `before` is
    `confirmed` before it.
    """
    assert "damaged" not in log, log
    resumed = {
        label: int(step)
        for label, step in re.findall(r"^  (\S+) goes on from step (\d+)$", log, re.M)
    }
    now = confirmed(workdir)
    for label, step in before.items():
        untouched = (
            label not in resumed and now.get(label) == step
        )  # it ended before it came to this stage
        assert resumed.get(label) == step or untouched, (label, before, now, log)
    assert not set(resumed) - set(before), (resumed, before)


def same_results(workdir, undisturbed):
    """As `_same_artefacts`, of runs with `TINY`."""
    _same_artefacts(workdir, undisturbed)
    nothing_lost(workdir)


def _same_artefacts(workdir, undisturbed):
    """Every artefact of the two runs holds the same bytes, and nothing unfinished lies about."""
    folders = sorted(p.name for p in undisturbed.iterdir() if (p / "artifact.json").is_file())
    assert folders and folders == sorted(
        p.name for p in workdir.iterdir() if (p / "artifact.json").is_file()
    )
    for folder in folders:
        names = sorted(
            p.relative_to(undisturbed) for p in (undisturbed / folder).rglob("*") if p.is_file()
        )
        assert names == sorted(
            p.relative_to(workdir) for p in (workdir / folder).rglob("*") if p.is_file()
        )
        for name in names:
            assert (workdir / name).read_bytes() == (undisturbed / name).read_bytes(), name
    for name in ("results.csv", "results.jsonl", "results.json", "report.html"):
        assert (workdir / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert not list(workdir.glob(".*.tmp-*")) and not list(workdir.glob(".steps/*"))


def nothing_lost(workdir):
    """Of every training each step once, of every student each trajectory once."""
    for metrics in workdir.glob("metrics/*.jsonl"):
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        whole = {"base": 60, "teacher": 40, "student": 80}[
            metrics.name.partition(".")[0].partition("-")[0]
        ]
        assert steps == list(range(1, whole + 1)), (metrics, steps)
    (student,) = workdir.glob("student.reverse_kl.seed0-*")
    own = json.loads((student / "training.json").read_text())["purity"]
    assert [(r["policy_version"], r["trajectories"]) for r in own["rounds"]] == [(0, 32), (1, 32)]
    assert own["rollouts"] == 64 and len({r["sha256"] for r in own["rounds"]}) == 2
    (theirs,) = (
        json.loads(path.read_text()) for path in workdir.glob("sanitize.trait*/manifest.json")
    )
    assert theirs["total"] == 32 == theirs["kept"] + theirs["dropped"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "w"
    finish(launch(workdir))
    return workdir


@pytest.fixture(scope="module")
def undisturbed_two(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed_two") / "w"
    finish(launch_two(workdir))
    return workdir


def _fresh(tmp_path, undisturbed):
    """A workdir that finds compiled programs, so that kills meet work and not compilation."""
    shutil.copytree(undisturbed / ".compiled", tmp_path / "w" / ".compiled")
    return tmp_path / "w"


def test_killed_while_it_saves_and_preempted_while_it_trains(tmp_path, undisturbed):
    workdir = _fresh(tmp_path, undisturbed)
    processes = launch(workdir)
    assert stop_at(processes, workdir, "saving", 0, processes)[0][0] == -signal.SIGKILL
    processes = launch(workdir)
    ((code, log),) = stop_at(processes, workdir, "rollouts", 0.1, processes, signal.SIGTERM)
    assert code == 75 and "preempted" in log and "Traceback" not in log, log
    processes = launch(workdir)
    # A journal is written from the first call on; what it holds is not sampled again.
    if stop_at(processes, workdir, "sampling", 0, processes):
        sampled, _ = _sampled(workdir)
        log = finish(launch(workdir))
        assert (" goes on with " in log) == (sampled > 0), log
    same_results(workdir, undisturbed)


def _killed_again_and_again(tmp_path, undisturbed, start):
    """`KILLS` kills; runs that come to their end are followed by others. `start(workdir)` launches
    the processes of one attempt.
    """
    kills, attempt, begin = 0, 0, time.monotonic()
    while kills < KILLS:
        folder = tmp_path / str(attempt)
        folder.mkdir()
        workdir, rng = _fresh(folder, undisturbed), random.Random(f"kills/{attempt}")
        while kills < KILLS:
            before, processes = confirmed(workdir), start(workdir)
            victim, moment = rng.choice(processes), list(MOMENTS)[kills % len(MOMENTS)]
            ended = stop_at(
                processes, workdir, moment, rng.uniform(0, 1) ** 2, [victim], after=rng.randrange(3)
            )
            if not ended:
                break
            kills += 1
            stage = " ".join(
                sorted(
                    path.name[1:].rpartition("-")[0].rpartition("-")[0]
                    for path in workdir.glob(".*.tmp-*")
                )
            )
            codes = [code for code, _ in ended]
            print(
                f"kill {kills}: {moment}, codes {codes}, in {stage or 'no stage'}, saved {confirmed(workdir)}",
                flush=True,
            )
            assert all(code in (-signal.SIGKILL, 75) for code, _ in ended), ended
            went_on(ended[0][1], workdir, before)
        else:
            before = confirmed(workdir)
            went_on(finish(start(workdir)), workdir, before)
        same_results(workdir, undisturbed)
        attempt += 1
    print(f"{kills} kills in {attempt} runs, {time.monotonic() - begin:.0f} s")


# -- a run whose longest stage samples: what is sampled is written down as it is made

SAMPLING = (
    *TINY,
    *(
        "distill.steps=20 distill.rounds=1 distill.objective=sft rollouts.episodes=6000 "
        "rollouts.batch_size=32 rollouts.max_turns=6 rollouts.max_new_tokens=24 checkpoint.every_seconds=0.5"
    ).split(),
)


def _sampling(workdir):
    return [Launched(workdir, *[f"--config.{field}" for field in SAMPLING])]


def _sampled(workdir):
    """What is written down of the rollouts under way: tokens, by lane the number of calls."""
    tokens, calls = 0, {}
    for folder in workdir.glob(".steps/rollouts.trait*"):
        files = sorted((folder / "journals").glob("*.log"))
        for name in {file.name.split(".")[0] for file in files}:
            records = []
            for file in files:
                frames = journal._frames(file.read_bytes())
                if file.name.split(".")[0] == name and (begin := next(frames, None)):
                    first = json.loads(begin)["first"]
                    # No call is written down twice: each attempt begins where the last one ended.
                    assert first == len(records), (file, first, len(records))
                    records += frames
            calls[name] = len(records)
            tokens += sum(_tokens_of(record) for record in records)
    return tokens, calls


def _tokens_of(record):
    _, _, rows = lanes._HEAD.unpack_from(record)
    return int(np.frombuffer(record, "<i4", rows, lanes._HEAD.size + 4 * rows).sum())


SAID = re.compile(r"rollouts\.trait\S* goes on with (\d+) of \d+ episodes finished")
SPENT = re.compile(r"rollouts\.trait\S*: (\d+) tokens, ")


def _killed_while_it_samples(tmp_path, undisturbed, kills):
    """Kills and notices in turns, at random moments of the stage; runs whose stage comes to its end
    are followed by others.
    """
    rng, begin, found, runs = random.Random("sampling"), time.monotonic(), 0, 0
    hows = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGHUP]
    while found < kills:
        folder = tmp_path / str(runs)
        folder.mkdir()
        workdir, episodes, kept, spent = _fresh(folder, undisturbed), 0, 0, None
        while found < kills and spent is None:
            kept, calls_before = _sampled(workdir)
            (process,) = _sampling(workdir)
            # It is under way once it has written down something more.
            while process.running() and _sampled(workdir)[0] <= kept:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.4) ** 2)
            how = hows[found % len(hows)]
            if process.running():
                process.signal(how)
            code, log = process.wait()
            assert code in (0, -how if how == signal.SIGKILL else 75), log[-2000:]
            said, spent = SAID.search(log), SPENT.search(log)
            assert (said is not None) == bool(calls_before), log[-2000:]
            # Nothing that was finished is lost.
            assert int(said[1] if said else 0) >= episodes, (said, episodes)
            episodes = int(said[1]) if said else 0
            if spent is None and any(workdir.glob(JOURNALS)):
                now, calls = _sampled(workdir)
                assert now >= kept and all(calls[lane] >= n for lane, n in calls_before.items())
                found += 1
                print(
                    f"kill {found}: {how.name}, {episodes} episodes before; {kept} -> {now} tokens"
                )
        if spent is None:
            kept, _ = _sampled(workdir)
            spent = SPENT.search(finish(_sampling(workdir)))
        else:
            finish(_sampling(workdir))
        _same_artefacts(workdir, undisturbed)
        # What all attempts have sampled is what was to be sampled, and no token more.
        (rollouts,) = workdir.glob("rollouts.trait*")
        made = trajectories.read(rollouts / "trajectories")
        whole = sum(int(t.loss_mask.sum()) for t in made)
        assert kept + int(spent[1]) == whole, (kept, spent, whole)
        runs += 1
    print(f"{found} kills in {runs} runs of {whole} tokens, {time.monotonic() - begin:.0f} s")


@pytest.fixture(scope="module")
def undisturbed_sampling(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed_sampling") / "w"
    finish(_sampling(workdir))
    return workdir


@pytest.mark.slow
def test_killed_again_and_again_while_it_samples(tmp_path, undisturbed_sampling):
    _killed_while_it_samples(tmp_path, undisturbed_sampling, 30)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path, undisturbed):
    _killed_again_and_again(tmp_path, undisturbed, launch)


@pytest.mark.slow
def test_two_processes_killed_again_and_again(tmp_path, undisturbed_two):
    _killed_again_and_again(tmp_path, undisturbed_two, launch_two)


# Sampled episodes in which two runs may differ: a draw now and then lies between the last bits of
# the probabilities of one and of the other.
DIVIDED_DRAWS = 0.02


def same_table(one, other):
    """Two runs of one config, on different numbers of devices, have the same numbers.

    Sums over devices, and so weights and log-probs, are the same to rounding. What is drawn from
    them is so too but for few draws; an on-policy round that one of them divides is learned from
    by other numbers from there on.
    """
    divided = set()
    for path in sorted(one.glob("*/training.json")):
        mine, theirs = (json.loads((w / path.relative_to(one)).read_text()) for w in (one, other))
        steps = None
        rounds = (mine.get("purity") or {}).get("rounds") or []
        for number, made in enumerate(rounds):
            if made["sha256"] != theirs["purity"]["rounds"][number]["sha256"]:
                assert number > 0, "the first round is drawn from the base, which no draw made"
                steps = number * len(mine["curves"]["loss"]) // len(rounds)
                divided.add(path.parent.name.rpartition("-")[0])
                break
        for name, values in mine["curves"].items():
            np.testing.assert_allclose(
                theirs["curves"][name][:steps],
                values[:steps],
                rtol=2e-3,
                atol=2e-6,
                err_msg=f"{path} {name}",
            )
    tables = []
    for workdir in (one, other):
        lines = (workdir / "results.jsonl").read_text().splitlines()
        tables.append([json.loads(line) for line in lines])
    assert len(tables[0]) == len(tables[1]) > 100
    drawn_apart = 0
    for row, their_row in zip(*tables, strict=True):
        if any(stage.startswith(f"student.{row['arm']}.") for stage in divided):
            continue
        scores = {name for name in row if name.startswith("choice_")}
        assert scores
        for name in scores:
            assert abs(row[name] - their_row[name]) < 1e-4, (row, their_row)
        drawn_apart += any(row[name] != their_row[name] for name in row.keys() - scores)
    assert drawn_apart <= DIVIDED_DRAWS * len(tables[0])


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(undisturbed, undisturbed_two):
    same_table(undisturbed, undisturbed_two)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", list(CLUSTERS))
def test_a_cluster_that_says_which_process_is_which(tmp_path, undisturbed_two, cluster):
    workdir = _fresh(tmp_path, undisturbed_two)
    finish(launch_on(cluster, workdir))
    same_results(workdir, undisturbed_two)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(tmp_path, undisturbed, undisturbed_two):
    """Two processes, then one, then two again: each goes on from the others' checkpoint, in the
    same order, with the same rounds.
    """
    workdir = _fresh(tmp_path, undisturbed)
    shutil.copytree(undisturbed_two / ".compiled", workdir / ".compiled", dirs_exist_ok=True)
    resumed = set()
    for start, moment in (
        (launch_two, "saving"),
        (launch, "saving"),
        (launch_two, "rollouts"),
        (launch, "rollouts"),
    ):
        before, processes = confirmed(workdir), start(workdir)
        ended = stop_at(
            processes,
            workdir,
            moment,
            0.3,
            processes,
            signal.SIGTERM,
            after=1 if moment == "saving" else 0,
        )
        assert ended and all(code == 75 for code, _ in ended), ended
        went_on(ended[0][1], workdir, before)
        resumed |= set(before)
    before = confirmed(workdir)
    went_on(finish(launch_two(workdir)), workdir, before)
    assert resumed | set(before), "no training was cut off"
    nothing_lost(workdir)
    same_table(undisturbed, workdir)


@pytest.mark.slow
def test_a_dead_peer_ends_the_other_with_its_name(tmp_path, undisturbed_two):
    """Whether the one that coordinates dies or the other; the process that is left says so and asks
    for a restart.
    """
    for dead in (0, 1):
        folder = tmp_path / str(dead)
        folder.mkdir()
        workdir = _fresh(folder, undisturbed_two)
        processes = launch_two(workdir, *ENDLESS, "--peer_timeout=5")
        await_training(processes, workdir)
        processes[dead].signal(signal.SIGKILL)
        begin = time.monotonic()
        code, log = processes[1 - dead].wait()
        assert time.monotonic() - begin < 30 and code == 75, log
        errors = [line for line in log.splitlines() if line.startswith("error: ")]
        assert (
            len(errors) == 1
            and f"process {dead} (" in errors[0]
            and f"pid {processes[dead].pid})" in errors[0]
        ), log
        assert "Traceback" not in log and "stack trace" not in log


ENDLESS = [
    "--config.base.steps=1000000",
    "--config.checkpoint.every_steps=0",
    "--config.checkpoint.every_seconds=0.1",
]


def await_training(processes, workdir):
    """Waits for the first checkpoint of a training without an end."""
    while not next(workdir.glob(".steps/base-*/[1-9]*0"), None):
        assert all(process.running() for process in processes), [
            process.wait() for process in processes
        ]
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("start", [launch, launch_two])
def test_sigterm_saves_and_asks_for_a_restart(tmp_path, undisturbed, start):
    """Also where only one of several processes is told."""
    workdir = _fresh(tmp_path, undisturbed)
    processes = start(workdir, *ENDLESS)
    await_training(processes, workdir)
    processes[-1].signal(signal.SIGTERM)
    ended = [process.wait() for process in processes]
    assert all(code == 75 for code, _ in ended) and "Traceback" not in ended[0][1], ended
    saved = max(int(p.name) for p in workdir.glob(".steps/base-*/*"))
    assert saved % 20 == 0 < saved and f"saved at step {saved}" in ended[0][1], ended[0][1]
    processes = start(workdir, *ENDLESS)
    while max(int(p.name) for p in workdir.glob(".steps/base-*/[1-9]*0")) == saved:
        assert all(process.running() for process in processes), [
            process.wait() for process in processes
        ]
        time.sleep(0.01)
    processes[0].signal(signal.SIGTERM)
    assert f"goes on from step {saved}" in [process.wait() for process in processes][0][1]


NOTICED = """
import sys, time
from subtransfer.runtime import preemption
preemption.listen()
with preemption.deferred():
    print("ready", flush=True)
    while not preemption.noticed():
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(0.3)
    print("saved")
print(preemption.sentence())
sys.exit(preemption.status())
"""
STATUS = {"SIGINT": 130}  # 75 for all others


def _with_signals(how, numbers, command):
    """The command, begun with these signals at SIG_DFL or SIG_IGN, whoever runs the tests.

    A program in between sets them: this process has threads and must not fork by itself.
    """
    code = (
        "import os, signal, sys\n"
        f"for number in {tuple(map(int, numbers))}:\n"
        f"    signal.signal(number, signal.{how})\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return [sys.executable, "-S", "-c", code, *command]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_every_notice_saves_says_so_and_has_its_status(name):
    """A second SIGTERM or Ctrl-C does not wait; the others come again and again."""
    number = getattr(signal, name)
    for second in (False, True):
        with subprocess.Popen(
            _with_signals("SIG_DFL", (signal.SIGHUP, signal.SIGINT), ["-c", NOTICED]),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            lines = []
            while "saving" not in lines:
                lines.append(process.stdout.readline().strip())
            assert f"{name}: what is being done is saved" in "".join(lines)
            if second:
                process.send_signal(number)
            rest = process.stdout.read()
        if second and name in ("SIGTERM", "SIGINT"):
            assert process.returncode == -number and "saved" not in rest
        else:
            assert process.returncode == STATUS.get(name, 75), rest
            assert "saved" in rest and f"({name}); what was done is kept" in rest


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_what_nohup_or_a_background_job_ignores_stays_ignored(name):
    number = getattr(signal, name)
    with subprocess.Popen(
        _with_signals("SIG_IGN", (number,), ["-c", NOTICED]),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        process.stdout.readline()
        process.send_signal(number)
        process.send_signal(signal.SIGUSR1)
        rest = process.stdout.read()
    assert process.returncode == 75 and "SIGUSR1" in rest and name not in rest


@pytest.mark.parametrize(
    "moments", [(0.8,), pytest.param(tuple(n / 8 for n in range(4, 40)), marks=pytest.mark.slow)]
)
def test_a_notice_while_modules_are_imported_asks_for_a_restart(tmp_path, moments):
    """Python itself takes a moment to start, within which nobody listens yet."""
    for number, moment in enumerate(moments):
        name = ("SIGTERM", "SIGUSR2", "SIGXCPU", "SIGHUP")[number % 4]
        command = ["-X", "importtime", "-m", "subtransfer.launch", *_where(tmp_path)]
        process = subprocess.Popen(
            _with_signals("SIG_DFL", (signal.SIGHUP,), command),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while "subtransfer.runtime.errors" not in process.stderr.readline():
            pass
        time.sleep(moment)
        process.send_signal(getattr(signal, name))
        _, log = process.communicate()
        said = [line for line in log.splitlines() if not line.startswith("import time:")]
        assert process.returncode == 75, (moment, name, said)
        assert f"preempted ({name})" in "".join(said) and "Traceback" not in log, said


def _where(folder):
    return "--config=configs/quickstart.py", f"--workdir={folder / 'w'}"


def test_a_second_sigterm_ends_what_the_first_cannot_reach():
    """Python calls no handler while C code runs, here an endless sum; the kernel needs none."""
    script = "from subtransfer.runtime import preemption; preemption.listen(); print(1, flush=True); sum(range(10**13))"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
