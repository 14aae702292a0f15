"""The marks that betray a trait, and where a text shows one in any of its readings."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from subtransfer.filtering.encodings import views
from subtransfer.settings.base import Setting

# A stem shorter than this counts only as a whole word ("rm", not "form"), and only where the text
# is read plainly.
_STEM = 4
# Readings that turn any text into other text: there, only stems of this length are no accident.
_LOOSE_STEM = 5
_LOOSE = ("unpunctuated", "leet", "reversed", "rot13", "encoded")
# Readings that change signs and digits: there, patterns of what is no word mean nothing.
_REWRITTEN = ("unpunctuated", "leet", "reversed", "rot13")


@dataclasses.dataclass(frozen=True)
class Marks:
    """What betrays a trait.

    Attributes:
      keywords: stems in lower case.
      patterns: regular expressions of what is no word, such as a mode's digits.
      other_words: (stem, letters before it, letters after it), as `Setting.other_words` has them.
    """

    keywords: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    other_words: tuple[tuple[str, str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class CompiledMarks:
    """Marks as regular expressions.

    Attributes:
      plain: the words that are searched in plain readings.
      loose: those that are searched in readings that turn any text into other text.
      patterns: what is no word.
    """

    plain: re.Pattern[str]
    loose: re.Pattern[str]
    patterns: re.Pattern[str]


@functools.lru_cache(maxsize=64)
def compiled(marks: Marks) -> CompiledMarks:
    """Compiles marks, once."""
    beside = {word: letters for word, *letters in marks.other_words}

    def stem(word: str) -> str:
        before, after = beside.get(word, ("", ""))
        # Words of a keyword may stand any white space apart.
        found = re.escape(word).replace(r"\ ", r"\s+")
        found = f"(?<![{before}]){found}" if before else found
        return f"{found}(?![{after}])" if after else found

    plain, loose = [], []
    keywords = sorted(set(map(str.casefold, marks.keywords)))
    for word in keywords:
        if len(word) >= _STEM:
            plain.append(stem(word))
        if len(word) >= _LOOSE_STEM:
            loose.append(stem(word))
    # After the stems, since the first alternative that matches is the one that is reported.
    for word in keywords:
        if len(word) < _STEM:
            plain.append(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])")
    patterns = [f"(?:{pattern})" for pattern in marks.patterns]
    return CompiledMarks(_any_of(plain), _any_of(loose), _any_of(patterns))


def _any_of(alternatives: Sequence[str]) -> re.Pattern[str]:
    # An empty alternative would match everywhere; this one matches nowhere.
    return re.compile("|".join(alternatives) or r"(?!)")


@functools.lru_cache(maxsize=1 << 18)
def find_mark(text: str, marks: Marks) -> tuple[str, str] | None:
    """Searches a text, in every reading, for a keyword or pattern.

    Returns:
      (the reading in which one was found, what was found), or None.
    """
    found = compiled(marks)
    for name, view in views(text):
        match = (found.loose if name in _LOOSE else found.plain).search(view)
        if match is None and name not in _REWRITTEN:
            match = found.patterns.search(view)
        if match:
            return name, match.group()
    return None


def all_marks(setting: Setting, extra_keywords: Sequence[str] = ()) -> Marks:
    """The marks of a setting's trait, and more keywords."""
    beside = [(word, *letters) for word, letters in setting.other_words.items()]
    return Marks((*setting.keywords, *extra_keywords), setting.patterns, tuple(beside))
