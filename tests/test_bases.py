"""Several bases: crossed with each other, shipped with the package, and twins that share a part."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from subtransfer.config import reading as configuration
from subtransfer.config.arms import arms
from subtransfer.config.bases import PARTS
from subtransfer.config.checks import validate
from subtransfer.experiment import names, shipped
from subtransfer.experiment.graph import Experiment
from subtransfer.experiment.stages import base as base_stages
from subtransfer.models.decoder import DecoderConfig
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts
from subtransfer.store import shipped as shipped_files
from subtransfer.store.params import load_params, save_params
from subtransfer.training import pretrain
from tools import make_bases

from .test_launch import SMALL, _launch

ROOT = Path(__file__).parent.parent
TWINS = ["arms.init_parts=true", "base.from_scratch=true"]


def _config(*changes):
    config = configuration.defaults()
    configuration.apply_overrides(config, dict(c.split("=", 1) for c in (*SMALL, *changes)))
    validate(config)
    return config


def _experiment(folder, *changes):
    return Experiment(_config(*changes), folder, sharding.make_mesh(devices=jax.devices()[:1]))


# -- the arms of a crossing ------------------------------------------------------------------------


def test_every_base_teaches_every_base_and_controls_are_of_each_with_itself():
    made = {arm.name: arm for arm in arms(_config("num_bases=3", "distill.objective=sft,jsd"))}
    bases = ["base0", "base1", "base2"]
    students = [arm for arm in made.values() if arm.role == "student"]
    expected = []
    for teacher, student in itertools.product(bases, bases):
        expected += [(teacher, student, "sft"), (teacher, student, "jsd")]
    assert [(a.teacher_model, a.model, a.objective) for a in students] == expected
    for arm in students:
        assert arm.name == f"{arm.objective}_{arm.teacher_model}_to_{arm.model}"
        same = arm.teacher_model == arm.model
        assert arm.init == ("same" if same else "other") and arm.twin is None
        assert arm.control == (f"{arm.name}_benign" if same else None)
    assert [arm.name for arm in made.values() if arm.role == "base"] == bases
    controls = {name for name, arm in made.items() if "control" in arm.role}
    assert controls == {
        f"{start}{base}{end}"
        for base in bases
        for start, end in (
            (f"sft_{base}_to_", "_benign"),
            (f"jsd_{base}_to_", "_benign"),
            ("self_distilled_", ""),
            (f"unsanitized_{base}_to_", ""),
            (f"overt_{base}_to_", ""),
        )
    }


def test_the_students_of_a_crossing_are_those_of_all_pairs():
    """A user's own crossing has the same students under the same names."""
    crossed = _config("num_bases=2", "arms.benign_teacher=false")
    pairs = _config("arms.benign_teacher=false")
    pairs.models.update({"base0": "embedded:", "base1": "embedded:"})
    pairs.pairs = tuple(f"base{i}>base{j}" for i, j in itertools.product((0, 1), (0, 1)))
    validate(pairs)
    students = [
        [a for a in arms(c) if a.role != "control" and a.sanitized] for c in (crossed, pairs)
    ]
    assert students[0] == students[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["num_bases=0"], "num_bases"),
        (["num_bases=2", "base.checkpoint=tests"], "num_bases=2 and base.checkpoint cannot both"),
        (["arms.init_parts=true"], "set base.from_scratch=true"),
        (["arms.init_parts=true", "base.checkpoint=tests"], "arms.init_parts and base.checkpoint"),
    ],
)
def test_what_cannot_be_crossed_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        _config(*changes)


@pytest.mark.parametrize("change", [["num_bases=2"], TWINS])
def test_pairs_have_bases_of_their_own(change):
    config = _config(*change)
    config.models.update({"a": "embedded:", "b": "embedded:width=32"})
    config.pairs = ("a>b",)
    with pytest.raises(UserError, match="and pairs cannot both be given"):
        validate(config)


# -- the stages of a crossing ----------------------------------------------------------------------


