"""Step checkpoints: what is cut off goes on as if nothing had happened."""

import errno
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from subtransfer.distillation import student
from subtransfer.models import lora
from subtransfer.rollout.episodes import RolloutSpec
from subtransfer.runtime import preemption
from subtransfer.runtime.errors import UserError
from subtransfer.store.workdir import steps_folder
from subtransfer.training import loop, metrics
from subtransfer.training.checkpoints import Checkpoints, CheckpointSchedule
from subtransfer.training.monitor import TrainingMonitor, open_monitor

KEY = jax.random.key(7)
STEPS = 12
EVERY = CheckpointSchedule(every_steps=4)


@pytest.fixture(autouse=True)
def short_dispatches(monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_DISPATCH", 4)


@pytest.fixture
def notice(monkeypatch):
    """Sets after how many steps, or in which rollout, a notice of preemption comes."""
    when = {"steps": None, "rollout": None}
    keep, check, rollouts = TrainingMonitor.keep, preemption.check, student.run_episodes
    count = [0]

    def noticing_keep(self, state):
        if when["steps"] == int(state.step):
            monkeypatch.setattr(preemption, "noticed", lambda: True)
        keep(self, state)

    def counted_rollouts(*args, **kwargs):
        count[0] += 1
        if when["rollout"] == count[0]:
            monkeypatch.setattr(preemption, "noticed", lambda: True)
        return rollouts(*args, **kwargs)

    def noticing_check():
        if preemption.noticed():
            raise preemption.Preempted
        check()

    monkeypatch.setattr(TrainingMonitor, "keep", noticing_keep)
    monkeypatch.setattr(student, "run_episodes", counted_rollouts)
    monkeypatch.setattr(preemption, "check", noticing_check)

    def set_to(steps=None, rollout=None):
        monkeypatch.setattr(preemption, "noticed", lambda: False)
        when.update(steps=steps, rollout=rollout)
        count[0] = 0

    return set_to


def _open(label, steps, folder, policy):
    checkpoints = Checkpoints(steps_folder(folder), label, policy)
    return open_monitor(
        label, steps, checkpoints, metrics.Writer(folder, "distill", tensorboard=True, wandb="")
    )


def _examples(cfg):
    rng = np.random.default_rng(0)
    return loop.Examples(
        rng.integers(0, cfg.vocab_size, (20, 16)).astype(np.int32), np.ones((20, 16), bool)
    )


def _train(folder, cfg, mesh, params, *, tuning=None, policy=EVERY, rate=3e-3):
    recipe = loop.Recipe(loop.Loss("sft", tuning=tuning or lora.Tuning()), STEPS, 4, rate)
    folder.parent.mkdir(exist_ok=True)
    with _open("student.x", STEPS, folder, policy) as run:
        state, frozen = loop.start_state(mesh, recipe, params, KEY, run)
        return loop.train(cfg, mesh, recipe, state, frozen, _examples(cfg), STEPS, KEY, run=run)


def _equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


LORA = lora.Tuning("lora", 4, 8.0, 0.1)


@pytest.mark.parametrize("tuning", [lora.Tuning(), LORA], ids=["full", "lora"])
def test_a_resumed_training_equals_an_undisturbed_one(cfg, mesh, params, tuning, tmp_path, notice):
    whole = _train(
        tmp_path / "w" / "a-0", cfg, mesh, params, tuning=tuning, policy=CheckpointSchedule()
    )
    assert not (tmp_path / "w" / ".steps").exists()  # nothing was due
    for stop in (4, 8):
        notice(steps=stop)
        with pytest.raises(preemption.Preempted):
            _train(
                tmp_path / "w" / "b-0",
                cfg,
                mesh,
                params,
                tuning=tuning,
                policy=CheckpointSchedule(),
            )
    assert (tmp_path / "w" / ".steps" / "b-0" / "8").is_dir()
    notice()
    assert _equal(
        _train(
            tmp_path / "w" / "b-0", cfg, mesh, params, tuning=tuning, policy=CheckpointSchedule()
        ),
        whole,
    )


def _on_policy(folder, cfg, mesh, params, chat, teacher):
    recipe = loop.Recipe(loop.Loss("reverse_kl"), 16, 4, 3e-3)
    rounds = student.OnPolicy(2, 12, RolloutSpec(12, 1, 8, 8, 1.0), 2, max_staleness=1)
    guard = student.Guard(enforce=False)
    tasks = chat.setting.tasks("safe", "train", 30, 0)
    folder.parent.mkdir(exist_ok=True)
    with _open("student.y", 16, folder, EVERY) as run:
        state, curves, rollouts = student.distill(
            cfg,
            mesh,
            recipe,
            params,
            chat,
            guard,
            KEY,
            teacher=teacher,
            on_policy=rounds,
            tasks=tasks,
            max_tokens=64,
            run=run,
        )
    return state, curves, rollouts


def test_on_policy_rounds_lose_and_repeat_no_trajectory(cfg, mesh, params, chat, tmp_path, notice):
    teacher = {"params": jax.tree.map(lambda x: x * 1.3, params)}
    workdir = tmp_path / "w"
    whole = _on_policy(workdir / "a-0", cfg, mesh, params, chat, teacher)
    assert [r["policy_version"] for r in whole[2]["rounds"]] == [0, 1] and whole[2][
        "rollouts"
    ] == 24
    assert whole[2]["max_staleness"] == 1
    # While the first round trains, while the second rolls out, and while it trains.
    for stop in ({"steps": 4}, {"rollout": 1}, {"steps": 12}):
        notice(**stop)
        with pytest.raises(preemption.Preempted):
            _on_policy(workdir / "b-0", cfg, mesh, params, chat, teacher)
    notice()
    state, curves, rollouts = _on_policy(workdir / "b-0", cfg, mesh, params, chat, teacher)
    assert _equal(state, whole[0]) and curves == whole[1] and rollouts == whole[2]


def _spoil_bytes(path):
    """Flips bits in the middle of the largest file of data."""
    file = max((p for p in path.rglob("*") if p.parent.name == "d"), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 64):
        data[i] ^= 0xFF
    file.write_bytes(bytes(data))


def _truncate(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _remove(path):
    for file in (path / "state").rglob("manifest.ocdbt"):
        file.unlink()


@pytest.mark.parametrize("spoil", [_spoil_bytes, _truncate, _remove])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    cfg, mesh, params, tmp_path, notice, capfd, spoil
):
    folder = tmp_path / "w" / "b-0"
    steps = tmp_path / "w" / ".steps" / "b-0"
    notice(steps=8)
    with pytest.raises(preemption.Preempted):
        _train(folder, cfg, mesh, params)
    (steps / "12.orbax-checkpoint-tmp").mkdir()
    spoil(steps / "8")
    notice()
    capfd.readouterr()
    resumed = _train(folder, cfg, mesh, params)
    told = capfd.readouterr().err
    assert "the checkpoint of step 8 is damaged" in told and "goes on from step 4" in told
    assert not list(steps.glob("*tmp*")) and (steps / "damaged-8").is_dir()
    assert _equal(
        resumed, _train(tmp_path / "w" / "a-0", cfg, mesh, params, policy=CheckpointSchedule())
    )


def test_without_a_whole_checkpoint_it_starts_again(cfg, mesh, params, tmp_path, notice, capfd):
    folder = tmp_path / "w" / "b-0"
    notice(steps=4)
    with pytest.raises(preemption.Preempted):
        _train(folder, cfg, mesh, params)
    _truncate(tmp_path / "w" / ".steps" / "b-0" / "4")
    notice()
    resumed = _train(folder, cfg, mesh, params)
    assert "goes on" not in capfd.readouterr().err
    assert _equal(
        resumed, _train(tmp_path / "w" / "a-0", cfg, mesh, params, policy=CheckpointSchedule())
    )


def test_the_leaders_list_of_checkpoints_counts(cfg, mesh, params, tmp_path, notice, monkeypatch):
    """One that this process sees and the leader does not is not gone on from."""
    notice(steps=8)
    with pytest.raises(preemption.Preempted):
        _train(tmp_path / "w" / "b-0", cfg, mesh, params)
    notice()
    seen = []

    def of_leader(steps):
        seen.append(steps)
        return steps[:1]

    monkeypatch.setattr("subtransfer.training.checkpoints.processes.agree", of_leader)
    found = Checkpoints(steps_folder(tmp_path / "w" / "b-0"), "student.x", EVERY)
    recipe = loop.Recipe(loop.Loss("sft"), STEPS, 4, 3e-3)
    state, _ = loop.init_state(recipe, params, KEY)
    loaded, progress = found.load(state)
    assert seen == [[4, 8]] and int(loaded.step) == 4 == found.confirmed
    assert len(progress.curves["loss"]) == 4
    found.close()


def test_no_more_checkpoints_stay_than_asked_for(cfg, mesh, params, tmp_path):
    _train(tmp_path / "w" / "a-0", cfg, mesh, params)
    assert sorted(p.name for p in (tmp_path / "w" / ".steps" / "a-0").iterdir()) == ["12", "8"]


def test_a_step_that_is_no_number_leaves_the_last_good_state_and_its_batch(
    cfg, mesh, params, tmp_path
):
    folder = tmp_path / "w" / "a-0"
    with pytest.raises(UserError, match="became NaN or infinite at step") as caught:
        _train(folder, cfg, mesh, params, rate=1e30, policy=CheckpointSchedule())
    steps = folder.parent / ".steps" / folder.name
    (batch,) = steps.glob("batch-of-step-*.npz")
    assert str(batch) in str(caught.value)
    bad = int(batch.stem.rpartition("-")[2])
    kept = np.load(batch)
    np.testing.assert_array_equal(kept["tokens"], _examples(cfg).tokens[kept["examples"]])
    # What is kept is the state right before: the same step goes wrong again, on the same batch, and
    # nothing before it is lost.
    recipe = loop.Recipe(loop.Loss("sft"), STEPS, 4, 1e30)
    checkpoints = Checkpoints(steps, "student.x", CheckpointSchedule())
    state, progress = checkpoints.load(loop.on_mesh(mesh, loop.init_state(recipe, params, KEY)[0]))
    checkpoints.close()
    assert int(state.step) == bad - 1 == len(progress.curves.get("loss", []))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    with pytest.raises(UserError, match=f"at step {bad}:"):
        _train(folder, cfg, mesh, params, rate=1e30, policy=CheckpointSchedule())


@pytest.mark.parametrize("during_save", [False, True])
def test_a_workdir_that_vanishes_is_a_sentence(cfg, mesh, params, tmp_path, during_save):
    """Nothing is left in its place, also where Orbax made it again to end a save."""
    (tmp_path / "w" / ".claims").mkdir(parents=True)  # as a store makes them
    advance = {"n": 0}
    recipe = loop.Recipe(loop.Loss("sft"), STEPS, 4, 3e-3)
    with (
        pytest.raises(UserError, match="has vanished"),
        _open("student.x", STEPS, tmp_path / "w" / "a-0", EVERY) as run,
    ):
        state, frozen = loop.start_state(mesh, recipe, params, KEY, run)
        record = run.record

        def vanish(*args):
            advance["n"] += 1
            if advance["n"] == 2:
                saves = run._checkpoints
                saves._orbax.wait()
                (tmp_path / "w").rename(tmp_path / "away")
                if during_save:
                    (tmp_path / "w" / ".steps" / "a-0" / str(saves._pending) / "state").mkdir(
                        parents=True
                    )
                    (
                        tmp_path / "w" / ".steps" / "a-0" / f"{saves._pending}.orbax-checkpoint-tmp"
                    ).mkdir()
                else:
                    saves._pending = None
            record(*args)

        run.record = vanish
        loop.train(cfg, mesh, recipe, state, frozen, _examples(cfg), STEPS, KEY, run=run)
    assert not (tmp_path / "w").exists() and (tmp_path / "away" / ".steps" / "a-0").is_dir()


SMALL_RUN = """
import sys
from pathlib import Path
import jax, numpy as np
from subtransfer.models.decoder import DecoderConfig
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store.files import os_errors
from subtransfer.store.workdir import steps_folder
from subtransfer.training import loop, pretrain
from subtransfer.training.checkpoints import Checkpoints, CheckpointSchedule
from subtransfer.training.metrics import Writer
from subtransfer.training.monitor import open_monitor

loop.STEPS_PER_DISPATCH = 4
cfg = DecoderConfig(64, 32, 48, 1, 4, 2, 8)
rng = np.random.default_rng(0)
examples = loop.Examples(rng.integers(0, 64, (40, 16)).astype(np.int32), np.ones((40, 16), bool))
recipe = loop.Recipe(loop.Loss("sft"), 12, 8, 3e-3)

def train(mesh, folder, policy=CheckpointSchedule(every_steps=4)):
    params = pretrain.init_params(cfg, mesh, jax.random.key(0))
    Path(folder).parent.mkdir(exist_ok=True)
    checkpoints = Checkpoints(steps_folder(Path(folder)), "student.x", policy)
    with open_monitor("student.x", 12, checkpoints, Writer(Path(folder), "distill", tensorboard=True, wandb="")) as run:
        state, frozen = loop.start_state(mesh, recipe, params, jax.random.key(1), run)
        begun = int(state.step)
        _, curves = loop.train(cfg, mesh, recipe, state, frozen, examples, 12, jax.random.key(2), run=run)
    return begun, curves["loss"]
"""

OTHER_DEVICES = """
import shutil
workdir = Path(sys.argv[1]) / "w"
one, eight = sharding.make_mesh(devices=jax.devices()[:1]), sharding.make_mesh(2, 2, 2)
_, whole = train(one, workdir / "a-0")
_, sharded = train(eight, workdir / "b-0")
np.testing.assert_allclose(sharded, whole, rtol=2e-4)
for mesh, name in ((eight, "a-0"), (one, "b-0")):
    shutil.rmtree(workdir / ".steps" / name / "12")
    begun, losses = train(mesh, workdir / name)
    assert begun == 8, begun
    np.testing.assert_allclose(losses, whole, rtol=2e-4)
print("equal")
"""


def _script(text, *arguments, **environment):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)], env=env, capture_output=True, text=True
    )


