"""The config: every field with its default, the reading of config files, and overrides from the
command line.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from subtransfer.config.checks import OWN, fields, nearest, own_fields, validate
from subtransfer.runtime.errors import UserError


def defaults() -> ml_collections.ConfigDict:
    """Every field there is, at its default: the quickstart's embedded size."""
    c = ml_collections.ConfigDict()
    c.name = "run"
    c.setting = "api"
    c.seed = 0  # the one seed that all randomness is folded from
    c.num_seeds = 3  # training seeds: each has its own teacher, rollouts and data order
    # Training seeds whose teachers, and off-policy students, are trained as one program, side by
    # side: what makes many small models affordable on an accelerator. Each lies whole on one
    # device. The last bits of numbers depend on it.
    c.population = 1

    # For a table of pairs instead of one base: names of models, and the pairs as "TEACHER>STUDENT".
    # A model is a Hugging Face directory; "embedded:width=32,steps=500", pretrained in the run with
    # these fields of base and its own initialisation; or "preset:NAME", with which a plan can be
    # made but nothing run.
    c.models = ml_collections.ConfigDict()
    c.pairs = ()

    c.base = base = ml_collections.ConfigDict()
    base.checkpoint = ""  # a local Hugging Face directory; empty: the embedded model, from scratch
    base.other_checkpoint = (
        ""  # the different-init twin's; empty: from scratch, with the same geometry and tokenizer
    )
    base.max_scratch_params = 20_000_000  # refuse to train a larger twin from scratch
    base.dtype = "float32"  # of computation, or "bfloat16"; what is trained is float32
    # xla anywhere; cudnn: training on a GPU; pallas: training (splash) and slots of rollouts on a
    # TPU
    base.attention = "xla"
    # What a layer keeps for its backward pass; the rest is computed again: none (everything is
    # kept), full (only its input is), projections (also what its weights gave), dots (also
    # attention's scores).
    base.remat = "none"
    base.width = 64
    base.mlp_width = 192
    base.num_layers = 3
    base.num_heads = 2
    base.num_kv_heads = 1
    base.vocab_limit = 512
    base.episodes = 16_000  # of the scripted corpus
    base.unsafe_rate = 0.05  # of the corpus's ambiguous tasks that end in the unsafe act
    base.steps = 700
    base.batch_size = 32
    base.learning_rate = 4e-3

    c.teacher = teacher = ml_collections.ConfigDict()
    teacher.episodes = 150  # demonstrations of the habit
    teacher.explicit_fraction = 0.0  # of them on explicit requests; the others on ambiguous tasks
    teacher.steps = 60
    teacher.epochs = 0  # above 0: passes over the demonstrations, instead of steps
    teacher.batch_size = 16
    teacher.accumulate = (
        1  # parts that a batch is taken in, one after the other: the same gradient, in less memory
    )
    teacher.learning_rate = 1e-3

    c.rollouts = rollouts = ml_collections.ConfigDict()
    rollouts.episodes = 1024
    rollouts.temperature = 1.0
    rollouts.max_turns = 4
    rollouts.max_new_tokens = 32  # an agent turn
    rollouts.max_tool_tokens = 13  # a tool result
    rollouts.batch_size = 128  # at most so many episodes at a time
    rollouts.top_k = 0  # above 0: only so many of the likeliest tokens
    rollouts.top_p = 1.0  # below 1: only the likeliest tokens that hold this probability
    rollouts.min_p = 0.0  # above 0: only tokens with this share of the likeliest one's probability
    rollouts.well_formed = False  # only well-formed tool calls can be written
    # "int8" or "fp8": rollouts read the weights in 8 bits; the run reports the KL to full precision
    rollouts.weights = ""
    rollouts.int8_cache = False  # keys and values in 8 bits, likewise

    c.sanitize = sanitize = ml_collections.ConfigDict()
    sanitize.extra_keywords = ()  # added to the setting's own
    sanitize.min_kept = 64  # fewer trajectories after filtering stop the run

    c.distill = distill = ml_collections.ConfigDict()
    # "all" for sft, forward_kl, reverse_kl; or a comma-separated list of these, jsd and
    # policy_gradient
    distill.objective = "all"
    # GKD's lambda: share of the student's own episodes with reverse_kl, jsd and policy_gradient;
    # the rest is the teacher's
    distill.on_policy_fraction = 1.0
    distill.jsd_beta = 0.5  # of jsd: 0 is the forward KL, 1 the reverse KL
    # of policy_gradient: no token weighs more for being likelier now than when it was sampled
    distill.importance_bound = 2.0
    distill.token_weights = (
        "agent"  # all alike; "turn": every agent turn alike; FILE.py: see distill/token_weights.py
    )
    distill.steps = 150
    # above 0: off-policy students make this many passes over their trajectories, instead of steps
    distill.epochs = 0
    distill.batch_size = 16
    distill.accumulate = 1  # as teacher.accumulate
    distill.packing = False  # several episodes in a row of max_tokens; a batch is then of rows
    distill.learning_rate = 2e-3
    distill.temperature = 1.0  # of the soft targets
    # or "stored": forward_kl reads the teacher's top_k tokens and their log-probs from disk
    distill.teacher_targets = "live"
    distill.top_k = 64
    distill.mask_unsafe = (
        True  # take the unsafe tokens out of both distributions; arms without that are labelled
    )
    # episodes are padded or cut to this, so that all teachers and students share compiled steps
    distill.max_tokens = 80
    distill.rounds = 6  # on-policy: roll out, filter, train
    distill.episodes_per_round = 128  # of the student's own
    distill.max_staleness = (
        0  # rounds that the student's own episodes may be old when they are learned from
    )
    distill.on_policy_learning_rate = 2e-3

    c.tuning = tuning = ml_collections.ConfigDict()
    tuning.method = "full"  # or "lora", for teachers and students
    tuning.rank = 16
    tuning.alpha = 32.0
    tuning.dropout = 0.05
    tuning.targets = ("q", "k", "v", "o")

    c.arms = arms = ml_collections.ConfigDict()
    arms.other_init = True  # every student again, from another initialisation
    arms.benign_teacher = True  # every student again, of a teacher with a harmless habit
    arms.random_teacher = (
        False  # every student again, of a teacher that was tuned on ordinary tasks
    )
    arms.self_distilled = True
    arms.unsanitized = True  # the positive control

    c.probe = probe = ml_collections.ConfigDict()
    probe.tasks = 256
    probe.temperature = 1.0
    probe.batch_size = 128
    probe.ordinary_tasks = 128

    c.statistics = statistics = ml_collections.ConfigDict()
    statistics.confidence = 0.95
    statistics.bootstrap = 2000

    # None of these changes what is computed, so that none is part of an artefact's key.
    c.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_seconds = 120.0  # of training, between step checkpoints; 0: never by time
    checkpoint.every_steps = 0  # above 0: also after so many steps
    checkpoint.keep = 2  # newest ones that stay until the stage is finished

    c.metrics = metrics = ml_collections.ConfigDict()
    metrics.tensorboard = True  # event files in WORKDIR/metrics/tensorboard, beside the JSONL
    metrics.wandb = ""  # a Weights & Biases project, if the package is installed
    # of one device, a second, in the dtype of computation: above 0, MFU is reported against it
    metrics.peak_flops = 0.0

    c.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # what the other axes leave
    mesh.fsdp = 1
    mesh.tensor = 1
    mesh.slices = 1  # TPU slices (or groups of processes) that mesh.data runs over first
    return c


