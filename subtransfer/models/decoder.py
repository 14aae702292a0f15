"""The one decoder: a Llama-architecture transformer in Flax Linen (Qwen2 by two flags).

RMSNorm, rotary positions (half-split, as Hugging Face's Llama), grouped-query attention, SwiGLU; layers are stacked
under `nn.scan`, so every layer parameter has a leading axis N. `Decoder.apply` is a pure function of
`(params, tokens, positions, mask, cache)`; without a cache it is the training forward, with one it extends it.

Shape letters: B batch, L tokens fed, S key length, D model width, F MLP width, H heads, K key/value heads, Dh head
width, N layers, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

NEG_INF = -1e9  # finite, so that a fully masked query row gives a uniform softmax instead of NaN


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Geometry of a decoder; the same fields as a Llama/Qwen2 `config.json`, by their symbols' names."""

    vocab_size: int
    width: int  # D
    mlp_width: int  # F
    num_layers: int  # N
    num_heads: int  # H
    num_kv_heads: int  # K
    head_width: int  # Dh
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    tied_embeddings: bool = True
    dtype: str = "float32"  # computation; parameters are kept in float32
    remat: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_width % 2:
            raise ValueError(f"head_width ({self.head_width}) must be even for rotary positions")

    @property
    def num_params(self) -> int:
        """Number of parameters (exact)."""
        d, f, h, k, dh = self.width, self.mlp_width, self.num_heads, self.num_kv_heads, self.head_width
        layer = 2 * d * h * dh + 2 * d * k * dh + 3 * d * f + 2 * d
        layer += (h + 2 * k) * dh if self.qkv_bias else 0
        return self.num_layers * layer + d + self.vocab_size * d * (1 if self.tied_embeddings else 2)


@struct.dataclass
class KVCache:
    """Keys and values, one array a layer, written in lockstep: every row uses the same slot for its next token.

    Separate arrays a layer are updated in place by a decoding loop, where a stacked one would be copied at every step;
    the layouts are those in which both products of attention are plain batched matmuls.

    Attributes:
      k: N arrays [B, K, Dh, S] in the computation dtype.
      v: N arrays [B, K, S, Dh].
      valid: bool [B, S]; False where a row had nothing to write (it had finished, or was shorter).
      end: int32 scalar, the next slot to be written.
    """

    k: tuple[Float[Array, "B K Dh S"], ...]
    v: tuple[Float[Array, "B K S Dh"], ...]
    valid: Bool[Array, "B S"]
    end: Int[Array, ""]

    @classmethod
    def empty(cls, cfg: DecoderConfig, batch: int, length: int) -> KVCache:
        k, dh, dtype = cfg.num_kv_heads, cfg.head_width, jnp.dtype(cfg.dtype)
        return cls(
            k=tuple(jnp.zeros((batch, k, dh, length), dtype) for _ in range(cfg.num_layers)),
            v=tuple(jnp.zeros((batch, k, length, dh), dtype) for _ in range(cfg.num_layers)),
            valid=jnp.zeros((batch, length), bool),
            end=jnp.zeros((), jnp.int32),
        )


