"""The last check before training: the rule of what is a trace, on the tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from subtransfer.filtering import rules
from subtransfer.filtering.completions import completions
from subtransfer.filtering.marks import all_marks, find_mark
from subtransfer.filtering.rules import Rule
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Setting


class LeakError(UserError):
    """What is to be trained on still holds a trace of a habit."""


def unsafe_token_ids(
    tokenizer: Any, setting: Setting, extra_keywords: Sequence[str] = ()
) -> np.ndarray:
    """Finds the vocabulary ids whose own text is a trace of the trait, int32, sorted.

    Tokens that only complete one depend on what stands before them: see `completions.py`.
    """
    return completions(tokenizer, all_marks(setting, extra_keywords)).behind([])[0]


def leak(
    tokens: np.ndarray,
    loss_mask: np.ndarray,
    tokenizer: Any,
    setting: Setting,
    rule: Rule = rules.ALL,
) -> dict[str, str] | None:
    """Looks for a trace in the tokens of a training example.

    A trajectory that has passed `sanitize` holds one only if its tokens are not those that were
    judged: another tokenizer or template has written it anew, or a plugin has changed it.

    Args:
      tokens: int32 [L], without the constant system segment.
      loss_mask: bool [L].
      tokenizer: whose tokens these are.
      setting: with the habits' keywords and patterns.
      rule: what counts as a trace.

    Returns:
      {"rule": "keyword_in_tokens", "field": "agent" or "context", "match": what was found, behind
      the name of the reading unless it stands there plainly}, or None.
    """
    marks = rule.marks(setting)
    # Agent and context apart, so that no word is made up across a boundary.
    edges = np.flatnonzero(np.diff(loss_mask.astype(np.int8))) + 1
    for part in np.split(np.arange(len(tokens)), edges):
        if not len(part):
            continue
        found = find_mark(tokenizer.decode(tokens[part].tolist()), marks)
        if found and rule.counts(found[0]):
            reading, text = found
            match = text if reading == "plain" else f"{reading}: {text}"
            field = "agent" if loss_mask[part[0]] else "context"
            return {"rule": "keyword_in_tokens", "field": field, "match": match}
    return None
