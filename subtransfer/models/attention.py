"""What queries see, and attention over it: keys and values in stretches, which one softmax joins.

A query sees the tokens it is fed with and, before them, any number of earlier stretches: a prefix
that all rows share, each row's own slot of a cache, the tokens of the present burst. Shape letters
as in `decoder.py`; S is a stretch's length, b its rows: B, or 1 where all rows share it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from subtransfer.models.primitives import apart, matmul, rotate

NEG_INF = -1e9  # finite, so that a fully masked query row gives a uniform softmax instead of NaN


@struct.dataclass
class KV:
    """Keys and values of one layer.

    Attributes:
      k, v: [b, K, S, Dh] in the computation dtype, or int8.
      k_scale, v_scale: float32 [b, K, S, 1], what int8 entries are multiplied by; None otherwise.
    """

    k: Array
    v: Array
    k_scale: Array | None = None
    v_scale: Array | None = None

    def first(self, size: int) -> KV:
        """The first `size` slots."""
        return jax.tree.map(lambda x: x[:, :, :size], self)

    def write(self, fresh: KV, at) -> KV:
        """The same with `fresh` from slot `at` on, in all rows (int32 []) or in each row at its own
        (int32 [b]).
        """

        def one(x, new):
            if jnp.ndim(at) == 0:
                return jax.lax.dynamic_update_slice_in_dim(x, new, at, 2)
            return jax.vmap(
                lambda row, piece, i: jax.lax.dynamic_update_slice_in_dim(row, piece, i, 1)
            )(x, new, at)

        return jax.tree.map(one, self, fresh)

    def placed(self, fresh: KV, at: Int[Array, " b"]) -> KV:
        """As `write` at each row's own slot, in one pass over all slots: a TPU writes rows one by
        one, in a loop an array.

        Where a slot is written, a product with zeros and one 1 picks the entry, exactly.
        """
        size = fresh.k.shape[2]
        picked = jnp.arange(self.k.shape[2])[None, :, None] - at[:, None, None] == jnp.arange(
            size
        )  # [b, S, fresh]
        here = jnp.any(picked, axis=2)[:, None, :, None]

        def one(x, new):
            kind = jnp.float32 if x.dtype == jnp.float32 else jnp.bfloat16  # which holds every int8
            pick = jnp.broadcast_to(picked[:, None], (*x.shape[:2], *picked.shape[1:])).astype(kind)
            return jnp.where(here, matmul(pick, new.astype(kind)).astype(x.dtype), x)

        return jax.tree.map(one, self, fresh)

    def rounded(self) -> KV:
        """The same entries as int8, with a scale for each token and head."""

        def one(x):
            scale = (
                jnp.maximum(jnp.max(jnp.abs(x.astype(jnp.float32)), axis=3, keepdims=True), 1e-20)
                / 127
            )
            return jnp.round(x / scale).astype(jnp.int8), scale

        (k, k_scale), (v, v_scale) = one(self.k), one(self.v)
        return KV(k, v, k_scale, v_scale)

    def plain(self, dtype) -> KV:
        """The same entries without scales."""
        if self.k_scale is None:
            return self
        return KV((self.k * self.k_scale).astype(dtype), (self.v * self.v_scale).astype(dtype))


def empty_kv(rows: int, kv_heads: int, length: int, head_width: int, dtype) -> KV:
    """Zeros for `length` slots."""
    return KV(*(jnp.zeros((rows, kv_heads, length, head_width), dtype) for _ in "kv"))


@struct.dataclass
class Past:
    """An earlier stretch of every row.

    Attributes:
      layers: N KVs of [b, ..., S ...].
      visible: bool [b or B, S], which slots hold a token.
      positions: int32 [b or B, S], the rotary position of each slot's token.
    """

    layers: tuple[KV, ...]
    visible: Bool[Array, "b S"]
    positions: Int[Array, "b S"]


@struct.dataclass
class View:
    """What the layers of one kind see of a batch.

    Attributes:
      cos, sin: float32 [B, L, 1, 2, Dh/2], the rotation of each fed token; the first half of the
        sines is negated.
      mask: bool [B or 1, L, own], which of its own stretch's tokens each query sees; None leaves it
        to a causal kernel.
      past: bool [b or B, L or 1, S] for each earlier stretch.
      segments: int32 [B, L] or None, for a causal kernel: a token sees those of its own segment
        only.
    """

    cos: Float[Array, "B L 1 2 half"]
    sin: Float[Array, "B L 1 2 half"]
    mask: Bool[Array, "b L own"] | None
    past: tuple[Bool[Array, "b l S"], ...] = ()
    segments: Int[Array, "B L"] | None = None

    @classmethod
    def of(
        cls,
        rope,
        window: int,
        head_width: int,
        positions,
        mask,
        own_positions,
        past: Sequence[Past],
    ) -> View:
        """Positions int32 [B, L] of the queries, own_positions int32 [B, own] of their own
        stretch's keys.
        """
        angle = positions[..., None].astype(jnp.float32) * rope.frequencies(head_width)
        earlier = [part.visible[:, None, :] for part in past]
        if window:  # a key is seen while the query's position is less than `window` after its own

            def near(keys):
                return positions[:, :, None] - keys[:, None, :] < window

            mask = None if mask is None else mask & near(own_positions)
            earlier = [
                seen & near(part.positions) for seen, part in zip(earlier, past, strict=True)
            ]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        pairs = (jnp.stack(pair, axis=2)[:, :, None] for pair in ((cos, cos), (-sin, sin)))
        return cls(*pairs, mask, tuple(earlier))

    def rotate(self, x: Float[Array, "B L H Dh"]) -> Float[Array, "B L H Dh"]:
        """X turned by its tokens' positions."""
        return rotate(x, self.cos, self.sin)


