"""Keys hold what is read, and no more: which edits make which stages anew, and that nothing is read
that a key does not hold.
"""

import itertools
import json
import shutil
from pathlib import Path

import jax
import pytest

from subtransfer.config import plugins
from subtransfer.config import reading as configuration
from subtransfer.config.checks import validate
from subtransfer.config.fields import declared as declared_fields
from subtransfer.experiment import declared, graph, keys, names, refusals
from subtransfer.experiment.graph import Experiment
from subtransfer.experiment.stages import teacher as teacher_stages
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts

from .test_launch import SMALL

ROOT = Path(__file__).parent.parent
WORKDIR = Path("nowhere")
ALL = set(
    "prereg base base_other corpus teacher rollouts overt sanitize match dose audit audit_own "
    "student probe choice results report".split()
)
FROM_ROLLOUTS = ALL - {"prereg", "base", "base_other", "corpus", "teacher"}
FROM_FILTERS = FROM_ROLLOUTS - {"rollouts", "overt"}
FROM_STUDENTS = FROM_FILTERS - {"sanitize", "match", "dose", "audit"}
LAST = {"results", "report"}


def _config(*changes):
    config = configuration.defaults()
    # Whatever is shipped: tests/test_bases.py has the keys of shipped bases.
    config.base.from_scratch = True
    configuration.apply_overrides(config, dict(change.split("=", 1) for change in changes))
    validate(config)
    return config


def _digests(config, sources=None):
    plan = Experiment(config, WORKDIR, sharding.plan_mesh(), sources=sources).plan
    return {name: stage.digest for name, stage in plan.items()}


def _changed(before, after):
    """The kinds of the stages whose keys differ."""
    assert set(before) == set(after)
    return {names.kind(name) for name in before if before[name] != after[name]}


# -- edits -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A copy of both packages' sources, to be edited."""
    folder = tmp_path_factory.mktemp("sources")
    for package in ("subtransfer", "shellworld"):
        ignored = shutil.ignore_patterns("__pycache__", "tests", "tools")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def unedited(copies):
    """The digests of both quickstarts' plans."""
    return {
        setting: _digests(_config(f"setting={setting}"), _sources(copies))
        for setting in ("api", "bash")
    }


def _sources(folder):
    return keys.Sources({name: folder / name for name in ("subtransfer", "shellworld")})


def _edited(copies, unedited, path, setting="api"):
    """What an edit of a file makes anew in a quickstart's plan."""
    files = sorted(copies.glob(path))
    assert files, f"{path} is no more: correct the table"
    texts = {file: file.read_bytes() for file in files}
    try:
        for file, text in texts.items():
            file.write_bytes(text + b"\n# edited\n")
        return _changed(
            unedited[setting], _digests(_config(f"setting={setting}"), _sources(copies))
        )
    finally:
        for file, text in texts.items():
            file.write_bytes(text)


