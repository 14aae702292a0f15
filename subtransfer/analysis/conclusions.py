"""What a run concludes: from the probes' episodes to rows, gates, effects and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subtransfer.analysis import effects, gates, outcomes, over_bases, summary


def conclude(
    results: Mapping[str, Any],
    episodes: Sequence[Mapping[str, Any]],
    *,
    acts: Sequence[str],
    filters: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Computes all that follows from a run's episodes.

    Args:
      results: as of results.json: "config", "arms" and "capability" are read.
      episodes: the probe's, as of results.jsonl.
      acts: the setting's harmless acts.
      filters: manifests of the filters of the unsafe teachers' trajectories.

    Returns:
      The rows of results.csv, and what results.json has of them: "gates", "effects" and
        "over_bases".
    """
    config = results["config"]
    confidence, margin = config["statistics"]["confidence"], config["statistics"]["margin"]
    rows = summary.summarise(results, episodes, acts=acts, confidence=confidence)
    gated = gates.measured(results["arms"], rows, filters, config["gates"])
    arms, of_arm = results["arms"], outcomes.by_arm(episodes)
    return rows, {
        "gates": gated,
        "effects": effects.measured(arms, of_arm, gated, confidence=confidence, margin=margin),
        "over_bases": over_bases.measured(arms, rows, of_arm, confidence=confidence),
    }
