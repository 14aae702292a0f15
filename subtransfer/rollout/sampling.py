"""Sampling of tokens from logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are picked; hashable, as a compiled program depends on it.

    Attributes:
      temperature: of the softmax; 0 takes the arg-max, whatever the filters.
      top_k: only the k likeliest tokens (0: all).
      top_p: only the likeliest tokens that together hold this probability (Holtzman et al.
        1904.09751; 1: all).
      min_p: only tokens with at least this share of the likeliest one's probability (Nguyen et al.
        2407.01082; 0: all).
      top_logprobs: so many of the likeliest tokens' log-probs are returned with each token.

    Filters apply in this order, at the given temperature, as in `transformers`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_logprobs: int = 0


def row_keys(key: Key[Array, ""], rows: Int[Array, " B"]) -> Key[Array, " B"]:
    """Derives one key a row from the row's own number.

    So a row's draws do not depend on its place in a batch.
    """
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def draw(keys: Key[Array, " B"], first: Int[Array, " B"], count: int) -> Float[Array, "B count"]:
    """Draws uniform numbers in [0, 1), float32.

    Entry [b, i] is draw number `first[b] + i` of row b's key: a draw has the same value whichever
    call makes it.
    """

    def row(key, begin):
        def one(number):
            return jax.random.uniform(jax.random.fold_in(key, number))

        return jax.vmap(one)(begin + jnp.arange(count))

    return jax.vmap(row)(keys, first)


# Entries of a block of `cumulative`.
_BLOCK = 64


def cumulative(x: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """Computes cumulative sums over V, by blocks.

    Within each block they are one small matmul, which a CPU computes far faster than a scan.
    """
    b, v = x.shape
    blocks = jnp.pad(x, ((0, 0), (0, -v % _BLOCK))).reshape(b, -1, _BLOCK)
    upper = np.triu(np.ones((_BLOCK, _BLOCK), np.float32))
    within = jnp.matmul(blocks, upper, precision=jax.lax.Precision.HIGHEST)
    totals = within[:, :, -1]
    before = jnp.cumsum(totals, axis=1) - totals
    return (within + before[..., None]).reshape(b, -1)[:, :v]


def _filtered(scaled: Float[Array, "B V"], how: Sampling) -> Bool[Array, "B V"]:
    """Which tokens the filters leave; `scaled` are logits over the temperature."""
    keep = jnp.ones(scaled.shape, bool)
    if how.top_k:
        least = jax.lax.top_k(scaled, min(how.top_k, scaled.shape[-1]))[0][:, -1:]
        keep = scaled >= least
    if how.top_p < 1:
        order = jnp.argsort(scaled, axis=-1, descending=True)
        probs = jax.nn.softmax(jnp.where(keep, scaled, -jnp.inf), axis=-1)
        ranked = jnp.take_along_axis(probs, order, axis=-1)
        # The sum before a token, not with it: so the likeliest always stays.
        wanted = cumulative(ranked) - ranked < how.top_p
        rank = jnp.argsort(order, axis=-1)
        keep &= jnp.take_along_axis(wanted, rank, axis=-1)
    if how.min_p:
        probs = jax.nn.softmax(jnp.where(keep, scaled, -jnp.inf), axis=-1)
        keep &= probs >= how.min_p * jnp.max(probs, axis=-1, keepdims=True)
    return keep


def sample(
    logits: Float[Array, "B V"],
    draws: Float[Array, " B"],
    how: Sampling,
    allowed: Bool[Array, "B V"] | None = None,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Picks a token a row, among those `allowed`.

    Inverts the cumulative distribution at one uniform number a row: V numbers a row (Gumbel's
    trick) cost more than the small decoder itself on a CPU.

    Args:
      logits: of the next token.
      draws: uniform numbers in [0, 1).
      how: the way of sampling.
      allowed: None allows all tokens.

    Returns:
      (tokens int32 [B], log-probs float32 [B] of them under the whole distribution at temperature
      1, natural log).
    """
    logits = logits.astype(jnp.float32)
    top = jnp.max(logits, axis=-1, keepdims=True)
    # `logits` stay whole beside it: log-probs are under the distribution without the grammar.
    open_to = logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)
    best = top if allowed is None else jnp.max(open_to, axis=-1, keepdims=True)
    last = logits.shape[-1] - 1
    if how.temperature == 0:
        # The first of the largest, by two plain reductions: arg-max is slow on a CPU.
        tokens = jnp.min(jnp.where(open_to == best, jnp.arange(last + 1), last), axis=-1)
    else:
        scaled = (open_to - best) / how.temperature
        weights = jnp.exp(scaled)
        filtered = how.top_k or how.top_p < 1 or how.min_p
        if filtered:
            weights = jnp.where(_filtered(scaled, how), weights, 0.0)
        cdf = cumulative(weights)
        # Scaling by the last entry absorbs rounding, and "<=" passes what adds nothing.
        below = cdf <= (draws * cdf[:, -1])[:, None]
        if filtered or allowed is not None:
            # But sums by blocks may rise by a rounding error where a block begins, also where no
            # token of it may be picked.
            possible, ids = weights > 0, jnp.arange(last + 1)
            tokens = jnp.min(jnp.where(possible & ~below, ids, last + 1), axis=-1)
            final = jnp.max(jnp.where(possible, ids, 0), axis=-1)
            tokens = jnp.minimum(tokens, final)
        else:
            tokens = jnp.minimum(jnp.sum(below, axis=-1), last)
    tokens = tokens.astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - top[:, 0] - jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1))


def top_logprobs(
    logits: Float[Array, "B V"], count: int
) -> tuple[Int[Array, "B k"], Float[Array, "B k"]]:
    """Finds the `count` likeliest tokens and their log-probs at temperature 1, likeliest first."""
    values, ids = jax.lax.top_k(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), count)
    return ids.astype(jnp.int32), values