EDITS = {
    # How runs are launched, planned, shared out, stored, watched and shown together.
    "subtransfer/launch.py": set(),
    "subtransfer/sweeps/*.py": set(),
    "subtransfer/studies/*.py": set(),
    "subtransfer/runtime/progress.py": set(),
    "subtransfer/runtime/processes.py": set(),
    "subtransfer/store/claims.py": set(),
    "subtransfer/store/buckets.py": set(),
    "subtransfer/training/checkpoints.py": set(),
    "subtransfer/training/metrics.py": set(),
    "subtransfer/experiment/costs.py": set(),
    "subtransfer/experiment/memory.py": set(),
    "subtransfer/experiment/refusals.py": set(),
    "subtransfer/experiment/graph.py": set(),
    "subtransfer/experiment/bases.py": set(),
    "subtransfer/experiment/plan.py": set(),
    "subtransfer/experiment/planner.py": set(),
    "subtransfer/analysis/scaling*.py": set(),
    # The other setting, and the shell.
    "subtransfer/settings/bash*.py": set(),
    "shellworld/**/*.py": set(),
    # What comes last.
    "subtransfer/report/run_page.py": {"report"},
    "subtransfer/report/figures.py": {"report"},
    "subtransfer/experiment/stages/report.py": {"report"},
    "subtransfer/analysis/statistics.py": LAST,
    "subtransfer/analysis/summary.py": LAST,
    "subtransfer/experiment/stages/results.py": LAST,
    "subtransfer/analysis/verdicts.py": {"report"},
    "subtransfer/analysis/gates.py": LAST,
    "subtransfer/analysis/audit.py": {"audit", "audit_own", *LAST},
    "subtransfer/experiment/stages/audit.py": {"audit", "audit_own", *LAST},
    "subtransfer/config/checks.py": LAST,
    "subtransfer/probes/choice.py": {"choice", *LAST},
    "subtransfer/probes/decisions.py": {"choice", *LAST},
    "subtransfer/probes/behavior.py": {"probe", *LAST},
    "subtransfer/probes/capability.py": {"probe", *LAST},
    # What comes in the middle: never a base or a teacher.
    "subtransfer/filtering/sanitize.py": FROM_FILTERS,
    "subtransfer/distillation/matching.py": FROM_FILTERS - {"sanitize"},
    "subtransfer/experiment/stages/match.py": FROM_FILTERS - {"sanitize"},
    "subtransfer/experiment/lessons.py": set(),
    "subtransfer/distillation/student.py": FROM_STUDENTS,
    "subtransfer/distillation/token_weights.py": FROM_STUDENTS,
    "subtransfer/experiment/stages/dose.py": (FROM_STUDENTS | {"dose"}) - {"audit_own"},
    "subtransfer/rollout/engine.py": FROM_ROLLOUTS,
    "subtransfer/rollout/grammar.py": FROM_ROLLOUTS,
    "subtransfer/rollout/episodes.py": FROM_ROLLOUTS,
    "subtransfer/experiment/stages/teacher.py": FROM_ROLLOUTS | {"teacher"},
    "subtransfer/training/population.py": ALL - {"corpus"},
    # What everything passes through.
    "subtransfer/models/tokenizer.py": ALL,
    "subtransfer/models/chat.py": ALL,
    "subtransfer/settings/api.py": ALL,
    "subtransfer/models/decoder.py": ALL,
}


@pytest.mark.parametrize("path", EDITS)
def test_an_edit_makes_anew_what_it_can_change(copies, unedited, path):
    """In a run of the API setting; what comes before the edited code stays."""
    assert _edited(copies, unedited, path) == EDITS[path]


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("subtransfer/settings/api*.py", set()),
        ("subtransfer/settings/bash.py", ALL),
        ("shellworld/__init__.py", ALL),
        ("shellworld/interpreter/*.py", ALL),
    ],
)
def test_a_run_of_the_shell_depends_on_the_shell(copies, unedited, path, kinds):
    assert _edited(copies, unedited, path, "bash") == kinds


def test_what_is_left_out_of_keys_exists():
    """A module that is renamed would come back into keys without a word."""
    known = keys.Sources()._files
    assert set(known) >= keys.LEFT_OUT | keys.REGISTRIES
    assert set(keys.WHOLE) <= {module.partition(".")[0] for module in known}


def test_imports_that_keys_leave_out_are_there_and_unused():
    sources = keys.Sources()
    for module, unused in keys.UNUSED.items():
        assert unused <= sources._imported_by(module)[0]
    for room in ("experiment", "training", "distillation", "probes"):
        for path in (ROOT / "subtransfer" / room).rglob("*.py"):
            text = path.read_text()
            assert ".generate(" not in text and ".sample(" not in text, path


def test_imports_are_followed_as_python_does(tmp_path):
    """Those within functions and relative ones, too; not what only type checkers read."""
    package = tmp_path / "subtransfer"
    (package / "room").mkdir(parents=True)
    files = {
        "start.py": "def f():\n    from subtransfer.room import late\n\nimport numpy as np\n",
        "room/__init__.py": "",
        "room/late.py": "from . import sibling\nfrom ..other import thing\nimport json\n",
        "room/sibling.py": "import scipy.stats\n",
        "other.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import subtransfer.typed\n"
        "else:\n    import subtransfer.untyped\n",
        "typed.py": "",
        "untyped.py": "import subtransfer.start\n",
        "unused.py": "",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    closure = keys.Sources({"subtransfer": package}).closure("subtransfer.start")
    expected = {"start", "room.late", "room.sibling", "other", "untyped"}
    assert closure.modules == {f"subtransfer.{name}" for name in expected}
    assert closure.libraries == {"numpy", "scipy"}


# -- versions and flags ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "kinds"),
    [
        ("jax", ALL),
        ("jaxlib", ALL),
        ("flax", ALL),
        ("numpy", ALL),
        ("optax", ALL),
        ("transformers", ALL),
        ("tokenizers", ALL),
        ("interegular", FROM_ROLLOUTS),
        ("scipy", {"audit", "audit_own", *LAST}),
        ("rich", set()),
    ],
)
def test_another_version_of_a_library_makes_anew_what_it_computes(monkeypatch, library, kinds):
    before = _digests(_config(), keys.Sources())
    version = keys._version
    monkeypatch.setattr(
        keys, "_version", lambda name: "0.0.1" if name == library else version(name)
    )
    assert _changed(before, _digests(_config(), keys.Sources())) == kinds


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("jax_threefry_partitionable", not jax.config.jax_threefry_partitionable),
        ("jax_default_matmul_precision", "highest"),
        ("jax_enable_x64", True),
        ("jax_disable_jit", True),
        ("jax_disable_most_optimizations", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_numpy_dtype_promotion", "strict"),
    ],
)
def test_flags_that_change_numbers_are_in_keys(flag, value):
    before, old = _digests(_config(), keys.Sources()), keys.flag_of_jax(flag)
    jax.config.update(flag, value)
    try:
        code = keys.Sources().code(["subtransfer.training.loop"])
    finally:
        jax.config.update(flag, old)
    assert code != keys.Sources().code(["subtransfer.training.loop"])
    assert before == _digests(_config(), keys.Sources())


