"""The metrics of a training: every step once, in every file, also after an interruption."""

import json

import flax.linen as nn
import google_crc32c
import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.models.forward import forward
from subtransfer.runtime.errors import UserError
from subtransfer.store.files import os_errors
from subtransfer.store.workdir import steps_folder
from subtransfer.training import loop, metrics
from subtransfer.training.checkpoints import Checkpoints, CheckpointSchedule
from subtransfer.training.flops import fed_tokens, step_flops
from subtransfer.training.monitor import ProfiledSteps, open_monitor

KEY = jax.random.key(3)


def _masked(data):
    """The checksum that TensorFlow's record format stores of some bytes, 4 bytes."""
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) % (1 << 32)).to_bytes(4, "little")


def _events(folder):
    """(tag, step, value) of event files, read as the format says: 8 bytes of the record's length,
    their checksum, the record, its checksum.
    """
    for path in folder.iterdir():
        with path.open("rb") as file:
            while length := file.read(8):
                assert file.read(4) == _masked(length)
                record = file.read(int.from_bytes(length, "little"))
                assert file.read(4) == _masked(record)
                event = event_pb2.Event.FromString(record)
                for value in event.summary.value:
                    yield value.tag, event.step, value.simple_value


def _train(folder, cfg, mesh, params, stop=None, **options):
    folder.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    examples = loop.Examples(
        rng.integers(0, cfg.vocab_size, (20, 16)).astype(np.int32), np.ones((20, 16), bool)
    )
    recipe = loop.Recipe(loop.Loss("sft"), 12, 4, 3e-3)
    checkpoints = Checkpoints(steps_folder(folder), "student.x", CheckpointSchedule(every_steps=4))
    writer = metrics.Writer(folder, "distill", tensorboard=True, wandb="")
    with open_monitor("student.x", 12, checkpoints, writer, **options) as run:
        state, frozen = loop.start_state(mesh, recipe, params, KEY, run)
        if stop:
            save = run.keep

            def keep(state):
                save(state)
                if int(state.step) == stop:
                    checkpoints.wait()
                    raise KeyboardInterrupt

            run.keep = keep
        return loop.train(cfg, mesh, recipe, state, frozen, examples, 12, KEY, run=run)


def test_every_step_is_written_once(cfg, mesh, params, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_DISPATCH", 4)
    artifact = tmp_path / "w" / "student.x-0"
    with pytest.raises(KeyboardInterrupt):
        _train(artifact, cfg, mesh, params, stop=8)
    path = tmp_path / "w" / "metrics" / "student.x-0.jsonl"
    # As after a kill between checkpoints: steps that are not in one, and a line that is cut off.
    with path.open("a") as file:
        file.write('{"step": 9, "distill/sft": 1.0}\n{"step": 10, "dist')
    window = ProfiledSteps(10, 10, tmp_path / "profile")
    _, curves = _train(artifact, cfg, mesh, params, peak_flops=1e12, window=window)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(1, 13))
    np.testing.assert_array_equal([r["distill/sft"] for r in records], curves["loss"])
    assert {"distill/accuracy", "distill/grad_norm", "distill/learning_rate"} < set(records[0])
    assert records[7]["distill/tokens_per_second"] == pytest.approx(
        4 * 16 / records[7]["distill/step_seconds"]
    )
    drawn = {}
    for tag, step, value in _events(tmp_path / "w" / "metrics" / "tensorboard" / "student.x-0"):
        assert (tag, step) not in drawn
        drawn[tag, step] = value
    written = {(name, r["step"]): r[name] for r in records for name in r if name != "step"}
    assert drawn == pytest.approx(written, rel=1e-6)  # events hold float32
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_operations_of_a_step():
    """Against XLA's count of a forward pass (which has softmaxes and norms, too) and of a step with
    its backward pass.
    """
    cfg = DecoderConfig(512, 256, 1024, 1, 4, 4, 64)  # one layer: XLA counts a loop's body once
    tokens = np.zeros((4, 32), np.int32)
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nn.meta.unbox(abstract_params(cfg))
    )

    def summed_logits(params):
        return forward(cfg, {"params": params}, tokens).sum()

    def count(function):
        return jax.jit(function).lower(params).compile().cost_analysis()["flops"]

    whole = step_flops(cfg, tokens=tokens.size, length=32, full=True)
    assert count(jax.grad(summed_logits)) == pytest.approx(whole, rel=0.08)
    adapted = step_flops(cfg, tokens=tokens.size, length=32, full=False, teacher=cfg)
    assert count(summed_logits) == pytest.approx(whole / 3, rel=0.08) and adapted == pytest.approx(
        whole
    )
    # XLA's own attention makes all scores, of which causality hides half.
    row = np.zeros((1, 1024), np.int32)
    scores, half = (
        step_flops(cfg, tokens=1024, length=1024, full=True, causal=x) for x in (False, True)
    )
    made = count(lambda params: forward(cfg, {"params": params}, row).sum())
    assert made == pytest.approx(scores / 3, rel=0.08) and half < 0.9 * scores


def test_what_rows_after_a_shared_prefix_see():
    """Against masks: 2 rows of 400 tokens in one part, after a prefix of 600."""
    row, prefix = np.tri(1000)[600:], np.tri(600)
    for causal, seen in (
        (True, 2 * (2 * row.sum() + prefix.sum())),
        (False, 2 * row.size + prefix.size),
    ):
        tokens, length = fed_tokens(2, 400, 600, causal=causal)
        assert tokens == 1400 and length == pytest.approx(seen / tokens, rel=0.01)


@pytest.mark.parametrize(
    "line",
    [b'{"step": "one"}', b"[]", b"\xff", b'{"loss": 1.0}'],
    ids=["text", "list", "bytes", "no step"],
)
def test_a_damaged_file_of_an_earlier_attempt_is_named(tmp_path, line):
    writer = metrics.Writer(tmp_path / "student.x-0", "distill", tensorboard=False, wandb="")
    writer.path.parent.mkdir()
    writer.path.write_bytes(line + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match="student.x-0.jsonl, line 1, .*delete the file"):
        writer.start(2)


def test_a_file_where_metrics_belong_is_named(tmp_path):
    (tmp_path / "metrics").write_text("")
    writer = metrics.Writer(tmp_path / "student.x-0", "distill", tensorboard=True, wandb="")
    words = "/metrics is a file where a folder belongs"
    with pytest.raises(UserError, match=words), os_errors(tmp_path):  # as around every stage
        writer.start(0)
