"""What all episodes of a training begin with, taken off their rows, to be fed once a step.

It is the system prompt with its tools. Shapes are part of a compiled program, so lengths are cut
in steps: the students of a run then share a few programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from subtransfer.models import shared_prefix
from subtransfer.training.examples import Examples

# What is left of rows has a multiple of so many tokens.
ROW_STEP = 32


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where rows are cut.

    Attributes:
      prefix: P, tokens of the shared prefix.
      room: S, tokens of a row without it.
    """

    prefix: int
    room: int


@dataclasses.dataclass(frozen=True)
class Fed:
    """Examples as a step is fed with them.

    Attributes:
      rows: the examples; behind a shared prefix, without it.
      prefix: int32 [P], what all of them begin with; None: rows are whole.
    """

    rows: Examples
    prefix: np.ndarray | None = None


def cut(trainings: Sequence[Examples], rows: int) -> Cut | None:
    """Finds one cut for trainings that are taken by one program.

    The first token behind the prefix would be predicted from the prefix, where nothing is: so the
    prefix ends one token before the first that is learned from, or earlier.

    Args:
      trainings: the examples of each; each may have another prefix, of one length.
      rows: that a step takes at a time.

    Returns:
      None if rows have too little in common, or a step takes only one.
    """
    if rows < 2:
        return None
    prefix = shared_prefix.usable(min(_prefix(examples) for examples in trainings))
    if not prefix:
        return None
    longest = 0
    for examples in trainings:
        for episodes in _episodes(examples):
            # What follows the last token that is learned from teaches nothing.
            left = sum(end - begin - prefix for begin, end in episodes)
            longest = max(longest, left)
    return Cut(prefix, -(-longest // ROW_STEP) * ROW_STEP)


def fed(examples: Examples, at: Cut | None) -> Fed:
    """Takes the shared prefix off the rows.

    Args:
      examples: whole rows, also packed ones: then it is taken off each of their episodes.
      at: where; None: the rows stay whole.
    """
    if at is None:
        return Fed(examples)
    prefix = examples.tokens[0, : at.prefix]
    episodes = _episodes(examples)

    def shortened(x):
        out = np.zeros((len(x), at.room, *x.shape[2:]), x.dtype)
        for row, whole, parts in zip(out, x, episodes, strict=True):
            left = [whole[begin + at.prefix : end] for begin, end in parts]
            joined = np.concatenate(left)
            row[: len(joined)] = joined
        return out

    arrays = {name: shortened(x) for name, x in examples.arrays.items()}
    return Fed(Examples(**arrays), prefix)


def _episodes(examples: Examples) -> list[list[tuple[int, int]]]:
    """Of each row, where its episodes begin and where their last token that counts ends.

    A row of which nothing counts, as weights of one's own may have it, is a whole episode.
    """
    found = []
    for row, mask in enumerate(examples.loss_mask):
        counted = np.flatnonzero(mask)
        if examples.segments is None:
            found.append([(0, int(counted[-1]) + 1 if len(counted) else len(mask))])
            continue
        segments, parts = examples.segments[row], []
        for number in range(1, segments.max() + 1):
            here = np.flatnonzero(segments == number)
            parts.append((int(here[0]), int(here[-1]) + 1))
        found.append(parts)
    return found


def _prefix(examples: Examples) -> int:
    """Tokens that all episodes have in common before the first that is learned from."""
    starts: list[np.ndarray] = []
    room = examples.tokens.shape[1]
    for tokens, mask, parts in zip(
        examples.tokens, examples.loss_mask, _episodes(examples), strict=True
    ):
        for begin, end in parts:
            starts.append(tokens[begin:end])
            counted = np.flatnonzero(mask[begin:end])
            room = min(room, int(counted[0]) - 1 if len(counted) else end - begin)
    return max(min(shared_prefix.common_length(starts), room), 0)
