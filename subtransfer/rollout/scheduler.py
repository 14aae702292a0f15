"""The host side of the engine: conversations move through slots until none is left.

A `Conversation` says what is fed to it: first its prompt, then, whenever it ends a turn, a reply or
nothing more. Slots lie in lanes. While the device works on one lane, the host reads the turns of
another: on a CPU each core has a lane and a thread of its own; elsewhere one thread keeps the
lanes' programs queued. Every process serves its own conversations in its own rows; which programs
are called, and how often, follows from numbers that the device returns to all of them alike.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from subtransfer.models.decoder import DecoderConfig
from subtransfer.rollout import engine, sampling
from subtransfer.rollout.engine import Rows, Shape
from subtransfer.rollout.sampling import Sampling
from subtransfer.runtime import preemption, sharding
from subtransfer.runtime.errors import UserError

# Rows of a lane on a CPU: more do not fit its caches and make every token slower.
CPU_ROWS = 64


class Conversation(Protocol):
    """What moves through a slot.

    Attributes:
      index: unique; names its random draws.
      prompt: token ids, the shared prefix included.
    """

    index: int
    prompt: Sequence[int]

    def take(self, turn: Turn) -> Sequence[int] | None:
        """Reads a turn; returns the ids to feed back, or None at the end."""


@dataclasses.dataclass
class Turn:
    """A sampled turn: ids, their log-probs at temperature 1, whether it ended with a stop token and
    not at the limit; on request, the likeliest tokens' ids and log-probs at each step.
    """

    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    stopped: bool = False
    top_ids: list[list[int]] = dataclasses.field(default_factory=list)
    top_logprobs: list[list[float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Stats:
    """What a run of the scheduler cost.

    Attributes:
      tokens: sampled.
      slot_steps: decoding steps of all slots, occupied or not; occupied_steps: of slots that held a
        conversation.
      fed_tokens: given tokens.
      dispatches: programs called.
      host_s: seconds in which a lane's device waited for the host, summed over lanes; lane_s:
        seconds that lanes ran.
      wall_s: seconds.
    """

    tokens: int = 0
    slot_steps: int = 0
    occupied_steps: int = 0
    fed_tokens: int = 0
    dispatches: int = 0
    host_s: float = 0.0
    lane_s: float = 0.0
    wall_s: float = 0.0

    @property
    def occupancy(self) -> float:
        """Share of slots that held a conversation, over decoding steps."""
        return self.occupied_steps / max(self.slot_steps, 1)

    @property
    def utilisation(self) -> float:
        """Share of slots that made a token, over decoding steps."""
        return self.tokens / max(self.slot_steps, 1)

    @property
    def host_share(self) -> float:
        """Share of a lane's time in which its device waited for the host."""
        return self.host_s / max(self.lane_s, 1e-9)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How slots are laid out: `lanes` of one `shape` each, driven by `threads`."""

    lanes: int
    shape: Shape
    threads: int


def layout(
    slots: int,
    room: int,
    feed_tokens: int,
    mesh: Mesh | None,
    *,
    int8_cache: bool = False,
    lanes: int = 0,
) -> Layout:
    """The layout for at most `slots` conversations at a time (of all processes together).

    Args:
      room: tokens that a conversation may have beyond the shared prefix.
      feed_tokens: the longest piece that will be fed at once.
      lanes: 0 chooses by device.
    """
    alone = mesh is None or mesh.size == 1
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = cores if alone and platform == "cpu" else 1
    if not lanes:
        lanes = threads if threads > 1 else 2
    rows = -(-slots // lanes)
    if alone and platform == "cpu":
        rows = min(rows, CPU_ROWS)
    multiple = 1 if alone else mesh.shape["data"] * mesh.shape["fsdp"]
    if multiple % jax.process_count():
        raise UserError(
            f"{jax.process_count()} processes cannot share the rows of a mesh with data x fsdp = {multiple}: choose a multiple "
            "of their number."
        )
    rows = -(-rows // multiple) * multiple
    lanes = max(min(lanes, -(-slots // rows)), 1)
    shape = Shape(
        rows=rows,
        room=room,
        feed_rows=min(rows, 8) if alone else rows,
        feed_tokens=min(-(-feed_tokens // 8) * 8, engine.CHUNK),
        patience=rows // 8,
        int8_cache=int8_cache,
        copies=platform == "cpu",
    )
    return Layout(lanes, shape, min(threads, lanes))


def shared_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The longest beginning that all prompts share and none consists of."""
    low, high = min(prompts), max(prompts)
    size = next(
        (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b),
        min(len(low), len(high)),
    )
    return list(low[: min(size, min(map(len, prompts)) - 1)])


