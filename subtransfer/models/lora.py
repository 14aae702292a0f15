"""LoRA: low-rank factors as a second parameter tree, merged into the base on the fly (Hu et al. 2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def init_lora(key, params: Any, targets: Sequence[str], rank: int) -> dict[str, dict[str, jax.Array]]:
    """Fresh factors for the projections named in `targets`: {target: {"a": [N, in, r], "b": [N, r, out]}}.

    `a` is uniform in +-sqrt(1 / in) (PEFT's kaiming_uniform with a = sqrt(5)), `b` is zero: the merged model starts as the
    base.
    """
    factors = {}
    for number, target in enumerate(sorted(targets)):
        layers, width_in, width_out = params["layers"][target]["kernel"].shape
        bound = width_in**-0.5
        a = jax.random.uniform(jax.random.fold_in(key, number), (layers, width_in, rank), minval=-bound, maxval=bound)
        factors[target] = {"a": a, "b": jnp.zeros((layers, rank, width_out))}
    return factors


def merge(params: Any, lora: Any, *, alpha: float, rank: int, dropout: float = 0.0, rng=None) -> Any:
    """The base with `kernel + alpha / rank * a @ b` in place of each adapted kernel.

    Args:
      params: the decoder's tree; kernels [N, in, out].
      lora: the factors of `init_lora`.
      dropout: probability that an input feature of an adapter is dropped, the rest scaled by 1 / (1 - dropout). Dropping
        rows of `a` equals dropping features of the adapter's input, with one mask a step for all tokens of the batch
        (PEFT draws one a token; the expectation is the same). Needs `rng`.
    """
    layers = dict(params["layers"])
    for number, target in enumerate(sorted(lora)):
        a, b = jnp.asarray(lora[target]["a"]), jnp.asarray(lora[target]["b"])
        if dropout:
            keep = jax.random.bernoulli(jax.random.fold_in(rng, number), 1 - dropout, a.shape[:2])
            a = a * keep[..., None] / (1 - dropout)
        kernel = params["layers"][target]["kernel"]
        layers[target] = {**params["layers"][target], "kernel": kernel + alpha / rank * (a @ b)}
    return {**params, "layers": layers}
