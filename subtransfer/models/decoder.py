"""The one decoder: a pre-norm transformer whose declared variations make four model families.

They are Llama, Qwen2, Qwen3 and Gemma 3; the module is written in Flax Linen.

RMSNorm, rotary positions (half-split, as in Hugging Face's models), grouped-query attention, a
gated MLP; layers are stacked under `nn.scan`, so every layer parameter has a leading axis N.
`Decoder.apply` is the training forward, a pure function of `(weights, tokens, positions, mask)`;
`extend` is the forward of tokens that follow others whose keys and values are cached.

`weights` are Linen's variable collections: {"params": the parameters} and, for an adapted model,
{"lora": low-rank factors} (see `lora.py`), which are applied beside the matrices they adapt: one
resident base serves any number of adapters.

Shape letters: B batch, L tokens fed, S slots of a cache, D model width, F MLP width, H heads, K
key/value heads, G = H / K query heads of one key/value head, Dh head width, N layers,
V vocabulary, r LoRA rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from subtransfer.models import attention_kernels
from subtransfer.models.attention import AttentionContext, attention
from subtransfer.models.kv_cache import Cache, KeyValues
from subtransfer.models.primitives import gated, linear
from subtransfer.models.quantise import dequantised
from subtransfer.models.shared_prefix import SharedPrefix
from subtransfer.runtime import sharding

# Models of more parameters are large. A small one has its layers unrolled: on a CPU a scan's copies
# of weights and activations, in and out of their stacks, take as long as the arithmetic of a small
# layer, and an accelerator loses nothing but compilation time.
LARGE = 20_000_000
# The logit of a row that no token stands for. Infinity times no probability would be no number.
NO_TOKEN = -1e9
# What a layer keeps for its backward pass: everything; only its input; also the products of
# activations and weights; also attention's scores.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "projections": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary frequencies of one kind of layer, by the names of Hugging Face's `rope_parameters`.

    Attributes:
      kind: "default"; "linear" (all frequencies divided by `factor`: Gemma 3); or "llama3" (only
        those whose wavelength exceeds `original_max_positions / low_freq_factor` are, with a smooth
        passage up to `high_freq_factor`: Llama 3.1).
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def frequencies(self, head_width: int) -> np.ndarray:
        """Returns the radians that each pair of features turns by per position.

        They are float32 [Dh/2], rounded where transformers rounds: at position 100,000 the last
        bit shows.
        """
        exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
        powers = np.power(self.theta, exponents.astype(np.float64)).astype(np.float32)
        inverse = np.float32(1) / powers
        if self.kind == "linear":
            inverse = inverse / self.factor
        elif self.kind == "llama3":
            # Full turns over the original context. The reciprocals are transformers' own, for
            # equal rounding.
            turns = self.original_max_positions * (1 / (2 * np.pi * (1 / inverse)))
            smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            smooth = np.clip(smooth, 0, 1)
            inverse = (1 - smooth) * inverse / self.factor + smooth * inverse
        return inverse


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Geometry of a decoder and the variations of its family.

    It is hashable, and all that a compiled program depends on besides shapes.

    Attributes:
      qkv_bias: biases on q, k and v (Qwen2).
      qk_norm: RMSNorm over each head's query and key (Qwen3, Gemma 3).
      post_norms: a second RMSNorm after attention and after the MLP, before the residual sum (Gemma
        3).
      norm_offset: added to every RMSNorm's scale (1 for Gemma 3, whose files hold scale - 1).
      scaled_embeddings: token embeddings are multiplied by sqrt(D) (Gemma 3).
      activation: of the MLP's gate, a key of `primitives.ACTIVATIONS`.
      query_scale: what attention scores are multiplied by; None is Dh ** -0.5.
      sliding: one flag a layer, True where it sees only the last `window` positions; empty: no
        layer does.
      local_rope: rotary positions of the sliding layers; None: the same as the others'.
      max_positions: the longest context that the model was made for.
      dtype: computation; parameters keep the dtype they were given.
      remat: what a layer keeps for its backward pass, a key of `REMAT`; the rest is made again.
      attention: of causal training forwards, a key of `attention_kernels.BACKENDS`; "pallas" also
        reads a cache's slots, in layers without a window.
      unused: the rows of the embedding that the tokenizer has no token for, as ranges (first, end);
        public models' embeddings are padded. Their logits are `NO_TOKEN`: no distribution that is
        sampled from, scored or learned holds them.
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
    remat: str = "none"
    attention: str = "xla"
    unused: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )
        if self.head_width % 2:
            raise ValueError(f"head_width ({self.head_width}) must be even for rotary positions")
        if self.remat not in REMAT:
            raise ValueError(f"remat ({self.remat!r}) must be one of {', '.join(REMAT)}")
        if self.sliding and (len(self.sliding) != self.num_layers or self.window < 1):
            raise ValueError(
                f"{self.num_layers} layers need as many window flags and a window above 0"
            )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DecoderConfig:
        """The inverse of `dataclasses.asdict`, also after a passage through JSON."""
        fields = {**value, "sliding": tuple(value.get("sliding", ()))}
        fields["unused"] = tuple((first, end) for first, end in value.get("unused", ()))
        for name in ("rope", "local_rope"):
            if value.get(name) is not None:
                fields[name] = Rope(**value[name])
        return cls(**fields)

    @property
    def num_params(self) -> int:
        """Number of parameters (exact)."""
        d, f, dh = self.width, self.mlp_width, self.head_width
        h, k = self.num_heads, self.num_kv_heads
        layer = 2 * d * h * dh + 2 * d * k * dh + 3 * d * f + 2 * d
        layer += (h + 2 * k) * dh if self.qkv_bias else 0
        layer += 2 * dh if self.qk_norm else 0
        layer += 2 * d if self.post_norms else 0
        embeddings = self.vocab_size * d * (1 if self.tied_embeddings else 2)
        return self.num_layers * layer + d + embeddings

    @property
    def is_large(self) -> bool:
        """Whether it has more parameters than `LARGE`."""
        return self.num_params > LARGE

    @property
    def layer_kinds(self) -> tuple[int, ...]:
        """One number a layer, which of the (at most two) `attention_kinds` it has."""
        if len(set(self.sliding)) == 2:
            return tuple(int(flag) for flag in self.sliding)
        return (0,) * self.num_layers

    @property
    def attention_kinds(self) -> tuple[tuple[Rope, int], ...]:
        """The (rotary frequencies, window or 0) of each number in `layer_kinds`."""
        ropes = {False: (self.rope, 0), True: (self.local_rope or self.rope, self.window)}
        return tuple(ropes[flag] for flag in sorted(set(self.sliding) or {False}))


@struct.dataclass
class DecodeBuffer:
    """The cache that a decoding loop is writing, one token a row and step.

    All rows write to the same slot: that is one slice update, where each row's own end would be a
    scatter.

    Attributes:
      layers: N `KeyValues` of [B, K, S, Dh].
      at: int32 [], the slot of the present token.
      positions: int32 [B, S], each slot's rotary position.
    """

    layers: tuple[KeyValues, ...]
    at: Int[Array, ""]
    positions: Int[Array, "B S"]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, in float32.

    Attributes:
      cfg: the decoder's geometry.
      axis: the logical name of the last axis, by which its scale is sharded.
    """

    cfg: DecoderConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x):
        """Normalises [..., D]; returns the same shape and dtype."""
        # Gemma 3's files hold scale - 1.
        offset = self.cfg.norm_offset
        init = nn.initializers.constant(1.0 - offset)
        scale = self.param("scale", _boxed(init, (self.axis,)), (x.shape[-1],)).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.cfg.norm_eps)
        return (x32 * (scale + offset if offset else scale)).astype(x.dtype)


