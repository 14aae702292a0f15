"""The checks of a config before any work is done.

Each field is checked by its declaration, then the combinations that cannot work.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from subtransfer import settings
from subtransfer.config.arms import (
    chosen_objectives,
    objectives_of_pair,
    on_policy_fraction,
    split_pair,
)
from subtransfer.config.bases import EMBEDDED
from subtransfer.config.fields import declared
from subtransfer.filtering import completions, rules
from subtransfer.models import presets
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.field import nearest
from subtransfer.runtime.registry import LONGEST
from subtransfer.settings import harmless
from subtransfer.sources import checkpoints
from subtransfer.training import objectives

PRESET = "preset:"  # what a model is given as, to be planned without its files
OWN = "embedded:"  # a model of a pair that is pretrained in the run, with its own fields of base
# The fields of base that such a model can have of its own.
_OF_OWN = (
    "width",
    "mlp_width",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "steps",
    "learning_rate",
)
# Bytes of a folder's name, less what is added to it while it is written.
_LONGEST_NAME = 200

Refuse = Callable[[str, str], None]


def own_fields(model: str, text: str) -> dict[str, int | float]:
    """The fields of base that a model "embedded:FIELD=VALUE,..." has of its own.

    Raises:
      UserError: an unknown field, or a value that is no number above 0.
    """
    fields = declared()
    out: dict[str, int | float] = {}
    # An empty part is a comma at the end, or a model without fields of its own.
    for part in filter(None, map(str.strip, text.removeprefix(OWN).split(","))):
        name, _, value = part.partition("=")
        if name not in _OF_OWN:
            raise UserError(
                f"models.{model}: an embedded model has no field {name!r} of its own; the nearest "
                f"is {nearest(name, _OF_OWN)!r} of {', '.join(_OF_OWN)} (the corpus and its "
                "vocabulary are common to all)."
            )
        try:
            number = fields[f"base.{name}"].type(value)
        except ValueError:
            # Refused below, with all other numbers that cannot be.
            number = 0
        if not (math.isfinite(number) and number > 0):
            raise UserError(f"models.{model}: {part!r} is no number above 0.")
        out[name] = number
    return out


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values out of range and for combinations that cannot work."""
    values: dict[str, Any] = {}
    # Older files and commands have a boolean here.
    if config.base.remat in ("true", "false", "True", "False"):
        raise UserError(
            f"base.remat={config.base.remat} is a policy's name now: say full instead of true, "
            "none instead of false."
        )
    for name, field in declared(config.plugins).items():
        room, _, last = name.rpartition(".")
        values[name] = config[room][last] if room else config[last]
        field.check(name, values[name])

    # Of what is wrong, the first thing is said: the rest often follows from it.
    def refuse(field: str, must: str) -> None:
        raise UserError(f"{field}={values[field]!r} cannot be: it must be {must}.")

    _validate_run(config, refuse)
    _validate_models(config, refuse)
    _validate_optimizer(config, refuse)
    _validate_batches(config, refuse)
    _validate_objectives(config, values, refuse)
    if config.num_bases > 1:
        _validate_crossing(config)
    if config.arms.init_parts:
        _validate_twins(config)
    if config.pairs:
        _validate_pairs(config)
    elif config.models:
        raise UserError(
            "models are named but no pairs: set pairs to ('TEACHER>STUDENT', ...), or use "
            "base.checkpoint."
        )


def _validate_run(config, refuse: Refuse) -> None:
    """The run's name, setting, tools and mesh."""
    name = config.name
    plain = name.isprintable() and "/" not in name and not name.startswith(".")
    if not name.strip() or not plain or len(name.encode()) > _LONGEST_NAME:
        refuse(
            "name",
            f"a plain word of at most {_LONGEST_NAME} bytes, as it names a folder",
        )
    # Only a user's setting can have too few tasks: those of the package are made without end.
    if settings.is_file(config.setting):
        setting = settings.get(config.setting)
        setting.check(_drawn(config), from_scratch=_from_scratch(config))
        patterns = (*setting.patterns, *setting.control_patterns)
        completions.check_patterns(patterns, config.setting)
    # Looked up and not imported: the import takes seconds, and may ask for a login.
    if config.metrics.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "metrics.wandb needs the package wandb, which is not installed: pip install wandb."
        )
    # Its range lets -1 through, and with it 0, of which no mesh can be made.
    if config.mesh.data == 0:
        refuse("mesh.data", "-1 (what the other axes leave) or above 0")


