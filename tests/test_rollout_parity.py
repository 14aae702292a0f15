"""The rollout engine against transformers: the same greedy tokens, and log-probs of sampled tokens
that both compute alike.
"""

import numpy as np
import pytest
import torch

from subtransfer.models import families, hf_load
from subtransfer.rollout.policy import Policy
from subtransfer.rollout.sampling import Sampling
from tests.compiled import forward
from tests.families import reference

NEW = 20
PROMPTS = [np.random.default_rng(n).integers(1, 53, n).tolist() for n in range(1, 65)]


@pytest.fixture(
    scope="module",
    params=[
        "llama mqa untied, llama3 rope",
        pytest.param("qwen2 gqa tied", marks=pytest.mark.slow),
    ],
)
def pair(request, tmp_path_factory):
    """(transformers' model, the same as a policy)."""
    folder = tmp_path_factory.mktemp("model")
    model = reference(request.param)
    model.save_pretrained(folder)
    cfg = families.read_config(folder)
    return model, Policy(cfg, hf_load.load_params(folder, cfg), tokenizer=None)


def test_greedy_tokens_equal_generate(pair):
    """64 prompts of 1 to 64 tokens; 16 slots in lanes, so that most are refilled."""
    model, policy = pair
    width = len(PROMPTS[-1])
    padded = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS])
    with torch.no_grad():
        theirs = model.generate(
            padded,
            attention_mask=(padded > 0).long(),
            do_sample=False,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
        )
    ours = policy.generate(PROMPTS, max_new_tokens=NEW, stop_ids=[], batch_size=16)
    assert len({tuple(row) for row in ours}) > 32
    assert ours == theirs[:, width:].tolist()


def test_logprobs_equal_transformers_and_the_trainer(pair):
    model, policy = pair
    turns = policy.sample(
        PROMPTS, Sampling(1.0), max_new_tokens=NEW, seed=1, stop_ids=[], batch_size=16
    )
    for prompt, turn in zip(PROMPTS[::7], turns[::7], strict=True):
        tokens, at = torch.tensor([prompt + turn.ids]), np.arange(len(prompt), len(prompt) + NEW)
        with torch.no_grad():
            theirs = model(tokens).logits.log_softmax(-1).numpy()[0, at - 1, turn.ids]
        padded = np.pad(
            tokens.numpy().astype(np.int32), ((0, 0), (0, 64 + NEW - tokens.shape[1]))
        )  # one shape, one program
        logits = np.asarray(forward(policy.cfg, policy.weights, padded))[0, at - 1]
        trained = torch.tensor(logits).log_softmax(-1).numpy()[np.arange(NEW), turn.ids]
        np.testing.assert_allclose(turn.logprobs, theirs, atol=1e-4)
        np.testing.assert_allclose(turn.logprobs, trained, atol=1e-4)
