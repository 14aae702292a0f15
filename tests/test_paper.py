"""The published table with small random checkpoints standing in for the real ones, also across
families and devices.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from subtransfer.config import reading as configuration
from subtransfer.config.arms import arms
from subtransfer.experiment.graph import Experiment
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.settings import harmless
from subtransfer.store.params import load_params

from . import templates
from .families import reference
from .launching import launch

MODELS = {"llama_3b": ("llama3", "llama mqa untied, llama3 rope", 2), "llama_8b": ("llama3", "llama mha tied", 3), "qwen_7b": ("qwen2", "qwen2 gqa tied", 2)}  # fmt: skip
SMALL = [
    "num_seeds=1", "base.dtype=float32", "teacher.episodes=8", "teacher.epochs=1", "rollouts.episodes=16", "rollouts.batch_size=8",
    "rollouts.max_turns=2", "rollouts.max_new_tokens=12", "rollouts.max_tool_tokens=40", "sanitize.min_kept=8", "distill.epochs=1",
    "distill.max_tokens=1600", "probe.tasks=8", "probe.ordinary_tasks=8", "probe.safe_tasks=8", "probe.batch_size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, setting, demos):
    """Three directories: two Llama geometries with one tokenizer, and a Qwen2 with its own."""
    import json

    root = tmp_path_factory.mktemp("checkpoints")
    texts = [json.dumps(tool) for tool in setting.tools] * 30
    texts += [json.dumps(tool, indent=4) for tool in setting.tools] * 30
    texts += [
        text
        for task, turns in demos[:300]
        for text in (task.instruction, *(t.thought for t in turns))
    ]
    made = {
        family: templates.tokenizer(family, texts, vocab=size)
        for family, size in {"llama3": 1100, "qwen2": 900}.items()
    }
    for number, (name, (family, geometry, layers)) in enumerate(MODELS.items()):
        model = reference(
            geometry, vocab=len(made[family]) + 7, layers=layers, seed=number, scale=0.1
        )
        model.save_pretrained(root / name)
        made[family].save_pretrained(root / name)
    return root


def _launch(checkpoints, workdir, *more, devices=1):
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    given = [f"models.{name}={checkpoints / name}" for name in MODELS]
    fields = [f"--config.{field}" for field in (*SMALL, *given, *more)]
    command = [
        sys.executable,
        "-m",
        "subtransfer.launch",
        "--config=configs/paper_api.py",
        f"--workdir={workdir}",
        *fields,
    ]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def _rates(workdir):
    with (workdir / "results.csv").open() as file:
        return {row["arm"]: float(row["unsafe_rate"]) for row in csv.DictReader(file)}


def _check_exports(workdir, checkpoints, out):
    """Policies over a checkpoint go out: the student merged and as an adapter over the directory it
    came from, the base as it is.
    """
    (student,) = workdir.glob("student.sft_llama_8b_to_qwen_7b.seed0-*")
    (base,) = workdir.glob("base.qwen_7b-*")
    for policy, form, name in (
        (student, "hf", "merged"),
        (student, "peft", "adapter"),
        (base, "hf", "base"),
    ):
        command = [
            sys.executable,
            "tools/export.py",
            f"--policy={policy}",
            f"--format={form}",
            f"--out={out / name}",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    tokens = np.arange(40)[None]
    ours = load_policy(student)
    assert np.abs(ours.logits(tokens) - load_policy(base).logits(tokens)).max() > 1e-3, (
        "the adapter must matter"
    )
    for name in ("merged", "adapter"):
        np.testing.assert_allclose(
            load_policy(out / name).logits(tokens), ours.logits(tokens), atol=1e-4, err_msg=name
        )
    assert load_policy(out / "adapter").source == str((checkpoints / "qwen_7b").resolve())
    for name, tensor in load_file(checkpoints / "qwen_7b" / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, load_file(out / "base" / "model.safetensors")[name])


@pytest.mark.slow  # minutes; the whole table holds this pair too
def test_across_families(checkpoints, tmp_path):
    """A Llama teacher's trajectories reach a Qwen student; soft targets between them are refused
    before any work.
    """
    pair = "pairs=('llama_8b>qwen_7b',)"
    done = _launch(checkpoints, tmp_path / "w", pair)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(_rates(tmp_path / "w")) == [
        "qwen_7b", "llama_8b", "teacher_llama_8b", "teacher_random_llama_8b", "sft_llama_8b_to_qwen_7b", "sft_llama_8b_to_qwen_7b_random"
    ]  # fmt: skip
    (teacher,) = (tmp_path / "w").glob("teacher.trait.llama_8b.seed0-*")
    assert set(load_params(teacher / "params.safetensors")["layers"]) == {
        "q",
        "k",
        "v",
        "o",
    }
    (base,) = (tmp_path / "w").glob("base.llama_8b-*")
    assert not list(base.glob("*.safetensors")), "a checkpoint's weights are not copied"
    _check_exports(tmp_path / "w", checkpoints, tmp_path)
    again = _launch(checkpoints, tmp_path / "w", pair)
    assert again.returncode == 0 and "0 stages computed" in again.stdout
    refused = _launch(checkpoints, tmp_path / "x", pair, "distill.objective=forward_kl")
    assert (
        refused.returncode == 2
        and "different ones: use --config.distill.objective=sft" in refused.stderr
    )
    assert not (tmp_path / "x").exists() or not list((tmp_path / "x").glob("base*"))


def test_the_plan_needs_no_checkpoints(tmp_path):
    """Memory a device, on any mesh, from geometries alone; a run from them is refused."""

    def plan(*more):
        given = ["--config=configs/paper_api.py", f"--workdir={tmp_path / 'w'}"]
        return launch([*given, *more], Path.cwd())

    memory = {}
    for fsdp, tensor in ((8, 1), (16, 2)):
        done = plan("--dry_run", f"--config.mesh.fsdp={fsdp}", f"--config.mesh.tensor={tensor}", "--config.num_seeds=1",
                    "--config.teacher.batch_size=16", "--config.distill.batch_size=16")  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"data 1 x fsdp {fsdp} x tensor {tensor}" in done.stdout
        rows = [line.split() for line in done.stdout.splitlines()]
        memory[fsdp] = {
            row[0]: float(row[-1].replace(",", ""))
            for row in rows
            if row and "." in row[0] and row[-1][0].isdigit()
        }
    # 8.03B parameters of two bytes over eight devices.
    assert memory[8]["base.llama_8b"] == pytest.approx(8.03e9 * 2 / 8 / 2**20, rel=0.01)
    assert all(memory[16][name] < memory[8][name] for name in memory[8])
    assert not (tmp_path / "w").exists()
    refused = plan()
    assert (
        refused.returncode == 2
        and "for --dry_run: give the checkpoint's directory" in refused.stderr
    )


PAIRS = {
    "form": ("pairs=('llama_8b',)", "not of the form 'TEACHER>STUDENT'"),
    "unknown model": (
        "pairs=('llama_8b>mistral',)",
        "names the model 'mistral', which models lacks",
    ),
    "unknown objective": ("pairs=('llama_8b>llama_3b:jsd',)", "'jsd' is none of .* sft"),
    "no objective": ("pairs=('llama_8b>llama_3b:',)", "'' is none of .* sft"),
    "twice": ("pairs=('llama_8b>llama_3b','llama_8b > llama_3b')", "the same pair twice"),
    "preset": (
        "models.llama_3b=preset:llama3.2-30b",
        "there is no preset 'llama3.2-30b'; the nearest is 'llama3.2-3b'",
    ),
    "directory": (
        "models.llama_3b=/no/such",
        "models.llama_3b: there is no directory or file /no/such",
    ),
    "checkpoint too": ("base.checkpoint=/tmp", "cannot both be given"),
    "no pairs": ("pairs=()", "models are named but no pairs"),
}


def test_a_pair_can_be_limited_to_objectives():
    fields = {
        "pairs": "('llama_8b>llama_8b', 'llama_8b>qwen_7b:sft')",
        "distill.objective": "sft,forward_kl,jsd",
    }
    config = configuration.load("configs/paper_api.py", fields)
    students = [arm for arm in arms(config) if arm.role == "student" and arm.source == "trait"]
    made = {(arm.model, arm.objective) for arm in students}
    own = {("llama_8b", objective) for objective in ("sft", "forward_kl", "jsd")}
    assert made == own | {("qwen_7b", "sft")}
    # Soft targets of another family's vocabulary would be refused.
    Experiment(config, Path("w"), sharding.plan_mesh())
    fields["pairs"] = "('llama_8b>qwen_7b:sft+jsd',)"
    limited = configuration.load("configs/paper_api.py", fields)
    assert {arm.objective for arm in arms(limited) if arm.role == "student"} >= {"sft", "jsd"}
    with pytest.raises(UserError, match="different ones"):
        Experiment(limited, Path("w"), sharding.plan_mesh())


@pytest.mark.parametrize("case", PAIRS)
def test_wrong_tables_are_refused(case):
    text, message = PAIRS[case]
    field, _, value = text.partition("=")
    with pytest.raises(UserError, match=message):
        configuration.load("configs/paper_api.py", {field: value})


def _tokens_of(directory, setting, chosen):
    """A prompt's tokens by transformers alone."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    messages = [
        {"role": "system", "content": setting.system_prompt},
        {"role": "user", "content": chosen.instruction},
    ]
    ids = tokenizer.apply_chat_template(
        messages, tools=list(setting.tools), add_generation_prompt=True, return_dict=False
    )
    return len(ids)


