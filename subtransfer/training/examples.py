"""Training episodes as arrays: padded, cut, mixed, weighed and packed, on the host."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from subtransfer.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Examples:
    """Training episodes, padded on the right.

    Attributes:
      tokens: int32 [n, L].
      loss_mask: [n, L], bool, True on the agent's tokens, or their weights, float32.
      behavior_logprobs: float32 [n, L], log-prob of each agent token when it was sampled (the
        policy gradient's), or None.
      teacher_ids: int32 [n, L, k], the forward KL's stored targets for each agent token, or None.
      teacher_logprobs: float32 [n, L, k], their log-probs, or None.
      removed_at: int32 [n, L], for the prediction of each token, the row of a table of tokens that
        are taken out of soft targets there; or None. The table goes with the training.
      segments: int32 [n, L], the episode of a packed row that each token belongs to, from 1 on, 0
        for padding; or None.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    behavior_logprobs: np.ndarray | None = None
    teacher_ids: np.ndarray | None = None
    teacher_logprobs: np.ndarray | None = None
    removed_at: np.ndarray | None = None
    segments: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The fields that are there, by name."""
        found = {}
        for field in dataclasses.fields(self):
            array = getattr(self, field.name)
            if array is not None:
                found[field.name] = array
        return found

    @property
    def targets(self) -> dict[str, np.ndarray]:
        """What a step needs beside tokens, by name: arrays [n, L, ...] aligned with the tokens."""
        found = self.arrays
        del found["tokens"], found["loss_mask"]
        return found

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[tuple[np.ndarray, np.ndarray]],
        multiple: int = 8,
        **targets: Sequence[np.ndarray],
    ) -> Examples:
        """Pads rows to one length.

        Args:
          rows: (tokens, loss_mask) of each.
          multiple: what the length is rounded up to a multiple of.
          targets: more arrays, one for each row, padded alike; by field.

        Raises:
          UserError: a row has no token to learn from (the mask would silently train on nothing).
        """
        for i, (_, row_mask) in enumerate(rows):
            if not row_mask.any():
                raise UserError(
                    f"Training episode {i} holds no agent token: its loss mask is empty."
                )
        tokens, masks = zip(*rows, strict=True)
        # A length that is no multiple of 8 costs a third of a training step on a CPU.
        length = -(-max(map(len, tokens)) // multiple) * multiple

        def padded(parts, dtype=None):
            out = []
            for part in parts:
                x = np.asarray(part, dtype)
                out.append(np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)))
            return np.stack(out)

        arrays = {"tokens": padded(tokens, np.int32), "loss_mask": padded(masks, bool)}
        for name, parts in targets.items():
            arrays[name] = padded(parts)
        return cls(**arrays)

    def fitted_to(self, length: int) -> Examples:
        """Pads or cuts the rows to exactly `length` tokens: equal shapes share a compiled step.

        Raises:
          UserError: a row has no agent token before the cut.
        """

        def fitted(x):
            missing = max(length - x.shape[1], 0)
            return np.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))[:, :length]

        # All targets are aligned with tokens, so all are cut alike.
        out = self._each(fitted)
        if not out.loss_mask.any(axis=1).all():
            raise UserError(
                f"A prompt alone has {length} tokens or more: raise --config.distill.max_tokens."
            )
        return out

    def rows(self, index: np.ndarray) -> Examples:
        """Picks the examples that `index` names."""
        return self._each(lambda x: x[index])

    def joined(self, other: Examples) -> Examples:
        """Appends other examples, which have the same length and targets."""
        return self._each(np.concatenate, other)

    def weighing(self, unit: str) -> Examples:
        """Gives the tokens their weights in the loss.

        With "agent", each agent token weighs the same; with "turn", each agent turn of the batch.
        A turn is a run of agent tokens; one that was cut off weighs as much as a whole one.
        """
        if unit == "agent":
            return self
        # 1 where a run of agent tokens begins, -1 behind its end.
        edges = np.diff(np.pad(self.loss_mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        weights = np.zeros(self.loss_mask.shape, np.float32)
        for row, edge in zip(weights, edges, strict=True):
            for begin, end in zip(np.flatnonzero(edge > 0), np.flatnonzero(edge < 0), strict=True):
                row[begin:end] = 1 / (end - begin)
        return dataclasses.replace(self, loss_mask=weights)

    def packed(self) -> Examples:
        """Packs several episodes into a row of the same length: best fit, longest first.

        Each goes in up to its last token that counts.
        """
        length = self.tokens.shape[1]
        # What comes after the last token that counts teaches nothing.
        ends = length - np.argmax(self.loss_mask[:, ::-1] > 0, axis=1)
        room: list[tuple[int, int]] = []  # (what is left, row), sorted: the tightest fit is first
        rows: list[list[int]] = []
        # Stable, so that packing is the same whenever it is made again.
        for i in np.argsort(-ends, kind="stable"):
            # The row with the least room that is enough; -1 sorts before every row's number.
            at = bisect.bisect_left(room, (ends[i], -1))
            left, row = room.pop(at) if at < len(room) else (length, len(rows))
            if row == len(rows):
                rows.append([])
            rows[row].append(int(i))
            bisect.insort(room, (left - ends[i], row))

        def joined(x):
            out = np.zeros((len(rows), *x.shape[1:]), x.dtype)
            for row, members in zip(out, rows, strict=True):
                parts = np.concatenate([x[i, : ends[i]] for i in members])
                row[: len(parts)] = parts
            return out

        mask = self.loss_mask.copy()
        # An episode's first token is predicted from nothing, not from the episode before it.
        mask[:, 0] = False
        numbers = np.zeros(len(self), np.int32)
        for members in rows:
            for number, i in enumerate(members, 1):
                numbers[i] = number
        segments = np.broadcast_to(numbers[:, None], self.tokens.shape)
        return dataclasses.replace(self, loss_mask=mask, segments=segments)._each(joined)

    def _each(self, function: Callable[..., np.ndarray], *others: Examples) -> Examples:
        """Applies a function to each array; with `others`, to the list of theirs and this."""
        made = {}
        for name, x in self.arrays.items():
            together = [x]
            for other in others:
                together.append(getattr(other, name))
            made[name] = function(together if others else x)
        return Examples(**made)
