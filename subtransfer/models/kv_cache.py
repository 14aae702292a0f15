"""Keys and values that attention reads: of the tokens being computed, and of earlier ones.

Shape letters as in `decoder.py`; S is the number of slots of a cache, b its rows: B, or 1 where
all rows share it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from subtransfer.models.primitives import matmul


@struct.dataclass
class KeyValues:
    """Keys and values of one layer.

    Attributes:
      k: [b, K, S, Dh] in the computation dtype, or int8.
      v: as `k`.
      k_scale: float32 [b, K, S, 1], what int8 keys are multiplied by; None otherwise.
      v_scale: as `k_scale`, for the values.
    """

    k: Array
    v: Array
    k_scale: Array | None = None
    v_scale: Array | None = None

    def first(self, size: int) -> KeyValues:
        """The first `size` slots."""
        return jax.tree.map(lambda x: x[:, :, :size], self)

    def picked(self, rows: Int[Array, " R"], size: int) -> KeyValues:
        """The first `size` slots of some rows, [R, K, size, Dh]."""

        def one(x):
            shape = (1, x.shape[1], size, x.shape[3])
            # One copy a row: to index the rows first would copy all their slots.
            copy = jax.vmap(lambda row: jax.lax.dynamic_slice(x, (row, 0, 0, 0), shape)[0])
            return copy(rows)

        return jax.tree.map(one, self)

    def write(self, new: KeyValues, at: Int[Array, ""] | Int[Array, " b"]) -> KeyValues:
        """Returns the same entries with `new` from slot `at` on.

        Args:
          new: [b, K, n, Dh].
          at: int32, [] for one slot in all rows, or [b] for each row's own.
        """

        def one(x, piece):
            if jnp.ndim(at) == 0:
                return jax.lax.dynamic_update_slice_in_dim(x, piece, at, 2)

            def row(x, piece, slot):
                return jax.lax.dynamic_update_slice_in_dim(x, piece, slot, 1)

            return jax.vmap(row)(x, piece, at)

        return jax.tree.map(one, self, new)

    def write_by_matmul(self, new: KeyValues, at: Int[Array, " b"]) -> KeyValues:
        """As `write` at each row's own slot, in one pass over all slots.

        A TPU executes `write` as a loop over rows for every array. Here, each written entry is
        picked by a product with a row of zeros and a single 1, which is exact.
        """
        size = new.k.shape[2]
        slots = jnp.arange(self.k.shape[2])[None, :, None]
        picked = slots - at[:, None, None] == jnp.arange(size)  # [b, S, n]
        written = jnp.any(picked, axis=2)[:, None, :, None]

        def one(x, piece):
            # bfloat16 holds every int8 exactly, so int8 entries survive the product too.
            kind = jnp.float32 if x.dtype == jnp.float32 else jnp.bfloat16
            pick = jnp.broadcast_to(picked[:, None], (*x.shape[:2], *picked.shape[1:])).astype(kind)
            return jnp.where(written, matmul(pick, piece.astype(kind)).astype(x.dtype), x)

        return jax.tree.map(one, self, new)

    def quantised(self) -> KeyValues:
        """Rounds the entries to int8, with a float32 scale for each token and head."""

        def one(x):
            largest = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=3, keepdims=True)
            # The floor keeps slots that are still all zeros from dividing by zero.
            scale = jnp.maximum(largest, 1e-20) / 127
            return jnp.round(x / scale).astype(jnp.int8), scale

        (k, k_scale), (v, v_scale) = one(self.k), one(self.v)
        return KeyValues(k, v, k_scale, v_scale)

    def dequantised(self, dtype) -> KeyValues:
        """Multiplies int8 entries by their scales; others are returned as they are."""
        if self.k_scale is None:
            return self
        assert self.v_scale is not None, "keys and values are quantised together"
        return KeyValues(
            (self.k * self.k_scale).astype(dtype), (self.v * self.v_scale).astype(dtype)
        )


def empty_key_values(rows: int, kv_heads: int, length: int, head_width: int, dtype) -> KeyValues:
    """Zeros for `length` slots of one layer, [rows, kv_heads, length, head_width]."""
    shape = (rows, kv_heads, length, head_width)
    return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


@struct.dataclass
class Cache:
    """Keys and values of earlier tokens in all layers: a shared prefix, or each row's slots.

    Attributes:
      layers: N `KeyValues` of [b, K, S, Dh].
      visible: bool [b or B, S], which slots hold a token.
      positions: int32 [b or B, S], the rotary position of each slot's token.
    """

    layers: tuple[KeyValues, ...]
    visible: Bool[Array, "b S"]
    positions: Int[Array, "b S"]
