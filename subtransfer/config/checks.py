"""The checks of a config before any work is done: values out of range, and combinations that cannot
work.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from subtransfer import settings
from subtransfer.config.arms import EMBEDDED, ON_POLICY, chosen_objectives, split_pair
from subtransfer.models import presets
from subtransfer.models.attention_kernels import BACKENDS
from subtransfer.models.decoder import REMAT
from subtransfer.models.quantise import FORMATS
from subtransfer.runtime.errors import UserError
from subtransfer.training.objectives import OBJECTIVES

PRESET = "preset:"  # what a model is given as, to be planned without its files
OWN = "embedded:"  # a model of a pair that is pretrained in the run, with its own fields of base
_OF_OWN = {
    "width": int, "mlp_width": int, "num_layers": int, "num_heads": int, "num_kv_heads": int, "steps": int,
    "learning_rate": float,
}  # fmt: skip
TUNABLE = ("q", "k", "v", "o", "gate", "up", "down")


def fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All fields by dotted name."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (ml_collections.ConfigDict, Mapping)):
            out.update(fields(value, f"{prefix}{name}."))
        else:
            out[prefix + name] = value
    return out


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`."""
    known = list(known)
    by_tail = [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]]
    return next(iter(by_tail or difflib.get_close_matches(word, known, n=1, cutoff=0.0)))


def own_fields(model: str, text: str) -> dict[str, int | float]:
    """The fields of base that a model "embedded:FIELD=VALUE,..." has of its own.

    Raises:
      UserError: an unknown field, or a value that is no number above 0.
    """
    out = {}
    for part in filter(None, (part.strip() for part in text.removeprefix(OWN).split(","))):
        name, _, value = part.partition("=")
        if name not in _OF_OWN:
            raise UserError(
                f"models.{model}: an embedded model has no field {name!r} of its own; the nearest is "
                f"{nearest(name, _OF_OWN)!r} of {', '.join(_OF_OWN)} (the corpus and its vocabulary are common to all)."
            )
        try:
            out[name] = _OF_OWN[name](value)
        except ValueError:
            out[name] = 0
        if not (math.isfinite(out[name]) and out[name] > 0):
            raise UserError(f"models.{model}: {part!r} is no number above 0.")
    return out


_POSITIVE = [
    "num_seeds",
    "population",
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
    for field in (
        "base.unsafe_rate",
        "teacher.explicit_fraction",
        "distill.on_policy_fraction",
        "distill.jsd_beta",
    ):
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
    if config.population > 1 and config.base.attention != "xla":
        refuse(
            "population",
            f"1 with base.attention={config.base.attention}, whose kernels take no population: or use xla",
        )
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
        refuse(
            "rollouts.int8_cache",
            "false with base.attention=pallas, whose kernel reads slots in full precision",
        )
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
            refuse(
                f"{room}.accumulate", f"a divisor of {room}.batch_size={config[room].batch_size}"
            )
    if config.distill.packing and config.distill.epochs:
        raise UserError(
            "distill.packing fills rows with episodes, which distill.epochs counts: give distill.steps, and epochs=0."
        )
    if config.distill.packing and config.base.attention == "cudnn":
        raise UserError(
            "base.attention=cudnn takes no packed rows: use base.attention=xla, or distill.packing=false."
        )
    one_of("distill.teacher_targets", config.distill.teacher_targets, ("live", "stored"))
    if not config.distill.token_weights.endswith(".py"):
        one_of("distill.token_weights", config.distill.token_weights, ("agent", "turn", "FILE.py"))
    if not config.name or "/" in config.name or config.name.startswith("."):
        refuse("name", "a plain word, as it names a folder")
    if config.metrics.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "metrics.wandb needs the package wandb, which is not installed: pip install wandb."
        )
    _validate_sizes(config, known, refuse)
    if config.pairs:
        _validate_pairs(config)
    elif config.models:
        raise UserError(
            "models are named but no pairs: set pairs to ('TEACHER>STUDENT', ...), or use base.checkpoint."
        )