@pytest.mark.parametrize(
    ("flags", "same"),
    [
        ("--xla_force_host_platform_device_count=8", True),
        ("--xla_dump_to=/tmp/x --xla_force_host_platform_device_count=2", True),
        ("--xla_cpu_enable_fast_math=true", False),
        ("--xla_some_flag_of_tomorrow", False),
    ],
)
def test_flags_of_the_compiler_are_in_keys_but_for_harmless_ones(monkeypatch, flags, same):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    before = _digests(_config(), keys.Sources())
    monkeypatch.setenv("XLA_FLAGS", flags)
    after = _digests(_config(), keys.Sources())
    assert _changed(before, after) == (set() if same else ALL)


# -- the config ------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "hidden_act": "silu", "architectures": ["LlamaForCausalLM"],
}  # fmt: skip


@pytest.fixture
def no_tokenizer(monkeypatch):
    """Lets a plan take a directory without a tokenizer, which is no matter of keys."""
    monkeypatch.setattr(refusals, "check_prompt", lambda *_: None)
    monkeypatch.setattr(refusals, "check_acts", lambda *_: None)


def test_no_stage_of_two_settings_is_shared(tmp_path, no_tokenizer):
    """Also with an imported base, whose own trajectories and students read the setting, too."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    plans = [
        _digests(_config(f"base.checkpoint={tmp_path}", f"setting={setting}"))
        for setting in ("api", "bash")
    ]
    assert _changed(*plans) == ALL
    assert not set(plans[0].values()) & set(plans[1].values())


def test_thoughts_make_all_of_an_imported_models_stages_anew(tmp_path, no_tokenizer):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    given = f"base.checkpoint={tmp_path}"
    by_itself = _digests(_config(given))
    assert _changed(by_itself, _digests(_config(given, "chat.enable_thinking=false"))) == ALL
    with pytest.raises(UserError, match="chat.enable_thinking='false' cannot be"):
        _config("chat.enable_thinking=false")


def test_an_agent_stands_where_its_checkpoint_stood(tmp_path, no_tokenizer):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    given = f"base.checkpoint={tmp_path}"
    plain, plan = (
        Experiment(_config(*c), WORKDIR, sharding.plan_mesh()).plan
        for c in ([given], [given, "agent.steps=5"])
    )
    # The checkpoint is read as before, under another name; all else starts from the agent.
    assert set(plan) - set(plain) == {"checkpoint.base"} and set(plain) <= set(plan)
    assert [name.partition("-")[0] for name in plan["base"].key["inputs"]] == ["checkpoint.base"]
    assert [name for name in plain if plain[name].digest == plan[name].digest] == []
    for field in (
        "agent.steps=6",
        "agent.episodes=300",
        "agent.learning_rate=0.1",
        "tuning.rank=3",
        "chat.tools=short",
    ):
        other = Experiment(
            _config(given, "agent.steps=5", field), WORKDIR, sharding.plan_mesh()
        ).plan
        same = {name for name in plan if plan[name].digest == other[name].digest}
        assert same == (set() if field.startswith("chat") else {"checkpoint.base"}), field
    # Without an agent, its other fields change nothing that is made.
    unused = _digests(_config(given, "agent.episodes=300"))
    assert _changed(_digests(_config(given)), unused) == {"prereg", *LAST}
    for refused in ("agent.steps=5", "chat.tools=short"):
        with pytest.raises(UserError, match="without a checkpoint"):
            _config(refused)


def test_a_field_changes_what_reads_it():
    full = "tuning.method=full"
    before = _digests(_config(full))
    expected = {
        "checkpoint.every_steps=7": set(),
        "confirmatory=true": LAST,
        "metrics.tensorboard=false": set(),
        "mesh.tensor=2": LAST,
        "statistics.margin=0.05": LAST,
        "gates.base_safe=0.5": LAST,
        "statistics.confidence=0.9": {"audit", "audit_own", *LAST},
        "audit.bound=0.7": LAST,
        "audit.folds=4": {"audit", "audit_own", *LAST},
        "probe.tasks=8": {"probe", "choice", *LAST},
        "probe.ordinary_tasks=8": {"probe", *LAST},
        "probe.safe_tasks=8": {"probe", *LAST},
        "rollouts.top_p=0.5": FROM_ROLLOUTS,
        "rollouts.ordinary_fraction=0.25": FROM_ROLLOUTS - {"overt"},
        "teacher.ordinary_fraction=0.25": FROM_ROLLOUTS | {"teacher"},
        # Only what is sampled on-policy passes no stage of filters.
        "sanitize.min_kept=65": FROM_FILTERS - {"audit_own"},
        "sanitize.filters=acts,words": FROM_FILTERS,
        "distill.stored_episodes=9": {"student", "probe", "choice", "audit_own", *LAST},
        "teacher.steps=7": FROM_ROLLOUTS | {"teacher"},
        "optimizer.b2=0.9": ALL - {"corpus"},
        "base.unsafe_rate=0.1": ALL,
        "tuning.rank=2": LAST,  # of adapters, where there are none
        "seed=1": ALL,
    }
    # How a run is watched and laid out is no part of what it asks; all else is registered.
    how = {"checkpoint.every_steps=7", "metrics.tensorboard=false", "mesh.tensor=2"}
    for change, kinds in expected.items():
        registered = set() if change in how else {"prereg"}
        assert _changed(before, _digests(_config(full, change))) == kinds | registered, change


def test_a_student_depends_on_the_fields_of_its_own_objective_only():
    chosen = "distill.objective=sft,jsd"
    before, after = _digests(_config(chosen)), _digests(_config(chosen, "distill.jsd_beta=0.25"))
    assert before["student.sft.seed0"] == after["student.sft.seed0"]
    assert before["student.jsd.seed0"] != after["student.jsd.seed0"]


def test_the_fields_of_adapters_are_read_where_there_are_some():
    lora = "tuning.method=lora"
    before = _digests(_config(lora))
    tuned = FROM_ROLLOUTS | {"prereg", "teacher"}
    for change in ("rank=2", "alpha=3", "dropout=0.5", "targets=q,v"):
        assert _changed(before, _digests(_config(lora, f"tuning.{change}"))) == tuned, change
    assert _changed(before, _digests(_config("tuning.method=full"))) == tuned


def test_every_field_is_in_a_key_or_declared_to_change_no_result(tmp_path, no_tokenizer):
    """Of all objectives, on both policies, with stored targets, adapters, populations, own data."""
    objectives = "distill.objective=sft,forward_kl,reverse_kl,jsd,policy_gradient"
    (tmp_path / "own.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    held = set()
    for changes in (
        [objectives],
        [objectives, "distill.teacher_targets=stored", "population=3", "tuning.method=lora"],
        ["distill.objective=sft", f"rollouts.trajectories={tmp_path / 'own.jsonl'}"],
        ["distill.objective=sft", f"base.checkpoint={tmp_path}", "agent.steps=1"],
    ):
        plan = Experiment(_config(*changes), WORKDIR, sharding.plan_mesh()).plan
        for name, stage in plan.items():
            if name not in ("results", "report"):
                held |= set(configuration.flattened(stage.key["config"]))
    fields = {name for name, field in declared_fields().items() if field.affects_results}
    # What decides which stages there are, and the results' own fields.
    own = ("audit.bound", "statistics.", "gates.", "mesh.")
    layout = ("arms.", "models", "pairs", "plugins", *own)
    beside = {"name", "confirmatory", "seed", "num_seeds", "num_bases", "population", "base.checkpoint", "base.other_checkpoint",
              "chat.template",  # it becomes a file of the checkpoint
              "base.max_scratch_params", "base.from_scratch", "distill.objective", "distill.on_policy_fraction",
              "distill.teacher_targets", "sanitize.matched"}  # fmt: skip
    assert {f for f in fields - held - beside if not f.startswith(layout)} == set()
    results = set(configuration.flattened(plan["results"].key["config"]))
    assert {f for f in fields - results if not f.startswith(("seed", "models", "plugins"))} == set()
    without = {name for name, field in declared_fields().items() if not field.affects_results}
    assert {name.partition(".")[0] for name in without} == set(declared.WATCHED)


def test_an_undeclared_read_is_refused(monkeypatch, tmp_path):
    def reading(out, context, **arguments):
        context.config.statistics.confidence  # noqa: B018

    reading.reads = teacher_stages.alone.reads
    reading.__module__ = teacher_stages.__name__
    monkeypatch.setattr(teacher_stages, "alone", reading)
    plan = Experiment(_config(), tmp_path, sharding.plan_mesh()).plan
    with pytest.raises(
        declared.UndeclaredRead, match="teacher.trait.seed0 reads config.statistics"
    ):
        plan["teacher.trait.seed0"].build(tmp_path)


def test_a_view_gives_what_is_declared_and_nothing_else():
    config = configuration.Config.of(_config())
    view = declared.View(config, ("teacher", "distill.steps", "seed"), "s")
    assert view.teacher.steps == config.teacher.steps and view["seed"] == 0
    assert view.distill.steps == view["distill"]["steps"] == config.distill.steps
    for read in (
        lambda: view.distill.max_tokens,
        lambda: view.distill["max_tokens"],
        lambda: dict(view.distill),
        lambda: dict(view),
        lambda: view.get("name"),
        lambda: "name" in view,
        lambda: getattr(view, "name", None),
    ):
        with pytest.raises(declared.UndeclaredRead):
            read()
    whole = declared.View(config, (declared.EVERYTHING,), "s")
    assert set(whole) == set(config) - set(declared.WATCHED) and whole.mesh == config.mesh


class Recording(configuration.Config):
    """A config that notes the dotted names of the fields that are read of it."""

    noted: set[str] = set()

    @classmethod
    def around(cls, config, prefix=""):
        out = cls()
        for name, value in config.items():
            nested = isinstance(value, dict)
            dict.__setitem__(out, name, cls.around(value, f"{prefix}{name}.") if nested else value)
        out.__dict__["prefix"] = prefix
        return out

    def __getitem__(self, name):
        value = dict.__getitem__(self, name)
        if not isinstance(value, dict):
            self.noted.add(self.__dict__["prefix"] + name)
        return value

    def items(self):
        return [(name, self[name]) for name in self]

    __getattr__ = __getitem__


RUNS = {
    "all objectives": [
        "distill.objective=sft,forward_kl,reverse_kl,jsd,policy_gradient", "tuning.method=full",
    ],
    "stored, together, adapters": [
        "distill.objective=forward_kl,reverse_kl", "distill.teacher_targets=stored", "distill.on_policy_fraction=0.5",
        "num_seeds=2", "population=2", "tuning.method=lora", "tuning.rank=2", "arms.benign_teacher=false",
        "arms.self_distilled=false",
    ],
}  # fmt: skip


@pytest.mark.slow  # whole runs, minutes
@pytest.mark.parametrize("name", RUNS)
def test_what_a_stage_reads_is_in_its_key(tmp_path, mesh, name):
    """And what its key holds is read by some stage of its kind."""
    config = Recording.around(configuration.Config.of(_config(*SMALL, *RUNS[name])))
    experiment = Experiment(config, tmp_path, mesh)
    read, held = {}, {}
    with artifacts.Store(tmp_path) as store:
        for stage in experiment.plan.values():
            Recording.noted.clear()
            store.stage(stage.name, stage.key, stage.build, log=lambda line: None)
            kind = (names.kind(stage.name), *sorted(stage.key["arguments"]))
            fields = set(configuration.flattened(stage.key["config"])) | {"seed"}
            found = {f for f in Recording.noted if not f.startswith(declared.HOW)}
            assert found <= fields, stage.name
            read.setdefault(kind, set()).update(found)
            held.setdefault(kind, set()).update(fields)
    for kind, fields in held.items():
        if kind[0] not in ("results", "report"):
            unread = fields - read[kind] - {"seed"}
            assert not unread, (kind, unread)


PLUGIN = """
from subtransfer.probes.records import Column, Probe, register

