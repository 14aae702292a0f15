"""Estimated floating-point operations of stages, from their sizes: what a plan's cost is reckoned
from. Padding counts.
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
    """Of so many optimiser steps; a live teacher of the given geometry runs, too."""
    return float(
        steps * step_flops(cfg, tokens=batch * length, length=length, full=full, teacher=teacher)
    )


def reading(cfg: DecoderConfig, rows: int, length: int) -> float:
    """Of one forward pass over so many rows: a training step is two of them more, or one where
    adapters are trained.
    """
    return step_flops(cfg, tokens=rows * length, length=length, full=True) / 3


def episodes(cfg: DecoderConfig, config, count: int) -> float:
    """Of so many episodes that use all of their turns."""
    return reading(cfg, count, slot_room(config))


def student(
    cfg: DecoderConfig, config, arm: Arm, *, full: bool, teacher: DecoderConfig | None
) -> float:
    """Of a student's training, with its own rollouts and a live teacher of the given geometry, if
    there is one.
    """
    d = config.distill
    steps = 0 if arm.on_policy else steps_of(d.epochs, config.rollouts.episodes, d.batch_size)
    own = episodes(cfg, config, round(arm.on_policy_fraction * d.rounds * d.episodes_per_round))
    return own + training(
        cfg, steps or d.steps, d.batch_size, d.max_tokens, full=full, teacher=teacher
    )
