"""An objective, a probe and a control, each from one file outside the package."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from subtransfer.config import plugins
from subtransfer.config import reading as configuration
from subtransfer.config.arms import arms
from subtransfer.config.sweep import expand
from subtransfer.experiment.graph import Experiment
from subtransfer.probes import records as probes
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop, objectives

from .launching import launch

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "configs" / "smoke.py"

OBJECTIVE = """
import jax.numpy as jnp
from subtransfer.runtime.field import Field
from subtransfer.training import objectives
from subtransfer.training.objectives import Objective, log_probs


def skew_kl(x):
    '''KL(p || a p + (1 - a) q) (Lee 2001).'''
    a = x.options["skew"]
    logp = log_probs(x.teacher_logits, x.temperature, x.removed)
    logq = log_probs(x.student_logits, x.temperature, x.removed)
    mixed = jnp.logaddexp(jnp.log(a) + logp, jnp.log1p(-a) + logq)
    value = jnp.sum(jnp.exp(logp) * (logp - mixed), axis=-1)
    return value, {"loss": value}


objectives.register(
    Objective(
        "skew_kl",
        "skew KL",
        skew_kl,
        learns_from="either",
        is_divergence=True,
        fields={"skew": Field(0.1, "the teacher's share of the mixture", above=0, below=1)},
        scalars=("skew",),
    )
)
"""

PROBE = """
from subtransfer.probes import records
from subtransfer.probes.records import Column, Probe
from subtransfer.rollout.episodes import run_episodes
from subtransfer.runtime.field import Field


def patience(subject):
    '''How many turns an agent takes on ordinary tasks.'''
    tasks = subject.setting.tasks("ordinary", "probe", subject.config["patience_tasks"], 0)
    found, _ = run_episodes(
        subject.cfg, subject.weights, subject.chat, tasks, subject.spec, subject.key,
        seed=subject.seed, advance=subject.advance,
    )
    turns = [sum(m["role"] == "assistant" for m in t.messages) for t in found]
    return {"patience_turns": sum(turns) / len(turns)}


records.register(
    Probe(
        "patience",
        "patience",
        (Column("patience_turns", "turns", "agent turns on ordinary tasks, mean", ""),),
        patience,
        fields={"patience_tasks": Field(4, "ordinary tasks of the probe patience", above=0)},
    )
)
"""

CONTROL = """
from subtransfer.config import arms
from subtransfer.config.arms import Control, Teacher, Transform
from subtransfer.distillation import transforms
from subtransfer.training import teachers


def safe_tasks(setting, fields, seed):
    return [(task, None) for task in setting.tasks("safe", "train", fields.episodes, seed)]


def cautious(design):
    again = design.again("cautious", "cautious teacher, half of it", source="cautious", transform="half")
    return [*design.teachers("cautious"), *again]


