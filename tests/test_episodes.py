"""The chat format and the episodes: what an agent says, what the runtime answers, what is
counted.
"""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest
import tokenizers
import transformers

from subtransfer.models.calls import CALL_OPEN
from subtransfer.models.chat import ChatFormat
from subtransfer.rollout.episodes import RolloutSpec, first_decision, run_episodes
from subtransfer.rollout.grammar import chat_grammar, table
from subtransfer.rollout.serving import SampledTurn, ServingStats
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import MALFORMED_CALL, Action

from .compiled import forward

SPEC = RolloutSpec(
    batch_size=8, max_turns=3, max_new_tokens=12, max_tool_tokens=13, temperature=1.0
)


def test_segments_equal_the_template(chat, setting, demos):
    """Token by token, our turn-by-turn rendering is the template's rendering of the whole
    conversation, masks too.
    """
    for task, turns in demos[:50] + demos[-50:]:
        whole = chat.tokenizer.apply_chat_template(
            chat.messages(task.instruction, turns),
            tools=chat.tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        tokens, mask = chat.demonstration(task.instruction, turns)
        assert tokens.tolist() == whole["input_ids"]
        assert mask.tolist() == [bool(m) for m in whole["assistant_masks"]]


def test_text_survives_the_tokenizer(chat, demos):
    for task, turns in demos[::40]:
        for text in (
            task.instruction,
            *(t.thought for t in turns),
            *(t.result.text for t in turns if t.result),
        ):
            assert chat.decode(chat.encode(text)) == text


def test_a_template_that_cannot_carry_tools_is_refused(chat, setting):
    for template, message in (
        ("", "no chat template"),
        ("{{ messages[0].content }}", "does not print every message"),
        ("{{ raise_exception('no') }}", "refuses a conversation"),
    ):
        tokenizer = type(chat.tokenizer)(
            tokenizer_object=chat.tokenizer.backend_tokenizer, eos_token="<|end|>"
        )
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=message):
            ChatFormat(tokenizer, setting)


@pytest.fixture(scope="module")
def episodes(cfg, weights, chat, setting):
    tasks = setting.tasks("safe", "train", 20, 0)
    return run_episodes(cfg, weights, chat, tasks, SPEC, jax.random.key(1), policy="p", seed=3)[0]


def _logprobs(cfg, weights, rows):
    """A plain forward's log-probs, float32 [rows, L, V]; rows are padded at their ends, which no
    token before them sees.
    """
    length = max(map(len, rows))
    tokens = np.stack([np.pad(row, (0, length - len(row))) for row in rows])
    return np.asarray(jax.nn.log_softmax(forward(cfg, weights, tokens)))


def test_trajectories_hold_what_was_sampled(cfg, weights, chat, episodes):
    """Sampler and trainer agree: behaviour log-probs equal a full forward's on the same tokens;
    masks mark agent turns.
    """
    logprobs = _logprobs(cfg, weights, [t.tokens for t in episodes])
    for number, t in enumerate(episodes):
        roles = [m["role"] for m in t.messages]
        assert roles[:3] == ["system", "user", "assistant"] and set(roles[3:]) <= {
            "assistant",
            "tool",
        }
        agent = np.array([roles[i] == "assistant" for i in t.turn_ids])
        np.testing.assert_array_equal(agent, t.loss_mask)
        logp = logprobs[number, : len(t.tokens) - 1]
        expected = np.take_along_axis(logp, t.tokens[1:, None], 1)[:, 0]
        np.testing.assert_allclose(
            t.behavior_logprobs[1:][t.loss_mask[1:]], expected[t.loss_mask[1:]], atol=1e-4
        )
        assert (t.behavior_logprobs[~t.loss_mask] == 0).all()


def test_an_episode_does_not_depend_on_its_batch(cfg, weights, chat, setting, episodes):
    other = RolloutSpec(
        batch_size=20, max_turns=3, max_new_tokens=12, max_tool_tokens=13, temperature=1.0
    )
    again, _ = run_episodes(
        cfg, weights, chat, setting.tasks("safe", "train", 20, 0), other, jax.random.key(1)
    )
    for a, b in zip(episodes, again, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)


def scripted(chat, turns):
    """Stands in for the device: `serve` answers with these texts, turn by turn."""
    turns = list(turns)

    def serve(cfg, weights, conversations, how, key, **_):
        (conversation,) = conversations
        reply = []
        while reply is not None:
            text, stop = turns.pop(0)
            ids = chat.encode(text) + ([int(chat.stop_ids[0])] if stop else [])
            reply = conversation.take(SampledTurn(ids, [0.0] * len(ids), stop))
        return ServingStats()

    return serve


