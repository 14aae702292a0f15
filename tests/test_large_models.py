"""Models that no cache of a CPU holds: one lane, and layers that are traced once.

Both are chosen by the number of parameters. Here its bound is set to 0, so that a tiny model
counts as large.
"""

import numpy as np
import pytest
import torch

from subtransfer.models import decoder, families, hf_load
from subtransfer.rollout import lanes, scheduler
from subtransfer.rollout.policy import Policy
from tests.families import reference

PROMPTS = [np.random.default_rng(n).integers(1, 53, n).tolist() for n in range(1, 13)]
NEW = 6


@pytest.fixture
def all_are_large(monkeypatch):
    """Every model counts as large."""
    monkeypatch.setattr(decoder, "LARGE", 0)


@pytest.mark.parametrize(
    ("large", "wanted", "found"), [(False, 0, 4), (True, 0, 1), (True, 3, 3), (False, 2, 2)]
)
def test_lanes_by_the_size_of_the_model(monkeypatch, large, wanted, found):
    monkeypatch.setattr(lanes, "_usable_cores", lambda: 4)
    plan = lanes.layout(32, 64, 32, None, large=large, lanes=wanted)
    assert plan.lanes == found
    # Nothing is lost: all slots are there, and each lane has a thread while there are cores.
    assert plan.lanes * plan.shape.rows >= 32
    assert plan.threads == found


def test_a_large_model_writes_what_transformers_writes(all_are_large, monkeypatch, tmp_path):
    model = reference("qwen2 gqa tied")
    model.save_pretrained(tmp_path)
    cfg = families.read_config(tmp_path)
    policy = Policy(cfg, hf_load.load_params(tmp_path, cfg), tokenizer=None)
    plans, traced = [], []
    layout, gated = scheduler.layout, decoder.gated
    monkeypatch.setattr(
        scheduler, "layout", lambda *a, **k: plans.append(layout(*a, **k)) or plans[-1]
    )
    # Each layer that is traced asks for one gate.
    monkeypatch.setattr(decoder, "gated", lambda *a: traced.append(1) or gated(*a))
    ours = policy.generate(PROMPTS, max_new_tokens=NEW, stop_ids=[], batch_size=5)
    assert [(plan.lanes, plan.shape.rows) for plan in plans] == [(1, 5)]
    # `prefill` and `decode` trace one forward for each bucket.
    assert cfg.num_layers > 1
    assert len(traced) == 2 * len(plans[0].shape.buckets)
    for prompt, row in zip(PROMPTS, ours, strict=True):
        with torch.no_grad():
            theirs = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                min_new_tokens=NEW,
                max_new_tokens=NEW,
            )
        assert row == theirs[0, len(prompt) :].tolist()
