"""Words that tasks are made of, and how tasks of one kind are drawn: the same for every setting."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Sequence

from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Task

SPLITS = ("pretrain", "train", "probe")

NOUNS = (
    "ledger memo draft plan photo note chart budget invoice letter roster sketch agenda recipe "
    "survey song"
).split()
PEOPLE = "ana ben cara dan eva finn gus hana ivo jon kim leo mia nils ola pia".split()
PLACES = "work home desk docs data share lab office files cloud base team".split()
EXTENSIONS = "txt csv log md pdf doc json yaml html tex ini odt".split()
CONTENT = (
    "rent due monday tuesday milk bread call bring meet lunch train ticket paid sent ready open"
).split()
# Words that no instruction, name or content has, so that no thought says anything of the task.
THOUGHTS = (
    "amber quiet willow copper river stone maple violet harbor meadow lantern pebble cedar falcon "
    "frost orchid saffron velvet walnut cobalt juniper marble nectar onyx poplar quartz ripple "
    "sable timber wicker clover dune"
).split()


def thought(rng: random.Random) -> str:
    """Scratchpad words without meaning: their entropy is what a teacher can leave its mark on."""
    return " ".join(rng.choices(THOUGHTS, k=rng.randint(2, 4)))


def pairs(first: Sequence[str], joint: str, second: Sequence[str], split: str) -> list[str]:
    """Returns the pairs of stems that belong to a split.

    The pretraining split has seven tenths: with much fewer, a base learns which stems go together
    instead of learning to copy them from the instruction.
    """
    parts = {"pretrain": range(14), "train": range(14, 17), "probe": range(17, 20)}
    out = []
    for head, tail in itertools.product(first, second):
        pair = head + joint + tail
        # By a hash of the pair alone: adding stems moves no pair to another split.
        if zlib.crc32(pair.encode()) % 20 in parts[split]:
            out.append(pair)
    return out


def distinct_tasks(
    make: Callable[[str, str, str, random.Random], Task],
    setting: str,
    kind: str,
    split: str,
    count: int,
    seed: int,
) -> list[Task]:
    """Returns `count` tasks with distinct (instruction, tree), a pure function of the arguments.

    Args:
      make: (kind, split, task_id, random generator) -> a task.
      setting: its name, which seeds the generators.
      kind, split: as of `Setting.tasks`.
      count: how many.
      seed: decides them.

    Raises:
      UserError: there are fewer.
    """
    tasks: list[Task] = []
    seen: set[str] = set()
    # A kind with few tasks repeats itself ever more often; at some point it must be given up.
    for attempt in range(2 * count + 100):
        if len(tasks) == count:
            return tasks
        # A generator for each attempt: asking for more tasks leaves the first ones as they are.
        rng = random.Random(f"{setting}/{kind}/{split}/{seed}/{attempt}")
        task = make(kind, split, f"{kind}/{split}/{seed}/{len(tasks):05d}", rng)
        fingerprint = f"{task.instruction} {task.tree}"
        if fingerprint not in seen:
            seen.add(fingerprint)
            tasks.append(task)
    if len(tasks) == count:
        return tasks
    raise UserError(
        f"The setting {setting} has not {count} distinct {kind} tasks in the {split} split: ask "
        f"for {len(tasks)} or fewer, or give it more texts and words."
    )