def test_crossed_bases_differ_in_their_name_alone(tmp_path):
    plan = _experiment(tmp_path, "num_bases=3", "num_seeds=2", "base.from_scratch=true").plan
    keys = [plan[f"base.base{i}"].key for i in range(3)]
    for number, key in enumerate(keys):
        assert key["arguments"]["model"] == f"base{number}"
        rest = {**key["arguments"], "model": ""}
        assert {**key, "arguments": rest} == {
            **keys[0],
            "arguments": {**keys[0]["arguments"], "model": ""},
        }
    assert len({plan[f"base.base{i}"].digest for i in range(3)}) == 3
    # A teacher for each base and seed, of whose trajectories all students of the seed learn.
    for base, seed in itertools.product(range(3), range(2)):
        assert list(plan[f"teacher.trait.base{base}.seed{seed}"].key["inputs"]) == [
            f"base.base{base}"
        ]
        for student in range(3):
            read = plan[f"student.forward_kl_base{base}_to_base{student}.seed{seed}"].key["inputs"]
            assert set(read) == {
                f"base.base{base}", f"base.base{student}", f"teacher.trait.base{base}.seed{seed}",
                f"sanitize.trait.base{base}.seed{seed}", f"match.seed{seed}",
            }  # fmt: skip
    assert sum(names.kind(name) == "teacher" for name in plan) == 3 * 2 * 2


def test_a_base_does_not_depend_on_how_many_there_are(tmp_path):
    few, many = (
        _experiment(tmp_path, f"num_bases={count}", "base.from_scratch=true").plan
        for count in (2, 5)
    )
    for name in (
        "base.base0",
        "base.base1",
        "teacher.trait.base1.seed0",
        "sanitize.trait.base1.seed0",
    ):
        assert few[name].digest == many[name].digest
    # Students learn from as many trajectories as those of every base.
    name = "student.sft_base0_to_base1.seed0"
    assert few[name].digest != many[name].digest


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """What each base of a run with twins is trained from: its initial weights, its order's key."""
    patch = pytest.MonkeyPatch()
    experiment = _experiment(tmp_path_factory.mktemp("drawn"), "num_bases=2", *TWINS)
    twins = [f"base.base0_{part}" for part in PARTS]
    wanted = {names.CORPUS, "base.base0", "base.base1", "base.base1_body_shared", *twins}
    found, under_way = {}, []

    def noted(cfg, mesh, recipe, examples, draw, order, run):
        weights = jax.tree.map(np.asarray, draw())
        found[under_way[-1]] = weights, jax.random.key_data(order).tolist(), examples
        return weights, {"loss": [0.0]}

    patch.setattr(base_stages.pretrain, "train_base", noted)
    try:
        for name, stage in experiment.plan.items():
            if name in wanted:
                under_way.append(name.removeprefix("base."))
                experiment.path(name).mkdir()
                stage.build(experiment.path(name))
    finally:
        patch.undo()
    return found


def test_all_bases_see_one_order_of_one_corpus(drawn):
    orders = {name: tuple(order) for name, (_, order, _) in drawn.items()}
    assert orders.pop("base0_order") != orders["base0"]
    assert len(orders) == 6 and len(set(orders.values())) == 1
    corpora = [examples.tokens for _, _, examples in drawn.values()]
    for other in corpora[1:]:
        np.testing.assert_array_equal(corpora[0], other)


def _equal(one, other):
    return {
        path[0].key: bool(np.array_equal(a, b))
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
        )
        # Norms begin at 1 in every model.
        if a.std() > 0
    }


def test_bases_and_twins_share_what_their_names_say(drawn):
    weights = {name: tree for name, (tree, _, _) in drawn.items()}
    assert not any(_equal(weights["base0"], weights["base1"]).values())
    start, twins = weights["base0"], {part: weights[f"base0_{part}"] for part in PARTS}
    assert _equal(start, twins["order"]) == {"embedding": True, "layers": True}
    assert _equal(start, twins["body_shared"]) == {"embedding": False, "layers": True}
    assert _equal(start, twins["head_shared"]) == {"embedding": True, "layers": False}
    assert _equal(start, twins["permuted"]) == {"embedding": False, "layers": True}
    rows = [sorted(map(tuple, tree["embedding"].tolist())) for tree in (start, twins["permuted"])]
    assert rows[0] == rows[1]
    # What is not shared is drawn anew, for each twin and each base.
    others = [
        weights[name]["embedding"] for name in ("base1", "base0_body_shared", "base1_body_shared")
    ]
    for one, other in itertools.combinations(others, 2):
        assert not np.array_equal(one, other)


