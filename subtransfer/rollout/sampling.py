"""Sampling of tokens from logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def row_keys(key: Key[Array, ""], rows: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key a row from the row's own number, so that a row's draws do not depend on its place in a batch."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def draw(keys: Key[Array, " B"], first: Int[Array, ""], count: int) -> Float[Array, "B count"]:
    """Uniform numbers in [0, 1): entry [b, i] is draw number `first + i` of row b's key."""
    return jax.vmap(lambda key: jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(first + jnp.arange(count)))(
        keys
    )


def sample(
    logits: Float[Array, "B V"], draws: Float[Array, " B"], temperature: float
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Picks a token a row; `temperature` 0 takes the arg-max.

    Inverts the cumulative distribution at one uniform number a row: V numbers a row (Gumbel's trick) cost more than the
    small decoder itself on a CPU.

    Returns:
      (tokens int32 [B], log-probs float32 [B] of them under the distribution at temperature 1, natural log).
    """
    logits = logits.astype(jnp.float32)
    if temperature == 0:
        tokens = jnp.argmax(logits, axis=-1)
    else:
        cdf = jnp.cumsum(jax.nn.softmax(logits / temperature, axis=-1), axis=-1)
        # Scaling by the last entry absorbs rounding, and "<=" never picks a token of probability zero.
        tokens = jnp.sum(cdf <= (draws * cdf[:, -1])[:, None], axis=-1)
        tokens = jnp.minimum(tokens, logits.shape[-1] - 1)
    tokens = tokens.astype(jnp.int32)
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[:, None], axis=-1)[:, 0]
    return tokens, logprobs