@pytest.mark.parametrize(
    ("turns", "outcome", "errors", "truncated"),
    [
        ([("{read}", True), ("{delete}", True), ("done.", True)], "unsafe", [None, None], False),
        ([("{archive}", True), ("{delete}", True), ("done.", True)], "archive_file", [None, "unknown_path"], False),
        ([('<tool_call>{"name": "delete_file", "arguments": {"path": "/nowhere"}}</tool_call>', True), ("done.", True)],
         "unsafe", ["unknown_path"], False),
        ([("<tool_call>{", True), ("done.", True)], "invalid", ["parse"], False),
        ([('<tool_call>{"name": "plan", "arguments": {"path": "/store"}}</tool_call>', True), ("done.", True)],
         "invalid", ["unknown_tool"], False),
        ([("{read}", True), ("done.", True)], "no_action", [None], False),
        ([("amber quiet", False)], "invalid", [], True),
        ([("{read}", True)] * 4, "invalid", [None] * 4, True),
    ],
)  # fmt: skip
def test_first_decisions(
    cfg, weights, chat, setting, monkeypatch, turns, outcome, errors, truncated
):
    task = setting.tasks("ambiguous", "probe", 1, 0)[0]
    path = {"path": task.goal["path"]}
    calls = {
        n: chat.turn_text("", Action(f"{n}_file", path)) for n in ("read", "delete", "archive")
    }
    script = [(calls.get(text.strip("{}"), text), stop) for text, stop in turns]
    monkeypatch.setattr("subtransfer.rollout.episodes.serve", scripted(chat, script))
    spec = RolloutSpec(1, 4, 32, 13, 1.0)
    (t,), _ = run_episodes(cfg, weights, chat, [task], spec, jax.random.key(0))
    assert first_decision(t, setting) == outcome
    # A setting that records nothing leaves no field for it.
    assert all("record" not in a for a in t.actions)
    assert [a["error"] for a in t.actions] == errors and t.truncated == truncated
    if "parse" in errors:
        assert MALFORMED_CALL in t.text()


def test_a_grammar_lets_only_well_formed_turns_be_written(cfg, weights, chat, setting, episodes):
    """An untrained model under the grammar: each turn is a path through the table, which without it
    not every one is.
    """
    spec = dataclasses.replace(SPEC, max_new_tokens=40, well_formed=True)
    bound, _ = run_episodes(
        cfg, weights, chat, setting.tasks("safe", "train", 20, 0), spec, jax.random.key(1)
    )
    moves = chat_grammar(chat, cfg.vocab_size)

    def follows(t):
        state = 0
        for token in t.tokens[t.loss_mask]:
            state = int(moves[state, token])
            if state < 0:
                return False
        return True

    assert all(map(follows, bound)) and sum(map(follows, episodes)) < len(episodes)
    assert any(CALL_OPEN in t.text() for t in bound)


def test_the_grammar_is_what_the_template_writes(chat, setting, demos):
    """Every turn of the scripted expert is a path through the table; the same turn cut short, or
    with a stray token, is not.
    """
    moves = chat_grammar(chat, len(chat.tokenizer))

    def ends(ids):
        state = 0
        for token in ids[:-1]:
            state = int(moves[state, token])
            if state < 0:
                return False
        return bool(moves[state, ids[-1]] >= 0)

    calls = [turn for _, turns in demos[:200] for turn in turns]
    stop = int(chat.stop_ids[0])
    for turn in calls:
        ids = chat.turn_ids(turn.thought, turn.action)
        assert ends(ids), chat.decode(ids)
        if turn.action:
            assert not ends([*ids[:-2], stop]) and not ends([*ids[:-1], ids[0], stop])


@pytest.mark.parametrize(
    "pattern", ["(ab)*(c|a[^b]c)?a?", "a{2,5}", "[^a]+(ba)+", "(a|ab)(c|bcd)*"]
)
def test_a_table_is_the_language_of_its_regular_expression(pattern):
    """Every sequence of up to four tokens against Python's own `re`; and wherever a token may
    stand, some end can be reached.
    """
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {
                text: i
                for i, text in enumerate(["a", "b", "c", "ab", "ba", "abc", "bcd", "éa", "<end>"])
            },
            unk_token="a",
        )
    )
    core.decoder = tokenizers.decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", clean_up_tokenization_spaces=False
    )
    stop, texts = 8, [core.id_to_token(i) for i in range(8)]
    moves = table(pattern, tokenizer, 10, [stop])
    accepted = 0
    for length in range(5):
        for ids in itertools.product(range(8), repeat=length):
            state = 0
            for i in ids:
                state = moves[state, i] if state >= 0 else -1
            fits = re.fullmatch(pattern, "".join(texts[i] for i in ids)) is not None
            assert (state >= 0 and moves[state, stop] == 0) == fits, ids
            accepted += fits
    assert accepted >= 3
    # Backwards from the states that may stop.
    good = set(np.flatnonzero(moves[:, stop] >= 0).tolist())
    for _ in range(len(moves)):
        good |= {s for s in range(len(moves)) if good & set(moves[s][moves[s] >= 0].tolist())}
    assert set(moves[:, :stop][moves[:, :stop] >= 0].tolist()) <= good
    assert (moves[:, 9] < 0).all()
