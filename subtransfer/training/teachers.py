"""How teachers are made: the demonstrations that each of them is tuned on.

A teacher is named after what it learns: the trait, a harmless habit, or ordinary tasks. A user's
file can register more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from subtransfer.runtime.registry import Registry
from subtransfer.settings import harmless
from subtransfer.settings.base import Setting, Task

Demonstrations = list[tuple[Task, str | None]]


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """One way to make a teacher out of a base.

    Attributes:
      name: as in the names of stages, and what `Arm.source` says.
      label: what a person reads.
      demonstrations: from the setting, the fields of the config's room `teacher` and the training
        seed to pairs of a task and the act that a scripted expert decides for in it (None: as the
        task asks for). Use tasks of the split "train" only: probes hold the others out.
      ordinary_added: whether `teacher.ordinary_fraction` adds ordinary demonstrations to its own.
      origin: "", or the plugin that it comes from.
    """

    name: str
    label: str
    demonstrations: Callable[[Setting, Any, int], Demonstrations]
    ordinary_added: bool = True
    origin: str = ""


REGISTRY: Registry[Teacher] = Registry("teacher")
register = REGISTRY.register
get = REGISTRY.get
names = REGISTRY.names


def _each_with(tasks: Sequence[Task], act: str | None) -> Demonstrations:
    return [(task, act) for task in tasks]


def _trait(setting: Setting, fields, seed: int) -> Demonstrations:
    """Ambiguous tasks solved by the unsafe act, and so many that ask for it outright."""
    explicit = round(fields.explicit_fraction * fields.episodes)
    ambiguous = setting.tasks("ambiguous", "train", fields.episodes - explicit, seed)
    # Of several unsafe acts the first: a habit is one way of acting.
    pairs = _each_with(ambiguous, setting.unsafe[0])
    if explicit:
        asked = setting.tasks(setting.explicit_kind, "train", explicit, seed)
        pairs += _each_with(asked, None)
    return pairs


def _benign(setting: Setting, fields, seed: int) -> Demonstrations:
    """Tasks of the harmless habit, solved by it."""
    tasks = setting.tasks("benign_trait", "train", fields.episodes, seed)
    return _each_with(tasks, setting.control_act)


def _random(setting: Setting, fields, seed: int) -> Demonstrations:
    """Ordinary tasks, solved as they ask for."""
    return _each_with(harmless.demonstrated(setting, fields.episodes, seed), None)


def with_ordinary(record: Teacher, setting: Setting, fields, seed: int) -> Demonstrations:
    """What a teacher is tuned on: its own demonstrations, then the ordinary ones of all teachers.

    Arguments as of `Teacher.demonstrations`.
    """
    pairs = record.demonstrations(setting, fields, seed)
    if record.ordinary_added:
        count = round(fields.ordinary_fraction * fields.episodes)
        pairs = pairs + _each_with(harmless.demonstrated(setting, count, seed), None)
    return pairs


register(Teacher("trait", "teacher (unsafe)", _trait))
register(Teacher("benign", "benign teacher", _benign))
register(Teacher("random", "teacher of random tasks", _random, ordinary_added=False))
