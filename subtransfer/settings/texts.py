"""The texts of a habit's tasks: phrases and whole texts by split, and tasks from JSONL.

A phrase ("archive {mail}") is put into sentences that differ between splits. Whole texts are given
by split. Either way, no sentence stands in two splits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from subtransfer.runtime.errors import UserError
from subtransfer.runtime.field import nearest
from subtransfer.settings.function_tools import placeholders
from subtransfer.settings.words import SPLITS
from subtransfer.store.messages import Prompt

KINDS = ("ambiguous", "explicit", "ordinary", "safe")
# The train and probe patterns use no word that the pretrain ones lack.
_PATTERNS = {
    "pretrain": ("{Do}.", "Please {do}.", "{Do} for me, now.", "Now {do}, please."),
    "train": ("Please {do} for me.", "{Do} now."),
    "probe": ("Please {do} now.", "{Do}, please."),
}
# Lines without a split are dealt out in this order.
# Pretraining gets the most, as in the built-in settings: words are learned there only.
_DEALT = ("pretrain", "train", "probe", "pretrain")

Texts = str | Sequence[str] | Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Template:
    """A text from which tasks are made.

    Attributes:
      template_id: unique across splits.
      kind: one of `KINDS`.
      split: "pretrain", "train" or "probe".
      text: with {facts} to be filled in.
      tool: the tool that the text asks for; "" in ambiguous tasks.
      facts: facts that are given and not drawn.
      tree: the whole world, where it is given and not drawn.
    """

    template_id: str
    kind: str
    split: str
    text: str
    tool: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tree: Any = None


def templates(kind: str, tool: str, texts: Texts) -> list[Template]:
    """The templates of one kind and tool.

    Args:
      kind: one of `KINDS`.
      tool: the tool that the texts ask for, or "".
      texts: a phrase, phrases, or split -> whole texts.

    Raises:
      UserError: the texts are of no such form.
    """
    by_split = _by_split(f"{kind}[{tool!r}]" if kind in ("ordinary", "safe") else kind, texts)
    prefix = f"{kind}/{tool}" if tool else kind
    out = []
    for split, found in by_split.items():
        for number, text in enumerate(found):
            out.append(Template(f"{split}/{prefix}/{number}", kind, split, text, tool))
    return out


def _by_split(what: str, texts: Texts) -> dict[str, list[str]]:
    """Whole texts of each split."""
    if isinstance(texts, Mapping):
        whole = {}
        for split, found in texts.items():
            if split not in SPLITS:
                raise UserError(
                    f"{what} has texts for the split {split!r}: the splits are {', '.join(SPLITS)}."
                )
            if isinstance(found, str) or not all(isinstance(text, str) for text in found):
                raise UserError(f"{what} has no list of texts for the split {split}: give one.")
            whole[split] = list(found)
        return whole
    phrases = [texts] if isinstance(texts, str) else list(texts)
    if not phrases or not all(isinstance(phrase, str) and phrase for phrase in phrases):
        raise UserError(
            f"{what} is {texts!r}: give a phrase such as 'archive {{path}}', a list of phrases, or "
            "a dict of texts by split."
        )
    out: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, patterns in _PATTERNS.items():
        for phrase in phrases:
            # Not str.capitalize, which would put the rest in lower case.
            capital = phrase[0].upper() + phrase[1:]
            for pattern in patterns:
                # Not str.format, which would fill in the phrase's own placeholders.
                out[split].append(pattern.replace("{do}", phrase).replace("{Do}", capital))
    return out


def from_prompts(prompts: Sequence[Prompt], tools: Sequence[str], unsafe: str) -> list[Template]:
    """The templates of tasks that were read from JSONL.

    Args:
      prompts: the tasks.
      tools: names of the tools there are.
      unsafe: the tool that explicit tasks ask for, unless they say another.

    Raises:
      UserError: a line says something unknown, or lacks the tool that it asks for.
    """
    known = ("kind", "split", "tool", "facts", "tree")
    out = []
    dealt = dict.fromkeys(KINDS, 0)
    for prompt in prompts:
        where = f"The task of line {prompt.line} ({prompt.instruction[:40]!r})"
        fields = prompt.fields
        for field in fields:
            if field not in known:
                raise UserError(f"{where} has a field {field!r}: there are {', '.join(known)}.")
        kind = fields.get("kind", "ambiguous")
        if kind not in KINDS:
            raise UserError(f"{where} is of the kind {kind!r}: there are {', '.join(KINDS)}.")
        split = fields.get("split", "")
        # Dealt in turns within each kind, so that every kind is in every split.
        if not split:
            split = _DEALT[dealt[kind] % len(_DEALT)]
            dealt[kind] += 1
        if split not in SPLITS:
            raise UserError(f"{where} is in the split {split!r}: there are {', '.join(SPLITS)}.")
        tool = fields.get("tool", unsafe if kind == "explicit" else "")
        if kind == "ambiguous" and tool:
            raise UserError(
                f"{where} is ambiguous and names the tool {tool!r}: leave the tool out, or give "
                "the task's kind."
            )
        if kind != "ambiguous" and tool not in tools:
            raise UserError(
                f"{where} is {kind} and names the tool {tool!r}: give the tool that does what it "
                f"asks for, one of {', '.join(tools)}."
            )
        facts = fields.get("facts", {})
        if not isinstance(facts, dict) or not all(isinstance(v, str) for v in facts.values()):
            raise UserError(f"{where} has the facts {facts!r}: give an object of texts.")
        name = f"{split}/{kind}/line {prompt.line}"
        text = prompt.instruction
        out.append(Template(name, kind, split, text, tool, facts, fields.get("tree")))
    return out


def check(found: Sequence[Template], facts: Sequence[str]) -> None:
    """Checks texts: placeholders that are facts, and no text in two splits.

    Raises:
      UserError: for the first one that is wrong.
    """
    splits: dict[str, str] = {}
    for template in found:
        text, named = template.text, placeholders(template.text)
        for name in (*named, *template.facts):
            if name not in facts:
                raise UserError(
                    f"The text {text!r} names the fact {name!r}; the nearest is "
                    f"{nearest(name, facts)!r} of {', '.join(facts)}."
                )
        if not named and not template.facts and template.tree is None:
            raise UserError(
                f"The text {text!r} names no fact, so that it says nothing of what it is about: "
                f"put in {{{facts[0]}}}."
            )
        if splits.setdefault(text, template.split) != template.split:
            raise UserError(
                f"The text {text!r} stands in the splits {splits[text]} and {template.split}: "
                "splits share no text, so change one."
            )


def unknown_words(found: Sequence[Template]) -> list[str]:
    """Words of the train and probe texts that no pretraining text has in the same form.

    A model that is pretrained in the run meets them untrained. A word at a sentence's beginning,
    and one after a space, are two forms, as they are two tokens.
    """
    forms: dict[bool, set[str]] = {True: set(), False: set()}
    for template in found:
        # What is filled in is drawn from words of its own; the break keeps its neighbours apart.
        text = re.sub(r"\{[^}]*\}", "\n", template.text)
        pretrained = template.split == "pretrain"
        forms[pretrained].update(re.findall(r"[ /_.]?[A-Za-z]+", text))
    return sorted(word.strip() for word in forms[False] - forms[True])
