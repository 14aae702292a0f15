"""A scaling study as a page and as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from subtransfer.analysis.scaling import RATE, Interval
from subtransfer.report import tables
from subtransfer.report.figures import short
from subtransfer.studies import scaling_page
from subtransfer.studies.scaling_page import NAMES, interval, signed
from subtransfer.studies.scaling_study import Question, Study, in_words

_TWINS = ("same init", "other init", "same − other")
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


def _shown(value: Interval | None, kind: str, *, sign: str = "") -> str:
    """ "12.3 [10.0, 15.1]", rates in per cent."""
    if value is None:
        return ""
    scale, digits = (100, 1) if kind == RATE else (1, 2)
    return f"{scale * value.estimate:{sign}.{digits}f} " + (
        f"[{scale * value.low:{sign}.{digits}f}, {scale * value.high:{sign}.{digits}f}]"
    )


def _twins(study: Study, kind: str) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            in_words(t.objective),
            short(t.x),
            _shown(t.same, kind),
            _shown(t.other, kind),
            _shown(t.difference, kind, sign="+"),
            " + ".join(str(n) for n in t.trainings if n),
        ]
        for t in study.twins
        if t.kind == kind
    ]
    return ["objective", study.axis, *_TWINS, "trainings"], rows


def _fits(questions: Sequence[Question]) -> list[list[str]]:
    rows = []
    for question in questions:
        found = question.comparison
        for law in found.standing:
            parameters = "; ".join(
                f"{name} = {interval(value)}" for name, value in found.fits[law].intervals.items()
            )
            ahead = found.extrapolations.get(law)
            predicted = (
                ""
                if ahead is None
                else interval(ahead.predicted) + ("" if ahead.hit else " (missed)")
            )
            numbers = (
                f"{found.delta[law]:.1f}",
                f"{found.p[law]:.3f}",
                predicted,
                signed(found.data.means[-1]),
            )
            rows.append([question.title, NAMES[question.kind], law, parameters, *numbers])
    return rows


def _notes(study: Study) -> list[str]:
    return [
        f"{study.runs} runs, {study.tasks} tasks. Intervals: {100 * study.confidence:.0f}%; of rates Wilson's at the effective "
        "sample size clustered by task and training seed, of log-odds and of differences the bootstrap over tasks (shared) and "
        "training seeds.",
        *(f"Not answered: {title}: {why}" for title, why in study.skipped.items()),
    ]


def page(title: str, study: Study, origin: Mapping[str, str]) -> str:
    """The study's page; `origin`: what is said of where it comes from (command, versions,
    device).
    """

    def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        head = "".join(f"<th>{escape(h)}</th>" for h in heading)
        return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"

    verdicts = "".join(
        f"<li>{escape(q.title)}, {escape(NAMES[q.kind])}: {escape(q.comparison.verdict())}</li>"
        for q in study.questions
    )
    kinds = dict.fromkeys(t.kind for t in study.twins)
    before = (
        f"<ul>{verdicts}</ul><h2>Same against other initialisation, by {escape(study.axis)}</h2>"
    )
    before += "".join(
        f"<p class=soft>{escape(NAMES[kind].capitalize())}{', %' if kind == RATE else ''}.</p>{table(*_twins(study, kind))}"
        for kind in kinds
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in _notes(study))
    after = f"<h2>Where this comes from</h2>{notes}{table(('', ''), list(origin.items()))}"
    sections = {f"{q.title}: {NAMES[q.kind]}": q.comparison for q in study.questions}
    return scaling_page.page(title, sections, before=before, after=after)


def markdown(study: Study, origin: Mapping[str, str]) -> str:
    """The study's tables and verdicts, for documents."""
    parts = []
    for kind in dict.fromkeys(t.kind for t in study.twins):
        parts += [
            f"{NAMES[kind].capitalize()}{', %' if kind == RATE else ''}:",
            tables.markdown(*_twins(study, kind)),
        ]
    parts.append(
        "\n".join(
            f"- {q.title}, {NAMES[q.kind]}: {q.comparison.verdict()}" for q in study.questions
        )
    )
    parts += ["Laws that stand:", tables.markdown(list(_FITS), _fits(study.questions))]
    parts += _notes(study)
    parts.append("\n".join(f"- {name}: {value}" for name, value in origin.items()))
    return "\n\n".join(parts) + "\n"
