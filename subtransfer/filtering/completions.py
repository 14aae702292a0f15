"""Which tokens would complete a trace of the trait, at each place of an agent's text.

A vocabulary splits words, so that a token's own text says little: "ge" ends "purge" behind "pur"
and is harmless elsewhere, and " get" is harmless everywhere though "get rid" is a trace. So what
counts is the text so far in the agent's turn with the token behind it: token v is unsafe at a place
if that text holds a trace, by the rule of `marks.py`, as it is written and as JSON strings are
decoded. (What is spelled in a hidden way no token completes by itself: the other readings decide
about whole texts only.) The token that really stands there is never unsafe: the whole text, with
all that follows, has passed the rule.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from subtransfer.filtering.automaton import FOUND, Automaton, UnfollowableError
from subtransfer.filtering.encodings import ESCAPED, fold
from subtransfer.filtering.marks import Marks, compiled
from subtransfer.runtime.errors import UserError

_BACKSLASH = "\\"
_NO_TOKENS = np.zeros(0, np.int32)
# The state at the beginning of a text.
_START = 1
# Rows of a table are a power of two, at least so many, so that few shapes of programs are compiled.
_FEWEST_ROWS = 16
# Tokens that an account names; those at most places come first.
_NAMED = 200


@dataclasses.dataclass(frozen=True)
class Unsafe:
    """What soft targets must not name, at each place of some training rows.

    Attributes:
      at: int32 [n, L], the row of `table` that holds for the prediction of each token.
      table: bool [S, V], True on unsafe tokens; row 0 has none.
      account: {"places": agent tokens, "places_with_removed": those with an unsafe token, "tokens":
        [{"id", "text", "places"}], those at most places first, "distinct": how many there are}.
    """

    at: np.ndarray
    table: np.ndarray
    account: dict[str, Any]


class Completions:
    """The unsafe tokens of a vocabulary behind any text, found as texts are met.

    Args:
      tokenizer: whose tokens they are.
      marks: what is a trace; `check_patterns` has passed its patterns.
    """

    def __init__(self, tokenizer: Any, marks: Marks):
        found = compiled(marks)
        letters = "".join(ESCAPED)
        pattern = f"(?:{found.plain.pattern})|(?:{found.patterns.pattern})"
        self._automaton = Automaton(pattern, apart=_BACKSLASH + letters + '"/')
        self._texts = _Texts(tokenizer)
        # A text as it is written, whether a backslash was last, and the text as JSON has it.
        start = (self._automaton.start, False, self._automaton.start)
        self._states: list[tuple[int, bool, int]] = [(FOUND, False, FOUND), start]
        self._numbers = {start: _START}
        self._next: dict[tuple[int, str], int] = {}
        self._after: dict[tuple[int, int], int] = {}
        self._found: dict[int, np.ndarray] = {}
        self._trie: _Trie | None = None
        self._usual: tuple[np.ndarray, np.ndarray]

    # -- a text, token by token --------------------------------------------------------------------

    def behind(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """Returns the unsafe tokens at each place of a text: before each token, and behind all.

        Args:
          tokens: of one agent turn. The texts of tokens that are no whole characters count where
            the last of them stands.
        """
        state, out = _START, []
        pending: list[int] = []
        for token in tokens:
            out.append(self._unsafe(state))
            if not pending and self._texts.whole(token):
                key = (state, token)
                if key not in self._after:
                    self._after[key] = self._through(state, self._texts.of(token))
                state = self._after[key]
                continue
            pending.append(token)
            text = self._texts.joined(pending)
            # What is no character after four bytes will never be one.
            if "\ufffd" not in text or len(pending) == 4:
                state, pending = self._through(state, text), []
        out.append(self._unsafe(state))
        return out

    def _through(self, state: int, text: str) -> int:
        for character in fold(text):
            state = self._step(state, character)
        return state

    def _step(self, state: int, character: str) -> int:
        key = (state, character)
        if key not in self._next:
            self._next[key] = self._stepped(state, character)
        return self._next[key]

    def _stepped(self, state: int, character: str) -> int:
        written, escaped, decoded = self._states[state]
        step, signature = self._automaton.step, self._automaton.signature
        written = step(written, signature(character))
        if escaped:
            # Folded again, as a control character may be white space or nothing.
            for one in fold(ESCAPED.get(character, character)):
                decoded = step(decoded, signature(one))
            escaped = False
        elif character == _BACKSLASH:
            escaped = True
        else:
            decoded = step(decoded, signature(character))
        if FOUND in (written, decoded):
            return FOUND
        new = (written, escaped, decoded)
        if new not in self._numbers:
            self._numbers[new] = len(self._states)
            self._states.append(new)
        return self._numbers[new]

    def _ends(self, state: int) -> bool:
        """Whether a text that ends here holds a trace."""
        written, _, decoded = self._states[state]
        return self._automaton.ends(written) or self._automaton.ends(decoded)

    # -- a vocabulary behind a text ----------------------------------------------------------------

    def _unsafe(self, state: int) -> np.ndarray:
        """The ids that complete a trace in this state, int32, sorted."""
        if state == FOUND:  # of a text that has not passed the rule; nothing is left to complete
            return _NO_TOKENS
        if state not in self._found:
            self._found[state] = self._completing(state)
        return self._found[state]

    def _completing(self, state: int) -> np.ndarray:
        """All tokens walk from a state at once, a level of the trie at a time.

        A walk that comes into the state in which it would be from the beginning of a text goes on
        as that one does, so most walks are short.
        """
        if self._trie is None:
            self._trie = _Trie(self._texts.folded(), self._automaton.signature)
            nodes = len(self._trie.letter)
            self._usual = np.full(nodes, -1, np.int32), np.zeros(nodes, bool)
            # The first walk is that of the beginning of a text.
            self._usual = self._walk(_START)
            self._unsafe(_START)
        trie = self._trie
        states, ends = self._walk(state)
        found = ends[trie.node]
        # A trace is in all texts that go on behind it.
        whole = np.flatnonzero(states == FOUND)
        edges = np.zeros(len(trie.ids) + 1, np.int32)
        np.add.at(edges, trie.span[whole, 0], 1)
        np.add.at(edges, trie.span[whole, 1], -1)
        found |= np.cumsum(edges)[:-1] > 0
        return np.sort(trie.ids[found])

    def _walk(self, state: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the state at each node, int32 [N], and whether texts that end there have a trace.

        Below a node with a trace, nothing is said.
        """
        trie = self._trie
        assert trie is not None
        usual_states, usual_ends = self._usual
        states, ends = usual_states.copy(), usual_ends.copy()
        nodes = np.zeros(1, np.int64)
        states[0] = state
        while len(nodes):
            parents = states[nodes]
            nodes, which = trie.below(nodes)
            parents = parents[which]
            # Each pair of a state and a character is stepped once.
            pairs = parents.astype(np.int64) * len(trie.characters) + trie.letter[nodes]
            distinct, inverse = np.unique(pairs, return_inverse=True)
            after, over = [], []
            for pair in distinct.tolist():
                before, letter = divmod(pair, len(trie.characters))
                after.append(self._step(before, trie.characters[letter]))
                over.append(self._ends(after[-1]))
            reached = np.array(after, np.int32)[inverse]
            states[nodes] = reached
            ends[nodes] = np.array(over, bool)[inverse]
            nodes = nodes[(reached != usual_states[nodes]) & (reached != FOUND)]
        return states, ends

    # -- training rows -----------------------------------------------------------------------------

    def unsafe(self, tokens: np.ndarray, agent: np.ndarray, vocab_size: int) -> Unsafe:
        """Finds what soft targets must not name in training rows.

        Args:
          tokens: int32 [n, L].
          agent: bool [n, L], True on the agent's tokens; each run of them is one text.
          vocab_size: V.
        """
        at = np.zeros(tokens.shape, np.int32)
        rows: dict[bytes, int] = {_NO_TOKENS.tobytes(): 0}
        sets = [_NO_TOKENS]
        places: Counter[int] = Counter()
        # Texts recur, and so do the sets of single places.
        known: dict[tuple[int, int], int] = {}
        for row, mask, out in zip(tokens, agent, at, strict=True):
            edges = np.flatnonzero(np.diff(np.pad(mask.astype(np.int8), 1)))
            for begin, end in zip(edges[::2], edges[1::2], strict=True):
                text = row[begin:end].tolist()
                for place, (token, ids) in enumerate(zip(text, self.behind(text), strict=False)):
                    key = (id(ids), token)
                    if key not in known:
                        left = ids[ids != token]
                        left = left[left < vocab_size]
                        number = rows.setdefault(left.tobytes(), len(sets))
                        if number == len(sets):
                            sets.append(left)
                        known[key] = number
                    out[begin + place] = known[key]
                    places[known[key]] += 1
        size = max(_FEWEST_ROWS, 1 << (len(sets) - 1).bit_length())
        table = np.zeros((size, vocab_size), bool)
        by_token = np.zeros(vocab_size, np.int64)
        for number, ids in enumerate(sets):
            table[number, ids] = True
            by_token[ids] += places[number]
        return Unsafe(at, table, self._account(places, by_token))

    def _account(self, places: Counter[int], by_token: np.ndarray) -> dict[str, Any]:
        order = np.argsort(-by_token, kind="stable")[: np.count_nonzero(by_token)]
        tokens = []
        for i in order[:_NAMED].tolist():
            tokens.append({"id": i, "text": self._texts.of(i), "places": int(by_token[i])})
        total = places.total()
        return {
            "places": total,
            "places_with_removed": total - places[0],
            "distinct": len(order),
            "tokens": tokens,
        }