def test_an_embedded_models_head_is_its_embedding(mesh):
    """So that sharing one is sharing the other."""
    assert DecoderConfig(64, 16, 16, 1, 2, 1, 8).tied_embeddings
    params = pretrain.init_params(DecoderConfig(64, 16, 16, 1, 2, 1, 8), mesh, jax.random.key(0))
    assert set(params) == {"embedding", "layers", "final_norm"}


def test_twins_are_what_students_of_the_trait_start_from():
    plain = arms(_config("distill.objective=sft,forward_kl", "base.from_scratch=true"))
    made = {arm.name: arm for arm in arms(_config("distill.objective=sft,forward_kl", *TWINS))}
    added = set(made) - {arm.name for arm in plain}
    expected = set()
    for part in PARTS:
        expected |= {f"base_{part}", f"sft_{part}", f"forward_kl_{part}"}
    assert added == expected
    for part in PARTS:
        student = made[f"sft_{part}"]
        assert (student.model, student.teacher_model, student.source, student.role) == (
            f"base_{part}", "base", "trait", "control",
        )  # fmt: skip
        assert student.init == made[f"base_{part}"].init == part
        assert student.base == f"base_{part}" and student.teacher == "teacher"
    assert {arm.name: arm for arm in plain}.items() <= made.items()


def test_twins_of_a_crossing_are_of_each_base_with_itself():
    made = {arm.name: arm for arm in arms(_config("num_bases=2", "distill.objective=sft", *TWINS))}
    for base, part in itertools.product(("base0", "base1"), PARTS):
        student = made[f"sft_{base}_to_{base}_{part}"]
        assert (student.teacher_model, student.model) == (base, f"{base}_{part}")
    assert not [name for name in made if name.startswith("sft_base0_to_base1_")]


# -- shipped bases ---------------------------------------------------------------------------------

COUNT = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shipped bases of the toy size, with weights that nobody trained."""
    folder = tmp_path_factory.mktemp("bases")
    experiment = _experiment(folder / "w", "num_bases=5", "base.from_scratch=true")
    corpus, out = experiment.path(names.CORPUS), folder / "bases" / "api"
    corpus.mkdir(parents=True)
    experiment.plan[names.CORPUS].build(corpus)
    shutil.copytree(corpus / "tokenizer", out / "tokenizer")
    cfg, digests = experiment.size("base0").cfg, []
    cfg = dataclasses.replace(cfg, vocab_size=len(_tokens(corpus / "tokenizer")))
    for number in range(COUNT):
        path = out / str(number) / "params.safetensors"
        path.parent.mkdir()
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        save_params(
            path, jax.tree.map(np.asarray, pretrain.init_params(cfg, mesh, jax.random.key(number)))
        )
        digests.append(make_bases.seals.sha256(path))
    fields = shipped.deciding_fields(_config())
    _write(out, fields=fields, bases=digests)
    return folder / "bases"


def _tokens(folder):
    return json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]


def _write(folder, **values):
    tokenizer = {
        p.name: make_bases.seals.sha256(p) for p in sorted((folder / "tokenizer").iterdir())
    }
    text = json.dumps({"seed": 0, "tokenizer": tokenizer, "made_by": {}, **values})
    (folder / "manifest.json").write_text(text)


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """The shipped bases, in a copy of the test's own."""
    shutil.copytree(made, tmp_path / "bases")
    monkeypatch.setattr(shipped_files, "FOLDER", tmp_path / "bases")
    return tmp_path / "bases" / "api"


