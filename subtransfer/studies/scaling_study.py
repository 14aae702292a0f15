"""A scaling study: all that the runs of a sweep can answer about one axis.

That is how each outcome follows the axis, and how students of the teacher's initialisation stand to
their twins of another.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

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
      objective: of distillation.
      init: SAME, OTHER, or "same - other": the difference of twins, seed by seed (log-odds only).
      comparison: of the laws, on its observations.
    """

    objective: str
    init: str
    comparison: Comparison

    @property
    def kind(self) -> str:
        """The outcome: RATE or LOG_ODDS."""
        return self.comparison.data.kind

    @property
    def title(self) -> str:
        """The question in words, without its outcome."""
        inits = {SAME: "same initialisation", OTHER: "other initialisation"}
        init = inits.get(self.init, "same minus other initialisation")
        return f"{in_words(self.objective)}, {init}"


@dataclasses.dataclass(frozen=True)
class Twins:
    """Students of the teacher's initialisation and of another, at one value of the axis.

    Attributes:
      objective: of distillation.
      kind: the outcome, RATE or LOG_ODDS.
      x: the value of the axis.
      same, other: the outcome's mean with its interval, None where there is no such arm.
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
      axis: its name.
      questions: in the order of objectives, rates before log-odds.
      twins: by objective, outcome and size.
      skipped: title -> why a question has no answer.
      runs, tasks: how many there were.
      confidence: of all intervals.
    """

    axis: str
    questions: list[Question]
    twins: list[Twins]
    skipped: dict[str, str]
    runs: int
    tasks: int
    confidence: float


def in_words(objective: str) -> str:
    """Writes an objective's name in words: "SFT", "forward KL"."""
    capitals = {"sft": "SFT", "kl": "KL", "jsd": "JSD"}
    return " ".join(capitals.get(word, word) for word in objective.split("_"))


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
    """Answers every question that the arms can answer: each objective with each initialisation.

    Only students of the unsafe teacher that learned from filtered trajectories are looked at.

    Args:
      arms: of finished runs.
      axis: as of `scaling_runs.gather`.
      varying: likewise.
      laws: the candidates.
      confidence: of all intervals.
      n_boot: bootstrap samples of each fit.
      seed: of the bootstrap.
      log: called with each answer.

    Raises:
      UserError: no such arm, an unknown axis, or arms that differ in something else.
    """
    students = []
    for arm in arms:
        fields = arm.fields
        if fields["objective"] and fields["source"] == "trait" and fields["sanitized"]:
            students.append(arm)
    if not students:
        raise UserError(
            "These runs have no student of the unsafe teacher: a study needs arms with an "
            "objective."
        )
    # Of each objective, in the order of the runs, the initialisations that there are.
    kinds: dict[str, set[str]] = {}
    for arm in students:
        kinds.setdefault(arm.fields["objective"], set()).add(arm.fields["init"])
    options: dict[str, Any] = {"confidence": confidence, "n_boot": n_boot, "seed": seed}
    questions: list[Question] = []
    twins: list[Twins] = []
    skipped: dict[str, str] = {}
    for objective, there in kinds.items():
        inits = [init for init in (SAME, OTHER) if init in there]
        for kind in (RATE, LOG_ODDS):
            found: dict[str, Observations] = {}
            for init in inits:
                found[init] = gather(
                    students, axis, kind=kind, varying=varying, objective=objective, init=init
                )
            twins += _twins(objective, found, confidence)
            # A difference of shares is no share, and has no law here.
            if kind == LOG_ODDS and len(found) == 2:
                difference = _difference(found[SAME], found[OTHER])
                if difference is not None:
                    found[f"{SAME} - {OTHER}"] = difference
            for init, data in found.items():
                # One question without an answer leaves the others.
                try:
                    question = Question(objective, init, scaling.compare(data, laws, **options))
                except UserError as error:
                    skipped[f"{in_words(objective)}, {init} init, {kind}"] = str(error)
                    continue
                questions.append(question)
                log(question)
    runs = {arm.run for arm in students}
    most_tasks = max(len(arm.tasks) for arm in students)
    return Study(axis, questions, twins, skipped, len(runs), most_tasks, confidence)


def _difference(same: Observations, other: Observations) -> Observations | None:
    """Twins' log-odds subtracted, training seed by training seed; None where they do not match.

    Twins of one training seed have one teacher and one order of the data.
    """
    if not np.array_equal(same.x, other.x) or (same.seeds != other.seeds).any():
        return None
    # Subtracting within a training removes what its teacher and its data order do to both twins,
    # so the difference is known better than either.
    outcomes = map(operator.sub, same.outcomes, other.outcomes)
    return dataclasses.replace(same, outcomes=tuple(outcomes))


def _twins(objective: str, found: dict[str, Observations], confidence: float) -> list[Twins]:
    """The comparison of an objective's students at each size.

    Args:
      objective: theirs.
      found: their outcomes by initialisation.
      confidence: of the intervals.
    """
    kind = next(iter(found.values())).kind
    by_size: dict[str, dict[float, np.ndarray]] = {SAME: {}, OTHER: {}}
    for init, data in found.items():
        by_size[init] = dict(zip(data.x.tolist(), data.outcomes, strict=True))

    def mean(outcomes: np.ndarray | None) -> Interval | None:
        if outcomes is None:
            return None
        if kind == RATE:
            return Interval(*statistics.rate_interval(outcomes, confidence))
        return Interval(*statistics.mean_interval(outcomes, confidence))

    def trainings(outcomes: np.ndarray | None) -> int:
        return 0 if outcomes is None else outcomes.shape[1]

    out = []
    # Sizes that only one of the two has are shown too, without a difference.
    for x in sorted(by_size[SAME] | by_size[OTHER]):
        same, other = by_size[SAME].get(x), by_size[OTHER].get(x)
        difference = None
        if same is not None and other is not None:
            if kind == RATE:
                difference = Interval(*statistics.rate_difference(same, other, confidence)[:3])
            else:
                difference = Interval(*statistics.mean_difference(same, other, confidence))
        numbers = trainings(same), trainings(other)
        out.append(Twins(objective, kind, x, mean(same), mean(other), difference, numbers))
    return out
