"""The metrics of a training: every step once, in every file, also after an interruption."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.models.forward import forward
from subtransfer.store import artifacts
from subtransfer.training import loop, metrics
from subtransfer.training.checkpoints import Checkpoints, Policy
from subtransfer.training.run import Window, open_run

KEY = jax.random.key(3)


def _events(folder):
    """(tag, step, value) of event files, read as the format says: length, checksum, record,
    checksum.
    """
    for file in folder.iterdir():
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                yield value.tag, event.step, value.simple_value


def _train(folder, cfg, mesh, params, stop=None, **options):
    folder.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    examples = loop.Examples(
        rng.integers(0, cfg.vocab_size, (20, 16)).astype(np.int32), np.ones((20, 16), bool)
    )
    recipe = loop.Recipe(loop.Loss("sft"), 12, 4, 3e-3)
    checkpoints = Checkpoints(artifacts.steps_folder(folder), "student.x", Policy(every_steps=4))
    writer = metrics.Writer(folder, "distill", tensorboard=True, wandb="")
    with open_run("student.x", 12, checkpoints, writer, **options) as run:
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
    window = Window(10, 10, tmp_path / "profile")
    _, curves = _train(artifact, cfg, mesh, params, peak_flops=1e12, window=window)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(1, 13))
    np.testing.assert_array_equal([r["distill/sft"] for r in records], curves["loss"])
    assert {"distill/accuracy", "distill/grad_norm", "distill/learning_rate"} < set(records[0])
    assert records[7]["distill/tokens_per_second"] == pytest.approx(
        4 * 16 / records[7]["distill/step_seconds"]
    )
    drawn = [
        (tag, step)
        for tag, step, _ in _events(tmp_path / "w" / "metrics" / "tensorboard" / "student.x-0")
    ]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) == {(name, r["step"]) for r in records for name in r if name != "step"}
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

    def total(params):
        return forward(cfg, {"params": params}, tokens).sum()

    def count(function):
        return jax.jit(function).lower(params).compile().cost_analysis()["flops"]

    whole = metrics.step_flops(cfg, tokens=tokens.size, length=32, full=True)
    assert count(jax.grad(total)) == pytest.approx(whole, rel=0.08)
    adapted = metrics.step_flops(cfg, tokens=tokens.size, length=32, full=False, teacher=cfg)
    assert count(total) == pytest.approx(whole / 3, rel=0.08) and adapted == pytest.approx(whole)