def _validate_pairs(config) -> None:
    if config.base.checkpoint or config.base.other_checkpoint:
        raise UserError(
            "base.checkpoint and pairs cannot both be given: name the checkpoint in models instead."
        )
    if len(set(map(split_pair, config.pairs))) < len(config.pairs):
        raise UserError("pairs holds the same pair twice: leave one out.")
    used: dict[str, None] = {}
    for pair in config.pairs:
        names = split_pair(pair)
        if not all(name.isidentifier() and name not in EMBEDDED for name in names):
            raise UserError(
                f"pairs holds {pair!r}, which is not of the form 'TEACHER>STUDENT' with names in models."
            )
        for name in names:
            if name not in config.models:
                known = ", ".join(config.models) or "empty"
                raise UserError(
                    f"pairs names the model {name!r}, which models lacks; it is {known}."
                )
        used |= dict.fromkeys(names)
    for name, path in config.models.items():
        if path.startswith(PRESET):
            if path.removeprefix(PRESET) not in presets.PRESETS:
                near = nearest(path.removeprefix(PRESET), presets.PRESETS)
                raise UserError(
                    f"models.{name}: there is no preset {path.removeprefix(PRESET)!r}; the nearest is {near!r}."
                )
        elif path.startswith(OWN):
            base = {**config.base, **own_fields(name, path)}
            width, heads, shared = base["width"], base["num_heads"], base["num_kv_heads"]
            if width % heads or width // heads % 2 or heads % shared:
                raise UserError(
                    f"models.{name}: width={width}, num_heads={heads} and num_kv_heads={shared} do not go together: heads must "
                    "divide the width into even parts, and key/value heads divide the heads."
                )
        elif not Path(path).is_dir():
            raise UserError(
                f"models.{name}: there is no directory {path!r}; give --config.models.{name}=DIR."
            )


def _validate_sizes(config, known, refuse) -> None:
    base, distill = config.base, config.distill
    if not base.checkpoint:
        if base.other_checkpoint:
            raise UserError("base.other_checkpoint needs base.checkpoint: give both, or neither.")
        if base.width % base.num_heads or (base.width // base.num_heads) % 2:
            refuse(
                "base.num_heads",
                f"a divisor of base.width={base.width} that leaves an even head width",
            )
        if base.num_heads % base.num_kv_heads:
            refuse("base.num_kv_heads", f"a divisor of base.num_heads={base.num_heads}")
    for field, path in (
        ("base.checkpoint", base.checkpoint),
        ("base.other_checkpoint", base.other_checkpoint),
    ):
        if path and not Path(path).is_dir():
            raise UserError(
                f"{field}: there is no directory {path}; give a local Hugging Face directory."
            )
    if base.other_checkpoint and not config.arms.other_init:
        raise UserError(
            "base.other_checkpoint is given but arms.other_init is false: set it to true, or leave it out."
        )
    chosen = chosen_objectives(distill.objective)
    if distill.on_policy_fraction and set(ON_POLICY) & set(chosen):
        if distill.steps % distill.rounds:
            refuse(
                "distill.steps",
                f"a multiple of distill.rounds={distill.rounds} for on-policy distillation",
            )
        if distill.episodes_per_round < distill.batch_size:
            refuse(
                "distill.episodes_per_round", f"at least distill.batch_size={distill.batch_size}"
            )
    if distill.teacher_targets == "stored" and "forward_kl" not in chosen:
        refuse(
            "distill.teacher_targets",
            '"live" without forward_kl, which alone can learn from stored ones',
        )
    if "policy_gradient" in chosen:
        # The log-probs of sampled tokens are the model's own, at temperature 1: only then are they
        # what tokens were drawn with.
        drawn = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "well_formed": False}
        for field, value in {
            "distill.temperature": 1,
            **{f"rollouts.{f}": v for f, v in drawn.items()},
        }.items():
            if known[field] != value:
                refuse(
                    field,
                    f"{value} for policy_gradient, which compares the probabilities that tokens were sampled with",
                )
    if config.rollouts.episodes < config.sanitize.min_kept:
        refuse("rollouts.episodes", f"at least sanitize.min_kept={config.sanitize.min_kept}")
    if config.sanitize.min_kept < distill.batch_size:
        refuse("sanitize.min_kept", f"at least distill.batch_size={distill.batch_size}")
    if config.teacher.episodes < config.teacher.batch_size:
        refuse("teacher.episodes", f"at least teacher.batch_size={config.teacher.batch_size}")
    if base.episodes < max(base.batch_size, 100):
        refuse("base.episodes", f"at least 100 and base.batch_size={base.batch_size}")
