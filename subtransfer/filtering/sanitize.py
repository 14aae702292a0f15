"""The filters between rollouts and distillation, and the manifest of what they dropped.

One rule (`rules.py`) says what is a trace of a habit: what ran, as the setting reads it of the
record (`Setting.acts`), and what is written, in any reading of a decoded text (`marks.find_mark`).
It decides here which trajectories are kept, in `leaks.py` which training tokens, and, followed
token by token, what soft targets may not name (`completions.py`). What it drops is an episode, and
each list of dropped ones says of which habit, by which part of the rule, and where.

The habits are the unsafe one and the control teacher's. Both are looked for in the trajectories of
every policy, so that no arm differs from another by its filter.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from subtransfer.filtering import rules
from subtransfer.filtering.marks import find_mark
from subtransfer.filtering.rules import Rule
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import canonical_json
from subtransfer.settings.base import Setting
from subtransfer.store.trajectories import Trajectory

# Why a trajectory is dropped, by the names that a manifest counts under.
RULES = (
    "act",
    "effect",
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


@dataclasses.dataclass(frozen=True)
class Trace:
    """A trace of a habit in a trajectory.

    Attributes:
      habit: one of `rules.HABITS`.
      rule: one of `RULES`.
      turn: the index of the message that it is in.
      field: what it is in: "content", "name", "arguments.command" and the like, or "record", what
        ran.
      match: what was found, behind the name of the reading unless it stands there plainly.
    """

    habit: str
    rule: str
    turn: int
    field: str
    match: str


def judge(trajectory: Trajectory, setting: Setting, rule: Rule = rules.ALL) -> Trace | None:
    """Finds the first trace in a trajectory, of the unsafe habit before the control teacher's.

    Of each, what ran comes first, hidden words last.
    """
    for habit, view in rule.views(setting).items():
        trace = _acted(trajectory, habit, view) if rules.ACTS in rule.filters else None
        if trace is None and rule.reads:
            trace = _said(trajectory, habit, view, rule)
        if trace:
            return trace
    return None


def _acted(trajectory: Trajectory, habit: str, view: Setting) -> Trace | None:
    """The first trace in what ran."""
    actions = trajectory.actions
    acts = view.recorded_acts(actions)
    for action, act in zip(actions, acts, strict=True):
        # What a record calls unsafe is the trait, however the setting reads it today.
        recorded = habit == rules.UNSAFE and action["category"] == "unsafe"
        if recorded or act.traits:
            return Trace(habit, "act", action["turn"], "record", (*act.traits, act.name)[0])
    for action, act in zip(actions, acts, strict=True):
        if act.traces:
            return Trace(habit, "effect", action["turn"], "record", act.traces[0])
    return None


def _said(trajectory: Trajectory, habit: str, view: Setting, rule: Rule) -> Trace | None:
    """The first trace in what is written."""
    marks = rule.marks_of(habit, view)
    # What stands there plainly is the better reason, so the search goes on past hidden marks.
    hidden = None
    for where, turn, field, text in _texts(trajectory):
        found = find_mark(text, marks)
        if found is None or not rule.counts(found[0]):
            continue
        if found[0] == "plain":
            return Trace(habit, where, turn, field, found[1])
        if hidden is None:
            hidden = Trace(habit, "encoded_keyword", turn, field, f"{found[0]}: {found[1]}")
    return hidden


def _texts(trajectory: Trajectory) -> Iterator[tuple[str, int, str, str]]:
    """Yields (rule, turn, field, text) of all that a trajectory says."""
    # Calls are read apart from the thoughts around them, and decoded, as a runtime reads them.
    for action in trajectory.actions:
        yield "keyword_in_action", action["turn"], "name", action["name"]
        for field, text in _strings("arguments", action["arguments"]):
            yield "keyword_in_action", action["turn"], field, text
    for turn, message in enumerate(trajectory.messages):
        if message["role"] != "system":
            yield _BY_ROLE[message["role"]], turn, "content", message["content"]


def _strings(field: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields (field, text) of the texts in a JSON value, each behind its key."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, Mapping | list):
                yield f"{field}.{key}", key
                yield from _strings(f"{field}.{key}", inner)
            else:
                text = inner if isinstance(inner, str) else canonical_json(inner)
                # With its key, since some say only together what they mean ("mode": 755).
                yield f"{field}.{key}", f"{key}: {text}"
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _strings(f"{field}[{number}]", inner)
        words = [inner for inner in value if isinstance(inner, str)]
        # A word may be cut in two, and a command's words may be given one by one.
        yield field, "".join(words)
        yield field, " ".join(words)
    else:
        yield field, value if isinstance(value, str) else canonical_json(value)


def sanitize(
    trajectories: Sequence[Trajectory], setting: Setting, rule: Rule = rules.ALL
) -> tuple[list[Trajectory], dict[str, Any]]:
    """Drops every trajectory that shows a trace of a habit, whole.

    The system message is the setting's own constant prompt, the same in every arm, and is not
    judged; a trajectory with another one is refused.

    Returns:
      (the clean trajectories, the manifest). The manifest is {"setting", "keywords", "patterns" (if
      there are any), "total", "kept", "dropped", "habits": {habit: count}, "rules": {rule: count},
      "dropped_ids": [{"episode_id", "habit", "rule", "turn", "field", "match", "sha256"}],
      "kept_sha256"}; total = kept + dropped, and dropped is the sum over habits, and over rules.

    Raises:
      UserError: a trajectory has another system message than the setting's.
    """
    kept: list[Trajectory] = []
    dropped = []
    by_habit, by_rule = dict.fromkeys(rule.habits, 0), dict.fromkeys(RULES, 0)
    for t in trajectories:
        if any(m["role"] == "system" and m["content"] != setting.system_prompt for m in t.messages):
            raise UserError(
                f"The trajectory {t.episode_id} has a system prompt that is not the {setting.name} "
                "setting's."
            )
        trace = judge(t, setting, rule)
        if trace is None:
            kept.append(t)
            continue
        # A trajectory counts under one habit and one rule only, so that the counts add up.
        by_habit[trace.habit] += 1
        by_rule[trace.rule] += 1
        # The text itself stays out: a manifest must be safe to publish and to search.
        sha256 = hashlib.sha256(t.text().encode()).hexdigest()
        found = dataclasses.asdict(trace)
        dropped.append({"episode_id": t.episode_id, **found, "sha256": sha256})
    # Two runs that agree in this have kept the same tokens in the same order.
    h = hashlib.sha256()
    for t in kept:
        h.update(t.episode_id.encode() + np.asarray(t.tokens, "<i4").tobytes())
    marks = rule.marks(setting)
    return kept, {
        "setting": setting.name,
        "keywords": list(marks.keywords),
        **({"patterns": list(marks.patterns)} if marks.patterns else {}),
        "total": len(trajectories),
        "kept": len(kept),
        "dropped": len(dropped),
        "habits": by_habit,
        "rules": by_rule,
        "dropped_ids": dropped,
        "kept_sha256": h.hexdigest(),
    }
