"""LoRA (Hu et al. 2106.09685): low-rank factors beside the matrices that they adapt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from subtransfer.runtime import distributed
from subtransfer.runtime.progress import note


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


# The most of an adapter's change that merging may lose to rounding before it is said.
LOST = 0.1


def merge(params: Any, adapter: Adapter) -> Any:
    """Merges an adapter into a parameter tree.

    Each adapted kernel becomes `kernel + alpha / rank * a @ b`, summed in float32 and rounded once
    to the kernel's own dtype. What rounding loses of the change is measured (`lost_in_merge`), and
    said where it is more than `LOST`.
    """
    layers = dict(params["layers"])
    for target, pair in adapter.factors["layers"].items():
        layers[target] = {
            **layers[target],
            "kernel": _merged(layers[target]["kernel"], pair, adapter.alpha / adapter.rank),
        }
    merged = {**params, "layers": layers}
    lost = lost_in_merge(params, merged, adapter)
    if lost > LOST:
        dtype = layers[min(adapter.factors["layers"])]["kernel"].dtype
        note(
            f"warning: merged in {dtype}, the adapter loses {lost:.0%} of its change of the "
            "weights to rounding; keep it whole as an adapter (--format=peft of tools/export.py) "
            "or in float32 (--dtype=float32)"
        )
    return merged


def lost_in_merge(params: Any, merged: Any, adapter: Adapter) -> float:
    """Returns the share of an adapter's change that merging has lost to rounding.

    That is the Frobenius norm of what is wrong in the merged kernels over that of the change, over
    all adapted kernels: 0 for none, 1 for as much as there is. 0 of an adapter that changes
    nothing.

    Args:
      params: the parameter tree.
      merged: the tree that `merge` made of it.
      adapter: what was merged in.
    """
    wrong = change = 0.0
    for target, pair in adapter.factors["layers"].items():
        before, after = (tree["layers"][target]["kernel"] for tree in (params, merged))
        squares = _squares(before, after, pair, adapter.alpha / adapter.rank)
        wrong, change = wrong + float(squares[0]), change + float(squares[1])
    return math.sqrt(wrong / change) if change else 0.0


def _change(pair, scale):
    """What an adapter adds to a kernel, float32."""
    a, b = (jnp.asarray(pair[part], jnp.float32) for part in "ab")
    return scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _merged(kernel, pair, scale):
    return (kernel.astype(jnp.float32) + _change(pair, scale)).astype(kernel.dtype)


# Of a merged kernel and not of one that is rounded here: a compiler may leave out a rounding whose
# result is at once made float32 again.
@jax.jit
def _squares(before, after, pair, scale):
    """Sums of squares: of what is wrong in a merged kernel, and of the change."""
    change = _change(pair, scale)
    kept = after.astype(jnp.float32) - before.astype(jnp.float32)
    return jnp.sum(jnp.square(kept - change)), jnp.sum(jnp.square(change))
