"""LoRA (Hu et al. 2106.09685): low-rank factors beside the matrices that they adapt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from subtransfer.runtime import distributed


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Which weights are trained.

    Attributes:
      method: "full" or "lora".
      rank: r, the width of the factors.
      alpha: the factors' product is multiplied by alpha / rank.
      dropout: probability that a feature of an adapter's input is dropped.
      targets: the adapted projections, of q, k, v, o, gate, up and down.
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
      rank: r.
      alpha: as of `Tuning`.
      dropout: on the adapter's input while it is trained.
    """

    factors: Any
    rank: int = struct.field(pytree_node=False)
    alpha: float = struct.field(pytree_node=False)
    dropout: float = struct.field(pytree_node=False, default=0.0)


def init_factors(
    key, params: Mapping[str, Any], targets: Sequence[str], rank: int
) -> dict[str, Any]:
    """Draws fresh factors for the projections named in `targets`, sharded like their kernels.

    `a` is uniform in +-sqrt(1 / in) (PEFT's kaiming_uniform with a = sqrt(5)), `b` is zero: the
    adapted model starts as the base.
    """
    factors = {}
    # Sorted, so that a config's order of targets draws the same numbers.
    for number, target in enumerate(sorted(targets)):
        kernel = params["layers"][target]["kernel"]
        layers, width_in, width_out = kernel.shape
        # PEFT's own start, so that both train alike.
        bound = width_in**-0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, number), (layers, width_in, rank), minval=-bound, maxval=bound
        )
        factors[target] = {"a": a, "b": jnp.zeros((layers, rank, width_out))}
    return place_factors({"layers": factors}, params)


def place_factors(factors: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Places factors on the devices of a parameter tree.

    Each is divided along the axis that it shares with the kernel it adapts.
    """
    placed = {}
    for target, pair in factors["layers"].items():
        kernel = params["layers"][target]["kernel"].sharding
        if not isinstance(kernel, NamedSharding):
            placed[target] = distributed.place(pair, kernel)
            continue
        spec = (*kernel.spec, None, None, None)[
            :3
        ]  # trailing axes that are not divided are left out
        places = {"a": PartitionSpec(None, spec[1], None), "b": PartitionSpec(None, None, spec[2])}
        placed[target] = distributed.place(
            pair, {part: NamedSharding(kernel.mesh, places[part]) for part in "ab"}
        )
    return {"layers": placed}


def attach(params: Any, factors: Any, *, alpha: float, rank: int) -> dict[str, Any]:
    """Builds the decoder's weights from a base and factors.

    Returns:
      {"params": the base, "lora": the factors, b scaled by alpha / rank}.
    """
    scaled = {}
    for target, pair in factors["layers"].items():
        scaled[target] = {"a": pair["a"], "b": alpha / rank * pair["b"]}
    return {"params": params, "lora": {"layers": scaled}}


def merge(params: Any, adapter: Adapter) -> Any:
    """Merges an adapter into a parameter tree.

    Each adapted kernel becomes `kernel + alpha / rank * a @ b`, in the kernel's own dtype.
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
    # Product and sum are in float32; only the result is rounded to the kernel's dtype.
    a, b = (jnp.asarray(pair[part], jnp.float32) for part in "ab")
    update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)
