"""Several processes compute what one computes."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from .launching import launch

ROOT = Path(__file__).parent.parent
LOSSES = """
import json, sys
from subtransfer.runtime import processes
port, count, number, layouts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
if count > 1:
    processes.join(f"localhost:{port}", count, number, peer_timeout=60)
import jax, numpy as np
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.lora import Tuning
from subtransfer.runtime import distributed, sharding
from subtransfer.training import loop, pretrain

cfg = DecoderConfig(64, 32, 48, 2, 4, 2, 8)
rng = np.random.default_rng(0)
examples = loop.Examples(rng.integers(0, 64, (40, 16)).astype(np.int32), np.ones((40, 16), bool))
losses = {}
for tuning in (Tuning(), Tuning("lora", 4, 8.0)):
    for layout in layouts:
        mesh = sharding.make_mesh(*layout, devices=jax.devices()[: int(np.prod(layout))])
        params = pretrain.init_params(cfg, mesh, jax.random.key(0))
        teacher = {"params": pretrain.init_params(cfg, mesh, jax.random.key(5))}
        recipe = loop.Recipe(loop.Loss("forward_kl", tuning=tuning), 50, 8, 3e-3)
        state, frozen = loop.init_state(recipe, params, jax.random.key(1))
        state, curves = loop.train(
            cfg, mesh, recipe, state, frozen, examples, 50, jax.random.key(2), teacher=teacher
        )
        whole = distributed.to_host(state.trainable)  # as an artefact is written
        losses[f"{tuning.method} {layout}"] = [*curves["loss"], float(sum(np.abs(x).sum() for x in jax.tree.leaves(whole)))]
if processes.leads():
    print(json.dumps(losses))
processes.leave(0, "")
"""


POPULATION = """
import json, sys
from subtransfer.runtime import processes
port, count, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if count > 1:
    processes.join(f"localhost:{port}", count, number, peer_timeout=60)
import jax, numpy as np
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.lora import Tuning
from subtransfer.runtime import sharding
from subtransfer.training import loop, population, pretrain

cfg, mesh = DecoderConfig(48, 16, 24, 1, 2, 1, 8), sharding.make_mesh(2, 2, 1)
base, rng = pretrain.init_params(cfg, mesh, jax.random.key(0)), np.random.default_rng(0)
losses = {}
for tuning in (Tuning(), Tuning("lora", 4, 8.0)):
    recipe = loop.Recipe(loop.Loss("sft", tuning=tuning), 25, 8, 3e-3)
    members = []
    for i in range(8):
        examples = loop.Examples(rng.integers(0, 48, (40, 16)).astype(np.int32), np.ones((40, 16), bool))
        members.append(population.Learner(f"m{i}", recipe, base, examples, jax.random.key(i)))
    for outcome in population.train(cfg, mesh, members):
        weights = float(sum(np.abs(x).sum() for x in jax.tree.leaves(outcome.trainable)))
        losses.setdefault(tuning.method, []).append([*outcome.curves["loss"], weights])
if processes.leads():
    print(json.dumps(losses))
processes.leave(0, "")
"""


CHOICES = """
import json, sys
from subtransfer.runtime import processes
port, count, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if count > 1:
    processes.join(f"localhost:{port}", count, number, peer_timeout=60)
import jax, numpy as np
from subtransfer.models.decoder import DecoderConfig
from subtransfer.probes import choice
from subtransfer.runtime import sharding
from subtransfer.training import pretrain

cfg, mesh, rng = DecoderConfig(48, 16, 24, 1, 2, 1, 8), sharding.make_mesh(4, 1, 1), np.random.default_rng(0)
tokens, positions = rng.integers(0, 48, (7, 14)).astype(np.int32), np.tile(np.arange(14, dtype=np.int32), (7, 1))
sizes, segments = np.full(7, 12, np.int32), np.array([0] * 12 + [1, 2], np.int32)
positions[:, 12:] = 12
tree = [np.array(x) for x in ([3, 4, 5, 6], [0, 1, 0, 2], [0, 0, 1, 1], [0, 1])]
batch = choice.ChoiceBatch(tokens, positions, sizes, segments, *tree)
policies = [{"params": pretrain.init_params(cfg, mesh, jax.random.key(i))} for i in range(2)]
scores = choice.logprobs(cfg, policies, batch)
if processes.leads():
    print(json.dumps({"scores": scores.tolist()}))
processes.leave(0, "")
"""


def _losses(script, count, devices, *arguments):
    """What a script prints as JSON, run by `count` processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    simulated = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    env = {**os.environ, **simulated, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                script,
                str(port),
                str(count),
                str(i),
                *map(json.dumps, arguments),
            ],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    ended = [process.communicate() for process in started]
    assert all(process.returncode == 0 for process in started), [err[-2000:] for _, err in ended]
    return json.loads(ended[0][0].splitlines()[-1])