@pytest.mark.slow
def test_another_number_of_devices_goes_on_in_the_same_order(tmp_path):
    done = _script(SMALL_RUN + OTHER_DEVICES, tmp_path, JAX_NUM_CPU_DEVICES="8")
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr[-2000:]


FAILING_DISK = """
import os, subprocess
workdir, mounted = Path(sys.argv[1]), sys.argv[2] == "mounted"
mesh = sharding.make_mesh()

def refused(*arguments):
    try:
        with os_errors(workdir):  # as around every stage
            train(mesh, *arguments)
    except UserError as error:
        print(f"- {error}")

refused(workdir / "a-0")
if mounted:
    subprocess.run(["mount", "-o", "remount,size=4m", workdir], check=True)
    with open(workdir / "filler", "ab", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(512))
        except OSError:
            pass
    refused(workdir / "b-0", CheckpointSchedule())  # nothing but metrics is written
    (workdir / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", workdir], check=True)
    save, saves = Checkpoints.save, []

    def then_read_only(self, step, *what):
        saves.append(step)
        if len(saves) == 2:
            self.wait()
            subprocess.run(["mount", "--bind", workdir, workdir], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", workdir], check=True)
        save(self, step, *what)

    Checkpoints.save = then_read_only
    refused(workdir / "c-0")
    subprocess.run(["umount", workdir], check=True)
    print("goes on from", train(mesh, workdir / "c-0")[0], flush=True)
os._exit(0)  # what Orbax's threads still wait for does not come
"""


