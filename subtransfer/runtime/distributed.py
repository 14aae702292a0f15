"""Arrays of several processes: how they cross to and from the hosts, and what all processes have to
agree on.

Every process calls the same functions in the same order. With one process all of this is the
identity.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def place(tree: Any, shardings: Any) -> Any:
    """Host arrays, which every process has whole, as arrays of the given shardings (one, or a tree
    of them).
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def one(x, sharding):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree, shardings)


def to_host(tree: Any) -> Any:
    """Arrays that may be spread over processes, whole on every host (one after the other, so that
    two are never held twice).
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def one(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(one, tree)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in some process."""
    return (
        bool(flag)
        if jax.process_count() == 1
        else bool(multihost_utils.process_allgather(np.array(flag)).any())
    )


def from_leader(flag: bool) -> bool:
    """The flag of the process that leads: clocks differ, and so would decisions taken by them."""
    return (
        bool(flag)
        if jax.process_count() == 1
        else bool(multihost_utils.process_allgather(np.array(flag)).ravel()[0])
    )