@pytest.mark.slow
def test_devices_and_processes_give_the_same_losses():
    """1, 2 and 8 devices of one process and 2 processes of 4 devices each; full and LoRA; sharded
    over fsdp and tensor.
    """
    alone = _losses(LOSSES, 1, 8, [[1, 1, 1], [1, 2, 1], [1, 8, 1], [2, 2, 2]])
    together = _losses(LOSSES, 2, 4, [[1, 8, 1], [2, 2, 2]])
    for method in ("full", "lora"):
        reference = np.array(alone[f"{method} [1, 1, 1]"])
        assert reference[49] < 0.9 * reference[0]
        for kind in (alone, together):
            for layout, losses in kind.items():
                if layout.startswith(method):
                    np.testing.assert_allclose(
                        losses, reference, rtol=2e-3, err_msg=f"{len(kind)} {layout}"
                    )


@pytest.mark.slow
def test_two_processes_train_a_population_as_one_does():
    alone, together = _losses(POPULATION, 1, 4), _losses(POPULATION, 2, 2)
    for method in ("full", "lora"):
        np.testing.assert_allclose(together[method], alone[method], rtol=2e-3, err_msg=method)


@pytest.mark.slow
def test_two_processes_score_choices_as_one_does():
    one, two = _losses(CHOICES, 1, 4)["scores"], _losses(CHOICES, 2, 2)["scores"]
    assert np.shape(one) == (2, 7, 2)
    np.testing.assert_allclose(two, one, atol=1e-5)


def test_a_coordinator_that_is_not_there_is_a_sentence():
    """What is known before any device is touched: flags that do not belong together are refused by
    the command (test_launch).
    """
    script = (
        "from subtransfer.runtime import processes\nfrom subtransfer.runtime.errors import UserError\n"
        "try:\n    processes.join('nowhere.invalid:1', 2, 5, peer_timeout=5)\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (
        done.stdout.startswith("The processes did not find each other: ")
        and "Traceback" not in done.stderr
    )


def _two(script, tmp_path, *arguments):
    """Runs a script in two processes; returns the status and the output of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    started = []
    for number in range(2):
        command = [sys.executable, "-c", script, str(port), str(number), str(tmp_path), *arguments]
        started.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [process.communicate(timeout=120)[0] for process in started]
    return [(process.returncode, out) for process, out in zip(started, outputs, strict=True)]


# The first process loses its claim when it has built the stage.
LOST = """
import sys
import time
from pathlib import Path
from subtransfer.runtime import preemption, processes
port, number, workdir = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
processes.join(f"localhost:{port}", 2, number, peer_timeout=20)
import jax
from jax.experimental import multihost_utils
from subtransfer.store import artifacts
from subtransfer.store.claims import Claims

def build(folder):
    (folder / "file").write_text("made")
    multihost_utils.sync_global_devices("a collective of all processes")
    if number == 0:
        name = next(workdir.glob(".s-*.tmp-*")).name[1:].rpartition(".tmp-")[0]
        assert Claims(workdir / ".claims").take(name, expired=0)

try:
    with artifacts.Store(workdir) as store:
        store.stage("s", {"k": 1}, build, log=print)
except preemption.Preempted as error:
    print(error, flush=True)
    processes.leave(preemption.status(), str(error))
print("went on")
"""


def test_a_lost_claim_ends_all_processes_instead_of_building_alone(tmp_path):
    ended = _two(LOST, tmp_path)
    assert [code for code, _ in ended] == [75, 75], ended
    assert all("was taken over" in out and "went on" not in out for _, out in ended), ended
    assert not list(tmp_path.glob("s-*"))


# The second process sees a folder as it was a while ago.
STALE = """
import sys
import time
from pathlib import Path
from subtransfer.runtime import processes
port, number, workdir = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
processes.join(f"localhost:{port}", 2, number, peer_timeout=20)
import jax, numpy as np
from subtransfer.runtime import distributed, sharding
from subtransfer.training import checkpoints
from subtransfer.training.checkpoints import Checkpoints, CheckpointSchedule, TrainingProgress

mesh = sharding.make_mesh(1, 2, 1)
rows = sharding.rows_sharding(mesh, (4, 2))
folder = workdir / ".steps" / "s"

def state(step):
    return {"w": distributed.place(np.full((4, 2), step, np.float32), rows)}

saved = Checkpoints(folder, "s", CheckpointSchedule())
for step in (4, 8):
    saved.save(step, state(step), TrainingProgress())
    saved.wait()
saved.close()