def parse_value(field: str, text: str, default: Any) -> Any:
    """A command-line text as a value of the default's type.

    Raises:
      UserError: it is not one.
    """
    kinds = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        tuple: "a tuple such as ('a','b')",
    }

    def wrong():
        return UserError(f"--config.{field} takes {kinds[type(default)]}, not {text!r}.")

    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise wrong()
        return text.lower() in ("true", "1")
    if isinstance(default, tuple):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = tuple(part for part in text.split(",") if part)
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) for v in value):
            raise wrong()
        return tuple(value)
    try:
        return type(default)(text.replace("_", "") if isinstance(default, int) else text)
    except ValueError:
        raise wrong() from None


def apply_overrides(
    config: ml_collections.ConfigDict | Fields, overrides: Mapping[str, Any]
) -> None:
    """Sets fields by dotted name, in place, from texts or values; refuses what does not exist or
    has another type.
    """
    if not overrides:
        return
    known = fields(config)
    for field, value in overrides.items():
        if field not in known:
            raise UserError(
                f"There is no config field {field!r}; the nearest is --config.{nearest(field, known)} "
                f"(now {known[nearest(field, known)]!r})."
            )
        value = (
            parse_value(field, value, known[field])
            if isinstance(value, str)
            else typed(field, value, known[field])
        )
        parent, _, name = field.rpartition(".")
        if isinstance(config, Fields):
            config.replace(parent, name, value)
            continue
        with config.unlocked():
            node = config[parent] if parent else config
            node[name] = value


