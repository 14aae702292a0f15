"""Attention kernels for accelerators.

There are causal ones over whole sequences (training), and one over a cache's slots (rollouts).

`DecoderConfig.attention` names the back end: "cudnn" serves training, "pallas" training (JAX's
splash attention) and slots; "xla" is `attention.py`'s own, which also serves what these cannot:
masks that are not causal (the choice probe's tree), and slots of layers with a window. Shape
letters as in `decoder.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from subtransfer.models.attention import (
    NEG_INF,
    AttentionContext,
    PartialAttention,
    attention,
)
from subtransfer.models.kv_cache import KeyValues
from subtransfer.runtime.errors import UserError

# Back end -> the platform that it is made for.
BACKENDS = {"xla": None, "cudnn": "gpu", "pallas": "tpu"}
# Splash attention's blocks are multiples of this many positions.
LANES = 128
# Their greatest length: each block has a fixed cost, but of a block on the diagonal half the work
# is masked, so that longer ones waste more.
LONGEST = 1024
# Slots that the kernel over a cache reads at a time.
SLOTS = 512


def check(backend: str, head_width: int, dtype: str, platform: str) -> None:
    """Refuses a back end that cannot serve such a model on such a device.

    Nothing falls back silently: another kernel has other rounding and other speed.

    Raises:
      UserError: the device, the dtype or the head width is not the kernel's.
    """
    wanted = BACKENDS[backend]
    if wanted not in (None, platform):
        raise UserError(
            f"base.attention={backend} needs a {wanted}, but this machine computes on its "
            f"{platform}: use base.attention=xla."
        )
    if backend == "cudnn" and (dtype != "bfloat16" or head_width % 8 or head_width > 128):
        raise UserError(
            "base.attention=cudnn needs bfloat16 and a head width of at most 128 that is a "
            f"multiple of 8, not {dtype} and {head_width}: use base.attention=xla."
        )
    if backend == "pallas" and head_width % 64:
        raise UserError(
            "base.attention=pallas needs a head width that is a multiple of 64, not "
            f"{head_width}: use base.attention=xla."
        )


def causal(
    backend: str,
    q: Float[Array, "B L H Dh"],
    k: Float[Array, "B S K Dh"],
    v: Float[Array, "B S K Dh"],
    scale: float,
    windows: tuple[int, ...],
    kind=None,
    context: AttentionContext | None = None,
) -> Float[Array, "B L H Dh"]:
    """Causal attention of whole rows by a kernel.

    Each token sees itself and those before it, in a layer with a window only the last ones.

    Args:
      backend: "cudnn" or "pallas".
      q: rotated queries.
      k: rotated keys, as many as queries or those of `SharedPrefix.gathered`.
      v: values.
      scale: what scores are multiplied by.
      windows: of each kind of layer, 0 for none.
      kind: int32 [], this layer's kind, where there are two.
      context: with the segments of packed rows, or the mask of rows' shares of a prefix.
    """
    segments = None if context is None else context.segments
    if context is not None and context.share_mask is not None:
        if segments is not None:
            raise ValueError("a kernel takes no packed rows behind a shared prefix")
        # Each row's share has another mask, and a kernel's mask is part of its program: shares, a
        # small part of the queries, take the path without one.
        share, prefix = context.share_mask.shape[1:]
        seen = KeyValues(k[:, :prefix].swapaxes(1, 2), v[:, :prefix].swapaxes(1, 2))
        view = dataclasses.replace(context, mask=context.share_mask)
        of_shares = attention(q[:, :share], seen, view, scale)
        own = causal(backend, q[:, share:], k, v, scale, windows, kind)
        return jnp.concatenate([of_shares, own], axis=1)
    kernels: dict[str, Callable[..., Array]] = {"cudnn": _cudnn, "pallas": _splash}
    run = kernels[backend]
    if len(windows) == 1:
        return run(q, k, v, segments, scale=scale, window=windows[0])
    # A kernel's window is part of its program, but one scan runs over layers of both kinds.
    one = functools.partial(run, scale=scale, window=windows[0])
    two = functools.partial(run, scale=scale, window=windows[1])
    return jax.lax.cond(kind == 0, one, two, q, k, v, segments)


def _cudnn(
    q,
    k,
    v,
    segments=None,
    *,
    scale: float,
    window: int,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Array:
    if segments is not None:
        raise ValueError("cuDNN's kernel takes no segments")
    if k.shape[1] > q.shape[1]:
        # The library's causal mask would let the first query see the first key alone.
        gap = jnp.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1] - jnp.arange(k.shape[1])
        seen = (gap >= 0) & (gap < window) if window else gap >= 0
        return jax.nn.dot_product_attention(
            q, k, v, mask=seen[None, None], scale=scale, implementation=implementation
        )
    # Both libraries count the tokens before a query; our window counts the query too.
    local = (window - 1, 0) if window else None
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, local_window_size=local, implementation=implementation
    )


def _splash(q, k, v, segments=None, *, scale: float, window: int, interpret: bool = False):
    """Splash attention on each chip over its own rows and heads.

    The compiler cannot divide a kernel by itself, as it does other operations.
    """
    mesh = jax.sharding.get_abstract_mesh()
    local = functools.partial(_splash_local, scale=scale, window=window, interpret=interpret)
    if mesh.empty or mesh.size == 1:
        return local(q, k, v, segments)
    rows = ("data", "fsdp") if q.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    heads = "tensor" if k.shape[2] % mesh.shape["tensor"] == 0 else None
    spec = PartitionSpec(rows, None, heads)
    each = (spec, spec, spec, PartitionSpec(rows))
    return jax.shard_map(local, mesh=mesh, in_specs=each, out_specs=spec, check_vma=False)(
        q, k, v, segments
    )


def _splash_local(q, k, v, segments, *, scale: float, window: int, interpret: bool):
    _, length, heads, width = q.shape
    # Queries are the last of the tokens that there are keys of.
    earlier = k.shape[1] - length
    # A block's scores and rows must fit into VMEM together.
    longest = LONGEST if width <= LANES else LONGEST // 2
    if window:
        # Blocks far beyond the window are skipped whole, so shorter ones waste less.
        longest = min(longest, max(window, 512))

    def divided(length):
        blocks = -(-length // longest)
        block = -(-length // (blocks * LANES)) * LANES
        return block, blocks * block  # what is added comes last, where causality hides it

    (q_block, padded), (k_block, padded_keys) = divided(length), divided(k.shape[1])

    def heads_first(x, padded):
        added = padded - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, added), (0, 0), (0, 0))).swapaxes(1, 2)

    q, k, v = heads_first(q, padded), heads_first(k, padded_keys), heads_first(v, padded_keys)
    mask: splash_attention_mask.Mask
    if window:
        mask = splash_attention_mask.LocalMask((padded, padded_keys), (window - 1, 0), earlier)
    else:
        mask = splash_attention_mask.CausalMask((padded, padded_keys), earlier)
    blocks = dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), q_block)
    names = ("kv", "kv_compute", "kv_dkv", "kv_dkv_compute", "kv_dq")
    blocks |= dict.fromkeys((f"block_{name}" for name in names), k_block)
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash_attention_kernel.BlockSizes(**blocks),
        interpret=interpret,
    )
    if segments is not None:  # what is added to the length is a segment of its own
        segments = jnp.pad(segments, ((0, 0), (0, padded - length)), constant_values=-1)
        segments = splash_attention_kernel.SegmentIds(segments, segments)
    out = jax.vmap(kernel)((q * scale).astype(q.dtype), k, v, segments)
    return out.swapaxes(1, 2)[:, :length]


def cache_attention(
    q: Float[Array, "B K M Dh"],
    k: Float[Array, "B K S Dh"],
    v: Float[Array, "B K S Dh"],
    lengths: Int[Array, " B"],
    scale: float,
    *,
    interpret: bool = False,
) -> PartialAttention:
    """Attention over the first `lengths[b]` slots of each row, to be merged with other caches'.

    Only blocks that hold tokens are read, so a step costs what the conversations are long and not
    what they have room for. The kernel is our own because libraries' kernels over caches keep
    their maxima and sums to themselves, without which results cannot be merged.

    Args:
      q: M = G x L query rows of each key/value head.
      k: the slots' keys.
      v: the slots' values.
      lengths: int32, how many slots of each row hold tokens.
      scale: what scores are multiplied by.
      interpret: run on a CPU, for tests.

    Returns:
      the partial attention, its arrays [B, K, M, ...].
    """
    mesh = jax.sharding.get_abstract_mesh()
    local = functools.partial(_cache_local, scale=scale, interpret=interpret)
    if mesh.empty or mesh.size == 1:
        return local(q, k, v, lengths)
    rows = ("data", "fsdp") if q.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    heads = "tensor" if k.shape[1] % mesh.shape["tensor"] == 0 else None
    spec = PartitionSpec(rows, heads)
    each = (spec, spec, spec, PartitionSpec(rows))
    return jax.shard_map(local, mesh=mesh, in_specs=each, out_specs=spec, check_vma=False)(
        q, k, v, lengths
    )


def _cache_local(q, k, v, lengths, *, scale: float, interpret: bool) -> PartialAttention:
    b, kv, m, dh = q.shape
    padded, block = -(-m // 16) * 16, min(SLOTS, k.shape[2])  # 16 rows of bfloat16 fill a register

    def slot_block(row, head, i, lengths):
        # Beyond a row's end, the index stays at its last block, which is not fetched twice.
        return row, head, jnp.minimum(i, jnp.maximum(lengths[row] - 1, 0) // block), 0

    def same_block(row, head, *_):
        return row, head, 0, 0

    shapes = [jax.ShapeDtypeStruct((b, kv, padded, width), jnp.float32) for width in (dh, 1, 1)]
    found = pl.pallas_call(
        functools.partial(_cache_kernel, block=block, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b, kv, pl.cdiv(k.shape[2], block)),
            in_specs=[
                pl.BlockSpec((None, None, padded, dh), same_block),
                *[pl.BlockSpec((None, None, block, dh), slot_block)] * 2,
            ],
            out_specs=[pl.BlockSpec((None, None, padded, x.shape[-1]), same_block) for x in shapes],
        ),
        out_shape=shapes,
        interpret=interpret,
    )(lengths, jnp.pad(q, ((0, 0), (0, 0), (0, padded - m), (0, 0))), k, v)
    return PartialAttention(*(x[:, :, :m] for x in found))


def _cache_kernel(lengths, q, k, v, mixed, peak, total, *, block: int, scale: float):
    """Adds one block of slots to the results of one row and head.

    The results stay in place while the blocks pass (FlashAttention, 2205.14135).
    """
    i, length = pl.program_id(2), lengths[pl.program_id(0)]

    @pl.when(i == 0)
    def _():
        mixed[...], total[...] = jnp.zeros_like(mixed), jnp.zeros_like(total)
        peak[...] = jnp.full_like(peak, NEG_INF)

    @pl.when(i * block < length)
    def _():
        exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
        scores = jax.lax.dot_general(
            q[...],
            k[...],
            (((1,), (1,)), ((), ())),
            precision=exact,
            preferred_element_type=jnp.float32,
        )
        here = i * block + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1) < length
        scores = jnp.where(here, scores * scale, NEG_INF)
        highest = jnp.maximum(peak[...], jnp.max(scores, axis=-1, keepdims=True))
        # What was summed so far was relative to the old peak.
        weights, share = jnp.exp(scores - highest), jnp.exp(peak[...] - highest)
        # The last block may reach beyond the slots, where anything may lie.
        there = i * block + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0) < length
        values = jnp.where(there, v[...], jnp.zeros((), v.dtype))
        added = jnp.dot(
            weights.astype(values.dtype),
            values,
            precision=exact,
            preferred_element_type=jnp.float32,
        )
        mixed[...] = mixed[...] * share + added
        total[...] = total[...] * share + jnp.sum(weights, axis=-1, keepdims=True)
        peak[...] = highest
