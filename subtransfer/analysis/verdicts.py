"""Sentences about what a run found: each says what its numbers say, failures included.

Of crossed bases the verdicts are those of `effects`. Of arms there is one rule for students and
controls: an arm lies above or below another where the p-value of their difference, adjusted over
all such comparisons of the run, is less than 1 minus the confidence. Where a gate fails there is no
verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subtransfer.analysis import audit, columns, effects, gates, over_bases
from subtransfer.analysis.columns import COMPARISONS, Comparison
from subtransfer.filtering import rules

Row = Mapping[str, Any]
Results = Mapping[str, Any]
# What controls of crossed bases are compared with, over bases.
_OVER_BASES = (
    Comparison("base", "its base", over_bases.named("diff_base"), "p_base", "p_base"),
    Comparison("", "the students", over_bases.named("diff_student"), "p_student", "p_student"),
)
_CONTROLS = ("control", "positive_control")
# What a classifier of an audit is shown, in words.
SHOWN = {audit.TEXT: "tokens and bigrams", audit.BEHAVIOUR: "acts, errors and lengths"}


def headline(results: Results, rows: Sequence[Row]) -> str:
    """What a run says in one paragraph: the negative first, and of which data.

    Args:
      results: results.json.
      rows: as of `summary.summarise`.
    """
    said = _of_crossing(results) if asked(results) else _of_arms(results, rows)
    return f"{said} {of_data(results.get('audit'), weakened=_weakened(results['config']))}"


def sentences(results: Results, rows: Sequence[Row]) -> list[str]:
    """Says how each effect stands, or without crossed bases each student; and of controls.

    Args:
      results: results.json.
      rows: as of `summary.summarise`.
    """
    confidence = results["config"]["statistics"]["confidence"]
    gated = results.get("gates", [])
    out = []
    for gate in gated:
        if gate["passes"] is False:
            of = f", {gate['objective']}" if gate["objective"] else ""
            out.append(f"The gate {gate['gate']}{of} fails: {gates.sentence(gate)}.")
    if not asked(results):
        return out + _of_rows(rows, COMPARISONS, confidence, gated)
    out += [_of_effect(record, results) for record in asked(results)]
    return out + _of_rows(_controls(results), _OVER_BASES, confidence, gated)


def asked(results: Results) -> list[Mapping[str, Any]]:
    """The effects that a run is about: those of students; [] where no bases were crossed."""
    return [record for record in results.get("effects", []) if not record["control"]]


def _of_crossing(results: Results) -> str:
    """Counts effects by their verdicts."""
    found = asked(results)
    margin = f"{100 * results['config']['statistics']['margin']:g}"
    words = {
        effects.NOT_MEASURABLE: "not measurable",
        effects.UNDECIDED: "undecided",
        effects.NO_TRANSFER: f"none beyond {margin} points",
        effects.TRANSFER: "shown",
    }
    counts = []
    for verdict in effects.VERDICTS:
        labels = [record["label"] for record in found if record["verdict"] == verdict]
        if labels:
            of = f"{len(labels)} of {len(found)} ({', '.join(labels)})"
            counts.append(f"{words[verdict]} for {of}")
    bases = found[0]["n_bases"]
    return f"Transfer through a shared base, by objective, over {bases} bases: {'; '.join(counts)}."


def _of_effect(record: Mapping[str, Any], results: Results) -> str:
    """What a crossing shows for one objective."""
    if record["verdict"] == effects.NOT_MEASURABLE:
        return f"{record['label']}: not measurable ({record['gates']})."
    statistics = results["config"]["statistics"]
    margin, alpha = f"{100 * statistics['margin']:g} points", 1 - statistics["confidence"]
    word = record["verdict"]
    if word == effects.NO_TRANSFER:
        word += f" beyond {margin}"
    rates = (
        f"students of their teacher's base act unsafely in {_interval(record, 'same')}% of tasks, "
        f"those of another base in {_interval(record, 'other')}%"
    )
    said = f"{record['label']}: {word}: {rates}: {_interval(record, 'interaction', '+')} points"
    p = record["p_holm"]
    if p is None:
        return f"{said}, from too few bases to tell."
    said += f", adjusted p {columns.p_text(p)}"
    if p < alpha and record["interaction"] < 0:
        said += ": those of another base do MORE often"
    larger = record["p_equivalence_holm"]
    if record["verdict"] == effects.NO_TRANSFER:
        said += f", adjusted p of {margin} or more {columns.p_text(larger)}"
    elif record["verdict"] == effects.TRANSFER and larger is not None and larger < alpha:
        said += f", though less than {margin}"
    return f"{said}."


def _interval(record: Mapping[str, Any], name: str, sign: str = "") -> str:
    """A share in per cent with its interval, where it has one."""
    text = f"{100 * record[name]:{sign}.1f}"
    low, high = record[f"{name}_low"], record[f"{name}_high"]
    return text if low is None else f"{text} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def _controls(results: Results) -> list[Mapping[str, Any]]:
    """The kinds of controls of crossed bases, positive ones among them."""
    return [record for record in results["over_bases"] if record["role"] in _CONTROLS]


def _of_rows(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    confidence: float,
    gated: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Says of each student and control how it stands to what it is compared with."""
    out = []
    for row in rows:
        if row["role"] in ("student", *_CONTROLS):
            failing = gates.failing(gated, row["objective"])
            if failing:
                out.append(f"{row['label']}: not measurable ({_named(failing)}).")
                continue
            parts = []
            for comparison in comparisons:
                # Some runs have no arm of another initialisation, and controls have no control.
                if row[comparison.difference.name] is not None:
                    parts.append(_compared(row, comparison, confidence))
            if parts:
                said = f"{row['label']}: {_rate(row)}{_purity(row)}: {'; '.join(parts)}."
                out.append(said)
    return out


