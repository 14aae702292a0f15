"""LoRA (Hu et al. 2106.09685): low-rank factors that the decoder applies beside the matrices they
adapt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from subtransfer.runtime import distributed

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Which weights are trained: "full", or "lora" with rank r, alpha, dropout and the adapted
    projections.
    """

    method: str = "full"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "k", "v", "o")


@struct.dataclass
class Adapter:
    """LoRA factors and how they are applied: kernel + alpha / rank * a @ b.

    Attributes:
      factors: {"layers": {target: {"a": [N, in, r], "b": [N, r, out]}}}, float32.
      dropout: on the adapter's input while it is trained.
    """

    factors: Any
    rank: int = struct.field(pytree_node=False)
    alpha: float = struct.field(pytree_node=False)
    dropout: float = struct.field(pytree_node=False, default=0.0)


def init_factors(
    key, params: Mapping[str, Any], targets: Sequence[str], rank: int
) -> dict[str, Any]:
    """Fresh factors for the projections named in `targets`, sharded like the kernels they adapt.

    `a` is uniform in +-sqrt(1 / in) (PEFT's kaiming_uniform with a = sqrt(5)), `b` is zero: the
    adapted model starts as the base.
    """
    factors = {}
    for number, target in enumerate(sorted(targets)):
        kernel = params["layers"][target]["kernel"]
        layers, width_in, width_out = kernel.shape
        bound = width_in**-0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, number), (layers, width_in, rank), minval=-bound, maxval=bound
        )
        factors[target] = {"a": a, "b": jnp.zeros((layers, rank, width_out))}
    return place_factors({"layers": factors}, params)


def place_factors(factors: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The factors on the devices of a parameter tree: each along the axis that it shares with its
    kernel.
    """
    placed = {}
    for target, pair in factors["layers"].items():
        kernel = params["layers"][target]["kernel"].sharding
        spec = (*kernel.spec, None, None, None)[:3] if isinstance(kernel, NamedSharding) else None
        if spec is None:
            placed[target] = distributed.place(pair, kernel)
            continue
        places = {"a": PartitionSpec(None, spec[1], None), "b": PartitionSpec(None, None, spec[2])}
        placed[target] = distributed.place(
            pair, {part: NamedSharding(kernel.mesh, places[part]) for part in "ab"}
        )
    return {"layers": placed}


def attach(params: Any, factors: Any, *, alpha: float, rank: int) -> dict[str, Any]:
    """The decoder's weights: the resident base and, as the "lora" collection, factors scaled by
    alpha / rank.
    """
    scaled = {
        t: {"a": pair["a"], "b": alpha / rank * pair["b"]} for t, pair in factors["layers"].items()
    }
    return {"params": params, "lora": {"layers": scaled}}


def merge(params: Any, adapter: Adapter) -> Any:
    """A parameter tree with `kernel + alpha / rank * a @ b` in place of each adapted kernel, in the
    kernel's dtype.
    """
    layers = dict(params["layers"])
    for target, pair in adapter.factors["layers"].items():
        layers[target] = {
            **layers[target],
            "kernel": _merged(layers[target]["kernel"], pair, adapter.alpha / adapter.rank),
        }
    return {**params, "layers": layers}


@jax.jit
def _merged(kernel, pair, scale):
    a, b = (jnp.asarray(pair[part], jnp.float32) for part in "ab")
    update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)
