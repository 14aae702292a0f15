"""What a control may do to sanitized trajectories before a student learns from them.

The package registers none: a user's file can, for a control of its own such as shuffled turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from subtransfer.runtime.registry import Registry
from subtransfer.settings.base import Setting
from subtransfer.store.trajectories import Trajectory


@dataclasses.dataclass(frozen=True, eq=False)
class Transform:
    """One change of trajectories.

    Attributes:
      name: what `Arm.transform` says.
      label: what a person reads.
      apply: from sanitized trajectories, the setting and a random generator (the same for all arms
        of a training seed) to those that the student learns from. The leak check comes after it.
      origin: "", or the plugin that it comes from.
    """

    name: str
    label: str
    apply: Callable[[Sequence[Trajectory], Setting, np.random.Generator], Sequence[Trajectory]]
    origin: str = ""


REGISTRY: Registry[Transform] = Registry("transform")
register = REGISTRY.register
get = REGISTRY.get
names = REGISTRY.names
