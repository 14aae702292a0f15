"""The host side of the engine: conversations move through slots until none is left.

A `ServedConversation` says what is fed to it: first its prompt, then, whenever it ends a turn, a
reply or nothing more. Slots lie in lanes (`lanes.py`). Every process serves its own conversations
in its own rows.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from subtransfer.models.decoder import DecoderConfig
from subtransfer.rollout import engine, sampling
from subtransfer.rollout.lanes import Lane, LaneOptions, Programs, layout
from subtransfer.rollout.sampling import Sampling
from subtransfer.rollout.serving import ServedConversation, ServingStats, shared_prefix
from subtransfer.runtime import preemption, sharding
from subtransfer.runtime.progress import note
from subtransfer.store.journal import Journals


def serve(
    cfg: DecoderConfig,
    weights,
    conversations: Sequence[ServedConversation],
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
    journals: Journals | None = None,
) -> ServingStats:
    """Serves conversations to their ends.

    A conversation's tokens depend on nothing but itself, the key and its index. With several
    processes, all call this with the same conversations; each serves those whose place in the list
    is its own number modulo their count, and leaves the others untouched.

    Args:
      cfg: the decoder's geometry.
      weights: its weights, on their devices.
      conversations: one or more.
      how: how tokens are sampled.
      key: conversation i draws from `fold_in(key, i)`.
      slots: at most so many at a time, over all processes.
      max_new_tokens: tokens that a turn may have.
      more_tokens: tokens that a conversation may have beyond its prompt.
      feed_tokens: the most tokens that `take` returns.
      stop_ids: tokens that end a turn.
      grammar: see `engine.decode`; a turn starts in state 0.
      int8_cache: keys and values are kept as int8.
      lanes: sets of slots that take turns on the device; 0 chooses by device and model.
      done: called with the number of conversations that ended (from any thread, one at a time).
      journals: where it is written down what is sampled, so that the same call goes on after a
        kill; None is nowhere.

    Raises:
      UserError: a conversation does not fit its slot.
      preemption.Preempted: a notice has come.
    """
    begin = time.perf_counter()
    mesh = sharding.mesh_of(weights)
    prompts = [conversation.prompt for conversation in conversations]
    # What all prompts begin with, such as the system message, is computed once for all rows.
    prefix_ids = shared_prefix(prompts)
    rest = max(map(len, prompts)) - len(prefix_ids)
    longest = max(rest, feed_tokens)
    plan = layout(
        slots,
        rest + more_tokens,
        longest,
        mesh,
        large=cfg.is_large,
        int8_cache=int8_cache,
        lanes=lanes,
    )
    weights = engine.arranged(cfg, plan.shape, weights)
    indices = jnp.asarray(np.array([c.index for c in conversations], np.uint32))
    keys = np.asarray(jax.device_get(jax.random.key_data(sampling.row_keys(key, indices))))
    programs = Programs(
        cfg,
        plan.shape,
        how,
        weights,
        prefix=engine.encode_prefix(cfg, weights, prefix_ids),
        mesh=mesh,
        # No token has the id -1: the program needs at least one.
        stop_ids=np.asarray(list(stop_ids) or [-1], np.int32),
        grammar=None if grammar is None else jnp.asarray(grammar),
    )
    options = LaneOptions(
        programs,
        skip=len(prefix_ids),
        max_new_tokens=max_new_tokens,
        stop_ids=frozenset(map(int, stop_ids)),
        done=done,
    )
    # Dealt out in turns, so that no process has more than one conversation more than another.
    mine = range(jax.process_index(), len(conversations), jax.process_count())
    every = []
    for number in range(plan.lanes):
        # Which lane serves which conversation is fixed: threads that race for them would change
        # what is computed side by side, and with it the last bits.
        queue = [(conversations[i], keys[i]) for i in mine[number :: plan.lanes]]
        journal = None
        if journals:
            rests_on = {
                "prompts": zlib.crc32(repr(prompts).encode()),
                "lanes": plan.lanes,
                "shape": dataclasses.asdict(plan.shape),
                "mesh": None if mesh is None else dict(mesh.shape),
                "processes": jax.process_count(),
            }
            journal = journals.open(f"{jax.process_index()}-{number}", rests_on)
        every.append(Lane(options, queue, journal))
    try:
        # A notice is looked for where the journals are whole.
        with preemption.deferred():
            _drive(every, plan.threads, journals, len(mine))
    finally:
        for lane in every:
            lane.close()
    stats = ServingStats(wall_s=time.perf_counter() - begin)
    for lane in every:
        stats.add(lane.stats)
    return stats


def _drive(lanes: Sequence[Lane], threads: int, journals: Journals | None, count: int) -> None:
    """Drives lanes to their ends, from where their journals end."""
    with ThreadPoolExecutor(threads) as pool:
        each = pool.map if threads > 1 else map
        going = list(each(Lane.resume, lanes))
        if journals:
            _say_what_is_kept(journals.label, lanes, count)
        running = [lane for lane, left in zip(lanes, going, strict=True) if left]
        if threads > 1:
            list(each(Lane.run, running))
        else:
            _take_turns(running)


def _say_what_is_kept(label: str, lanes: Sequence[Lane], count: int) -> None:
    """Says with what a call goes on that an earlier attempt began."""
    kept = sum(lane.resumed for lane in lanes)
    journals = [lane.journal for lane in lanes if lane.journal]
    if any(lane.went_on for lane in lanes):
        note(f"{label} goes on with {kept} of {count} episodes finished")
    elif any(journal.others for journal in journals):
        note(
            f"{label}: an earlier attempt's episodes were sampled in another number of slots, "
            "processes or devices; they begin again"
        )


def _take_turns(lanes: Iterable[Lane]) -> None:
    """Drives all lanes from one thread; each is read only after the others' programs are queued."""
    running = list(lanes)
    for lane in running:
        lane.dispatch()
    while running:
        for lane in list(running):
            if lane.collect():
                lane.dispatch()
            else:
                running.remove(lane)