def _boxed(init, axes):
    return nn.with_logical_partitioning(init, axes)


class Projection(nn.Module):
    """A linear layer, with a bias and low-rank factors where there are any.

    The result is x @ kernel (+ bias) (+ dropout(x) @ a @ b, where a "lora" collection has factors
    for it; Hu et al. 2106.09685).

    Attributes:
      cfg: the decoder's geometry.
      features: width of the result.
      axes: logical names of the kernel's two axes, by which it is sharded.
      bias: whether there is one.
      lora_dropout: probability that a feature of the adapter's input is dropped.
    """

    cfg: DecoderConfig
    features: int
    axes: tuple[str, str]
    bias: bool = False
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x):
        """Maps [..., D] to [..., features], in the computation dtype."""
        dtype = jnp.dtype(self.cfg.dtype)
        kernel = self.param(
            "kernel",
            _boxed(nn.initializers.lecun_normal(), self.axes),
            (x.shape[-1], self.features),
        )
        y = linear(x, dequantised(kernel, dtype))
        if self.bias:
            bias = self.param(
                "bias", _boxed(nn.initializers.zeros, self.axes[1:]), (self.features,)
            )
            y = y + bias.astype(dtype)
        # Factors stay apart from the kernel: one base serves any number of adapters.
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(dtype) for name in "ab")
            if self.lora_dropout:
                keep = jax.random.bernoulli(
                    self.make_rng("dropout"), 1 - self.lora_dropout, x.shape
                )
                x = jnp.where(keep, x / (1 - self.lora_dropout), 0)
            # Two narrow products; a @ b first would be as large as the kernel.
            y = y + linear(linear(x, a), b)
        return y


