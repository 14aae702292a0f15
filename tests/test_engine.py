"""The engine and its scheduler against the plain forward pass."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtransfer.models.decoder import DecoderConfig, Rope
from subtransfer.rollout import engine, sampling, scheduler
from subtransfer.rollout.sampling import Sampling
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import pretrain

from .compiled import forward

CFG = DecoderConfig(
    vocab_size=23,
    width=16,
    mlp_width=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=4,
    rope=Rope(100.0),
)
SHAPE = engine.Shape(rows=4, room=90, prefill_rows=2, prefill_tokens=8, decode_steps=5, patience=4)
NEVER = np.array([-1])
DRAW = jax.jit(sampling.draw, static_argnames="count")
SAMPLE = jax.jit(sampling.sample, static_argnames="how")


@pytest.fixture(scope="module")
def weights():
    tree = pretrain.init_params(
        CFG, sharding.make_mesh(devices=jax.devices()[:1]), jax.random.key(3)
    )
    return {
        "params": jax.tree.map(lambda x: x * 8.0, tree)
    }  # far from uniform, so that mistakes show


def _next(weights, sequence):
    """Logits [V] after a sequence, by one forward padded to a length that all share."""
    padded = np.zeros((1, 96), np.int32)
    padded[0, : len(sequence)] = sequence
    return forward(CFG, weights, padded)[0, len(sequence) - 1]


def _prompts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CFG.vocab_size, n).tolist() for n in lengths]


def _feed(shape, weights, prefix, slots, pieces, starts):
    """Feeds {row: ids}, as many rows a call as the shape takes."""
    order = list(range(shape.rows))
    for begin in range(0, shape.rows, shape.prefill_rows):
        rows = order[begin : begin + shape.prefill_rows]
        tokens, lengths = (
            np.zeros((len(rows), shape.prefill_tokens), np.int32),
            np.zeros(len(rows), np.int32),
        )
        for i, row in enumerate(rows):
            piece = pieces.get(row, [])
            tokens[i, : len(piece)], lengths[i] = piece, len(piece)
        slots = engine.prefill(
            CFG, shape, weights, prefix, slots, np.array(rows), starts[rows], tokens, lengths
        )
    return slots


@pytest.mark.parametrize(
    "change",
    [
        {},
        pytest.param({"decode_steps": 2, "copies": True}, marks=pytest.mark.slow),
        pytest.param({"prefill_rows": 4}, marks=pytest.mark.slow),
    ],
)
def test_greedy_turns_equal_the_full_forward(weights, change):
    """A shared prefix, rows of different lengths, two turns with a given text between them, a row
    that does not sample.
    """
    shape = dataclasses.replace(SHAPE, **change)
    shared, rows = _prompts([5], 9)[0], _prompts([3, 8, 5, 2])
    prefix, slots = engine.encode_prefix(CFG, weights, shared), engine.start(CFG, shape)
    lengths = np.zeros(4, np.int32)
    slots = _feed(shape, weights, prefix, slots, dict(enumerate(rows)), lengths)
    lengths += [len(row) for row in rows]
    sequences = [shared + row for row in rows]
    for between in ({0: [1, 2], 2: [7]}, {}):
        budget = np.array([6, 3, 6, 0], np.int32)
        while budget.any():
            state = engine.RowState.empty(4).replace(lengths=lengths.copy(), budget=budget.copy())
            slots, out = engine.decode(
                CFG, shape, Sampling(0.0), weights, prefix, slots, state, NEVER
            )
            assert out.alive and (out.counts == np.minimum(budget, shape.decode_steps)).all()
            assert bool(out.turned) == bool((budget[budget > 0] <= shape.decode_steps).any())
            for i, sequence in enumerate(sequences):
                for step in range(int(out.counts[i])):
                    logits = _next(weights, sequence)
                    assert int(out.tokens[i, step]) == int(jnp.argmax(logits))
                    np.testing.assert_allclose(
                        out.logprobs[i, step], jax.nn.log_softmax(logits).max(), atol=1e-4
                    )
                    sequence.append(int(out.tokens[i, step]))
            lengths += np.asarray(out.counts)
            budget -= np.asarray(out.counts)
        slots = _feed(shape, weights, prefix, slots, between, lengths)
        for row, ids in between.items():
            sequences[row] += ids
            lengths[row] += len(ids)
    np.testing.assert_allclose(slots.logits[3], _next(weights, sequences[3]), atol=1e-4)


def test_decoding_ends_when_enough_rows_have_ended(weights):
    slots = _feed(
        SHAPE,
        weights,
        (),
        engine.start(CFG, SHAPE),
        dict(enumerate(_prompts([3] * 4))),
        np.zeros(4, np.int32),
    )
    rows = engine.RowState.empty(4).replace(
        lengths=np.full(4, 3, np.int32), budget=np.array([1, 5, 5, 5], np.int32)
    )
    patient = dataclasses.replace(SHAPE, patience=0)
    _, out = engine.decode(CFG, patient, Sampling(0.0), weights, (), slots, rows, NEVER)
    assert out.steps == 1 and out.turned and (out.counts == 1).all()


def test_the_head_room_of_a_slot_keeps_late_writes_in_place(weights):
    """A slot filled to its last place: writes beyond would be clamped and shift what is there."""
    shape = dataclasses.replace(SHAPE, room=11, copies=True)
    row = _prompts([8])[0]
    slots = _feed(shape, weights, (), engine.start(CFG, shape), {0: row}, np.zeros(4, np.int32))
    state = engine.RowState.empty(4).replace(
        lengths=np.array([8, 0, 0, 0], np.int32), budget=np.array([3, 0, 0, 0], np.int32)
    )
    slots, out = engine.decode(CFG, shape, Sampling(0.0), weights, (), slots, state, NEVER)
    full = row + out.tokens[0, :3].tolist()
    np.testing.assert_allclose(slots.logits[0], _next(weights, full), atol=1e-4)


class Talk:
    """A conversation of several turns: each is answered by a reply that depends on it."""

    def __init__(self, index, prompt, turns):
        self.index, self.prompt, self.left, self.said = index, prompt, turns, []

    def take(self, turn):
        self.said.append(turn)
        self.left -= 1
        return (
            None
            if self.left == 0
            else [(sum(turn.ids) + k) % CFG.vocab_size for k in range(1 + self.index % 3)]
        )


def _talks(count=11):
    shared = [3, 1, 4]
    return [
        Talk(i, shared + p, 1 + i % 4)
        for i, p in enumerate(_prompts([1 + i % 7 for i in range(count)], 5))
    ]


SAMPLED = Sampling(1.0)


def _serve(weights, talks, how=SAMPLED, **options):
    return scheduler.serve(
        CFG, weights, talks, how, jax.random.key(9),
        **{"slots": 4, "max_new_tokens": 7, "more_tokens": 40, "feed_tokens": 3, "stop_ids": [2, 5], **options},
    )  # fmt: skip


def test_conversations_equal_a_plain_sampler(weights):
    """Every token and log-prob against one full forward a token, with the same numbered draws."""
    talks = _talks()
    stats = _serve(weights, talks)
    for talk in talks:
        sequence, drawn = list(talk.prompt), 0
        key = sampling.row_keys(jax.random.key(9), jnp.array([talk.index]))
        again = Talk(talk.index, talk.prompt, len(talk.said))
        for turn in talk.said:
            for token, logprob in zip(turn.ids, turn.logprobs, strict=True):
                logits = _next(weights, sequence)[None]
                draw = DRAW(key, jnp.array([drawn]), 1)[:, 0]
                assert [token] == SAMPLE(logits, draw, Sampling(1.0))[0].tolist()
                np.testing.assert_allclose(logprob, jax.nn.log_softmax(logits)[0, token], atol=1e-4)
                sequence.append(token)
                drawn += 1
            assert turn.stopped == (turn.ids[-1] in (2, 5)) and (turn.stopped or len(turn.ids) == 7)
            sequence += again.take(turn) or []
    assert stats.tokens == sum(len(t.ids) for talk in talks for t in talk.said)
    assert 0 < stats.utilisation <= stats.occupancy <= 1


def test_each_program_is_traced_once(weights, monkeypatch):
    """Whatever the lengths of prompts, turns and replies, and however many rows wait."""
    for name, static in (("prefill", ["cfg", "shape"]), ("decode", ["cfg", "shape", "how"])):
        traced = chex.assert_max_traces(getattr(engine, name).__wrapped__, n=1)
        jitted = jax.jit(traced, static_argnames=static, donate_argnames=["slots"])
        monkeypatch.setattr(engine, name, jitted)
    stats = _serve(weights, _talks(23), lanes=1)
    assert stats.dispatches > 20


@pytest.mark.parametrize(
    "options",
    [
        {"slots": 16, "lanes": 3},
        *(
            pytest.param(o, marks=pytest.mark.slow)
            for o in ({"slots": 1}, {"slots": 11}, {"slots": 6, "lanes": 1})
        ),
    ],
)
def test_a_conversation_does_not_depend_on_its_slot_or_neighbours(weights, options):
    together, apart = _talks(), _talks()
    _serve(weights, together)
    _serve(weights, apart, **options)
    assert [[t.ids for t in talk.said] for talk in together] == [
        [t.ids for t in talk.said] for talk in apart
    ]


def test_prompts_longer_than_a_piece_are_fed_in_several(weights, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", 8)
    (prompt,) = _prompts([45])
    talks = [Talk(0, prompt, 1), Talk(1, prompt[:2] + prompt, 1)]
    _serve(weights, talks, Sampling(0.0), stop_ids=[])
    for talk in talks:
        sequence = list(talk.prompt)
        for token in talk.said[0].ids:
            assert token == int(jnp.argmax(_next(weights, sequence)))
            sequence.append(token)


def test_int8_slots_stay_close(weights):
    """Rounded keys and values move log-probs a little and only a little."""
    plain, rounded = _talks(6), _talks(6)
    _serve(weights, plain, Sampling(0.0))
    _serve(weights, rounded, Sampling(0.0), int8_cache=True)
    pairs = [[talk.said[0] for talk in both] for both in zip(plain, rounded, strict=True)]
    gaps = [
        abs(a.logprobs[1] - b.logprobs[1])
        for a, b in pairs
        if len(a.ids) > 1 and a.ids[:2] == b.ids[:2]
    ]
    assert len(gaps) >= 3 and 0 < max(gaps) < 0.1


def test_a_reply_without_room_is_refused(weights):
    talks = _talks()
    with pytest.raises(UserError, match="does not fit"):
        _serve(weights, talks, more_tokens=8)


def test_top_logprobs_come_on_request(weights):
    talks = _talks(3)
    _serve(weights, talks, Sampling(0.0, top_logprobs=3))
    turn = talks[0].said[0]
    logits = forward(CFG, weights, jnp.array([talks[0].prompt]))[0, -1]
    values, ids = jax.lax.top_k(jax.nn.log_softmax(logits), 3)
    assert (
        turn.top_ids[0] == ids.tolist()
        and turn.top_ids[0][0] == turn.ids[0]
        and len(turn.top_ids) == len(turn.ids)
    )
    np.testing.assert_allclose(turn.top_logprobs[0], values, atol=1e-4)
