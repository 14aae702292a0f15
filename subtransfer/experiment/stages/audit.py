"""Whether what the filters left of several policies' trajectories still looks different."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtransfer.analysis import audit
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import write_json
from subtransfer.experiment.stages import match
from subtransfer.runtime.json_files import read_json
from subtransfer.runtime.progress import progress
from subtransfer.store import trajectories
from subtransfer.store.trajectories import Trajectory

_FIELDS = ("setting", "audit.folds", "audit.permutations", "statistics.confidence")
_DROPPED = {"dropped_ids": [{"episode_id": str}]}


@reads(*_FIELDS)
def audited(
    out: Path,
    context: Context,
    *,
    data: Mapping[str, str],
    choices: Mapping[str, Sequence[str] | None],
    model: str,
    seed: int,
) -> None:
    """Compares the trajectories of each two policies of one model and training seed.

    Writes audit.json: a record for each two and for what a classifier is shown of them.

    Args:
      data: the stages of the sanitized trajectories, by whose they are: "trait", "benign" and
        other teachers' names, or "self", the base's own.
      choices: which of them are learned from, as of `match.chosen`.
      model: that the policies started from.
      seed: the training seed.
    """
    kept = {}
    for source, stage in data.items():
        kept[source] = match.chosen(context, stage, choices[source])
    _write(out, context, kept, {"model": model, "seed": seed})


@reads(*_FIELDS)
def own_audited(
    out: Path, context: Context, *, students: Mapping[str, str], arm: str, model: str, seed: int
) -> None:
    """Compares the episodes that on-policy students of two teachers learned from.

    Writes audit.json, as `audited` does; its records have the student's arm as "own".

    Args:
      students: the stages of the students, by what their teachers were taught: "trait" first.
      arm: of the student of the unsafe teacher.
      model: that both started from.
      seed: the training seed.
    """
    kept = {source: _kept_of(context, stage) for source, stage in students.items()}
    _write(out, context, kept, {"model": model, "seed": seed, "own": arm})


def _kept_of(context: Context, student: str) -> list[Trajectory]:
    """The stored episodes of an on-policy student that it learned from."""
    folder = context.input(student)
    remedy = "delete its folder and run again to make it anew"
    record = read_json(folder / "training.json", _DROPPED, remedy)
    dropped = {trace["episode_id"] for trace in record["dropped_ids"]}
    stored = trajectories.read(folder / "trajectories")
    return [episode for episode in stored if episode.episode_id not in dropped]


def _write(
    out: Path,
    context: Context,
    kept: Mapping[str, Sequence[Trajectory]],
    which: Mapping[str, Any],
) -> None:
    """Compares each two of some policies' trajectories.

    Args:
      kept: the trajectories, by whose they are.
      which: what all records have in common; it also decides the random draws.
    """
    config = context.config
    pairs = list(itertools.combinations(kept, 2))
    records: list[dict[str, Any]] = []
    with progress(context.stage, len(pairs), "comparisons") as advance:
        for first, second in pairs:
            both = [*kept[first], *kept[second]]
            labels = np.arange(len(both)) < len(kept[first])
            features = {
                audit.TEXT: audit.text_features(both),
                audit.BEHAVIOUR: audit.behaviour_features(both, context.setting),
            }
            for name, shown in features.items():
                key = context.key("audit", *which.values(), first, second, name)
                found = audit.compare(
                    shown,
                    labels,
                    [trajectory.task_id for trajectory in both],
                    folds=config.audit.folds,
                    permutations=config.audit.permutations,
                    confidence=config.statistics.confidence,
                    rng=np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist()),
                )
                counts = {"n_first": len(kept[first]), "n_second": len(kept[second])}
                of_two = {"first": first, "second": second, "features": name}
                records.append({**which, **of_two, **counts, **found})
            advance(1)
    write_json(out / "audit.json", {"comparisons": records})
