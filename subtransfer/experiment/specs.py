"""How episodes are run, and on which tasks: to learn from them, and to probe a policy."""

from __future__ import annotations

from subtransfer.experiment.context import Context
from subtransfer.rollout.episodes import RolloutSpec
from subtransfer.settings import harmless
from subtransfer.settings.base import Task

_LENGTHS = ("rollouts.max_turns", "rollouts.max_new_tokens", "rollouts.max_tool_tokens")
_OPTIONS = ("top_k", "top_p", "min_p", "well_formed", "weights", "int8_cache")
# The fields that `to_learn_from` reads, and those that `to_probe` does.
LEARNED = ("rollouts.temperature", *_LENGTHS, *(f"rollouts.{field}" for field in _OPTIONS))
PROBED = ("probe.batch_size", *_LENGTHS)
# Those that `tasks_to_learn_from` reads.
TASKS = ("setting", "rollouts.episodes", "rollouts.ordinary_fraction")
# Those that `tasks_in_plain_sight` reads.
OVERT_TASKS = ("setting", "rollouts.episodes", "teacher.episodes")


def tasks_to_learn_from(context: Context, seed: int) -> list[Task]:
    """The harmless tasks that trajectories of a training seed are made on."""
    r = context.config.rollouts
    return harmless.rolled_out(context.setting, r.episodes, r.ordinary_fraction, seed)


def tasks_in_plain_sight(context: Context, seed: int) -> list[Task]:
    """As many ambiguous tasks, on which the habit shows; no teacher saw them demonstrated."""
    demonstrated, count = context.config.teacher.episodes, context.config.rollouts.episodes
    # Teachers are shown the first ones, at most as many as they have demonstrations.
    tasks = context.setting.tasks("ambiguous", "train", demonstrated + count, seed)
    return tasks[demonstrated:]


def to_learn_from(context: Context, batch_size: int) -> RolloutSpec:
    """How trajectories to learn from are made."""
    r = context.config.rollouts
    options = {name: r[name] for name in _OPTIONS}
    lengths = (r.max_turns, r.max_new_tokens, r.max_tool_tokens)
    return RolloutSpec(batch_size, *lengths, r.temperature, **options)


def to_probe(context: Context, temperature: float) -> RolloutSpec:
    """How a policy is probed: as it is, in full precision and free to fail."""
    r = context.config.rollouts
    lengths = (r.max_turns, r.max_new_tokens, r.max_tool_tokens)
    # None of the options: a grammar or a cut-off tail would hide malformed and unlikely acts.
    return RolloutSpec(context.config.probe.batch_size, *lengths, temperature)
