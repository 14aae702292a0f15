"""How stages write what is no array: JSON files, and curves of few points."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.store.files import atomic_write


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, in one order of its names."""
    atomic_write(path, json.dumps(value, sort_keys=True, indent=1) + "\n")


def thinned(curves: Mapping[str, Sequence[float]], points: int = 60) -> dict[str, list[float]]:
    """Curves of at most `points` points, for the report.

    Each point is the mean of a stretch of the curve; all stretches are equally long.

    Args:
      curves: one float a step of each metric.

    Returns:
      The metrics' means, and "step": the step at which each stretch ends.
    """
    steps = len(next(iter(curves.values())))
    edges = np.unique(np.linspace(0, steps, min(points, steps) + 1).astype(int))
    out: dict[str, list[float]] = {"step": edges[1:].tolist()}
    for name, values in curves.items():
        out[name] = []
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            # Rounded, as the last digits of a float32 say nothing and make files large.
            out[name].append(float(np.round(np.mean(values[begin:end]), 6)))
    return out
