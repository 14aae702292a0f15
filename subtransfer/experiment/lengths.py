"""Lengths of episodes in tokens, as far as a config decides them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from subtransfer.models.chat import ChatFormat
from subtransfer.rollout import engine
from subtransfer.settings.base import Task

# Of an act's beginning at a decision point: a name's pieces and what closes it.
_TOKENS_OF_AN_ACT = 8


def slot_room(config: Any) -> int:
    """Tokens of an episode beyond the prompt that all share."""
    r = config.rollouts
    # 64 for the instruction, which a plan has not drawn yet.
    return 64 + r.max_turns * (r.max_new_tokens + r.max_tool_tokens)


def episode_tokens(config: Any) -> int:
    """The longest row that a model has to read."""
    return max(config.distill.max_tokens, slot_room(config))


def prompt_tokens(chat: ChatFormat, tasks: Sequence[Task]) -> int:
    """The most tokens that tasks have before the agent's first.

    Args:
      chat: the template, in the setting.
      tasks: a training seed's; none: what every prompt has.
    """
    instructions = [task.instruction for task in tasks]
    # The longest ones in characters: encoding all would take a plan seconds.
    longest = sorted(instructions, key=len)[-8:] or ["."]
    totals = []
    for instruction in longest:
        totals.append(sum(len(ids) for _, ids in chat.prompt_segments(instruction)))
    return max(totals)


def prefix_tokens(config: Any) -> int:
    """Tokens of the shared prompt, as far as a plan knows them.

    That is what the longest episode has beyond a slot's room.
    """
    return max(config.distill.max_tokens - slot_room(config), 0)


def fed_tokens(config: Any) -> int:
    """Tokens of a tool's result that a slot is fed at a time."""
    # With the template's own tokens around a result.
    return min(config.rollouts.max_tool_tokens + 64, engine.CHUNK)


def slot_tokens(config: Any) -> int:
    """Length of a slot."""
    return engine.Shape(1, slot_room(config), 1, fed_tokens(config)).length


def decision(config: Any, acts: int) -> tuple[int, int]:
    """A row of the choice probe, as far as a plan knows it.

    Args:
      config: the validated config.
      acts: how many are scored.

    Returns:
      (tokens of a row with the acts' beginnings, how many of them need logits).
    """
    r = config.rollouts
    appended = acts * (_TOKENS_OF_AN_ACT - 1)
    # The instruction, a look and its result, the thought before the decision.
    context = prefix_tokens(config) + 64 + 2 * r.max_new_tokens + r.max_tool_tokens
    return context + appended, 1 + appended
