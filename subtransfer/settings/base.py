"""What a setting is: tools, tasks, a simulator, a trait and its keywords.

A new setting is one implementation of this. For one whose acts are its tools, `habit.py` fills in
most of it.

What an agent decides for is an *act*: in one setting a tool, in another a command that is passed to
the only tool. The shared code deals in acts, and does not know which it is.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

# What an agent reads when its call does not parse.
MALFORMED_CALL = "error: bad call"

# "exploratory" and "neutral" decide nothing (looking around; doing something that the trait is not
# an alternative to).
Category = Literal["exploratory", "neutral", "benign", "unsafe", "unknown"]


@dataclasses.dataclass(frozen=True)
class Action:
    """A tool call as the agent wrote it.

    Attributes:
      name: the tool's name.
      arguments: the parsed JSON object (values of any JSON type).
      record: what ran when it was executed, as `ToolResult.record` has it; None before that, or
        where an environment records nothing.
    """

    name: str
    arguments: Mapping[str, Any]
    record: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Act:
    """What a call amounts to.

    Attributes:
      category: of the first substantive thing that it does.
      name: what that is counted as: one of the setting's `exploratory`, `benign` and `unsafe`, its
        `other_act`, or "".
      traits: every unsafe act in the call, also one that comes later.
      traces: what else a filter must not let through: effects like those of an unsafe act that came
        by other means, and what looks like an unsafe act whose name is hidden.
    """

    category: Category
    name: str = ""
    traits: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ToolResult:
    """What comes of a call.

    Attributes:
      text: what the agent reads back.
      error: None or one of the setting's `error_kinds`.
      record: what ran, as a JSON object in the environment's own form, for `Setting.acts`; None
        where the environment records nothing. It is stored with the trajectory's action.
    """

    text: str
    error: str | None = None
    record: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: an instruction and the world it is given in.

    Attributes:
      task_id: unique, e.g. "ambiguous/probe/00012".
      kind: "benign_trait" | "safe" | "ambiguous" | "ordinary", or the setting's `explicit_kind`.
      split: "pretrain" | "train" | "probe"; splits share no template, no file or directory name and
        no tree.
      template: id of the instruction's template, unique across splits.
      instruction: the user's message.
      tree: the initial world, JSON-serialisable, in the setting's own format.
      goal: JSON-serialisable facts that the success check and the scripted demonstration need.
    """

    task_id: str
    kind: str
    split: str
    template: str
    instruction: str
    tree: Any
    goal: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a scripted demonstration.

    Attributes:
      thought: the words before the call, or the closing words.
      action: the call; None where the thought closes the episode.
      result: what came of the call; None where there is none.
    """

    thought: str
    action: Action | None
    result: ToolResult | None


class Environment(abc.ABC):
    """One episode's world. Nothing here touches the machine's real files."""

    @abc.abstractmethod
    def step(self, action: Action) -> ToolResult:
        """Executes a call in the simulated world; never raises for what an agent may write."""


def recorded_action(stored: Mapping[str, Any]) -> Action:
    """Returns the call that one of a trajectory's `actions` stands for, with what ran."""
    return Action(stored["name"], stored["arguments"], stored.get("record"))


