"""The one decoder: a pre-norm transformer in Flax Linen whose declared variations make Llama, Qwen2, Qwen3 and Gemma 3.

RMSNorm, rotary positions (half-split, as in Hugging Face's models), grouped-query attention, a gated MLP; layers are
stacked under `nn.scan`, so every layer parameter has a leading axis N. `Decoder.apply` is a pure function of
`(weights, tokens, positions, mask, cache)`; without a cache it is the training forward, with one it extends it.

`weights` are Linen's variable collections: {"params": the parameters} and, for an adapted model, {"lora": low-rank factors}
(see `lora.py`), which are applied beside the matrices they adapt: one resident base serves any number of adapters.

Shape letters: B batch, L tokens fed, S key length, D model width, F MLP width, H heads, K key/value heads, Dh head
width, N layers, V vocabulary, r LoRA rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

NEG_INF = -1e9  # finite, so that a fully masked query row gives a uniform softmax instead of NaN
ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": lambda x: nn.gelu(x, approximate=True)}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary frequencies of one kind of layer, by the names of Hugging Face's `rope_parameters`.

    Attributes:
      kind: "default"; "linear" (all frequencies divided by `factor`: Gemma 3); or "llama3" (only those whose wavelength
        exceeds `original_max_positions / low_freq_factor` are, with a smooth passage up to `high_freq_factor`: Llama 3.1).
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def frequencies(self, head_width: int) -> np.ndarray:
        """Radians a position: float32 [Dh/2], rounded where transformers rounds: at position 100,000 the last bit shows."""
        exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
        inverse = np.float32(1) / np.power(self.theta, exponents.astype(np.float64)).astype(np.float32)
        if self.kind == "linear":
            inverse = inverse / self.factor
        elif self.kind == "llama3":
            turns = self.original_max_positions * (1 / (2 * np.pi * (1 / inverse)))  # over the original context
            smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            smooth = np.clip(smooth, 0, 1)
            inverse = (1 - smooth) * inverse / self.factor + smooth * inverse
        return inverse


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Geometry of a decoder and the variations of its family; hashable, all that a compiled program depends on.

    Attributes:
      qkv_bias: biases on q, k and v (Qwen2).
      qk_norm: RMSNorm over each head's query and key (Qwen3, Gemma 3).
      post_norms: a second RMSNorm after attention and after the MLP, before the residual sum (Gemma 3).
      norm_offset: added to every RMSNorm's scale (1 for Gemma 3, whose files hold scale - 1).
      scaled_embeddings: token embeddings are multiplied by sqrt(D) (Gemma 3).
      activation: of the MLP's gate, a key of `ACTIVATIONS`.
      query_scale: what attention scores are multiplied by; None is Dh ** -0.5.
      sliding: one flag a layer, True where it sees only the last `window` positions; empty: no layer does.
      local_rope: rotary positions of the sliding layers; None: the same as the others'.
      max_positions: the longest context that the model was made for.
      dtype: computation; parameters keep the dtype they were given.
    """

    vocab_size: int
    width: int  # D
    mlp_width: int  # F
    num_layers: int  # N
    num_heads: int  # H
    num_kv_heads: int  # K
    head_width: int  # Dh
    family: str = "llama"
    rope: Rope = Rope()
    local_rope: Rope | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    scaled_embeddings: bool = False
    activation: str = "silu"
    query_scale: float | None = None
    sliding: tuple[bool, ...] = ()
    window: int = 0
    max_positions: int = 2048
    tied_embeddings: bool = True
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_width % 2:
            raise ValueError(f"head_width ({self.head_width}) must be even for rotary positions")
        if self.sliding and (len(self.sliding) != self.num_layers or self.window < 1):
            raise ValueError(f"{self.num_layers} layers need as many window flags and a window above 0")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DecoderConfig:
        """The inverse of `dataclasses.asdict`, also after a passage through JSON."""
        ropes = {name: Rope(**value[name]) for name in ("rope", "local_rope") if value.get(name) is not None}
        return cls(**{**value, **ropes, "sliding": tuple(value.get("sliding", ()))})

    @property
    def num_params(self) -> int:
        """Number of parameters (exact)."""
        d, f, h, k, dh = self.width, self.mlp_width, self.num_heads, self.num_kv_heads, self.head_width
        layer = 2 * d * h * dh + 2 * d * k * dh + 3 * d * f + 2 * d
        layer += (h + 2 * k) * dh if self.qkv_bias else 0
        layer += 2 * dh if self.qk_norm else 0
        layer += 2 * d if self.post_norms else 0
        return self.num_layers * layer + d + self.vocab_size * d * (1 if self.tied_embeddings else 2)

    @property
    def kinds(self) -> tuple[int, ...]:
        """One number a layer: which of the (at most two) views of the context it has."""
        return tuple(int(s) for s in self.sliding) if len(set(self.sliding)) == 2 else (0,) * self.num_layers

    @property
    def views(self) -> tuple[tuple[Rope, int], ...]:
        """The (rotary frequencies, window or 0) of each number in `kinds`."""
        ropes = {False: (self.rope, 0), True: (self.local_rope or self.rope, self.window)}
        return tuple(ropes[flag] for flag in sorted(set(self.sliding) or {False}))


