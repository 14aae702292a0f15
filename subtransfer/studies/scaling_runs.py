"""Observations for scaling laws out of the arms of finished runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from subtransfer.analysis.crossed import pseudo_values
from subtransfer.analysis.scaling_laws import RATE
from subtransfer.analysis.scaling_noise import Observations
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.field import nearest
from subtransfer.studies.runs import GEOMETRY, STRENGTH, STUDENT, TEACHER, RunArm

_MODELS = (*GEOMETRY, "base.checkpoint", "base.other_checkpoint", "base.max_scratch_params")
# What differs with an axis that is no config field itself.
_MOVED = {
    STUDENT: (*_MODELS, STUDENT, TEACHER, "model", "student_base"),
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
# Which bases an arm's two are. Several at one size are what a study needs.
_BASES = ("model", "teacher_base", "student_base")
# What says nothing of the outcome, or only how well it is known.
_IRRELEVANT = (
    "name",
    "num_seeds",
    "num_bases",
    "confirmatory",
    "share_prefix",
    "population",
    "mesh.",
    "statistics.",
    "gates.",
    "models.",
    "pairs",
    "arms.",
    "probe.batch_size",
    "distill.objective",
)


# A base of a run: its name, and all that decides which it is.
Base = tuple[str, str]
# Outcomes [T, S] by (teacher's base, student's base).
Cells = dict[tuple[Base, Base], np.ndarray]


def gather(
    arms: Sequence[RunArm],
    axis: str,
    *,
    kind: str = RATE,
    varying: Sequence[str] = (),
    **equal: Any,
) -> Observations:
    """Gathers the outcomes of chosen arms by an axis: `observations` of `by_size`.

    Args:
      arms: of finished runs.
      axis: "student_params", "teacher_params", "teacher_rate", or a numeric config field such as
        "rollouts.episodes".
      kind: RATE (share of unsafe decisions) or LOG_ODDS (of an unsafe act at the decision point).
      varying: other fields that are known to differ between the runs.
      equal: fields that an arm must have at a value; dots are written "__", as in objective="sft",
        tuning__rank=8.

    Raises:
      UserError: as `by_size` and `observations`.
    """
    return observations(by_size(arms, axis, kind=kind, varying=varying, **equal), axis, kind)


def observations(cells: Mapping[float, Cells], axis: str, kind: str) -> Observations:
    """Returns the outcomes of pairs of bases as outcomes of bases, by an axis.

    The pairs of one value share no base (each teaches itself, or a twin of its own), or are every
    two different ones of a crossing: then a base's outcome is its jackknife pseudo-value
    (`crossed.pseudo_values`). All pairs count alike, however many trainings they have.

    Args:
      cells: by value of the axis, ascending.
      axis: its name.
      kind: of the outcomes.

    Raises:
      UserError: the pairs of one value are neither, or these are no observations.
    """
    outcomes, bases = [], []
    for size, of_pairs in cells.items():
        of_bases, names = _of_bases(of_pairs, f"{axis}={size:g}")
        outcomes.append(of_bases)
        bases.append(names)
    return Observations(
        axis,
        kind,
        np.array(list(cells), float),
        tuple(outcomes),
        tuple(bases),
        np.array([trainings(of_pairs) for of_pairs in cells.values()]),
    )


def trainings(cells: Cells) -> int:
    """Returns how many trainings pairs of bases have together."""
    return sum(outcomes.shape[1] for outcomes in cells.values())


def crossing(cells: Cells) -> np.ndarray | None:
    """Returns the outcomes [K, K, 1, T], means over trainings, of a complete crossing.

    The order of the bases is that of their names. None if these are not all pairs of two bases or
    more.
    """
    bases = sorted({base for pair in cells for base in pair})
    if len(bases) < 2 or len(cells) < len(bases) ** 2:
        return None
    rows = []
    for teacher in bases:
        rows.append([cells[teacher, student].mean(axis=1) for student in bases])
    return np.array(rows)[:, :, None]


def _of_bases(cells: Cells, where: str) -> tuple[np.ndarray, tuple[Any, ...]]:
    """The outcomes [T, K] of the bases of one size, and their names [K]."""
    means = {}
    for pair, of_pair in cells.items():
        means[pair] = of_pair.mean(axis=1)
    bases = sorted({base for pair in cells for base in pair})
    taking_part = [base for pair in cells for base in set(pair)]
    # No base is in two pairs: what the pairs have is theirs alone.
    if len(taking_part) == len(bases):
        pairs = sorted(means)
        outcomes = np.stack([means[pair] for pair in pairs], axis=1)
        return outcomes, tuple(teacher for teacher, _ in pairs)
    crossed = {(a, b) for a in bases for b in bases if a != b}
    if means.keys() != crossed:
        raise UserError(
            f"At {where} the pairs of bases overlap and are no complete crossing, so that they are "
            "no independent pairs: choose init='same', or run all pairs (num_bases)."
        )
    # Two bases have one pair, there and back.
    if len(bases) == 2:
        return np.mean(list(means.values()), axis=0)[:, None], (tuple(bases),)
    # Nothing is read of where a base teaches itself.
    nothing = np.zeros((len(next(iter(means.values()))), 1))
    whole = crossing(dict(cells) | {(base, base): nothing for base in bases})
    assert whole is not None
    of_tasks = np.moveaxis(whole[:, :, 0], -1, 0)  # [T, K, K]
    return pseudo_values(of_tasks), tuple(bases)


def by_size(
    arms: Sequence[RunArm],
    axis: str,
    *,
    kind: str = RATE,
    varying: Sequence[str] = (),
    **equal: Any,
) -> dict[float, Cells]:
    """Returns the outcomes of chosen arms by the axis, ascending, and by the pair of bases.

    Args:
      arms: as of `gather`, and likewise the others.
      axis: where they stand.
      kind: of the outcomes.
      varying: fields that differ with the axis on purpose.
      equal: which arms are chosen.

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
    chosen_at: dict[float, list[RunArm]] = {}
    for arm in chosen:
        size: Any = arm.fields.get(axis)
        if isinstance(size, (bool, str)) or size is None or not math.isfinite(size):
            raise UserError(
                f"{axis}={size!r} of the arm {arm.fields['arm']!r} in {arm.run} is not a number: "
                "it is no axis."
            )
        chosen_at.setdefault(size, []).append(arm)
    # Arms that differ in something else would make a law of it.
    _alike(chosen_at.values(), {axis, *_MOVED.get(axis, ()), *varying})
    # The bootstrap resamples tasks at all sizes at once: they must be the same ones.
    if len({arm.tasks for arm in chosen}) > 1:
        raise UserError(
            "The runs were probed on different tasks: give all of them the same seed and "
            "probe.tasks (num_seeds is how many trainings each has)."
        )
    out = {}
    for size in sorted(chosen_at):
        parts: dict[tuple[Base, Base], list[np.ndarray]] = {}
        for arm in chosen_at[size]:
            pair = _base(arm, "teacher_base"), _base(arm, "model")
            parts.setdefault(pair, []).append(arm.outcomes[kind])
        # Runs of one pair are more trainings of it.
        out[size] = {pair: np.concatenate(of, axis=1) for pair, of in parts.items()}
    return out


def _base(arm: RunArm, field: str) -> Base:
    """One of an arm's bases: runs with one geometry, seed and so on have the same ones by name."""
    name = arm.fields[field]
    deciding = {}
    for known, value in arm.fields.items():
        if known in ("seed", f"models.{name}") or known.startswith("base."):
            deciding[known] = value
    return name, json.dumps(deciding, sort_keys=True)


def _alike(sizes: Iterable[Sequence[RunArm]], moved: set[str]) -> None:
    """Refuses arms, by size, that differ in a field that is not to."""
    seen: dict[str, set[str]] = {}
    for arms in sizes:
        # The bases of a size are several: the same names at every size.
        for field in _BASES:
            names = sorted({str(arm.fields[field]) for arm in arms})
            seen.setdefault(field, set()).add(json.dumps(names))
        for arm in arms:
            for field, value in arm.fields.items():
                # As text, since lists cannot be members of a set.
                if field not in _BASES:
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
