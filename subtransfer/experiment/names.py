"""The names of stages: the one module where they are made and read.

A name is a kind, what the stage is of, and the training seed, joined by dots: "student.sft.seed0",
"sanitize.trait.large.seed1", "probe.base.seed0". Parts hold no dots and arms have different names
(`check_arms` and `config/arms.py` refuse others), so that different stages have different names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from subtransfer.config.arms import Arm
from subtransfer.config.bases import EMBEDDED
from subtransfer.runtime.errors import UserError

CORPUS = "corpus"
PREREG = "prereg"
RESULTS = "results"
REPORT = "report"

_PART = re.compile(r"\w+")
# Kinds whose stages train something, and those whose artefact is a tuned policy.
_TRAINED = ("base", "base_other", "population", "teacher", "student")
_TUNED = ("teacher", "student")
# Metrics of a stage are shown below these words where its kind is not one itself.
_SCOPES = {"student": "distill", "base_other": "base"}


# -- making ----------------------------------------------------------------------------------------


def base_stage(model: str) -> str:
    """The stage that makes a model."""
    return model if model in EMBEDDED else f"base.{model}"


def checkpoint_stage(model: str) -> str:
    """The stage that reads the checkpoint of which an agent is made."""
    return f"checkpoint.{model}"


def teacher_stage(source: str, model: str, seed: int) -> str:
    """The stage whose policy a source's trajectories come from."""
    # Who is distilled from itself has the base for a teacher.
    if source == "self":
        return base_stage(model)
    return f"teacher.{_of(source, model)}.seed{seed}"


def rollout_stage(source: str, model: str, seed: int, *, sanitized: bool = False) -> str:
    """The stage of a source's trajectories, before or after the filters."""
    kind = "sanitize" if sanitized else "rollouts"
    return f"{kind}.{_of(source, model)}.seed{seed}"


def overt_stage(source: str, model: str, seed: int) -> str:
    """The stage of a source's trajectories on ambiguous tasks, which pass no filter."""
    return f"overt.{_of(source, model)}.seed{seed}"


def dose_stage(arm: str, seed: int) -> str:
    """The stage of the trajectories of an arm, some of which show the habit in plain sight."""
    return f"dose.{arm}.seed{seed}"


def audit_stage(model: str, seed: int) -> str:
    """The stage that compares the sanitized trajectories of a model's policies with each other."""
    return f"audit.{model}.seed{seed}"


def match_stage(seed: int) -> str:
    """The stage that chooses equally many trajectories of all sources of a training seed."""
    return f"match.seed{seed}"


def structure_stage(model: str, seed: int) -> str:
    """The stage that chooses trajectories of a model's unsafe teacher by how they are built."""
    return f"structure.{model}.seed{seed}"


def own_audit_stage(arm: str, seed: int) -> str:
    """The stage that compares an on-policy student's own episodes with its harmless control's."""
    return f"audit_own.{arm}.seed{seed}"


def targets_stage(source: str, model: str, seed: int, selection: str = "") -> str:
    """The stage of a source's stored opinion of its sanitized trajectories, or of some of them."""
    kind = f"targets_{selection}" if selection else "targets"
    return f"{kind}.{_of(source, model)}.seed{seed}"


def student_stage(arm: str, seed: int) -> str:
    """The stage that trains the student of an arm."""
    return f"student.{arm}.seed{seed}"


def policy_stage(arm: Arm, seed: int) -> str:
    """The stage whose artefact is the arm's policy."""
    if arm.role == "base":
        return base_stage(arm.model)
    if arm.role == "teacher":
        return teacher_stage(arm.source, arm.model, seed)
    return student_stage(arm.name, seed)


def population_stage(members: Sequence[str], seeds: Sequence[int]) -> str:
    """The stage that trains the stages `members` of one kind, of consecutive seeds, together."""
    # The seeds are in the name, as a run has one population for each group of them.
    without_seed = members[0].rpartition(".")[0]
    return f"population.{without_seed}.seeds{seeds[0]}to{seeds[-1]}"


def probe_stage(arm: str, seed: int, probe: str = "") -> str:
    """The stage that probes the policy of an arm: by the usual probes, or by one of a plugin."""
    kind = f"probe_{probe}" if probe else "probe"
    return f"{kind}.{arm}.seed{seed}"


def choice_stage(model: str) -> str:
    """The stage that scores the decisions of all policies of a model."""
    return f"choice.{model}"


def _of(source: str, model: str) -> str:
    return source if model in EMBEDDED else f"{source}.{model}"


# -- reading ---------------------------------------------------------------------------------------


def kind(name: str) -> str:
    """What sort of stage a name, or the name of an artefact's folder, is of: its first word."""
    # A folder's name has the key's digest after a hyphen, which no part of a stage's name holds.
    return name.partition(".")[0].partition("-")[0]


def is_population(name: str) -> bool:
    """Whether a stage trains several others together."""
    return kind(name) == "population"


def is_trained(name: str) -> bool:
    """Whether a stage is of a kind that trains something (or takes it out of a population)."""
    return kind(name) in _TRAINED


def is_tuned(name: str) -> bool:
    """Whether a stage's artefact is a policy that was tuned from a base."""
    return kind(name) in _TUNED


def is_of_trait(sanitized: str) -> bool:
    """Whether a stage of filters is of the trajectories of a teacher with the unsafe trait."""
    return sanitized.split(".")[1] == "trait"


def raw_of(sanitized: str) -> str:
    """The stage of the trajectories that a stage of filters reads."""
    return "rollouts" + sanitized.removeprefix("sanitize")


def metrics_scope(name: str) -> str:
    """The word below which a training's metrics are shown."""
    return _SCOPES.get(kind(name), kind(name))


# -- checking --------------------------------------------------------------------------------------


def check_arms(arms: Iterable[Arm]) -> None:
    """Refuses arms whose names cannot be part of a stage's.

    Raises:
      UserError: it names one.
    """
    for arm in arms:
        for part in (arm.name, arm.model, arm.teacher_model, arm.source):
            if not _PART.fullmatch(part):
                raise UserError(
                    f"{part!r} cannot be part of a stage's name: use letters, digits and _ only."
                )
