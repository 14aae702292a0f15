"""Attention of queries over the tokens they are fed with and over caches of earlier tokens.

A query sees the current tokens and, before them, any number of caches: a prefix that all rows
share, each row's own slots. One softmax covers them all. Where that is faster, each cache has a
softmax of its own and the results are merged by their maxima and sums (as in FlashAttention,
2205.14135). Shape letters as in `decoder.py`; S is the number of slots of a cache, b its rows: B,
or 1 where all rows share it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from subtransfer.models.kv_cache import Cache, KeyValues
from subtransfer.models.primitives import cpu_barrier, matmul, rotate

# Finite, so that a fully masked query row gives a uniform softmax instead of NaN.
NEG_INF = -1e9


@struct.dataclass
class AttentionContext:
    """Rotations and masks of a batch, for the layers of one kind (with or without a window).

    Attributes:
      cos: float32 [B, L, 1, 2, Dh/2], the rotation of each fed token.
      sin: as `cos`; the first of its two halves is negated.
      mask: bool [B or 1, L, S], which of the current tokens each query sees; None leaves it to a
        causal kernel.
      cache_masks: bool [b or B, L or 1, S] for each cache.
      segments: int32 [B, L] or None, for a causal kernel: a token sees those of its own segment
        only.
      share_mask: bool [B, c, P] or None, beside a causal kernel: which tokens of a shared prefix
        each token of a row's share sees.
    """

    cos: Float[Array, "B L 1 2 half"]
    sin: Float[Array, "B L 1 2 half"]
    mask: Bool[Array, "b L S"] | None
    cache_masks: tuple[Bool[Array, "b l S"], ...] = ()
    segments: Int[Array, "B L"] | None = None
    share_mask: Bool[Array, "B c P"] | None = None

    @classmethod
    def build(
        cls,
        rope,
        window: int,
        head_width: int,
        positions: Int[Array, "B L"],
        mask: Bool[Array, "b L S"] | None,
        key_positions: Int[Array, "B S"],
        caches: Sequence[Cache],
    ) -> AttentionContext:
        """Computes rotations from positions and narrows the masks to a window.

        Args:
          rope: the rotary frequencies, a `decoder.Rope`.
          window: how many positions back a layer sees; 0 for all of them.
          head_width: Dh.
          positions: of the queries.
          mask: as the attribute, before the window.
          key_positions: of the current tokens' keys.
          caches: what the queries see before the current tokens.
        """
        angle = positions[..., None].astype(jnp.float32) * rope.frequencies(head_width)
        cache_masks = [cache.visible[:, None, :] for cache in caches]
        if window:

            def near(keys):
                # A key is seen while the query's position is less than `window` after its own.
                return positions[:, :, None] - keys[:, None, :] < window

            mask = None if mask is None else mask & near(key_positions)
            cache_masks = [
                seen & near(cache.positions)
                for seen, cache in zip(cache_masks, caches, strict=True)
            ]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        both_cos = jnp.stack((cos, cos), axis=2)[:, :, None]
        both_sin = jnp.stack((-sin, sin), axis=2)[:, :, None]
        return cls(both_cos, both_sin, mask, tuple(cache_masks))

    def rotate(self, x: Float[Array, "B L H Dh"]) -> Float[Array, "B L H Dh"]:
        """Turns queries or keys by their tokens' positions."""
        return rotate(x, self.cos, self.sin)


@struct.dataclass
class PartialAttention:
    """Attention over one cache before it is merged with that over others.

    Attributes:
      mixed: float32 [B, K, ..., Dh], its values, weighted by exp(score - peak).
      peak: float32 [B, K, ..., 1], its highest score.
      total: float32 [B, K, ..., 1], the sum of its weights.
    """

    mixed: Array
    peak: Array
    total: Array


