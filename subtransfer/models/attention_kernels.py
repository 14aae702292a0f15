"""Kernels for causal attention over whole sequences: the training forward on accelerators.

`DecoderConfig.attention` names one; "xla" is `attention.py`'s own, which also serves what these cannot: masks that are not
causal (the choice probe's tree) and tokens after a cache (rollouts). Shape letters as in `decoder.py`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from subtransfer.errors import UserError

# Back end -> the platform that it is made for.
BACKENDS = {"xla": None, "cudnn": "gpu", "pallas": "tpu"}
LANES = 128  # splash attention's blocks are multiples of this


def check(backend: str, head_width: int, dtype: str, platform: str) -> None:
    """Raises UserError if a back end cannot serve such a model on such a device: nothing falls back silently."""
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
) -> Float[Array, "B L H Dh"]:
    """Each token sees itself and those before it, in a layer with a window only the last so many.

    Args:
      windows: of each kind of layer, 0 for none.
      kind: int32 [], this layer's kind, where there are two.
    """
    run = {"cudnn": _cudnn, "pallas": _splash}[backend]
    if len(windows) == 1:
        return run(q, k, v, scale, windows[0])
    one, two = (functools.partial(run, scale=scale, window=window) for window in windows)
    return jax.lax.cond(kind == 0, one, two, q, k, v)


def _cudnn(q, k, v, scale: float, window: int, implementation: str = "cudnn"):
    local = (window - 1, 0) if window else None
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, local_window_size=local, implementation=implementation
    )


def _splash(q, k, v, scale: float, window: int, interpret: bool = False):
    """On each chip over its own rows and heads: the compiler cannot divide a kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    local = functools.partial(_splash_local, scale=scale, window=window, interpret=interpret)
    if mesh.empty or mesh.size == 1:
        return local(q, k, v)
    rows = ("data", "fsdp") if q.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    heads = "tensor" if k.shape[2] % mesh.shape["tensor"] == 0 else None
    spec = PartitionSpec(rows, None, heads)
    return jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(q, k, v)


def _splash_local(q, k, v, *, scale: float, window: int, interpret: bool):
    length, heads = q.shape[1], q.shape[2]
    padded = -(-length // LANES) * LANES  # what is added comes last, where causality hides it
    q, k, v = (jnp.pad(x, ((0, 0), (0, padded - length), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q, k, v))
    if window:
        mask = splash_attention_mask.LocalMask((padded, padded), (window - 1, 0), 0)
    else:
        mask = splash_attention_mask.CausalMask((padded, padded))
    block = next(size for size in (512, 256, LANES) if padded % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash_attention_kernel.BlockSizes(**{f"block_{name}": block for name in names}),
        interpret=interpret,
    )
    out = jax.vmap(kernel)((q * scale).astype(q.dtype), k, v)
    return out.swapaxes(1, 2)[:, :length]