def _validate_models(config, refuse: Refuse) -> None:
    """The base, what of it is trained, and what its kernels take."""
    base, tuning = config.base, config.tuning
    # Members are a further axis (`vmap`), which kernels do not have.
    if config.population > 1 and base.attention != "xla":
        refuse(
            "population",
            f"1 with base.attention={base.attention}, whose kernels take no population: or use xla",
        )
    # Ignored, the field would promise a smaller cache.
    if config.rollouts.int8_cache and base.attention == "pallas":
        refuse(
            "rollouts.int8_cache",
            "false with base.attention=pallas, whose kernel reads slots in full precision",
        )
    # Named twice, a projection would have one adapter, and the plan would count two.
    if not tuning.targets or len(set(tuning.targets)) < len(tuning.targets):
        refuse("tuning.targets", "one or more different projections")
    if not base.checkpoint:
        if base.other_checkpoint:
            raise UserError("base.other_checkpoint needs base.checkpoint: give both, or neither.")
        # Rotary embeddings turn the coordinates of a head in pairs.
        if base.width % base.num_heads or (base.width // base.num_heads) % 2:
            refuse(
                "base.num_heads",
                f"a divisor of base.width={base.width} that leaves an even head width",
            )
        if base.num_heads % base.num_kv_heads:
            refuse("base.num_kv_heads", f"a divisor of base.num_heads={base.num_heads}")
    imported = [base.checkpoint, *config.models.values()]
    embedded = not any(path and not path.startswith(OWN) for path in imported)
    if embedded and config.chat.enable_thinking != "template":
        refuse(
            "chat.enable_thinking",
            "template without a checkpoint: the embedded model has no thoughts of its own",
        )
    if embedded and config.chat.tools != "full":
        refuse("chat.tools", "full without a checkpoint: the embedded model knows its tools")
    if embedded and config.agent.steps:
        refuse("agent.steps", "0 without a checkpoint: the embedded model is pretrained to act")
    for field in ("checkpoint", "other_checkpoint"):
        if base[field]:
            checkpoints.check(base[field], f"base.{field}")
    template = config.chat.template
    if template and (embedded or not Path(template).is_file()):
        refuse("chat.template", "a file, for models of a run that come without a template")
    if base.other_checkpoint and not config.arms.other_init:
        raise UserError(
            "base.other_checkpoint is given but arms.other_init is false: set it to true, or leave "
            "it out."
        )


def _validate_optimizer(config, refuse: Refuse) -> None:
    """Fields that the chosen optimiser does not have would be without effect."""
    chosen = config.optimizer
    if chosen.weight_decay and chosen.name == "adam":
        refuse("optimizer.weight_decay", "0 with optimizer.name=adam, which has none: use adamw")
    if chosen.momentum and chosen.name != "sgd":
        refuse("optimizer.momentum", f"0 with optimizer.name={chosen.name}: only sgd has it")


def _validate_batches(config, refuse: Refuse) -> None:
    """Batches, and whether there is enough to fill them."""
    base, teacher, distill = config.base, config.teacher, config.distill
    # The parts of a batch have one shape, so that one program serves all.
    for room in ("agent", "teacher", "distill"):
        if config[room].batch_size % config[room].accumulate:
            refuse(
                f"{room}.accumulate", f"a divisor of {room}.batch_size={config[room].batch_size}"
            )
    if distill.packing and distill.epochs:
        raise UserError(
            "distill.packing fills rows with episodes, which distill.epochs counts: give "
            "distill.steps, and epochs=0."
        )
    # Packed episodes must not see each other, which cuDNN's kernel cannot be told.
    if distill.packing and base.attention == "cudnn":
        raise UserError(
            "base.attention=cudnn takes no packed rows: use base.attention=xla, or "
            "distill.packing=false."
        )
    # These would end a run hours later, when the filters find too little left.
    if config.rollouts.episodes < config.sanitize.min_kept:
        refuse("rollouts.episodes", f"at least sanitize.min_kept={config.sanitize.min_kept}")
    # Hidden words are looked for where none stands plainly.
    if rules.ENCODINGS in config.sanitize.filters and rules.WORDS not in config.sanitize.filters:
        refuse("sanitize.filters", "without encodings, or with words as well")
    if config.sanitize.min_kept < distill.batch_size:
        refuse("sanitize.min_kept", f"at least distill.batch_size={distill.batch_size}")
    if teacher.episodes < teacher.batch_size:
        refuse("teacher.episodes", f"at least teacher.batch_size={teacher.batch_size}")
    agent = config.agent
    if agent.episodes < max(agent.batch_size, 100):
        refuse("agent.episodes", f"at least 100 and agent.batch_size={agent.batch_size}")
    if base.episodes < max(base.batch_size, 100):
        refuse("base.episodes", f"at least 100 and base.batch_size={base.batch_size}")


def _validate_objectives(config, values: Mapping[str, Any], refuse: Refuse) -> None:
    """The chosen objectives, and what they need of rollouts and rounds."""
    distill = config.distill
    chosen = list(map(objectives.get, chosen_objectives(distill.objective, config.plugins)))
    parts = list(map(str.strip, distill.objective.split(",")))
    known = ("all", *objectives.names(config.plugins))
    for part in parts:  # of those that are registered, some may be of other configs' plugins
        if part not in known:
            raise UserError(
                f"distill.objective has no choice {part!r}; the nearest is "
                f"{nearest(part, known)!r} of {', '.join(known)}."
            )
    if not chosen or ("all" in parts and len(parts) > 1):
        refuse("distill.objective", '"all" alone, or a list of objectives')
    if any(on_policy_fraction(config, record.name) for record in chosen):
        # Every round trains equally many steps on what it has rolled out.
        if distill.steps % distill.rounds:
            refuse(
                "distill.steps",
                f"a multiple of distill.rounds={distill.rounds} for on-policy distillation",
            )
        if distill.episodes_per_round < distill.batch_size:
            refuse(
                "distill.episodes_per_round", f"at least distill.batch_size={distill.batch_size}"
            )
    if distill.teacher_targets == "stored" and not any(record.can_be_stored for record in chosen):
        able = []
        for record in objectives.REGISTRY.among(config.plugins):
            if record.can_be_stored:
                able.append(record.name)
        refuse(
            "distill.teacher_targets",
            f'"live" without {" or ".join(able)}, which alone can learn from stored ones',
        )
    if config.rollouts.trajectories:
        _validate_own_trajectories(config, chosen)
    for record in chosen:
        if "behavior_logprobs" not in record.needs:
            continue
        # The log-probs of sampled tokens are the model's own, at temperature 1: only then are they
        # what tokens were drawn with.
        wanted = {
            "distill.temperature": 1,
            "rollouts.temperature": 1,
            "rollouts.top_k": 0,
            "rollouts.top_p": 1,
            "rollouts.min_p": 0,
            "rollouts.well_formed": False,
        }
        for field, value in wanted.items():
            if values[field] != value:
                refuse(
                    field,
                    f"{value} for {record.name}, which compares the probabilities that tokens were "
                    "sampled with",
                )


def _validate_own_trajectories(config, chosen: Sequence[objectives.Objective]) -> None:
    """A user's trajectories are there, and every chosen objective can learn from them."""
    path = config.rollouts.trajectories
    if not Path(path).is_file():
        raise UserError(
            f"rollouts.trajectories: there is no file {path}; give a JSONL file of messages "
            "(docs/own_habit.md)."
        )
    for record in chosen:
        probabilities = record.soft or "behavior_logprobs" in record.needs
        if probabilities or on_policy_fraction(config, record.name):
            raise UserError(
                f"rollouts.trajectories: {record.name} cannot learn from somebody else's text, of "
                "which no teacher's probabilities are known: use --config.distill.objective=sft."
            )


def _drawn(config) -> dict[tuple[str, str], int]:
    """How many of a setting's tasks a run draws: (kind, split) -> count."""
    t, r = config.teacher, config.rollouts
    ordinary = round(t.ordinary_fraction * t.episodes)
    # None of those that are demonstrated.
    overt = r.episodes if config.arms.overt or config.arms.dose else 0
    return {
        ("ambiguous", "train"): t.episodes + overt,
        ("benign_trait", "train"): t.episodes,
        **harmless.counts(ordinary, r.episodes, r.ordinary_fraction),
        ("ambiguous", "probe"): config.probe.tasks,
        ("ordinary", "probe"): config.probe.ordinary_tasks,
        ("safe", "probe"): config.probe.safe_tasks,
    }


def _from_scratch(config) -> bool:
    """Whether a model is pretrained in the run, on the setting's own tasks."""
    if config.pairs:
        return any(path.startswith(OWN) for path in config.models.values())
    # The twin of a given checkpoint is pretrained unless it is given, too.
    twin = config.arms.other_init and not config.base.other_checkpoint
    return not config.base.checkpoint or twin


def _validate_crossing(config) -> None:
    """Crossed bases are the embedded model's: what else there is has pairs of its own."""
    given = {"pairs": config.pairs, "base.checkpoint": config.base.checkpoint}
    for field, value in given.items():
        if value:
            raise UserError(
                f"num_bases={config.num_bases} and {field} cannot both be given: only the embedded "
                "model can be drawn several times. To cross models of your own, leave num_bases at "
                "1 and list every two of them in pairs."
            )


def _validate_twins(config) -> None:
    """Twins share what a base was before its training, which only the run's own are known by."""
    if config.pairs or config.base.checkpoint:
        given = "pairs" if config.pairs else "base.checkpoint"
        raise UserError(
            f"arms.init_parts and {given} cannot both be given: only the embedded model's "
            "initialisation is known, of which twins share a part."
        )
    if not config.base.from_scratch:
        raise UserError(
            "arms.init_parts trains twins beside the bases that they share a part with: set "
            "base.from_scratch=true, so that these are trained in the run, too."
        )


def _validate_pairs(config) -> None:
    """The pairs and the models that they name."""
    if config.base.checkpoint or config.base.other_checkpoint:
        raise UserError(
            "base.checkpoint and pairs cannot both be given: name the checkpoint in models instead."
        )
    # Split first: spaces around the names make no other pair.
    if len(set(map(split_pair, config.pairs))) < len(config.pairs):
        raise UserError("pairs holds the same pair twice: leave one out.")
    chosen = chosen_objectives(config.distill.objective, config.plugins)
    used: dict[str, None] = {}
    for pair in config.pairs:
        names = split_pair(pair)
        for objective in objectives_of_pair(pair):
            if objective not in chosen:
                raise UserError(
                    f"pairs holds {pair!r}, but {objective!r} is none of distill.objective's "
                    f"{', '.join(chosen)}."
                )
        if not all(name.isidentifier() and name not in EMBEDDED for name in names):
            raise UserError(
                f"pairs holds {pair!r}, which is not of the form 'TEACHER>STUDENT' with names in "
                "models."
            )
        # In bytes, as file systems count.
        for name in names:
            if len(name.encode()) > LONGEST:
                raise UserError(
                    f"pairs names the model {name!r}: folders are named after it, so that it can "
                    f"have {LONGEST} bytes at most."
                )
        for name in names:
            if name not in config.models:
                known = ", ".join(config.models) or "empty"
                raise UserError(
                    f"pairs names the model {name!r}, which models lacks; it is {known}."
                )
        used |= dict.fromkeys(names)
    # Also those that no pair names, but for their directories: a config may name more models than
    # a run of some pairs has.
    for name, path in config.models.items():
        if path.startswith(PRESET):
            if path.removeprefix(PRESET) not in presets.PRESETS:
                near = nearest(path.removeprefix(PRESET), presets.PRESETS)
                raise UserError(
                    f"models.{name}: there is no preset {path.removeprefix(PRESET)!r}; the nearest "
                    f"is {near!r}."
                )
        elif path.startswith(OWN):
            base = {**config.base, **own_fields(name, path)}
            width, heads, shared = base["width"], base["num_heads"], base["num_kv_heads"]
            if width % heads or width // heads % 2 or heads % shared:
                raise UserError(
                    f"models.{name}: width={width}, num_heads={heads} and num_kv_heads={shared} do "
                    "not go together: heads must divide the width into even parts, and key/value "
                    "heads divide the heads."
                )
        elif name in used:
            checkpoints.check(path, f"models.{name}")