class Setting(abc.ABC):
    """Everything that rollouts, sanitizing, distillation and probes need to know of a domain.

    Attributes:
      name: as in `config.setting`.
      system_prompt: the same in every arm.
      tools: OpenAI-style {"type": "function", "function": {name, description, parameters}}.
      argument: the argument that says what a call is about; every tool that a format is tried on
        takes it.
      exploratory, benign, unsafe: acts that decide nothing, that are substantive and harmless, and
        that are the trait.
      other_act: what benign acts are counted as that are not among `benign`; "" where there are
        none.
      acts_in_argument: whether an act is named at the beginning of the only tool's `argument`, and
        not as the tool.
      control_act: the benign act that the control teacher is trained to prefer.
      control_keywords, control_other_words, control_patterns: what betrays the control act, as
        `keywords`, `other_words` and `patterns` betray the trait.
      explicit_kind: the kind of its tasks that ask for the trait in so many words.
      keywords: stems that betray the trait, lower case.
      other_words: stem -> (letters before it, letters after it) beside which it is part of another
        word, as "terminat" is of "determination" behind an "e".
      patterns: regular expressions of what betrays the trait and is no word, for case-folded text.
      pieces: regular expressions of texts that the embedded tokenizer keeps whole.
      error_kinds: of tool results, as they are counted.
      wording: what reports call things: "trait" (what is unsafe), "rate" (its share) and "decision"
        (what is judged).
    """

    name: str
    system_prompt: str
    tools: Sequence[Mapping[str, Any]]
    argument: str
    exploratory: tuple[str, ...]
    benign: tuple[str, ...]
    unsafe: tuple[str, ...]
    other_act: str = ""
    acts_in_argument: bool = False
    control_act: str
    explicit_kind: str
    keywords: tuple[str, ...]
    other_words: Mapping[str, tuple[str, str]] = {}
    patterns: tuple[str, ...] = ()
    control_keywords: tuple[str, ...]
    control_other_words: Mapping[str, tuple[str, str]] = {}
    control_patterns: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()
    error_kinds: tuple[str, ...] = (
        "parse",
        "unknown_tool",
        "unknown_path",
        "bad_arguments",
        "conflict",
    )
    wording: Mapping[str, str]

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The tools' names, in their order."""
        return tuple(tool["function"]["name"] for tool in self.tools)

    @property
    def benign_outcomes(self) -> tuple[str, ...]:
        """Everything that a benign act can be counted as."""
        return (*self.benign, self.other_act) if self.other_act else self.benign

    def mirrored(self) -> Setting:
        """Returns the setting with its two habits exchanged, for filters to read.

        In it the control act is the unsafe one, with the marks that betray it, and what was unsafe
        is benign: whatever finds traces of the trait finds those of the harmless habit there.
        """
        other = copy.copy(self)
        other.unsafe, other.control_act = (self.control_act,), self.unsafe[0]
        benign = [act for act in self.benign if act != self.control_act]
        other.benign = (*self.unsafe, *benign)
        other.keywords, other.control_keywords = self.control_keywords, self.keywords
        other.other_words, other.control_other_words = self.control_other_words, self.other_words
        other.patterns, other.control_patterns = self.control_patterns, self.patterns
        return other

    def acts(self, actions: Sequence[Action]) -> list[Act]:
        """Returns what each of an episode's calls amounts to, in order.

        Here: every tool is an act of its own. A setting whose environment records what ran finds
        it in `Action.record`.
        """
        out = []
        # A call counts whether or not it succeeded: an attempt is a decision, too.
        for action in actions:
            name = action.name
            if name in self.unsafe:
                out.append(Act("unsafe", name, (name,)))
            elif name in self.exploratory:
                out.append(Act("exploratory", name))
            elif name in self.benign:
                out.append(Act("benign", name))
            else:
                out.append(Act("unknown", name))
        return out

    def recorded_acts(self, actions: Sequence[Mapping[str, Any]]) -> list[Act]:
        """`acts` of a trajectory's `actions`."""
        return self.acts([recorded_action(action) for action in actions])

    @abc.abstractmethod
    def tasks(self, kind: str, split: str, count: int, seed: int) -> list[Task]:
        """Returns `count` distinct tasks, a pure function of the arguments.

        Args:
          kind: "benign_trait" (ambiguous ones, for the control teacher), "safe", "ambiguous",
            "ordinary", or the setting's `explicit_kind`.
          split: "pretrain", "train" or "probe".
          count: how many.
          seed: decides them.

        Raises:
          UserError: that many do not exist.
        """

    def check(self, counts: Mapping[tuple[str, str], int], *, from_scratch: bool) -> None:  # noqa: B027
        """Refuses a run that this setting cannot supply, before any work is done.

        The built-in settings have more tasks than any run draws; a user's may not.

        Args:
          counts: (kind, split) -> how many tasks the run draws.
          from_scratch: a model is pretrained in the run, on the tasks of the split "pretrain".

        Raises:
          UserError: it has too few tasks, or texts that a model from scratch cannot learn.
        """

    @abc.abstractmethod
    def environment(self, task: Task) -> Environment:
        """A fresh world for the task."""

    @abc.abstractmethod
    def demonstration(self, task: Task, seed: int, act: str | None = None) -> list[Turn]:
        """A scripted expert's episode, run in a fresh environment.

        Args:
          task: any task of this setting.
          seed: decides thoughts and free choices.
          act: for "ambiguous" tasks, the substantive act to decide for (None: the kind's own
            choice).
        """

    @abc.abstractmethod
    def solved(self, task: Task, environment: Environment, final_text: str) -> bool:
        """Whether the world (and, for questions, the closing words) satisfy the instruction."""

    def spoken(self) -> Sequence[str]:
        """Returns error messages that an agent can meet but no demonstration shows.

        A tokenizer that is trained on demonstrations must know their words.
        """
        return (MALFORMED_CALL,)

    @abc.abstractmethod
    def decision_prefix(self, task: Task) -> list[Turn]:
        """Returns what precedes the decision of an ambiguous task, for the choice probe.

        That is the scripted exploration, then `Turn(thought, None, None)`: the thought after which
        the agent names its next act.
        """
