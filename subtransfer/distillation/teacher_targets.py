"""Teacher targets on disk: the teacher's k likeliest tokens at every agent token, and log-probs.

A student that learns from them needs no teacher in memory (`objectives.forward_kl_top_k`). Unsafe
tokens leave the teacher's distribution before its top k are taken, so that none is ever stored;
what is stored is checked for it again when it is read.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from subtransfer.filtering.leaks import LeakError
from subtransfer.models.attention import causal_mask
from subtransfer.models.decoder import NO_TOKEN, Decoder, DecoderConfig, head, unembed, used_rows
from subtransfer.models.forward import forward
from subtransfer.runtime import distributed, sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store.params import load_params, save_params
from subtransfer.training import chunked_loss, common_prefix, objectives
from subtransfer.training.examples import Examples

# Episodes that a run computes again.
SAMPLE = 16
# Positions whose logits exist at a time.
PIECE = 64
# What the teacher's live opinion may differ by (see `verify`), by the dtype of computation.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


@dataclasses.dataclass(frozen=True)
class Targets:
    """What is stored, for N agent tokens in the order of their episodes.

    Attributes:
      ids: int32 [N, k], different tokens, the likeliest first.
      logprobs: float32 [N, k], at `temperature`, over the tokens that were not taken out.
      temperature: of the softmax.
      episodes: uint8 [32], SHA-256 of the tokens and masks of the training episodes.
      removed_mass: the probability that the teacher gave to the tokens that were taken out, mean
        over agent tokens.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    temperature: float
    episodes: np.ndarray
    removed_mass: float = 0.0

    def write(self, path: Path) -> None:
        """Writes a safetensors file."""
        arrays = {"ids": self.ids, "logprobs": self.logprobs, "episodes": self.episodes}
        save_params(path, arrays | {"temperature": np.array([self.temperature])})

    @classmethod
    def read(cls, path: Path) -> Targets:
        """Reads what `write` wrote; UserError if the file is missing or damaged."""
        arrays = load_params(path)
        temperature = float(arrays["temperature"][0])
        return cls(arrays["ids"], arrays["logprobs"], temperature, arrays["episodes"])

    def within(self, rows: int) -> Targets:
        """These targets over the tokens that have one of the first `rows` ids alone.

        A teacher's embedding may have rows that its student's lacks. The probability of such tokens
        is taken out, and that of all others, stored or not, is divided by what is left.
        """
        beyond = self.ids >= rows
        if not beyond.any():
            return self
        lost = np.where(beyond, np.exp(self.logprobs.astype(np.float64)), 0).sum(-1, keepdims=True)
        if (beyond.all(-1) | (lost[:, 0] >= 1)).any():
            raise UserError(
                "The teacher's likeliest tokens are ones that the student's embedding has no rows "
                "for: choose a pair of one family, or use --config.distill.teacher_targets=live."
            )
        # Another token's id with no probability: an objective wants k ids at each place.
        first = np.take_along_axis(self.ids, np.argmin(beyond, -1)[:, None], -1)
        logprobs = np.where(beyond, NO_TOKEN, self.logprobs - np.log1p(-lost))
        return dataclasses.replace(
            self,
            ids=np.where(beyond, first, self.ids),
            logprobs=logprobs.astype(self.logprobs.dtype),
        )

    def attached(
        self,
        examples: Examples,
        temperature: float,
        removed: np.ndarray | None,
        rows: int | None = None,
    ) -> Examples:
        """Gives these targets to the examples that they were made for.

        Args:
          examples: the training episodes, with `removed_at`.
          temperature: that of the student's loss.
          removed: bool [S, V] or None, tokens that must not be among the targets.
          rows: V of the student; None: the teacher's.

        Raises:
          LeakError: a token that should have been taken out is among them.
          UserError: they were made for other examples, or at another temperature.
        """
        if temperature != self.temperature or not np.array_equal(self.episodes, _digest(examples)):
            raise UserError(
                "The stored teacher targets were made for other training episodes or another "
                "temperature (a student whose template differs from its teacher's has other "
                "episodes): use --config.distill.teacher_targets=live."
            )
        targets = self if rows is None else self.within(rows)
        # They were removed when the targets were made; a file can be another's.
        if removed is not None and removed[_rows(examples)[:, None], targets.ids].any():
            raise LeakError("The stored teacher targets hold an unsafe token: nothing was trained.")
        ids = np.zeros((*examples.tokens.shape, self.ids.shape[1]), self.ids.dtype)
        logprobs = np.zeros(ids.shape, self.logprobs.dtype)
        ids[examples.loss_mask] = targets.ids
        logprobs[examples.loss_mask] = targets.logprobs
        return dataclasses.replace(examples, teacher_ids=ids, teacher_logprobs=logprobs)


