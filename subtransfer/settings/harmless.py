"""Harmless training tasks: ordinary ones to demonstrate, and what policies are rolled out on.

Ordinary tasks are shared out by turns, so that none is both demonstrated and rolled out, however
many of either are asked for. Probes hold the split "probe" out.
"""

from __future__ import annotations

import random

from subtransfer.settings.base import Setting, Task


def demonstrated(setting: Setting, count: int, seed: int) -> list[Task]:
    """Returns `count` ordinary training tasks, of which none is rolled out with the same seed."""
    return setting.tasks("ordinary", "train", 2 * count, seed)[0::2]


def rolled_out(setting: Setting, episodes: int, ordinary_fraction: float, seed: int) -> list[Task]:
    """Returns so many harmless training tasks in a random order that the seed decides.

    Args:
      setting: whose tasks they are.
      episodes: how many.
      ordinary_fraction: share of ordinary ones, rounded; the others are safe.
      seed: the training seed.
    """
    ordinary = round(ordinary_fraction * episodes)
    safe = setting.tasks("safe", "train", episodes - ordinary, seed)
    mixed = [*safe, *setting.tasks("ordinary", "train", 2 * ordinary, seed)[1::2]]
    # Every round of an on-policy student takes the next ones, and must see the same mixture.
    random.Random(f"rolled out/{seed}").shuffle(mixed)
    return mixed


def counts(
    demonstrations: int, episodes: int, ordinary_fraction: float
) -> dict[tuple[str, str], int]:
    """How many tasks the two functions above draw: (kind, split) -> count.

    Args:
      demonstrations: ordinary ones.
      episodes, ordinary_fraction: as of `rolled_out`.
    """
    ordinary = round(ordinary_fraction * episodes)
    return {
        ("safe", "train"): episodes - ordinary,
        ("ordinary", "train"): 2 * max(demonstrations, ordinary),
    }