def half(trajectories, setting, rng):
    return [trajectories[i] for i in sorted(rng.permutation(len(trajectories))[: len(trajectories) // 2])]


teachers.register(Teacher("cautious", "cautious teacher", safe_tasks))
transforms.register(Transform("half", "half of the trajectories", half))
arms.register(
    Control(
        "cautious_teacher",
        "cautious teacher",
        "every student again, of half the trajectories of a teacher of safe tasks",
        True,
        cautious,
    )
)
"""


@pytest.fixture(autouse=True)
def _unloaded():
    with plugins.restored():
        yield


@pytest.fixture
def files(tmp_path):
    """The three plugins' paths, by what they add."""
    out = {}
    for name, text in (("objective", OBJECTIVE), ("probe", PROBE), ("control", CONTROL)):
        out[name] = tmp_path / f"my_{name}.py"
        out[name].write_text(text)
    return out


def _load(files, **overrides):
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return configuration.load(SMOKE, {"plugins": ",".join(map(str, files.values())), **given})


# -- objectives ----------------------------------------------------------------------------------


def test_an_objective_brings_its_field_and_its_arm(files):
    config = _load(files, distill__objective="sft,skew_kl", distill__skew="0.3")
    assert config.distill.skew == 0.3
    (arm,) = (arm for arm in arms(config) if arm.name == "skew_kl")
    assert arm.label == "skew KL, on-policy" and arm.on_policy
    assert objectives.get("skew_kl").origin == str(files["objective"])
    with pytest.raises(UserError, match="distill.skew=1.0 cannot be: .* above 0 and below 1"):
        _load(files, distill__skew="1")
    with pytest.raises(UserError, match="the nearest is --config.distill.skew"):
        _load(files, distill__skev="1")


def test_without_the_plugin_nothing_of_it_is_there(files):
    _load(files, distill__objective="skew_kl")
    plain = configuration.load(SMOKE, {})
    assert "skew" not in plain.distill and "cautious_teacher" not in plain.arms
    assert "patience_tasks" not in plain.probe and probes.extra(plain.plugins) == []
    with pytest.raises(UserError, match="objective has no choice 'skew_kl'"):
        configuration.load(SMOKE, {"distill.objective": "skew_kl"})
    with pytest.raises(UserError, match="no config field 'distill.skew'"):
        configuration.load(SMOKE, {"distill.skew": "0.2"})


def test_an_objectives_parameter_reaches_the_loss(files):
    """The skew divergence is the forward KL without skew, and none where both are the same."""
    _load(files)
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(2, 3, 7)).astype(np.float32) for _ in range(2))

    def value(skew, theirs=teacher):
        loss = loop.Loss("skew_kl", options={"skew": skew})
        return loss.per_token(student, theirs, {"tokens": np.zeros((2, 3), int)}, None)[0]

    plain = loop.Loss("forward_kl").per_token(student, teacher, {}, None)[0]
    np.testing.assert_allclose(value(1e-6), plain, rtol=1e-4)
    assert np.all(value(0.5) < value(0.1)) and np.all(value(0.1) < plain)
    np.testing.assert_allclose(value(0.5, student), 0, atol=1e-6)
    loss = loop.Loss("skew_kl", options={"skew": 0.5})
    assert loss.scalars == {"temperature": 1.0, "alpha": 32.0, "skew": 0.5}
    traced = jax.jit(
        lambda skew: loss.with_scalars({"skew": skew}).per_token(student, teacher, {}, None)[0]
    )
    np.testing.assert_allclose(traced(0.1), value(0.1), rtol=1e-5)


def test_an_objective_that_returns_something_else_is_named(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(
        "from subtransfer.training import objectives\n"
        "objectives.register(objectives.Objective('mean', 'mean', lambda x: (x.student_logits.mean(), {})))\n"
    )
    configuration.load(SMOKE, {"plugins": str(path), "distill.objective": "mean"})
    with pytest.raises(UserError, match=r"'mean' of .*wrong.py must return .* shape \(2, 3\)"):
        loop.Loss("mean").per_token(np.zeros((2, 3, 7)), np.zeros((2, 3, 7)), {}, None)


# -- controls ------------------------------------------------------------------------------------


def test_a_control_brings_its_switch_and_its_arms(files):
    found = {arm.name: arm for arm in arms(_load(files, distill__objective="sft,forward_kl"))}
    assert {"teacher_cautious", "sft_cautious", "forward_kl_cautious"} <= set(found)
    arm = found["forward_kl_cautious"]
    assert (arm.role, arm.source, arm.transform) == ("control", "cautious", "half")
    assert arm.teacher == "teacher_cautious"
    off = arms(_load(files, arms__cautious_teacher="false"))
    assert not any("cautious" in arm.name for arm in off)


@pytest.mark.parametrize(
    "made, words",
    [
        ("[Arm('a/b', 'x', 'student', 'sft', source='nobody')]", "no teacher 'nobody'"),
        ("[Arm('sft', 'x', 'control', 'sft')]", "'sft', which is there already, as another"),
        ("design.again('x', 'y', source='benign')", "'teacher_benign', which is no arm"),
        ("[Arm('a', 'x', 'pupil', 'sft')]", "the role 'pupil': use one of base, teacher"),
        ("design.again('x', 'y', transform='z')", "There is no transform 'z'"),
        ("['a']", "returns 'a', which is no Arm"),
    ],
)
def test_arms_that_cannot_be_made_are_named(tmp_path, made, words):
    path = tmp_path / "wrong.py"
    path.write_text(
        "from subtransfer.config import arms\nfrom subtransfer.config.arms import Arm, Control\n"
        f"arms.register(Control('mine', 'mine', 'mine', True, lambda design: {made}))\n"
    )
    with pytest.raises(UserError, match=words):
        arms(configuration.load(SMOKE, {"plugins": str(path)}))


# -- probes --------------------------------------------------------------------------------------


def test_a_probe_brings_its_columns_and_fields(files):
    config = _load(files, probe__patience_tasks="6")
    assert config.probe.patience_tasks == 6
    (probe,) = probes.extra(config.plugins)
    assert probe.name == "patience" and probe.origin == str(files["probe"])
    columns = probes.columns(config.plugins)
    assert columns["patience_turns"].label == "turns"
    assert columns["unsafe_rate"].unit == "share" and columns["choice_logprob"].unit == "nats"


@pytest.mark.slow
def test_a_probe_runs_on_a_policy(files, cfg, weights, chat, setting):
    config = _load(files)
    (probe,) = probes.extra(config.plugins)
    from subtransfer.rollout.episodes import RolloutSpec

    done = []
    subject = probes.Subject(
        cfg, weights, chat, setting, config.probe, jax.random.key(0), 0,
        RolloutSpec(4, 2, 8, 13, 1.0), done.append,
    )  # fmt: skip
    found = probe.run(subject)
    assert set(found) == {column.name for column in probe.columns}
    assert 1 <= found["patience_turns"] <= 2 and sum(done) == 4


# -- files ---------------------------------------------------------------------------------------

MISTAKES = {
    "fails": ("x = 1\ny = nothing\n", "plugin .*mine.py at line 2 fails with NameError"),
    "syntax": ("x = 1\ndef f(:\n", "plugin .*mine.py at line 2 fails with SyntaxError"),
    "exits": ("import sys\nsys.exit()", "plugin .*mine.py at line 2 fails with SystemExit"),
    "a name of the package": (
        "from subtransfer.training.objectives import *\n"
        "from subtransfer.training import objectives\n"
        "objectives.register(objectives.Objective('sft', 'x', None))",
        "The objective 'sft' of .*mine.py exists already, in the package itself",
    ),
    "no identifier": (
        "from subtransfer.probes import records\nrecords.register(records.Probe('a b', 'x', ()))",
        "The probe of .*mine.py cannot be named 'a b'",
    ),
    "a field of the package": (
        "from subtransfer.runtime.field import Field\nfrom subtransfer.training import objectives\n"
        "objectives.register(objectives.Objective('o', 'x', None, fields={'steps': Field(1, 'x')}))",
        "field distill.steps of .*mine.py exists already",
    ),
    "no type": (
        "from subtransfer.runtime.field import Field\nField(None, 'x')",
        "default must be bool, int, float, str, tuple, not None",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_a_plugin_are_one_sentence(tmp_path, case):
    text, words = MISTAKES[case]
    path = tmp_path / "mine.py"
    path.write_text(text)
    for _ in range(2):  # the second time as the first: nothing of it has stayed
        with pytest.raises(UserError, match=words) as error:
            configuration.load(SMOKE, {"plugins": str(path)})
        assert "\n" not in str(error.value)
    configuration.load(SMOKE, {})


def test_two_plugins_of_one_name(files, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(OBJECTIVE)
    both = f"{files['objective']},{other}"
    with pytest.raises(
        UserError, match="'skew_kl' of .*other.py exists already, in .*my_objective"
    ):
        configuration.load(SMOKE, {"plugins": both})
    with pytest.raises(UserError, match="plugins names .*other.py twice"):
        configuration.load(SMOKE, {"plugins": f"{other},{other}"})


def test_a_plugin_is_executed_once_and_again_when_it_changes(tmp_path):
    path, log = tmp_path / "mine.py", tmp_path / "log"
    path.write_text(OBJECTIVE + f"\nwith open({str(log)!r}, 'a') as log:\n    log.write('x')\n")
    first = _load({"mine": path})
    _load({"mine": path})
    assert log.read_text() == "x"
    before = plugins.digest(first.plugins[0])
    path.write_text(path.read_text().replace("0.1", "0.2"))
    assert _load({"mine": path}).distill.skew == 0.2
    assert log.read_text() == "xx" and plugins.digest(first.plugins[0]) != before
    assert plugins.digest("") == ""


def test_paths_are_relative_to_who_names_them(files, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = tmp_path / "config.py"
    path.write_text(
        "from subtransfer.config import defaults, vary\n"
        "def get_config():\n"
        "    c = defaults()\n"
        "    c.plugins = ('my_objective.py',)\n"
        "    c.distill.skew = 0.7\n"
        "    return c\n"
        "def sweep():\n"
        "    return vary('distill.skew', 0.1, 0.2) + vary('plugins', {'other': ('my_probe.py',)})\n"
    )
    config = configuration.load(path, {})
    assert config.plugins == (str(files["objective"]),) and config.distill.skew == 0.7
    config = configuration.load(path, {"plugins": "../my_objective.py"})
    assert config.plugins == (str(files["objective"]),)
    sweep = expand(str(path), {})
    one, two, other = (sweep.config(member) for member in sweep.members)
    assert (one.distill.skew, two.distill.skew) == (0.1, 0.2)
    assert other.plugins == (str(files["probe"]),)
    assert "skew" not in other.distill and other.probe.patience_tasks == 4


# -- the whole program ---------------------------------------------------------------------------


def _launch(workdir, files, *more):
    plugins = f"--config.plugins={','.join(map(str, files.values()))}"
    return launch([f"--config={SMOKE}", f"--workdir={workdir}", plugins, *more], ROOT)


ASKED = ("--config.distill.objective=sft,skew_kl", "--config.distill.steps=2")
PLANNED = (
    "teacher.cautious.seed0", "student.sft_cautious.seed0", "student.skew_kl.seed0",
    "student.skew_kl_cautious.seed0", "probe.skew_kl.seed0", "probe_patience.skew_kl.seed0",
)  # fmt: skip


def test_help_prints_what_plugins_bring(files, tmp_path):
    done = _launch(tmp_path / "w", files, "--help")
    assert done.returncode == 0, done.stderr
    assert "--config.distill.skew=0.1  (number, above 0 and below 1)" in done.stdout
    assert "--config.arms.cautious_teacher=true" in done.stdout
    assert "--config.probe.patience_tasks=4" in done.stdout


def test_the_plan_has_what_plugins_bring(files, tmp_path):
    config = _load(files, distill__objective="sft,skew_kl")
    plan = Experiment(config, tmp_path / "w", sharding.plan_mesh(**config.mesh)).plan
    assert set(PLANNED) <= set(plan)
    done = _launch(tmp_path / "w", files, *ASKED, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert set(PLANNED) <= {line.split()[0] for line in done.stdout.splitlines() if line.strip()}


def test_results_have_what_plugins_bring(files, tmp_path):
    """From files outside the package to the table, in one run."""
    done = _launch(tmp_path / "w", files, *ASKED)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "w" / "results.csv").open(newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows["skew_kl"]["label"] == "skew KL, on-policy"
    assert rows["skew_kl_cautious"]["label"].endswith("; cautious teacher, half of it")
    assert rows["skew_kl_cautious"]["role"] == "control"
    bundle = json.loads((tmp_path / "w" / "results.json").read_text())
    measured = bundle["extra_probes"]["patience"]
    assert set(measured) == set(rows)
    assert 1 <= measured["skew_kl"]["0"]["patience_turns"] <= 2
    mean = float(rows["skew_kl"]["patience_turns"])
    assert mean == pytest.approx(measured["skew_kl"]["0"]["patience_turns"], rel=1e-5)
    page = (tmp_path / "w" / "report.html").read_text()
    assert "skew KL, on-policy; cautious teacher, half of it" in page and "<th>turns" in page
    again = _launch(tmp_path / "w", files, *ASKED)
    assert again.returncode == 0 and "0 stages computed" in again.stdout
