"""How well the sampler agrees with the trainer: log-probs of the same tokens, by both."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from subtransfer.models import shared_prefix
from subtransfer.models.decoder import DecoderConfig, unembed
from subtransfer.models.forward import forward
from subtransfer.runtime import distributed
from subtransfer.store.trajectories import Trajectory

# Trajectories that a run compares.
SAMPLE = 16
# Of these, how many are computed at a time where they share a prefix.
ROWS = 4
# Positions whose logits exist at a time: all of a large vocabulary's would not fit.
PIECE = 64


@functools.partial(jax.jit, static_argnames=("cfg",))
def _logprobs(
    cfg: DecoderConfig,
    weights,
    prefix: Int[Array, " prefix"] | None,
    tokens: Int[Array, "rows L"],
    at: Int[Array, "n rows P"],
) -> Float[Array, "n rows P"]:
    """Log-probs of the tokens at positions `at`, each given those before it.

    Args:
      prefix: what all rows have before `tokens`; None: nothing.
    """
    # As the trainer computes it where no kernel helps: a check has no mesh to divide kernels over.
    states = forward(
        dataclasses.replace(cfg, attention="xla"), weights, tokens, prefix=prefix, hidden=True
    )

    def piece(_, index):
        before = jnp.maximum(index - 1, 0)  # the position that predicts each token
        hidden = jnp.take_along_axis(states, before[..., None], axis=1)
        logp = jax.nn.log_softmax(unembed(cfg, weights["params"], hidden), axis=-1)
        chosen = jnp.take_along_axis(tokens, index, axis=1)
        return None, jnp.take_along_axis(logp, chosen[..., None], axis=-1)[..., 0]

    return jax.lax.scan(piece, None, at)[1]


def compare(
    cfg: DecoderConfig,
    weights,
    trajectories: Sequence[Trajectory],
    *,
    share_prefix: bool = False,
) -> dict[str, float]:
    """Compares the sampler's log-probs of `SAMPLE` trajectories with the trainer's forward.

    The forward has the trainer's own weights. So `kl` is what rounded weights or caches cost: it
    estimates KL(sampler || trainer) by the unbiased and never negative mean of r - 1 - log r over
    the sampler's own tokens, where r = p_trainer / p_sampler (Schulman, Approximating KL
    Divergence, 2020).

    Args:
      cfg: the geometry.
      weights: the trainer's.
      trajectories: with the sampler's log-probs.
      share_prefix: what all begin with is computed once for several of them.

    Returns:
      {"tokens": how many were compared, "max_gap" and "mean_gap": absolute, in nats, "kl": in nats
      a token}.
    """
    chosen = trajectories[:SAMPLE]
    shared = _shared(chosen) if share_prefix else 0
    prefix, rows = (chosen[0].tokens[:shared], ROWS) if shared else (None, 1)
    # All trajectories are padded to one shape, so that one program serves them.
    longest = most = 0
    for t in chosen:
        longest = max(longest, len(t.tokens) - shared)
        most = max(most, int(t.loss_mask.sum()))
    length, piece = -(-longest // PIECE) * PIECE, PIECE // rows
    pieces = -(-most // piece)
    gaps = []
    for begin in range(0, len(chosen), rows):
        tokens = np.zeros((rows, length), np.int32)
        at = np.zeros((rows, pieces * piece), np.int32)
        wheres = []
        for row, t in enumerate(chosen[begin : begin + rows]):
            tokens[row, : len(t.tokens) - shared] = t.tokens[shared:]
            wheres.append(np.flatnonzero(t.loss_mask))
            at[row, : len(wheres[-1])] = wheres[-1] - shared
        places = at.reshape(rows, pieces, piece).swapaxes(0, 1)
        found = distributed.to_host(_logprobs(cfg, weights, prefix, tokens, places))
        trainer = found.swapaxes(0, 1).reshape(rows, -1)
        for row, where in enumerate(wheres):
            sampler = chosen[begin + row].behavior_logprobs[where]
            gaps.append(trainer[row, : len(where)] - sampler)
    log_ratio = np.concatenate(gaps).astype(np.float64)
    values = {
        "max_gap": np.abs(log_ratio).max(),
        "mean_gap": np.abs(log_ratio).mean(),
        "kl": (np.expm1(log_ratio) - log_ratio).mean(),
    }
    # Rounded, as the last bits depend on which conversations ran side by side.
    rounded = {name: float(f"{value:.1e}") for name, value in values.items()}
    return {"tokens": len(log_ratio), **rounded}


def _shared(trajectories: Sequence[Trajectory]) -> int:
    """How many tokens are computed once: they end before the first that was sampled."""
    common = shared_prefix.common_length([t.tokens for t in trajectories])
    for t in trajectories:
        common = min(common, int(np.argmax(t.loss_mask)) - 1)
    return shared_prefix.usable(common) if len(trajectories) > 1 else 0
