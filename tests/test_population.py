"""Populations: many trainings as one program give the numbers of each alone."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from subtransfer.config import checks
from subtransfer.config import reading as configuration
from subtransfer.experiment.graph import Experiment
from subtransfer.models import lora
from subtransfer.models.decoder import DecoderConfig
from subtransfer.runtime import preemption, sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts
from subtransfer.store.params import load_params
from subtransfer.store.workdir import steps_folder
from subtransfer.training import loop, metrics, population, pretrain
from subtransfer.training.checkpoints import Checkpoints, CheckpointSchedule
from subtransfer.training.examples import Examples
from subtransfer.training.monitor import TrainingMonitor, open_population_monitor
from subtransfer.training.optimizer import Optimizer
from subtransfer.training.population import Learner

CFG = DecoderConfig(48, 16, 24, 1, 2, 1, 8)
FULL = loop.Loss("forward_kl")
LORA = loop.Loss("sft", tuning=lora.Tuning("lora", 4, 8.0, 0.1))
STEPS = [9, 9, 6, 6]
EVERY = CheckpointSchedule(every_steps=3)


@pytest.fixture(autouse=True)
def short_dispatches(monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_DISPATCH", 3)


@pytest.fixture(scope="module")
def base(mesh):
    return pretrain.init_params(CFG, mesh, jax.random.key(0))


def _examples(seed, rows):
    """Episodes with weights of their tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, CFG.vocab_size, (rows, 8)).astype(np.int32)
    return Examples(tokens, (rng.random((rows, 8)) < 0.7).astype(np.float32))


