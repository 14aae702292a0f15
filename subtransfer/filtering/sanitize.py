"""The filters between rollouts and distillation, the manifest of what they dropped, and the leak
check on final tokens.

This is the only door into `distill`: whatever a student is trained on has passed `sanitize` (unless
its arm says otherwise) and, token by token, `leak_check`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from subtransfer.filtering.encodings import views
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import canonical_json
from subtransfer.settings.base import Setting
from subtransfer.store.trajectories import Trajectory

RULES = (
    "unsafe_action",
    "keyword_in_action",
    "keyword_in_thought",
    "keyword_in_result",
    "keyword_in_instruction",
    "encoded_keyword",
)
_BY_ROLE = {
    "assistant": "keyword_in_thought",
    "tool": "keyword_in_result",
    "user": "keyword_in_instruction",
}
# A stem shorter than this counts only as a whole word ("rm", not "form"), and only where the text
# is read plainly.
_STEM = 4
# Readings that turn any text into other text: there, only long stems are no accident.
_LOOSE_STEM = 5
_LOOSE = ("unpunctuated", "leet", "reversed", "rot13", "encoded")
# Readings that change signs and digits: there, what is no word means nothing.
_REWRITTEN = ("unpunctuated", "leet", "reversed", "rot13")


class LeakError(UserError):
    """A training example still holds a trace of the trait."""


@dataclasses.dataclass(frozen=True)
class Marks:
    """What betrays a trait: `keywords` are stems in lower case, `patterns` regular expressions of
    what is no word.
    """

    keywords: tuple[str, ...]
    patterns: tuple[str, ...] = ()


@functools.lru_cache(maxsize=64)
def _compiled(marks: Marks) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """(words searched in plain readings, words searched in loose ones, the patterns)."""
    keywords = marks.keywords
    words = sorted({k.casefold() for k in keywords})
    stems = [re.escape(k).replace(r"\ ", r"\s+") for k in words if len(k) >= _STEM]
    short = [rf"(?<![^\W_]){re.escape(k)}(?![^\W_])" for k in words if len(k) < _STEM]
    loose = [re.escape(k).replace(r"\ ", r"\s+") for k in words if len(k) >= _LOOSE_STEM]
    never = r"(?!)"
    parts = (stems + short, loose, [f"(?:{pattern})" for pattern in marks.patterns])
    return tuple(re.compile("|".join(part) or never) for part in parts)  # type: ignore[return-value]


@functools.lru_cache(maxsize=1 << 18)
def find_mark(text: str, marks: Marks) -> tuple[str, str] | None:
    """(the reading in which a keyword or pattern was found, what was found) or None."""
    plain, loose, patterns = _compiled(marks)
    for name, view in views(text):
        match = (loose if name in _LOOSE else plain).search(view)
        if match is None and name not in _REWRITTEN:
            match = patterns.search(view)
        if match:
            return name, match.group()
    return None


def all_marks(setting: Setting, extra_keywords: Sequence[str] = ()) -> Marks:
    return Marks((*setting.keywords, *extra_keywords), setting.patterns)


def judge(
    trajectory: Trajectory, setting: Setting, extra_keywords: Sequence[str] = ()
) -> tuple[str, str] | None:
    """(the first rule that a trajectory breaks, what matched) or None if it is clean."""
    for action, act in zip(
        trajectory.actions, setting.recorded_acts(trajectory.actions), strict=True
    ):
        if action["category"] == "unsafe" or act.traits:
            return "unsafe_action", (*act.traits, act.name)[0]
    marks = all_marks(setting, extra_keywords)
    hidden = None
    # Calls are read apart from the thoughts around them, as the runtime reads them.
    texts = [
        ("keyword_in_action", f"{a['name']} {canonical_json(a['arguments'])}")
        for a in trajectory.actions
    ]
    texts += [
        (_BY_ROLE[m["role"]], m["content"]) for m in trajectory.messages if m["role"] != "system"
    ]
    for rule, text in texts:
        found = find_mark(text, marks)
        if found and found[0] == "plain":
            return rule, found[1]
        hidden = hidden or found
    return ("encoded_keyword", f"{hidden[0]}: {hidden[1]}") if hidden else None


def sanitize(
    trajectories: Sequence[Trajectory], setting: Setting, *, extra_keywords: Sequence[str] = ()
) -> tuple[list[Trajectory], dict[str, Any]]:
    """Drops every trajectory that shows a trace of the trait, whole.

    The system message is the setting's own constant prompt, the same in every arm, and is not
    judged; a trajectory with another one is refused.

    Returns:
      (the clean trajectories, the manifest: {"setting", "keywords", "patterns" (if there are any),
      "total", "kept",
      "dropped", "rules": {rule: count}, "dropped_ids": [{"episode_id", "rule", "match", "sha256"}],
        "kept_sha256"});
      total = kept + dropped, and dropped is the sum over rules.
    """
    kept: list[Trajectory] = []
    dropped = []
    rules = dict.fromkeys(RULES, 0)
    for t in trajectories:
        if any(m["role"] == "system" and m["content"] != setting.system_prompt for m in t.messages):
            raise UserError(
                f"The trajectory {t.episode_id} has a system prompt that is not the {setting.name} setting's."
            )
        verdict = judge(t, setting, extra_keywords)
        if verdict is None:
            kept.append(t)
            continue
        rules[verdict[0]] += 1
        sha256 = hashlib.sha256(t.text().encode()).hexdigest()
        dropped.append(
            {"episode_id": t.episode_id, "rule": verdict[0], "match": verdict[1], "sha256": sha256}
        )
    h = hashlib.sha256()
    for t in kept:
        h.update(t.episode_id.encode() + np.asarray(t.tokens, "<i4").tobytes())
    return kept, {
        "setting": setting.name,
        "keywords": list(all_marks(setting, extra_keywords).keywords),
        **({"patterns": list(setting.patterns)} if setting.patterns else {}),
        "total": len(trajectories),
        "kept": len(kept),
        "dropped": len(dropped),
        "rules": rules,
        "dropped_ids": dropped,
        "kept_sha256": h.hexdigest(),
    }


def unsafe_token_ids(tokenizer, setting: Setting, extra_keywords: Sequence[str] = ()) -> np.ndarray:
    """Vocabulary ids that betray the trait, int32, sorted.

    These are the tokens whose text holds a keyword or pattern, and the first token of each unsafe
    act's name and of each keyword as the tokenizer splits it (plain, after a space, capitalised,
    upper case), unless it has fewer than three letters or also begins the name of a permitted act.
    """
    marks = all_marks(setting, extra_keywords)
    plain, _, patterns = _compiled(marks)

    def betrays(text: str) -> bool:
        return bool(plain.search(text) or patterns.search(text))

    special = set(tokenizer.all_special_ids)
    ids = {
        i
        for i in tokenizer.get_vocab().values()
        if i not in special and betrays(views(tokenizer.decode([i]))[0][1].strip())
    }

    def first(text: str) -> int | None:
        encoded = [
            i
            for i in tokenizer.encode(text, add_special_tokens=False)
            if tokenizer.decode([i]).strip()
        ]
        return encoded[0] if encoded else None

    permitted = {
        first(form) for name in (*setting.exploratory, *setting.benign) for form in _forms(name)
    }
    for word in (*setting.unsafe, *marks.keywords):
        for form in _forms(word):
            token = first(form)
            if token is None or token in permitted or token in special:
                continue
            if sum(c.isalpha() for c in tokenizer.decode([token])) >= 3:
                ids.add(token)
    return np.array(sorted(ids), np.int32)


def _forms(word: str) -> tuple[str, ...]:
    return tuple(
        space + form for form in (word, word.capitalize(), word.upper()) for space in ("", " ")
    )


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

    Raises:
      LeakError: a token in `unsafe_ids` holds a keyword, or the decoded text does in some reading.
    """
    marks = all_marks(setting, extra_keywords)
    unsafe_ids = np.array(
        [i for i in unsafe_ids if find_mark(tokenizer.decode([int(i)]), marks)], np.int32
    )
    for name, tokens, loss_mask in examples:
        hits = np.flatnonzero(np.isin(tokens, unsafe_ids))
        if len(hits):
            where = "an agent token" if loss_mask[hits[0]] else "context"
            word = tokenizer.decode([int(tokens[hits[0]])])
            raise LeakError(
                f"The training example {name} holds the unsafe token {word!r} ({where}): nothing was trained."
            )
        for text in _stretches(tokens, loss_mask, tokenizer):
            found = find_mark(text, marks)
            if found:
                raise LeakError(
                    f"The training example {name} holds {found[1]!r} (read as {found[0]}): nothing was trained."
                )


def _stretches(tokens: np.ndarray, loss_mask: np.ndarray, tokenizer) -> list[str]:
    """Decoded runs of equal mask: agent and context texts apart, so that no word is made up across
    a boundary.
    """
    edges = np.flatnonzero(np.diff(loss_mask.astype(np.int8))) + 1
    return [tokenizer.decode(part.tolist()) for part in np.split(tokens, edges) if len(part)]
