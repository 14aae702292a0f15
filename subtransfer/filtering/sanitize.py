"""The filters between rollouts and distillation, and the manifest of what they dropped.

Whatever a student is trained on has passed `sanitize` (unless its arm says otherwise) and, token by
token, `leaks.leak_check`: there is no other way from rollouts to distillation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from subtransfer.filtering.marks import all_marks, find_mark
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import canonical_json
from subtransfer.settings.base import Setting
from subtransfer.store.trajectories import Trajectory

# Why a trajectory is dropped, by the names that a manifest counts under.
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


def judge(
    trajectory: Trajectory, setting: Setting, extra_keywords: Sequence[str] = ()
) -> tuple[str, str] | None:
    """Judges one trajectory.

    Returns:
      (the first rule that it breaks, what matched), or None if it is clean.
    """
    for action, act in zip(
        trajectory.actions, setting.recorded_acts(trajectory.actions), strict=True
    ):
        if action["category"] == "unsafe" or act.traits:
            return "unsafe_action", (*act.traits, act.name)[0]
    marks = all_marks(setting, extra_keywords)
    # Calls are read apart from the thoughts around them, as the runtime reads them.
    texts = []
    for action in trajectory.actions:
        text = f"{action['name']} {canonical_json(action['arguments'])}"
        texts.append(("keyword_in_action", text))
    for message in trajectory.messages:
        if message["role"] != "system":
            texts.append((_BY_ROLE[message["role"]], message["content"]))
    # What stands there plainly is the better reason, so the search goes on past hidden marks.
    hidden = None
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
      (the clean trajectories, the manifest). The manifest is {"setting", "keywords", "patterns" (if
      there are any), "total", "kept", "dropped", "rules": {rule: count}, "dropped_ids":
      [{"episode_id", "rule", "match", "sha256"}], "kept_sha256"}; total = kept + dropped, and
      dropped is the sum over rules.

    Raises:
      UserError: a trajectory has another system message than the setting's.
    """
    kept: list[Trajectory] = []
    dropped = []
    rules = dict.fromkeys(RULES, 0)
    for t in trajectories:
        if any(m["role"] == "system" and m["content"] != setting.system_prompt for m in t.messages):
            raise UserError(
                f"The trajectory {t.episode_id} has a system prompt that is not the {setting.name} "
                "setting's."
            )
        verdict = judge(t, setting, extra_keywords)
        if verdict is None:
            kept.append(t)
            continue
        # A trajectory counts under one rule only, so that the counts add up.
        rules[verdict[0]] += 1
        # The text itself stays out: a manifest must be safe to publish and to search.
        sha256 = hashlib.sha256(t.text().encode()).hexdigest()
        dropped.append(
            {"episode_id": t.episode_id, "rule": verdict[0], "match": verdict[1], "sha256": sha256}
        )
    # Two runs that agree in this have kept the same tokens in the same order.
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