class _Texts:
    """What a tokenizer's tokens add to a text."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        # Decoded behind another token: at the beginning of a text, some drop a leading space.
        self._anchor = tokenizer.encode("a", add_special_tokens=False)
        special = set(tokenizer.all_special_ids)
        ids = sorted(set(tokenizer.get_vocab().values()))
        texts = _decoded(tokenizer, [[*self._anchor, i] for i in ids])
        self._before = len(_decoded(tokenizer, [self._anchor])[0])
        self._texts = {}
        for i, text in zip(ids, texts, strict=True):
            # Special tokens have no text of their own, and stand where one ends.
            self._texts[i] = "" if i in special else text[self._before :]

    def of(self, token: int) -> str:
        """A token's text."""
        return self._texts.get(token, "")

    def whole(self, token: int) -> bool:
        """Whether a token's text consists of whole characters."""
        return "\ufffd" not in self.of(token)

    def joined(self, tokens: Sequence[int]) -> str:
        """The text of several tokens that are no whole characters by themselves."""
        return _decoded(self._tokenizer, [[*self._anchor, *tokens]])[0][self._before :]

    def folded(self) -> dict[int, str]:
        """The folded texts of all tokens that have one."""
        return {i: fold(text) for i, text in self._texts.items() if text}


def _decoded(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """Decodes rows of tokens as they stand, special ones too."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # many times faster
        return backend.decode_batch(rows, skip_special_tokens=False)
    return tokenizer.batch_decode(
        rows, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


class _Trie:
    """Tokens by the characters of their texts, where characters of one signature are one.

    Nodes are numbered from the root (0) level by level, so that the children of a node, and those
    of all nodes of a level, stand together.

    Args:
      texts: by id, folded.
      signature: of a character.

    Attributes:
      characters: one character of each signature.
      ids: int32 [T], the tokens, in the order of their texts.
      node: int32 [T], the node at which each ends.
      letter: int32 [N], the index in `characters` of the one that leads to each node.
      children: int32 [N, 2], the first child of each node, and the one behind its last.
      span: int32 [N, 2], the first token below each node, and the one behind its last.
    """

    def __init__(self, texts: dict[int, str], signature: Callable[[str], int]):
        numbers: dict[int, int] = {}
        self.characters: list[str] = []
        # One more than the index, as a zero says that a text is over.
        symbols = {}
        for character in sorted(set("".join(texts.values()))):
            bits = signature(character)
            if bits not in numbers:
                numbers[bits] = len(numbers)
                self.characters.append(character)
            symbols[ord(character)] = chr(numbers[bits] + 1)
        found = sorted((text.translate(symbols), i) for i, text in texts.items())
        self.ids = np.array([i for _, i in found], np.int32)
        words = np.array([text for text, _ in found])
        letters = words.view(np.uint32).reshape(len(words), -1)
        # Up to where each text is the same as the one before it.
        differs = np.ones(letters.shape, bool)
        differs[1:] = letters[1:] != letters[:-1]
        shared = differs.argmax(axis=1)
        shared[1:] = np.where(differs[1:].any(axis=1), shared[1:], letters.shape[1])
        lengths = (letters > 0).sum(axis=1)
        self.node = np.zeros(len(words), np.int32)
        letter = [np.zeros(1, np.int32)]
        parents = [np.zeros(1, np.int32)]
        spans = [np.array([[0, len(words)]], np.int32)]
        count = 1
        for depth in range(letters.shape[1]):
            rows = np.flatnonzero(lengths > depth)
            if not len(rows):
                break
            # A text begins a node of this level if it differs from the one before it up to here.
            new = shared[rows] <= depth
            begins = rows[new]
            parents.append(self.node[begins])
            letter.append(letters[begins, depth].astype(np.int32) - 1)
            which = np.cumsum(new) - 1
            self.node[rows] = count + which
            # Texts below one node follow each other.
            ends = np.append(rows[np.flatnonzero(new)[1:] - 1], rows[-1]) + 1
            spans.append(np.stack([begins, ends], axis=1).astype(np.int32))
            count += len(begins)
        self.letter, self.span = np.concatenate(letter), np.concatenate(spans)
        parent = np.concatenate(parents)
        parent[0] = -1
        nodes = np.arange(count)
        first = np.searchsorted(parent, nodes, side="left")
        self.children = np.stack([first, np.searchsorted(parent, nodes, side="right")], axis=1)

    def below(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the children of nodes, and for each which of `nodes` is its parent."""
        first, behind = self.children[nodes].T
        counts = behind - first
        which = np.repeat(np.arange(len(nodes)), counts)
        # Numbers within each range of children.
        offsets = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return first[which] + offsets, which


def check_patterns(patterns: Sequence[str], file: str) -> None:
    """Checks that the patterns of a user's setting can be followed token by token.

    Raises:
      UserError: one cannot; the sentence names the file.
    """
    for pattern in patterns:
        try:
            Automaton(pattern)
        except UnfollowableError as error:
            raise UserError(
                f"{file}: the pattern {pattern!r} has {error}, so that nobody can say which token "
                "completes it: write it without."
            ) from error


@functools.lru_cache(maxsize=8)
def completions(tokenizer: Any, marks: Marks) -> Completions:
    """Returns the completions of a tokenizer's tokens, made once a process."""
    return Completions(tokenizer, marks)
