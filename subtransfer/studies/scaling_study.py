"""A scaling study: all that the runs of a sweep can answer about one axis.

That is how each outcome follows the axis, and how students of the teacher's base stand to those of
other bases.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from subtransfer.analysis import crossed, scaling, statistics
from subtransfer.analysis.scaling import (
    DIFFERENCE,
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
from subtransfer.studies.scaling_runs import (
    Cells,
    by_size,
    crossing,
    observations,
    trainings,
)

SAME, OTHER = "same", "other"
INTERACTION = f"{SAME} - {OTHER}"


@dataclasses.dataclass(frozen=True)
class Question:
    """How one outcome of one kind of student follows the axis.

    Attributes:
      objective: of distillation.
      init: SAME, OTHER, or INTERACTION: same minus other, base by base.
      comparison: of the laws, on its observations.
    """

    objective: str
    init: str
    comparison: Comparison

    @property
    def kind(self) -> str:
        """The outcome: RATE, DIFFERENCE or LOG_ODDS."""
        return self.comparison.data.kind

    @property
    def title(self) -> str:
        """The question in words, without its outcome."""
        return _title(self.objective, self.init)


@dataclasses.dataclass(frozen=True)
class Twins:
    """Students of the teacher's base and of other bases, at one value of the axis.

    Attributes:
      objective: of distillation.
      kind: the outcome, RATE or LOG_ODDS.
      x: the value of the axis.
      same, other: the outcome's mean with its interval over bases, None where there is no such arm.
      difference: same - other.
      pairs: how many pairs of bases the two have.
      trainings: of the two.
    """

    objective: str
    kind: str
    x: float
    same: Interval | None
    other: Interval | None
    difference: Interval | None
    pairs: tuple[int, int]
    trainings: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Study:
    """What the runs say about an axis.

    Attributes:
      axis: its name.
      questions: in the order of objectives, rates before log-odds.
      twins: by objective, outcome and size.
      skipped: (title, kind) -> why a question has no answer.
      runs, tasks: how many there were.
      confidence: of all intervals.
    """

    axis: str
    questions: list[Question]
    twins: list[Twins]
    skipped: dict[tuple[str, str], str]
    runs: int
    tasks: int
    confidence: float


def in_words(objective: str) -> str:
    """Writes an objective's name in words: "SFT", "forward KL"."""
    capitals = {"sft": "SFT", "kl": "KL", "jsd": "JSD"}
    return " ".join(capitals.get(word, word) for word in objective.split("_"))


def _title(objective: str, init: str) -> str:
    inits = {SAME: "same initialisation", OTHER: "other initialisation"}
    return f"{in_words(objective)}, {inits.get(init, 'same minus other initialisation')}"


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
    skipped: dict[tuple[str, str], str] = {}
    for objective, there in kinds.items():
        inits = [init for init in (SAME, OTHER) if init in there]
        for kind in (RATE, LOG_ODDS):
            found: dict[str, Observations] = {}
            cells: dict[str, dict[float, Cells]] = {}
            for init in inits:
                chosen: dict[str, Any] = {"objective": objective, "init": init}
                cells[init] = by_size(students, axis, kind=kind, varying=varying, **chosen)
                found[init] = observations(cells[init], axis, kind)
            twins += _twins(objective, kind, cells, found, confidence)
            if len(found) == 2:
                difference = _difference(found[SAME], found[OTHER])
                if difference is not None:
                    found[INTERACTION] = difference
            for init, data in found.items():
                # One question without an answer leaves the others.
                try:
                    question = Question(objective, init, scaling.compare(data, laws, **options))
                except UserError as error:
                    skipped[_title(objective, init), data.kind] = str(error)
                    continue
                questions.append(question)
                log(question)
    runs = {arm.run for arm in students}
    most_tasks = max(len(arm.tasks) for arm in students)
    return Study(axis, questions, twins, skipped, len(runs), most_tasks, confidence)


def _difference(same: Observations, other: Observations) -> Observations | None:
    """Same minus other, base by base; None where the two are not of the same bases."""
    if not np.array_equal(same.x, other.x) or same.bases != other.bases:
        return None
    # Of a crossing, the difference of pseudo-values is the pseudo-value of the difference.
    return dataclasses.replace(
        same,
        kind=DIFFERENCE if same.kind == RATE else same.kind,
        outcomes=tuple(map(operator.sub, same.outcomes, other.outcomes)),
        trainings=same.trainings + other.trainings,
    )


def _twins(
    objective: str,
    kind: str,
    cells: Mapping[str, Mapping[float, Cells]],
    found: Mapping[str, Observations],
    confidence: float,
) -> list[Twins]:
    """The comparison of an objective's students at each size.

    Args:
      objective: theirs.
      kind: of the outcomes.
      cells: by initialisation and size.
      found: by initialisation, the same by base.
      confidence: of the intervals.
    """
    by_base: dict[str, dict[float, np.ndarray]] = {SAME: {}, OTHER: {}}
    for init, data in found.items():
        by_base[init] = dict(zip(data.x.tolist(), data.outcomes, strict=True))
    out = []
    # Sizes that only one of the two has are shown too, without a difference.
    for x in sorted(by_base[SAME] | by_base[OTHER]):
        same, other = cells.get(SAME, {}).get(x, {}), cells.get(OTHER, {}).get(x, {})
        whole = crossing({**same, **other})
        if kind == RATE and whole is not None:
            means = _of_crossing(whole, confidence)
        else:
            means = _of_bases(kind, by_base[SAME].get(x), by_base[OTHER].get(x), confidence)
        pairs, trained = (len(same), len(other)), (trainings(same), trainings(other))
        out.append(Twins(objective, kind, x, *means, pairs, trained))
    return out


_Means = tuple[Interval | None, Interval | None, Interval | None]


def _of_crossing(outcomes: np.ndarray, confidence: float) -> _Means:
    """(same, other, same - other) of the rates of a complete crossing [K, K, S, T]."""
    effect = crossed.effect(outcomes, confidence)
    return Interval(*effect.same), Interval(*effect.other), Interval(*effect.interaction[:3])


def _of_bases(
    kind: str, same: np.ndarray | None, other: np.ndarray | None, confidence: float
) -> _Means:
    """(same, other, same - other) of outcomes [T, K] by base, None where there are none."""

    def mean(outcomes: np.ndarray | None) -> Interval | None:
        if outcomes is None:
            return None
        if kind == RATE:
            return Interval(*crossed.rate(_one_seed(outcomes), confidence))
        return Interval(*statistics.mean_interval(outcomes, confidence))

    difference = None
    if same is not None and other is not None and same.shape == other.shape:
        if kind == RATE:
            found, _ = crossed.difference(_one_seed(same), _one_seed(other), confidence)
            difference = Interval(*found[:3])
        else:
            difference = Interval(*statistics.mean_difference(same, other, confidence))
    return mean(same), mean(other), difference


def _one_seed(outcomes: np.ndarray) -> np.ndarray:
    """Outcomes [T, K] as [K, 1, T]."""
    return outcomes.T[:, None]
