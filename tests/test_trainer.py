"""The one training loop."""

import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subtransfer.models import lora
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop
from subtransfer.training.optimizer import Optimizer, Schedule

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
    chex.assert_trees_all_equal(first, second)


# optax's own optimisers, which multiply by the learning rate themselves.
OPTIMIZERS = {
    "the default": (
        Optimizer(),
        lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98)),
    ),
    "adam": (
        Optimizer("adam", b1=0.8, b2=0.95, eps=1e-6, clip_norm=0.0),
        lambda rate: optax.adam(rate, b1=0.8, b2=0.95, eps=1e-6),
    ),
    "adamw": (
        Optimizer("adamw", b2=0.999, weight_decay=0.1, clip_norm=0.3),
        lambda rate: optax.chain(
            optax.clip_by_global_norm(0.3), optax.adamw(rate, b2=0.999, weight_decay=0.1)
        ),
    ),
    "sgd": (Optimizer("sgd", clip_norm=0.0), optax.sgd),
    "momentum": (
        Optimizer("sgd", momentum=0.9, clip_norm=0.0),
        lambda rate: optax.sgd(rate, momentum=0.9),
    ),
    "lion": (
        Optimizer("lion", b2=0.99, weight_decay=0.01, clip_norm=0.0),
        lambda rate: optax.lion(rate, weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_optax(cfg, mesh, params, name):
    """Three whole training steps with changing rates, against optax's optimiser of that name."""
    ours, theirs = OPTIMIZERS[name]
    examples, rates = _examples(cfg, n=24), (1e-2, 3e-2, 2e-2)
    recipe = loop.Recipe(loop.Loss("sft", optimizer=ours), 3, 8, 1e-2)
    state, _ = loop.init_state(recipe, params, KEY)
    tokens, mask = examples.tokens.reshape(3, 8, -1), examples.loss_mask.reshape(3, 8, -1)
    state, _ = loop.train_steps(
        cfg, recipe.loss, state, None, None, None, tokens, mask, np.float32(rates), KEY
    )

    optimizer = theirs(lambda step: jnp.asarray(rates)[step])
    weights, opt_state = params, optimizer.init(params)
    gradient = jax.jit(
        jax.grad(
            lambda p, t, m: loop.loss_fn(cfg, recipe.loss, p, None, None, None, t, m, KEY, {})[0]
        )
    )
    for step in range(3):
        grads = gradient(weights, tokens[step], mask[step])
        updates, opt_state = optimizer.update(grads, opt_state, weights)
        weights = optax.apply_updates(weights, updates)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), weights, params)
    assert min(jax.tree.leaves(moved)) > 0
    # Rounding decides a weight's step where its moments are almost 0: Lion takes their sign, Adam a
    # ratio of two. Rows of a batch in another order do as much to optax's own steps.
    close = jax.tree.map(lambda a, b: np.isclose(a, b, atol=1e-5), state.trainable, weights)
    assert np.mean(np.concatenate([np.ravel(x) for x in jax.tree.leaves(close)])) > 0.997
    if name != "lion":
        chex.assert_trees_all_close(state.trainable, weights, atol=1e-3)


def _drawn(schedule, peak, steps):
    """The rates by a formula of our own: straight lines and half a cosine."""
    warmup = schedule.warmup_steps or max(int(schedule.warmup_fraction * steps), 1)
    out = []
    for step in range(1, steps + 1):
        gone = max(step - warmup, 0) / max(steps - warmup, 1)
        share = {"cosine": (1 + np.cos(np.pi * gone)) / 2, "linear": 1 - gone, "constant": 1.0}
        end = schedule.end_fraction
        height = end + (1 - end) * share[schedule.name] if step > warmup else step / warmup
        out.append(peak * height)
    return np.array(out)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(),
        Schedule("linear", end_fraction=0.0),
        Schedule("constant", warmup_fraction=0.25),
        Schedule("cosine", warmup_steps=7, end_fraction=0.5),
        Schedule("linear", warmup_fraction=1.0),
        Schedule("constant", warmup_fraction=0.0),
    ],
    ids=lambda s: f"{s.name}-{s.warmup_fraction}-{s.warmup_steps}-{s.end_fraction}",
)
def test_learning_rates(schedule):
    for steps in (1, 20, 60, 150):
        if schedule.warmup_steps <= steps:
            rates = schedule.rates(2e-3, steps, 0, steps)
            np.testing.assert_allclose(rates, _drawn(schedule, 2e-3, steps), rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(
        schedule.rates(2e-3, 150, 40, 30), schedule.rates(2e-3, 150, 0, 150)[40:70]
    )


def test_other_rates_compile_nothing_anew(cfg, mesh, params):
    """The learning rate and its schedule are arguments of the step, the optimiser is not."""
    examples = _examples(cfg, n=8)
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(loop.train_steps.__wrapped__, n=2)
    steps = jax.jit(traced, static_argnames=("cfg", "loss"))
    batch = examples.tokens[None], examples.loss_mask[None]
    for optimizer in (Optimizer(), Optimizer("adamw", weight_decay=0.1)):
        for schedule in (Schedule(), Schedule("constant"), Schedule("linear", warmup_steps=3)):
            recipe = loop.Recipe(loop.Loss("sft", optimizer=optimizer), 20, 8, 1e-2, schedule)
            state, _ = loop.init_state(recipe, params, KEY)
            rates = recipe.learning_rates(0, 1)
            steps(cfg, recipe.loss, state, None, None, None, *batch, rates, KEY)


def test_an_objective_has_its_own_options_only():
    assert dict(loop.Loss("jsd").options) == {"jsd_beta": 0.5}
    assert loop.Loss("jsd", options={"jsd_beta": 0.25}) != loop.Loss("jsd")
    assert hash(loop.Loss("jsd", options={"jsd_beta": 0.5})) == hash(loop.Loss("jsd"))
    with pytest.raises(ValueError, match="sft has no option 'jsd_beta'"):
        loop.Loss("sft", options={"jsd_beta": 0.5})
    with pytest.raises(UserError, match="There is no objective 'kl' among sft, forward_kl"):
        loop.Loss("kl")


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
from subtransfer.models.decoder import DecoderConfig
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop, pretrain
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
        "JAX_NUM_CPU_DEVICES": "8",
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
