"""Arrays of several processes: how they cross to and from the hosts, and what all agree on.

Every process calls the same functions in the same order. With one process all of this is the
identity.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def place(tree: Any, shardings: Any) -> Any:
    """Puts host arrays onto devices.

    Args:
      tree: of arrays, which every process has whole.
      shardings: one for all, or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def placed(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(placed, tree, shardings)


def to_host(tree: Any) -> Any:
    """Brings arrays that may be spread over processes whole onto every host.

    They come one after the other, so that two are never held twice.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def gathered(x: Any) -> np.ndarray:
        # What this process holds whole needs no exchange.
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(gathered, tree)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in some process."""
    if jax.process_count() == 1:
        return bool(flag)
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def from_leader(flag: bool) -> bool:
    """The flag of the process that leads: clocks differ, and so would decisions taken by them."""
    if jax.process_count() == 1:
        return bool(flag)
    return bool(np.ravel(multihost_utils.process_allgather(np.array(flag)))[0])


def least(number: int) -> int:
    """The least of all processes' numbers."""
    if jax.process_count() == 1:
        return number
    return int(np.min(multihost_utils.process_allgather(np.array(number))))