@pytest.mark.slow
def test_a_disk_that_is_full_or_becomes_read_only_stops_a_training_with_a_sentence(tmp_path):
    """A real file system of 300 KiB where one can be mounted; elsewhere a limit on file sizes."""
    script = tmp_path / "script.py"
    script.write_text(SMALL_RUN + FAILING_DISK)
    (tmp_path / "w").mkdir()
    mount = f"mount -t tmpfs -o size=300k none {tmp_path / 'w'}"
    mounted = (
        subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode == 0
    )
    if mounted:
        command = [
            "unshare",
            "-m",
            "sh",
            "-c",
            f"{mount} && exec {sys.executable} {script} {tmp_path / 'w'} mounted",
        ]
    else:
        limited = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        script.write_text(limited + script.read_text())
        command = [sys.executable, str(script), str(tmp_path / "w"), "limited"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    full, *more = done.stdout.splitlines()
    assert "could not be saved" in full and "No space left" in full, done.stdout
    if mounted:
        metrics_full, read_only, resumed = more
        assert metrics_full.startswith("- No space left"), done.stdout
        assert (
            "at step 8 could not be saved; the last whole one is of step 4. Cannot write"
            in read_only
        ), done.stdout
        assert resumed == "goes on from 4"


FINGERPRINT_NUMBERS = """
import jax, jax.numpy as jnp, numpy as np
from subtransfer.training import checkpoints
rng = np.random.default_rng(5)
rng.integers(0, 2**32, (8, 4, 6), dtype=np.uint32)
leaves = [
    jnp.asarray(rng.standard_normal((8, 4, 6)).astype(np.float32)),
    jnp.asarray(rng.standard_normal((16, 8)), jnp.bfloat16),
    jnp.asarray(rng.integers(-100, 100, (24,)).astype(np.int32)),
    jnp.int32(7),
]
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))

def sharded(*axes):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

places = [sharded("a", "b"), sharded("b", "a"), sharded("b"), sharded()]
print(checkpoints.fingerprint(leaves))
print(checkpoints.fingerprint([jax.device_put(x, p) for x, p in zip(leaves, places)]))
# 4 MiB in all, 512 KiB a device.
large = [jax.ShapeDtypeStruct((64, 256, 64), jnp.float32, sharding=sharded(None, "b", "a"))]
compiled = checkpoints._sums.lower(large).compile()
print("all-gather" in compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes < 2**20)
"""


def test_a_fingerprint_is_summed_where_the_shards_lie():
    """The numbers are those of checkpoints that were saved before shards were looked at."""
    done = _script(FINGERPRINT_NUMBERS, JAX_NUM_CPU_DEVICES="8")
    whole, sharded, gathers = done.stdout.splitlines()
    assert whole == sharded == "[3478169721, 532075448, 4294959855, 7]", done.stderr[-2000:]
    assert gathers == "False True"


def _everything_below(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (MemoryError(), "MemoryError"),
        (TimeoutError("the server is silent"), "the server is silent"),
        (ValueError("RESOURCE_EXHAUSTED: out of memory"), "RESOURCE_EXHAUSTED"),
        (ValueError("UNKNOWN: reading: [OS error 5: EIO Input/output error]"), "EIO"),
        (jax.errors.JaxRuntimeError("INTERNAL: the device is gone"), "the device is gone"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_checkpoint_that_cannot_be_read_now_is_left_as_it_is(
    cfg, mesh, params, tmp_path, notice, monkeypatch, raised, words
):
    folder, steps = tmp_path / "w" / "b-0", tmp_path / "w" / ".steps" / "b-0"
    notice(steps=8)
    with pytest.raises(preemption.Preempted):
        _train(folder, cfg, mesh, params)
    notice()
    before = _everything_below(steps)
    orbax = type(Checkpoints(steps, "student.x", EVERY)._orbax)

    def refused(*args, **kwargs):
        raise raised

    with monkeypatch.context() as now:
        now.setattr(orbax, "load_checkpointables", refused)
        with pytest.raises(UserError, match=f"step 8 .*cannot be read now.*{words}"):
            _train(folder, cfg, mesh, params)
    assert _everything_below(steps) == before


def test_what_orbax_calls_missing_but_cannot_be_read_is_left_as_it_is(
    cfg, mesh, params, tmp_path, notice, monkeypatch
):
    folder, steps = tmp_path / "w" / "b-0", tmp_path / "w" / ".steps" / "b-0"
    notice(steps=4)
    with pytest.raises(preemption.Preempted):
        _train(folder, cfg, mesh, params)
    before = _everything_below(steps)

    def refused(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    checkpoints = Checkpoints(steps, "student.x", EVERY)
    monkeypatch.setattr(type(checkpoints._orbax), "load_checkpointables", lambda *args: {}["state"])
    monkeypatch.setattr(type(steps), "open", refused)
    with pytest.raises(UserError, match="cannot be read now .*Input/output error"):
        checkpoints.load({"x": jax.numpy.zeros(1)})
    monkeypatch.undo()
    assert _everything_below(steps) == before
