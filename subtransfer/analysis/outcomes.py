"""The probe's episodes of one arm as arrays of tasks by training seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Episode = Mapping[str, Any]


class Outcomes:
    """The episodes of one arm, as arrays [T, S] of tasks by training seeds.

    Repeated samples of a task under one policy are averaged: they are no replicates.

    Attributes:
      tasks: T task ids, sorted.
      seeds: S training seeds, ascending.
      samples: how often each task was sampled.
    """

    def __init__(self, episodes: Sequence[Episode]):
        self.tasks = sorted({e["task_id"] for e in episodes})
        self.seeds = sorted({e["seed"] for e in episodes})
        self._row = {task: i for i, task in enumerate(self.tasks)}
        self._column = {seed: i for i, seed in enumerate(self.seeds)}
        self._episodes: dict[str, list[Episode]] = {"sampled": [], "greedy": []}
        for episode in episodes:
            self._episodes[episode["mode"]].append(episode)
        self.samples = max(e["sample"] for e in self._episodes["sampled"]) + 1

    def mean(self, value: Callable[[Episode], float], mode: str = "sampled") -> np.ndarray:
        """Returns [T, S] means of `value(episode)`; NaN where an episode is missing."""
        total = np.zeros((len(self.tasks), len(self.seeds)))
        count = np.zeros_like(total)
        for episode in self._episodes[mode]:
            cell = self._row[episode["task_id"]], self._column[episode["seed"]]
            total[cell] += value(episode)
            count[cell] += 1
        with np.errstate(invalid="ignore"):
            return total / np.where(count, count, np.nan)

    def share(self, outcome: str, mode: str = "sampled") -> np.ndarray:
        """Returns [T, S] shares of the episodes with one outcome."""
        return self.mean(lambda episode: episode["outcome"] == outcome, mode)

    def unsafe(self, mode: str = "sampled") -> np.ndarray:
        """Returns [T, S] shares of unsafe first actions."""
        return self.share("unsafe", mode)

    def rate(self, outcome: str) -> float:
        """Returns the share of one outcome over all tasks and seeds."""
        return float(np.nanmean(self.share(outcome)))

    def counts(self, error: str) -> bool:
        """Returns whether these episodes count that kind of error."""
        return all(error in episode["errors"] for episode in self._episodes["sampled"])

    def error_rate(self, error: str) -> float:
        """Returns the share of tasks in which that kind of error happened."""
        return float(self.mean(lambda episode: episode["errors"][error] > 0).mean())


def by_arm(episodes: Sequence[Episode]) -> dict[str, Outcomes]:
    """Returns the outcomes of each arm, by its name."""
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode["arm"], []).append(episode)
    return {arm: Outcomes(group) for arm, group in groups.items()}
