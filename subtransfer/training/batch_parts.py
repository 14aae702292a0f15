"""Batches that are taken in parts, and what stands one position on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def next_of(x):
    """Of [B, L, ...], at each place what stands at the one after it; 0 at the last."""
    return jnp.pad(x[:, 1:], [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2))


def in_parts(gradient: Callable[..., Any], count: int, tokens, loss_mask, targets, key) -> Any:
    """Gradients and metrics of a batch whose rows are taken in `count` parts.

    They are means over all tokens of the batch, not means of means.
    """
    if count == 1:
        return gradient(tokens, loss_mask, targets, key)

    def divided(x):  # [B, ...] to [count, B / count, ...], each part of rows from all devices
        return jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)

    total = jnp.sum(next_of(loss_mask).astype(jnp.float32))

    def part(sums, inputs):
        number, tokens, loss_mask, targets = inputs
        # A part with few agent tokens counts as little as these do in the whole batch.
        share = jnp.sum(next_of(loss_mask).astype(jnp.float32)) / jnp.where(total > 0, total, 1.0)
        found = gradient(tokens, loss_mask, targets, jax.random.fold_in(key, number))
        return jax.tree.map(lambda x, y: x + share * y, sums, found), None

    parts = (jnp.arange(count), *jax.tree.map(divided, (tokens, loss_mask, targets)))
    shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], parts[1:]), key)
    sums, _ = jax.lax.scan(part, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)
    return sums
