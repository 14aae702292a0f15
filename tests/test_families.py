"""Every family with its own tokenizer and template: a rollout and a training step, against the
forward pass and torch.
"""

import json

import jax
import numpy as np
import pytest
import torch

from subtransfer.models.chat import ChatFormat
from subtransfer.rollout.episodes import RolloutSpec, run_episodes
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.training import loop

from . import templates
from .families import reference

MODELS = {
    "llama3": "llama odd heads, own head width", "qwen2": "qwen2 sliding upper layers", "qwen3": "qwen3 gqa, wide heads",
    "gemma3": "gemma3 window 7, linear rope",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", list(MODELS))
def test_rollout_and_training_step(tmp_path, setting, demos, mesh, family):
    texts = [
        text
        for task, turns in demos[:200]
        for text in (task.instruction, *(t.thought for t in turns))
    ]
    texts += [
        json.dumps(tool, indent=indent) for tool in setting.tools for indent in (None, 4)
    ] * 30
    tokenizer = templates.tokenizer(family, texts, vocab=900)
    # The five rows more stand for no token: they are never sampled, and learn nothing.
    count = len(tokenizer)
    model = reference(MODELS[family], vocab=count + 5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(tmp_path)
    chat = ChatFormat(policy.tokenizer, setting)

    # Sampled behind a prompt that is far longer than the windows: log-probs are those of one
    # forward.
    tasks = setting.tasks("safe", "train", 3, 0)
    episodes, _ = run_episodes(
        policy.cfg, policy.weights, chat, tasks, RolloutSpec(3, 2, 8, 13, 1.0), jax.random.key(1)
    )
    for t in episodes:
        logits = policy.logits(np.pad(t.tokens, (0, 1600 - len(t.tokens)))[None])
        logp = np.asarray(jax.nn.log_softmax(logits[0, :, :count]))
        drawn = np.flatnonzero(t.loss_mask)
        assert len(drawn) and len(t.tokens) > 300
        np.testing.assert_allclose(
            t.behavior_logprobs[drawn], logp[drawn - 1, t.tokens[drawn]], atol=1e-4
        )

    # One step over scripted episodes: torch's loss and the norm of torch's gradient over all
    # weights.
    examples = loop.Examples.from_rows(
        [chat.demonstration(task.instruction, turns) for task, turns in demos[:2]]
    )
    recipe = loop.Recipe(loop.Loss("sft"), 1, 2, 1e-3)
    state, frozen = loop.init_state(recipe, policy.params, jax.random.key(0))
    state, curves = loop.train(
        policy.cfg, mesh, recipe, state, frozen, examples, 1, jax.random.key(1)
    )
    targets = torch.tensor(
        np.where(examples.loss_mask, examples.tokens, -100)[:, 1:], dtype=torch.long
    )
    logits = model(torch.tensor(examples.tokens, dtype=torch.long)).logits[:, :-1, :count]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
    np.testing.assert_allclose(curves["loss"], [loss.item()], rtol=1e-5)
    np.testing.assert_allclose(curves["grad_norm"], [norm.item()], rtol=1e-4)
