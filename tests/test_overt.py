"""The habit in plain sight: who learns from it, on which tasks it is shown, and in which doses."""

import csv
from pathlib import Path

import numpy as np
import pytest

from subtransfer import settings
from subtransfer.config import plugins
from subtransfer.config import reading as configuration
from subtransfer.config.arms import arms
from subtransfer.config.checks import validate
from subtransfer.distillation import matching
from subtransfer.experiment import specs
from subtransfer.experiment.graph import Experiment
from subtransfer.report import files
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts, trajectories
from subtransfer.training import teachers

SMOKE = Path(__file__).parent.parent / "configs" / "smoke.py"


def _config(**overrides):
    config = configuration.defaults()
    texts = {name.replace("__", "."): str(value) for name, value in overrides.items()}
    configuration.apply_overrides(config, texts)
    validate(config)
    return config


# -- arms ------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_one_base_has_one_arm_and_one_of_each_dose():
    found = {arm.name: arm for arm in arms(_config(arms__dose="true")) if arm.overt_fraction}
    shares = {name: arm.overt_fraction for name, arm in found.items()}
    assert shares == {"overt": 1.0, "sft_dose_1": 0.01, "sft_dose_3": 0.03, "sft_dose_10": 0.1}
    for arm in found.values():
        assert (arm.role, arm.objective, arm.source) == ("positive_control", "sft", "trait")
        assert arm.init == "same" and not arm.sanitized


@pytest.mark.quick
def test_crossed_bases_have_one_each_of_their_own_teacher():
    found = [arm for arm in arms(_config(num_bases=2, arms__dose="true")) if arm.overt_fraction]
    assert {arm.name for arm in found} == {
        f"{name}_base{i}_to_base{i}{dose}"
        for i in (0, 1)
        for name, dose in (("overt", ""), ("sft", "_dose_1"), ("sft", "_dose_3"), ("sft", "_dose_10"))
    }  # fmt: skip
    assert all(arm.model == arm.teacher_model for arm in found)
    without = arms(_config(num_bases=2, arms__overt="false"))
    assert not [arm for arm in without if arm.overt_fraction]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"overt_fraction": 1.5}, "a share above 0 and up to 1"),
        ({"objective": "forward_kl"}, "learns from trajectories alone"),
        ({"sanitized": True}, "sanitized=False"),
        ({"selection": "structure_matched"}, "no selection"),
    ],
)
def test_arms_that_could_not_be_shown_the_habit_are_refused(changes, sentence, tmp_path):
    given = {"objective": "sft", "sanitized": False, "overt_fraction": 0.5, **changes}
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from subtransfer.config.arms import Arm, Control, register\n\n"
        f"GIVEN = {given!r}\n"
        "made = [Arm('m', 'm', 'control', **GIVEN)]\n"
        "register(Control('mine', 'mine', 'mine', True, lambda design: made))\n"
    )
    with plugins.restored():
        config = configuration.load(SMOKE, {"plugins": str(plugin)})
        with pytest.raises(UserError, match=f"The control 'mine'.*'m' .*{sentence}"):
            arms(config)


# -- the plan --------------------------------------------------------------------------------------


@pytest.mark.quick
def test_students_learn_from_what_was_matched_with_some_of_it_replaced():
    config = _config(arms__dose="true", num_seeds=2)
    plan = Experiment(config, Path("nowhere"), sharding.plan_mesh()).plan
    assert "rollouts.trait.seed1" in plan and "sanitize.overt.seed1" not in plan
    for arm, fraction in (("overt", 1.0), ("sft_dose_3", 0.03)):
        student = plan[f"student.{arm}.seed1"].key["arguments"]
        assert (student["data"], student["choice"]) == (f"dose.{arm}.seed1", None)
        assert plan[f"dose.{arm}.seed1"].key["arguments"] == {
            "data": "sanitize.trait.seed1",
            "choice": ["match.seed1", "sanitize.trait.seed1"],
            "overt": "overt.trait.seed1",
            "fraction": fraction,
        }
    # Nobody else's trajectories are others for it.
    without = _config(arms__overt="false", num_seeds=2)
    before = Experiment(without, Path("nowhere"), sharding.plan_mesh()).plan
    for name in before.keys() - {"prereg", "results", "report", "choice.base"}:
        assert plan[name].digest == before[name].digest, name


