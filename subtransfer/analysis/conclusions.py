"""What a run concludes of its episodes: gates, effects and verdicts."""

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
) -> dict[str, Any]:
    """Judges a run by its own config.

    Args:
      results: as of results.json: "config", "arms" and "capability" are read.
      episodes: the probe's, as of results.jsonl.
      acts: the setting's harmless acts.
      filters: manifests of the filters of the unsafe teachers' trajectories.

    Returns:
      "gates", "effects" and "over_bases" of results.json.
    """
    config, arms, of_arm = results["config"], results["arms"], outcomes.by_arm(episodes)
    confidence, margin = config["statistics"]["confidence"], config["statistics"]["margin"]
    rows = summary.measured(results, of_arm, acts=acts)
    gated = gates.measured(arms, rows, filters, config["gates"])
    return {
        "gates": gated,
        "effects": effects.measured(arms, of_arm, gated, confidence=confidence, margin=margin),
        "over_bases": over_bases.measured(arms, rows, of_arm, confidence=confidence),
    }
