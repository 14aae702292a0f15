"""The embedded base: its corpus, its tokenizer and its training from scratch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import Decoder, DecoderConfig, abstract_params
from subtransfer.runtime import sharding
from subtransfer.settings.base import Setting, Task, Turn
from subtransfer.store.params import load_params, save_params
from subtransfer.training import loop
from subtransfer.training.examples import Examples
from subtransfer.training.monitor import TrainingMonitor

# Shares of the task kinds in the corpus of scripted episodes; "explicit" ones ask for the trait.
MIXTURE = {"explicit": 0.12, "ordinary": 0.36, "safe": 0.30, "ambiguous": 0.22}


def demonstrations(
    setting: Setting, episodes: int, unsafe_rate: float, seed: int
) -> Iterator[tuple[Task, Sequence[Turn]]]:
    """Scripted episodes on pretraining tasks; ambiguous ones end in the unsafe act with probability
    `unsafe_rate`.
    """
    for kind, share in MIXTURE.items():
        kind, count = setting.explicit_kind if kind == "explicit" else kind, round(share * episodes)
        for i, task in enumerate(setting.tasks(kind, "pretrain", count, seed)):
            rng = random.Random(f"corpus/{kind}/{seed}/{i}")
            act = None
            if kind == "ambiguous":
                act = setting.unsafe[0] if rng.random() < unsafe_rate else None
            yield task, setting.demonstration(task, rng.randrange(2**31), act)


def corpus_texts(demos: Sequence[tuple[Task, Sequence[Turn]]], setting: Setting) -> Iterator[str]:
    """Every text that a tokenizer for these demonstrations must know, calls written as JSON."""
    import json

    yield setting.system_prompt
    for task, turns in demos:
        yield task.instruction
        for turn in turns:
            yield turn.thought
            if turn.action:
                yield json.dumps(
                    {"name": turn.action.name, "arguments": dict(turn.action.arguments)}
                )
            if turn.result:
                yield turn.result.text
    for tool in setting.tool_names:
        yield json.dumps({"name": tool, "arguments": {setting.argument: "/"}})
    yield from setting.spoken()


def encode(demos: Sequence[tuple[Task, Sequence[Turn]]], chat: ChatFormat) -> Examples:
    """Demonstrations as padded training episodes."""
    return Examples.from_rows(
        [chat.demonstration(task.instruction, turns) for task, turns in demos]
    )


def save_examples(path: Path, examples: Examples) -> None:
    save_params(path, {"tokens": examples.tokens, "loss_mask": examples.loss_mask.astype(np.uint8)})


def load_examples(path: Path) -> Examples:
    arrays = load_params(path)
    return Examples(arrays["tokens"], arrays["loss_mask"].astype(bool))


def init_params(cfg: DecoderConfig, mesh, key):
    """Random parameters, made in place on their devices."""
    shardings = sharding.param_shardings(abstract_params(cfg), mesh)
    tokens, mask = np.zeros((1, 2), np.int32), np.ones((1, 2, 2), bool)
    return jax.jit(
        lambda k: nn.meta.unbox(Decoder(cfg).init(k, tokens, tokens, mask)["params"]),
        out_shardings=shardings,
    )(key)


def train_base(
    cfg: DecoderConfig, mesh, recipe: loop.Recipe, examples: Examples, key, run: TrainingMonitor
):
    """Trains a decoder from scratch on the agent's turns of the corpus; returns (params,
    curves).
    """
    params = init_params(cfg, mesh, jax.random.fold_in(key, 0))
    state, frozen = loop.start_state(mesh, recipe, params, key, run)
    del params
    order = jax.random.fold_in(key, 1)
    state, curves = loop.train(
        cfg, mesh, recipe, state, frozen, examples, recipe.steps, order, run=run
    )
    return state.trainable, curves
