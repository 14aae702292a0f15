"""How well the sampler agrees with the trainer: log-probs of the same tokens, by both."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from subtransfer.models.attention import causal_mask
from subtransfer.models.decoder import Decoder, DecoderConfig
from subtransfer.runtime import distributed
from subtransfer.store.trajectories import Trajectory

# Trajectories that a run compares.
SAMPLE = 16
# Positions whose logits exist at a time: all of a large vocabulary's would not fit.
PIECE = 64


@functools.partial(jax.jit, static_argnames=("cfg",))
def _logprobs(
    cfg: DecoderConfig, weights, tokens: Int[Array, "1 L"], at: Int[Array, "n P"]
) -> Float[Array, "n P"]:
    """Log-probs of the tokens at positions `at`, each given those before it."""
    length = tokens.shape[1]
    positions, mask = jnp.arange(length)[None], causal_mask(jnp.ones((1, length), bool))

    def piece(_, index):
        before = jnp.maximum(index - 1, 0)[None]  # the position that predicts each token
        logits = Decoder(cfg).apply(weights, tokens, positions, mask, before)[0]
        logp = jax.nn.log_softmax(logits, axis=-1)
        return None, jnp.take_along_axis(logp, tokens[0, index][:, None], axis=-1)[:, 0]

    return jax.lax.scan(piece, None, at)[1]


def compare(cfg: DecoderConfig, weights, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Compares the sampler's log-probs of `SAMPLE` trajectories with the trainer's forward.

    The forward has the trainer's own weights. So `kl` is what rounded weights or caches cost: it
    estimates KL(sampler || trainer) by the unbiased and never negative mean of r - 1 - log r over
    the sampler's own tokens, where r = p_trainer / p_sampler (Schulman, Approximating KL
    Divergence, 2020).

    Returns:
      {"tokens": how many were compared, "max_gap" and "mean_gap": absolute, in nats, "kl": in nats
      a token}.
    """
    chosen = trajectories[:SAMPLE]
    # All trajectories are padded to one shape, so that one program serves them.
    longest = most = 0
    for t in chosen:
        longest = max(longest, len(t.tokens))
        most = max(most, int(t.loss_mask.sum()))
    length, pieces = -(-longest // PIECE) * PIECE, -(-most // PIECE)
    gaps = []
    for t in chosen:
        where = np.flatnonzero(t.loss_mask)
        at = np.zeros(pieces * PIECE, np.int32)
        at[: len(where)] = where
        tokens = np.pad(t.tokens, (0, length - len(t.tokens)))[None]
        found = _logprobs(cfg, weights, tokens, at.reshape(pieces, PIECE))
        trainer = distributed.to_host(found).reshape(-1)[: len(where)]
        gaps.append(trainer - t.behavior_logprobs[where])
    log_ratio = np.concatenate(gaps).astype(np.float64)
    values = {
        "max_gap": np.abs(log_ratio).max(),
        "mean_gap": np.abs(log_ratio).mean(),
        "kl": (np.expm1(log_ratio) - log_ratio).mean(),
    }
    # Rounded, as the last bits depend on which conversations ran side by side.
    rounded = {name: float(f"{value:.1e}") for name, value in values.items()}
    return {"tokens": len(log_ratio), **rounded}