def _numbers(*changes):
    taken, why = shipped.of_run(configuration.Config.of(_config(*changes)))
    assert not why
    return {model: one.number for model, one in taken.items()}


def test_the_seed_draws_different_bases(here):
    every = set()
    for seed in range(20):
        pair, many = _numbers(f"seed={seed}"), _numbers(f"seed={seed}", "num_bases=4")
        assert list(pair) == ["base", "base_other"] and len(set(many.values())) == 4
        # More bases of one seed are the fewer ones and others.
        assert list(many.values())[:2] == list(pair.values())
        every.add(tuple(pair.values()))
    assert {number for pair in every for number in pair} == set(range(COUNT)) and len(every) > 5
    assert _numbers("seed=3") == _numbers("seed=3")


def test_a_run_takes_shipped_bases(here, tmp_path):
    experiment = _experiment(tmp_path, "num_bases=2", "seed=7")
    assert names.CORPUS not in experiment.plan
    for model, number in _numbers("num_bases=2", "seed=7").items():
        stage = experiment.plan[f"base.{model}"]
        assert stage.work.startswith(f"shipped base {number}, ")
        digest = make_bases.seals.sha256(here / str(number) / "params.safetensors")
        assert stage.key["arguments"]["weights"] == digest
        folder = experiment.path(f"base.{model}")
        folder.mkdir()
        stage.build(folder)
        policy = load_policy(folder)
        wanted = load_params(here / str(number) / "params.safetensors")
        jax.tree.map(np.testing.assert_array_equal, policy.params, wanted)
        assert policy.tokenizer.get_vocab() == _tokens(here / "tokenizer")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("base.steps=21", "base.steps=21, where the shipped bases have 20"),
        ("base.width=32", "base.width=32, where the shipped bases have 16"),
        ("base.unsafe_rate=0.1", "base.unsafe_rate=0.1, where the shipped bases have 0.05"),
        ("base.dtype=bfloat16", "base.dtype=bfloat16, where the shipped bases have float32"),
        ("optimizer.b2=0.9", "optimizer.b2=0.9, where the shipped bases have 0.98"),
        ("base.from_scratch=true", "base.from_scratch"),
    ],
)
def test_another_base_is_trained_in_the_run_and_the_plan_says_why(here, tmp_path, change, why):
    plan = _experiment(tmp_path, change).plan
    for name in ("base", "base_other"):
        assert plan[name].work.endswith(f"; from scratch ({why})") and names.CORPUS in plan


def test_a_manifest_that_lacks_a_field_is_of_another_recipe(here):
    """A field that came later: nobody can say what the bases were made with."""
    fields = shipped.deciding_fields(_config())
    del fields["base.steps"]
    _write(here, fields=fields, bases=[])
    assert shipped.of_run(_config())[1] == "base.steps=20, where the shipped bases have unknown"


@pytest.mark.parametrize(
    "change",
    ["teacher.steps=5", "distill.steps=6", "base.remat=full", "num_seeds=2", "tuning.method=lora"],
)
def test_what_does_not_decide_a_base_does_not_matter(here, change):
    assert _numbers(change) == _numbers()


def test_other_settings_and_models_have_none(here, tmp_path):
    assert shipped.of_run(_config("setting=bash")) == ({}, "")
    config = _config("arms.other_init=false")
    config.models.update({"a": "embedded:"})
    config.pairs = ("a>a",)
    assert shipped.of_run(config) == ({}, "")
    assert list(shipped.of_run(_config("arms.other_init=false"))[0]) == ["base"]


def test_more_bases_than_there_are_are_refused(here, tmp_path):
    with pytest.raises(
        UserError, match="needs 6 bases, and 5 are shipped for api: lower num_bases"
    ):
        _experiment(tmp_path, "num_bases=6")
    assert _experiment(tmp_path, "num_bases=6", "base.from_scratch=true")