@struct.dataclass
class KVCache:
    """Keys and values, one array a layer, written in lockstep: every row uses the same slot for its next token.

    Separate arrays a layer are updated in place by a decoding loop, where a stacked one would be copied at every step;
    the layouts are those in which both products of attention are plain batched matmuls.

    Attributes:
      k: N arrays [B, K, Dh, S] in the computation dtype.
      v: N arrays [B, K, S, Dh].
      valid: bool [B, S]; False where a row had nothing to write (it had finished, or was shorter).
      positions: int32 [B, S], the rotary position of each slot's token.
      end: int32 scalar, the next slot to be written.
    """

    k: tuple[Float[Array, "B K Dh S"], ...]
    v: tuple[Float[Array, "B K S Dh"], ...]
    valid: Bool[Array, "B S"]
    positions: Int[Array, "B S"]
    end: Int[Array, ""]

    @classmethod
    def empty(cls, cfg: DecoderConfig, batch: int, length: int) -> KVCache:
        k, dh, dtype = cfg.num_kv_heads, cfg.head_width, jnp.dtype(cfg.dtype)
        return cls(
            k=tuple(jnp.zeros((batch, k, dh, length), dtype) for _ in range(cfg.num_layers)),
            v=tuple(jnp.zeros((batch, k, length, dh), dtype) for _ in range(cfg.num_layers)),
            valid=jnp.zeros((batch, length), bool),
            positions=jnp.zeros((batch, length), jnp.int32),
            end=jnp.zeros((), jnp.int32),
        )


@struct.dataclass
class View:
    """What the layers of one kind see of a batch.

    Attributes:
      cos, sin: float32 [B, L, 1, Dh/2], the rotation of each fed token.
      mask: bool [B or 1, L, L], which fed tokens each query sees.
      past: bool [B, L or 1, S], which slots of the cache each query sees; None without a cache.
    """

    cos: Float[Array, "B L 1 half"]
    sin: Float[Array, "B L 1 half"]
    mask: Bool[Array, "b L L"]
    past: Bool[Array, "B l S"] | None

    @classmethod
    def of(cls, rope: Rope, window: int, head_width: int, positions, mask, cache: KVCache | None) -> View:
        angle = positions[..., None].astype(jnp.float32) * rope.frequencies(head_width)
        past = None if cache is None else cache.valid[:, None, :]
        if window:  # a key is seen while the query's position is less than `window` after its own
            mask = mask & (positions[:, :, None] - positions[:, None, :] < window)
            if cache is not None:
                past = past & (positions[:, :, None] - cache.positions[:, None, :] < window)
        return cls(jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :], mask, past)

    def rotate(self, x: Float[Array, "B L H Dh"]) -> Float[Array, "B L H Dh"]:
        """Rotary position embedding, half-split layout (Su et al. 2104.09864, as in Hugging Face's Llama), in float32."""
        x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([x1 * self.cos - x2 * self.sin, x2 * self.cos + x1 * self.sin], axis=-1).astype(x.dtype)


