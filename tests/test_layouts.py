"""The same training on 1, 2 and 8 simulated devices, in every layout; nothing large is whole on each of them."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import jax, numpy as np
from subtransfer import pretrain, sharding
from subtransfer.distill import trainer
from subtransfer.models.decoder import DecoderConfig
steps, method = int(sys.argv[1]), sys.argv[2]
cfg = DecoderConfig(64, 32, 48, 2, 4, 2, 8)
rng = np.random.default_rng(0)
examples = trainer.Examples(rng.integers(0, 64, (40, 16)).astype(np.int32), np.ones((40, 16), bool))
tuning = trainer.Tuning() if method == "full" else trainer.Tuning("lora", 4, 8.0, 0.0)
losses = []
for devices, shape in ((1, (1, 1, 1)), (2, (1, 2, 1)), (8, (1, 8, 1)), (8, (2, 2, 2)), (8, (4, 1, 2))):
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[:devices])
    params = pretrain.init_params(cfg, mesh, jax.random.key(0))
    recipe = trainer.Recipe(trainer.Loss("forward_kl", tuning=tuning), steps, 8, 3e-3)
    state, frozen = trainer.init_state(recipe, params, jax.random.key(1))
    teacher = {"params": pretrain.init_params(cfg, mesh, jax.random.key(5))}
    state, curves = trainer.train(cfg, mesh, recipe, state, frozen, examples, steps, jax.random.key(2), teacher=teacher)
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
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, "50", method], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"
