"""The config: every field with its default, overrides from the command line, and the checks before any work is done."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from subtransfer import settings
from subtransfer.arms import EMBEDDED, ON_POLICY, chosen_objectives, split_pair
from subtransfer.distill.objectives import OBJECTIVES
from subtransfer.errors import UserError
from subtransfer.models import presets
from subtransfer.models.attention_kernels import BACKENDS
from subtransfer.models.decoder import REMAT
from subtransfer.models.quantise import FORMATS

PRESET = "preset:"  # what a model is given as, to be planned without its files
TUNABLE = ("q", "k", "v", "o", "gate", "up", "down")


def defaults() -> ml_collections.ConfigDict:
    """Every field there is, at its default: the quickstart's embedded size."""
    c = ml_collections.ConfigDict()
    c.name = "run"
    c.setting = "api"
    c.seed = 0  # the one seed that all randomness is folded from
    c.num_seeds = 3  # training seeds: each has its own teacher, rollouts and data order

    # For a table of pairs instead of one base: names of models with their Hugging Face directories (or "preset:NAME", with
    # which a plan can be made but nothing run), and the pairs as "TEACHER>STUDENT".
    c.models = ml_collections.ConfigDict()
    c.pairs = ()

    c.base = base = ml_collections.ConfigDict()
    base.checkpoint = ""  # a local Hugging Face directory; empty: the embedded model, from scratch
    base.other_checkpoint = ""  # the different-init twin's; empty: from scratch, with the same geometry and tokenizer
    base.max_scratch_params = 20_000_000  # refuse to train a larger twin from scratch
    base.dtype = "float32"  # of computation, or "bfloat16"; what is trained is float32
    base.attention = "xla"  # xla anywhere; cudnn: training on a GPU; pallas: training (splash) and slots of rollouts on a TPU
    # What a layer keeps for its backward pass; the rest is computed again: none (everything is kept), full (only its input is),
    # projections (also what its weights gave), dots (also attention's scores).
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
    teacher.accumulate = 1  # parts that a batch is taken in, one after the other: the same gradient, in less memory
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
    rollouts.weights = ""  # "int8" or "fp8": rollouts read the weights in 8 bits; the run reports the KL to full precision
    rollouts.int8_cache = False  # keys and values in 8 bits, likewise

    c.sanitize = sanitize = ml_collections.ConfigDict()
    sanitize.extra_keywords = ()  # added to the setting's own
    sanitize.min_kept = 64  # fewer trajectories after filtering stop the run

    c.distill = distill = ml_collections.ConfigDict()
    # "all" for sft, forward_kl, reverse_kl; or a comma-separated list of these, jsd and policy_gradient
    distill.objective = "all"
    # GKD's lambda: share of the student's own episodes with reverse_kl, jsd and policy_gradient; the rest is the teacher's
    distill.on_policy_fraction = 1.0
    distill.jsd_beta = 0.5  # of jsd: 0 is the forward KL, 1 the reverse KL
    distill.importance_bound = 2.0  # of policy_gradient: no token weighs more for being likelier now than when it was sampled
    distill.token_weights = "agent"  # every agent token alike, or "turn": every agent turn alike
    distill.steps = 150
    distill.epochs = 0  # above 0: off-policy students make this many passes over their trajectories, instead of steps
    distill.batch_size = 16
    distill.accumulate = 1  # as teacher.accumulate
    distill.packing = False  # several episodes in a row of max_tokens; a batch is then of rows
    distill.learning_rate = 2e-3
    distill.temperature = 1.0  # of the soft targets
    distill.teacher_targets = "live"  # or "stored": forward_kl reads the teacher's top_k tokens and their log-probs from disk
    distill.top_k = 64
    distill.mask_unsafe = True  # take the unsafe tokens out of both distributions; arms without that are labelled
    distill.max_tokens = 80  # episodes are padded or cut to this, so that all teachers and students share compiled steps
    distill.rounds = 6  # on-policy: roll out, filter, train
    distill.episodes_per_round = 128  # of the student's own
    distill.max_staleness = 0  # rounds that the student's own episodes may be old when they are learned from
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
    arms.random_teacher = False  # every student again, of a teacher that was tuned on ordinary tasks
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
    metrics.peak_flops = 0.0  # of one device, a second, in the dtype of computation: above 0, MFU is reported against it

    c.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # what the other axes leave
    mesh.fsdp = 1
    mesh.tensor = 1
    mesh.slices = 1  # TPU slices (or groups of processes) that mesh.data runs over first
    return c


def fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All fields by dotted name."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            out.update(fields(value, f"{prefix}{name}."))
        else:
            out[prefix + name] = value
    return out


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`."""
    known = list(known)
    by_tail = [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]]
    return next(iter(by_tail or difflib.get_close_matches(word, known, n=1, cutoff=0.0)))


def parse_value(field: str, text: str, default: Any) -> Any:
    """A command-line text as a value of the default's type.

    Raises:
      UserError: it is not one.
    """
    kinds = {bool: "true or false", int: "an integer", float: "a number", tuple: "a tuple such as ('a','b')"}

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


def apply_overrides(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets fields by dotted name from texts, in place; refuses what does not exist or has another type."""
    known = fields(config)
    for field, text in overrides.items():
        if field not in known:
            raise UserError(
                f"There is no config field {field!r}; the nearest is --config.{nearest(field, known)} "
                f"(now {known[nearest(field, known)]!r})."
            )
        with config.unlocked():
            parent, _, name = field.rpartition(".")
            node = config[parent] if parent else config
            node[name] = parse_value(field, text, known[field])


def load(path: str | Path, overrides: Mapping[str, str]) -> ml_collections.FrozenConfigDict:
    """Reads a config file, applies overrides and checks the result.

    Raises:
      UserError: for every mistake in the file or the overrides, before any work is done.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no config file {path}: give one with --config=FILE, such as configs/quickstart.py.")
    spec = importlib.util.spec_from_file_location(f"subtransfer_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: a config file ends in .py and defines get_config().")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The config file {path} fails with {type(error).__name__}: {error}.") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"get_config() of {path} must return the ConfigDict of subtransfer.config.defaults(), changed.")
    given = fields(config)
    known = fields(defaults()) | {field: "" for field in given if field.startswith("models.")}
    for field in given:
        if field not in known:
            raise UserError(f"{path} sets the unknown field {field!r}; the nearest is {nearest(field, known)!r}.")
    for field, default in known.items():
        if field not in given:
            raise UserError(f"{path} lacks the field {field!r}: start from subtransfer.config.defaults().")
        number = isinstance(default, float) and type(given[field]) is int
        if type(given[field]) is not type(default) and not number:
            kind = type(default).__name__
            raise UserError(f"{path} sets {field} to {given[field]!r}, which is no {kind} like its default {default!r}.")
    apply_overrides(config, overrides)
    validate(config)
    return ml_collections.FrozenConfigDict(config)


_POSITIVE = [
    "num_seeds",
    "base.width",
    "base.mlp_width",
    "base.num_layers",
    "base.num_heads",
    "base.num_kv_heads",
    "base.vocab_limit",
    "base.episodes",
    "base.steps",
    "base.batch_size",
    "base.learning_rate",
    "teacher.episodes",
    "teacher.steps",
    "teacher.batch_size",
    "teacher.accumulate",
    "teacher.learning_rate",
    "rollouts.episodes",
    "rollouts.temperature",
    "rollouts.max_turns",
    "rollouts.max_new_tokens",
    "rollouts.max_tool_tokens",
    "distill.max_tokens",
    "rollouts.batch_size",
    "sanitize.min_kept",
    "distill.steps",
    "distill.batch_size",
    "distill.accumulate",
    "distill.learning_rate",
    "distill.temperature",
    "distill.importance_bound",
    "distill.top_k",
    "distill.rounds",
    "distill.episodes_per_round",
    "distill.on_policy_learning_rate",
    "tuning.rank",
    "tuning.alpha",
    "probe.tasks",
    "probe.temperature",
    "probe.batch_size",
    "probe.ordinary_tasks",
    "statistics.bootstrap",
    "checkpoint.keep",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.slices",
]


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values out of range and for combinations that cannot work."""
    known = fields(config)

    def refuse(field: str, must: str) -> None:
        raise UserError(f"{field}={known[field]!r} cannot be: it must be {must}.")

    def one_of(field: str, value: str, choices: Iterable[str]) -> None:
        choices = list(choices)
        if value not in choices:
            raise UserError(
                f"{field} has no choice {value!r}; the nearest is {nearest(value, choices)!r} of {', '.join(choices)}."
            )

    for field in _POSITIVE:
        if not (math.isfinite(known[field]) and known[field] > 0):
            refuse(field, "above 0 and finite")
    for field in ("base.unsafe_rate", "teacher.explicit_fraction", "distill.on_policy_fraction", "distill.jsd_beta"):
        if not 0 <= known[field] <= 1:
            refuse(field, "between 0 and 1")
    for field in (
        "teacher.epochs",
        "distill.epochs",
        "distill.max_staleness",
        "checkpoint.every_seconds",
        "checkpoint.every_steps",
        "metrics.peak_flops",
    ):
        if known[field] < 0:
            refuse(field, "at least 0")
    one_of("base.dtype", config.base.dtype, ("float32", "bfloat16"))
    one_of("base.attention", config.base.attention, BACKENDS)
    if config.base.remat in ("true", "false", "True", "False"):
        raise UserError(
            f"base.remat={config.base.remat} is a policy's name now: say full instead of true, none instead of false."
        )
    one_of("base.remat", config.base.remat, REMAT)
    if not 0 <= config.tuning.dropout < 1:
        refuse("tuning.dropout", "at least 0 and below 1")
    if not 0.5 <= config.statistics.confidence < 1:
        refuse("statistics.confidence", "at least 0.5 and below 1")
    if config.rollouts.weights:
        one_of("rollouts.weights", config.rollouts.weights, FORMATS)
    if config.rollouts.top_k < 0:
        refuse("rollouts.top_k", "0 (all) or the number of tokens to choose from")
    if not 0 < config.rollouts.top_p <= 1:
        refuse("rollouts.top_p", "above 0 and at most 1")
    if not 0 <= config.rollouts.min_p < 1:
        refuse("rollouts.min_p", "at least 0 and below 1")
    if config.rollouts.int8_cache and config.base.attention == "pallas":
        refuse("rollouts.int8_cache", "false with base.attention=pallas, whose kernel reads slots in full precision")
    one_of("setting", config.setting, settings.NAMES)
    one_of("tuning.method", config.tuning.method, ("full", "lora"))
    for target in config.tuning.targets:
        one_of("tuning.targets", target, TUNABLE)
    if not config.tuning.targets or len(set(config.tuning.targets)) < len(config.tuning.targets):
        refuse("tuning.targets", "one or more different projections")
    for part in config.distill.objective.split(","):
        one_of("distill.objective", part.strip(), ("all", *OBJECTIVES))
    if not chosen_objectives(config.distill.objective):
        refuse("distill.objective", '"all" alone, or a list of objectives')
    for room in ("teacher", "distill"):
        if config[room].batch_size % config[room].accumulate:
            refuse(f"{room}.accumulate", f"a divisor of {room}.batch_size={config[room].batch_size}")
    if config.distill.packing and config.distill.epochs:
        raise UserError(
            "distill.packing fills rows with episodes, which distill.epochs counts: give distill.steps, and epochs=0."
        )
    if config.distill.packing and config.base.attention == "cudnn":
        raise UserError("base.attention=cudnn takes no packed rows: use base.attention=xla, or distill.packing=false.")
    one_of("distill.teacher_targets", config.distill.teacher_targets, ("live", "stored"))
    one_of("distill.token_weights", config.distill.token_weights, ("agent", "turn"))
    if not config.name or "/" in config.name or config.name.startswith("."):
        refuse("name", "a plain word, as it names a folder")
    if config.metrics.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("metrics.wandb needs the package wandb, which is not installed: pip install wandb.")
    _validate_sizes(config, known, refuse)
    if config.pairs:
        _validate_pairs(config)
    elif config.models:
        raise UserError("models are named but no pairs: set pairs to ('TEACHER>STUDENT', ...), or use base.checkpoint.")


def _validate_pairs(config) -> None:
    if config.base.checkpoint or config.base.other_checkpoint:
        raise UserError("base.checkpoint and pairs cannot both be given: name the checkpoint in models instead.")
    if len(set(map(split_pair, config.pairs))) < len(config.pairs):
        raise UserError("pairs holds the same pair twice: leave one out.")
    used: dict[str, None] = {}
    for pair in config.pairs:
        names = split_pair(pair)
        if not all(name.isidentifier() and name not in EMBEDDED for name in names):
            raise UserError(f"pairs holds {pair!r}, which is not of the form 'TEACHER>STUDENT' with names in models.")
        for name in names:
            if name not in config.models:
                known = ", ".join(config.models) or "empty"
                raise UserError(f"pairs names the model {name!r}, which models lacks; it is {known}.")
        used |= dict.fromkeys(names)
    for name, path in config.models.items():
        if path.startswith(PRESET):
            if path.removeprefix(PRESET) not in presets.PRESETS:
                near = nearest(path.removeprefix(PRESET), presets.PRESETS)
                raise UserError(f"models.{name}: there is no preset {path.removeprefix(PRESET)!r}; the nearest is {near!r}.")
        elif not Path(path).is_dir():
            raise UserError(f"models.{name}: there is no directory {path!r}; give --config.models.{name}=DIR.")


def _validate_sizes(config, known, refuse) -> None:
    base, distill = config.base, config.distill
    if not base.checkpoint:
        if base.other_checkpoint:
            raise UserError("base.other_checkpoint needs base.checkpoint: give both, or neither.")
        if base.width % base.num_heads or (base.width // base.num_heads) % 2:
            refuse("base.num_heads", f"a divisor of base.width={base.width} that leaves an even head width")
        if base.num_heads % base.num_kv_heads:
            refuse("base.num_kv_heads", f"a divisor of base.num_heads={base.num_heads}")
    for field, path in (("base.checkpoint", base.checkpoint), ("base.other_checkpoint", base.other_checkpoint)):
        if path and not Path(path).is_dir():
            raise UserError(f"{field}: there is no directory {path}; give a local Hugging Face directory.")
    if base.other_checkpoint and not config.arms.other_init:
        raise UserError("base.other_checkpoint is given but arms.other_init is false: set it to true, or leave it out.")
    chosen = chosen_objectives(distill.objective)
    if distill.on_policy_fraction and set(ON_POLICY) & set(chosen):
        if distill.steps % distill.rounds:
            refuse("distill.steps", f"a multiple of distill.rounds={distill.rounds} for on-policy distillation")
        if distill.episodes_per_round < distill.batch_size:
            refuse("distill.episodes_per_round", f"at least distill.batch_size={distill.batch_size}")
    if distill.teacher_targets == "stored" and "forward_kl" not in chosen:
        refuse("distill.teacher_targets", '"live" without forward_kl, which alone can learn from stored ones')
    if "policy_gradient" in chosen:
        # The log-probs of sampled tokens are the model's own, at temperature 1: only then are they what tokens were drawn with.
        drawn = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "well_formed": False}
        for field, value in {"distill.temperature": 1, **{f"rollouts.{f}": v for f, v in drawn.items()}}.items():
            if known[field] != value:
                refuse(field, f"{value} for policy_gradient, which compares the probabilities that tokens were sampled with")
    if config.rollouts.episodes < config.sanitize.min_kept:
        refuse("rollouts.episodes", f"at least sanitize.min_kept={config.sanitize.min_kept}")
    if config.sanitize.min_kept < distill.batch_size:
        refuse("sanitize.min_kept", f"at least distill.batch_size={distill.batch_size}")
    if config.teacher.episodes < config.teacher.batch_size:
        refuse("teacher.episodes", f"at least teacher.batch_size={config.teacher.batch_size}")
    if base.episodes < max(base.batch_size, 100):
        refuse("base.episodes", f"at least 100 and base.batch_size={base.batch_size}")


def plain(value: Any) -> Any:
    """Config values as JSON types (tuples become lists)."""
    if isinstance(value, (ml_collections.ConfigDict, Mapping)):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value


def of_results(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that results can depend on, as JSON types: not how a run is saved and watched."""
    return {name: value for name, value in plain(config).items() if name not in ("checkpoint", "metrics")}
