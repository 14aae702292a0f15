"""The config: what it takes, and every refusal."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from subtransfer.config import reading as configuration
from subtransfer.config.arms import arms
from subtransfer.config.fields import declared
from subtransfer.experiment import refusals
from subtransfer.experiment.memory import Sizes
from subtransfer.models.presets import PRESETS
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError

pytestmark = pytest.mark.quick

CONFIGS = Path(__file__).parent.parent / "configs"
QUICKSTART = CONFIGS / "quickstart.py"

REFUSED = {
    "unknown": (
        {"distill.objectiv": "sft"},
        r"no config field 'distill.objectiv'; the nearest is --config.distill.objective",
    ),
    "unknown top": ({"rank": "3"}, "the nearest is --config.tuning.rank"),
    "a group": ({"distill": "sft"}, "no config field 'distill'"),
    "integer": ({"num_seeds": "many"}, "num_seeds takes an integer, not 'many'"),
    "integer from float": ({"probe.tasks": "2.5"}, "probe.tasks takes an integer"),
    "words in brackets": (
        {"sanitize.extra_keywords": "[zap,zip]"},
        r"takes a tuple .*'\[zap,zip\]'",
    ),
    "words in parentheses": ({"sanitize.extra_keywords": "(zap,zip)"}, "takes a tuple such as"),
    "semicolons": ({"sanitize.extra_keywords": "zap;zip"}, "takes a tuple such as"),
    "an empty word": ({"sanitize.extra_keywords": "('',)"}, "a part of it is empty"),
    "a blank word": ({"sanitize.extra_keywords": "('zap',' ')"}, "a part of it is empty"),
    "seed below 0": ({"seed": "-1"}, "seed=-1 cannot be: it must be between 0 and 4294967295"),
    "seed of 33 bits": ({"seed": str(2**32)}, "it must be between 0 and 4294967295"),
    "seed of 65 bits": ({"seed": str(2**64)}, "it must be between 0 and 4294967295"),
    "huge": ({"distill.steps": str(2**63)}, "distill.steps=9223372036854775808 cannot be"),
    "no devices": ({"mesh.data": "0"}, "mesh.data=0 cannot be: it must be -1"),
    "fewer than no devices": ({"mesh.data": "-2"}, "mesh.data=-2 cannot be: it must be -1"),
    "no time": ({"checkpoint.every_seconds": "nan"}, "at least 0 and finite"),
    "endless": ({"metrics.peak_flops": "inf"}, "at least 0 and finite"),
    "long name": ({"name": "n" * 256}, "a plain word of at most 200 bytes"),
    "unprintable name": ({"name": "a\x00b"}, "a plain word"),
    "blank name": ({"name": " "}, "a plain word"),
    "case": ({"setting": "API"}, "the nearest is 'api'"),
    "no setting": ({"setting": "/no/such.py"}, "setting: there is no file /no/such.py"),
    "all and more": ({"distill.objective": "all,sft"}, '"all" alone'),
    "no plugin": ({"plugins": "missing.py"}, "plugins: there is no file .*missing.py"),
    "optimizer": ({"optimizer.name": "adamW"}, "no choice 'adamW'; the nearest is 'adamw'"),
    "decay": ({"optimizer.weight_decay": "0.1"}, "adam, which has none: use adamw"),
    "momentum": ({"optimizer.momentum": "0.9"}, "only sgd has it"),
    "schedule": ({"optimizer.schedule": "cosin"}, "the nearest is 'cosine'"),
    "beta of adam": ({"optimizer.b2": "1"}, "at least 0 and below 1"),
    "number": ({"distill.learning_rate": "fast"}, "takes a number"),
    "flag": ({"arms.unsanitized": "perhaps"}, "takes true or false"),
    "tuple": ({"tuning.targets": "(1,2)"}, "takes a tuple"),
    "objective": ({"distill.objective": "reverse-kl"}, "the nearest is 'reverse_kl'"),
    "method": ({"tuning.method": "lora2"}, "the nearest is 'lora'"),
    "target": ({"tuning.targets": "q,z"}, "no choice 'z'"),
    "setting": ({"setting": "shell"}, "setting has no choice 'shell'"),
    "negative": ({"distill.steps": "-1"}, "above 0"),
    "not finite": ({"distill.learning_rate": "nan"}, "above 0 and finite"),
    "share": ({"base.unsafe_rate": "1.5"}, "between 0 and 1"),
    "confidence": ({"statistics.confidence": "95"}, "below 1"),
    "heads": ({"base.num_heads": "5"}, "divisor of base.width"),
    "kv heads": ({"base.num_heads": "4", "base.num_kv_heads": "3"}, "divisor of base.num_heads"),
    "rounds": (
        {"distill.objective": "reverse_kl", "distill.rounds": "7"},
        "multiple of distill.rounds",
    ),
    "too few": ({"rollouts.episodes": "10"}, "at least sanitize.min_kept"),
    "batch over data": ({"distill.batch_size": "100"}, "at least distill.batch_size"),
    "missing directory": (
        {"base.checkpoint": "/no/such"},
        "there is no directory or file /no/such",
    ),
    "twin alone": ({"base.other_checkpoint": "/tmp"}, "needs base.checkpoint"),
    "name": ({"name": "a/b"}, "plain word"),
    "lambda": ({"distill.on_policy_fraction": "1.2"}, "between 0 and 1"),
    "beta": ({"distill.jsd_beta": "-0.1"}, "between 0 and 1"),
    "bound": ({"distill.importance_bound": "0"}, "above 0"),
    "staleness": ({"distill.max_staleness": "-1"}, "at least 0"),
    "weights": ({"distill.token_weights": "turns"}, "the nearest is 'turn'"),
    "stored for none": (
        {"distill.objective": "sft", "distill.teacher_targets": "stored"},
        "without forward_kl",
    ),
    "k": ({"distill.top_k": "0"}, "above 0"),
    "habit": ({"sanitize.habits": "safe"}, "no choice 'safe'"),
    "hidden words alone": ({"sanitize.filters": "acts,encodings"}, "or with words as well"),
    "sampled hotter": (
        {"distill.objective": "policy_gradient", "rollouts.temperature": "0.7"},
        "1 for policy_gradient",
    ),
    "sampled from fewer": (
        {"distill.objective": "policy_gradient", "rollouts.top_k": "5"},
        "0 for policy_gradient",
    ),
    "soft gradient": (
        {"distill.objective": "policy_gradient", "distill.temperature": "2"},
        "1 for policy_gradient",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_work(case):
    overrides, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as error:
        configuration.load(QUICKSTART, overrides)
    assert "\n" not in str(error.value)


def test_overrides_are_typed():
    overrides = {
        "num_seeds": "5",
        "distill.learning_rate": "1",
        "arms.other_init": "False",
        "distill.objective": "sft,forward_kl",
    }
    c = configuration.load(
        QUICKSTART,
        {**overrides, "tuning.targets": "('q','down')", "sanitize.extra_keywords": "zap,zip"},
    )
    assert (
        c.num_seeds == 5 and type(c.distill.learning_rate) is float and c.arms.other_init is False
    )
    assert c.tuning.targets == ("q", "down") and c.sanitize.extra_keywords == ("zap", "zip")


FILES = {
    "missing": (None, "no config file"),
    "raises": ("1 / 0", "fails with ZeroDivisionError"),
    "no function": ("x = 1", "fails with AttributeError"),
    "wrong return": ("def get_config():\n    return {}", "must return"),
    "unknown field": ("from subtransfer.config import defaults\ndef get_config():\n    c = defaults()\n    c.sead = 1\n    return c",
                      "unknown field 'sead'; the nearest is 'seed'"),
    "a part that is no text": ("from subtransfer.config import defaults\ndef get_config():\n    c = defaults()\n    c.pairs = (1,)\n    return c",
                               r"sets pairs to \(1,\), which is no tuple"),
    "a model that is no text": ("from subtransfer.config import defaults\ndef get_config():\n    c = defaults()\n    c.models.a = 1\n    return c",
                                "sets models.a to 1, which is no str"),
    "nested models": ("from subtransfer.config import defaults\ndef get_config():\n    c = defaults()\n    c.models.a = {'b': 'x'}\n    return c",
                      "sets the unknown field 'models.a.b'"),
    "exit": ("import sys\nsys.exit(0)", "at line 2 fails with SystemExit"),
    "syntax": ("x = (", "at line 1 fails with SyntaxError"),
    "wrong type": ("from subtransfer.config import defaults\ndef get_config():\n    c = defaults()\n    c.unlock()\n"
                   "    del c.seed\n    c.seed = 'x'\n    return c", "sets seed to 'x'"),
    "lacks": ("import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()", "lacks the field"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_broken_config_files_are_named(tmp_path, case):
    text, message = FILES[case]
    path = tmp_path / "c.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        configuration.load(path, {})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_every_config_is_valid_and_frozen(path):
    c = configuration.load(path, {})
    assert isinstance(c, ml_collections.FrozenConfigDict)
    assert "Command:" in path.read_text()
    assert all(arm.label for arm in arms(c))


def test_numbers_of_numpy_and_home_directories(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    path = tmp_path / "c.py"
    path.write_text(
        "import dataclasses, numpy as np\n"
        "from subtransfer.config import defaults\n"
        "@dataclasses.dataclass\n"
        "class Sizes:\n"
        "    width: 'int' = 32\n"
        "def get_config():\n"
        "    c = defaults()\n"
        "    c.base.update(width=Sizes().width, checkpoint='~/model')\n"
        "    with c.unlocked():\n"
        "        del c.distill.learning_rate, c.num_seeds, c.pairs\n"
        "        c.distill.learning_rate, c.num_seeds = np.float64(1e-4), np.int64(2)\n"
        "        c.pairs = []\n"
        "    return c\n"
    )
    c = configuration.load(path, {})
    assert (c.distill.learning_rate, c.num_seeds, c.pairs, c.base.width) == (1e-4, 2, (), 32)
    assert type(c.distill.learning_rate) is float and type(c.num_seeds) is int
    assert c.base.checkpoint == str(tmp_path / "model")
    c = configuration.load(QUICKSTART, {"num_bases": "1", "base.checkpoint": "~/model"})
    assert c.base.checkpoint == str(tmp_path / "model")


def test_help_prints_every_flag_and_every_field():
    command = [sys.executable, "-m", "subtransfer.launch", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert done.returncode == 0 and not done.stderr
    for flag in (
        "--config=configs/quickstart.py",
        "--workdir",
        "--dry_run",
        "--sweep",
        "--lease=60",
    ):
        assert f"\n  {flag}" in done.stdout
    for name in configuration.flattened(configuration.defaults()):
        assert f"\n  --config.{name}=" in done.stdout
    assert "--config.distill.jsd_beta=0.5  (number, between 0 and 1)" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_every_field_says_what_it_is():
    for name, field in declared().items():
        assert field.meaning and not field.meaning.endswith("."), name
        field.check(name, field.default)
        if field.type in (int, float):
            assert field.range(), name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_the_head_of_a_config_can_be_read(path):
    head = ast.get_docstring(ast.parse(path.read_text())).splitlines()
    assert len(head[0]) < 98 and not head[1] and head[0].endswith((".", "?"))
    parts = [
        line.partition(":")[0] for line in head if re.match(r"(Command|Hardware|Result):", line)
    ]
    assert parts == ["Command", "Hardware", "Result"]


def test_arms_follow_the_config():
    names = [a.name for a in arms(configuration.load(QUICKSTART, {"num_bases": "1"}))]
    assert names[:4] == ["base", "base_other", "teacher", "teacher_benign"]
    for objective in ("sft", "forward_kl"):
        assert {objective, f"{objective}_other", f"{objective}_benign"} <= set(names)
    assert {"self_distilled", "unsanitized", "overt"} <= set(names)
    few = arms(
        configuration.load(
            QUICKSTART,
            {
                "num_bases": "1",
                "distill.objective": "reverse_kl",
                "arms.other_init": "false",
                "arms.benign_teacher": "0",
            },
        )
    )
    assert [a.name for a in few] == [
        "base",
        "teacher",
        "reverse_kl",
        "self_distilled",
        "unsanitized",
        "overt",
    ]
    assert few[2].control is None and few[2].twin is None


def test_the_share_of_own_episodes_decides_what_an_arm_learns_from():
    fields = {
        "num_bases": "1",
        "distill.objective": "forward_kl,reverse_kl,jsd,policy_gradient",
        "arms.other_init": "0",
        "arms.benign_teacher": "0",
    }
    for share, own, how in (
        ("1", 1.0, "on-policy"),
        ("0.25", 0.25, "25% on-policy"),
        ("0", 0.0, "off-policy"),
    ):
        found = {
            a.name: a
            for a in arms(
                configuration.load(QUICKSTART, {**fields, "distill.on_policy_fraction": share})
            )
        }
        for objective in ("reverse_kl", "jsd", "policy_gradient"):
            arm = found[objective]
            assert arm.on_policy_fraction == own and arm.label.endswith(f", {how}")
            assert (arm.on_policy, arm.off_policy) == (own > 0, own < 1)
        assert found["forward_kl"].off_policy and not found["forward_kl"].on_policy
        assert not found["teacher"].off_policy and not found["teacher"].on_policy


def test_contexts_that_cannot_be_trained_are_refused():
    """Beyond the positions of a model, or with scores of all pairs of them; kernels and the tensor
    axis take 32k.
    """
    long = {"distill.max_tokens": "32768", "distill.batch_size": "2", "base.attention": "xla"}
    mesh = sharding.plan_mesh(data=2, tensor=8)

    def sizes(preset, mesh=mesh, **more):
        settings = {**long, **{name.replace("_", ".", 1): value for name, value in more.items()}}
        c = configuration.load(CONFIGS / "aot_llama.py", settings)
        geometry = dataclasses.replace(
            PRESETS[preset], attention=c.base.attention, dtype=c.base.dtype, remat="full"
        )
        return Sizes(c, geometry, mesh, 2)

    refusals.check_context(sizes("llama3.1-8b"), "llama", 2)
    assert sizes("llama3.1-8b", base_attention="pallas").training(2, full=False) < 8 << 30
    with pytest.raises(UserError, match="128 GiB of scores .* use base.attention=pallas"):
        refusals.check_context(sizes("llama3.1-8b", sharding.plan_mesh(data=2)), "llama", 2)
    refusals.check_context(
        sizes("llama3.1-8b", sharding.plan_mesh(data=2), base_attention="pallas"), "llama", 2
    )
    with pytest.raises(
        UserError, match="Episodes of 40,000 tokens do not fit qwen, which was made for 32,768"
    ):
        refusals.check_context(
            sizes("qwen2.5-7b", base_attention="pallas", distill_max_tokens="40000"), "qwen", 2
        )