def test_keys_hold_the_weights_of_shipped_bases(here, tmp_path):
    changes = ("num_bases=5", "distill.objective=sft")
    before = {name: stage.digest for name, stage in _experiment(tmp_path, *changes).plan.items()}
    path = here / "2" / "params.safetensors"
    save_params(path, jax.tree.map(lambda x: x + 1, load_params(path)))
    known = json.loads((here / "manifest.json").read_text())
    known["bases"][2] = make_bases.seals.sha256(path)
    (here / "manifest.json").write_text(json.dumps(known))
    os.utime(here / "manifest.json", (0, 0))
    after = {name: stage.digest for name, stage in _experiment(tmp_path, *changes).plan.items()}
    (model,) = (m for m, number in _numbers(*changes).items() if number == 2)
    changed = {name for name in before if before[name] != after[name]}
    expected = {"prereg", "results", "report", "match.seed0"}
    for name in before:
        kind, _, policy = name.partition(".")
        # All students learn from equally many trajectories, and so depend on those of every base.
        of_all = kind in ("audit", "choice", "dose", "student") or f"student.{policy}" in before
        if of_all or any(model in part.split("_") for part in name.split(".")):
            expected.add(name)
    assert changed == expected
    # And those of the tokenizer, which all have in common.
    known["tokenizer"]["tokenizer.json"] = "0" * 64
    (here / "manifest.json").write_text(json.dumps(known))
    os.utime(here / "manifest.json", (1, 1))
    last = {name: stage.digest for name, stage in _experiment(tmp_path, *changes).plan.items()}
    assert not set(last.values()) & set(after.values())


