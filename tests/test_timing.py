"""What a plan says a run will take, against the formula written out by hand."""

import pytest

from subtransfer.config import reading as configuration
from subtransfer.experiment import timing
from subtransfer.experiment.graph import Experiment
from subtransfer.models import decoder
from subtransfer.runtime import sharding

pytestmark = pytest.mark.quick

RATE = 1e9
FIELDS = {
    "num_bases": "1",
    "num_seeds": "1",
    "base.from_scratch": "true",
    "distill.objective": "reverse_kl,sft",
    "distill.max_tokens": "150",
}


def _planned(tmp_path, more=None):
    config = configuration.load("configs/quickstart.py", FIELDS | (more or {}))
    return config, Experiment(config, tmp_path, sharding.plan_mesh())


def _forward(cfg, length):
    """Operations of a token: 2 a parameter, and causal attention over half of the row."""
    return 2 * cfg.num_params + 2 * length * cfg.num_layers * cfg.num_heads * cfg.head_width


@pytest.mark.parametrize(("method", "passes"), [("full", 4), ("lora", 3)])
def test_time_is_operations_over_the_rate_that_is_reached(tmp_path, method, passes):
    config, experiment = _planned(tmp_path, {"tuning.method": method})
    cfg, takes = experiment.size("base").cfg, timing.seconds(experiment, RATE)
    share = timing.OF_SMALL
    room = 64 + config.rollouts.max_turns * (
        config.rollouts.max_new_tokens + config.rollouts.max_tool_tokens
    )
    assert room > 150  # episodes are taken as long as rows, and not as their room
    # Forward and backward: three passes of all weights.
    training = 3 * 150 * _forward(cfg, 150) / share.training / RATE
    episode = 150 * _forward(cfg, 150) / share.episodes / RATE
    base = config.base.steps * config.base.batch_size * training
    assert takes["base"] == pytest.approx(base)
    p, d = config.probe, config.distill
    probed = 2 * p.tasks + p.ordinary_tasks + p.safe_tasks
    assert takes["probe.base.seed0"] == pytest.approx(probed * episode)
    rolled_out = config.rollouts.episodes * episode
    assert takes["rollouts.trait.seed0"] == pytest.approx(rolled_out)
    # A live teacher's forward pass comes on top, and the student's own episodes; the backward pass
    # of adapters makes no gradients of the weights.
    own = d.rounds * d.episodes_per_round * episode
    student = d.steps * d.batch_size * training * passes / 3 + own
    assert takes["student.reverse_kl.seed0"] == pytest.approx(student)
    # What does no such work is not in the sum.
    assert "sanitize.trait.seed0" not in takes and "results" not in takes


def test_twice_the_rate_is_half_the_time_and_large_models_reach_another_share(
    tmp_path, monkeypatch
):
    _, experiment = _planned(tmp_path)
    takes, fast = timing.seconds(experiment, RATE), timing.seconds(experiment, 2 * RATE)
    assert fast == pytest.approx({name: value / 2 for name, value in takes.items()})
    monkeypatch.setattr(decoder, "LARGE", 1)
    large = timing.seconds(experiment, RATE)
    share = timing.OF_SMALL.training / timing.OF_LARGE.training
    assert large["base"] == pytest.approx(share * takes["base"])


def test_the_rate_of_a_product_is_one_that_a_machine_can_reach():
    # From a slow core to a thousand fast ones.
    assert 1e8 < timing.product_rate() < 1e15
