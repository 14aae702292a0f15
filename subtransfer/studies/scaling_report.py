"""A scaling study as a page and as markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from subtransfer.analysis.scaling import RATE, Interval
from subtransfer.report import tables
from subtransfer.report.figures import short
from subtransfer.studies import scaling_page
from subtransfer.studies.scaling_page import NAMES, interval, signed
from subtransfer.studies.scaling_study import Question, Study, in_words

_TWINS = ("same base", "other base", "same − other", "base pairs", "trainings")
_FITS = (
    "student",
    "outcome",
    "law",
    "parameters",
    "ΔAICc",
    "p (law)",
    "largest size, from the smaller",
    "observed there",
)


def _interval(value: Interval | None, kind: str, *, sign: str = "") -> str:
    """An interval, of rates in per cent: "12.3 [10.0, 15.1]"."""
    if value is None:
        return ""
    scale, digits = (100, 1) if kind == RATE else (1, 2)

    def text(number: float) -> str:
        return f"{scale * number:{sign}.{digits}f}"

    # Too few trainings have none.
    if math.isnan(value.low):
        return f"{text(value.estimate)} {tables.NO_INTERVAL}"
    return f"{text(value.estimate)} [{text(value.low)}, {text(value.high)}]"


def _twins(study: Study, kind: str) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the comparison of twins by one outcome."""
    rows = []
    for twins in study.twins:
        if twins.kind != kind:
            continue
        rows.append(
            [
                in_words(twins.objective),
                short(twins.x),
                _interval(twins.same, kind),
                _interval(twins.other, kind),
                _interval(twins.difference, kind, sign="+"),
                _both(twins.pairs),
                _both(twins.trainings),
            ]
        )
    return ["objective", study.axis, *_TWINS], rows


def _both(numbers: tuple[int, int]) -> str:
    """Numbers of the two as a sum; where one of the two is missing, its 0 would only puzzle."""
    return " + ".join(str(number) for number in numbers if number)


def _kind_title(kind: str) -> str:
    name = NAMES[kind]
    return f"{name[0].upper()}{name[1:]}{', %' if kind == RATE else ''}"


def _fits(questions: Sequence[Question]) -> list[list[str]]:
    """The laws that stand, a row each."""
    rows = []
    for question in questions:
        found = question.comparison
        for law in found.standing:
            ahead = found.extrapolations.get(law)
            # Too few sizes cannot be split into smaller ones and the one that they predict.
            predicted = ""
            if ahead is not None:
                predicted = interval(ahead.predicted) + ("" if ahead.hit else " (missed)")
            rows.append(
                [
                    question.title,
                    NAMES[question.kind],
                    law,
                    scaling_page.parameters(found.fits[law]),
                    f"{found.delta[law]:.1f}",
                    f"{found.p[law]:.3f}",
                    predicted,
                    signed(found.data.means[-1]),
                ]
            )
    return rows


def _notes(study: Study) -> list[str]:
    notes = [
        f"{study.runs} runs, {study.tasks} tasks. Intervals: {100 * study.confidence:.0f}%, over "
        "bases and tasks, a base being the mean of its trainings: of rates as in a run's results, "
        "of log-odds Student's t. One base has none, and says nothing of others."
    ]
    return notes


def _verdicts(study: Study) -> list[str]:
    """A sentence or two a question, and why others have no answer."""
    out = []
    for question in study.questions:
        verdict = question.comparison.verdict()
        out.append(f"{question.title}, {NAMES[question.kind]}: {verdict}")
    # A question that was left out silently would look like one that was never asked.
    for (title, kind), why in study.skipped.items():
        out.append(f"{title}, {NAMES[kind]}: no verdict. {why}")
    return out


def _kinds(study: Study) -> list[str]:
    """The outcomes that twins were compared by, each once, in the study's order."""
    return list(dict.fromkeys(twins.kind for twins in study.twins))


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def page(title: str, study: Study, origin: Mapping[str, str]) -> str:
    """Returns the study's page.

    Args:
      title: of the page.
      study: the answers.
      origin: what is said of where it comes from: command, versions, device.
    """
    twins = []
    # Rates and log-odds have different units: a table each.
    for kind in _kinds(study):
        heading, rows = _twins(study, kind)
        twins.append({"title": _kind_title(kind), "heading": heading, "rows": rows})
    comparisons = {}
    for question in study.questions:
        comparisons[f"{question.title}: {NAMES[question.kind]}"] = question.comparison
    return scaling_page.page(
        title,
        comparisons,
        study.confidence,
        verdicts=_verdicts(study),
        axis=study.axis,
        twins=twins,
        notes=_notes(study),
        origin=origin,
    )


def markdown(study: Study, origin: Mapping[str, str]) -> str:
    """Returns the study's tables and verdicts, for documents.

    Args:
      study: the answers.
      origin: as of `page`.
    """
    parts = []
    for kind in _kinds(study):
        parts += [f"{_kind_title(kind)}:", tables.markdown(*_twins(study, kind))]
    parts.append(_bullets(_verdicts(study)))
    if study.questions:
        parts += ["Laws that stand:", tables.markdown(_FITS, _fits(study.questions))]
    parts += _notes(study)
    parts.append(_bullets(map(": ".join, origin.items())))
    return "\n\n".join(parts) + "\n"
