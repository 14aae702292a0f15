"""Tables of crossed bases, for terminal and page: effects, pairs, arms over bases, gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subtransfer.analysis import audit, effects, over_bases, verdicts
from subtransfer.report import tables
from subtransfer.report.tables import Table

Results = Mapping[str, Any]
Row = Mapping[str, Any]

_EFFECTS = ("same", "other", "interaction", "p_holm", "p_equivalence_holm", "ratio", "gates")
_OVER_BASES = (
    "unsafe_rate",
    "diff_base",
    "p_base",
    "diff_student",
    "p_student",
    "unsafe_rate_acted",
    "no_action_rate",
    "ordinary_success",
    "ordinary_unsafe",
    "safe_success",
    "safe_unsafe",
)
# The columns that the terminal has room for.
TERMINAL_EFFECTS = _EFFECTS[:4]
TERMINAL_OVER_BASES = ("unsafe_rate", "diff_base", "diff_student", "ordinary_success")


def of_effects(results: Results, names: Sequence[str] = _EFFECTS) -> Table:
    """The effects of a run, with their verdicts; no rows where no bases were crossed.

    Args:
      results: results.json.
      names: of the further columns that are shown.
    """
    shown = [column for column in effects.COLUMNS if column.name in names]
    heading = ["objective", "verdict", "bases x seeds", *(column.label for column in shown)]
    rows = []
    for record in results.get("effects", []):
        label = record["label"] + (f"; {record['control']}" if record["control"] else "")
        size = f"{record['n_bases']} x {record['n_seeds']}"
        cells = [tables.cell(record, column) for column in shown]
        rows.append([label, record["verdict"], size, *cells])
    return Table(heading, rows)


def of_arms(results: Results, names: Sequence[str] = _OVER_BASES) -> Table:
    """The kinds of arms over all bases.

    Args:
      results: results.json.
      names: of the columns of numbers that are shown.
    """
    shown = [over_bases.named(name) for name in names]
    rows = []
    for record in results.get("over_bases", []):
        rows.append([record["label"], *(tables.cell(record, column) for column in shown)])
    return Table(["arm", *(column.label for column in shown)], rows)


def of_pairs(results: Results, rows: Sequence[Row], record: Mapping[str, Any]) -> Table:
    """The rate of each pair of bases: a row a teacher's base, a column a student's.

    Args:
      results: results.json.
      rows: results.csv.
      record: one of the effects.
    """
    bases, rates = pairs(results, rows, record)
    lines = []
    for base, of_teacher in zip(bases, rates, strict=True):
        cells = [f"{100 * rate:.1f}" for rate in of_teacher]
        lines.append([base, *cells, _worst_auc(results, base)])
    return Table(["teacher's base", *bases, "AUC of its data"], lines)


def pairs(
    results: Results, rows: Sequence[Row], record: Mapping[str, Any]
) -> tuple[list[str], np.ndarray]:
    """The bases of an effect, and the rates of its pairs [K, K]: the teacher's base first."""
    rate_of = {row["arm"]: row["unsafe_rate"] for row in rows}
    for crossing in effects.crossings(results["arms"]):
        if (crossing.objective, crossing.control) == (record["objective"], record["control"]):
            found = [
                [rate_of[crossing.arms[teacher, student]] for student in crossing.bases]
                for teacher in crossing.bases
            ]
            return list(crossing.bases), np.array(found, float)
    raise ValueError(f"{record['objective']} was not crossed")


def _worst_auc(results: Results, base: str) -> str:
    """How well the filtered trajectories of a base's unsafe teacher are told from others."""
    comparisons = results.get("audit", {"comparisons": []})["comparisons"]
    found = audit.worst(one for one in comparisons if one["model"] == base)
    return "" if found is None else f"{found['auc']:.2f}"


def of_gates(results: Results) -> Table:
    """What gates measured, beside their bounds."""
    rows = []
    passes = {True: "yes", False: "NO", None: "not measured"}
    for gate in results.get("gates", []):
        value = "" if gate["value"] is None else f"{100 * gate['value']:.1f}"
        bound = f"at {'least' if gate['least'] else 'most'} {100 * gate['bound']:.3g}"
        what = gate["what"] + (f", {gate['objective']}" if gate["objective"] else "")
        rows.append([gate["gate"], what, value, bound, passes[gate["passes"]]])
    return Table(["gate", "share of", "measured, %", "bound, %", "passes"], rows)


def all_tables(results: Results, rows: Sequence[Row]) -> list[tuple[str, Table]]:
    """What the terminal shows of a run of crossed bases: (title, table).

    Args:
      results: results.json.
      rows: results.csv.
    """
    out = [("effects of a shared base, %", of_effects(results, TERMINAL_EFFECTS))]
    for record in verdicts.asked(results):
        title = f"{record['label']}: rate by the student's base, %"
        out.append((title, of_pairs(results, rows, record)))
    out.append(("arms over all bases, %", of_arms(results, TERMINAL_OVER_BASES)))
    return out
