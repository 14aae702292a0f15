"""The same training on 1, 2 and 8 simulated devices, in every layout; nothing large is whole on
each of them.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import jax, numpy as np
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.lora import Tuning
from subtransfer.runtime import sharding
from subtransfer.training import loop, pretrain
steps, method = int(sys.argv[1]), sys.argv[2]
cfg = DecoderConfig(64, 32, 48, 2, 4, 2, 8)
rng = np.random.default_rng(0)
examples = loop.Examples(rng.integers(0, 64, (40, 16)).astype(np.int32), np.ones((40, 16), bool))
tuning = Tuning() if method == "full" else Tuning("lora", 4, 8.0, 0.0)
losses = []
for devices, shape in ((1, (1, 1, 1)), (2, (1, 2, 1)), (8, (1, 8, 1)), (8, (2, 2, 2)), (8, (4, 1, 2))):
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[:devices])
    params = pretrain.init_params(cfg, mesh, jax.random.key(0))
    recipe = loop.Recipe(loop.Loss("forward_kl", tuning=tuning), steps, 8, 3e-3)
    state, frozen = loop.init_state(recipe, params, jax.random.key(1))
    teacher = {"params": pretrain.init_params(cfg, mesh, jax.random.key(5))}
    state, curves = loop.train(cfg, mesh, recipe, state, frozen, examples, steps, jax.random.key(2), teacher=teacher)
    adam = state.opt_state[1]
    for moments in (adam.mu, adam.nu):  # laid out as what they belong to
        for x, moment in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(moments), strict=True):
            assert moment.sharding.shard_shape(x.shape) == x.sharding.shard_shape(x.shape), (shape, x.shape)
    if method == "full" and shape[1] * shape[2] > 1:
        for name in ("q", "up", "down"):
            kernel = state.trainable["layers"][name]["kernel"]
            assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape, (shape, name)
    losses.append(curves["loss"])
for other in losses[1:]:
    np.testing.assert_allclose(other, losses[0], rtol=1e-3)
assert losses[0][-1] < losses[0][0]
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_devices_and_layouts_agree_over_50_steps(method):
    env = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "50", method], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"


MEMORY = """
import jax, numpy as np
from subtransfer.models import decoder
from subtransfer.runtime import sharding
from subtransfer.training import loop, pretrain

decoder.LARGE = 0
cfg = decoder.DecoderConfig(64, 128, 512, 8, 8, 8, 16, remat="full")
whole = None
for shape in ((1, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)):
    devices = int(np.prod(shape))
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[:devices])
    recipe = loop.Recipe(loop.Loss("sft"), 1, 8, 3e-3)
    params = pretrain.init_params(cfg, mesh, jax.random.key(0))
    state, _ = loop.init_state(recipe, params, jax.random.key(1))
    state = loop.on_mesh(mesh, state)
    placed = sharding.batch_sharding(mesh, leading=1)
    tokens, mask = (jax.device_put(np.ones((1, 8, 64), kind), placed) for kind in (np.int32, bool))
    rates, key = np.ones(1, np.float32), jax.random.key(2)
    with jax.set_mesh(mesh):
        step = loop.train_steps.lower(cfg, recipe.loss, state, None, None, None, tokens, mask, rates, key).compile()
    made = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, step.output_shardings[0])
    sharding.check_divided(made, mesh, "The state", largest_shared=20_000)
    used = step.memory_analysis().temp_size_in_bytes
    whole = whole or used
    assert used < 2 * whole / (shape[1] * shape[2]), (shape, used, whole)
"""


@pytest.mark.slow
def test_gradients_and_activations_are_divided():
    """What a step needs beside its state falls with the devices; most of it are gradients and what
    layers keep.
    """
    env = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", MEMORY], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