def matmul(a, b, *, out=None):
    """`a @ b` accumulated in float32; where the operands are float32, no accelerator may round them to less."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=exact, preferred_element_type=out)


def attention(
    q: Float[Array, "B L H Dh"],
    k: Float[Array, "B K Dh L"],
    v: Float[Array, "B K L Dh"],
    view: View,
    scale: float,
    past: tuple[Float[Array, "B K Dh S"], Float[Array, "B K S Dh"]] | None = None,
) -> Float[Array, "B L H Dh"]:
    """Dot-product attention with grouped queries over the fed tokens and, before them, a cache's visible slots.

    The cache is read as it was before this call: an update that attention reads could not be done in place. Softmax in
    float32.
    """
    b, l, h, dh = q.shape
    kv = k.shape[1]
    q = q.reshape(b, l, kv, h // kv, dh).transpose(0, 2, 3, 1, 4).reshape(b, kv, -1, dh)  # [B, K, G*L, Dh]

    def scores(keys, visible):  # -> [B, K, G, L, keys]
        s = (matmul(q, keys, out=jnp.float32) * scale).reshape(b, kv, h // kv, l, -1)
        return jnp.where(visible[:, None, None], s, NEG_INF)

    def mix(weights, values):  # -> [B, K, G*L, Dh]
        return matmul(weights.astype(values.dtype).reshape(b, kv, -1, values.shape[2]), values)

    own = scores(k, view.mask)
    if past is None:
        out = mix(jax.nn.softmax(own, axis=-1), v)
    else:
        past_k, past_v = past
        earlier = scores(past_k, view.past)
        weights = jax.nn.softmax(jnp.concatenate([earlier, own], axis=-1), axis=-1)
        split = past_k.shape[-1]
        out = mix(weights[..., :split], past_v) + mix(weights[..., split:], v)
    return out.reshape(b, kv, h // kv, l, dh).transpose(0, 3, 1, 2, 4).reshape(b, l, h, dh)


def causal_mask(token_mask: Bool[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Each token sees itself and the real tokens before it."""
    length = token_mask.shape[1]
    return jnp.tril(jnp.ones((length, length), bool))[None] & token_mask[:, None, :]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, in float32; `axis` is that axis's logical name."""

    cfg: DecoderConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x):
        offset = self.cfg.norm_offset
        init = nn.initializers.constant(1.0 - offset)
        scale = self.param("scale", _boxed(init, (self.axis,)), (x.shape[-1],)).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.cfg.norm_eps)
        return (x32 * (scale + offset if offset else scale)).astype(x.dtype)


def _boxed(init, axes):
    return nn.with_logical_partitioning(init, axes)


class Projection(nn.Module):
    """x @ kernel (+ bias) (+ lora: dropout(x) @ a @ b, Hu et al. 2106.09685, where a "lora" collection has factors for it)."""

    cfg: DecoderConfig
    features: int
    axes: tuple[str, str]
    bias: bool = False
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x):
        dtype = jnp.dtype(self.cfg.dtype)
        kernel = self.param("kernel", _boxed(nn.initializers.lecun_normal(), self.axes), (x.shape[-1], self.features))
        y = matmul(x, kernel.astype(dtype))
        if self.bias:
            bias = self.param("bias", _boxed(nn.initializers.zeros, self.axes[1:]), (self.features,))
            y = y + bias.astype(dtype)
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(dtype) for name in "ab")
            if self.lora_dropout:
                keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.lora_dropout, x.shape)
                x = jnp.where(keep, x / (1 - self.lora_dropout), 0)
            y = y + matmul(matmul(x, a), b)
        return y


class Block(nn.Module):
    """One layer: x [B, L, D] to (x, this layer's updated cache (k, v) or None)."""

    cfg: DecoderConfig
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x, kind, layer_cache, views, end):
        cfg = self.cfg
        b, l, _ = x.shape
        h, k, dh = cfg.num_heads, cfg.num_kv_heads, cfg.head_width
        view = views[0] if kind is None else jax.tree.map(lambda one, two: jnp.where(kind == 0, one, two), *views)

        def project(name, features, axes, y, bias=False):
            return Projection(cfg, features, axes, bias, self.lora_dropout, name=name)(y)

        y = RMSNorm(cfg, name="attn_norm")(x)
        query = project("q", h * dh, ("embed", "heads"), y, cfg.qkv_bias).reshape(b, l, h, dh)
        key = project("k", k * dh, ("embed", "kv_heads"), y, cfg.qkv_bias).reshape(b, l, k, dh)
        value = project("v", k * dh, ("embed", "kv_heads"), y, cfg.qkv_bias).reshape(b, l, k, dh)
        if cfg.qk_norm:
            query, key = RMSNorm(cfg, "head_width", name="q_norm")(query), RMSNorm(cfg, "head_width", name="k_norm")(key)
        query, key = view.rotate(query), view.rotate(key)
        key, value = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)  # [B, K, Dh, L], [B, K, L, Dh]
        scale = dh**-0.5 if cfg.query_scale is None else cfg.query_scale
        y = attention(query, key, value, view, scale, layer_cache).reshape(b, l, h * dh)
        if layer_cache is not None:
            # Adding nothing that depends on attention's result tells XLA that the cache is read before it is written;
            # without it, XLA copies every layer's whole cache at each step.
            key, value = key + 0 * y[0, 0, 0], value + 0 * y[0, 0, 0]
            layer_cache = (
                jax.lax.dynamic_update_slice(layer_cache[0], key, (0, 0, 0, end)),
                jax.lax.dynamic_update_slice(layer_cache[1], value, (0, 0, end, 0)),
            )
        y = project("o", cfg.width, ("heads", "embed"), y)
        x = x + (RMSNorm(cfg, name="attn_post_norm")(y) if cfg.post_norms else y)

        y = RMSNorm(cfg, name="mlp_norm")(x)
        gate = project("gate", cfg.mlp_width, ("embed", "mlp"), y)
        up = project("up", cfg.mlp_width, ("embed", "mlp"), y)
        y = project("down", cfg.width, ("mlp", "embed"), ACTIVATIONS[cfg.activation](gate) * up)
        x = x + (RMSNorm(cfg, name="mlp_post_norm")(y) if cfg.post_norms else y)
        return x, layer_cache