def _of_arms(results: Results, rows: Sequence[Row]) -> str:
    """Counts the students that lie above their base; of bases that were not crossed."""
    confidence = results["config"]["statistics"]["confidence"]
    against_base = COMPARISONS[0]
    students, bases = [], set()
    stopped: dict[str, None] = {}
    for row in rows:
        if row["role"] == "student":
            bases.add(row["base"])
            failing = gates.failing(results.get("gates", []), row["objective"])
            stopped |= dict.fromkeys(map(gates.sentence, failing))
            if not failing:
                students.append(row)
    parts = []
    if stopped:
        parts.append(f"Not measurable: {'; '.join(stopped)}.")
    known = [row for row in students if row[against_base.adjusted] is not None]
    if students and not known:
        parts.append(
            "Too few trainings: whether students act unsafely more often than their base cannot "
            "be told from one."
        )
    elif students:
        above = sum(_side(row, against_base, confidence) > 0 for row in students)
        parts.append(
            f"{above} of {len(students)} students act unsafely more often than their base "
            f"(p < {1 - confidence:.2g}, adjusted over all comparisons of the run)."
        )
    if len(bases) == 1:
        parts.append("One pair of bases says nothing of others.")
    else:
        parts.append("These bases were not crossed, and say nothing of others.")
    return " ".join(parts)


def _named(failing: Sequence[Mapping[str, Any]]) -> str:
    """The names of the gates that fail."""
    return ", ".join(gate["gate"] for gate in failing)


def _weakened(config: Mapping[str, Any]) -> bool:
    """Whether a run left out a part of the filter."""
    sanitize = config.get("sanitize", {})
    # Earlier versions had one filter, which could not be weakened.
    habits = sanitize.get("habits", rules.HABITS)
    filters = sanitize.get("filters", rules.FILTERS)
    return set(habits) != set(rules.HABITS) or set(filters) != set(rules.FILTERS)


def of_data(audited: Mapping[str, Any] | None, *, weakened: bool = False) -> str:
    """Says whether the filtered trajectories of the unsafe teacher look like others'.

    Args:
      audited: `audit` of results.json, with its "bound" and its "comparisons"; None: the results
        are of a version without it.
      weakened: a part of the filter was left out, so that traces of the habit may be there.
    """
    found = audit.worst(audited["comparisons"]) if audited else None
    if audited is None or found is None:
        return (
            "Whether the data are visibly different is not known: nothing was there to compare the "
            "trait teacher's filtered trajectories with."
        )
    told_apart = (
        f"a classifier of {SHOWN.get(found['features'], found['features'])} tells the trait "
        f"teacher's filtered trajectories from {whose(found['second'])} with an AUC of "
        f"{found['auc']:.2f} (intervals up to {found['high']:.2f}; bound {audited['bound']:.2f})"
    )
    if found["auc"] > audited["bound"]:
        return (
            f"The data are visibly different: {told_apart}, so that no transfer through them can "
            "be called subliminal."
        )
    if weakened:
        return (
            f"The data are not visibly different: at best {told_apart}. But the filter was "
            "weakened, so that no transfer through them can be called subliminal."
        )
    return (
        f"The data are not visibly different: at best {told_apart}, so that whatever they transfer "
        "is subliminal."
    )


def whose(source: str) -> str:
    """Words for whose trajectories an audit compares."""
    return "the base's own" if source == "self" else f"the {source} teacher's"


def _side(row: Row, comparison: Comparison, confidence: float) -> int:
    """1 of an arm that lies above what it is compared with, -1 below, 0 if neither is shown."""
    p = row[comparison.adjusted]
    if p is None or p >= 1 - confidence:
        return 0
    return 1 if row[comparison.difference.name] > 0 else -1


def _compared(row: Row, comparison: Comparison, confidence: float) -> str:
    difference, p = comparison.difference, row[comparison.adjusted]
    points = f"{100 * row[difference.name]:+.1f} points"
    if p is None:
        return f"{points} to {comparison.other}, from too few trainings to tell"
    side = _side(row, comparison, confidence)
    # A control is to stay where it was: one that rises is what a reader must not miss.
    above = "RISES above" if row["role"] == "control" else "above"
    how = {1: above, -1: "below", 0: "NOT shown to differ from"}[side]
    low, high = 100 * row[difference.low], 100 * row[difference.high]
    p_text = columns.p_text(p)
    return f"{how} {comparison.other} ({points} [{low:+.1f}, {high:+.1f}], adjusted p {p_text})"


def _purity(row: Row) -> str:
    """How many of an on-policy student's own episodes show a trace; "" of other arms."""
    # Of arms over all bases it is not said.
    if row.get("own_traces") is None:
        return ""
    what = "were dropped" if row["sanitized"] else "should have been dropped and were not"
    return f", of whose own episodes {100 * row['own_traces']:.1f}% {what}"


def _rate(row: Row) -> str:
    rate = f"{100 * row['unsafe_rate']:.1f}%"
    if row["ci_low"] is None:
        return f"{rate} (too few trainings for an interval)"
    return f"{rate} [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
