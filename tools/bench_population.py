"""A population beside the same trainings one by one.

The model is the embedded one; all steps run in one process.

    python tools/bench_population.py --json=population.json
    python tools/bench_population.py --members=64 --objectives=sft --steps=200      # on an
    accelerator

Contenders are whole trainings as a run makes them: initial states, orders, batches from the host,
dispatches of 20 steps and curves. "one by one" is `population.train_alone` for each seed, on one
device; "in turns" and "side by side" are the two programs of `population.train`, which takes the
one that is faster on the devices at hand, on one device and on all that there are
(XLA_FLAGS=--xla_force_host_platform_device_count=2 makes two of a CPU). Before anything is timed,
all losses and final weights must agree. Then contenders take turns, so that noise falls on all of
them; what is reported are medians over --rounds turns.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from peers import command

from subtransfer.config import reading as configuration
from subtransfer.experiment.geometry import embedded_geometry
from subtransfer.models.decoder import DecoderConfig
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop, population, pretrain
from subtransfer.training.examples import Examples
from subtransfer.training.monitor import TrainingMonitor
from subtransfer.training.population import Learner

_MEMBERS = flags.DEFINE_integer("members", 16, "Training seeds.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 20, "Optimiser steps of each.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each contender.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 16, "Episodes a step.", lower_bound=1)
_OBJECTIVES = flags.DEFINE_list(
    "objectives", ["sft", "forward_kl"], "Of sft and forward_kl, with a live teacher a seed."
)
flags.DEFINE_string("json", None, "A file for the results.")

# Losses agree to the first, relatively; weights to the second, as Adam makes much of the last bits
# of gradients near zero.
LOSSES, WEIGHTS = 1e-3, 5e-3
Trained = list[tuple[Any, list[float]]]


def members_of(cfg: DecoderConfig, mesh: Mesh, objective: str) -> list[Learner]:
    """Students of one base that differ in their seeds: data, order and teacher."""
    c, rng = configuration.defaults(), np.random.default_rng(0)
    base = pretrain.init_params(cfg, mesh, jax.random.key(0))
    recipe = loop.Recipe(loop.Loss(objective), _STEPS.value, _BATCH.value, c.distill.learning_rate)
    made = []
    for i in range(_MEMBERS.value):
        shape = 256, c.distill.max_tokens
        examples = Examples(
            rng.integers(0, cfg.vocab_size, shape).astype(np.int32), rng.random(shape) < 0.5
        )
        teacher = (
            None
            if objective == "sft"
            else {"params": pretrain.init_params(cfg, mesh, jax.random.key(1 + i))}
        )
        made.append(Learner(f"seed {i}", recipe, base, examples, jax.random.key(i), teacher))
    return made


def contenders(cfg: DecoderConfig, objective: str) -> dict[str, Callable[[], Trained]]:
    """By name, what trains all members and returns each one's weights and losses."""
    devices = jax.local_devices()
    one = sharding.make_mesh(devices=devices[:1])
    members = members_of(cfg, one, objective)

    def one_by_one():
        trained = [
            population.train_alone(cfg, one, member, TrainingMonitor(member.label))
            for member in members
        ]
        return [(jax.device_get(state.trainable), curves["loss"]) for state, curves in trained]

    def as_one(mesh, together):
        return [
            (x.trainable, x.curves["loss"])
            for x in population.train(cfg, mesh, members, together=together)
        ]

    made = {"one by one": one_by_one}
    for mesh in [one] + [sharding.make_mesh(devices=devices)] * (len(devices) > 1):
        for name, together in (("in turns", False), ("side by side", True)):
            where = f", {mesh.size} devices" if mesh.size > 1 else ""
            made[name + where] = functools.partial(as_one, mesh, together)
    return made


def agreement(trained: Trained, wanted: Trained) -> dict[str, float]:
    """Largest relative difference of a loss, and largest difference of a weight.

    Raises:
      UserError: they are not the same training.
    """
    losses, weights = 0.0, 0.0
    for (tree, curve), (other, wanted_curve) in zip(trained, wanted, strict=True):
        losses = max(losses, float(np.max(np.abs(np.array(curve) / np.array(wanted_curve) - 1))))
        gaps = jax.tree.map(lambda x, y: float(np.max(np.abs(x - y))), tree, other)
        weights = max(weights, *jax.tree.leaves(gaps))
    if not (losses < LOSSES and weights < WEIGHTS):
        raise UserError(
            f"Losses differ by {losses:.1e} and weights by {weights:.1e}: no speed counts before "
            "these agree."
        )
    return {"losses": losses, "weights": weights}


def measure(cfg: DecoderConfig, objective: str) -> dict[str, Any]:
    """One objective: agreement, and seconds of each contender's turns."""
    run = contenders(cfg, objective)
    trained, first = {}, {}
    for name, train in run.items():
        begin = time.perf_counter()
        trained[name] = train()
        first[name] = time.perf_counter() - begin
    found = {
        name: agreement(trained[name], trained["one by one"])
        for name in run
        if name != "one by one"
    }
    turns: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(_ROUNDS.value):
        for name, train in run.items():
            begin = time.perf_counter()
            train()
            turns[name].append(time.perf_counter() - begin)
    steps = _MEMBERS.value * _STEPS.value
    medians = {name: statistics.median(seconds) for name, seconds in turns.items()}
    return {
        "agreement": found,
        "seconds": turns,
        "first_seconds": first,
        "ms_a_member_step": {name: 1e3 * median / steps for name, median in medians.items()},
        "ratio": {name: medians["one by one"] / median for name, median in medians.items()},
    }


def run() -> dict[str, Any]:
    """The whole benchmark; returns what --json writes."""
    if unknown := set(_OBJECTIVES.value) - {"sft", "forward_kl"}:
        raise UserError(f"Unknown objectives {sorted(unknown)}: choose among sft and forward_kl.")
    c = configuration.defaults()
    cfg = embedded_geometry(c, c.base.vocab_limit)
    about = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "parameters": cfg.num_params,
        "members": _MEMBERS.value,
        "steps": _STEPS.value,
        "batch": [_BATCH.value, c.distill.max_tokens],
        "rounds": _ROUNDS.value,
    }
    print(json.dumps(about, indent=2))
    results = {**about, "objectives": {}}
    print(
        "\n| objective | trained | ms a member's step | least - most | ratio | losses differ by |\n"
        + "| --- " * 6
        + "|"
    )
    for objective in _OBJECTIVES.value:
        got = results["objectives"][objective] = measure(cfg, objective)
        for name, ms in got["ms_a_member_step"].items():
            scale = ms / statistics.median(got["seconds"][name])
            spread = (
                f"{scale * min(got['seconds'][name]):.2f} - {scale * max(got['seconds'][name]):.2f}"
            )
            gap = f"{got['agreement'][name]['losses']:.1e}" if name in got["agreement"] else ""
            print(
                f"| {objective} | {name} | {ms:.2f} | {spread} | {got['ratio'][name]:.2f} "
                f"| {gap} |",
                flush=True,
            )
    return results


if __name__ == "__main__":
    sys.exit(command.main(sys.argv, run))
