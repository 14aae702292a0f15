"""What the scheduler serves and what it tells about it: conversations, turns, statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol


@dataclasses.dataclass
class SampledTurn:
    """A turn as it was sampled.

    Attributes:
      ids: token ids, the stop token included.
      logprobs: their log-probs at temperature 1, in nats.
      stopped: whether it ended with a stop token, and not at the limit.
      top_ids: on request, the likeliest tokens' ids at each step.
      top_logprobs: their log-probs.
    """

    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    stopped: bool = False
    top_ids: list[list[int]] = dataclasses.field(default_factory=list)
    top_logprobs: list[list[float]] = dataclasses.field(default_factory=list)


class ServedConversation(Protocol):
    """What moves through a slot: a prompt, then turns and replies.

    Attributes:
      index: unique; names its random draws.
      prompt: token ids, the shared prefix included.
    """

    index: int
    prompt: list[int]

    def take(self, turn: SampledTurn) -> list[int] | None:
        """Reads a turn; returns the ids to feed back, or None at the end."""


@dataclasses.dataclass
class ServingStats:
    """What it cost to serve conversations.

    Attributes:
      ended: conversations that came to their end.
      tokens: sampled.
      slot_steps: decoding steps of all slots, occupied or not.
      occupied_steps: decoding steps of slots that held a conversation.
      fed_tokens: given tokens.
      dispatches: programs called.
      host_s: seconds in which a lane's device waited for the host, summed over lanes.
      lane_s: seconds that lanes ran, summed over lanes.
      wall_s: seconds from beginning to end.
    """

    ended: int = 0
    tokens: int = 0
    slot_steps: int = 0
    occupied_steps: int = 0
    fed_tokens: int = 0
    dispatches: int = 0
    host_s: float = 0.0
    lane_s: float = 0.0
    wall_s: float = 0.0

    @property
    def occupancy(self) -> float:
        """Share of slots that held a conversation, over decoding steps."""
        return self.occupied_steps / max(self.slot_steps, 1)

    @property
    def utilisation(self) -> float:
        """Share of slots that made a token, over decoding steps."""
        return self.tokens / max(self.slot_steps, 1)

    @property
    def host_share(self) -> float:
        """Share of a lane's time in which its device waited for the host."""
        return self.host_s / max(self.lane_s, 1e-9)

    def add(self, other: ServingStats) -> None:
        """Adds another's numbers to these, in place."""
        for field in dataclasses.fields(self):
            total = getattr(self, field.name) + getattr(other, field.name)
            setattr(self, field.name, total)


def shared_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """Returns the longest beginning that all prompts share and none consists of."""
    # What the first and the last in order share, all between them share too.
    low, high = min(prompts), max(prompts)
    size = min(map(len, prompts)) - 1
    for position, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            size = min(size, position)
            break
    return list(low[:size])