class Block(nn.Module):
    """One layer: attention and MLP, each with a residual connection.

    Attributes:
      cfg: the decoder's geometry.
      lora_dropout: as of `Projection`.
      cache_kernel: a kernel reads the last cache, if each row has its own.
      shared: how a prefix that all rows share lies in the batch, or None.
    """

    cfg: DecoderConfig
    lora_dropout: float = 0.0
    cache_kernel: bool = False
    shared: SharedPrefix | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        kind,
        contexts: Sequence[AttentionContext],
        caches: Sequence[KeyValues] | None = None,
        buffer: tuple[KeyValues, Any] | None = None,
    ):
        """Returns (x after the layer [B, L, D], its keys and values).

        Args:
          x: what the layer before gave.
          kind: int32 [], which of the `contexts` counts, where there are two; else None.
          contexts: one for each kind of layer.
          caches: this layer's earlier keys and values; None in training, where none are returned.
          buffer: this layer's part of a `DecodeBuffer` and the slot of the present token, or None.
            With it, the whole buffer is returned, the fed token written to its slot; otherwise
            the keys and values of the fed tokens.
        """
        cfg = self.cfg
        b, l, _ = x.shape
        h, k, dh = cfg.num_heads, cfg.num_kv_heads, cfg.head_width
        context = contexts[0]
        if kind is not None:
            # One scan runs over layers of both kinds, so the choice is data, not structure.
            context = jax.tree.map(lambda one, two: jnp.where(kind == 0, one, two), *contexts)

        def sharded(x):
            # Fed tokens are few: dividing them would cost more than it saves.
            return sharding.laid_out(x, "rows", "length", "features") if caches is None else x

        def project(name, features, axes, y, bias=False):
            return Projection(cfg, features, axes, bias, self.lora_dropout, name=name)(y)

        # Norms come before attention and MLP; Gemma 3 has a second one after each.
        y = RMSNorm(cfg, name="attn_norm")(x)
        query = project("q", h * dh, ("embed", "heads"), y, cfg.qkv_bias).reshape(b, l, h, dh)
        key = project("k", k * dh, ("embed", "kv_heads"), y, cfg.qkv_bias).reshape(b, l, k, dh)
        value = project("v", k * dh, ("embed", "kv_heads"), y, cfg.qkv_bias).reshape(b, l, k, dh)
        if cfg.qk_norm:
            query = RMSNorm(cfg, "head_width", name="q_norm")(query)
            key = RMSNorm(cfg, "head_width", name="k_norm")(key)
        query, key = context.rotate(query), context.rotate(key)
        if self.shared is not None:
            key, value = self.shared.gathered(key), self.shared.gathered(value)
        # [B, K, L, Dh]: a head's keys lie side by side, as the products over them read them.
        current = KeyValues(key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))
        if buffer is not None:
            current = buffer[0].write(current, buffer[1])
        scale = dh**-0.5 if cfg.query_scale is None else cfg.query_scale
        if context.mask is None:
            windows = tuple(window for _, window in cfg.attention_kinds)
            y = attention_kernels.causal(
                cfg.attention, query, key, value, scale, windows, kind, context
            )
        else:
            kernel = attention_kernels.cache_attention if self.cache_kernel else None
            y = attention(query, current, context, scale, caches or (), kernel)
        y = y.reshape(b, l, h * dh)
        y = project("o", cfg.width, ("heads", "embed"), y)
        x = sharded(x + (RMSNorm(cfg, name="attn_post_norm")(y) if cfg.post_norms else y))

        y = RMSNorm(cfg, name="mlp_norm")(x)
        gate = project("gate", cfg.mlp_width, ("embed", "mlp"), y)
        up = project("up", cfg.mlp_width, ("embed", "mlp"), y)
        y = project("down", cfg.width, ("mlp", "embed"), gated(cfg.activation, gate, up))
        x = sharded(x + (RMSNorm(cfg, name="mlp_post_norm")(y) if cfg.post_norms else y))
        return x, None if caches is None else current


