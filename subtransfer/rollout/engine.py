"""Batched generation: prefill and extend for given tokens, a while-loop on the device for sampled ones.

All rows of a batch write to the same cache slot at each step, whatever their lengths, so that the cache is updated by one
in-place slice; a row that has nothing to write leaves an invalid slot, and rotary positions are counted per row. The
cache grows between turns in steps of `SLOTS`, so that attention reads little more than is occupied and only a few shapes
are ever compiled.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from subtransfer import sharding
from subtransfer.models.decoder import Decoder, DecoderConfig, KVCache, causal_mask
from subtransfer.rollout import sampling


@struct.dataclass
class EngineState:
    """Where a batch of conversations stands.

    Attributes:
      cache: `KVCache` of [N, B, S, K, Dh].
      positions: int32 [B], the next token's rotary position.
      logits: float32 [B, V], for the next token.
    """

    cache: KVCache
    positions: Int[Array, " B"]
    logits: Float[Array, "B V"]


def start(cfg: DecoderConfig, batch: int, length: int, mesh: Mesh | None = None) -> EngineState:
    """An empty batch of conversations with room for `length` slots (see `reserve` for more).

    On a mesh, rows lie over (data, fsdp) and the cache's heads over tensor.
    """

    def empty() -> EngineState:
        return EngineState(
            cache=KVCache.empty(cfg, batch, length),
            positions=jnp.zeros((batch,), jnp.int32),
            logits=jnp.zeros((batch, cfg.vocab_size), jnp.float32),
        )

    if mesh is None or mesh.size == 1:
        return empty()

    def place(x):
        return sharding.rows_sharding(mesh, x.shape, heads=1 if x.ndim == 4 else None)

    return jax.jit(empty, out_shardings=jax.tree.map(place, jax.eval_shape(empty)))()


SLOTS = 64


@functools.partial(jax.jit, static_argnames=("length",))
def _grown(state: EngineState, length: int) -> EngineState:
    cache = state.cache
    extra = length - cache.valid.shape[1]
    return state.replace(
        cache=cache.replace(
            k=tuple(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, extra))) for k in cache.k),
            v=tuple(jnp.pad(v, ((0, 0), (0, 0), (0, extra), (0, 0))) for v in cache.v),
            valid=jnp.pad(cache.valid, ((0, 0), (0, extra))),
            positions=jnp.pad(cache.positions, ((0, 0), (0, extra))),
        )
    )


def reserve(state: EngineState, slots: int) -> EngineState:
    """The same state with room for at least `slots` slots altogether."""
    length = -(-slots // SLOTS) * SLOTS
    return state if state.cache.valid.shape[1] >= length else _grown(state, length)


# Prompts are fed in pieces of this many tokens, which bounds the memory of attention's scores.
CHUNK = 512


def _feed(cfg, weights, state: EngineState, tokens, present, at=None):
    """Feeds tokens [B, L] where `present` [B, L]; returns (logits [B, L, V] or those `at` [B, P], the state with a longer
    cache)."""
    positions = state.positions[:, None] + jnp.cumsum(present, axis=1) - present
    mask = causal_mask(present) & present[:, :, None]
    logits, cache = Decoder(cfg).apply(weights, tokens, positions, mask, state.cache, at)
    return logits, state.replace(cache=cache, positions=state.positions + jnp.sum(present, axis=1))


@functools.partial(jax.jit, static_argnames=("cfg",), donate_argnames=("state",))
def extend_chunk(
    cfg: DecoderConfig, weights, state: EngineState, tokens: Int[Array, "B L"], lengths: Int[Array, " B"]
) -> EngineState:
    """One compiled piece of `extend`."""
    present = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    last, fed = _feed(cfg, weights, state, tokens, present, jnp.maximum(lengths - 1, 0)[:, None])
    return fed.replace(logits=jnp.where(lengths[:, None] > 0, last[:, 0], state.logits))


def extend(cfg: DecoderConfig, weights, state: EngineState, tokens: np.ndarray, lengths: np.ndarray) -> EngineState:
    """Appends given tokens int32 [B, L] (right-padded; a row with length 0 is left as it is); lengths int32 [B]."""
    for begin in range(0, tokens.shape[1], CHUNK):
        piece = tokens[:, begin : begin + CHUNK]
        state = extend_chunk(cfg, weights, state, piece, np.clip(lengths - begin, 0, piece.shape[1]))
    return state


@functools.partial(jax.jit, static_argnames=("cfg", "max_new_tokens", "temperature"), donate_argnames=("state",))
def decode(
    cfg: DecoderConfig,
    weights,
    state: EngineState,
    keys: Key[Array, " B"],
    offset: Int[Array, ""],
    active: Bool[Array, " B"],
    stop_ids: Int[Array, " n"],
    *,
    max_new_tokens: int,
    temperature: float,
) -> tuple[EngineState, Int[Array, "B M"], Float[Array, "B M"], Int[Array, " B"]]:
    """Samples until each active row has produced a stop token or `max_new_tokens`, in one loop on the device.

    Args:
      keys: one key a row; draw number `offset + step` of a row's key makes its token of that step.
      active: rows that generate; others are untouched.
      stop_ids: tokens that end a row's turn (the stop token itself is part of the output and of the cache).

    Returns:
      (state, tokens int32 [B, M], log-probs float32 [B, M] at temperature 1, counts int32 [B]).
    """
    batch = active.shape[0]
    tokens = jnp.zeros((batch, max_new_tokens), jnp.int32)
    logprobs = jnp.zeros((batch, max_new_tokens), jnp.float32)
    counts = jnp.zeros((batch,), jnp.int32)
    draws = sampling.draw(keys, offset, max_new_tokens)

    def unfinished(carry):
        step, _, active, *_ = carry
        return (step < max_new_tokens) & jnp.any(active)

    def body(carry):
        step, state, active, tokens, logprobs, counts = carry
        token, logprob = sampling.sample(state.logits, draws[:, step], temperature)
        tokens = tokens.at[:, step].set(jnp.where(active, token, 0))
        logprobs = logprobs.at[:, step].set(jnp.where(active, logprob, 0.0))
        logits, fed = _feed(cfg, weights, state, token[:, None], active[:, None])
        state = fed.replace(logits=jnp.where(active[:, None], logits[:, 0], state.logits))
        counts = counts + active
        active = active & ~jnp.any(token[:, None] == stop_ids[None], axis=1)
        return step + 1, state, active, tokens, logprobs, counts

    carry = (jnp.zeros((), jnp.int32), state, active, tokens, logprobs, counts)
    _, state, _, tokens, logprobs, counts = jax.lax.while_loop(unfinished, body, carry)
    return state, tokens, logprobs, counts


def pad_rows(rows: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ragged ids to (int32 [B, length] right-padded with 0, lengths int32 [B])."""
    out = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out, np.array([len(row) for row in rows], np.int32)