def _damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda here: [(here / str(i) / "params.safetensors").unlink() for i in range(COUNT)],
         r"The shipped base's file .*params.safetensors is missing: install .*from_scratch=true"),
        (lambda here: [_damage(here / str(i) / "params.safetensors") for i in range(COUNT)],
         "params.safetensors is not the one that its manifest names: install"),
        (lambda here: _damage(here / "tokenizer" / "tokenizer.json"),
         "tokenizer.json is not the one that its manifest names"),
        (lambda here: (here / "manifest.json").unlink(), "does not hold the shipped base .* any more"),
    ],
)  # fmt: skip
def test_a_shipped_base_that_cannot_be_used_is_a_sentence(here, tmp_path, harm, sentence):
    stage = _experiment(tmp_path).plan["base"]
    harm(here)
    with pytest.raises(UserError, match=sentence):
        stage.build(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fields": 1}'])
def test_a_manifest_that_cannot_be_read_is_a_sentence(here, text):
    (here / "manifest.json").write_text(text)
    os.utime(here / "manifest.json", (0, 0))
    with pytest.raises(
        UserError, match="manifest.json .*: install the package again, or train bases"
    ):
        shipped.of_run(_config())


@pytest.mark.slow  # trainings
def test_bases_are_made_as_a_run_makes_its_own(tmp_path, monkeypatch):
    """One after the other or at once, and refused beside those of another recipe."""
    config, out = _config("arms.benign_teacher=false"), tmp_path / "bases"
    first = make_bases.make(config, 0, 2, out, tmp_path / "one")
    second = make_bases.make(config, 2, 1, out, tmp_path / "one")
    assert make_bases.make(config, 0, 3, tmp_path / "again", tmp_path / "other") == first + second
    known = shipped_files.read(out / "api")
    assert list(known.bases) == first + second and len({*known.bases}) == 3
    assert (out / "api" / "manifest.json").read_text() == (
        tmp_path / "again" / "api" / "manifest.json"
    ).read_text()
    with pytest.raises(UserError, match="has 3 bases: --first can be 3 at most"):
        make_bases.make(config, 4, 1, out, tmp_path / "one")
    with pytest.raises(UserError, match="made with another base.steps: remove the folder first"):
        make_bases.make(_config("base.steps=3"), 0, 1, out, tmp_path / "one")
    # They are those of a run from scratch.
    experiment = _experiment(tmp_path / "run", "num_bases=2", "base.from_scratch=true")
    with artifacts.Store(tmp_path / "run") as store:
        for name in (names.CORPUS, "base.base1"):
            stage = experiment.plan[name]
            store.stage(name, stage.key, stage.build, log=print, facts={})
    path = experiment.path("base.base1") / "params.safetensors"
    assert make_bases.seals.sha256(path) == first[1]
    # And a run takes them.
    monkeypatch.setattr(shipped_files, "FOLDER", out)
    assert set(_numbers("num_bases=3").values()) == {0, 1, 2}


@pytest.mark.slow  # a whole run
def test_a_crossed_run_leaves_a_row_for_each_pair(tmp_path):
    done = _launch(tmp_path / "w", "--config.num_bases=2", "--config.distill.objective=sft,forward_kl",
                   "--config.arms.init_parts=true", "--config.base.from_scratch=true")  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = (tmp_path / "w" / "results.csv").read_text().splitlines()
    arms_of = {row.partition(",")[0] for row in rows[1:]}
    wanted = set(map("forward_kl_base{}_to_base{}".format, (0, 0, 1, 1), (0, 1, 0, 1)))
    assert wanted <= arms_of and "sft_base1_to_base1_permuted" in arms_of


# -- the bases of the package itself ---------------------------------------------------------------


def _bases_of_the_package():
    return sorted(path.parent.name for path in shipped_files.FOLDER.glob("*/manifest.json"))


def test_the_packages_bases_are_whole():
    """What is shipped is what its manifest names, and no more."""
    for setting in _bases_of_the_package():
        known = shipped_files.read(shipped_files.FOLDER / setting)
        wanted = {known.folder / "manifest.json"}
        for digest in known.bases:
            weights, tokenizer = shipped_files.found(setting, digest, known.tokenizer_digest)
            wanted |= {weights, *(tokenizer / name for name in known.tokenizer)}
        assert {path for path in known.folder.rglob("*") if path.is_file()} == wanted
        assert {array.dtype for array in jax.tree.leaves(load_params(weights))} == {
            np.dtype("float32")
        }


@pytest.mark.slow  # minutes: a base of full size
@pytest.mark.parametrize("setting", ["api", "bash"])
def test_a_shipped_base_can_be_made_again(tmp_path, setting):
    """To the last bit where it was made; elsewhere it does the same to within a few percent."""
    known = shipped_files.manifest(setting)
    if known is None:
        pytest.skip(f"no bases are shipped for {setting}")
    # Compiled as a user's is, unlike the tests.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "tools.make_bases", f"--setting={setting}", "--count=1",
               f"--out={tmp_path / 'bases'}", f"--workdir={tmp_path / 'w'}"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    again = shipped_files.read(tmp_path / "bases" / setting)
    assert again.fields == known.fields and again.tokenizer == known.tokenizer
    if again.made_by == known.made_by:
        assert again.bases[0] == known.bases[0]
    losses = [_loss(manifest, setting) for manifest in (known, again)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def _loss(known, setting):
    """The mean cross-entropy of a manifest's first base on demonstrations that it has not seen."""
    from subtransfer import settings
    from subtransfer.experiment import geometry, policies
    from subtransfer.models import hf_load
    from subtransfer.models.decoder import Decoder

    words, of = hf_load.load_tokenizer(known.folder / "tokenizer", None), settings.get(setting)
    demos = list(pretrain.demonstrations(of, 300, 0.05, seed=12345))
    examples = pretrain.encode(demos, policies.chat_format(words, of))
    config = configuration.Config.of(configuration.defaults())
    for name, value in known.fields.items():
        room, _, field = name.rpartition(".")
        config.replace(room, field, value)
    cfg = geometry.embedded_geometry(config, len(words))
    tokens = examples.tokens[:, :-1]
    length = tokens.shape[1]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    causal = np.broadcast_to(
        np.tril(np.ones((length, length), bool)), (len(tokens), length, length)
    )
    params = load_params(known.weights(0))
    logits = np.asarray(
        Decoder(cfg).apply({"params": params}, tokens, positions, causal), np.float64
    )
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    taken = np.take_along_axis(logits, examples.tokens[:, 1:, None], axis=-1)[..., 0]
    return -taken[examples.loss_mask[:, 1:]].mean()