class Decoder(nn.Module):
    """Tokens to logits: the training forward.

    Attributes:
      cfg: the geometry.
      lora_dropout: probability that a feature of a LoRA adapter's input is dropped; above 0 it
        needs a "dropout" rng.
    """

    cfg: DecoderConfig
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        mask: Bool[Array, "b L L"] | None,
        at: Int[Array, "B P"] | None = None,
        segments: Int[Array, "B L"] | None = None,
        hidden: bool = False,
        prefix: Int[Array, " prefix"] | None = None,
    ):
        """Returns logits float32 [B, L, V], or [B, P, V] of some positions.

        Args:
          tokens: ids.
          positions: each token's rotary position.
          mask: which of the tokens each query may see, b being B or 1; None: itself and those
            before it, by the config's attention back end.
          at: the positions whose logits are wanted; None for all of them.
          segments: a token sees those of its own segment only.
          hidden: stop before the vocabulary and return the normalised last states, [B, L, D] or
            [B, P, D], of which `unembed` makes logits.
          prefix: ids that all rows have before `tokens`, at the positions 0, 1, ...; computed once
            for the batch, and seen by all `tokens`. None: there are none.
        """
        cfg = self.cfg
        init = nn.initializers.normal(cfg.width**-0.5)
        table = self.param(
            "embedding", _boxed(init, ("vocab", "embed")), (cfg.vocab_size, cfg.width)
        )
        if mask is None and cfg.attention == "xla":
            mask = jnp.tril(jnp.ones((1, tokens.shape[1], tokens.shape[1]), bool))
        if mask is not None and segments is not None:
            mask = mask & (segments[:, :, None] == segments[:, None, :])
        shared, key_positions = None, positions
        if prefix is not None:
            shared = SharedPrefix(len(prefix), *tokens.shape)
            tokens, key_positions = shared.tokens(prefix, tokens), shared.key_positions(positions)
            positions = shared.positions(positions)
            mask = None if mask is None else shared.mask(mask)
        contexts = _contexts(cfg, positions, mask, key_positions, ())
        if mask is None:
            # A causal kernel gets the segments themselves; a mask already holds them.
            contexts = tuple(dataclasses.replace(c, segments=segments) for c in contexts)
        if mask is None and shared is not None:
            masks = [shared.seen_by_shares(window) for _, window in cfg.attention_kinds]
            pairs = zip(contexts, masks, strict=True)
            contexts = tuple(dataclasses.replace(c, share_mask=m) for c, m in pairs)
        # CSE across a scan's bodies does not happen, so the barriers against it are left out.
        keep = REMAT[cfg.remat]
        block = nn.remat(Block, prevent_cse=False, policy=keep) if keep else Block
        kinds = jnp.array(cfg.layer_kinds) if len(contexts) > 1 else None
        x = sharding.laid_out(_embed(cfg, table, tokens), "rows", "length", "features")
        x, _ = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0 if len(contexts) > 1 else nn.broadcast, nn.broadcast),
            length=cfg.num_layers,
            unroll=1 if cfg.is_large else cfg.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg, self.lora_dropout, shared=shared, name="layers")(x, kinds, contexts)
        # Nothing is predicted of the prefix.
        x = x if shared is None else x[:, shared.share :]
        # The loss takes a part of the positions of all rows at a time, so these stay undivided.
        x = sharding.laid_out(x, "rows", "features", "features")
        # Before the head: logits of all positions would be most of the memory.
        if at is not None:
            x = jnp.take_along_axis(x, at[..., None], axis=1)  # [B, P, D]
        x = RMSNorm(cfg, name="final_norm")(x)
        params = {"embedding": table}
        if not cfg.tied_embeddings:
            init = nn.initializers.lecun_normal()
            params["lm_head"] = self.param(
                "lm_head", _boxed(init, ("embed", "vocab")), (cfg.width, cfg.vocab_size)
            )
        return x if hidden else unembed(cfg, params, x)


