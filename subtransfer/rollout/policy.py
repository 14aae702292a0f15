"""A policy: a decoder with its weights and tokenizer, ready to score and to write text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from subtransfer.models import lora, stop_tokens
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.forward import forward
from subtransfer.rollout import scheduler
from subtransfer.rollout.sampling import Sampling
from subtransfer.rollout.serving import SampledTurn
from subtransfer.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Policy:
    """A decoder ready to be used.

    Attributes:
      cfg: its geometry.
      params: the parameter tree; of an adapted policy, that of its base, shared with every other
        policy of that base.
      tokenizer: the Hugging Face tokenizer with its chat template.
      adapter: the LoRA factors, or None.
      source: the directory that the base's weights came from.
    """

    cfg: DecoderConfig
    params: Any
    tokenizer: Any
    adapter: lora.Adapter | None = None
    source: str = ""

    @functools.cached_property
    def weights(self) -> dict[str, Any]:
        """The decoder's weights: the parameters and the scaled factors of the adapter."""
        if self.adapter is None:
            return {"params": self.params}
        return lora.attach(
            self.params, self.adapter.factors, alpha=self.adapter.alpha, rank=self.adapter.rank
        )

    def merged(self, dtype: str | None = None) -> Any:
        """The parameter tree with the adapter merged in.

        Args:
          dtype: of the parameters, e.g. "float32", in which an adapter loses nothing; None: their
            own. What merging loses is said where it is much (`lora.merge`).
        """
        params = self.params
        if dtype is not None:
            params = jax.tree.map(lambda x: x.astype(dtype), params)
        return params if self.adapter is None else lora.merge(params, self.adapter)

    def logits(self, tokens) -> Float[Array, "B L V"]:
        """Computes the next token's logits at every position, float32 [B, L, V].

        Rows of the embedding that no token stands for have theirs, too: a distribution over tokens
        is that over all others (`cfg.unused`).

        Args:
          tokens: integers [B, L], without padding or padded on the right.

        Raises:
          UserError: `tokens` is not [B, L], or holds an id that the vocabulary has not.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(
                f"Tokens must be integers of the shape [B, L], not {ids.dtype} {list(ids.shape)}."
            )
        self._check_ids(ids)
        # A policy is used on whatever device, whichever kernel it was trained with.
        cfg = dataclasses.replace(self.cfg, attention="xla", unused=())
        return forward(cfg, self.weights, jnp.asarray(ids, jnp.int32))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
        batch_size: int = 256,
    ) -> list[list[int]]:
        """Continues token-id prompts of any lengths, up to `batch_size` at a time.

        Args:
          prompts: token ids, one or more of each.
          max_new_tokens: the most tokens that are added to a prompt.
          temperature: of sampling; 0 is greedy. Row i draws from `fold_in(key(seed), i)`.
          stop_ids: tokens that end a row (and are part of it); None: the tokenizer's
            end-of-sequence token and those of the model's generation_config.json.
          seed: of the random draws.
          batch_size: how many prompts are continued side by side.

        Returns:
          The new ids of each row, up to `max_new_tokens`. `sample` returns their log-probs too.

        Raises:
          UserError: a prompt is empty or holds an id that the vocabulary has not, or a number is
            out of range.
        """
        turns = self.sample(
            prompts,
            Sampling(temperature),
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop_ids=stop_ids,
            batch_size=batch_size,
        )
        return [turn.ids for turn in turns]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        how: Sampling,
        *,
        max_new_tokens: int = 64,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
        batch_size: int = 256,
    ) -> list[SampledTurn]:
        """As `generate`, with every way of sampling and with log-probs: one turn a prompt."""
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise UserError(
                "There is nothing to continue: give one or more prompts of at least one token."
            )
        if min(max_new_tokens, batch_size) < 1 or how.temperature < 0:
            raise UserError(
                "max_new_tokens and batch_size must be above 0 and temperature at least 0."
            )
        for prompt in prompts:
            self._check_ids(np.asarray(prompt))
        if stop_ids is None:
            stop_ids = stop_tokens.stop_ids(self.tokenizer)
        # A prompt is a conversation of one turn, which is never replied to.
        rows = [_SingleTurn(i, list(map(int, prompt))) for i, prompt in enumerate(prompts)]
        scheduler.serve(
            self.cfg,
            self.weights,
            rows,
            how,
            jax.random.key(seed),
            slots=batch_size,
            max_new_tokens=max_new_tokens,
            more_tokens=max_new_tokens,
            # Nothing is fed back.
            feed_tokens=1,
            stop_ids=stop_ids,
        )
        return [row.turn for row in rows]

    def _check_ids(self, ids: np.ndarray) -> None:
        if ids.size and not 0 <= ids.min() <= ids.max() < self.cfg.vocab_size:
            raise UserError(
                f"Token ids must lie in 0 .. {self.cfg.vocab_size - 1}: encode with this policy's "
                "own tokenizer."
            )


@dataclasses.dataclass
class _SingleTurn:
    """A conversation of one turn."""

    index: int
    prompt: list[int]
    turn: SampledTurn = dataclasses.field(default_factory=SampledTurn)

    def take(self, turn: SampledTurn) -> None:
        self.turn = turn
