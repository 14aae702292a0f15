"""Planned memory against what libtpu's compiler took (docs/performance.md, "Training steps")."""

from pathlib import Path

import pytest

from subtransfer.config import reading as configuration
from subtransfer.experiment.graph import Experiment
from subtransfer.runtime import sharding

pytestmark = pytest.mark.quick

CONFIGS = Path(__file__).parent.parent / "configs"
FSDP = {
    "distill.objective": "reverse_kl",
    "distill.batch_size": "16",
    "mesh.tensor": "1",
    "mesh.fsdp": "16",
}
LONG = {
    "distill.max_tokens": "32768",
    "distill.batch_size": "2",
    "teacher.batch_size": "2",
    "base.batch_size": "2",
}
PALLAS = {"base.attention": "pallas"}


@pytest.mark.parametrize(
    ("name", "chips", "fields", "compiled"),
    [
        ("aot_on_policy", 16, {}, 11.82),
        ("aot_full", 64, {"base.remat": "projections"}, 61.18),
        ("aot_full", 64, {"base.remat": "projections", "distill.batch_size": "256"}, 34.89),
        ("aot_full", 64, {}, 18.27),
        ("aot_full", 64, {"distill.batch_size": "256"}, 11.88),
        ("aot_large_teacher", 512, {}, 26.69),
        ("aot_two_slices", 512, {}, 10.86),
        ("aot_llama", 16, PALLAS | FSDP, 4.36),
        ("aot_llama", 16, PALLAS | {"distill.batch_size": "4"}, 2.65),
        ("aot_llama", 16, PALLAS | LONG, 5.41),
    ],
)
def test_a_training_step_takes_what_is_planned(name, chips, fields, compiled, tmp_path):
    """GiB a chip, within 30%."""
    c = configuration.load(CONFIGS / f"{name}.py", fields)
    experiment = Experiment(c, tmp_path, sharding.plan_mesh(**c.mesh, devices=chips))
    objective = c.distill.objective.split(",")[0]
    (student,) = (
        s
        for s in experiment.plan.values()
        if s.name.startswith(f"student.{objective}") and s.name.endswith("seed0")
    )
    assert 0.7 < student.memory() / 2**30 / compiled < 1.3