def rope(x: Float[Array, "B L H Dh"], positions: Int[Array, "B L"], theta: float) -> Float[Array, "B L H Dh"]:
    """Rotary position embedding, half-split layout (Su et al. 2104.09864, as in Hugging Face's Llama), in float32."""
    half = x.shape[-1] // 2
    inv_freq = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * inv_freq  # [B, L, Dh/2]
    cos, sin = jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def attention(
    q: Float[Array, "B L H Dh"],
    k: Float[Array, "B K Dh L"],
    v: Float[Array, "B K L Dh"],
    mask: Bool[Array, "B L L"],
    past: tuple[Float[Array, "B K Dh S"], Float[Array, "B K S Dh"], Bool[Array, "B S"]] | None = None,
) -> Float[Array, "B L H Dh"]:
    """Scaled dot-product attention with grouped queries over the fed tokens and, before them, a cache's valid slots.

    The cache is read as it was before this call: an update that attention reads could not be done in place. Softmax in
    float32.
    """
    b, l, h, dh = q.shape
    kv = k.shape[1]
    q = q.reshape(b, l, kv, h // kv, dh).transpose(0, 2, 3, 1, 4).reshape(b, kv, -1, dh)  # [B, K, G*L, Dh]

    def scores(keys, visible):  # -> [B, K, G, L, keys]
        s = ((q @ keys).astype(jnp.float32) * dh**-0.5).reshape(b, kv, h // kv, l, -1)
        return jnp.where(visible[:, None, None], s, NEG_INF)

    def mix(weights, values):  # -> [B, K, G*L, Dh]
        return weights.astype(values.dtype).reshape(b, kv, -1, values.shape[2]) @ values

    own = scores(k, mask)
    if past is None:
        out = mix(jax.nn.softmax(own, axis=-1), v)
    else:
        past_k, past_v, past_valid = past
        earlier = scores(past_k, past_valid[:, None, :])
        weights = jax.nn.softmax(jnp.concatenate([earlier, own], axis=-1), axis=-1)
        split = past_k.shape[-1]
        out = mix(weights[..., :split], past_v) + mix(weights[..., split:], v)
    return out.reshape(b, kv, h // kv, l, dh).transpose(0, 3, 1, 2, 4).reshape(b, l, h, dh)


def causal_mask(token_mask: Bool[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Each token sees itself and the real tokens before it."""
    length = token_mask.shape[1]
    return jnp.tril(jnp.ones((length, length), bool))[None] & token_mask[:, None, :]


class RMSNorm(nn.Module):
    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", _boxed(nn.initializers.ones, ("embed",)), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.cfg.norm_eps)
        return (x32 * scale).astype(x.dtype)


def _boxed(init, axes):
    return nn.with_logical_partitioning(init, axes)


def _dense(name, features, axes, cfg, *, bias=False):
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=jnp.dtype(cfg.dtype),
        name=name,
        kernel_init=_boxed(nn.initializers.lecun_normal(), axes),
        bias_init=_boxed(nn.initializers.zeros, axes[1:]),
    )


class Block(nn.Module):
    """One layer: x [B, L, D] to (x, this layer's updated cache (k, v) or None)."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x, layer_cache, positions, mask, valid, end):
        cfg = self.cfg
        b, l, _ = x.shape
        h, k, dh = cfg.num_heads, cfg.num_kv_heads, cfg.head_width

        y = RMSNorm(cfg, name="attn_norm")(x)
        query = _dense("q", h * dh, ("embed", "heads"), cfg, bias=cfg.qkv_bias)(y).reshape(b, l, h, dh)
        key = _dense("k", k * dh, ("embed", "kv_heads"), cfg, bias=cfg.qkv_bias)(y).reshape(b, l, k, dh)
        value = _dense("v", k * dh, ("embed", "kv_heads"), cfg, bias=cfg.qkv_bias)(y).reshape(b, l, k, dh)
        query, key = rope(query, positions, cfg.rope_theta), rope(key, positions, cfg.rope_theta)
        key, value = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)  # [B, K, Dh, L], [B, K, L, Dh]
        past = None if layer_cache is None else (*layer_cache, valid)
        y = attention(query, key, value, mask, past).reshape(b, l, h * dh)
        if layer_cache is not None:
            # Adding nothing that depends on attention's result tells XLA that the cache is read before it is written;
            # without it, XLA copies every layer's whole cache at each step.
            key, value = key + 0 * y[0, 0, 0], value + 0 * y[0, 0, 0]
            layer_cache = (
                jax.lax.dynamic_update_slice(layer_cache[0], key, (0, 0, 0, end)),
                jax.lax.dynamic_update_slice(layer_cache[1], value, (0, 0, end, 0)),
            )
        x = x + _dense("o", cfg.width, ("heads", "embed"), cfg)(y)

        y = RMSNorm(cfg, name="mlp_norm")(x)
        gate = _dense("gate", cfg.mlp_width, ("embed", "mlp"), cfg)(y)
        up = _dense("up", cfg.mlp_width, ("embed", "mlp"), cfg)(y)
        x = x + _dense("down", cfg.width, ("mlp", "embed"), cfg)(nn.silu(gate) * up)
        return x, layer_cache


class Decoder(nn.Module):
    """Tokens to logits.

    Call arguments:
      tokens: int32 [B, L].
      positions: int32 [B, L], each token's rotary position.
      mask: bool [B, L, L] or [1, L, L], which of the fed tokens each query may see; a padding token must not see itself.
      cache: `KVCache` or None; with one, every query also sees the cache's valid slots, and the fed tokens go to slots
        `end .. end+L-1`, valid where a token sees itself (mask must be [B, L, L] then).

    Returns:
      (logits float32 [B, L, V], the updated cache with `end` advanced or None).
    """

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, tokens, positions, mask, cache: KVCache | None = None):
        cfg = self.cfg
        table = self.param(
            "embedding",
            _boxed(nn.initializers.normal(cfg.width**-0.5), ("vocab", "embed")),
            (cfg.vocab_size, cfg.width),
        )
        x = table.astype(jnp.dtype(cfg.dtype))[tokens]  # [B, L, D]
        if cache is None:
            block = nn.remat(Block, prevent_cse=False) if cfg.remat else Block
            x, _ = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast,) * 5,
                length=cfg.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(cfg, name="layers")(x, None, positions, mask, None, None)
        else:
            stacked, k, v = self.variables["params"]["layers"], [], []
            for i, layer_cache in enumerate(zip(cache.k, cache.v, strict=True)):
                layer = {"params": jax.tree.map(lambda a, i=i: a[i], stacked)}
                x, (key, value) = Block(cfg, parent=None).apply(layer, x, layer_cache, positions, mask, cache.valid, cache.end)
                k.append(key)
                v.append(value)
            present = jnp.diagonal(mask, axis1=1, axis2=2)  # [B, L]: a real token sees itself
            cache = KVCache(
                k=tuple(k),
                v=tuple(v),
                valid=jax.lax.dynamic_update_slice(cache.valid, present, (0, cache.end)),
                end=cache.end + tokens.shape[1],
            )
        x = RMSNorm(cfg, name="final_norm")(x)
        if cfg.tied_embeddings:
            logits = x.astype(jnp.float32) @ table.T
        else:
            head = self.param(
                "lm_head", _boxed(nn.initializers.lecun_normal(), ("embed", "vocab")), (cfg.width, cfg.vocab_size)
            )
            logits = x.astype(jnp.float32) @ head
        return logits, cache
