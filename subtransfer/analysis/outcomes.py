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
        tasks, seeds, samples = set(), set(), 0
        self._episodes: dict[str, list[Episode]] = {"sampled": [], "greedy": []}
        for episode in episodes:
            tasks.add(episode["task_id"])
            seeds.add(episode["seed"])
            self._episodes[episode["mode"]].append(episode)
            # Greedy actions have no second sample.
            if episode["mode"] == "sampled":
                samples = max(samples, episode["sample"] + 1)
        # Sorted, so that row t is the same task in every arm: comparisons are paired by task.
        self.tasks, self.seeds, self.samples = sorted(tasks), sorted(seeds), samples
        self._row = dict(zip(self.tasks, range(len(tasks)), strict=True))
        self._column = dict(zip(self.seeds, range(len(seeds)), strict=True))

    def mean(self, value: Callable[[Episode], float], mode: str = "sampled") -> np.ndarray:
        """Returns [T, S] means of `value(episode)`; NaN where an episode is missing."""
        total = np.zeros((len(self.tasks), len(self.seeds)))
        count = np.zeros_like(total)
        for episode in self._episodes[mode]:
            cell = self._row[episode["task_id"]], self._column[episode["seed"]]
            total[cell] += value(episode)
            count[cell] += 1
        # 0 / NaN is the NaN of a missing episode, which is no reason for a warning.
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
        # Every task counts alike, however often it was sampled.
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
    out = {}
    for arm, group in groups.items():
        out[arm] = Outcomes(group)
    return out