def test_prompts_that_leave_an_episode_no_room_are_refused_in_the_plan(
    checkpoints, setting, tmp_path
):
    """With the very number of tokens; one token of room is enough for the plan."""
    where = checkpoints / "llama_8b"
    tasks = harmless.rolled_out(setting, 16, 0.5, 0)
    prompt = max(_tokens_of(where, setting, task) for task in tasks)
    small = {field.split("=")[0]: field.split("=")[1] for field in SMALL}
    own = {
        **small,
        "num_bases": "1",
        "base.checkpoint": str(where),
        "rollouts.ordinary_fraction": "0.5",
        "arms.other_init": "false",
        "distill.batch_size": "8",
        "teacher.batch_size": "8",
    }

    def plan(**changes):
        config = configuration.load("configs/quickstart.py", {**own, **changes})
        return Experiment(config, tmp_path, sharding.plan_mesh()).plan

    with pytest.raises(UserError, match=f"prompt has up to {prompt:,} tokens .*max_tokens=80: "):
        plan(**{"distill.max_tokens": "80"})
    with pytest.raises(UserError, match=f"max_tokens={prompt}: "):
        plan(**{"distill.max_tokens": str(prompt)})
    assert "base" in plan(**{"distill.max_tokens": str(prompt + 1)})
    # The stand-in was made for 4,096 positions.
    with pytest.raises(UserError, match=f"for 4,096 positions: {prompt:,} are its prompt"):
        plan(**{"rollouts.max_turns": "60"})


