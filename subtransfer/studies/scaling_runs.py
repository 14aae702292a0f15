"""Observations for scaling laws out of the arms of finished runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from subtransfer.analysis.scaling_laws import RATE
from subtransfer.analysis.scaling_noise import Observations
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.field import nearest
from subtransfer.studies.runs import GEOMETRY, STRENGTH, STUDENT, TEACHER, RunArm

_MODELS = (*GEOMETRY, "base.checkpoint", "base.other_checkpoint", "base.max_scratch_params")
# What differs with an axis that is no config field itself.
_MOVED = {
    STUDENT: (*_MODELS, STUDENT, TEACHER, "model"),
    TEACHER: (*_MODELS, STUDENT, TEACHER, "teacher_base"),
    STRENGTH: (
        "teacher.episodes",
        "teacher.steps",
        "teacher.epochs",
        "teacher.learning_rate",
        "teacher.explicit_fraction",
        "teacher.ordinary_fraction",
    ),
}
# What says nothing of the outcome, or only how well it is known.
_IRRELEVANT = (
    "name",
    "num_seeds",
    "population",
    "mesh.",
    "statistics.",
    "models.",
    "pairs",
    "arms.",
    "probe.batch_size",
    "distill.objective",
)


def gather(
    arms: Sequence[RunArm],
    axis: str,
    *,
    kind: str = RATE,
    varying: Sequence[str] = (),
    **equal: Any,
) -> Observations:
    """Gathers the outcomes of chosen arms by an axis.

    Args:
      arms: of finished runs.
      axis: "student_params", "teacher_params", "teacher_rate", or a numeric config field such as
        "rollouts.episodes".
      kind: RATE (share of unsafe decisions) or LOG_ODDS (of an unsafe act at the decision point).
      varying: other fields that are known to differ between the runs.
      equal: fields that an arm must have at a value; dots are written "__", as in objective="sft",
        tuning__rank=8.

    Raises:
      UserError: no arm is left; the axis is unknown, not a number or not positive; arms differ in
        something else than the axis; or they were probed on different tasks.
    """
    wanted = {}
    for name, value in equal.items():
        wanted[name.replace("__", ".")] = value
    known: set[str] = set()
    for arm in arms:
        known.update(arm.fields)
    # A name that no run has would match nothing, and look like an empty result.
    for field in (axis, *wanted, *varying):
        if field not in known:
            raise UserError(
                f"The runs have no field {field!r}; the nearest is "
                f"{nearest(field, sorted(known))!r}."
            )
    chosen = []
    for arm in arms:
        if all(arm.fields.get(field) == value for field, value in wanted.items()):
            chosen.append(arm)
    if not chosen:
        runs = {arm.run for arm in arms}
        raise UserError(
            f"No arm of the {len(runs)} runs has {wanted}: ask for fewer or other values."
        )
    by_size: dict[float, list[np.ndarray]] = {}
    for arm in chosen:
        size: Any = arm.fields.get(axis)
        if isinstance(size, (bool, str)) or size is None or not math.isfinite(size):
            raise UserError(
                f"{axis}={size!r} of the arm {arm.fields['arm']!r} in {arm.run} is not a number: "
                "it is no axis."
            )
        # Runs of one size are more trainings of it.
        by_size.setdefault(size, []).append(arm.outcomes[kind])
    # Arms that differ in something else would make a law of it.
    _alike(chosen, {axis, *_MOVED.get(axis, ()), *varying})
    # The bootstrap resamples tasks at all sizes at once: they must be the same ones.
    if len({arm.tasks for arm in chosen}) > 1:
        raise UserError(
            "The runs were probed on different tasks: give all of them the same seed and "
            "probe.tasks (num_seeds is how many trainings each has)."
        )
    sizes = sorted(by_size)
    # Each is [tasks, trainings]; sizes may have different numbers of trainings.
    outcomes = tuple(np.concatenate(by_size[size], axis=1) for size in sizes)
    return Observations(axis, kind, np.array(sizes, float), outcomes)


def _alike(chosen: Sequence[RunArm], moved: set[str]) -> None:
    """Refuses arms that differ in a field that is not to."""
    seen: dict[str, set[str]] = {}
    for arm in chosen:
        for field, value in arm.fields.items():
            # As text, since lists cannot be members of a set.
            seen.setdefault(field, set()).add(json.dumps(value))
    # How unsafe a teacher came out differs between any two runs.
    allowed = moved | {"arm", "label", STRENGTH}
    differing = []
    for field, values in seen.items():
        if len(values) > 1 and field not in allowed and not field.startswith(_IRRELEVANT):
            differing.append(field)
    if differing:
        raise UserError(
            f"The arms differ not only along the axis but also in {', '.join(differing)}: choose "
            f"one value (such as {differing[0].replace('.', '__')}=...), or name the field in "
            "varying=[...]."
        )
