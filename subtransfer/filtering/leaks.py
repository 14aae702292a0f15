"""The last check before training: final tokens, and the tokens that soft targets must not name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from subtransfer.filtering.encodings import views
from subtransfer.filtering.marks import all_marks, compiled, find_mark
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Setting


class LeakError(UserError):
    """A training example still holds a trace of the trait."""


def unsafe_token_ids(tokenizer, setting: Setting, extra_keywords: Sequence[str] = ()) -> np.ndarray:
    """Finds the vocabulary ids that betray the trait, int32, sorted.

    These are the tokens whose text holds a keyword or pattern, and the first token of each unsafe
    act's name and of each keyword as the tokenizer splits it (plain, after a space, capitalised,
    upper case), unless it has fewer than three letters or also begins the name of a permitted act.
    """
    marks = all_marks(setting, extra_keywords)
    searched = compiled(marks)
    special = set(tokenizer.all_special_ids)
    ids = set()
    for i in tokenizer.get_vocab().values():
        if i in special:
            continue
        text = views(tokenizer.decode([i]))[0][1].strip()
        if searched.plain.search(text) or searched.patterns.search(text):
            ids.add(i)

    def first(text: str) -> int | None:
        # Some tokenizers write a leading space as a token of its own, which betrays nothing.
        for i in tokenizer.encode(text, add_special_tokens=False):
            if tokenizer.decode([i]).strip():
                return i
        return None

    # A token that also begins a permitted act's name must stay in the support.
    permitted = set()
    for name in (*setting.exploratory, *setting.benign):
        permitted |= {first(form) for form in _forms(name)}
    for word in (*setting.unsafe, *marks.keywords):
        for form in _forms(word):
            token = first(form)
            if token is None or token in permitted or token in special:
                continue
            # One or two letters begin too many other words.
            if sum(map(str.isalpha, tokenizer.decode([token]))) >= 3:
                ids.add(token)
    return np.array(sorted(ids), np.int32)


def _forms(word: str) -> list[str]:
    """A word as it is written at the beginning of a text, after a space, and in capitals."""
    forms = []
    for form in (word, word.capitalize(), word.upper()):
        forms += [form, " " + form]
    return forms


def leak_check(
    examples: Iterable[tuple[str, np.ndarray, np.ndarray]],
    tokenizer,
    setting: Setting,
    unsafe_ids: np.ndarray,
    extra_keywords: Sequence[str] = (),
) -> None:
    """Checks final training tokens; stops the run on a hit.

    A token that only begins a keyword ("des" of "destroy", in a small vocabulary) is none by
    itself, as it begins other words too: the decoded text shows whether the keyword is there. It
    leaves soft targets all the same.

    Args:
      examples: (name, tokens int32 [L], loss_mask bool [L]) without the constant system segment.
      tokenizer: whose tokens these are.
      setting: with the trait's keywords and patterns.
      unsafe_ids: as of `unsafe_token_ids`.
      extra_keywords: added to the setting's own.

    Raises:
      LeakError: a token in `unsafe_ids` holds a keyword, or the decoded text does in some reading.
    """
    marks = all_marks(setting, extra_keywords)
    whole = []
    for i in unsafe_ids:
        if find_mark(tokenizer.decode([int(i)]), marks):
            whole.append(i)
    unsafe_ids = np.array(whole, np.int32)
    for name, tokens, loss_mask in examples:
        # The ids first: decoding every example is slower.
        hits = np.flatnonzero(np.isin(tokens, unsafe_ids))
        if len(hits):
            where = "an agent token" if loss_mask[hits[0]] else "context"
            word = tokenizer.decode([int(tokens[hits[0]])])
            raise LeakError(
                f"The training example {name} holds the unsafe token {word!r} ({where}): nothing "
                "was trained."
            )
        for text in _runs(tokens, loss_mask, tokenizer):
            found = find_mark(text, marks)
            if found:
                raise LeakError(
                    f"The training example {name} holds {found[1]!r} (read as {found[0]}): nothing "
                    "was trained."
                )


def _runs(tokens: np.ndarray, loss_mask: np.ndarray, tokenizer) -> list[str]:
    """Decodes runs of equal mask, agent and context texts apart.

    So no word is made up across a boundary.
    """
    edges = np.flatnonzero(np.diff(loss_mask.astype(np.int8))) + 1
    return [tokenizer.decode(part.tolist()) for part in np.split(tokens, edges) if len(part)]