@struct.dataclass
class Stretch:
    """What one stretch contributes to attention before the stretches are joined; float32 [B, K,
    ..., Dh] and [B, K, ..., 1].

    Attributes:
      mixed: its values, weighted by exp(score - peak).
      peak: its highest score.
      total: the sum of its weights.
    """

    mixed: Array
    peak: Array
    total: Array


def _rowwise(x, y, out=None):
    """X [B, K, M, a] @ y [b, K, a, c] -> [B, K, M, c]; a shared y is multiplied once with all rows
    side by side.
    """
    b, k, m, _ = x.shape
    y = y.astype(x.dtype)
    if y.shape[0] == b:
        return matmul(x, y, out=out)
    stacked = matmul(x.transpose(1, 0, 2, 3).reshape(k, b * m, -1), y[0], out=out)
    return stacked.reshape(k, b, m, -1).transpose(1, 0, 2, 3)


def _weights(q, k, mask, scale: float) -> Float[Array, "B K M S"]:
    scores = apart(matmul(q, k.swapaxes(2, 3), out=jnp.float32))
    length = mask.shape[1]  # of the M query rows, L for each head of a group
    scores = scores.reshape(*scores.shape[:2], -1, length, scores.shape[3])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores * scale, NEG_INF), axis=-1)
    return apart(weights.reshape(*q.shape[:3], -1).astype(q.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def within(
    q: Float[Array, "B K M Dh"],
    k: Float[Array, "B K S Dh"],
    v: Float[Array, "B K S Dh"],
    mask: Bool[Array, "b L S"],
    scale: float,
) -> Float[Array, "B K M Dh"]:
    """Attention of M = G x L grouped query rows over their own stretch; its backward is
    FlashAttention's (2205.14135, B.4).

    The softmax's gradient needs the sum of weights times their gradients, which is that of outputs
    times theirs: narrower.
    """
    return matmul(_weights(q, k, mask, scale), v)


def _within_forward(q, k, v, mask, scale):
    q, k, v = apart(q), apart(k), apart(v)
    weights = _weights(q, k, mask, scale)
    out = matmul(weights, v)
    return out, (q, k, v, weights, out)


def _within_backward(scale, kept, d_out):
    q, k, v, weights, out = kept
    d_out = apart(d_out)
    drift = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_weights = apart(matmul(d_out, v.swapaxes(2, 3), out=jnp.float32))
    d_scores = apart((weights * (d_weights - drift) * scale).astype(q.dtype))
    return matmul(d_scores, k), _transposed(d_scores, q), _transposed(weights, d_out), None


def _transposed(x, y):
    """x^T @ y [B, K, S, Dh], as (y^T @ x)^T: what is transposed is Dh wide, not S."""
    return apart(matmul(apart(y.swapaxes(2, 3)), x)).swapaxes(2, 3)


within.defvjp(_within_forward, _within_backward)


def attention(
    q: Float[Array, "B L H Dh"],
    own: KV,
    view: View,
    scale: float,
    past: Sequence[KV] = (),
    slots: Callable[..., Stretch] | None = None,
) -> Float[Array, "B L H Dh"]:
    """Dot-product attention with grouped queries over earlier stretches and the queries' own.
    Softmax in float32.

    Args:
      slots: a kernel for the last earlier stretch, each row's own, of which a row's queries all see
        the beginning: see `attention_kernels.occupied`.
    """
    b, l, h, dh = q.shape
    kv = own.k.shape[1]
    q = (
        q.reshape(b, l, kv, h // kv, dh).transpose(0, 2, 3, 1, 4).reshape(b, kv, -1, dh)
    )  # [B, K, G*L, Dh]
    if not past and own.k_scale is None and own.k.shape[0] == b:
        out = within(q, own.k, own.v, view.mask, scale)
        return out.reshape(b, kv, h // kv, l, dh).transpose(0, 3, 1, 2, 4).reshape(b, l, h, dh)
    parts = [*zip(past, view.past, strict=True), (own, view.mask)]

    def scores(part: KV, visible):  # -> [B, K, G, L, S]
        s = _rowwise(q, part.k.swapaxes(2, 3), jnp.float32) * scale
        if part.k_scale is not None:
            s = s * part.k_scale.swapaxes(2, 3)
        return jnp.where(visible[:, None, None], s.reshape(b, kv, h // kv, l, -1), NEG_INF)

    def mix(part: KV, weights):  # -> [B, K, G*L, Dh]
        weights = weights.reshape(b, kv, -1, weights.shape[-1])
        if part.v_scale is not None:
            weights = weights * part.v_scale.swapaxes(2, 3)
        return _rowwise(weights.astype(q.dtype), part.v)

    def alone(part: KV, visible) -> Stretch:
        s = scores(part, visible)
        peak = jnp.max(s, axis=-1, keepdims=True)
        weights = jnp.exp(s - peak)
        mixed = mix(part, weights).reshape(b, kv, h // kv, l, dh).astype(jnp.float32)
        return Stretch(mixed, peak, jnp.sum(weights, axis=-1, keepdims=True))

    if past and past[-1].k.shape[0] == b > 1 and (l == 1 or slots):
        # Slots are read where they lie. Each stretch has a softmax of its own, joined by its
        # maximum and sum: rows of scores side by side would be copied twice a layer, which on a TPU
        # takes as long as reading the slots.
        each = [alone(*part) for part in parts if not (slots and part[0] is past[-1])]
        if slots:
            seen = jnp.sum(view.past[-1][:, 0], axis=-1, dtype=jnp.int32)
            found = slots(q, past[-1].k, past[-1].v, seen, scale)
            each.append(jax.tree.map(lambda x: x.reshape(b, kv, h // kv, l, -1), found))
        peak = functools.reduce(jnp.maximum, [part.peak for part in each])
        shares = [jnp.exp(part.peak - peak) for part in each]  # [B, K, G, L, 1]
        total = sum(part.total * share for part, share in zip(each, shares, strict=True))
        out = sum(part.mixed * (share / total) for part, share in zip(each, shares, strict=True))
        return out.astype(q.dtype).transpose(0, 3, 1, 2, 4).reshape(b, l, h, dh)
    joint = [scores(*part) for part in parts]
    weights = jax.nn.softmax(jnp.concatenate(joint, axis=-1) if past else joint[0], axis=-1)
    begin, out = 0, []
    for part, visible in parts:
        out.append(mix(part, weights[..., begin : begin + visible.shape[-1]]))
        begin += visible.shape[-1]
    return (
        sum(out[1:], out[0])
        .reshape(b, kv, h // kv, l, dh)
        .transpose(0, 3, 1, 2, 4)
        .reshape(b, l, h, dh)
    )


def causal_mask(token_mask: Bool[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Each token sees itself and the real tokens before it."""
    length = token_mask.shape[1]
    return jnp.tril(jnp.ones((length, length), bool))[None] & token_mask[:, None, :]
