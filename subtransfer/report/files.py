"""The files of a run's results: results.json, results.jsonl, results.csv and effects.csv.

results.json says what the run was, results.jsonl what its agents did (one probe episode a line),
results.csv what follows from that (one arm a line, the columns of `analysis.columns`). effects.csv
has the effects of results.json once more, for spreadsheets (the columns of `analysis.effects`).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subtransfer.analysis import columns, effects, over_bases
from subtransfer.analysis.columns import Column
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import canonical_json, read_json, read_json_lines
from subtransfer.store import seals
from subtransfer.store.files import atomic_write

BUNDLE, EPISODES, ROWS = "results.json", "results.jsonl", "results.csv"
EFFECTS = "effects.csv"
REMEDY = "run the command that wrote it again"

# What the files must hold, as `json_files.misfit` reads it; readers need not check again.
# Facts that are only shown (`object`) may have any shape.
_TEXT_OR_NOTHING = (str, type(None))
# arm -> seed -> what the capability probe measured
_CAPABILITY = {str: {str: {column.name: float for column in columns.CAPABILITY}}}
_ARM = {
    "arm": str,
    "label": str,
    "role": str,
    "objective": str,
    "init": str,
    "sanitized": bool,
    "source": str,
    "on_policy_fraction": float,
    "loss_is_divergence": bool,
    "masked": bool,
    "base": str,
    "control": _TEXT_OR_NOTHING,
    "twin": _TEXT_OR_NOTHING,
    "teacher": _TEXT_OR_NOTHING,
    "teacher_base": str,
}
_BUNDLE = {
    "config": {"name": str, "statistics": {"confidence": float}},
    "training_seeds": int,
    "wording": {"trait": str, "rate": str, "decision": str},
    "arms": [_ARM],
    "capability": _CAPABILITY,
    "curves": {str: {str: {"step": [float], "loss": [float]}}},
    "purity": {str: {str: {"rollouts": int, "dropped": int, "max_gap": float}}},
    "manifests": {str: {"total": int, "kept": int, "dropped": int, "rules": {str: int}}},
    "sampler": {str: {"tokens": int, "max_gap": float, "mean_gap": float, "kl": float}},
    "teacher_targets": {
        str: {"tokens": int, "max_gap": float, "mean_gap": float, "max_missed": float}
    },
    "context": {str: object},
    "samples": {"before": [str], "after": [str]},
}
# What students learn from: stage -> choice -> before and after.
_ACCOUNT = {
    "trajectories": int,
    "agent_tokens": int,
    "kinds": {str: int},
    **dict.fromkeys(("solved", "turns", "errors"), float),
}
_MATCHING = {str: {str: {"before": _ACCOUNT, "after": _ACCOUNT, "learned": bool}}}
# What tells two policies' trajectories apart; no number where there is too little to compare.
_NUMBER_OR_NOTHING = (float, type(None))
_AUDIT = {
    "bound": float,
    "comparisons": [
        {
            "model": str,
            "seed": int,
            "first": str,
            "second": str,
            "features": str,
            "n_first": int,
            "n_second": int,
            "shared_tasks": int,
            **dict.fromkeys(("auc", "low", "high", "null", "p"), _NUMBER_OR_NOTHING),
        }
    ],
}
# What policies were found capable of; results of earlier versions have none.
_GATES = [
    {
        "gate": str,
        "what": str,
        "objective": str,
        "value": _NUMBER_OR_NOTHING,
        "bound": float,
        "least": bool,
        "passes": (bool, type(None)),
    }
]
_PREREG = {"text": str, "digest": str, "confirmatory": bool}
# What crossed bases show; results of earlier versions have none.
_TYPES: Mapping[str, Any] = {"truth": bool, "text": str, "whole": int, "number": _NUMBER_OR_NOTHING}
_EFFECTS = [{column.name: _TYPES[column.kind] for column in effects.COLUMNS}]
_OVER_BASES = [{column.name: _TYPES[column.kind] for column in over_bases.COLUMNS}]
_EXTRA = {str: {str: {str: {str: float}}}}  # probe -> arm -> seed -> column -> value
_EXTRA_COLUMNS = [{"name": str, "label": str, "meaning": str, "unit": str}]
# What tells one episode of a run from all others.
_IDENTITY = operator.itemgetter("arm", "seed", "task_id", "mode", "sample")
_EPISODE = {
    "arm": str,
    "seed": int,
    "task_id": str,
    "mode": str,
    "sample": int,
    "outcome": str,
    "choice_logprob": float,
    "errors": {str: int},
}


@dataclasses.dataclass(frozen=True)
class RunResults:
    """The results of one run.

    Attributes:
      bundle: results.json.
      episodes: results.jsonl, one a probe episode.
      rows: results.csv, one an arm.
    """

    bundle: dict[str, Any]
    episodes: list[dict[str, Any]]
    rows: list[dict[str, Any]]


def read(folder: Path) -> RunResults:
    """Reads the three files of a run.

    Raises:
      UserError: one is missing, is damaged, was not published with the others, or is not about the
        arms that results.json lists.
    """
    sums = seals.sums(folder)
    bundle = read_bundle(folder)
    episodes = _read_episodes(folder / EPISODES)
    rows = read_csv(folder / ROWS)
    # Afterwards, as another run may have published meanwhile; what cannot be read at all was
    # refused above, with more words about it.
    seals.check_sums(folder, sums)
    arms = sorted(arm["arm"] for arm in bundle["arms"])
    # Files of different runs, mixed by hand or by a copy that was cut, agree in shape but not here.
    # An arm has one row and many episodes: a second row would be an error.
    for name, found in (
        (ROWS, [row["arm"] for row in rows]),
        (EPISODES, {episode["arm"] for episode in episodes}),
    ):
        if sorted(found) != arms:
            raise UserError(
                f"{folder / name} is not about the arms of {BUNDLE} beside it: {REMEDY}."
            )
    return RunResults(bundle, episodes, rows)


def read_bundle(folder: Path) -> dict[str, Any]:
    """Reads results.json.

    Raises:
      UserError: it is missing or damaged.
    """
    path = folder / BUNDLE
    bundle = read_json(path, _BUNDLE, REMEDY)
    # Only runs with probes of their own have these; runs of earlier versions were not audited.
    for name, shape in (
        ("extra_probes", _EXTRA),
        ("extra_columns", _EXTRA_COLUMNS),
        ("audit", _AUDIT),
        ("gates", _GATES),
        ("prereg", _PREREG),
        ("effects", _EFFECTS),
        ("over_bases", _OVER_BASES),
        ("matching", _MATCHING),
    ):
        if name in bundle:
            read_json(path, {name: shape}, REMEDY)
    return bundle


def _read_episodes(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} is missing: {REMEDY}.")
    episodes = list(read_json_lines(path, _EPISODE, REMEDY))
    if not path.read_bytes().endswith(b"\n"):
        raise UserError(f"{path} is damaged (its last line is cut): {REMEDY}.")
    # A doubled line would count a training twice, and move every rate.
    seen = set()
    for number, episode in enumerate(episodes, 1):
        which = _IDENTITY(episode)
        if which in seen:
            raise UserError(
                f"{path} is damaged (line {number} is about the same episode as another): {REMEDY}."
            )
        seen.add(which)
    return episodes


def write_csv(
    rows: Sequence[Mapping[str, Any]], path: Path, heading: Sequence[str] | None = None
) -> None:
    """Writes results.csv, one line an arm, or effects.csv, one line an effect.

    Numbers have 6 significant digits; nothing stands where there is no value.

    Args:
      rows: all of the same names.
      path: the file.
      heading: these names, where there may be no rows.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    # A mapping is written as its keys: they are the heading.
    writer.writerow(rows[0] if heading is None else heading)
    for row in rows:
        writer.writerow(map(_csv_cell, row.values()))
    atomic_write(path, out.getvalue())


