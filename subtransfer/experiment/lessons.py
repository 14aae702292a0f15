"""Whose trajectories are made, matched and compared in a run, by the stages that have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from subtransfer.config.arms import Arm
from subtransfer.experiment import names


def sources(arms: Iterable[Arm], *, first: bool) -> dict[str, dict[str, None]]:
    """Finds whose trajectories are made, by the model that the policies start from.

    Args:
      arms: of the run.
      first: of the first training seed. In that one the base's own are always there where a teacher
        has the unsafe trait, for the audit; in others where they are learned from. The base is the
        same in all of them.

    Returns:
      model -> the sources' names, as a dict that keeps their order.
    """
    out: dict[str, dict[str, None]] = {}
    for arm in arms:
        if arm.role == "teacher" or arm.source == "self":
            out.setdefault(arm.model, {})[arm.source] = None
    for found in out.values():
        if first and "trait" in found:
            found["self"] = None
    return out


def audited(arms: Iterable[Arm], seed: int, *, first: bool) -> dict[str, dict[str, str]]:
    """Finds the stages whose trajectories are compared: model -> source -> stage."""
    out: dict[str, dict[str, str]] = {}
    for model, found in sources(arms, first=first).items():
        # The unsafe teacher's are what others are compared with; one alone is like itself.
        if "trait" not in found or len(found) < 2:
            continue
        out[model] = {}
        for source in found:
            out[model][source] = names.rollout_stage(source, model, seed, sanitized=True)
    return out


def matched(arms: Sequence[Arm], seed: int, *, first: bool) -> tuple[list[str], list[str]]:
    """Finds the stages of which equally many trajectories are taken, in a training seed.

    Returns:
      (those that students learn from, unsanitized ones included; others that are compared with
      them).
    """
    learned: dict[str, None] = {}
    for arm in arms:
        if arm.off_policy and not arm.selection:
            learned[drawn_from(arm, seed)] = None
    compared: dict[str, None] = {}
    for of_sources in audited(arms, seed, first=first).values():
        compared |= dict.fromkeys(of_sources.values())
    return list(learned), [stage for stage in compared if stage not in learned]


def own_audited(arms: Iterable[Arm], seed: int) -> dict[Arm, dict[str, str]]:
    """Finds the on-policy students whose own episodes are compared with their harmless control's.

    Returns:
      student -> source of the teacher -> the stage of the student that it taught; "trait" first.
    """
    by_name = {arm.name: arm for arm in arms}
    out = {}
    for arm in by_name.values():
        control = by_name.get(arm.control or "")
        if arm.on_policy and control:
            of_two = (arm, control)
            out[arm] = {one.source: names.student_stage(one.name, seed) for one in of_two}
    return out


def data(arm: Arm, seed: int) -> str:
    """Returns the stage of the trajectories that an off-policy student learns from."""
    return names.dose_stage(arm.name, seed) if arm.overt_fraction else drawn_from(arm, seed)


def drawn_from(arm: Arm, seed: int) -> str:
    """Returns the stage of its teacher's trajectories on harmless tasks that it is given some of.

    Of an arm with an `overt_fraction`, others take their place afterwards.
    """
    sanitized = arm.sanitized or arm.overt_fraction > 0
    return names.rollout_stage(arm.source, arm.teacher_model, seed, sanitized=sanitized)


def tasks_in_words(rollouts: Any) -> str:
    """What a policy is rolled out on, from the fields of the config's room `rollouts`."""
    ordinary = round(rollouts.ordinary_fraction * rollouts.episodes)
    parts = {"safe": rollouts.episodes - ordinary, "ordinary": ordinary}
    counted = [f"{count} {kind}" for kind, count in parts.items() if count]
    return f"{rollouts.episodes} episodes: {', '.join(counted)} tasks"
