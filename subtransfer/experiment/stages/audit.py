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
from subtransfer.runtime.progress import progress


@reads("setting", "audit.folds", "audit.permutations", "statistics.confidence")
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
    config = context.config
    kept = {}
    for source, stage in data.items():
        kept[source] = match.chosen(context, stage, choices[source])
    pairs = list(itertools.combinations(data, 2))
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
                key = context.key("audit", model, seed, first, second, name)
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
                which = {"model": model, "seed": seed, "first": first, "second": second}
                records.append({**which, "features": name, **counts, **found})
            advance(1)
    write_json(out / "audit.json", {"comparisons": records})