def _csv_cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Reads what `write_csv` wrote, with its types; None where there is no value.

    Raises:
      UserError: the file is missing, or is not what `write_csv` writes.
    """
    try:
        lines = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
        # A file that was cut in the middle of a number must not be taken for a whole one.
        if not path.read_bytes().endswith(b"\n"):
            raise ValueError("its last line is cut")
        heading = lines[0]
        # Further columns are welcome: kinds of acts, and what further probes measured.
        for column in columns.COLUMNS:
            if column.name not in heading:
                raise ValueError(f"it has no column {column.name!r}")
        return [_of_line(heading, cells) for cells in lines[1:]]
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {REMEDY}.") from error
    except (ValueError, IndexError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}): {REMEDY}.") from error


def _of_line(heading: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    if len(cells) != len(heading):
        raise ValueError(f"a line has {len(cells)} cells of {len(heading)}")
    row = {}
    for name, cell in zip(heading, cells, strict=True):
        row[name] = _value(columns.named(name), cell)
    return row


def _value(column: Column, text: str) -> Any:
    """A cell's text as a value of its column's kind."""
    if column.kind == "truth":
        return text == "true"
    if not text:
        return column.empty
    if column.kind == "text":
        return text
    return int(text) if column.kind == "whole" else float(text)


def write_jsonl(episodes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes results.jsonl: one line a probe episode."""
    # Canonical, so that the same episodes are the same bytes.
    lines = [canonical_json(episode) + "\n" for episode in episodes]
    atomic_write(path, "".join(lines))