def serve(
    cfg: DecoderConfig,
    weights,
    conversations: Sequence[Conversation],
    how: Sampling,
    key: jax.Array,
    *,
    slots: int,
    max_new_tokens: int,
    more_tokens: int,
    feed_tokens: int,
    stop_ids: Sequence[int],
    grammar: np.ndarray | None = None,
    int8_cache: bool = False,
    lanes: int = 0,
    done: Callable[[int], None] = lambda conversations: None,
) -> Stats:
    """Serves conversations to their ends; a conversation's tokens depend on nothing but itself, the
    key and its index.

    With several processes, all call this with the same conversations; each serves those whose place
    in the list is its own number modulo their count, and leaves the others untouched.

    Args:
      how: how tokens are sampled.
      key: conversation i draws from `fold_in(key, i)`.
      slots: at most so many at a time, over all processes.
      max_new_tokens: tokens that a turn may have.
      more_tokens: tokens that a conversation may have beyond its prompt.
      feed_tokens: the most tokens that `take` returns.
      stop_ids: tokens that end a turn.
      grammar: see `engine.burst`; a turn starts in state 0.
      done: called with the number of conversations that ended (from any thread, one at a time).
    """
    begin = time.perf_counter()
    mesh = sharding.mesh_of(weights)
    prefix_ids = shared_prefix([c.prompt for c in conversations])
    rest = max(len(c.prompt) for c in conversations) - len(prefix_ids)
    plan = layout(
        slots, rest + more_tokens, max(rest, feed_tokens), mesh, int8_cache=int8_cache, lanes=lanes
    )
    weights = engine.arranged(cfg, plan.shape, weights)
    prefix = engine.encode_prefix(cfg, weights, prefix_ids)
    allowed = None if grammar is None else jnp.asarray(grammar)
    data = jax.random.key_data(
        sampling.row_keys(key, np.array([c.index for c in conversations], np.uint32))
    )
    keys = np.asarray(jax.device_get(data))
    mine = range(jax.process_index(), len(conversations), jax.process_count())
    common = _Common(
        call=_Calls(
            cfg,
            plan.shape,
            how,
            weights,
            prefix,
            mesh,
            np.asarray(list(stop_ids) or [-1], np.int32),
            allowed,
        ),
        skip=len(prefix_ids),
        max_new_tokens=max_new_tokens,
        stop_ids=frozenset(map(int, stop_ids)),
        done=done,
    )
    # Which lane serves which conversation is fixed: threads that race for them would change what is
    # computed side by side, and with it the last bits.
    every = [
        _Lane(common, [(conversations[i], keys[i]) for i in mine[n :: plan.lanes]])
        for n in range(plan.lanes)
    ]
    if plan.threads > 1:
        with ThreadPoolExecutor(plan.threads) as pool:
            list(pool.map(_Lane.run, every))
    else:
        _take_turns(every)
    stats = Stats(wall_s=time.perf_counter() - begin)
    for lane in every:
        for field in dataclasses.fields(Stats):
            setattr(stats, field.name, getattr(stats, field.name) + getattr(lane.stats, field.name))
    return stats


def _take_turns(lanes: Iterable[_Lane]) -> None:
    """One thread for all lanes: each is read only after the others' programs are queued."""
    going = list(lanes)
    for lane in going:
        lane.dispatch()
    while going:
        for lane in list(going):
            if lane.collect():
                lane.dispatch()
            else:
                going.remove(lane)