class Stale:
    def __init__(self, real, missing):
        self.real, self.missing, self.reloads = real, missing, 0
    def __getattr__(self, name):
        return getattr(self.real, name)
    @property
    def checkpoints(self):
        late = self.reloads < 3 or sys.argv[4] == "for ever"
        return [c for c in self.real.checkpoints if not (late and c.step in self.missing)]
    def reload(self):
        self.reloads += 1
        self.real.reload()

found = Checkpoints(folder, "s", CheckpointSchedule())
if number == 1:
    found.__dict__["_orbax"] = Stale(found._orbax, {8})
else:
    found._orbax
checkpoints.LISTING = 1.0 if sys.argv[4] == "for ever" else 60.0
try:
    loaded, _ = found.load(state(0))
    print("loaded", found.confirmed, distributed.to_host(loaded["w"])[0, 0], flush=True)
except Exception as error:
    print(error, flush=True)
    processes.leave(2, str(error))
found.close()
processes.leave(0, "")
"""


@pytest.mark.slow
@pytest.mark.parametrize("stale", ["at first", "for ever"])
def test_the_first_process_says_which_checkpoints_there_are(tmp_path, stale):
    """What another sees may be old: it waits until it sees the same."""
    ended = _two(STALE, tmp_path, stale)
    if stale == "at first":
        assert [code for code, _ in ended] == [0, 0], ended
        assert all("loaded 8 8.0" in out for _, out in ended), ended
    else:
        assert [code for code, _ in ended] == [2, 2], ended
        assert "this one has not for 1 s" in ended[1][1], ended
        assert sorted(p.name for p in (tmp_path / ".steps" / "s").iterdir()) == ["4", "8"]


@pytest.mark.slow
def test_a_process_waits_for_the_others_as_long_as_it_is_told(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = [f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id=0"]
    begin = time.monotonic()
    done = launch(
        [
            "--config=configs/quickstart.py",
            f"--workdir={tmp_path / 'w'}",
            *arguments,
            "--join_timeout=2",
        ],
        ROOT,
    )
    assert time.monotonic() - begin < 60
    assert done.returncode == 2 and "did not find each other" in done.stderr, done
    assert not (tmp_path / "w").exists()


# The second process dies when it has written down so many calls.
EPISODES = """
import hashlib, os, sys
from pathlib import Path
from subtransfer.runtime import processes
port, number, folder, calls = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
processes.join(f"localhost:{port}", 2, number, peer_timeout=5)
import jax
from subtransfer import settings
from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.tokenizer import train_tokenizer
from subtransfer.rollout import lanes
from subtransfer.rollout.episodes import RolloutSpec, run_episodes
from subtransfer.runtime import sharding
from subtransfer.store.journal import Journals
from subtransfer.training import pretrain

setting = settings.get("api")
demos = list(pretrain.demonstrations(setting, 500, 0.05, 0))
texts = pretrain.corpus_texts(demos, setting)
chat = ChatFormat(train_tokenizer(texts, setting, 512), setting)
cfg = DecoderConfig(len(chat.tokenizer), 32, 48, 2, 2, 1, 16)
params = pretrain.init_params(cfg, sharding.make_mesh(1, 2, 1), jax.random.key(0))
pack, left = lanes._packed, [calls]

def packed(out):
    left[0] -= 1
    if left[0] < 0 and number == 1:
        os._exit(9)
    return pack(out)

lanes._packed = packed
tasks, spec = setting.tasks("safe", "train", 40, 0), RolloutSpec(8, 3, 12, 13, 1.0)
made, stats = run_episodes(
    cfg, {"params": params}, chat, tasks, spec, jax.random.key(1),
    journals=Journals(folder / "rollouts-0", "rollouts", 120.0),
)
digest = hashlib.sha256()
for t in made:
    digest.update(t.tokens.tobytes() + t.behavior_logprobs.tobytes())
print("MADE", digest.hexdigest(), stats.tokens, flush=True)
processes.leave(0, "")
"""


@pytest.mark.slow
def test_episodes_of_two_processes_go_on_with_the_same_bits(tmp_path):
    """A process may die one call before the other: both go on from what both have written down."""

    def made(folder, calls):
        (tmp_path / folder).mkdir(exist_ok=True)
        return _two(EPISODES, tmp_path / folder, str(calls))

    def result(ended):
        lines = [line.split() for _, out in ended for line in out.splitlines() if "MADE" in line]
        assert [code for code, _ in ended] == [0, 0] and len(lines) == 2, ended
        assert lines[0][1] == lines[1][1]
        return lines[0][1], int(lines[0][2])

    digest, tokens = result(made("undisturbed", 10**9))
    for calls in (4, 3):
        (code, _), (died, _) = made("killed", calls)
        assert died == 9 and code != 0
    again, rest = result(made("killed", 10**9))
    assert again == digest and 0 < rest < tokens
