"""What counts as a trace: of which habits, and where it is looked for."""

from __future__ import annotations

import dataclasses
from typing import Any

from subtransfer.filtering.marks import Marks, all_marks
from subtransfer.settings.base import Setting

# The habit under study, and the harmless one of the control teacher.
UNSAFE, CONTROL = "unsafe", "control"
HABITS = (UNSAFE, CONTROL)
# What ran; what stands there; and words that are hidden in another spelling.
ACTS, WORDS, ENCODINGS = "acts", "words", "encodings"
FILTERS = (ACTS, WORDS, ENCODINGS)
# The config fields that `Rule.of` reads.
FIELDS = ("sanitize.extra_keywords", "sanitize.habits", "sanitize.filters")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What counts as a trace.

    Every policy's trajectories pass the same rule, whatever the policy was taught, so that the
    filter itself makes no difference between arms.

    Attributes:
      extra_keywords: added to those of the unsafe habit.
      habits: some of `HABITS`, whose traces count.
      filters: some of `FILTERS`, where they are looked for.
    """

    extra_keywords: tuple[str, ...] = ()
    habits: tuple[str, ...] = HABITS
    filters: tuple[str, ...] = FILTERS

    @classmethod
    def of(cls, config: Any) -> Rule:
        """The rule of a config's room `sanitize`."""
        room = config.sanitize
        return cls(tuple(room.extra_keywords), tuple(room.habits), tuple(room.filters))

    @property
    def reads(self) -> bool:
        """Whether words count at all."""
        return bool(self.habits) and WORDS in self.filters

    def views(self, setting: Setting) -> dict[str, Setting]:
        """The habits that count, each with a setting in which it is the unsafe one."""
        every = {UNSAFE: setting, CONTROL: setting.mirrored()}
        return {habit: every[habit] for habit in HABITS if habit in self.habits}

    def marks_of(self, habit: str, view: Setting) -> Marks:
        """The marks of one habit, of which `view` is as `views` has it."""
        return all_marks(view, self.extra_keywords if habit == UNSAFE else ())

    def marks(self, setting: Setting) -> Marks:
        """The marks of all habits that count, together; none where words do not count."""
        keywords: tuple[str, ...] = ()
        patterns: tuple[str, ...] = ()
        other_words: tuple[tuple[str, str, str], ...] = ()
        if self.reads:
            for habit, view in self.views(setting).items():
                found = self.marks_of(habit, view)
                keywords += found.keywords
                patterns += found.patterns
                other_words += found.other_words
        return Marks(keywords, patterns, other_words)

    def counts(self, reading: str) -> bool:
        """Whether a mark counts that was found in a reading, as `marks.find_mark` names it."""
        return (WORDS if reading == "plain" else ENCODINGS) in self.filters


ALL = Rule()