class Decoder(nn.Module):
    """Tokens to logits.

    Attributes:
      lora_dropout: probability that a feature of a LoRA adapter's input is dropped; above 0 it needs a "dropout" rng.

    Call arguments:
      tokens: int32 [B, L].
      positions: int32 [B, L], each token's rotary position.
      mask: bool [B, L, L] or [1, L, L], which of the fed tokens each query may see; a padding token must not see itself.
      cache: `KVCache` or None; with one, every query also sees the cache's valid slots, and the fed tokens go to slots
        `end .. end+L-1`, valid where a token sees itself (mask must be [B, L, L] then).
      at: int32 [B, P] or None, the fed tokens whose logits are wanted; over a large vocabulary, all of them would be most of
        a prefill's memory.

    Returns:
      (logits float32 [B, L, V] or [B, P, V], the updated cache with `end` advanced or None).
    """

    cfg: DecoderConfig
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens, positions, mask, cache: KVCache | None = None, at=None):
        cfg = self.cfg
        dtype = jnp.dtype(cfg.dtype)
        table = self.param(
            "embedding",
            _boxed(nn.initializers.normal(cfg.width**-0.5), ("vocab", "embed")),
            (cfg.vocab_size, cfg.width),
        )
        x = table[tokens].astype(dtype)  # [B, L, D]
        if cfg.scaled_embeddings:
            x = x * jnp.asarray(cfg.width**0.5, dtype)
        views = tuple(View.of(rope, window, cfg.head_width, positions, mask, cache) for rope, window in cfg.views)
        if cache is None:
            block = nn.remat(Block, prevent_cse=False) if cfg.remat else Block
            x, _ = nn.scan(
                block,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0 if len(views) > 1 else nn.broadcast, *(nn.broadcast,) * 3),
                length=cfg.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(cfg, self.lora_dropout, name="layers")(x, jnp.array(cfg.kinds) if len(views) > 1 else None, None, views, None)
        else:
            stacked = {name: self.variables[name]["layers"] for name in ("params", "lora") if name in self.variables}
            k, v = [], []
            for i, layer_cache in enumerate(zip(cache.k, cache.v, strict=True)):
                layer = jax.tree.map(lambda a, i=i: a[i], stacked)
                view = (views[cfg.kinds[i]],)
                x, (key, value) = Block(cfg, parent=None).apply(layer, x, None, layer_cache, view, cache.end)
                k.append(key)
                v.append(value)
            present = jnp.diagonal(mask, axis1=1, axis2=2)  # [B, L]: a real token sees itself
            cache = KVCache(
                k=tuple(k),
                v=tuple(v),
                valid=jax.lax.dynamic_update_slice(cache.valid, present, (0, cache.end)),
                positions=jax.lax.dynamic_update_slice(cache.positions, positions, (0, cache.end)),
                end=cache.end + tokens.shape[1],
            )
        if at is not None:
            x = jnp.take_along_axis(x, at[..., None], axis=1)  # [B, P, D]
        x = RMSNorm(cfg, name="final_norm")(x)
        if cfg.tied_embeddings:
            head = table.T
        else:
            head = self.param(
                "lm_head", _boxed(nn.initializers.lecun_normal(), ("embed", "vocab")), (cfg.width, cfg.vocab_size)
            )
        return matmul(x, head.astype(dtype), out=jnp.float32), cache


def abstract_params(cfg: DecoderConfig):
    """The boxed abstract parameter tree of a decoder (no memory is used)."""
    tokens = jax.ShapeDtypeStruct((1, 2), np.int32)
    mask = jax.ShapeDtypeStruct((1, 2, 2), bool)
    return jax.eval_shape(lambda *inputs: Decoder(cfg).init(jax.random.key(0), *inputs), tokens, tokens, mask)["params"]
