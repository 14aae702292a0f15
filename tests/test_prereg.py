"""What a run registers before its first stage, and which bases a confirmatory one refuses."""

import json

import pytest

from subtransfer.analysis import effects
from subtransfer.config import reading as configuration
from subtransfer.config.checks import validate
from subtransfer.experiment import registration
from subtransfer.experiment.graph import Experiment
from subtransfer.experiment.shipped import Shipped
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts

# With seed 0 it would train the bases that come with the package.
CONFIRMATORY = ("confirmatory=true", "seed=1")
CROSSED = ("num_bases=3", "num_seeds=2", "distill.objective=sft,forward_kl")


def _config(*changes):
    config = configuration.defaults()
    config.base.from_scratch = True
    configuration.apply_overrides(config, dict(change.split("=", 1) for change in changes))
    validate(config)
    return config


def _experiment(workdir, *changes):
    return Experiment(_config(*changes), workdir, sharding.plan_mesh())


def _registered(experiment):
    return experiment.plan["prereg"].key["arguments"]["registered"]


def test_what_is_registered():
    experiment = _experiment("w", *CROSSED, "gates.base_safe=0.5", "statistics.margin=0.2")
    assert next(iter(experiment.plan)) == "prereg"
    found = _registered(experiment)
    assert found["estimand"].startswith("the interaction") and found["rule"] == effects.RULE
    assert found["family"] == ["sft", "forward_kl"] and found["margin"] == 0.2
    assert found["gates"]["base_safe"] == 0.5 and len(found["pairs"]) == 9
    assert found["seeds"] == 2 and found["tasks"]["ambiguous"] == 256
    assert found["arms"] == [arm.name for arm in experiment.arms]
    bases = {f"base{i}": experiment.plan[f"base.base{i}"].digest for i in range(3)}
    assert found["bases"] == bases
    assert found["recipe"]["teacher"]["steps"] == experiment.config.teacher.steps
    assert found["recipe"]["seed"] == 0
    # All of it decides the artefact's name, and that the results'.
    assert "prereg" in experiment.plan["results"].key["inputs"]
    one = _registered(_experiment("w", "distill.objective=sft"))
    assert "not crossed" in one["estimand"] and one["family"] == ["sft"]


def test_what_does_not_matter_is_not_registered():
    first = _experiment("w").plan["prereg"].digest
    for change in ("name=other", "mesh.tensor=2", "checkpoint.keep=3"):
        assert _experiment("w", change).plan["prereg"].digest == first
    assert _experiment("w", "probe.tasks=8").plan["prereg"].digest != first


@pytest.fixture
def made(monkeypatch):
    """Runs stages of an experiment, which leave a file with their name."""

    def make(workdir, *changes, until):
        experiment = _experiment(workdir, *changes)
        experiment.check()
        with artifacts.Store(workdir) as store:
            for stage in experiment.plan.values():

                def build(out, stage=stage):
                    if stage.name == "prereg":
                        stage.build(out)
                    else:
                        (out / "made").write_text(stage.name)

                folder = store.stage(stage.name, stage.key, build, log=lambda _: None)
                if stage.name == "prereg":
                    registration.publish(folder, workdir)
                if stage.name == until:
                    break
        return experiment

    return make


def test_a_confirmatory_run_goes_on_where_it_was_killed(tmp_path, made):
    own = (*CROSSED, *CONFIRMATORY)
    for until in (
        "prereg",
        "corpus",
        "base.base1",
        "teacher.trait.base0.seed0",
        "probe.base0.seed0",
    ):
        experiment = made(tmp_path, *own, until=until)
    text = (tmp_path / "prereg.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(_registered(experiment)))
    # Sealed: an edit of the artefact is seen.
    folder = tmp_path / experiment.plan["prereg"].folder
    (folder / "prereg.json").write_text(text.replace('"margin": 0.1', '"margin": 0.3'))
    with pytest.raises(UserError, match=r"prereg.json is damaged .*SHA-256"):
        registration.publish(folder, tmp_path)


def test_bases_that_were_looked_at_are_refused(tmp_path, made):
    """Whatever was made of one, by a run that was registered otherwise."""
    made(tmp_path, *CROSSED, "seed=1", until="base.base2")
    # Bases alone were not looked at, and another's prereg hinders nobody.
    made(tmp_path, *CROSSED, *CONFIRMATORY, "probe.tasks=8", until="prereg")
    made(tmp_path, *CROSSED, "seed=1", "teacher.steps=7", until="teacher.trait.base0.seed0")
    with pytest.raises(UserError, match=r"probe.base0.seed0-\w+ was made of one of its"):
        made(tmp_path, *CROSSED, *CONFIRMATORY, until="prereg")
    # What was registered before goes on; other bases were never seen.
    made(tmp_path, *CROSSED, *CONFIRMATORY, "probe.tasks=8", until="base.base0")
    made(tmp_path, *CROSSED, "confirmatory=true", "seed=2", until="prereg")
    # A run that claims nothing asks nothing.
    made(tmp_path, *CROSSED, until="teacher.trait.base0.seed0")


def test_shipped_bases_are_refused(tmp_path, monkeypatch):
    taken = {"base0": Shipped(4, "w", "t")}
    experiment = _experiment(tmp_path, *CROSSED, *CONFIRMATORY)
    monkeypatch.setattr(experiment.models, "shipped", taken)
    with pytest.raises(UserError, match=r"base0 would come with the package.*from_scratch=true"):
        experiment.check()


def test_a_confirmatory_run_does_not_train_the_shipped_bases_again(tmp_path):
    with pytest.raises(UserError, match=r"config.seed=0 the run trains the bases that come with"):
        _experiment(tmp_path, *CROSSED, "confirmatory=true").check()
    _experiment(tmp_path, *CROSSED, "confirmatory=true", "seed=7").check()
    # Other fields make other bases.
    _experiment(tmp_path, *CROSSED, "confirmatory=true", "base.steps=7").check()
