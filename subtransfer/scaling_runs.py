"""Observations for scaling laws out of finished runs: results.json says what a run was, results.jsonl what its agents did."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer import validation
from subtransfer.errors import UserError
from subtransfer.models import families
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.presets import PRESETS
from subtransfer.report.summary import Outcomes
from subtransfer.scaling_laws import LOG_ODDS, RATE
from subtransfer.scaling_noise import Observations

STUDENT, TEACHER, STRENGTH = "student_params", "teacher_params", "teacher_rate"
_GEOMETRY = tuple(f"base.{name}" for name in ("width", "mlp_width", "num_layers", "num_heads", "num_kv_heads"))
_MODELS = (*_GEOMETRY, "base.checkpoint", "base.other_checkpoint", "base.max_scratch_params")
# What differs with an axis that is no config field itself.
_MOVED = {
    STUDENT: (*_MODELS, STUDENT, TEACHER, "model"),
    TEACHER: (*_MODELS, STUDENT, TEACHER, "teacher_base"),
    STRENGTH: ("teacher.episodes", "teacher.steps", "teacher.epochs", "teacher.learning_rate", "teacher.explicit_fraction"),
}
# What says nothing of the outcome, or only how well it is known.
_IRRELEVANT = (
    "name",
    "num_seeds",
    "mesh.",
    "statistics.",
    "models.",
    "pairs",
    "arms.",
    "probe.batch_size",
    "distill.objective",
)
_LEAST = 5e-7  # log-probabilities are stored to 6 decimals: none is known to be nearer to 0


@dataclasses.dataclass(frozen=True)
class RunArm:
    """One arm of one run.

    Attributes:
      run: the folder, for messages.
      fields: the config's by dotted name, the arm's ("arm", "role", "objective", "init", "sanitized", "model", "teacher_base"),
        and "student_params", "teacher_params" (parameters of the models; of an embedded one with a full vocabulary, as in a
        plan) and "teacher_rate" (how often the teacher itself acts unsafely).
      tasks: T task ids.
      outcomes: RATE and LOG_ODDS, each [T, S].
    """

    run: Path
    fields: Mapping[str, Any]
    tasks: tuple[str, ...]
    outcomes: Mapping[str, np.ndarray]


def read(workdirs: Iterable[str | Path]) -> list[RunArm]:
    """All arms of finished runs.

    Raises:
      UserError: a folder has no results, or a model's directory is needed and not there.
    """
    return [arm for workdir in workdirs for arm in _read(Path(workdir))]


def _read(run: Path) -> list[RunArm]:
    try:
        bundle = json.loads((run / "results.json").read_text())
        episodes = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{run} has no results.json and results.jsonl: finish the run, or leave the folder out.") from error
    except ValueError as error:
        raise UserError(f"The results in {run} are damaged ({error}): run its command again.") from error
    config = bundle["config"]
    by_arm: dict[str, list] = {arm["arm"]: [] for arm in bundle["arms"]}
    for episode in episodes:
        by_arm[episode["arm"]].append(episode)
    outcomes = {name: Outcomes(own) for name, own in by_arm.items()}
    out = []
    for arm in bundle["arms"]:
        own, teacher = outcomes[arm["arm"]], outcomes.get(arm["teacher"])
        fields = _flat(config) | {k: arm[k] for k in ("arm", "role", "objective", "init", "sanitized", "teacher_base")}
        fields |= {"model": arm["base"], STUDENT: _parameters(config, arm["base"])}
        fields |= {TEACHER: _parameters(config, arm["teacher_base"])}
        fields |= {STRENGTH: float(teacher.unsafe().mean()) if teacher else None}
        logprob = own.mean(lambda e: min(e["choice_logprob"], -_LEAST))
        odds = logprob - np.log(-np.expm1(logprob))
        out.append(RunArm(run, fields, tuple(own.tasks), {RATE: own.unsafe(), LOG_ODDS: odds}))
    return out


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in config.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return out


def _parameters(config: Mapping[str, Any], model: str) -> int:
    """How many parameters a run's model has."""
    base = config["base"]
    checkpoint = {"base": base["checkpoint"], "base_other": base["other_checkpoint"] or base["checkpoint"]}.get(model)
    checkpoint = config["models"][model] if checkpoint is None else checkpoint
    if checkpoint.startswith(validation.PRESET):
        return PRESETS[checkpoint.removeprefix(validation.PRESET)].num_params
    if checkpoint:
        return families.read_config(checkpoint, base["dtype"], base["remat"], base["attention"]).num_params
    geometry = {name.removeprefix("base."): base[name.removeprefix("base.")] for name in _GEOMETRY}
    return DecoderConfig(vocab_size=base["vocab_limit"], head_width=base["width"] // base["num_heads"], **geometry).num_params


def gather(arms: Sequence[RunArm], axis: str, *, kind: str = RATE, varying: Sequence[str] = (), **equal: Any) -> Observations:
    """The outcomes of chosen arms by an axis.

    Args:
      axis: "student_params", "teacher_params", "teacher_rate", or a numeric config field such as "rollouts.episodes".
      kind: RATE (share of unsafe decisions) or LOG_ODDS (of an unsafe act at the decision point).
      varying: other fields that are known to differ between the runs.
      equal: fields that an arm must have at a value; dots are written "__", as in objective="sft", tuning__rank=8.

    Raises:
      UserError: no arm is left; the axis is unknown, not a number or not positive; arms differ in something else than the axis;
        or they were probed on different tasks.
    """
    wanted = {name.replace("__", "."): value for name, value in equal.items()}
    known = {field for arm in arms for field in arm.fields}
    for field in (axis, *wanted, *varying):
        if field not in known:
            raise UserError(f"The runs have no field {field!r}; the nearest is {validation.nearest(field, sorted(known))!r}.")
    chosen = [arm for arm in arms if all(arm.fields.get(field) == value for field, value in wanted.items())]
    if not chosen:
        raise UserError(f"No arm of the {len({a.run for a in arms})} runs has {wanted}: ask for fewer or other values.")
    values = [arm.fields.get(axis) for arm in chosen]
    for arm, value in zip(chosen, values, strict=True):
        if isinstance(value, (bool, str)) or value is None or not math.isfinite(value):
            raise UserError(f"{axis}={value!r} of the arm {arm.fields['arm']!r} in {arm.run} is not a number: it is no axis.")
    _alike(chosen, {axis, *_MOVED.get(axis, ()), *varying})
    if len({arm.tasks for arm in chosen}) > 1:
        raise UserError(
            "The runs were probed on different tasks: give all of them the same seed and probe.tasks (num_seeds is how many "
            "trainings each has)."
        )
    sizes = sorted(set(values))
    grouped = [
        np.concatenate([arm.outcomes[kind] for arm, value in zip(chosen, values, strict=True) if value == size], axis=1)
        for size in sizes
    ]
    return Observations(axis, kind, np.array(sizes, float), tuple(grouped))


def _alike(chosen: Sequence[RunArm], moved: set[str]) -> None:
    """Refuses arms that differ in a field that is not to."""
    seen: dict[str, set[str]] = {}
    for arm in chosen:
        for field, value in arm.fields.items():
            seen.setdefault(field, set()).add(json.dumps(value))
    differing = [
        field
        for field, values in seen.items()
        if len(values) > 1 and field not in moved | {"arm", STRENGTH} and not field.startswith(_IRRELEVANT)
    ]
    if differing:
        raise UserError(
            f"The arms differ not only along the axis but also in {', '.join(differing)}: choose one value "
            f"(such as {differing[0].replace('.', '__')}=...), or name the field in varying=[...]."
        )
