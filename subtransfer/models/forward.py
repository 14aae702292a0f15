"""The trainer's forward pass: whole right-padded rows, no cache."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from subtransfer.models.decoder import Decoder, DecoderConfig


@functools.partial(jax.jit, static_argnames=("cfg", "lora_dropout", "hidden"))
def forward(
    cfg: DecoderConfig,
    weights,
    tokens,
    *,
    prefix=None,
    segments=None,
    lora_dropout: float = 0.0,
    key=None,
    hidden: bool = False,
) -> jax.Array:
    """Computes logits float32 [B, L, V] of right-padded tokens.

    Padding comes last, so causality hides it.

    Args:
      cfg: the decoder's geometry.
      weights: {"params": ..., and "lora": ... of an adapted model}.
      tokens: int32 [B, L].
      prefix: int32 [P] or None, what all rows begin with, before `tokens`: it is computed once for
        the batch. Dropout draws one mask for it, where whole rows would have one each: a row's loss
        has the distribution that it has as a whole row, but those of a batch depend on each other.
      segments: of packed rows, `Examples.segments`: each episode has its own positions and sees
        itself alone.
      lora_dropout: probability that a feature of an adapter's input is dropped.
      key: of the dropout.
      hidden: return the last hidden states [B, L, D] instead.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    if segments is not None:
        # Each position minus that of its segment's first token.
        begins = jnp.diff(segments, axis=1, prepend=-1) != 0
        positions = positions - jax.lax.cummax(jnp.where(begins, positions, 0), axis=1)
    positions = positions if prefix is None else positions + len(prefix)
    rngs = {"dropout": key} if lora_dropout else None
    out = Decoder(cfg, lora_dropout).apply(
        weights,
        tokens,
        positions,
        None,
        segments=segments,
        hidden=hidden,
        prefix=prefix,
        rngs=rngs,
    )
    assert isinstance(out, jax.Array)
    return out
