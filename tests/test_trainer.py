"""The one training loop."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from subtransfer.models import lora
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop

KEY = jax.random.key(7)


def _examples(cfg, n=40, length=16):
    rng = np.random.default_rng(0)
    return loop.Examples(
        rng.integers(0, cfg.vocab_size, (n, length)).astype(np.int32), np.ones((n, length), bool)
    )


def _run(
    cfg, mesh, params, examples, *, objective="sft", steps=25, rate=3e-3, tuning=None, teacher=None
):
    recipe = loop.Recipe(loop.Loss(objective, tuning=tuning or lora.Tuning()), steps, 8, rate)
    state, frozen = loop.init_state(recipe, params, KEY)
    state, curves = loop.train(
        cfg, mesh, recipe, state, frozen, examples, steps, KEY, teacher=teacher
    )
    return loop.current_weights(recipe, state, frozen), curves


@pytest.mark.parametrize("tuning", [lora.Tuning(), lora.Tuning("lora", 4, 8.0, 0.1)])
def test_the_loss_falls_and_the_start_is_left_alone(cfg, mesh, params, tuning):
    before = jax.device_get(params)
    after, curves = _run(cfg, mesh, params, _examples(cfg, n=8), steps=60, rate=1e-2, tuning=tuning)
    assert np.mean(curves["loss"][-5:]) < curves["loss"][0] - 0.2
    for old, start in zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(old, start)
    if tuning.method == "full":
        for n in ("q", "o", "up"):
            assert not np.array_equal(
                after["params"]["layers"][n]["kernel"], before["layers"][n]["kernel"]
            )
    else:
        assert after["params"] is params and set(after["lora"]["layers"]) == {"q", "k", "v", "o"}
        assert all(np.abs(pair["b"]).max() > 0 for pair in after["lora"]["layers"].values())


def test_a_student_moves_towards_its_teacher(cfg, mesh, params):
    teacher, _ = _run(cfg, mesh, params, _examples(cfg), steps=40, rate=1e-2)
    for objective in ("forward_kl", "reverse_kl"):
        _, curves = _run(
            cfg, mesh, params, _examples(cfg), objective=objective, steps=40, teacher=teacher
        )
        assert curves["loss"][-1] < 0.6 * curves["loss"][0]
        assert curves["grad_norm"][0] > 0


def test_the_same_seed_gives_the_same_bits(cfg, mesh, params):
    first, _ = _run(cfg, mesh, params, _examples(cfg))
    second, _ = _run(cfg, mesh, params, _examples(cfg))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def test_every_epoch_sees_each_example_once():
    order = loop.batch_indices(KEY, 10, 4, 5).ravel()
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert list(order[:10]) != list(order[10:])


def test_a_loss_that_is_no_number_stops_with_a_sentence(cfg, mesh, params):
    with pytest.raises(UserError, match="became NaN or infinite at step"):
        _run(cfg, mesh, params, _examples(cfg), rate=1e30)


def test_an_empty_loss_mask_is_an_error():
    with pytest.raises(UserError, match="no agent token"):
        loop.Examples.from_rows([(np.arange(4), np.zeros(4, bool))])
    with pytest.raises(UserError, match="max_tokens"):
        loop.Examples.from_rows([(np.arange(9), np.arange(9) > 6)]).fitted_to(6)


EIGHT = """
import jax, numpy as np
from subtransfer.training import pretrain
from subtransfer.runtime import sharding
from subtransfer.training import loop
from subtransfer.runtime.errors import UserError
from subtransfer.models.decoder import DecoderConfig
cfg = DecoderConfig(64, 32, 48, 2, 4, 2, 8)
rng = np.random.default_rng(0)
ex = loop.Examples(rng.integers(0, 64, (40, 16)).astype(np.int32), np.ones((40, 16), bool))
losses = []
for devices, shape in ((1, (1, 1, 1)), (8, (2, 2, 2))):
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[:devices])
    params = pretrain.init_params(cfg, mesh, jax.random.key(0))
    if shape == (2, 2, 2):
        kernel = params["layers"]["up"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 24), kernel.sharding
    recipe = loop.Recipe(loop.Loss("forward_kl"), 25, 8, 3e-3)
    state, frozen = loop.init_state(recipe, params, jax.random.key(1))
    state = loop.on_mesh(mesh, state)
    if shape == (2, 2, 2):
        sharding.check_divided(state, mesh, "The state", largest_shared=1024)
        clip, adam = state.opt_state
        whole = {**adam.nu, "embedding": jax.device_put(adam.nu["embedding"], sharding.replicated(mesh))}
        try:
            replicated = state.replace(opt_state=(clip, adam._replace(nu=whole)))
            sharding.check_divided(replicated, mesh, "The state", largest_shared=1024)
        except UserError as error:
            print(error)
    teacher = {"params": pretrain.init_params(cfg, mesh, jax.random.key(5))}
    _, curves = loop.train(cfg, mesh, recipe, state, frozen, ex, 25, jax.random.key(2), teacher=teacher)
    losses.append(curves["loss"])
np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)
print("equal")
"""


def test_one_and_eight_devices_agree():
    """Simulated devices prove that the sharded program is the same program; they prove nothing
    about speed. More layouts, slow, are in test_layouts.py. A state of which something large is
    replicated is refused.
    """
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", EIGHT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, equal = done.stdout.splitlines()
    assert (
        "The state has" in refused
        and "nu['embedding'] (64, 32), of which all 2 devices of mesh.fsdp" in refused
    )
    assert equal == "equal"
