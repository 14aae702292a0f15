"""Lanes: sets of slots on the device, each with a queue of conversations that move through them.

While the device works on one lane, the host reads the turns of another: on a CPU each core has a
lane and a thread of its own, or all cores share the products of a large model's only lane;
elsewhere one thread keeps the lanes' programs queued. Which programs are called, and how often,
follows from numbers that the device returns to all processes alike: otherwise one process would
wait in a collective for another that never enters it.

A lane with a journal writes down what each call sampled. All else follows from that: after a kill
the host goes through the journal once more, and the device repeats the calls since the oldest
conversation began that has not ended. So no token is drawn twice, and the last bits of the
others, which depend on what is computed side by side, are those of a run that was not killed.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.kv_cache import Cache
from subtransfer.rollout import engine
from subtransfer.rollout.engine import RowState, Shape
from subtransfer.rollout.sampling import Sampling
from subtransfer.rollout.serving import SampledTurn, ServedConversation, ServingStats
from subtransfer.runtime import distributed, preemption, sharding
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.progress import moved
from subtransfer.store.journal import Journal

# Rows of a lane on a CPU: more do not fit its caches and make every token slower.
CPU_ROWS = 64
# Dispatches after which several processes ask each other whether one has to leave.
ASK_EVERY = 32


@dataclasses.dataclass(frozen=True)
class LaneLayout:
    """How slots are laid out.

    Attributes:
      lanes: how many there are.
      shape: of each lane.
      threads: of the host, that drive them.
    """

    lanes: int
    shape: Shape
    threads: int


def layout(
    slots: int,
    room: int,
    prefill_tokens: int,
    mesh: Mesh | None,
    *,
    large: bool = False,
    int8_cache: bool = False,
    lanes: int = 0,
) -> LaneLayout:
    """Chooses the layout for at most `slots` conversations at a time (of all processes together).

    Args:
      slots: the most conversations at a time.
      room: tokens that a conversation may have beyond the shared prefix.
      prefill_tokens: the longest piece that will be fed at once.
      mesh: the devices; None is one.
      large: the model is (`DecoderConfig.is_large`); a small one has a lane a core on a CPU.
      int8_cache: keys and values are kept as int8.
      lanes: 0 chooses by device and model.

    Raises:
      UserError: the processes cannot share the rows evenly.
    """
    # None where there is nothing to divide over.
    divided = None if mesh is None or mesh.size == 1 else mesh
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    one_cpu = divided is None and platform == "cpu"
    threads = _usable_cores() if one_cpu else 1
    if not lanes:
        # Two at least of a small model: the device works on one while the host reads the other.
        # All cores share the products of a large one: no cache holds its weights (80 MB in float32
        # at least), and every further lane would read them from memory again.
        lanes = 1 if one_cpu and large else max(threads, 2)
    rows = -(-slots // lanes)
    if one_cpu:
        rows = min(rows, CPU_ROWS)
    multiple = 1 if divided is None else divided.shape["data"] * divided.shape["fsdp"]
    if multiple % jax.process_count():
        raise UserError(
            f"{jax.process_count()} processes cannot share the rows of a mesh with data x fsdp = "
            f"{multiple}: choose a multiple of their number."
        )
    # A row is whole on one device, so each gets equally many.
    rows = -(-rows // multiple) * multiple
    # Rows were rounded up, so that fewer lanes may be enough.
    lanes = max(min(lanes, -(-slots // rows)), 1)
    shape = Shape(
        rows=rows,
        room=room,
        # Sharded slots are served where they lie; elsewhere few rows wait at a time.
        prefill_rows=min(rows, 8) if divided is None else rows,
        prefill_tokens=min(-(-prefill_tokens // 8) * 8, engine.CHUNK),
        patience=rows // 8,
        int8_cache=int8_cache,
        copies=platform == "cpu",
    )
    return LaneLayout(lanes, shape, min(threads, lanes))


def _usable_cores() -> int:
    # A container's or a batch system's share of the cores, where the system tells.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass
class Programs:
    """The engine's programs with all that stays the same bound.

    Across processes, arrays of rows become global ones.
    """

    cfg: DecoderConfig
    shape: Shape
    how: Sampling
    weights: object
    prefix: tuple[Cache, ...]
    mesh: Mesh | None
    stop_ids: np.ndarray
    grammar: jax.Array | None

    @property
    def rows(self) -> int:
        """Rows of this process."""
        return self.shape.rows // jax.process_count()

    def start(self) -> engine.Slots:
        """Empty slots."""
        return engine.start(self.cfg, self.shape, self.mesh)

    def prefill(self, slots, rows, starts, tokens, lengths) -> engine.Slots:
        """`engine.prefill` of this process's rows."""
        if len(rows) == self.rows:
            # All of them, in place: then `rows` counts over all processes.
            rows = np.arange(self.shape.rows, dtype=np.int32)
        else:
            rows = np.asarray(rows, np.int32)
        given = (self._globally(x) for x in (starts, tokens, lengths))
        with sharding.using(self.mesh):
            return engine.prefill(
                self.cfg, self.shape, self.weights, self.prefix, slots, rows, *given
            )

    def decode(
        self, slots, rows: RowState, steps: int | None = None
    ) -> tuple[engine.Slots, engine.DecodeResult]:
        """`engine.decode` of this process's rows.

        Args:
          slots: they are given away.
          rows: the state of each slot.
          steps: of the call, where it repeats an earlier one; None: until enough rows have ended.
        """
        span = (0, self.shape.decode_steps) if steps is None else (steps, steps)
        state = jax.tree.map(self._globally, rows)
        with sharding.using(self.mesh):
            return engine.decode(
                self.cfg,
                self.shape,
                self.how,
                self.weights,
                self.prefix,
                slots,
                state,
                self.stop_ids,
                self.grammar,
                np.asarray(span, np.int32),
            )

    def fetch(self, out: engine.DecodeResult) -> engine.DecodeResult:
        """Brings results to the host, this process's rows only."""
        if jax.process_count() == 1:
            return jax.device_get(out)

        def local(x):
            if x.ndim == 0:
                return np.asarray(jax.device_get(x))
            return np.asarray(
                multihost_utils.global_array_to_host_local_array(x, self.mesh, x.sharding.spec)
            )

        return jax.tree.map(local, out)

    def _globally(self, x):
        """This process's rows of an array as its part of the global array."""
        if jax.process_count() == 1:
            return x
        assert self.mesh is not None, "several processes have a mesh"
        shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding.rows_sharding(self.mesh, shape), x)


