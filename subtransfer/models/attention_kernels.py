"""Attention kernels for accelerators: causal ones over whole sequences (training), and one over a
cache's slots (rollouts).

`DecoderConfig.attention` names the back end: "cudnn" serves training, "pallas" training (JAX's
splash attention) and slots; "xla" is `attention.py`'s own, which also serves what these cannot:
masks that are not causal (the choice probe's tree), and slots of layers with a window. Shape
letters as in `decoder.py`.
"""

from __future__ import annotations

import functools

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

from subtransfer.models.attention import NEG_INF, Stretch
from subtransfer.runtime.errors import UserError

# Back end -> the platform that it is made for.
BACKENDS = {"xla": None, "cudnn": "gpu", "pallas": "tpu"}
LANES = 128  # splash attention's blocks are multiples of this
# and no longer: each block has a cost of its own, but of those on the diagonal half is made in vain
LONGEST = 1024
SLOTS = 512  # slots that the kernel over a cache reads at a time


def check(backend: str, head_width: int, dtype: str, platform: str) -> None:
    """Raises UserError if a back end cannot serve such a model on such a device: nothing falls back
    silently.
    """
    wanted = BACKENDS[backend]
    if wanted not in (None, platform):
        raise UserError(
            f"base.attention={backend} needs a {wanted}, but this machine computes on its {platform}: use base.attention=xla."
        )
    if backend == "cudnn" and (dtype != "bfloat16" or head_width % 8 or head_width > 128):
        raise UserError(
            f"base.attention=cudnn needs bfloat16 and a head width of at most 128 that is a multiple of 8, not {dtype} and "
            f"{head_width}: use base.attention=xla."
        )
    if backend == "pallas" and head_width % 64:
        raise UserError(
            f"base.attention=pallas needs a head width that is a multiple of 64, not {head_width}: use base.attention=xla."
        )


def causal(
    backend: str,
    q: Float[Array, "B L H Dh"],
    k: Float[Array, "B L K Dh"],
    v: Float[Array, "B L K Dh"],
    scale: float,
    windows: tuple[int, ...],
    kind=None,
    segments: Int[Array, "B L"] | None = None,
) -> Float[Array, "B L H Dh"]:
    """Each token sees itself and those before it, in a layer with a window only the last so many.

    Args:
      windows: of each kind of layer, 0 for none.
      kind: int32 [], this layer's kind, where there are two.
      segments: of packed rows, a token sees those of its own segment only.
    """
    run = {"cudnn": _cudnn, "pallas": _splash}[backend]
    if len(windows) == 1:
        return run(q, k, v, segments, scale=scale, window=windows[0])
    one, two = (functools.partial(run, scale=scale, window=window) for window in windows)
    return jax.lax.cond(kind == 0, one, two, q, k, v, segments)


def _cudnn(q, k, v, segments=None, *, scale: float, window: int, implementation: str = "cudnn"):
    if segments is not None:
        raise ValueError("cuDNN's kernel takes no segments")
    local = (window - 1, 0) if window else None
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, local_window_size=local, implementation=implementation
    )


def _splash(q, k, v, segments=None, *, scale: float, window: int, interpret: bool = False):
    """On each chip over its own rows and heads: the compiler cannot divide a kernel by itself."""
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
    longest = LONGEST if width <= LANES else LONGEST // 2  # a block's scores and rows fit into VMEM
    blocks = -(-length // (min(longest, max(window, 512)) if window else longest))
    block = -(-length // (blocks * LANES)) * LANES
    padded = blocks * block  # what is added comes last, where causality hides it
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, padded - length), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q, k, v)
    )
    if window:
        mask = splash_attention_mask.LocalMask((padded, padded), (window - 1, 0), 0)
    else:
        mask = splash_attention_mask.CausalMask((padded, padded))
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash_attention_kernel.BlockSizes(
            **{f"block_{name}": block for name in names}
        ),
        interpret=interpret,
    )
    if segments is not None:  # what is added to the length is a segment of its own
        segments = jnp.pad(segments, ((0, 0), (0, padded - length)), constant_values=-1)
        segments = splash_attention_kernel.SegmentIds(segments, segments)
    out = jax.vmap(kernel)((q * scale).astype(q.dtype), k, v, segments)
    return out.swapaxes(1, 2)[:, :length]


def occupied(
    q: Float[Array, "B K M Dh"],
    k: Float[Array, "B K S Dh"],
    v: Float[Array, "B K S Dh"],
    lengths: Int[Array, " B"],
    scale: float,
    *,
    interpret: bool = False,
) -> Stretch:
    """Attention over the first `lengths[b]` slots of each row, as one stretch [B, K, M, ...] to be
    joined with others.

    Only blocks that hold tokens are read, so a step costs what the conversations are long and not
    what they have room for. Libraries' kernels over caches keep their maxima and sums to
    themselves, without which stretches cannot be joined.
    """
    mesh = jax.sharding.get_abstract_mesh()
    local = functools.partial(_occupied_local, scale=scale, interpret=interpret)
    if mesh.empty or mesh.size == 1:
        return local(q, k, v, lengths)
    rows = ("data", "fsdp") if q.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    heads = "tensor" if k.shape[1] % mesh.shape["tensor"] == 0 else None
    spec = PartitionSpec(rows, heads)
    each = (spec, spec, spec, PartitionSpec(rows))
    return jax.shard_map(local, mesh=mesh, in_specs=each, out_specs=spec, check_vma=False)(
        q, k, v, lengths
    )


def _occupied_local(q, k, v, lengths, *, scale: float, interpret: bool) -> Stretch:
    b, kv, m, dh = q.shape
    padded, block = -(-m // 16) * 16, min(SLOTS, k.shape[2])  # 16 rows of bfloat16 fill a register

    def held(
        row, head, i, lengths
    ):  # a block beyond the end is the last one again, which is not fetched twice
        return row, head, jnp.minimum(i, jnp.maximum(lengths[row] - 1, 0) // block), 0

    def kept(row, head, *_):
        return row, head, 0, 0

    shapes = [jax.ShapeDtypeStruct((b, kv, padded, width), jnp.float32) for width in (dh, 1, 1)]
    found = pl.pallas_call(
        functools.partial(_occupied_kernel, block=block, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b, kv, pl.cdiv(k.shape[2], block)),
            in_specs=[
                pl.BlockSpec((None, None, padded, dh), kept),
                *[pl.BlockSpec((None, None, block, dh), held)] * 2,
            ],
            out_specs=[pl.BlockSpec((None, None, padded, x.shape[-1]), kept) for x in shapes],
        ),
        out_shape=shapes,
        interpret=interpret,
    )(lengths, jnp.pad(q, ((0, 0), (0, 0), (0, padded - m), (0, 0))), k, v)
    return Stretch(*(x[:, :, :m] for x in found))


def _occupied_kernel(lengths, q, k, v, mixed, peak, total, *, block: int, scale: float):
    """One row, head and block of slots; the results stay in place while the blocks pass (flash
    attention, 2205.14135).
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