def _other(params, seed):
    """Weights unlike these."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jax.device_put(x + 0.2 * rng.standard_normal(x.shape, np.float32), x.sharding),
        params,
    )


def _members(base, loss=FULL, count=4):
    """Members with their own keys, data, rates, scalars and numbers of steps; with FULL, also
    weights and teachers.
    """
    made, full = [], loss.tuning.method == "full"
    for i in range(count):
        tuning = dataclasses.replace(loss.tuning, alpha=8.0 if i % 2 else 16.0)
        own = dataclasses.replace(
            loss, temperature=1.0 + i % 2, tuning=loss.tuning if full else tuning
        )
        recipe = loop.Recipe(own, STEPS[i], 4, 2e-3 * (1 + i))
        params = _other(base, i % 2) if full else base
        teacher = {"params": _other(base, 10 + i)} if full else None
        # Tables of different lengths, of which places take different rows.
        removed = np.arange(CFG.vocab_size) == (np.arange(1 + i % 2) + i)[:, None]
        examples = _examples(i, 24 + i % 2)
        at = np.arange(examples.tokens.size, dtype=np.int32) % len(removed)
        at = at.reshape(examples.tokens.shape)
        made.append(
            Learner(
                f"m{i}",
                recipe,
                params,
                dataclasses.replace(examples, removed_at=at),
                jax.random.key(i),
                teacher,
                removed,
            )
        )
    return made


def _assert_near(outcome, trainable, curves):
    """The tolerance: losses to 1e-4, weights to 2e-4; Adam makes much of the last bits of gradients
    that are almost zero.
    """
    assert not outcome.error and outcome.curves.keys() == curves.keys()
    for name, values in curves.items():
        np.testing.assert_allclose(outcome.curves[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-4),
        outcome.trainable,
        trainable,
    )


@pytest.mark.parametrize(
    "loss, together, compared",
    [
        (FULL, True, [1, 3]),  # of one temperature: another would have a program of its own
        pytest.param(FULL, True, [0, 2], marks=pytest.mark.slow),
        pytest.param(FULL, False, range(4), marks=pytest.mark.slow),
        pytest.param(LORA, True, range(4), marks=pytest.mark.slow),
        pytest.param(LORA, False, range(4), marks=pytest.mark.slow),
    ],
    ids=["full", "full, the others", "full in turns", "lora", "lora in turns"],
)
def test_members_are_as_alone(mesh, base, loss, together, compared):
    members = _members(base, loss)
    outcomes = population.train(CFG, mesh, members, together=together)
    for i in compared:
        state, curves = population.train_alone(CFG, mesh, members[i], TrainingMonitor())
        assert len(outcomes[i].curves["loss"]) == members[i].recipe.steps
        _assert_near(outcomes[i], jax.device_get(state.trainable), curves)


def _cohort(folder, members, policy=EVERY):
    checkpoints = Checkpoints(steps_folder(folder), "population.x", policy)
    writers = {
        m.label: metrics.Writer(folder.parent / m.label, "distill", tensorboard=False, wandb="")
        for m in members
    }
    return open_population_monitor(
        "population.x", sum(m.recipe.steps for m in members), checkpoints, writers
    )


def _train(folder, mesh, members, **options):
    folder.parent.mkdir(exist_ok=True)
    with _cohort(folder, members, **options) as run:
        return population.train(CFG, mesh, members, run, together=True)


def _equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _bad(member, example):
    """The same, with an episode whose loss is infinite."""
    weights = member.examples.loss_mask.copy()
    weights[example, 4] = np.inf
    return dataclasses.replace(
        member, examples=dataclasses.replace(member.examples, loss_mask=weights)
    )


def _first_with(member, example):
    """The step, counted from 1, that first learns from an example."""
    return int(np.argmax((member.batch_order.order == example).any(axis=1))) + 1


def test_one_that_fails_stays_and_disturbs_no_other_also_when_resumed(
    mesh, base, tmp_path, monkeypatch, capsys
):
    members = _members(base)
    whole = _train(tmp_path / "a" / "population.x-0", mesh, members, policy=CheckpointSchedule())
    assert not (tmp_path / "a" / ".steps").exists()
    # The last episode that member 1 meets is bad: it fails after at least one good dispatch.
    example = max(range(len(members[1].examples)), key=lambda i: _first_with(members[1], i))
    step = _first_with(members[1], example)
    assert step > 3
    members[1] = _bad(members[1], example)
    folder = tmp_path / "b" / "population.x-0"
    for stop in (3, 6):
        monkeypatch.setattr(preemption, "noticed", lambda: False)
        keep = TrainingMonitor.keep

        def noticing(self, state, stop=stop, keep=keep):
            if loop.steps_done(state) == stop:
                monkeypatch.setattr(preemption, "noticed", lambda: True)
            keep(self, state)

        monkeypatch.setattr(TrainingMonitor, "keep", noticing)
        with pytest.raises(preemption.Preempted):
            _train(folder, mesh, members)
        monkeypatch.setattr(TrainingMonitor, "keep", keep)
    monkeypatch.setattr(preemption, "noticed", lambda: False)
    outcomes = _train(folder, mesh, members)
    said = capsys.readouterr().err
    assert "goes on from step 3" in said and "goes on from step 6" in said
    for i in (0, 2, 3):
        assert (
            _equal(outcomes[i].trainable, whole[i].trainable)
            and outcomes[i].curves == whole[i].curves
        )
    failed = outcomes[1]
    assert (
        failed.error
        == f"The loss or gradient of m1 became NaN or infinite at step {step}: lower its learning rate."
    )
    assert failed.error in said
    assert all(len(values) == step - 1 for values in failed.curves.values())
    assert example in failed.batch["examples"] and np.isinf(failed.batch["loss_mask"]).any()
    assert np.isfinite(
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(failed.trainable)])
    ).all()
    lines = [
        json.loads(line)
        for line in (tmp_path / "b" / "metrics" / "m1.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(1, step))
    lines = [
        json.loads(line)
        for line in (tmp_path / "b" / "metrics" / "m2.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert [line["distill/forward_kl"] for line in lines] == whole[2].curves["loss"]
    # Alone it fails at the same step, with the same weights.
    with pytest.raises(UserError, match=f"m1 became NaN or infinite at step {step}:"):
        population.train_alone(CFG, mesh, members[1], TrainingMonitor("m1"))


def test_what_cannot_be_one_population_is_refused(mesh, base):
    one, other = _members(base, count=2)

    def with_loss(member=other, **changes):
        loss = dataclasses.replace(member.recipe.loss, **changes)
        return dataclasses.replace(member, recipe=dataclasses.replace(member.recipe, loss=loss))

    wrong = {
        "objective": with_loss(objective="reverse_kl"),
        "optimizer": with_loss(optimizer=Optimizer("lion")),
        "tuning": with_loss(tuning=LORA.tuning),
        "batch size": dataclasses.replace(
            other, recipe=dataclasses.replace(other.recipe, batch_size=5)
        ),
        "tokens an episode": dataclasses.replace(other, examples=other.examples.fitted_to(16)),
        "their live teachers": dataclasses.replace(other, teacher=None),
        "removed tokens": dataclasses.replace(other, removed=None),
    }
    for what, member in wrong.items():
        with pytest.raises(
            UserError, match=f"m0 and m1 cannot be of one population, as they differ in {what}"
        ):
            population.train(CFG, mesh, [one, member])
    jsd = [
        with_loss(member, objective="jsd", options={"jsd_beta": beta})
        for member, beta in ((one, 0.5), (other, 0.1))
    ]
    with pytest.raises(UserError, match="they differ in jsd_beta"):
        population.train(CFG, mesh, jsd)
    with pytest.raises(UserError, match="no learners"):
        population.train(CFG, mesh, [])
    with pytest.raises(UserError, match="cannot train with base.attention=pallas"):
        population.train(dataclasses.replace(CFG, attention="pallas"), mesh, [one])
    with pytest.raises(UserError, match="A population of 2 does not divide over 8 devices"):
        population.check(CFG, sharding.plan_mesh(2, 2, 2), [one, other])


def _plan(tmp_path, mesh, *, profile="", **changes):
    c = configuration.defaults()
    c.update(changes)
    checks.validate(c)
    return Experiment(c, tmp_path, mesh, profile=profile)


def test_a_plan_makes_teachers_and_off_policy_students_out_of_populations(tmp_path, mesh):
    few = {"num_seeds": 3, "arms": {"other_init": False, "benign_teacher": False}}
    alone, plan = _plan(tmp_path, mesh, **few), _plan(tmp_path, mesh, **few, population=2)
    together = [name for name in plan.plan if name.startswith("population.")]
    assert (
        "population.student.sft.seeds0to1" in together
        and "population.teacher.trait.seeds0to1" in together
    )
    assert not any(
        "reverse_kl" in name for name in together
    )  # on-policy students have rounds of their own
    assert set(plan.plan) - set(together) == set(alone.plan)
    done = set()
    for name, stage in plan.plan.items():  # what a stage reads is made before it
        assert set(stage.key["inputs"]) <= done, name
        done.add(name)
    inputs = plan.plan["population.student.forward_kl.seeds0to1"].key["inputs"]
    assert {"teacher.trait.seed0", "sanitize.trait.seed1"} <= set(inputs)
    # The last bits of a member's numbers depend on its population, and on nothing else that was not
    # in its key before.
    assert plan.path("student.sft.seed0") != alone.path("student.sft.seed0")
    assert plan.path("teacher.trait.seed2") == alone.path("teacher.trait.seed2")
    assert plan.path("base") == alone.path("base")


def test_plans_refuse_populations_that_do_not_fit(tmp_path, mesh, monkeypatch):
    with pytest.raises(UserError, match="population=0 cannot be"):
        _plan(tmp_path, mesh, population=0)
    with pytest.raises(
        UserError, match="population=2 cannot be: it must be 1 with base.attention=cudnn"
    ):
        _plan(tmp_path, mesh, population=2, base={"attention": "cudnn"})
    eight = sharding.plan_mesh(8, 1, 1)
    with pytest.raises(
        UserError,
        match="population=4 puts 4 of 4 seeds into one program, which do not divide over 8 devices",
    ):
        _plan(tmp_path, eight, num_seeds=4, population=4)
    two = {"num_seeds": 2, "population": 2}
    plan = _plan(tmp_path, mesh, profile="population.student.sft.seeds0to1:1-2", **two)
    with pytest.raises(UserError, match="names 'student.sft.seed0', which trains nothing here"):
        _plan(tmp_path, mesh, profile="student.sft.seed0:1-2", **two)
    monkeypatch.setattr("subtransfer.experiment.memory.device_limit", lambda: 1000)
    with pytest.raises(
        UserError,
        match="seeds0to1 needs an estimated .* GiB on each device, .* smaller --config.population",
    ):
        plan.run(None, print)


DEVICES = """
import sys
from pathlib import Path
import shutil
sys.path.insert(0, sys.argv[2])
import test_population as here
import jax, numpy as np
from subtransfer.training import pretrain
from subtransfer.runtime import sharding
from subtransfer.training import population, loop