def head(cfg: DecoderConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Picks the parameters that `unembed` reads."""
    name = "embedding" if cfg.tied_embeddings else "lm_head"
    return {name: params[name]}


def unembed(
    cfg: DecoderConfig, params: Mapping[str, Any], x: Float[Array, "B L D"]
) -> Float[Array, "B L V"]:
    """Computes float32 logits of normalised last states; those of unused rows are `NO_TOKEN`.

    Of `params`, only the head is read, which is the embedding where both are tied.
    """
    # Float32 logits whatever the dtype: softmax over a large vocabulary loses too much in less.
    kernel = params["embedding"].T if cfg.tied_embeddings else params["lm_head"]
    logits = linear(x, kernel.astype(jnp.dtype(cfg.dtype)), jnp.float32)
    return jnp.where(used_rows(cfg), logits, NO_TOKEN) if cfg.unused else logits


def used_rows(cfg: DecoderConfig) -> np.ndarray:
    """Which rows of the embedding the tokenizer has a token for, bool [V]."""
    used = np.ones(cfg.vocab_size, bool)
    for first, end in cfg.unused:
        used[first:end] = False
    return used


def extend(
    cfg: DecoderConfig,
    weights: Mapping[str, Any],
    tokens: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    mask: Bool[Array, "b L S"],
    caches: Sequence[Cache] = (),
    *,
    buffer: DecodeBuffer | None = None,
    at: Int[Array, "B P"] | None = None,
) -> tuple[Float[Array, "B P V"], tuple[KeyValues, ...]]:
    """The forward of tokens that follow others whose keys and values are cached.

    The layers are unrolled, so that each one's keys and values are an array of its own, which a
    caller can update in place.

    Args:
      cfg: the geometry.
      weights: of a decoder, stacked or `unstacked`.
      tokens: ids.
      positions: their rotary positions.
      mask: which of the current tokens the queries see: of each other or, with a buffer, of its
        slots.
      caches: what they see before these.
      buffer: of a decoding loop, which feeds one token a row.
      at: which tokens' logits are wanted; over a large vocabulary, all of them would be most of a
        prefill's memory.

    Returns:
      (logits float32 [B, L, V] or [B, P, V], N `KeyValues`: of the fed tokens or, with a buffer,
      of the whole buffer).
    """
    params = weights["params"]
    weights = unstacked(cfg, weights)
    key_positions = positions if buffer is None else buffer.positions
    contexts = _contexts(cfg, positions, mask, key_positions, caches)
    x: Any = _embed(cfg, params["embedding"], tokens)
    made: list[KeyValues] = []
    for i in range(cfg.num_layers):
        part = None if buffer is None else (buffer.layers[i], buffer.at)
        earlier = [cache.layers[i] for cache in caches]
        layer = {name: tree["layers"][i] for name, tree in weights.items()}
        kind = cfg.layer_kinds[i]
        # The kernel over a cache has no window.
        kernel = cfg.attention == "pallas" and not cfg.attention_kinds[kind][1]
        run = _extend_layer_traced_once if cfg.is_large else _extend_layer
        x, key_values = run(cfg, kernel, layer, x, contexts[kind], earlier, part)
        made.append(key_values)
    if at is not None:
        x = jnp.take_along_axis(x, at[..., None], axis=1)
    x = RMSNorm(cfg, parent=None).apply({"params": params["final_norm"]}, x)
    return unembed(cfg, params, x), tuple(made)


def _extend_layer(cfg: DecoderConfig, cache_kernel: bool, layer, x, context, caches, buffer):
    """One layer of `extend`: (x after it, its keys and values)."""
    block: Any = Block(cfg, cache_kernel=cache_kernel, parent=None)
    return block.apply(layer, x, None, (context,), caches, buffer)


# Layers of one kind are the same program, which tracing goes through once a call of `extend`, not
# once a layer. A compiler sees the same operations.
_extend_layer_traced_once = jax.jit(_extend_layer, static_argnums=(0, 1))


def unstacked(cfg: DecoderConfig, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same weights with each layer in a tree of its own; unstacked ones stay as they are.

    Taking a layer out of its stack is a copy on a CPU: a program that reads the weights again and
    again is given them apart.
    """

    def split(tree):
        layers = tree["layers"]
        if not isinstance(layers, tuple):

            def layer(i):
                return jax.tree.map(lambda stack: stack[i], layers)

            return {**tree, "layers": tuple(layer(i) for i in range(cfg.num_layers))}
        return {**tree, "layers": layers}

    return {name: split(tree) for name, tree in weights.items()}


def _contexts(
    cfg: DecoderConfig, positions, mask, key_positions, caches: Sequence[Cache]
) -> tuple[AttentionContext, ...]:
    """One context for each of the config's `attention_kinds`."""
    made = []
    for rope, window in cfg.attention_kinds:
        made.append(
            AttentionContext.build(
                rope, window, cfg.head_width, positions, mask, key_positions, caches
            )
        )
    return tuple(made)


def _embed(cfg: DecoderConfig, table, tokens) -> Float[Array, "B L D"]:
    # transformers rounds the factor to the computation dtype as well.
    x = table[tokens].astype(jnp.dtype(cfg.dtype))
    return x * jnp.asarray(cfg.width**0.5, x.dtype) if cfg.scaled_embeddings else x


def abstract_params(cfg: DecoderConfig):
    """The boxed abstract parameter tree of a decoder (no memory is used)."""
    tokens = jax.ShapeDtypeStruct((1, 2), np.int32)
    mask = jax.ShapeDtypeStruct((1, 2, 2), bool)
    return jax.eval_shape(
        lambda *inputs: Decoder(cfg).init(jax.random.key(0), *inputs), tokens, tokens, mask
    )["params"]
