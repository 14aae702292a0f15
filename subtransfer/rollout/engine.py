"""The device side of a rollout: slots that conversations move through, and the two compiled
programs that serve them.

`feed` appends given tokens (prompts, tool results) to some slots; `burst` samples in all of them,
many tokens a dispatch, in a loop on the device that ends when enough rows have ended their turns.
Shapes are fixed by `Shape`: whatever the conversations do, nothing is compiled again. Attention
reads a shared prefix, which is computed once for all rows, the occupied part of the slots (the
smallest bucket that holds the longest row) and the burst's own tokens. These are written to one
column for all rows, in place, and moved to each row's own end once a burst.

Nothing that a row computes depends on the slot it lies in or on its neighbours.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from subtransfer.models.attention import KV, Past, causal_mask, empty_kv
from subtransfer.models.decoder import Burst, DecoderConfig, extend, unstacked
from subtransfer.rollout import sampling
from subtransfer.rollout.sampling import Sampling
from subtransfer.runtime import sharding

# Prompts are fed in pieces of at most this many tokens, which bounds the memory of attention's
# scores.
CHUNK = 512
# The prefix and the buckets of a slot's length are rounded up to this, so that few shapes are ever
# compiled.
ROUND = 32


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shapes of an engine's programs; hashable.

    Attributes:
      rows: B, slots of one lane.
      room: tokens that a slot can hold beyond the shared prefix.
      feed_rows: rows that one call of `feed` serves; B feeds them where they lie, as sharded slots
        need it.
      feed_tokens: C, tokens a row that one call of `feed` takes.
      burst: T, the most tokens a row and call of `burst`.
      patience: a burst goes on until more rows than this have ended their turns in it.
      int8_cache: keys and values in slots are rounded to int8.
      copies: a burst works on a copy of its bucket, which it extends in place, and weights on
        copies out of their stacks: a CPU then has half the products to make at each step. Where
          memory is short, both are read where they lie.
    """

    rows: int
    room: int
    feed_rows: int
    feed_tokens: int
    burst: int = 32
    patience: int = 0
    int8_cache: bool = False
    copies: bool = False

    @property
    def length(self) -> int:
        """S: the room, and what a write from its last slot on would need."""
        return -(-(self.room + max(self.feed_tokens, self.burst)) // ROUND) * ROUND

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths of slots that attention reads, shortest first, each about half the next. A part
        of a slot is a copy of it: without room for one, it is read whole.
        """
        sizes = [self.length]
        while self.copies and sizes[0] > 2 * ROUND:
            sizes.insert(0, -(-sizes[0] // (2 * ROUND)) * ROUND)
        return tuple(sizes)


@struct.dataclass
class Slots:
    """What the device keeps of the conversations.

    Attributes:
      layers: N KVs of [B, ..., S ...].
      logits: float32 [B, V], for each row's next token.
    """

    layers: tuple[KV, ...]
    logits: Float[Array, "B V"]


@struct.dataclass
class Sampled:
    """What a burst made.

    Attributes:
      tokens: int32 [B, T]; logprobs: float32 [B, T], of them at temperature 1; counts: int32 [B],
        how many are there.
      states: int32 [B], where each row stands in the grammar.
      top_ids, top_logprobs: [B, T, k] or None.
      alive: bool [], whether any row (of any process) was to sample, or waits for tokens.
      turned: bool [], whether any row ended its turn or waits for tokens: then `feed` comes before
        the next burst.
      steps: int32 [], steps of the loop.
    """

    tokens: Int[Array, "B T"]
    logprobs: Float[Array, "B T"]
    counts: Int[Array, " B"]
    states: Int[Array, " B"]
    top_ids: Int[Array, "B T k"] | None
    top_logprobs: Float[Array, "B T k"] | None
    alive: Bool[Array, ""]
    turned: Bool[Array, ""]
    steps: Int[Array, ""]


@struct.dataclass
class Rows:
    """What the host says of each slot before a burst; arrays of [B].

    Attributes:
      lengths: int32, tokens in the slot.
      budget: int32, tokens that the row may still sample in this turn; 0: it does not sample.
      drawn: int32, draws that its key has made.
      keys: uint32 [B, 2], key data.
      states: int32, where the row stands in the grammar.
      waiting: bool, whether tokens wait to be fed to it.
    """

    lengths: Array
    budget: Array
    drawn: Array
    keys: Array
    states: Array
    waiting: Array

    @classmethod
    def empty(cls, rows: int) -> Rows:
        lengths, budget, drawn, states = (np.zeros(rows, np.int32) for _ in range(4))
        return cls(
            lengths, budget, drawn, np.zeros((rows, 2), np.uint32), states, np.zeros(rows, bool)
        )


def start(cfg: DecoderConfig, shape: Shape, mesh: Mesh | None = None) -> Slots:
    """Empty slots; on a mesh, rows lie over (data, fsdp) and heads over tensor."""
    return _starter(cfg, shape, None if mesh is None or mesh.size == 1 else mesh)()


@functools.cache
def _starter(cfg: DecoderConfig, shape: Shape, mesh: Mesh | None):
    """The compiled program that makes them: kept, as compiling it takes as long as sampling
    thousands of tokens.
    """

    def empty() -> Slots:
        kv = functools.partial(
            empty_kv,
            shape.rows,
            cfg.num_kv_heads,
            shape.length,
            cfg.head_width,
            jnp.dtype(cfg.dtype),
        )
        layers = tuple(kv().rounded() if shape.int8_cache else kv() for _ in range(cfg.num_layers))
        return Slots(layers, jnp.zeros((shape.rows, cfg.vocab_size), jnp.float32))

    if mesh is None:
        return jax.jit(empty)
    return jax.jit(
        empty, out_shardings=jax.tree.map(lambda x: slot_sharding(mesh, x), jax.eval_shape(empty))
    )


def slot_sharding(mesh: Mesh, x):
    """Where one array of `Slots` lies."""
    return sharding.rows_sharding(mesh, x.shape, heads=1 if x.ndim == 4 else None)


@functools.partial(jax.jit, static_argnames=("cfg",))
def _apart(cfg: DecoderConfig, weights):
    return unstacked(cfg, weights)


def arranged(cfg: DecoderConfig, shape: Shape, weights):
    """The weights as the engine's programs read them: each layer's apart where there is room for a
    copy.
    """
    return _apart(cfg, weights) if shape.copies else weights


# -- the shared prefix -----------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("cfg",))
def _prefix_piece(cfg: DecoderConfig, weights, past, tokens, begin, size) -> Past:
    length = tokens.shape[1]
    present = (jnp.arange(length) < size)[None]
    positions = begin + jnp.arange(length)[None]
    _, layers = extend(
        cfg, weights, tokens, positions, causal_mask(present), past, at=jnp.zeros((1, 1), jnp.int32)
    )
    return Past(layers, present, positions)


def encode_prefix(cfg: DecoderConfig, weights, ids) -> tuple[Past, ...]:
    """The stretches that all rows share: none for no tokens, else one for each `CHUNK` of them."""
    past: tuple[Past, ...] = ()
    for begin in range(0, len(ids), CHUNK):
        piece = ids[begin : begin + CHUNK]
        tokens = np.zeros((1, -(-len(piece) // ROUND) * ROUND), np.int32)
        tokens[0, : len(piece)] = piece
        past = (
            *past,
            _prefix_piece(cfg, weights, past, tokens, np.int32(begin), np.int32(len(piece))),
        )
    return past


def _prefix_length(prefix: tuple[Past, ...]):
    return (
        sum(jnp.sum(part.visible[0], dtype=jnp.int32) for part in prefix)
        if prefix
        else jnp.int32(0)
    )


def _slot_past(layers, lengths, size: int, first) -> Past:
    """The first `size` slots of each row."""
    index = jnp.arange(size, dtype=jnp.int32)[None]
    return Past(tuple(kv.first(size) for kv in layers), index < lengths[:, None], first + index)


def _write(shape: Shape, layers, fresh, at) -> tuple[KV, ...]:
    """The slots with `fresh` at each row's own end."""
    write = KV.write if shape.copies else KV.placed
    return tuple(write(held, new, at) for held, new in zip(layers, fresh, strict=True))


def _in_bucket(shape: Shape, longest, run):
    """`run(size)` for the smallest bucket of at least `longest` slots."""
    number = sum(jnp.int32(longest > size) for size in shape.buckets[:-1])
    return jax.lax.switch(number, [functools.partial(run, size) for size in shape.buckets])


# -- given tokens ----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("cfg", "shape"), donate_argnames=("slots",))
def feed(
    cfg: DecoderConfig,
    shape: Shape,
    weights,
    prefix: tuple[Past, ...],
    slots: Slots,
    rows: Int[Array, " R"],
    starts: Int[Array, " R"],
    tokens: Int[Array, "R C"],
    lengths: Int[Array, " R"],
) -> Slots:
    """Appends `lengths[r]` tokens to row `rows[r]`, which holds `starts[r]`.

    Rows must differ, and be 0 .. B-1 in order if R = B. A row with length 0 keeps what it holds:
    what is written lies beyond.
    """
    whole = len(rows) == shape.rows
    layers = slots.layers if whole else jax.tree.map(lambda x: x[rows], slots.layers)
    first = _prefix_length(prefix)
    present = jnp.arange(shape.feed_tokens, dtype=jnp.int32)[None] < lengths[:, None]
    positions = (first + starts)[:, None] + jnp.arange(shape.feed_tokens, dtype=jnp.int32)[None]
    last = jnp.maximum(lengths - 1, 0)[:, None]

    def run(size):
        past = (*prefix, _slot_past(layers, starts, size, first))
        logits, fresh = extend(cfg, weights, tokens, positions, causal_mask(present), past, at=last)
        return logits[:, 0], fresh

    logits, fresh = _in_bucket(shape, jnp.max(starts), run)
    if shape.int8_cache:
        fresh = tuple(kv.rounded() for kv in fresh)
    fed = lengths > 0
    if whole:
        written = _write(shape, slots.layers, fresh, starts)
        return Slots(written, jnp.where(fed[:, None], logits, slots.logits))

    def write(r, held: Slots) -> Slots:
        def place(x, new):
            return jax.lax.dynamic_update_slice(
                x, jax.lax.dynamic_slice_in_dim(new, r, 1), (rows[r], 0, starts[r], 0)
            )

        layers = jax.tree.map(place, held.layers, fresh)
        row = jnp.where(fed[r], logits[r], held.logits[rows[r]])
        return Slots(
            layers, jax.lax.dynamic_update_slice_in_dim(held.logits, row[None], rows[r], 0)
        )

    return jax.lax.fori_loop(0, len(rows), write, slots)


# -- sampled tokens --------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("cfg", "shape", "how"), donate_argnames=("slots",))
def burst(
    cfg: DecoderConfig,
    shape: Shape,
    how: Sampling,
    weights,
    prefix: tuple[Past, ...],
    slots: Slots,
    rows: Rows,
    stop_ids: Int[Array, " n"],
    grammar: Int[Array, "states V"] | None = None,
) -> tuple[Slots, Sampled]:
    """Samples up to T tokens in each row with a budget, until it writes a stop token (which is part
    of the output).

    Args:
      grammar: the next state for each state and token, negative where the token is not allowed;
        None allows all.
    """
    batch, length = shape.rows, shape.burst
    first = _prefix_length(prefix)
    draws = sampling.draw(jax.random.wrap_key_data(rows.keys), rows.drawn, length)
    starting = rows.budget > 0
    patience = jnp.minimum(shape.patience, jnp.sum(starting) - 1)
    columns = jnp.arange(length, dtype=jnp.int32)[None]
    positions = (first + rows.lengths)[:, None] + columns  # [B, T]
    dtype = jnp.dtype(cfg.dtype)

    def run(size):
        past = _slot_past(slots.layers, rows.lengths, size, first)
        seen, where, begin = jnp.zeros((1, 0), bool), positions[:, :0], 0
        room = empty_kv(batch, cfg.num_kv_heads, length, cfg.head_width, dtype)
        layers = (room,) * cfg.num_layers
        if shape.copies:  # the burst's own stretch begins with the slots
            layers = tuple(
                jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=2), kv.plain(dtype), room)
                for kv in past.layers
            )
            seen, begin = past.visible, size
            where = jnp.broadcast_to(past.positions, (batch, size))
        earlier = prefix if shape.copies else (*prefix, past)
        where = jnp.concatenate([where, positions], axis=1)

        def going(carry):
            step, active, *_ = carry
            return (step < length) & (jnp.sum(starting & ~active) <= patience)

        def body(carry):
            step, active, logits, layers, out = carry
            allowed = None if grammar is None else grammar[out.states] >= 0
            token, logprob = sampling.sample(logits, draws[:, step], how, allowed)
            note = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=step, axis=1)
            tops = (None, None)
            if how.top_logprobs:
                tops = sampling.top_logprobs(logits, how.top_logprobs)
                tops = tuple(
                    note(x, new[:, None])
                    for x, new in zip((out.top_ids, out.top_logprobs), tops, strict=True)
                )
            states = out.states
            if grammar is not None:
                states = jnp.where(active, jnp.maximum(grammar[states, token], 0), states)
            counts = out.counts + active
            out = out.replace(
                tokens=note(out.tokens, token[:, None]),
                logprobs=note(out.logprobs, logprob[:, None]),
                counts=counts,
                states=states,
                top_ids=tops[0],
                top_logprobs=tops[1],
                steps=step + 1,
            )
            now = Burst(layers, begin + step, where)
            at = jax.lax.dynamic_slice_in_dim(positions, step, 1, axis=1)
            mask = jnp.concatenate(
                [seen, jnp.broadcast_to(columns <= step, (len(seen), length))], axis=1
            )[:, None]
            after, layers = extend(cfg, weights, token[:, None], at, mask, earlier, burst=now)
            logits = jnp.where(active[:, None], after[:, 0], logits)
            active = (
                active & (counts < rows.budget) & ~jnp.any(token[:, None] == stop_ids[None], axis=1)
            )
            return step + 1, active, logits, layers, out

        k = how.top_logprobs
        out = Sampled(
            tokens=jnp.zeros((batch, length), jnp.int32),
            logprobs=jnp.zeros((batch, length), jnp.float32),
            counts=jnp.zeros((batch,), jnp.int32),
            states=rows.states,
            top_ids=jnp.zeros((batch, length, k), jnp.int32) if k else None,
            top_logprobs=jnp.zeros((batch, length, k), jnp.float32) if k else None,
            alive=jnp.any(starting | rows.waiting),
            turned=jnp.bool_(False),
            steps=jnp.int32(0),
        )
        _, active, logits, layers, out = jax.lax.while_loop(
            going, body, (jnp.int32(0), starting, slots.logits, layers, out)
        )
        layers = jax.tree.map(lambda x: x[:, :, begin:], layers)
        return (
            logits,
            layers,
            out.replace(turned=jnp.any(starting & ~active) | jnp.any(rows.waiting)),
        )

    logits, made, out = _in_bucket(shape, jnp.max(rows.lengths), run)
    if shape.int8_cache:
        made = tuple(kv.rounded() for kv in made)
    return Slots(_write(shape, slots.layers, made, rows.lengths), logits), out
