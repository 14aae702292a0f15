"""The one command, end to end at toy size: results, re-use, a model of one's own, mistakes."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from subtransfer.store.params import load_params

from .launching import launch

ROOT = Path(__file__).parent.parent
SMALL = (
    "num_bases=1 num_seeds=1 distill.objective=sft,forward_kl,reverse_kl base.episodes=300 base.steps=20 base.batch_size=8 base.width=16 base.mlp_width=16 base.num_layers=1 "
    "teacher.episodes=16 teacher.steps=4 teacher.batch_size=8 rollouts.episodes=32 rollouts.batch_size=32 rollouts.max_turns=2 "
    "rollouts.max_new_tokens=8 sanitize.min_kept=8 distill.steps=4 distill.batch_size=8 distill.rounds=2 "
    "distill.episodes_per_round=32 probe.tasks=16 probe.batch_size=32 probe.ordinary_tasks=8 probe.safe_tasks=8"
).split()


def _arguments(workdir, *more, config="quickstart"):
    given = [f"--config=configs/{config}.py", f"--workdir={workdir}"]
    return [*given, *(f"--config.{field}" for field in SMALL), *more]


def _launch(workdir, *more, config="quickstart"):
    return launch(_arguments(workdir, *more, config=config), ROOT)


def _tool(name, *arguments):
    command = [sys.executable, f"tools/{name}.py", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "w"
    command = [sys.executable, "-m", "subtransfer.launch", *_arguments(workdir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done.stdout


def test_the_run_leaves_its_results(finished):
    workdir, out = finished
    lines = (workdir / "results.csv").read_text().splitlines()
    assert lines[0].startswith(
        "arm,objective,init,sanitized,n_tasks,n_seeds,unsafe_rate,ci_low,ci_high,diff_base,diff_low,diff_high,p_holm,"
    )
    arms = [line.split(",")[0] for line in lines[1:]]
    assert arms[:4] == ["base", "base_other", "teacher", "teacher_benign"] and len(arms) == 16
    assert all(arm in out for arm in arms)
    episodes = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    assert len(episodes) == 16 * 16 * 2
    page = (workdir / "report.html").read_text()
    assert all(arm in page for arm in arms[4:])
    for manifest in workdir.glob("sanitize.*/manifest.json"):
        m = json.loads(manifest.read_text())
        assert m["total"] == 32 == m["kept"] + m["dropped"] and m["dropped"] == sum(
            m["rules"].values()
        )


def test_the_data_are_audited(finished):
    """Of each two of the trait, benign and base policies, and of the on-policy students of two."""
    workdir, out = finished
    results = json.loads((workdir / "results.json").read_text())
    audited, matched = results["audit"], results["matching"]["match.seed0"]
    own = [c for c in audited["comparisons"] if "own" in c]
    assert {(c["own"], c["first"], c["second"]) for c in own} == {("reverse_kl", "trait", "benign")}
    teachers = [c for c in audited["comparisons"] if "own" not in c]
    found = {(c["first"], c["second"], c["features"]): c for c in teachers}
    pairs = (("trait", "benign"), ("trait", "self"), ("benign", "self"))
    assert set(found) == {(*pair, shown) for pair in pairs for shown in ("text", "behaviour")}
    for (first, second, _), comparison in found.items():
        for source, count in ((first, "n_first"), (second, "n_second")):
            (manifest,) = workdir.glob(f"sanitize.{source}.seed0-*/manifest.json")
            kept, chosen = (
                json.loads(manifest.read_text())["kept"],
                matched[f"sanitize.{source}.seed0"],
            )
            assert kept == chosen["before"]["trajectories"]
            assert comparison[count] == chosen["after"]["trajectories"] <= kept
        assert 0 <= comparison["low"] <= comparison["auc"] <= comparison["high"] <= 1
        assert 0 < comparison["p"] <= 1 and audited["bound"] == 0.6
    page = (workdir / "report.html").read_text()
    sentence = re.search("The data are (not )?visibly different: [^<]*subliminal.", page)
    assert sentence and html.unescape(sentence[0]) in " ".join(out.split())
    assert page.count("tokens and bigrams</td>") == 4


def test_a_second_run_computes_nothing(finished):
    workdir, _ = finished
    before = (workdir / "results.csv").read_bytes()
    again = _launch(workdir)
    assert (
        again.returncode == 0
        and "[computed]" not in again.stdout
        and "0 stages computed" in again.stdout
    )
    assert (workdir / "results.csv").read_bytes() == before


def test_all_stages_of_a_run_are_asked_for_by_its_config(finished):
    """Cleaning knows what a run needs from its command line, and nothing less."""
    given = [argument for argument in _arguments("") if not argument.startswith("--workdir")]
    done = _tool("clean", str(finished[0]), *given)
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if "run again" in line]
    assert "stage" not in done.stdout.replace("stages", "") and not listed
    assert "Not recognised" not in done.stdout and "Nothing was removed" in done.stdout


@pytest.mark.slow
def test_a_policy_goes_out_to_transformers_and_back_in(finished, tmp_path):
    import torch
    import transformers

    from subtransfer.rollout.saved_policy import load_policy

    workdir, _ = finished
    policy = next(workdir.glob("student.forward_kl.seed0-*"))
    done = _tool("export", f"--policy={policy}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    ours = load_policy(policy)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", local_files_only=True
    ).eval()
    tokens = np.arange(48)[None] % ours.cfg.vocab_size
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(ours.logits(tokens), theirs, atol=1e-4)
    again = _tool("export", f"--policy={policy}", f"--out={tmp_path / 'out'}")
    assert again.returncode == 2 and "not empty" in again.stderr and again.stderr.count("\n") == 1
    bad = _tool("export", f"--policy={tmp_path}", f"--out={tmp_path / 'x'}")
    assert bad.returncode == 2 and "holds no policy" in bad.stderr


@pytest.mark.slow
def test_a_run_starts_from_what_another_exported(finished, tmp_path):
    """The twin is trained from scratch with the directory's geometry and tokenizer."""
    policy = next(finished[0].glob("student.forward_kl.seed0-*"))
    assert _tool("export", f"--policy={policy}", f"--out={tmp_path / 'out'}").returncode == 0
    run = _launch(
        tmp_path / "own",
        f"--config.base.checkpoint={tmp_path / 'out'}",
        "--config.distill.objective=sft",
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "base_other" in (tmp_path / "own" / "results.csv").read_text()


@pytest.mark.slow
def test_an_agent_is_made_of_a_checkpoint_and_taught(finished, tmp_path):
    from subtransfer.rollout.saved_policy import load_policy

    policy = next(finished[0].glob("student.forward_kl.seed0-*"))
    assert _tool("export", f"--policy={policy}", f"--out={tmp_path / 'out'}").returncode == 0
    more = [
        "agent.steps=12",
        "agent.episodes=100",
        "distill.objective=sft",
        "arms.other_init=false",
    ]
    workdir = tmp_path / "w"
    run = _launch(
        workdir, f"--config.base.checkpoint={tmp_path / 'out'}", *[f"--config.{m}" for m in more]
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (checkpoint,), (agent,) = workdir.glob("checkpoint.base-*"), workdir.glob("base-*")
    before, after = load_policy(checkpoint), load_policy(agent)
    # Whole, so that adapters lie on it as on any base; and another model than it was.
    assert after.adapter is None and not (agent / "tokenizer" / "adapter_config.json").exists()
    tokens = np.arange(12)[None]
    assert np.abs(before.logits(tokens) - after.logits(tokens)).max() > 0.01
    curve = json.loads((agent / "training.json").read_text())["curves"]["sft"]
    assert curve[-1] < curve[0]
    (teacher,) = workdir.glob("teacher.trait.seed0-*")
    assert json.loads((teacher / "policy.json").read_text())["base"] == agent.name


@pytest.mark.slow
def test_lora_students(tmp_path):
    """LoRA artefacts hold the factors only; the probe reads them merged."""
    more = [
        "distill.objective=sft",
        "arms.other_init=false",
        "arms.benign_teacher=0",
        "arms.unsanitized=0",
        "arms.overt=0",
        "tuning.rank=2",
    ]
    done = _launch(tmp_path / "w", "--config.tuning.method=lora", *[f"--config.{m}" for m in more])
    assert done.returncode == 0, done.stderr[-3000:]
    (student,) = (tmp_path / "w").glob("student.sft.seed0-*")

    assert set(load_params(student / "params.safetensors")["layers"]) == {
        "q",
        "k",
        "v",
        "o",
    }
    # Teacher and student are two small trees over one resident base.
    from subtransfer.rollout.saved_policy import load_policy

    resident = {}
    (teacher,) = (tmp_path / "w").glob("teacher.trait.seed0-*")
    policies = [load_policy(folder, resident=resident) for folder in (student, teacher)]
    assert policies[0].params is policies[1].params is next(iter(resident.values())).params
    assert policies[0].adapter.rank == 2 and len(resident) == 1
    tokens = np.arange(12)[None]
    assert np.abs(policies[0].logits(tokens) - policies[1].logits(tokens)).max() > 0
    (base,) = (tmp_path / "w").glob("base-*")
    out = _tool("export", f"--policy={base}", f"--out={tmp_path / 'base'}")
    assert out.returncode == 0, out.stderr
    done = _tool(
        "export",
        f"--policy={student}",
        "--format=peft",
        f"--base={tmp_path / 'base'}",
        f"--out={tmp_path / 'peft'}",
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        load_policy(tmp_path / "peft").logits(tokens), policies[0].logits(tokens), atol=1e-5
    )
    refused = _tool("export", f"--policy={base}", "--format=peft", f"--out={tmp_path / 'x'}")
    assert refused.returncode == 2 and "has no LoRA adapter" in refused.stderr


@pytest.mark.slow
def test_the_bash_setting(tmp_path):
    """Another setting through the same code: its own acts in the table, its own words in the
    report.
    """
    few = [
        "tuning.method=full",
        "distill.objective=sft",
        "arms.other_init=false",
        "arms.self_distilled=false",
        "arms.unsanitized=false",
        "arms.overt=false",
    ]
    done = _launch(
        tmp_path / "w", *[f"--config.{field}" for field in few], config="quickstart_bash"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "first permission-related command is chmod" in done.stdout
    lines = (tmp_path / "w" / "results.csv").read_text().splitlines()
    assert lines[0].endswith("unsupported_rate,rate_setfacl,rate_chgrp,rate_chown,rate_other")
    assert [line.split(",")[0] for line in lines[1:]] == [
        "base",
        "teacher",
        "teacher_benign",
        "sft",
        "sft_benign",
    ]
    page = (tmp_path / "w" / "report.html").read_text()
    assert "Chmod-first rate" in page and "not simulated" in page and "eletion" not in page


MISTAKES = {
    "unknown field": (["--config.distill.rat=1"], "no config field 'distill.rat'"),
    "no value": (["--config.seed"], "has no value"),
    "unknown flag": (["--workdri=x"], "Unknown command line flag"),
    "stray word": (["go"], "Unexpected argument 'go'"),
    "processes": (["--num_processes=2"], "go together"),
    "profile": (["--profile=results:1-2"], "trains nothing here"),
    "no workdir": (["--workdir="], "--workdir= names no folder"),
    "endless lease": (["--lease=nan"], "--lease=nan cannot be"),
    "no address": (
        ["--num_processes=1", "--process_id=0", "--coordinator=here"],
        "--coordinator=here is no address",
    ),
    "long name": ([f"--workdir=/tmp/{'n' * 300}"], "is too long for the file system"),
    "no sweep": (["--sweep"], "describes no sweep: define sweep()"),
    "checkpoint": (["--config.base.checkpoint=/no/such"], "there is no directory"),
    "mesh": (["--config.mesh.fsdp=3"], "does not use all"),
    "nothing left after filters": (
        ["--config.sanitize.extra_keywords=tell,what,how,count,find,where"],
        "trajectories are left where 8 are needed",
    ),
    "loss": (["--config.teacher.learning_rate=1e38"], "became NaN or infinite"),
    "weights": (
        ["--config.distill.token_weights=tests/data/weightless.py"],
        "gives no token any weight",
    ),
    "vocabulary": (["--config.base.vocab_limit=50"], "distinct words"),
    "too many tasks": (
        ["--config.rollouts.episodes=10", "--config.sanitize.min_kept=5"],
        "sanitize.min_kept",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_in_one_sentence(case, tmp_path, finished):
    arguments, message = MISTAKES[case]
    workdir = finished[0]
    before = sorted(p.name for p in workdir.iterdir())
    done = _launch(workdir, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], done.stderr
    assert "Traceback" not in done.stderr
    assert set(before) <= {p.name for p in workdir.iterdir()}, "earlier artefacts must stay"


def test_an_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    done = _launch(tmp_path / "file")
    assert (
        done.returncode == 2 and "is not a folder" in done.stderr and "Traceback" not in done.stderr
    )
    done = _launch("/proc/w")
    assert done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr


def test_the_plan_does_no_work(tmp_path):
    done = _launch(tmp_path / "w", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert (
        "student.reverse_kl_other.seed0" in done.stdout
        and "to do" in done.stdout
        and "MiB" in done.stdout
    )
    assert re.search(r"To do: about [\d.]+ (s|min|h) on this machine .*; at most \d", done.stdout)
    assert not (tmp_path / "w").exists()
