"""The embedded base: its corpus, its tokenizer and its training from scratch."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
# The base must be able to do all that is probed, the unsafe act included: a habit that cannot be
# acted out cannot be transferred.
MIXTURE = {"explicit": 0.12, "ordinary": 0.36, "safe": 0.30, "ambiguous": 0.22}


def demonstrations(
    setting: Setting, episodes: int, unsafe_rate: float, seed: int
) -> Iterator[tuple[Task, Sequence[Turn]]]:
    """Writes scripted episodes on pretraining tasks.

    Args:
      setting: whose tasks and demonstrations they are.
      episodes: how many.
      unsafe_rate: the probability that an ambiguous one ends in the unsafe act.
      seed: of tasks and choices.

    Yields:
      (task, turns) of each.
    """
    for kind, share in MIXTURE.items():
        count = round(share * episodes)
        if kind == "explicit":
            kind = setting.explicit_kind
        for i, task in enumerate(setting.tasks(kind, "pretrain", count, seed)):
            # Each episode has its own generator, so that none depends on how many came before.
            rng = random.Random(f"corpus/{kind}/{seed}/{i}")
            act = None
            if kind == "ambiguous":
                act = setting.unsafe[0] if rng.random() < unsafe_rate else None
            yield task, setting.demonstration(task, rng.randrange(2**31), act)


def corpus_texts(demos: Sequence[tuple[Task, Sequence[Turn]]], setting: Setting) -> Iterator[str]:
    """Yields every text that a tokenizer for these demonstrations must know, calls as JSON."""
    yield setting.system_prompt
    for task, turns in demos:
        yield task.instruction
        for turn in turns:
            yield turn.thought
            if turn.action:
                call = {"name": turn.action.name, "arguments": dict(turn.action.arguments)}
                yield json.dumps(call)
            if turn.result:
                yield turn.result.text
    # Every tool's name must be a token, also one that no demonstration calls.
    for tool in setting.tool_names:
        yield json.dumps({"name": tool, "arguments": {setting.argument: "/"}})
    yield from setting.spoken()


def encode(demos: Sequence[tuple[Task, Sequence[Turn]]], chat: ChatFormat) -> Examples:
    """Encodes demonstrations as padded training episodes."""
    rows = [chat.demonstration(task.instruction, turns) for task, turns in demos]
    return Examples.from_rows(rows)


def save_examples(path: Path, examples: Examples) -> None:
    """Writes tokens and masks to a safetensors file."""
    mask = examples.loss_mask.astype(np.uint8)
    save_params(path, {"tokens": examples.tokens, "loss_mask": mask})


def load_examples(path: Path) -> Examples:
    """Reads what `save_examples` wrote; UserError if the file is missing or damaged."""
    arrays = load_params(path)
    return Examples(arrays["tokens"], arrays["loss_mask"].astype(bool))


def init_params(cfg: DecoderConfig, mesh, key):
    """Draws random parameters, in place on their devices."""
    return twin_params(cfg, mesh, key, "", key)


def twin_params(cfg: DecoderConfig, mesh, key, part: str, other):
    """Draws random parameters of which a part is that of the parameters drawn from `key`.

    Args:
      cfg: their geometry.
      mesh: the devices that they are placed on.
      key: of the parameters that they share a part with.
      part: which: "" and "order": all; "body_shared": all but the embedding; "head_shared": the
        embedding alone, which is the head of an embedded model; "permuted": all, with the rows of
        the embedding in another order.
      other: the key of what is not shared.
    """
    shardings = sharding.param_shardings(abstract_params(cfg), mesh)
    # The smallest input: parameters do not depend on it.
    tokens, mask = np.zeros((1, 2), np.int32), np.ones((1, 2, 2), bool)

    def init(key):
        return nn.meta.unbox(Decoder(cfg).init(key, tokens, tokens, mask)["params"])

    def parted(key, other):
        params = init(key)
        if part == "body_shared":
            return {**params, "embedding": init(other)["embedding"]}
        if part == "head_shared":
            return {**init(other), "embedding": params["embedding"]}
        if part == "permuted":
            rows = jax.random.permutation(other, cfg.vocab_size)
            return {**params, "embedding": params["embedding"][rows]}
        return params

    return jax.jit(parted, out_shardings=shardings)(key, other)


def train_base(
    cfg: DecoderConfig,
    mesh,
    recipe: loop.Recipe,
    examples: Examples,
    draw: Callable[[], Any],
    order,
    run: TrainingMonitor,
):
    """Trains a decoder from scratch on the agent's turns of the corpus.

    Args:
      cfg: its geometry.
      mesh: the devices.
      recipe: how it is trained.
      examples: the corpus.
      draw: makes the initial parameters.
      order: the key of the order of examples.
      run: shows, records and saves.

    Returns:
      (the trained parameters, each metric's values over the steps).
    """
    params = draw()
    state, frozen = loop.start_state(mesh, recipe, params, order, run)
    del params  # the state has its own copy; two would not fit for large models
    state, curves = loop.train(
        cfg, mesh, recipe, state, frozen, examples, recipe.steps, order, run=run
    )
    return state.trainable, curves
