"""A scaling study: every question that the runs of a sweep can answer about one axis, and the
comparison of twins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from subtransfer.analysis import scaling, statistics
from subtransfer.analysis.scaling import (
    LAWS,
    LOG_ODDS,
    RATE,
    Comparison,
    Interval,
    Law,
    Observations,
)
from subtransfer.runtime.errors import UserError
from subtransfer.studies.runs import RunArm
from subtransfer.studies.scaling_runs import gather

SAME, OTHER = "same", "other"


@dataclasses.dataclass(frozen=True)
class Question:
    """How one outcome of one kind of student follows the axis.

    Attributes:
      objective: of distillation; init: SAME, OTHER, or "same - other": the difference of twins,
        seed by seed (log-odds only).
      comparison: of the laws, on its observations.
    """

    objective: str
    init: str
    comparison: Comparison

    @property
    def kind(self) -> str:
        return self.comparison.data.kind

    @property
    def title(self) -> str:
        inits = {SAME: "same initialisation", OTHER: "other initialisation"}
        return (
            f"{in_words(self.objective)}, {inits.get(self.init, 'same minus other initialisation')}"
        )


@dataclasses.dataclass(frozen=True)
class Twins:
    """Students of the teacher's initialisation and of another, at one value of the axis.

    Attributes:
      same, other: the outcome's mean with its interval, None where there is no such arm;
        difference: same - other.
      trainings: of the two.
    """

    objective: str
    kind: str
    x: float
    same: Interval | None
    other: Interval | None
    difference: Interval | None
    trainings: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Study:
    """What the runs say about an axis.

    Attributes:
      questions: in the order of objectives, rates before log-odds.
      twins: by objective, outcome and size.
      skipped: title -> why a question has no answer.
      runs, tasks: how many there were.
    """

    axis: str
    questions: list[Question]
    twins: list[Twins]
    skipped: dict[str, str]
    runs: int
    tasks: int
    confidence: float


def in_words(objective: str) -> str:
    """ "SFT", "forward KL"."""
    return " ".join(
        {"sft": "SFT", "kl": "KL", "jsd": "JSD"}.get(word, word) for word in objective.split("_")
    )


def study(
    arms: Sequence[RunArm],
    axis: str,
    *,
    varying: Sequence[str] = (),
    laws: Sequence[Law] = tuple(LAWS.values()),
    confidence: float = 0.95,
    n_boot: int = 400,
    seed: int = 0,
    log: Callable[[Question], None] = lambda question: None,
) -> Study:
    """Answers every question that the arms can answer: each objective with each initialisation,
    students of the unsafe teacher that learned from filtered trajectories.

    Args:
      axis, varying: as of `scaling_runs.gather`.
      log: called with each answer.

    Raises:
      UserError: no such arm, an unknown axis, or arms that differ in something else.
    """
    students = [
        a
        for a in arms
        if a.fields["objective"] and a.fields["source"] == "trait" and a.fields["sanitized"]
    ]
    if not students:
        raise UserError(
            "These runs have no student of the unsafe teacher: a study needs arms with an objective."
        )
    kinds = list(dict.fromkeys((a.fields["objective"], a.fields["init"]) for a in students))
    options = {"confidence": confidence, "n_boot": n_boot, "seed": seed}
    questions, twins, skipped = [], [], {}
    for objective in dict.fromkeys(objective for objective, _ in kinds):
        inits = [init for init in (SAME, OTHER) if (objective, init) in kinds]
        for kind in (RATE, LOG_ODDS):
            chosen = {
                "kind": kind,
                "varying": varying,
                "objective": objective,
                "source": "trait",
                "sanitized": True,
            }
            found = {init: gather(students, axis, init=init, **chosen) for init in inits}
            twins += _twins(objective, found, confidence, seed)
            if kind == LOG_ODDS and len(found) == 2:
                found[f"{SAME} - {OTHER}"] = _difference(*found.values())
            for init, data in found.items():
                if data is None:
                    continue
                try:
                    question = Question(objective, init, scaling.compare(data, laws, **options))
                except UserError as error:
                    skipped[f"{in_words(objective)}, {init} init, {kind}"] = str(error)
                    continue
                questions.append(question)
                log(question)
    runs, tasks = {a.run for a in students}, {a.tasks for a in students}
    return Study(axis, questions, twins, skipped, len(runs), max(map(len, tasks)), confidence)


def _difference(same: Observations, other: Observations) -> Observations | None:
    """Twins' log-odds subtracted, training seed by training seed (they have one teacher and one
    data order).
    """
    if not np.array_equal(same.x, other.x) or (same.seeds != other.seeds).any():
        return None
    outcomes = tuple(a - b for a, b in zip(same.outcomes, other.outcomes, strict=True))
    return dataclasses.replace(same, outcomes=outcomes)


def _twins(
    objective: str, found: dict[str, Observations], confidence: float, seed: int
) -> list[Twins]:
    data = next(iter(found.values()))
    by_size = {
        init: dict(zip(own.x.tolist(), own.outcomes, strict=True)) for init, own in found.items()
    }

    def mean(outcomes: np.ndarray | None) -> Interval | None:
        if outcomes is None:
            return None
        if data.kind == RATE:
            return Interval(*statistics.rate_interval(outcomes, confidence))
        return Interval(*statistics.bootstrap_mean(outcomes, confidence=confidence, seed=seed))

    out = []
    for x in sorted(set().union(*by_size.values())):
        same, other = (by_size.get(init, {}).get(x) for init in (SAME, OTHER))
        difference = None
        if same is not None and other is not None:
            difference = Interval(
                *statistics.bootstrap_difference(same, other, confidence=confidence, seed=seed)
            )
        trainings = tuple(0 if y is None else y.shape[1] for y in (same, other))
        out.append(Twins(objective, data.kind, x, mean(same), mean(other), difference, trainings))
    return out
