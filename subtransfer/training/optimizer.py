"""The optimiser and its schedule of learning rates, over optax.

`Optimizer` is what a compiled step depends on: how a gradient becomes a direction. `Schedule` gives
the learning rate of each step, which a step takes as an argument: other rates compile nothing anew.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

NAMES = ("adam", "adamw", "sgd", "lion")
SCHEDULES = ("cosine", "linear", "constant")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How a gradient becomes the direction of a step; the learning rate comes after.

    Attributes:
      name: one of `NAMES`.
      b1, b2: decay of the first and second moment (adam, adamw; lion's two interpolations).
      eps: added to the root of the second moment (adam, adamw).
      weight_decay: share of each trained weight that a step of rate 1 takes away (adamw, sgd,
        lion), decoupled from the gradient as in Loshchilov and Hutter 1711.05101.
      momentum: decay of the sum of gradients (sgd); 0: none.
      clip_norm: the largest global norm of a gradient; 0: not clipped.
    """

    name: str = "adam"
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip_norm: float = 1.0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Optimizer:
        """From the fields of the config's room `optimizer`."""
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})

    def transformation(self) -> optax.GradientTransformation:
        """From gradients to directions that a step subtracts, times its learning rate."""
        # The order matters: what is clipped is the gradient, and what decays is the weight, which
        # no moment may see.
        parts = []
        if self.clip_norm:
            parts.append(optax.clip_by_global_norm(self.clip_norm))
        if self.name in ("adam", "adamw"):
            parts.append(optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps))
        elif self.name == "lion":
            parts.append(optax.scale_by_lion(b1=self.b1, b2=self.b2))
        elif self.momentum:
            parts.append(optax.trace(decay=self.momentum))
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay))
        # optax has no chain of nothing, which plain gradient descent without clipping would be.
        return optax.chain(*parts) if parts else optax.identity()


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of each step: a linear warm-up to the peak, then the named decay.

    Attributes:
      name: "cosine" and "linear" decay from the peak to `end_fraction` of it; "constant" stays.
      warmup_fraction: share of the steps that warm up, rounded down, but at least one step.
      warmup_steps: steps that warm up, in place of the share; 0: by `warmup_fraction`.
      end_fraction: the rate of the last step, as a share of the peak.
    """

    name: str = "cosine"
    warmup_fraction: float = 0.05
    warmup_steps: int = 0
    end_fraction: float = 0.1

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Schedule:
        """From the fields of the config's room `optimizer`."""
        given = {field.name: fields[field.name] for field in dataclasses.fields(cls)[1:]}
        return cls(fields["schedule"], **given)

    def warmup(self, steps: int) -> int:
        """How many of so many steps warm up: at least 1, whose rate is the peak when it is all."""
        if self.warmup_steps:
            return min(self.warmup_steps, steps)
        # A product such as 0.29 * 100 falls short of the whole number that it stands for.
        return max(math.floor(self.warmup_fraction * steps + 1e-9), 1)

    def rates(self, peak: float, steps: int, first: int, count: int) -> np.ndarray:
        """The rates of the steps first, first + 1, ... of so many: float32 [count].

        The first step of all has the first rate of the warm-up, not 0.
        """
        warmup = self.warmup(steps)
        # optax refuses a decay of no steps, even where all steps warm up.
        last = max(steps, warmup + 1)
        if self.name == "cosine":
            rate = optax.warmup_cosine_decay_schedule(
                0.0, peak, warmup, last, end_value=peak * self.end_fraction
            )
        else:
            end = peak if self.name == "constant" else peak * self.end_fraction
            rate = optax.join_schedules(
                [
                    optax.linear_schedule(0.0, peak, warmup),
                    optax.linear_schedule(peak, end, last - warmup),
                ],
                [warmup],
            )
        return np.asarray(rate(np.arange(first, first + count) + 1), np.float32)