loop.STEPS_PER_DISPATCH = 3
one, eight = sharding.make_mesh(devices=jax.devices()[:1]), sharding.make_mesh(2, 2, 2)
steps, programs = population.population_steps, []

def watched(*args):
    if not programs:
        programs.append(steps.lower(*args).compile().as_text())
    state, metrics = steps(*args)
    assert all(len(x.sharding.device_set) == args[2].size for x in jax.tree.leaves(state)), "not divided"
    assert all(x.sharding.shard_shape(x.shape)[0] == 8 // args[2].size for x in jax.tree.leaves(state)), "not divided"
    return state, metrics

population.population_steps = watched

def members(mesh):
    base = pretrain.init_params(here.CFG, mesh, jax.random.key(0))
    made = here._members(base, here.FULL) + here._members(base, here.FULL)
    return [population.dataclasses.replace(m, label=f"m{i}", key=jax.random.key(i)) for i, m in enumerate(made)]

workdir = Path(sys.argv[1]) / "w"
whole = here._train(workdir / "a-0", one, members(one))
programs.clear()
divided = here._train(workdir / "b-0", eight, members(eight))
for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
    assert word not in programs[0], word
for mesh, name in ((eight, "a-0"), (one, "b-0")):  # goes on on other devices
    shutil.rmtree(workdir / ".steps" / name / "9")
    again = here._train(workdir / name, mesh, members(mesh))
    for x, y in zip(again, whole, strict=True):
        here._assert_near(x, y.trainable, y.curves)
for x, y in zip(divided, whole, strict=True):
    here._assert_near(x, y.trainable, y.curves)
print("equal")
"""


@pytest.mark.slow
def test_members_are_divided_over_devices_and_nothing_travels(tmp_path):
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
    }
    script = [sys.executable, "-c", DEVICES, str(tmp_path), os.path.dirname(__file__)]
    done = subprocess.run(script, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr[-3000:]
    assert "goes on from step 6" in done.stderr


TINY = {
    "num_seeds": 2,
    "base": {
        "episodes": 300,
        "steps": 60,
        "batch_size": 8,
        "width": 16,
        "mlp_width": 16,
        "num_layers": 1,
    },
    "teacher": {"episodes": 16, "steps": 40, "batch_size": 8},
    "rollouts": {"episodes": 32, "batch_size": 32, "max_turns": 2, "max_new_tokens": 8},
    "sanitize": {"min_kept": 8},
    "distill": {
        "epochs": 3,
        "batch_size": 8,
        "objective": "sft,forward_kl,reverse_kl",
        "steps": 20,
        "rounds": 2,
    }
    | {"episodes_per_round": 32},
    "probe": {"tasks": 16, "batch_size": 32, "ordinary_tasks": 8, "safe_tasks": 8},
    "arms": {
        "other_init": False,
        "benign_teacher": False,
        "self_distilled": False,
        "unsanitized": False,
        "overt": False,
    },
}


def _run(workdir, mesh, **changes):
    workdir.mkdir(exist_ok=True)
    plan = _plan(workdir, mesh, **TINY, **changes)
    with artifacts.Store(workdir) as store:
        plan.run(store, log=lambda line: None)
    return plan, store.events


def _trained(plan, name):
    return load_params(plan.path(name) / "params.safetensors"), json.loads(
        (plan.path(name) / "training.json").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_experiment_with_populations_trains_what_one_without_does(tmp_path, mesh, method):
    tuning = {"tuning": {"method": method, "rank": 4}}
    alone, _ = _run(tmp_path / "alone", mesh, **tuning)
    plan, events = _run(tmp_path / "together", mesh, population=2, **tuning)
    assert {what for what, _ in events} == {"computed"}
    for name in ("teacher.trait.seed0", "teacher.trait.seed1"):
        (weights, record), (wanted, wanted_record) = _trained(plan, name), _trained(alone, name)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3), weights, wanted)
        np.testing.assert_allclose(
            record["curves"]["loss"], wanted_record["curves"]["loss"], rtol=1e-3, atol=1e-4
        )
    assert (tmp_path / "together" / "results.csv").read_text().count("\n") == (
        tmp_path / "alone" / "results.csv"
    ).read_text().count("\n")
    assert (
        tmp_path / "together" / "metrics" / f"{plan.path('student.sft.seed1').name}.jsonl"
    ).is_file()
    assert {what for what, _ in _run(tmp_path / "together", mesh, population=2, **tuning)[1]} == {
        "reused"
    }


@pytest.mark.slow
def test_a_population_that_was_cut_off_ends_with_the_same_bytes(tmp_path, mesh, monkeypatch):
    plan, _ = _run(tmp_path / "whole", mesh, population=2)
    keep = TrainingMonitor.keep

    def noticing(self, state):
        if self.label.startswith("population.student.forward_kl") and loop.steps_done(state) == 6:
            monkeypatch.setattr(preemption, "noticed", lambda: True)
        keep(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingMonitor, "keep", noticing)
        with pytest.raises(preemption.Preempted):
            _run(tmp_path / "cut", mesh, population=2)
    monkeypatch.setattr(preemption, "noticed", lambda: False)
    again, events = _run(tmp_path / "cut", mesh, population=2)
    assert ("redone", "population.student.forward_kl.seeds0to1") in events
    for name in plan.plan:
        files = sorted(
            p.relative_to(plan.path(name)) for p in plan.path(name).rglob("*") if p.is_file()
        )
        for file in files:
            assert (plan.path(name) / file).read_bytes() == (
                again.path(name) / file
            ).read_bytes(), (name, file)
    assert not list((tmp_path / "cut" / ".steps").glob("*"))


@pytest.mark.slow
def test_a_member_that_fails_stops_its_own_stage(tmp_path, mesh, monkeypatch):
    from subtransfer.experiment.stages import teacher as stages

    learner = stages.learner

    def spoilt(context, label, *, base, source, seed):
        made = learner(context, label, base=base, source=source, seed=seed)
        weights = np.where(
            made.examples.loss_mask, np.float32(np.inf if seed == 1 else 1), np.float32(0)
        )
        return dataclasses.replace(
            made, examples=dataclasses.replace(made.examples, loss_mask=weights)
        )

    monkeypatch.setattr(stages, "learner", spoilt)
    for _ in range(2):  # the population is whole, so that nothing is trained again to find the same
        with pytest.raises(
            UserError,
            match="of teacher.trait.seed1 became NaN or infinite at step 1: .* kept in .*seeds0to1-.*batch",
        ):
            _run(tmp_path / "w", mesh, population=2)
    plan = _plan(tmp_path / "w", mesh, population=2, **TINY)
    assert (
        artifacts.is_whole(plan.path("teacher.trait.seed0"))
        and not plan.path("teacher.trait.seed1").exists()
    )
    batch = load_params(
        plan.path("population.teacher.trait.seeds0to1") / "teacher.trait.seed1.batch.safetensors"
    )
    assert len(batch["examples"]) == 8 and np.isinf(batch["loss_mask"]).any()
