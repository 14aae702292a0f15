"""A grammar of agent turns, so that a sampler on the device writes only well-formed calls.

It is a table over the vocabulary, as `engine.decode` takes it: the next state for each state and
token, negative where the token is not allowed. The table is our own because libraries for guided
decoding mask logits on the host, once a token.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
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
    """The pattern of a JSON object with a function's required parameters.

    They come in their declared order, written as `json.dumps` does.
    """
    parameters = schema["parameters"]
    pairs = []
    for name in parameters["required"]:
        value = _VALUES[parameters["properties"][name]["type"]]
        pairs.append(f'"{re.escape(name)}": {value}')
    return r"\{" + ", ".join(pairs) + r"\}"


def turn_pattern(chat: ChatFormat) -> str:
    """Returns the regular expression of an agent's turn.

    A turn is words, and at most one call of a known tool with all of its arguments.
    """
    call_middle = re.escape(chat.call_middle)
    calls = []
    for tool in chat.setting.tools:
        function = tool["function"]
        calls.append(f"{re.escape(function['name'])}{call_middle}{_arguments(function)}")
    final = re.escape(chat.turn_text("", None)) + WORDS
    opened, prefix = re.escape(chat.words_open), re.escape(chat.call_prefix)
    begin = opened + WORDS + prefix
    if chat.wordless_prefix != chat.words_open + chat.call_prefix:
        # Words of at least one character, or the template's own form of a turn without any.
        some_words = WORDS.removesuffix("*") + "+"
        begin = f"({re.escape(chat.wordless_prefix)}|{opened}{some_words}{prefix})"
    return f"({final}|{begin}({'|'.join(calls)}){re.escape(chat.call_end)})"


def _token_texts(tokenizer) -> dict[int, str]:
    """What each token adds to a text; tokens that are no whole characters are left out."""
    # Decoded behind another token: at the beginning of a text, tokenizers drop a leading space.
    anchor = tokenizer.encode("a", add_special_tokens=False)
    decode = functools.partial(
        tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    before = len(decode(anchor))
    texts = {}
    for i in sorted(set(tokenizer.get_vocab().values())):
        text = decode([*anchor, i])[before:]
        if text and "\ufffd" not in text:
            texts[i] = text
    return texts


def _automaton(pattern: str) -> tuple[np.ndarray, np.ndarray, dict[str, int], int]:
    """A regular expression as a deterministic automaton over symbols, which stand for characters.

    Returns:
      (the next state of each state and symbol, int32 [states, symbols], where state 0 is the start
      and the last one the dead end; which states are final, bool [states]; the symbol of each
      character that the pattern names; the symbol of all others).
    """
    fsm = interegular.parse_pattern(pattern).to_fsm()
    number = {fsm.initial: 0}
    for state in sorted(fsm.states):
        number.setdefault(state, len(number))
    symbols: dict[int, int] = {}
    for key in sorted(set(fsm.alphabet.values())):
        symbols[key] = len(symbols)
    # What the automaton has no move for leads to the dead end, the last state.
    moves = np.full((len(number) + 1, len(symbols)), len(number), np.int32)
    for state, row in fsm.map.items():
        for key, target in row.items():
            moves[number[state], symbols[key]] = number[target]
    final = np.zeros(len(moves), bool)
    final[[number[state] for state in fsm.finals]] = True
    other = interegular.fsm.anything_else
    known = {}
    for character, key in fsm.alphabet.items():
        if character is not other:
            known[character] = symbols[key]
    return moves, final, known, symbols[fsm.alphabet[other]]


# States whose ways through the tree are followed side by side: more need more memory.
_STATES = 64


@dataclasses.dataclass(frozen=True)
class _Level:
    """The beginnings of one length that texts have, each once.

    Attributes:
      parents: int [m], of each beginning, that which is one symbol shorter: its place in the level
        above.
      symbols: int [m], the last symbol of each.
      ended: int [k], the texts that are no longer than this.
      places: int [k], the beginnings that these are.
    """

    parents: np.ndarray
    symbols: np.ndarray
    ended: np.ndarray
    places: np.ndarray


def _tree(texts: Sequence[Sequence[int]], count: int) -> list[_Level]:
    """The tree of the beginnings of texts, so that what many share is walked once.

    Args:
      texts: one or more symbols each.
      count: how many symbols there are.
    """
    lengths = np.array(list(map(len, texts)))
    letters = np.zeros((len(texts), lengths.max()), np.int64)
    for row, text in zip(letters, texts, strict=True):
        row[: len(text)] = text
    levels = []
    alive, parents = np.arange(len(texts)), np.zeros(len(texts), np.int64)
    for depth, column in enumerate(letters.T):
        found, places = np.unique(parents * count + column[alive], return_inverse=True)
        ended = lengths[alive] == depth + 1
        levels.append(_Level(found // count, found % count, alive[ended], places[ended]))
        alive, parents = alive[~ended], places[~ended]
    return levels


def table(pattern: str, tokenizer, vocab_size: int, stop_ids: Iterable[int]) -> np.ndarray:
    """Builds the table of the texts that match a regular expression, then a stop token.

    A token is allowed where what it leads to can still be finished with the tokens there are.

    Args:
      pattern: the regular expression.
      tokenizer: whose tokens write the texts.
      vocab_size: V; ids that the tokenizer has no token for are never allowed.
      stop_ids: tokens that may follow a whole text.

    Returns:
      int16 or int32 [states, V]; state 0 is the start.

    Raises:
      UserError: the vocabulary cannot write any such text.
    """
    moves, final, known, other = _automaton(pattern)
    dead, stops = len(moves) - 1, sorted({int(i) for i in stop_ids if i < vocab_size})
    texts = {i: text for i, text in _token_texts(tokenizer).items() if i < vocab_size}
    # They have no text within a turn: where they may stand is set at the end.
    for stop in stops:
        texts.pop(stop, None)
    ids = np.array(sorted(texts), np.int64)
    levels = _tree([[known.get(c, other) for c in texts[i]] for i in ids], moves.shape[1])
    out = np.full((dead, vocab_size), -1, np.int16 if dead < 1 << 15 else np.int32)
    for begin in range(0, dead, _STATES):
        states = np.arange(begin, min(begin + _STATES, dead), dtype=np.int32)[:, None]
        at = states
        for level in levels:
            at = moves[at[:, level.parents], level.symbols]
            reached = at[:, level.places]
            out[states, ids[level.ended]] = np.where(reached == dead, -1, reached)
    # A state that can be reached but not left towards an end would trap the sampler. Those from
    # which tokens reach the end are found backwards from the final states.
    follows = np.zeros((dead, dead), bool)
    for state, reached in enumerate(out):
        follows[state, reached[reached >= 0]] = True
    finishable = final[:dead].copy()
    while True:
        reaches = finishable | (follows & finishable).any(axis=1)
        if (reaches == finishable).all():
            break
        finishable = reaches
    if not finishable[0]:
        raise UserError(
            "This tokenizer cannot write the grammar of tool calls: set "
            "--config.rollouts.well_formed=false."
        )
    out = np.where((out >= 0) & finishable[np.maximum(out, 0)], out, -1).astype(out.dtype)
    # After a stop token the row is at the start again, for its next turn.
    for number in np.flatnonzero(final[:dead]):
        out[number, stops] = 0
    return out


@functools.lru_cache(maxsize=4)
def chat_grammar(chat: ChatFormat, vocab_size: int) -> np.ndarray:
    """Builds (once) the table of a setting's agent turns in the chat format of a tokenizer."""
    return table(turn_pattern(chat), chat.tokenizer, vocab_size, chat.stop_ids)
