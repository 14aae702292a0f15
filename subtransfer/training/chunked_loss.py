"""The vocabulary loss in chunks, so that the logits of a whole batch never exist.

They would be batch x length x vocabulary in float32. What goes over whole sequences are last hidden
states [B, L, D]. A scan takes a few positions of all rows at a time, computes their logits, and
keeps sums; the backward pass computes each chunk's logits again. Any objective that is written for
each token (`objectives.py`) is taken so, with whatever it needs beside the logits: a teacher's
hidden states, tokens, stored targets.

Chunks divide the length and not the batch: rows stay with their devices, and a vocabulary over the
tensor axis stays divided. The head, which makes logits, lies divided over devices that have
different rows. Each of them fetches it whole before its first chunk and adds its share of the
gradient after the last one: left to the compiler, both would travel once a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from subtransfer.runtime import sharding
from subtransfer.training import objectives

# Bytes of one distribution's float32 logits of one chunk on one device. A backward pass holds some
# five times as much. With a vocabulary of 128k that is 128 tokens: with fewer, reading a head of 16
# bits takes longer than multiplying by it.
CHUNK_BYTES = 1 << 26


def chunk_bytes(entries: int, trained_width: int = 0, budget: int = CHUNK_BYTES) -> int:
    """Bounds the bytes of one chunk's logits on a device.

    The bound is `budget`, or more if the head is trained. Then the head's whole float32 gradient
    goes in and out of memory at each chunk, so a chunk's logits may take an eighth of its size:
    with chunks of 128 tokens, that traffic was 9% of a step of 8B on v5p, by the compiler's
    account.

    Args:
      entries: of the vocabulary that the device has.
      trained_width: D of a head that is trained; else 0.
      budget: bytes.
    """
    return max(budget, 4 * entries * trained_width // 8)


def chunk_length(
    batch: int, length: int, vocab_size: int, *, trained_width: int = 0, budget: int = CHUNK_BYTES
) -> int:
    """Chooses how many positions a chunk has.

    These are the fewest chunks of (almost) equal length whose logits stay within `chunk_bytes` on
    each device. Rows and vocabulary are divided as the ambient mesh (`jax.set_mesh`) divides them.

    Args:
      batch: B, of all devices.
      length: L.
      vocab_size: V.
      trained_width: D of a head that is trained; else 0.
      budget: bytes, as of `chunk_bytes`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # Inside a `shard_map`, what its axes divide has its local size already.
    axes = {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}
    devices = axes.get("data", 1) * axes.get("fsdp", 1)
    # What does not divide is whole on every device.
    rows = batch // devices if batch % devices == 0 else batch
    tensor = axes.get("tensor", 1)
    entries = vocab_size // tensor if vocab_size % tensor == 0 else vocab_size
    longest = max(chunk_bytes(entries, trained_width, budget) // (4 * rows * entries), 1)
    chunks = -(-length // longest)
    # Of equal length, as a short last chunk would be padded to the others'.
    even = -(-length // chunks)
    # A multiple of 8 positions fits the tiles of accelerators.
    return min(-(-even // 8) * 8, longest) if even < length else length


def counting(
    along: Any, loss_mask: objectives.Weights, count: int
) -> tuple[Any, objectives.Weights]:
    """Picks `count` positions of each row, among which are all that count, in their order.

    Args:
      along: a tree of arrays [B, L, ...].
      loss_mask: [B, L], bool or weights.
      count: P; no row has more that count.

    Returns:
      (the tree with arrays [B, P, ...], the mask [B, P]).
    """
    # A stable sort: those that count come first, in their order.
    at = jnp.argsort(loss_mask == 0, axis=1, stable=True)[:, :count]

    def picked(x):
        return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)

    return jax.tree.map(picked, along), picked(loss_mask)


def mean_in_chunks(
    per_token: Callable[[Any, Any], objectives.PerToken],
    heads: Any,
    along: Any,
    loss_mask: objectives.Weights,
    chunk: int,
) -> objectives.Scalar:
    """Computes weighted means of a loss and its metrics over tokens, chunk by chunk.

    Args:
      per_token: from `heads` and a part of `along`, [B, chunk, ...], to the loss and metrics of
        each token, [B, chunk].
      heads: a tree of weights, the same for all parts, that may be differentiated.
      along: a tree of arrays [B, L, ...]: hidden states, tokens, targets.
      loss_mask: [B, L], bool or weights.
      chunk: positions at a time, static; L or more for one chunk, whose logits then are kept for
        the backward pass.
    """
    if chunk >= loss_mask.shape[1]:
        return objectives.weighted_mean(per_token(heads, along), loss_mask)

    def sums(heads, along):
        def of_part(heads, part):
            inputs, mask = part
            return objectives.weighted_sums(per_token(heads, inputs), mask)

        def add(total, part):
            return jax.tree.map(jnp.add, total, recomputed(heads, part)), None

        # The barriers against common subexpressions are not needed: bodies of a scan are never
        # merged with each other.
        recomputed = jax.checkpoint(of_part, prevent_cse=False)
        parts = _divided(along, chunk)
        shapes = jax.eval_shape(of_part, heads, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, parts)
        return total

    totals = _with_whole_heads(sums, heads, (along, loss_mask), summed=True)
    return objectives.divided(totals, loss_mask)


def map_in_chunks(function: Callable[[Any, Any], Any], heads: Any, along: Any, chunk: int) -> Any:
    """Maps a function over parts of a tree of arrays [B, L, ...].

    Args:
      function: from `heads` and a part [B, chunk, ...] to results [B, chunk, ...].
      heads: a tree of weights, the same for all parts.
      along: the tree of arrays.
      chunk: positions at a time, static.

    Returns:
      the results joined to [B, L, ...].
    """
    length = jax.tree.leaves(along)[0].shape[1]
    if chunk >= length:
        return function(heads, along)

    def joined(x):  # [chunks, B, chunk, ...]
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length]

    def mapped(heads, along):
        results = jax.lax.map(lambda part: function(heads, part), _divided(along, chunk))
        return jax.tree.map(joined, results)

    return _with_whole_heads(mapped, heads, along, summed=False)


def _with_whole_heads(
    function: Callable[[Any, Any], Any], heads: Any, along: Any, *, summed: bool
) -> Any:
    """Calls `function(heads, along)` on each device's rows, with whole heads.

    The heads stay divided over the tensor axis only.

    Args:
      summed: the results of all rows are added; otherwise they have rows themselves, [B, ...].
    """
    mesh, axes = jax.sharding.get_abstract_mesh(), sharding.RULES["rows"]
    assert isinstance(axes, tuple), "rows are divided over two axes"
    groups = math.prod(mesh.shape.get(axis, 1) for axis in axes)
    if groups == 1 or mesh.manual_axes or jax.tree.leaves(along)[0].shape[0] % groups:
        return function(heads, along)

    def local(heads, along):
        return jax.lax.psum(function(heads, along), axes) if summed else function(heads, along)

    specs = PartitionSpec(), PartitionSpec(axes)
    divided = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=specs,
        out_specs=specs[not summed],
        axis_names=set(axes),
        check_vma=False,
    )
    return divided(heads, along)


def _divided(along: Any, chunk: int) -> Any:
    """Arrays [B, L, ...] as [chunks, B, chunk, ...], the last one filled up."""

    def one(x):
        # What is added has the weight 0.
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    return jax.tree.map(one, along)