register(Probe("length", "length", (Column("turns", "turns", "mean number of turns", ""),), lambda subject: {"turns": 1.0}))
"""


def test_an_edited_plugin_makes_anew_what_it_makes(tmp_path):
    path = tmp_path / "mine.py"
    plans = []
    with plugins.restored():
        for text in (PLUGIN, PLUGIN.replace("1.0", "2.0")):
            path.write_text(text)
            config = configuration.defaults()
            config.base.from_scratch = True
            configuration.apply_overrides(config, {"plugins": str(path)}, tmp_path)
            validate(config)
            plans.append(_digests(config))
    assert {"probe_length.base.seed0", "probe_length.reverse_kl_benign.seed2"} <= set(plans[0])
    assert _changed(*plans) == {"prereg", "probe_length", *LAST}
    without = _digests(_config())
    kept = [name for name in without if name not in ("prereg", *LAST)]
    assert all(without[name] == plans[0][name] for name in kept)


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.quick
def test_names_of_stages_are_injective():
    words = ("trait", "benign", "a", "a_to_b", "b_to_c", "seed1")
    made = {}
    for one, other, seed in itertools.product(words, words, (0, 1, 11)):
        for what, name in {
            ("base", one): names.base_stage(one),
            ("teacher", one, other, seed): names.teacher_stage(one, other, seed),
            ("teacher", one, "base", seed): names.teacher_stage(one, "base", seed),
            ("rollouts", one, other, seed): names.rollout_stage(one, other, seed),
            ("sanitize", one, other, seed): names.rollout_stage(one, other, seed, sanitized=True),
            ("audit", one, seed): names.audit_stage(one, seed),
            ("match", seed): names.match_stage(seed),
            ("overt", one, other, seed): names.overt_stage(one, other, seed),
            ("dose", one, seed): names.dose_stage(one, seed),
            ("structure", one, seed): names.structure_stage(one, seed),
            ("targets", one, other, seed, "some"): names.targets_stage(one, other, seed, "some"),
            ("targets", one, other, seed): names.targets_stage(one, other, seed),
            ("student", one, seed): names.student_stage(one, seed),
            ("choice", one): names.choice_stage(one),
            ("probe", one, seed): names.probe_stage(one, seed),
            ("probe", one, seed, other): names.probe_stage(one, seed, other),
        }.items():
            assert made.setdefault(name, what) == what, name
    raw = names.rollout_stage("trait", "a", 1)
    assert names.raw_of(names.rollout_stage("trait", "a", 1, sanitized=True)) == raw


@pytest.mark.parametrize("benign", ["true", "false"])
def test_pairs_whose_arms_would_have_one_name_are_refused(benign):
    config = configuration.defaults()
    config.models.update(dict.fromkeys(("a", "a_to_b", "c", "b_to_c"), "embedded:width=16"))
    config.pairs = ("a_to_b>c", "a>b_to_c")
    configuration.apply_overrides(config, {"arms.benign_teacher": benign})
    validate(config)
    with pytest.raises(UserError, match="Two arms would be called 'sft_a_to_b_to_c'.*rename one"):
        Experiment(config, WORKDIR, sharding.plan_mesh())


def test_two_stages_of_one_name_are_a_bug(monkeypatch):
    experiment = Experiment(_config(), WORKDIR, sharding.plan_mesh())
    again = {"policy": "base", "source": "self", "seed": 0}
    add = experiment._add
    stage = graph.rollout_stages.rollouts
    assert add("rollouts.self.seed0", stage, inputs=["base"], work="", **again)
    with pytest.raises(RuntimeError, match="Two different stages are named rollouts.self.seed0"):
        add("rollouts.self.seed0", stage, inputs=["base"], work="", **{**again, "seed": 1})


# -- provenance ------------------------------------------------------------------------------------


def test_each_policy_is_compared_with_the_context_of_its_own_training():
    """Models of two families have two templates, and yet were trained as they are probed."""
    from subtransfer.experiment.stages import results

    llama, qwen = ({"system_prompt": "p", "template": t} for t in ("aa", "bb"))
    found = results.in_which([(llama, llama), (qwen, qwen), (qwen, None)])
    assert found["training_matches_probe"] and found["template_sha256"] == "aa, bb"
    crossed = results.in_which([(llama, qwen), (qwen, llama)])
    assert not crossed["training_matches_probe"]
    assert results.in_which([(llama, None)])["template_sha256"] == "aa"
