"""Estimated floating-point operations of stages, by which a plan weighs them.

All are reckoned from sizes alone, with padding.
"""

from __future__ import annotations

from subtransfer.config.arms import Arm
from subtransfer.experiment.lengths import slot_room
from subtransfer.models.decoder import DecoderConfig
from subtransfer.training.flops import step_flops
from subtransfer.training.loop import steps_of


def training(
    cfg: DecoderConfig,
    steps: int,
    batch: int,
    length: int,
    *,
    full: bool = True,
    teacher: DecoderConfig | None = None,
) -> float:
    """Operations of a training.

    Args:
      cfg: the geometry of what is trained.
      steps: optimiser steps.
      batch, length: rows of a step, and tokens of a row.
      full: all weights are trained, not only adapters.
      teacher: the geometry of a teacher that runs beside it, or None.
    """
    return float(
        steps * step_flops(cfg, tokens=batch * length, length=length, full=full, teacher=teacher)
    )


def reading(cfg: DecoderConfig, rows: int, length: int) -> float:
    """Operations of one forward pass over `rows` rows of `length` tokens."""
    # A training step of all weights is a forward pass and a backward pass, which costs two.
    return step_flops(cfg, tokens=rows * length, length=length, full=True) / 3


def episodes(cfg: DecoderConfig, config, count: int) -> float:
    """Operations of `count` episodes that use all of their turns."""
    return reading(cfg, count, slot_room(config))


def typical_episodes(cfg: DecoderConfig, config, count: int) -> float:
    """As `episodes`, of episodes no longer than the rows that students learn from."""
    return reading(cfg, count, min(slot_room(config), config.distill.max_tokens))


def own_episodes(config, arm: Arm) -> int:
    """How many episodes a student of an arm runs itself, in all of its rounds."""
    d = config.distill
    return round(arm.on_policy_fraction * d.rounds * d.episodes_per_round)


def student(
    cfg: DecoderConfig, config, arm: Arm, *, full: bool, teacher: DecoderConfig | None
) -> float:
    """Operations of a student's training, its own rollouts among them.

    Args:
      full, teacher: as of `training`.
    """
    d = config.distill
    # How many trajectories the filters leave is not known yet: at most all of them. Rounds of an
    # on-policy student have fixed steps.
    steps = 0 if arm.on_policy else steps_of(d.epochs, config.rollouts.episodes, d.batch_size)
    own = episodes(cfg, config, own_episodes(config, arm))
    return own + training(
        cfg, steps or d.steps, d.batch_size, d.max_tokens, full=full, teacher=teacher
    )