@dataclasses.dataclass
class LaneOptions:
    """What all lanes share.

    Attributes:
      programs: what they call.
      skip: tokens of the shared prefix, which are not fed.
      max_new_tokens: tokens that a turn may have.
      stop_ids: tokens that end a turn.
      done: called with the number of conversations that ended.
      lock: held while a conversation reads a turn and while `done` runs.
    """

    programs: Programs
    skip: int
    max_new_tokens: int
    stop_ids: frozenset[int]
    done: Callable[[int], None]
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


# What the host asks of the device: `Programs.prefill` or `Programs.decode`, with the arguments
# after the slots.
_Call = tuple[str, tuple[Any, ...]]


class _Retold:
    """Takes the place of `Programs` while a journal is gone through: it notes what would be called.

    Attributes:
      result: what the next `decode` sampled.
      calls: in order, those that may still have to be repeated.
      count: of all calls so far.
    """

    def __init__(self, programs: Programs):
        self.shape, self.rows = programs.shape, programs.rows
        self.calls: collections.deque[_Call] = collections.deque()
        self.count = 0
        self.result: engine.DecodeResult | None = None

    def _note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))
        self.count += 1

    def prefill(self, slots, *arguments):
        self._note("prefill", *arguments)
        return slots

    def decode(self, slots, rows: RowState):
        assert self.result is not None
        self._note("decode", rows, int(self.result.steps), self.result)
        return slots, self.result

    def fetch(self, out: engine.DecodeResult) -> engine.DecodeResult:
        return out

    def forget_before(self, number: int) -> None:
        """Drops the calls before the one of this number."""
        while self.calls and self.count - len(self.calls) < number:
            self.calls.popleft()


