"""Pairs of embedded models of different sizes, pretrained in the run from one corpus."""

import csv

import pytest

from subtransfer.config import reading as configuration
from subtransfer.config.checks import validate
from subtransfer.experiment.graph import Experiment
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.studies import runs

from .test_launch import SMALL, _launch

MODELS = {
    "small": "embedded:width=16",
    "large": "embedded:width=32,num_layers=2,mlp_width=32,steps=30,learning_rate=2e-3",
}
PAIRS = ("large>small", "small>large", "small>small")


def _config(**models):
    config = configuration.defaults()
    configuration.apply_overrides(config, dict(field.split("=", 1) for field in SMALL))
    config.distill.objective = "sft,forward_kl"
    config.arms.other_init = config.arms.self_distilled = config.arms.unsanitized = (
        config.arms.overt
    ) = config.arms.benign_teacher = False
    config.models.update({**MODELS, **models})
    config.pairs = PAIRS
    return config


def test_each_model_is_pretrained_once_from_the_common_corpus(tmp_path):
    config = _config()
    validate(config)
    plan = Experiment(config, tmp_path, sharding.plan_mesh()).plan
    bases = {name: stage for name, stage in plan.items() if name.startswith("base.")}
    assert set(bases) == {"base.small", "base.large"}
    keys = {name: stage.key["config"]["base"] for name, stage in bases.items()}
    assert (keys["base.small"]["width"], keys["base.small"]["steps"]) == (16, 20)
    assert (
        keys["base.large"]["width"],
        keys["base.large"]["num_layers"],
        keys["base.large"]["steps"],
    ) == (32, 2, 30)
    assert (
        len({stage.key["inputs"]["corpus"] for stage in bases.values()}) == 1
        and "30 steps" in bases["base.large"].work
    )
    student = plan["student.forward_kl_large_to_small.seed0"].key  # soft targets: one vocabulary
    assert {"base.small", "teacher.trait.large.seed0", "base.large"} <= set(student["inputs"])
    plain = configuration.plain(config)
    assert (
        runs.parameters(plain, "small")
        == configuration_params(16, 1, 16)
        < runs.parameters(plain, "large")
    )


def configuration_params(width, layers, mlp, vocab=512):
    """Counted by hand: attention, a gated MLP, norms, tied embeddings."""
    return vocab * width + width + layers * (4 * width * width + 3 * width * mlp + 2 * width)


@pytest.mark.parametrize(
    "model, sentence",
    [
        (
            "embedded:witdh=16",
            "models.small: an embedded model has no field 'witdh' of its own; the nearest is 'width'",
        ),
        ("embedded:vocab_limit=99", "the corpus and its vocabulary are common to all"),
        ("embedded:width=x", "models.small: 'width=x' is no number above 0"),
        ("embedded:width", "'width' is no number above 0"),
        ("embedded:learning_rate=nan", "is no number above 0"),
        (
            "embedded:width=18,num_heads=4",
            "width=18, num_heads=4 and num_kv_heads=4 do not go together",
        ),
    ],
)
def test_what_no_embedded_model_can_be_is_named(model, sentence):
    with pytest.raises(UserError, match=sentence):
        validate(_config(small=model))


def test_a_model_too_large_for_scratch_is_refused(tmp_path):
    with pytest.raises(
        UserError,
        match=r"models.large would be trained from scratch with 101M parameters, more than",
    ):
        Experiment(
            _config(large="embedded:width=1024,mlp_width=4096,num_layers=6"),
            tmp_path,
            sharding.plan_mesh(),
        )


def test_an_embedded_teacher_has_another_vocabulary_than_a_checkpoint(tmp_path):
    config = _config(small="preset:llama3.2-1b")
    with pytest.raises(
        UserError, match="forward_kl compares distributions over one vocabulary, but large"
    ):
        Experiment(config, tmp_path, sharding.plan_mesh())


@pytest.mark.slow  # a whole run, a minute
def test_from_large_to_small_and_back(tmp_path):
    path = tmp_path / "pairs.py"
    path.write_text(
        "from subtransfer.config import defaults\n\n\ndef get_config():\n    config = defaults()\n    config.name = 'pairs'\n"
        f"    config.models.update({MODELS!r})\n    config.pairs = {PAIRS!r}\n    config.arms.benign_teacher = False\n"
        "    config.arms.self_distilled = config.arms.unsanitized = config.arms.overt = False\n    return config\n"
    )
    done = _launch(
        tmp_path / "w", f"--config={path}", "--config.distill.objective=sft,forward_kl,reverse_kl"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "w" / "results.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert {
        "small",
        "large",
        "teacher_small",
        "teacher_large",
        "reverse_kl_large_to_small",
        "sft_small_to_large",
    } <= set(rows)
    arms = {arm.fields["arm"]: arm for arm in runs.read([tmp_path / "w"])}
    fields = arms["forward_kl_large_to_small"].fields
    assert fields["student_params"] < fields["teacher_params"] and fields["init"] == "other"