def _matmul_rows(x: Float[Array, "B K M a"], y: Float[Array, "b K a c"], out=None) -> Array:
    """`x @ y`, [B, K, M, c]; a shared `y` is multiplied once with all rows side by side."""
    b, k, m, _ = x.shape
    y = y.astype(x.dtype)
    if y.shape[0] == b:
        return matmul(x, y, out=out)
    # A product for each row would read the shared `y` B times.
    stacked = matmul(x.transpose(1, 0, 2, 3).reshape(k, b * m, -1), y[0], out=out)
    return stacked.reshape(k, b, m, -1).transpose(1, 0, 2, 3)


def _softmax_weights(q, k, mask, scale: float) -> Float[Array, "B K M S"]:
    scores = cpu_barrier(matmul(q, k.swapaxes(2, 3), out=jnp.float32))
    length = mask.shape[1]  # of the M query rows, L for each head of a group
    scores = scores.reshape(*scores.shape[:2], -1, length, scores.shape[3])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores * scale, NEG_INF), axis=-1)
    return cpu_barrier(weights.reshape(*q.shape[:3], -1).astype(q.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def dense_attention(
    q: Float[Array, "B K M Dh"],
    k: Float[Array, "B K S Dh"],
    v: Float[Array, "B K S Dh"],
    mask: Bool[Array, "b L S"],
    scale: float,
) -> Float[Array, "B K M Dh"]:
    """Attention of M = G x L grouped query rows over the current tokens alone.

    Its backward is FlashAttention's (2205.14135, B.4): the softmax's gradient needs the sum of
    weights times their gradients, which equals that of outputs times theirs. Outputs are Dh wide,
    weights S.
    """
    return matmul(_softmax_weights(q, k, mask, scale), v)


def _dense_forward(q, k, v, mask, scale):
    q, k, v = cpu_barrier(q), cpu_barrier(k), cpu_barrier(v)
    weights = _softmax_weights(q, k, mask, scale)
    out = matmul(weights, v)
    return out, (q, k, v, weights, out)


def _dense_backward(scale, residuals, d_out):
    q, k, v, weights, out = residuals
    d_out = cpu_barrier(d_out)
    drift = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_weights = cpu_barrier(matmul(d_out, v.swapaxes(2, 3), out=jnp.float32))
    d_scores = cpu_barrier((weights * (d_weights - drift) * scale).astype(q.dtype))
    d_k = _transposed_matmul(d_scores, q)
    d_v = _transposed_matmul(weights, d_out)
    return matmul(d_scores, k), d_k, d_v, None


def _transposed_matmul(x, y):
    """x^T @ y [B, K, S, Dh], as (y^T @ x)^T: what is transposed is then Dh wide, not S."""
    return cpu_barrier(matmul(cpu_barrier(y.swapaxes(2, 3)), x)).swapaxes(2, 3)


dense_attention.defvjp(_dense_forward, _dense_backward)


def attention(
    q: Float[Array, "B L H Dh"],
    current: KeyValues,
    context: AttentionContext,
    scale: float,
    caches: Sequence[KeyValues] = (),
    cache_kernel: Callable[..., PartialAttention] | None = None,
) -> Float[Array, "B L H Dh"]:
    """Dot-product attention with grouped queries over caches and current tokens.

    The softmax is computed in float32.

    Args:
      q: rotated queries, in the computation dtype.
      current: keys and values of the current tokens, [B, K, S, Dh].
      context: the masks of `current` and of `caches`; its mask must not be None.
      scale: what scores are multiplied by.
      caches: one layer's keys and values of earlier tokens, in their order.
      cache_kernel: a kernel for the last cache, where each row has its own and all queries of a
        row see its beginning: see `attention_kernels.cache_attention`.
    """
    b, l, h, dh = q.shape
    heads = current.k.shape[1]
    group = h // heads
    mask = context.mask
    assert mask is not None, "a causal kernel's context holds no mask"
    # Query heads of one key/value head lie side by side: [B, K, G * L, Dh].
    q = q.reshape(b, l, heads, group, dh).transpose(0, 2, 3, 1, 4).reshape(b, heads, -1, dh)

    def ungrouped(x):
        """[B, K, G, L, Dh] back to [B, L, H, Dh]."""
        return x.transpose(0, 3, 1, 2, 4).reshape(b, l, h, dh)

    # Training, and the first piece of a prefix: the backward pass is written by hand.
    if not caches and current.k_scale is None and current.k.shape[0] == b:
        out = dense_attention(q, current.k, current.v, mask, scale)
        return ungrouped(out.reshape(b, heads, group, l, dh))
    parts = [*zip(caches, context.cache_masks, strict=True), (current, mask)]

    def scores(part: KeyValues, visible) -> Float[Array, "B K G L S"]:
        s = _matmul_rows(q, part.k.swapaxes(2, 3), jnp.float32) * scale
        if part.k_scale is not None:
            # A token's scale is the same for all features, so it can be applied to its score.
            s = s * part.k_scale.swapaxes(2, 3)
        return jnp.where(visible[:, None, None], s.reshape(b, heads, group, l, -1), NEG_INF)

    def mix(part: KeyValues, weights) -> Float[Array, "B K M Dh"]:
        weights = weights.reshape(b, heads, -1, weights.shape[-1])
        if part.v_scale is not None:
            # As with the keys: scaled weights are cheaper than scaled values, which are Dh wide.
            weights = weights * part.v_scale.swapaxes(2, 3)
        return _matmul_rows(weights.astype(q.dtype), part.v)

    def partial(part: KeyValues, visible) -> PartialAttention:
        s = scores(part, visible)
        peak = jnp.max(s, axis=-1, keepdims=True)
        weights = jnp.exp(s - peak)
        mixed = mix(part, weights).reshape(b, heads, group, l, dh).astype(jnp.float32)
        return PartialAttention(mixed, peak, jnp.sum(weights, axis=-1, keepdims=True))

    own_slots = bool(caches) and caches[-1].k.shape[0] == b > 1
    if own_slots and (l == 1 or cache_kernel):
        # Slots are read where they lie, each cache with a softmax of its own. To concatenate the
        # scores would copy them twice a layer, which on a TPU takes as long as reading the slots.
        pieces = [partial(*part) for part in parts if not (cache_kernel and part[0] is caches[-1])]
        if cache_kernel:
            # Slots are filled from the first on, so a row's mask says how many it holds.
            lengths = jnp.sum(context.cache_masks[-1][:, 0], axis=-1, dtype=jnp.int32)
            found = cache_kernel(q, caches[-1].k, caches[-1].v, lengths, scale)
            pieces.append(jax.tree.map(lambda x: x.reshape(b, heads, group, l, -1), found))
        return ungrouped(_merged(pieces).astype(q.dtype))
    # Few queries or shared caches: one softmax over all scores side by side.
    joint = [scores(*part) for part in parts]
    weights = jax.nn.softmax(jnp.concatenate(joint, axis=-1) if caches else joint[0], axis=-1)
    begin, mixed = 0, []
    for part, visible in parts:
        mixed.append(mix(part, weights[..., begin : begin + visible.shape[-1]]))
        begin += visible.shape[-1]
    return ungrouped(sum(mixed[1:], mixed[0]).reshape(b, heads, group, l, dh))


def _merged(pieces: Sequence[PartialAttention]) -> Float[Array, "B K G L Dh"]:
    """The attention over several caches, from that over each of them."""
    # Each piece is relative to its own peak; the shares bring them to the common one.
    peak = functools.reduce(jnp.maximum, [piece.peak for piece in pieces])
    shares = [jnp.exp(piece.peak - peak) for piece in pieces]  # [B, K, G, L, 1]
    pairs = list(zip(pieces, shares, strict=True))
    total = sum(piece.total * share for piece, share in pairs)
    return sum(piece.mixed * (share / total) for piece, share in pairs)  # type: ignore[return-value]


def causal_mask(token_mask: Bool[Array, "B L"]) -> Bool[Array, "B L L"]:
    """A mask by which each token sees itself and the real tokens before it."""
    length = token_mask.shape[1]
    return jnp.tril(jnp.ones((length, length), bool))[None] & token_mask[:, None, :]