class Lane:
    """A set of slots and the conversations in them."""

    def __init__(
        self,
        options: LaneOptions,
        conversations: Iterable[tuple[ServedConversation, np.ndarray]],
        journal: Journal | None = None,
    ):
        """Makes empty slots.

        Args:
          options: what all lanes share.
          conversations: they wait with the data of their keys, uint32 [2].
          journal: of this lane, which the lane closes, or None.
        """
        self.options = options
        self.programs: Programs | _Retold = options.programs
        self.journal = journal
        self.queue = collections.deque(conversations)
        self.slots = options.programs.start()
        rows = options.programs.rows
        self.rows = RowState.empty(rows)
        self.occupants: list[ServedConversation | None] = [None] * rows
        self.turns = [SampledTurn() for _ in range(rows)]
        # Row -> tokens to be fed: a prompt's rest, or a reply.
        self.pending: dict[int, list[int]] = {}
        # Whether some process has tokens to feed: then all of them call the program.
        self.feeding = True
        self.out: engine.DecodeResult | None = None
        # Of each row: the call before which its conversation came, and what its slot holds.
        self._since = [0] * rows
        self._held: list[list[int]] = [[] for _ in range(rows)]
        self._collected = 0
        # Whether an earlier attempt is gone on with, and how many conversations it had ended.
        self.went_on, self.resumed = False, 0
        self.stats = ServingStats()
        self._idle_since = self._begin = time.perf_counter()

    def run(self) -> None:
        """Serves until nothing is left."""
        self.dispatch()
        while self.collect():
            self.dispatch()

    def close(self) -> None:
        """Puts the journal onto the disk."""
        if self.journal:
            self.journal.close()

    def resume(self) -> bool:
        """Goes on where the journal ends; False when nothing is left to do.

        To be called before anything else, by all processes.

        Raises:
          preemption.Preempted: a notice has come.
        """
        if self.journal is None:
            return True
        # A process may have been killed one call before another.
        self.journal.cut(distributed.least(len(self.journal.records)))
        if not self.journal.records:
            return True
        self.went_on = True
        retold = self.programs = _Retold(self.options.programs)
        going = True
        for record in self.journal.records:
            if jax.process_count() == 1:
                preemption.check()
            if record == _FED_AGAIN:
                self._feed_again()
                self._since = [retold.count] * len(self._since)
                continue
            retold.result = _unpacked(record, retold.shape)
            self.dispatch()
            going = self._advance(retold.result)
            retold.forget_before(self._oldest(retold.count))
        self.journal.records.clear()
        self.programs = self.options.programs
        if going:
            self._repeat(retold)
        # What was done before is not what this attempt costs.
        self.resumed, self.stats = self.stats.ended, ServingStats()
        self._idle_since = self._begin = time.perf_counter()
        return going

    def _oldest(self, now: int) -> int:
        """The first call that a conversation under way rests on; `now` if there is none."""
        running = [now]
        for row, conversation in enumerate(self.occupants):
            if conversation is not None:
                running.append(self._since[row])
        return min(running)

    def _repeat(self, retold: _Retold) -> None:
        """Makes the slots what they were when the journal ended.

        Rows whose conversations have ended hold something else, which no other row reads.
        """
        retold.forget_before(distributed.least(self._oldest(retold.count)))
        programs, differ = self.options.programs, False
        first = retold.count - len(retold.calls)
        for number, (name, arguments) in enumerate(retold.calls, first):
            if name == "prefill":
                self.slots = programs.prefill(self.slots, *arguments)
                continue
            state, steps, told = arguments
            self.slots, out = programs.decode(self.slots, state, steps)
            found = programs.fetch(out)
            for row, conversation in enumerate(self.occupants):
                count = told.counts[row]
                if conversation is not None and self._since[row] <= number and count:
                    again = found.tokens[row, :count]
                    differ |= not np.array_equal(again, told.tokens[row, :count])
        if distributed.anywhere(differ):
            # Another kind of device rounds differently, and once in many draws that decides.
            assert self.journal is not None
            self.journal.append(_FED_AGAIN)
            self._feed_again()

    def _feed_again(self) -> None:
        """Lets every slot be filled anew with the tokens that it holds."""
        for row, conversation in enumerate(self.occupants):
            if conversation is not None:
                self.pending[row] = [*self._held[row], *self.pending.get(row, [])]
                self._held[row] = []
                self.rows.lengths[row] = 0
        self.feeding = True

    def dispatch(self) -> None:
        """Fills free slots, feeds what waits, starts sampling."""
        self._refill()
        if self.feeding:
            self._feed()
        for row, conversation in enumerate(self.occupants):
            waiting = row in self.pending
            left = self.options.max_new_tokens - len(self.turns[row].ids)
            self.rows.waiting[row] = waiting
            self.rows.budget[row] = left if conversation is not None and not waiting else 0
        self.stats.host_s += time.perf_counter() - self._idle_since
        # Copies, as the device may read the host's arrays after this call has returned.
        state = jax.tree.map(np.copy, self.rows)
        self.slots, self.out = self.programs.decode(self.slots, state)
        self.stats.dispatches += 1

    def collect(self) -> bool:
        """Waits for the sampled tokens and reads them; False when no process has anything left.

        Raises:
          preemption.Preempted: a notice has come; the journal has all that was sampled.
        """
        assert self.out is not None, "`dispatch` comes first"
        out = self.programs.fetch(self.out)
        moved()
        # The device says the same to all processes, so all stop together.
        if out.alive and self.journal:
            self.journal.append(_packed(out))
        if self._leaving():
            raise preemption.Preempted
        return self._advance(out)

    def _leaving(self) -> bool:
        """Whether a notice has come to any process.

        One of several must not leave the others waiting for it, so all ask at the same calls.
        """
        if jax.process_count() == 1:
            return preemption.noticed()
        self._collected += 1
        return self._collected % ASK_EVERY == 0 and distributed.anywhere(preemption.noticed())

    def _advance(self, out: engine.DecodeResult) -> bool:
        """Reads sampled tokens; False when no process has anything left."""
        self._idle_since = time.perf_counter()
        self.stats.lane_s = self._idle_since - self._begin
        if not out.alive:
            return False
        steps = int(out.steps)
        self.stats.slot_steps += steps * len(self.occupants)
        occupied = len(self.occupants) - self.occupants.count(None)
        self.stats.occupied_steps += steps * occupied
        self.stats.tokens += int(out.counts.sum())
        # Also computed over all processes: whether one of them has something to feed.
        self.feeding = bool(out.turned)
        ended = 0
        for row in np.flatnonzero(out.counts):
            ended += self._read(int(row), out)
        self.stats.ended += ended
        if ended:
            with self.options.lock:
                self.options.done(ended)
        # Alone, a process knows that nothing is left; among several, the next call of `decode`
        # says so to all.
        if jax.process_count() > 1 or self.queue:
            return True
        return any(conversation is not None for conversation in self.occupants)

    def _refill(self) -> None:
        """Moves conversations from the queue into free slots."""
        for row, occupant in enumerate(self.occupants):
            if occupant is not None:
                continue
            if not self.queue:
                return
            conversation, key = self.queue.popleft()
            self.occupants[row] = conversation
            self.rows.keys[row] = key
            self.rows.lengths[row] = self.rows.drawn[row] = 0
            self._held[row] = []
            if isinstance(self.programs, _Retold):
                self._since[row] = self.programs.count
            self.pending[row] = list(conversation.prompt[self.options.skip :])

    def _feed(self) -> None:
        """Feeds one piece of what waits in each row; few waiting rows are computed alone."""
        programs = self.programs
        shape, width = programs.shape, programs.shape.prefill_tokens
        waiting = list(self.pending)
        if shape.prefill_rows < shape.rows:
            size = shape.prefill_rows
            groups = []
            for begin in range(0, len(waiting), size):
                groups.append(waiting[begin : begin + size])
        else:
            size = programs.rows
            groups = [waiting]
        if size == programs.rows:
            # In place, and always once: other processes count on it.
            groups = [list(range(size))]
        for group in groups:
            # A call has a fixed number of rows: others fill it up, with no tokens.
            others = (row for row in range(len(self.occupants)) if row not in group)
            rows = [*group, *itertools.islice(others, size - len(group))]
            tokens, lengths = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
            for i, row in enumerate(rows):
                piece = self.pending.get(row, [])[:width] if row in group else []
                tokens[i, : len(piece)], lengths[i] = piece, len(piece)
            starts = self.rows.lengths[rows]
            self.slots = programs.prefill(self.slots, rows, starts, tokens, lengths)
            self.stats.dispatches += 1
            self.stats.fed_tokens += int(lengths.sum())
            for i, row in enumerate(rows):
                if lengths[i]:
                    self._held[row] += tokens[i, : lengths[i]].tolist()
                    self.rows.lengths[row] += lengths[i]
                    self.pending[row] = self.pending[row][width:]
                    if not self.pending[row]:
                        del self.pending[row]

    def _read(self, row: int, out: engine.DecodeResult) -> bool:
        """Adds what a row sampled to its turn; True if its conversation is over."""
        options = self.options
        count, turn = int(out.counts[row]), self.turns[row]
        sampled = out.tokens[row, :count].tolist()
        turn.ids += sampled
        turn.logprobs += out.logprobs[row, :count].tolist()
        if out.top_ids is not None and out.top_logprobs is not None:
            turn.top_ids += out.top_ids[row, :count].tolist()
            turn.top_logprobs += out.top_logprobs[row, :count].tolist()
        self._held[row] += sampled
        self.rows.lengths[row] += count
        self.rows.drawn[row] += count
        self.rows.states[row] = out.states[row]
        # Only the last token can be one: `decode` ends a row with it.
        turn.stopped = turn.ids[-1] in options.stop_ids
        if not turn.stopped and len(turn.ids) < options.max_new_tokens:
            return False
        self.turns[row] = SampledTurn()
        self.rows.states[row] = 0
        conversation = self.occupants[row]
        assert conversation is not None, "only occupied rows sample"
        with options.lock:  # tokenizers and settings need not stand several threads
            reply = conversation.take(turn)
        if reply is None:
            self.occupants[row] = None
            return True
        room = self.programs.shape.room
        # Refused before it is fed: what does not fit would overwrite the slot's end.
        if self.rows.lengths[row] + len(reply) + options.max_new_tokens > room:
            raise UserError(
                f"A reply of {len(reply)} tokens does not fit: a conversation has room for {room} "
                "tokens beyond the shared prompt."
            )
        self.pending[row] = list(reply)
        return False