@dataclasses.dataclass
class _Calls:
    """The engine's programs with all that stays the same bound; arrays of rows become global ones
    across processes.
    """

    cfg: DecoderConfig
    shape: Shape
    how: Sampling
    weights: object
    prefix: object
    mesh: Mesh | None
    stop_ids: np.ndarray
    grammar: jax.Array | None

    @property
    def rows(self) -> int:
        """Rows of this process."""
        return self.shape.rows // jax.process_count()

    def _placed(self, x):
        if jax.process_count() == 1:
            return x
        placed = sharding.rows_sharding(self.mesh, (x.shape[0] * jax.process_count(), *x.shape[1:]))
        return jax.make_array_from_process_local_data(placed, x)

    def start(self):
        return engine.start(self.cfg, self.shape, self.mesh)

    def feed(self, slots, rows, starts, tokens, lengths):
        rows = (
            np.arange(self.shape.rows, dtype=np.int32)
            if len(rows) == self.rows
            else np.asarray(rows, np.int32)
        )
        starts, tokens, lengths = map(self._placed, (starts, tokens, lengths))
        with sharding.using(self.mesh):
            return engine.feed(
                self.cfg,
                self.shape,
                self.weights,
                self.prefix,
                slots,
                rows,
                starts,
                tokens,
                lengths,
            )

    def burst(self, slots, rows: Rows):
        placed = jax.tree.map(self._placed, rows)
        with sharding.using(self.mesh):
            return engine.burst(
                self.cfg,
                self.shape,
                self.how,
                self.weights,
                self.prefix,
                slots,
                placed,
                self.stop_ids,
                self.grammar,
            )

    def fetch(self, out: engine.Sampled) -> engine.Sampled:
        """A burst's results on the host, this process's rows only."""
        if jax.process_count() == 1:
            return jax.device_get(out)

        def local(x):
            if x.ndim == 0:
                return np.asarray(jax.device_get(x))
            return multihost_utils.global_array_to_host_local_array(x, self.mesh, x.sharding.spec)

        return jax.tree.map(lambda x: np.asarray(local(x)), out)