def compute(
    cfg: DecoderConfig,
    mesh: Mesh,
    weights,
    examples: Examples,
    k: int,
    temperature: float,
    removed: np.ndarray | None,
    batch_size: int,
    advance: Callable[[int], None] = lambda episodes: None,
    *,
    share_prefix: bool = False,
) -> Targets:
    """Computes a teacher's targets at the agent tokens of the examples.

    Args:
      cfg: the teacher's geometry.
      mesh: the devices.
      weights: the teacher's.
      examples: the training episodes, with `removed_at` if anything is removed.
      k: how many tokens are kept.
      temperature: of the softmax.
      removed: bool [S, V] or None, tokens taken out before the likeliest are chosen, by rows.
      batch_size: examples at a time.
      advance: called with the number of examples that are done since the last call.
      share_prefix: what all examples begin with is computed once a batch (`common_prefix.py`).

    Raises:
      UserError: there are fewer than k tokens.
    """
    used = used_rows(cfg)
    support = int(np.sum(used))
    if removed is not None:
        support = int(np.sum(used & ~removed, axis=1).min())
    if k > support:
        raise UserError(
            f"distill.top_k={k} cannot be: the teacher has {support} tokens to choose from."
        )
    ids, logprobs, masses = [], [], []
    at = common_prefix.cut([examples], batch_size) if share_prefix else None
    fed = common_prefix.fed(examples, at)
    given = fed.rows
    prefix = distributed.place(fed.prefix, sharding.replicated(mesh))
    removed_at = np.zeros_like(given.tokens) if given.removed_at is None else given.removed_at
    for begin in range(0, len(examples), batch_size):
        # The last batch is filled up with its last row, so that all have one shape.
        rows = np.arange(begin, begin + batch_size).clip(max=len(examples) - 1)
        batch = (given.tokens[rows], np.roll(removed_at[rows], -1, axis=1))
        tokens, places = distributed.place(batch, sharding.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            program = _top_k(cfg, weights, tokens, removed, places, k, temperature, prefix)
            found = distributed.to_host(program)
        here = slice(0, len(examples) - begin)
        mask = given.loss_mask[rows][here, 1:]  # position t predicts the token after it
        ids.append(found[0][here, :-1][mask])
        logprobs.append(found[1][here, :-1][mask])
        masses.append(found[2][here, :-1][mask])
        advance(len(mask))
    mass = float(np.concatenate(masses).mean())
    kept = np.concatenate(ids), np.concatenate(logprobs)
    return Targets(*kept, temperature, _digest(examples), mass)


def _rows(examples: Examples) -> np.ndarray:
    """The row of the removed tokens at each agent token, int32 [N]."""
    assert examples.removed_at is not None, "what is removed is said place by place"
    return examples.removed_at[examples.loss_mask]


@functools.partial(jax.jit, static_argnames=("cfg", "k", "temperature"))
def _top_k(
    cfg, weights, tokens, removed, places, k: int, temperature: float, prefix=None
) -> tuple[Int[Array, "B L k"], Float[Array, "B L k"], Float[Array, "B L"]]:
    def likeliest(params, along):
        states, at = along
        logits = unembed(cfg, params, states)
        out = None if removed is None else removed[at]
        values, ids = jax.lax.top_k(objectives.log_probs(logits, temperature, out), k)
        if out is None:
            return ids, values, jnp.zeros(values.shape[:2])
        return ids, values, objectives.removed_mass(logits, out, temperature)

    states = forward(cfg, weights, tokens, prefix=prefix, hidden=True)
    batch, length = tokens.shape
    chunk = chunked_loss.chunk_length(batch, length, cfg.vocab_size)
    heads = head(cfg, weights["params"])
    return chunked_loss.map_in_chunks(likeliest, heads, (states, places), chunk)


def verify(
    cfg: DecoderConfig, weights, examples: Examples, targets: Targets, removed: np.ndarray | None
) -> dict[str, float]:
    """Compares stored targets of `SAMPLE` episodes with what the teacher says now.

    Returns:
      {"tokens"; "max_gap" and "mean_gap" over tokens of sum_i p_i |log p_i - stored_i|, in nats;
      "max_missed": the most probability that the teacher's own top k hold and the stored tokens do
        not}.

    Raises:
      UserError: the largest gap or what is missed is above `TOLERANCE`.
    """
    # Where each episode's tokens begin in the flat arrays.
    at_row = np.cumsum([0, *examples.loss_mask.sum(axis=1)])
    # Spread over all episodes, the first and the last among them.
    chosen = np.unique(np.linspace(0, len(examples) - 1, SAMPLE).astype(int))
    pieces = -(-int(examples.loss_mask[chosen].sum(axis=1).max()) // PIECE)

    def divided(x):
        # All episodes are padded to one shape, so that one program serves them.
        padded = np.pad(x, [(0, pieces * PIECE - len(x))] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(pieces, PIECE, *x.shape[1:])

    gaps: list[np.ndarray] = []
    missed: list[np.ndarray] = []
    for row in chosen:
        where = np.flatnonzero(examples.loss_mask[row])
        here = slice(at_row[row], at_row[row + 1])
        places = None
        if removed is not None and examples.removed_at is not None:
            places = divided(examples.removed_at[row, where])
        found = _gaps(
            cfg,
            weights,
            examples.tokens[row][None],
            removed,
            places,
            divided(where.astype(np.int32)),
            divided(targets.ids[here]),
            divided(targets.logprobs[here]),
            targets.temperature,
        )
        for kept, values in zip((gaps, missed), found, strict=True):
            kept.append(distributed.to_host(values).reshape(-1)[: len(where)])
    gap, lost = np.concatenate(gaps), np.concatenate(missed)
    values = {"max_gap": gap.max(), "mean_gap": gap.mean(), "max_missed": lost.max()}
    report: dict[str, Any] = {"tokens": len(gap)}
    for name, value in values.items():
        # Rounded: the last bits depend on how the work was divided over devices.
        report[name] = float(f"{value:.1e}")
    worst = max(report["max_gap"], report["max_missed"])
    # Not `worst >`: a NaN must fail too.
    if not worst <= TOLERANCE[cfg.dtype]:
        raise UserError(
            f"Stored teacher targets are {worst:g} from what the teacher says now, where "
            f"{TOLERANCE[cfg.dtype]:g} is allowed for {cfg.dtype}: delete their stage's folder and "
            "run again."
        )
    return report


@functools.partial(jax.jit, static_argnames=("cfg", "temperature"))
def _gaps(
    cfg, weights, tokens: Int[Array, "1 L"], removed, places, at, ids, logprobs, temperature: float
):
    length = tokens.shape[1]
    positions, mask = jnp.arange(length)[None], causal_mask(jnp.ones((1, length), bool))

    def piece(_, part):
        index, row, ids, stored = part
        before = jnp.maximum(index - 1, 0)[None]  # the position that predicts each token
        logits = Decoder(cfg).apply(weights, tokens, positions, mask, before)[0]
        out = None if removed is None else removed[row]
        logp = objectives.log_probs(logits, temperature, out)
        live = jnp.take_along_axis(logp, ids, axis=-1)
        # The teacher's present top k, to see how much of its probability is not stored.
        best, _ = jax.lax.top_k(logp, ids.shape[-1])
        gap = jnp.sum(jnp.exp(live) * jnp.abs(live - stored), axis=-1)
        return None, (gap, jnp.sum(jnp.exp(best) - jnp.exp(live), axis=-1))

    return jax.lax.scan(piece, None, (at, places, ids, logprobs))[1]


def _digest(examples: Examples) -> np.ndarray:
    """SHA-256 of the tokens up to each episode's last agent token, and of the masks.

    Padding does not matter.
    """
    h = hashlib.sha256()
    for tokens, mask in zip(examples.tokens, examples.loss_mask, strict=True):
        end = int(np.flatnonzero(mask)[-1]) + 1
        h.update(np.asarray(tokens[:end], "<i4").tobytes())
        h.update(np.asarray(mask[:end], np.uint8).tobytes())
    return np.frombuffer(h.digest(), np.uint8)
