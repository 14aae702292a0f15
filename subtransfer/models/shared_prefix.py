"""What all rows of a batch begin with, computed once for the batch.

Agents' conversations begin with one system prompt and its tools. Causal attention makes a token's
state a function of the tokens before it, so the states, keys and values of such a prefix are the
same in every row: they are computed once, and the rows' own tokens attend to them. A gradient
through its keys and values is the sum of what the rows send back. (The idea in GRPO: Prefix
Grouper, 2506.05433.)

The prefix lies in the batch in equal shares, one before each row's own tokens. So it is divided
over devices as rows are, and norms, products and MLPs see nothing of it. Only attention puts the
shares together again: all keys and values of the prefix before each row's own.

    row 0:  prefix[0:c]    own tokens of row 0
    row 1:  prefix[c:2c]   own tokens of row 1    ...

Shape letters as in `decoder.py`; P is the tokens of the prefix, c those of a share, S those of a
row itself; L = c + S.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from subtransfer.runtime import sharding

# The fewest tokens that are worth it. The embedded model's prompts have fewer, and are fed whole.
SHORTEST = 96
# A prefix has a multiple of so many tokens, so that few programs are compiled.
STEP = 32
# A length that is no multiple of 8 costs a third of a training step on a CPU.
_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class SharedPrefix:
    """How a prefix lies in a batch.

    Attributes:
      length: P.
      rows: B.
      own: S.
    """

    length: int
    rows: int
    own: int

    @property
    def share(self) -> int:
        """c, a row's share; the last shares are filled up with tokens that nothing sees."""
        share = -(-self.length // self.rows)
        return share + -(share + self.own) % _MULTIPLE

    def tokens(self, prefix: Int[Array, " P"], own: Int[Array, "B S"]) -> Int[Array, "B L"]:
        """Puts the shares of a prefix before the rows' own tokens."""
        filled = jnp.pad(prefix, (0, self.rows * self.share - self.length))
        return jnp.concatenate([filled.reshape(self.rows, -1).astype(own.dtype), own], axis=1)

    def positions(self, own: Int[Array, "B S"]) -> Int[Array, "B L"]:
        """Puts the positions of the shares before the rows' own."""
        return jnp.concatenate([self._of_shares().astype(own.dtype), own], axis=1)

    def key_positions(self, own: Int[Array, "B S"]) -> Int[Array, "B PS"]:
        """The positions of the keys that `gathered` makes."""
        prefix = jnp.arange(self.length, dtype=own.dtype)
        return jnp.concatenate([jnp.broadcast_to(prefix, (self.rows, self.length)), own], axis=1)

    def _of_shares(self) -> Int[Array, "B c"]:
        return jnp.arange(self.rows * self.share).reshape(self.rows, self.share)

    def seen_by_shares(self, window: int = 0) -> Bool[Array, "B c P"]:
        """Which of the prefix's tokens each token of a share sees: itself and those before it.

        Args:
          window: how many positions back a layer sees; 0 for all of them.
        """
        gap = self._of_shares()[:, :, None] - jnp.arange(self.length)
        return (gap >= 0) & (gap < window) if window else gap >= 0

    def mask(self, own: Bool[Array, "b S S"]) -> Bool[Array, "B L PS"]:
        """Which keys of `gathered` each token sees; a row's own tokens see the whole prefix.

        Args:
          own: which of its own tokens each of a row's own sees, b being B or 1.
        """
        nothing = jnp.zeros((self.rows, self.share, self.own), bool)
        everything = jnp.ones((self.rows, self.own, self.length), bool)
        own = jnp.broadcast_to(own, (self.rows, self.own, self.own))
        of_shares = jnp.concatenate([self.seen_by_shares(), nothing], axis=2)
        return jnp.concatenate([of_shares, jnp.concatenate([everything, own], axis=2)], axis=1)

    def gathered(self, x: Float[Array, "B L K Dh"]) -> Float[Array, "B PS K Dh"]:
        """Puts the whole prefix's keys, or values, before each row's own."""
        whole = x[:, : self.share].reshape(-1, *x.shape[2:])[: self.length]
        # Each device needs all of it for its rows; heads stay divided.
        whole = sharding.laid_out(whole, "features", "kv_heads", "head_width")
        # Broadcasting is one copy a layer; the sum over rows is its gradient.
        whole = jnp.broadcast_to(whole, (self.rows, *whole.shape))
        return jnp.concatenate([whole, x[:, self.share :]], axis=1)


def common_length(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all rows have in common, from the first on."""
    first, shortest = rows[0], min(map(len, rows))
    for row in rows:
        different = np.flatnonzero(row[:shortest] != first[:shortest])
        if len(different):
            shortest = int(different[0])
    return shortest


def usable(length: int) -> int:
    """Of so many tokens in common, how many are shared: 0 if they are not worth it."""
    length -= length % STEP
    return length if length >= SHORTEST else 0