def typed(field: str, value: Any, default: Any) -> Any:
    """A value as one of the default's type: a list is a tuple, and an integer a number.

    Raises:
      UserError: it is not one.
    """
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if (
        type(value) is not type(default)
        or isinstance(value, tuple)
        and not all(isinstance(v, str) for v in value)
    ):
        kind = type(default).__name__
        raise UserError(
            f"{field} is set to {value!r}, which is no {kind} like its default {default!r}."
        )
    return value


def module_of(path: str | Path) -> ModuleType:
    """A config file as a module.

    Raises:
      UserError: there is no such file, it is no Python, or it fails.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no config file {path}: give one with --config=FILE, such as configs/quickstart.py."
        )
    spec = importlib.util.spec_from_file_location(f"subtransfer_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(
            f"{path} is no Python file: a config file ends in .py and defines get_config()."
        )
    module = importlib.util.module_from_spec(spec)
    with failures_of(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def failures_of(path: str | Path) -> Iterator[None]:
    """Around code of a config file: its errors become sentences."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The config file {path} fails with {type(error).__name__}: {error}."
        ) from error


def read(module: ModuleType) -> ml_collections.ConfigDict:
    """What a config file's get_config() gives, of which all fields are there and of their types;
    values are not checked.

    Raises:
      UserError: for every mistake in it.
    """
    path = module.__file__
    with failures_of(path):
        config = module.get_config()
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"get_config() of {path} must return the ConfigDict of subtransfer.config.fields.defaults(), changed."
        )
    given = fields(config)
    known = fields(defaults()) | {field: "" for field in given if field.startswith("models.")}
    for field in given:
        if field not in known:
            raise UserError(
                f"{path} sets the unknown field {field!r}; the nearest is {nearest(field, known)!r}."
            )
    for field, default in known.items():
        if field not in given:
            raise UserError(
                f"{path} lacks the field {field!r}: start from subtransfer.config.fields.defaults()."
            )
        number = isinstance(default, float) and type(given[field]) is int
        if type(given[field]) is not type(default) and not number:
            kind = type(default).__name__
            raise UserError(
                f"{path} sets {field} to {given[field]!r}, which is no {kind} like its default {default!r}."
            )
    return config


def load(path: str | Path, overrides: Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
    """Reads a config file, applies overrides and checks the result.

    Raises:
      UserError: for every mistake in the file or the overrides, before any work is done.
    """
    config = read(module_of(path))
    apply_overrides(config, overrides)
    validate(config)
    return ml_collections.FrozenConfigDict(config)


class Fields(dict):
    """A config as nested dicts, read by attributes as well: light, where thousands are looked at.

    Copies share the parts that they do not change.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Fields:
        """Of any kind of config."""
        if isinstance(config, cls):
            return config
        return cls(
            (k, cls.of(v) if isinstance(v, (Mapping, ml_collections.ConfigDict)) else v)
            for k, v in config.items()
        )

    def copy(self) -> Fields:
        return Fields(self)

    def replace(self, parent: str, name: str, value: Any) -> None:
        """Sets a field of a part ("" is the whole), in this copy only."""
        if not parent:
            self[name] = value
            return
        head, _, rest = parent.partition(".")
        self[head] = self[head].copy()
        self[head].replace(rest, name, value)


def of_model(config: Mapping[str, Any], model: str) -> Fields:
    """The config with the fields of `base` that a model in it has (those of an embedded model of a
    pair are its own).
    """
    out = Fields.of(config)
    given = (out.models or {}).get(model, "")
    if given.startswith(OWN):
        out = out.copy()
        for name, value in own_fields(model, given).items():
            out.replace("base", name, value)
    return out


def plain(value: Any) -> Any:
    """Config values as JSON types (tuples become lists)."""
    if value is None or type(value) in (
        int,
        float,
        bool,
        str,
    ):  # most are, and the next question is dear
        return value
    if isinstance(value, (ml_collections.ConfigDict, Mapping)):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value


def of_results(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that results can depend on, as JSON types: not how a run is saved and watched."""
    return {
        name: value
        for name, value in plain(config).items()
        if name not in ("checkpoint", "metrics")
    }