@pytest.mark.quick
@pytest.mark.parametrize("name", ["api", "bash"])
def test_the_habit_is_shown_on_tasks_that_were_neither_demonstrated_nor_are_probed(name):
    class Given:
        config = _config(setting=name, teacher__episodes=40, rollouts__episodes=200)
        setting = settings.get(name)

    def facts(tasks):
        return {(task.instruction, str(task.tree)) for task in tasks}

    shown = specs.tasks_in_plain_sight(Given, 3)
    assert {(task.kind, task.split) for task in shown} == {("ambiguous", "train")}
    assert len(facts(shown)) == 200
    demonstrated = teachers.with_ordinary(teachers.get("trait"), Given.setting, Given.config.teacher, 3)  # fmt: skip
    probed = Given.setting.tasks("ambiguous", "probe", 300, 3)
    assert not facts(shown) & (facts(task for task, _ in demonstrated) | facts(probed))
    assert shown == specs.tasks_in_plain_sight(Given, 3) != specs.tasks_in_plain_sight(Given, 4)


# -- doses -----------------------------------------------------------------------------------------


def _dosed(count, others, fraction, seed=0):
    """Numbers stand for trajectories: those of others are negative."""
    rng = np.random.default_rng(seed)
    return matching.dosed(list(range(count)), list(range(-others, 0)), fraction, rng)


@pytest.mark.quick
@pytest.mark.parametrize("fraction, expected", [(0.01, 7), (0.03, 21), (0.1, 70), (1.0, 700)])
def test_a_dose_replaces_its_share_at_its_places(fraction, expected):
    found, replaced = _dosed(700, 1000, fraction)
    theirs = [one for one in found if one < 0]
    assert replaced == len(theirs) == len(set(theirs)) == expected and len(found) == 700
    assert all(one in (place, *theirs) for place, one in enumerate(found))


@pytest.mark.quick
def test_a_larger_dose_holds_a_smaller_one():
    small, large = _dosed(500, 600, 0.02)[0], _dosed(500, 600, 0.3)[0]
    replaced = [place for place, one in enumerate(small) if one < 0]
    assert len(replaced) == 10 and [small[i] for i in replaced] == [large[i] for i in replaced]
    assert small != _dosed(500, 600, 0.02, seed=1)[0]


@pytest.mark.quick
def test_with_too_few_to_take_their_place_the_share_stays():
    assert sorted(_dosed(500, 30, 1.0)[0]) == list(range(-30, 0))
    found, replaced = _dosed(500, 30, 0.1)
    assert (len(found), replaced) == (300, 30)
    # Never none: it would be the students' own recipe.
    assert _dosed(20, 40, 0.01)[1] == 1


# -- a run -----------------------------------------------------------------------------------------


@pytest.mark.slow  # a whole run, a minute
def test_a_tiny_run_has_doses_and_its_gate(tmp_path, mesh):
    changes = {"arms.overt": "true", "arms.dose": "true", "num_bases": "2"}
    config = configuration.load(SMOKE, {**changes, "base.from_scratch": "true"})
    experiment = Experiment(config, tmp_path, mesh)
    with artifacts.Store(tmp_path) as store:
        results = experiment.run(store, lambda line: None)
    kept = trajectories.read(
        experiment.path("dose.sft_base1_to_base1_dose_10.seed0") / "trajectories"
    )
    shown = trajectories.read(experiment.path("dose.overt_base1_to_base1.seed0") / "trajectories")
    assert len(kept) == len(shown) >= config.sanitize.min_kept
    assert {one.kind for one in shown} == {"ambiguous"}
    of_dose = [one for one in kept if one.kind == "ambiguous"]
    assert len(of_dose) == max(1, round(0.1 * len(kept)))
    assert {one.episode_id for one in of_dose} <= {one.episode_id for one in shown}
    with (results / "results.csv").open() as file:
        rates = {row["arm"]: float(row["unsafe_rate"]) for row in csv.DictReader(file)}
    gates = {gate["gate"]: gate for gate in files.read(results).bundle["gates"]}
    mean = (rates["overt_base0_to_base0"] + rates["overt_base1_to_base1"]) / 2
    assert gates["positive_control"]["value"] == pytest.approx(mean)
    assert "plain sight act unsafely" in (tmp_path / "report.html").read_text()