@dataclasses.dataclass
class _Common:
    """What all lanes share."""

    call: _Calls
    skip: int
    max_new_tokens: int
    stop_ids: frozenset[int]
    done: Callable[[int], None]
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class _Lane:
    """A set of slots and the conversations in them."""

    def __init__(self, common: _Common, conversations: Iterable[tuple[Conversation, np.ndarray]]):
        self.common = common
        self.queue = collections.deque(conversations)
        self.slots = common.call.start()
        rows = common.call.rows
        self.rows = Rows.empty(rows)
        self.held: list[Conversation | None] = [None] * rows
        self.turns = [Turn() for _ in range(rows)]
        self.pending: dict[int, list[int]] = {}  # row -> tokens to be fed
        self.feeding = True  # whether some process has tokens to feed
        self.out: engine.Sampled | None = None
        self.stats = Stats()
        self._idle_since = self._begin = time.perf_counter()

    def run(self) -> None:
        """Serves until nothing is left."""
        self.dispatch()
        while self.collect():
            self.dispatch()

    def dispatch(self) -> None:
        """Fills free slots, feeds what waits, starts a burst."""
        self._refill()
        if self.feeding:
            self._feed()
        for row, conversation in enumerate(self.held):
            self.rows.waiting[row] = row in self.pending
            busy = conversation is not None and row not in self.pending
            self.rows.budget[row] = (
                self.common.max_new_tokens - len(self.turns[row].ids) if busy else 0
            )
        self.stats.host_s += time.perf_counter() - self._idle_since
        # The device may read the host's arrays after this call has returned.
        self.slots, self.out = self.common.call.burst(self.slots, jax.tree.map(np.copy, self.rows))
        self.stats.dispatches += 1

    def collect(self) -> bool:
        """Waits for the burst and reads it; False when no process has anything left.

        Raises:
          preemption.Preempted: a notice has come. One of several processes must not leave the
            others waiting for it.
        """
        if jax.process_count() == 1:
            preemption.check()
        out = self.common.call.fetch(self.out)
        self._idle_since = time.perf_counter()
        self.stats.lane_s = self._idle_since - self._begin
        if not out.alive:
            return False
        steps = int(out.steps)
        self.stats.slot_steps += steps * len(self.held)
        self.stats.occupied_steps += steps * sum(c is not None for c in self.held)
        self.stats.tokens += int(out.counts.sum())
        self.feeding = bool(out.turned)
        ended = 0
        for row in np.flatnonzero(out.counts):
            ended += self._read(int(row), out)
        if ended:
            with self.common.lock:
                self.common.done(ended)
        # Alone, a process knows that nothing is left; among several, the next burst says so to all.
        return jax.process_count() > 1 or bool(self.queue) or any(c is not None for c in self.held)

    def _refill(self) -> None:
        for row, conversation in enumerate(self.held):
            if conversation is None:
                try:
                    self.held[row], self.rows.keys[row] = self.queue.popleft()
                except IndexError:
                    return
                self.rows.lengths[row] = self.rows.drawn[row] = 0
                self.pending[row] = list(self.held[row].prompt[self.common.skip :])

    def _feed(self) -> None:
        """One piece of what waits in each row; where few rows wait, only these are computed."""
        call, width = self.common.call, self.common.call.shape.feed_tokens
        waiting = list(self.pending)
        size = call.shape.feed_rows if call.shape.feed_rows < call.shape.rows else call.rows
        groups = [waiting[i : i + size] for i in range(0, len(waiting), size)]
        if size == call.rows:  # in place, and always once: other processes count on it
            groups = [list(range(size))]
        for group in groups:
            others = (r for r in range(len(self.held)) if r not in group)
            rows = [*group, *(next(others) for _ in range(size - len(group)))]
            tokens, lengths = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
            for i, row in enumerate(rows):
                piece = self.pending.get(row, [])[:width] if row in group else []
                tokens[i, : len(piece)], lengths[i] = piece, len(piece)
            self.slots = call.feed(self.slots, rows, self.rows.lengths[rows], tokens, lengths)
            self.stats.dispatches += 1
            self.stats.fed_tokens += int(lengths.sum())
            for i, row in enumerate(rows):
                if lengths[i]:
                    self.rows.lengths[row] += lengths[i]
                    self.pending[row] = self.pending[row][width:]
                    if not self.pending[row]:
                        del self.pending[row]

    def _read(self, row: int, out: engine.Sampled) -> bool:
        """Books what a row sampled; True if its conversation is over."""
        count, turn = int(out.counts[row]), self.turns[row]
        turn.ids += out.tokens[row, :count].tolist()
        turn.logprobs += out.logprobs[row, :count].tolist()
        if out.top_ids is not None:
            turn.top_ids += out.top_ids[row, :count].tolist()
            turn.top_logprobs += out.top_logprobs[row, :count].tolist()
        self.rows.lengths[row] += count
        self.rows.drawn[row] += count
        self.rows.states[row] = out.states[row]
        turn.stopped = turn.ids[-1] in self.common.stop_ids
        if not turn.stopped and len(turn.ids) < self.common.max_new_tokens:
            return False
        self.turns[row] = Turn()
        self.rows.states[row] = 0
        with self.common.lock:  # tokenizers and settings need not stand several threads
            reply = self.held[row].take(turn)
        if reply is not None:
            if (
                self.rows.lengths[row] + len(reply) + self.common.max_new_tokens
                > self.common.call.shape.room
            ):
                raise UserError(
                    f"A reply of {len(reply)} tokens does not fit: a conversation has room for {self.common.call.shape.room} "
                    "tokens beyond the shared prompt."
                )
            self.pending[row] = list(reply)
            return False
        self.held[row] = None
        return True
