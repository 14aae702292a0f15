"""The tokens of a decision: what stands before acts' names, and how real calls of each act begin.

The probability of an act is that of the tokens with which real calls of the act go on from the
decision point. Tokens do not end where names end: what closes a name may be the beginning of a
longer token, and a name's first letters may share a token with what stands before them. So names
are not encoded apart. Whole calls are, as an agent would write them, and their tokens compared:

- the decision point is the longest beginning that the calls of all acts have in common and that
  ends before the name;
- an act's beginning is what follows there, up to the first token that settles which act it is:
  the one with the character that closes a tool's name. A command's word is settled by its own
  last letter, as tokenizers begin another token behind a word;
- where that token depends on the arguments, an act has several beginnings, of which one call has
  one, and the act's probability is the sum of theirs.

No beginning is the beginning of another one, so the probabilities are of events that exclude each
other. Calls are taken as the template writes them: other spellings of a call are not counted.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from subtransfer.models.chat import ChatFormat
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Action, Setting, Task

Tokens = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Decision points of tasks, and how calls of each act begin there.

    Attributes:
      contexts: for each task, all tokens up to where acts' tokens differ.
      beginnings: for each act, the tokens of which one sequence follows in each of its calls.
    """

    contexts: list[Tokens]
    beginnings: dict[str, list[Tokens]]


def acts(setting: Setting) -> tuple[str, ...]:
    """Returns the substantive acts, the unsafe ones first."""
    return (*setting.unsafe, *setting.benign)


def decisions(tasks: Sequence[Task], chat: ChatFormat) -> Decisions:
    """Finds the decision points of ambiguous tasks and the beginnings of their acts.

    Args:
      tasks: whose scripted calls say how an act's calls look; an act has the beginnings that it has
        in any of them.
      chat: the tokenizer's format.

    Raises:
      UserError: the tokenizer cannot write an act's name, or two acts cannot be told apart.
    """
    if not getattr(chat.tokenizer, "is_fast", False):
        raise UserError(
            "The choice probe asks the tokenizer which characters each token stands for, which "
            "only fast ones can tell: add tokenizer.json to the checkpoint's directory."
        )
    # A command's word may be another's beginning; then what follows the word must tell them apart.
    read = _read(tasks, chat, closed=not chat.setting.acts_in_argument)
    if chat.setting.acts_in_argument and _undecided(read.beginnings):
        read = _read(tasks, chat, closed=True)
    for act, sequences in read.beginnings.items():
        if not sequences:
            raise UserError(
                f"The tokenizer cannot write {act!r}, so that the choice probe cannot ask for it: "
                "use a tokenizer that knows the word, or give the act another name."
            )
    pair = _undecided(read.beginnings)
    if pair:
        raise UserError(
            f"The tokens of a call of {pair[0]!r} begin like those of {pair[1]!r}, so that the "
            "choice probe cannot tell the two acts apart: give one of them another name."
        )
    return read


def _read(tasks: Sequence[Task], chat: ChatFormat, *, closed: bool) -> Decisions:
    """`decisions`, whether or not the acts can be told apart.

    Args:
      closed: a beginning ends with what follows the name, and not with the name.
    """
    names = acts(chat.setting)
    found: dict[str, dict[Tokens, None]] = {act: {} for act in names}
    contexts = []
    for task in tasks:
        *explored, decision = chat.setting.decision_prefix(task)
        calls = {act: _call(chat.setting, task, act) for act in names}
        context, beginnings = of_turn(chat, decision.thought, calls, closed=closed)
        before, _ = chat.demonstration(task.instruction, explored)
        contexts.append((*before.tolist(), *context))
        for act, sequence in beginnings.items():
            # What the tokenizer has no tokens for, no policy can write.
            if chat.tokenizer.unk_token_id not in sequence:
                found[act][sequence] = None
    return Decisions(contexts, {act: _shortest(list(found[act])) for act in names})


def of_turn(
    chat: ChatFormat, words: str, calls: Mapping[str, Action], *, closed: bool
) -> tuple[Tokens, dict[str, Tokens]]:
    """Divides the tokens of whole turns, a call of each act, at the decision.

    Args:
      chat: the tokenizer's format.
      words: what the agent says before the call.
      calls: act -> a real call of it.
      closed: a beginning ends with what follows the name, and not with the name.

    Returns:
      (the turn's tokens up to the decision, act -> the tokens that follow and settle the act).
    """
    name_at = len(chat.before_act(words))
    turns: dict[str, tuple[list[int], list[int]]] = {}
    for act, call in calls.items():
        text = chat.turn_text(words, call)
        if not text.startswith(act, name_at):
            raise UserError(
                f"The setting {chat.setting.name!r} demonstrates {act!r} with a call that does not "
                f"begin with that name, {text[name_at:]!r}: let its demonstration do so."
            )
        turns[act] = _encode(chat, text)
    size = 0
    for column in zip(*(ids for ids, _ in turns.values()), strict=False):
        if len(set(column)) > 1:
            break
        size += 1
    # What acts' names have in common belongs to the acts, and so does a token that reaches into
    # the name.
    ends = next(iter(turns.values()))[1]
    while size and ends[size - 1] > name_at:
        size -= 1
    context: Tokens = ()
    beginnings: dict[str, Tokens] = {}
    for act, (ids, ends) in turns.items():
        settled = name_at + len(act) + closed
        last = next(i for i, end in enumerate(ends) if end >= settled)
        context, beginnings[act] = tuple(ids[:size]), tuple(ids[size : last + 1])
    return context, beginnings


def _encode(chat: ChatFormat, text: str) -> tuple[list[int], list[int]]:
    """A text's tokens, and for each the number of characters up to its end."""
    encoded = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]


def _call(setting: Setting, task: Task, act: str) -> Action:
    """The call with which the scripted expert decides for an act."""
    for turn in setting.demonstration(task, 0, act):
        if turn.action and setting.acts([turn.action])[0].name == act:
            return turn.action
    raise UserError(
        f"The setting {setting.name!r} demonstrates no call of {act!r} on the task "
        f"{task.instruction!r}: let its demonstration(task, seed, act) make one."
    )


def _shortest(sequences: Sequence[Tokens]) -> list[Tokens]:
    """Those that no other one begins: what both begin would be counted twice."""
    out = []
    for sequence in sequences:
        if not any(sequence[:size] in sequences for size in range(len(sequence))):
            out.append(sequence)
    return out


def _undecided(beginnings: Mapping[str, Sequence[Tokens]]) -> tuple[str, str] | None:
    """Two acts of which a beginning of one is also the beginning of one of the other."""
    for one, other in itertools.permutations(beginnings, 2):
        for short, long in itertools.product(beginnings[one], beginnings[other]):
            if long[: len(short)] == short:
                return one, other
    return None
