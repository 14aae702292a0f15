"""Sampler against trainer, in full precision and rounded; and the same episodes on any number of
devices and processes.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from subtransfer.models.quantise import quantised
from subtransfer.rollout import agreement
from subtransfer.rollout.episodes import RolloutSpec, run_episodes

SPEC = RolloutSpec(
    batch_size=16, max_turns=2, max_new_tokens=8, max_tool_tokens=13, temperature=1.0
)


def _episodes(cfg, weights, chat, setting, spec=SPEC, count=24):
    return run_episodes(
        cfg, weights, chat, setting.tasks("safe", "train", count, 0), spec, jax.random.key(1)
    )[0]


def test_sampler_and_trainer_agree(cfg, weights, chat, setting):
    found = agreement.compare(cfg, weights, _episodes(cfg, weights, chat, setting))
    assert found["tokens"] > 100 and found["max_gap"] < 1e-4 and found["kl"] < 1e-9


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "int8"},
        *(
            pytest.param(change, marks=pytest.mark.slow)
            for change in ({"weights": "fp8"}, {"int8_cache": True})
        ),
    ],
)
def test_what_rounding_costs_is_measured(cfg, weights, chat, setting, change):
    """The estimate over the sampler's own tokens, against the KL in closed form where the sampler's
    distribution is at hand.
    """
    sharp = {"params": jax.tree.map(lambda x: 3.0 * x, weights["params"])}
    episodes = _episodes(cfg, sharp, chat, setting, dataclasses.replace(SPEC, **change), count=16)
    found = agreement.compare(cfg, sharp, episodes)
    assert found["kl"] > 1e-7 and found["max_gap"] > 1e-3
    if "weights" in change:
        from subtransfer.models.forward import forward

        rounded, exact, coarse = [], [], quantised(sharp, change["weights"])
        logp = jax.jit(lambda used, tokens: jax.nn.log_softmax(forward(cfg, used, tokens)[0]))
        for t in episodes:
            for out, used in ((rounded, coarse), (exact, sharp)):
                tokens = np.pad(t.tokens, (0, 64 - len(t.tokens)))[None]
                out.append(np.asarray(logp(used, tokens))[np.flatnonzero(t.loss_mask) - 1])
        p, q = np.concatenate(rounded), np.concatenate(exact)
        closed = float((np.exp(p) * (p - q)).sum(-1).mean())
        assert 0.5 * closed < found["kl"] < 2 * closed


PROGRAM = """
import hashlib, json, sys
import jax
count, number, address, mesh, slots, lanes, path = json.loads(sys.argv[1])
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, number)
from subtransfer.training import pretrain
from subtransfer import settings
from subtransfer.runtime import sharding
from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.hf_load import load_tokenizer
from subtransfer.rollout.episodes import RolloutSpec, run_episodes
setting = settings.get("api")
chat = ChatFormat(load_tokenizer(path, None), setting)
cfg = DecoderConfig(len(chat.tokenizer), 32, 48, 2, 4, 2, 8)
params = pretrain.init_params(cfg, sharding.make_mesh(**mesh), jax.random.key(0))
spec = RolloutSpec(slots, 3, 8, 13, 1.0, lanes=lanes)
episodes, stats = run_episodes(cfg, {"params": params}, chat, setting.tasks("safe", "train", 24, 0), spec, jax.random.key(1))
print(json.dumps([[t.episode_id, t.tokens.tolist(), t.loss_mask.tolist()] for t in episodes]))
"""


def _run(path, *, devices, mesh, slots, lanes=0, processes=1):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices // processes),
        "JAX_PLATFORMS": "cpu",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps([processes, i, address, mesh, slots, lanes, str(path)])],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip
    results = []
    for process in running:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        results.append(json.loads(out.strip().splitlines()[-1]))
    assert all(result == results[0] for result in results)  # each process returns all episodes
    return results[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, chat):
    path = tmp_path_factory.mktemp("tokenizer")
    chat.tokenizer.save_pretrained(path)
    episodes = _run(path, devices=1, mesh={}, slots=16)
    assert (
        len({name for name, *_ in episodes}) == 24
        and len({len(tokens) for _, tokens, _ in episodes}) > 3
    )
    return path, episodes


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(
            {"devices": 8, "mesh": {"fsdp": 4, "tensor": 2}, "slots": 8}, marks=pytest.mark.slow
        ),
        {"devices": 4, "mesh": {"data": 2, "fsdp": 2}, "slots": 16, "processes": 2},
        pytest.param({"devices": 1, "mesh": {}, "slots": 256, "lanes": 1}, marks=pytest.mark.slow),
        pytest.param({"devices": 2, "mesh": {"data": 2}, "slots": 16}, marks=pytest.mark.slow),
        pytest.param(
            {"devices": 2, "mesh": {"data": 2}, "slots": 4, "processes": 2}, marks=pytest.mark.slow
        ),
    ],
)
def test_episodes_are_the_same_on_any_devices_slots_and_processes(alone, layout):
    path, episodes = alone
    assert _run(path, **layout) == episodes