# -- the journal's records

_FED_AGAIN = b"fed again"  # every slot was filled anew
_HEAD = struct.Struct("<BII")  # whether a row turned, steps, rows that sampled


def _packed(out: engine.DecodeResult) -> bytes:
    """What a call sampled, as a record."""
    rows = np.flatnonzero(out.counts)
    # The sampled tokens of these rows, one after the other.
    there = np.arange(out.tokens.shape[1]) < np.asarray(out.counts)[rows, None]
    return b"".join(
        (
            _HEAD.pack(bool(out.turned), int(out.steps), len(rows)),
            rows.astype("<i4").tobytes(),
            np.asarray(out.counts)[rows].astype("<i4").tobytes(),
            np.asarray(out.states)[rows].astype("<i4").tobytes(),
            np.asarray(out.tokens)[rows][there].astype("<i4").tobytes(),
            np.asarray(out.logprobs)[rows][there].astype("<f4").tobytes(),
        )
    )


def _unpacked(record: bytes, shape: Shape) -> engine.DecodeResult:
    """What a call sampled, of a record of `_packed`; rows that sampled nothing hold zeros."""
    turned, steps, count = _HEAD.unpack_from(record)
    rows, counts, states = np.frombuffer(record, "<i4", 3 * count, _HEAD.size).reshape(3, count)
    at, total = _HEAD.size + 12 * count, int(counts.sum())
    size = shape.rows // jax.process_count(), shape.decode_steps
    sampled: dict[str, Any] = {
        "tokens": np.zeros(size, np.int32),
        "logprobs": np.zeros(size, np.float32),
        "counts": np.zeros(size[0], np.int32),
        "states": np.zeros(size[0], np.int32),
        "alive": np.bool_(True),
        "turned": np.bool_(turned),
        "steps": np.int32(steps),
    }
    sampled["counts"][rows], sampled["states"][rows] = counts, states
    there = np.arange(size[1]) < counts[:, None]
    for name, dtype, begin in (("tokens", "<i4", at), ("logprobs", "<f4", at + 4 * total)):
        values = np.zeros(there.shape, sampled[name].dtype)
        values[there] = np.frombuffer(record, dtype, total, begin)
        sampled[name][rows] = values
    return engine.DecodeResult(**sampled, top_ids=None, top_logprobs=None)
