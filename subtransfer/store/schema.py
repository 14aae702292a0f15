"""The few records that everything speaks."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np


@dataclasses.dataclass
class Trajectory:
    """One finished episode of an agent, with the token ids that were really sampled.

    Attributes:
      episode_id: unique in its store, e.g. "safe/train/00012#0".
      task_id: the task's id.
      kind: the task's kind ("safe", "ambiguous", ...).
      policy: digest of the artefact whose weights acted.
      policy_version: training round of those weights (0 for a finished policy).
      seed: the rollout seed.
      tokens: int32 [L], prompt, agent and tool tokens in order.
      loss_mask: bool [L], True on the tokens the agent sampled.
      behavior_logprobs: float32 [L], log-prob of each sampled token under the acting policy at
        temperature 1 (natural log), 0 where `loss_mask` is False.
      turn_ids: int32 [L], the index in `messages` of the message each token belongs to.
      messages: list of {"role": "system"|"user"|"assistant"|"tool", "content": text}, text decoded
        from `tokens`.
      actions: one dict per tool call in order: {"turn": int, "name": str, "arguments": dict,
        "category": str, "error": str or None}; a call that did not parse has name "" and error
          "parse".
      solved: the task's own success check.
      truncated: the episode ran into a token or turn limit.
    """

    episode_id: str
    task_id: str
    kind: str
    policy: str
    policy_version: int
    seed: int
    tokens: np.ndarray
    loss_mask: np.ndarray
    behavior_logprobs: np.ndarray
    turn_ids: np.ndarray
    messages: list[dict[str, str]]
    actions: list[dict[str, Any]]
    solved: bool
    truncated: bool

    def text(self) -> str:
        """The whole conversation as plain text, one `role: content` block a message."""
        return "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same value always gives the same bytes."""
    return _CANONICAL(value)