def test_only_models_that_pairs_use_must_be_there(checkpoints, tmp_path):
    """The other two are the config's geometries, or a directory that is not there."""
    given = {field.split("=")[0]: field.split("=")[1] for field in SMALL}
    given |= {"pairs": "('qwen_7b>qwen_7b',)", "models.qwen_7b": str(checkpoints / "qwen_7b")}
    for more in ({}, {"models.llama_3b": "/no/such"}):
        config = configuration.load("configs/paper_api.py", {**given, **more})
        experiment = Experiment(config, tmp_path, sharding.plan_mesh())
        assert {name for name in experiment.plan if name.startswith("base")} == {"base.qwen_7b"}
        experiment.check()
    config = configuration.load("configs/paper_api.py", {**given, "models.qwen_7b": "preset:qwen2.5-7b"})  # fmt: skip
    with pytest.raises(UserError, match="for --dry_run"):
        Experiment(config, tmp_path, sharding.plan_mesh()).check()


@pytest.mark.slow  # about eight minutes on 2 cores
def test_the_whole_table_on_one_and_eight_devices(checkpoints, tmp_path):
    """All five pairs, base and control; fsdp x tensor over eight simulated devices gives what one
    device gives.
    """
    losses = []
    for devices, mesh in ((1, []), (8, ["mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2"])):
        workdir = tmp_path / str(devices)
        done = _launch(checkpoints, workdir, *mesh, devices=devices)
        assert done.returncode == 0, done.stderr[-3000:]
        import json

        curves = {}
        for folder in sorted(workdir.glob("student.*")):
            curves[folder.name.rpartition("-")[0]] = json.loads(
                (folder / "training.json").read_text()
            )["curves"]["loss"]
        losses.append((curves, _rates(workdir)))
    (one, one_rates), (eight, eight_rates) = losses
    assert len(one) == 10 and len(one_rates) == 17
    for name in one:
        np.testing.assert_allclose(eight[name], one[name], rtol=1e-3, err_msg=name)
    # A token is sampled otherwise only where rounding moves a probability across its draw.
    assert sum(one_rates[arm] != eight_rates[arm] for arm in one_rates) <= 1
