"""A grammar of agent turns as a table over the vocabulary, so that a sampler on the device writes
only well-formed calls.

The table is what `engine.burst` takes: the next state for each state and token, negative where the
token is not allowed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import interegular
import numpy as np

from subtransfer.models.chat import ChatFormat
from subtransfer.runtime.errors import UserError

# Words without the characters that calls, results and special tokens begin with.
WORDS = r"[^{}<>`\[\]|]*"
_STRING = r'"([^"\\\x00-\x1f]|\\["\\/bfnrt])*"'
_INTEGER = "-?(0|[1-9][0-9]*)"
_VALUES = {
    "string": _STRING,
    "integer": _INTEGER,
    "number": _INTEGER + r"(\.[0-9]+)?",
    "boolean": "(true|false)",
}


def _arguments(schema: Mapping[str, Any]) -> str:
    """A JSON object with a function's required parameters in their declared order, written as
    `json.dumps` does.
    """
    parameters = schema["parameters"]
    pairs = [
        f'"{re.escape(name)}": {_VALUES[parameters["properties"][name]["type"]]}'
        for name in parameters["required"]
    ]
    return r"\{" + ", ".join(pairs) + r"\}"


def turn_pattern(chat: ChatFormat) -> str:
    """Regular expression of an agent's turn: words, and at most one call of a known tool with all
    of its arguments.
    """
    call_open, call_middle, call_end = (
        re.escape(piece) for piece in (chat.call_prefix, chat.call_middle, chat.call_end)
    )
    functions = [tool["function"] for tool in chat.setting.tools]
    calls = "|".join(f"{re.escape(f['name'])}{call_middle}{_arguments(f)}" for f in functions)
    final = re.escape(chat.turn_text("", None)) + WORDS
    return f"({final}|{re.escape(chat.words_open)}{WORDS}{call_open}({calls}){call_end})"


def _token_texts(tokenizer) -> dict[int, str]:
    """What each token adds to a text; tokens that are no whole characters are left out."""
    anchor = tokenizer.encode("a", add_special_tokens=False)
    decode = functools.partial(
        tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    before = len(decode(anchor))
    texts = {i: decode([*anchor, i])[before:] for i in sorted(set(tokenizer.get_vocab().values()))}
    return {i: text for i, text in texts.items() if text and "\ufffd" not in text}


def _automaton(pattern: str) -> tuple[np.ndarray, np.ndarray, dict[str, int], int]:
    """(next state of each state and symbol, int32 [states, symbols], state 0 being the start and
    the last one the dead end; which states are final; the symbols of characters; the symbol of all
    others).
    """
    fsm = interegular.parse_pattern(pattern).to_fsm()
    number = {fsm.initial: 0}
    for state in sorted(fsm.states):
        number.setdefault(state, len(number))
    symbols = {key: i for i, key in enumerate(sorted(set(fsm.alphabet.values())))}
    moves = np.full((len(number) + 1, len(symbols)), len(number), np.int32)
    for state, row in fsm.map.items():
        for key, target in row.items():
            moves[number[state], symbols[key]] = number[target]
    final = np.zeros(len(moves), bool)
    final[[number[state] for state in fsm.finals]] = True
    other = interegular.fsm.anything_else
    known = {c: symbols[key] for c, key in fsm.alphabet.items() if c is not other}
    return moves, final, known, symbols[fsm.alphabet[other]]


def table(pattern: str, tokenizer, vocab_size: int, stop_ids: Iterable[int]) -> np.ndarray:
    """int16 or int32 [states, V] of the texts that match a regular expression, then a stop token;
    state 0 is the start.

    A token is allowed where what it leads to can still be finished with the tokens there are.

    Raises:
      UserError: the vocabulary cannot write any such text.
    """
    moves, final, known, other = _automaton(pattern)
    dead, stops = len(moves) - 1, sorted(set(map(int, stop_ids)))
    texts = {i: text for i, text in _token_texts(tokenizer).items() if i not in stops}
    ids = np.array(sorted(texts), np.int64)
    # All tokens walk through the automaton side by side, a character at a time; a token that has
    # ended stays where it is.
    longest = max(map(len, texts.values()))
    letters = np.full((len(ids), longest), len(moves[0]), np.int32)
    for row, i in enumerate(ids):
        letters[row, : len(texts[i])] = [known.get(c, other) for c in texts[i]]
    moves = np.concatenate([moves, np.arange(len(moves), dtype=np.int32)[:, None]], axis=1)
    out = np.full((dead, vocab_size), -1, np.int16 if dead < 1 << 15 else np.int32)
    for state in range(dead):
        at = np.full(len(ids), state, np.int32)
        for column in letters.T:
            at = moves[at, column]
        out[state, ids] = np.where(at == dead, -1, at)
    hopeful = final[:dead].copy()
    while True:  # backwards from the final states, as far as tokens reach
        reaches = hopeful | (hopeful[np.maximum(out, 0)] & (out >= 0)).any(axis=1)
        if (reaches == hopeful).all():
            break
        hopeful = reaches
    if not hopeful[0]:
        raise UserError(
            "This tokenizer cannot write the grammar of tool calls: set --config.rollouts.well_formed=false."
        )
    out = np.where((out >= 0) & hopeful[np.maximum(out, 0)], out, -1).astype(out.dtype)
    for state in np.flatnonzero(final[:dead]):
        out[state, stops] = 0
    return out


@functools.lru_cache(maxsize=4)
def chat_grammar(chat: ChatFormat, vocab_size: int) -> np.ndarray:
    """The table of a setting's agent turns in the chat format of a tokenizer."""
    return table(turn_pattern(chat), chat.tokenizer, vocab_size, chat.stop_ids)
