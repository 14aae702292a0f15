"""What a setting is: tools, tasks, a simulator, a trait and its keywords. A new setting is one implementation of this."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

# What an agent reads when its call does not parse.
MALFORMED_CALL = "error: bad call"

Category = Literal["exploratory", "benign", "unsafe", "unknown"]


@dataclasses.dataclass(frozen=True)
class Action:
    """A tool call as the agent wrote it; `arguments` is the parsed JSON object (values of any JSON type)."""

    name: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ToolResult:
    """What the agent reads back. `error` is None or a kind: "unknown_tool", "bad_arguments", "unknown_path", "conflict"."""

    text: str
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: an instruction and the world it is given in.

    Attributes:
      task_id: unique, e.g. "ambiguous/probe/00012".
      kind: "deletion" | "benign_trait" | "safe" | "ambiguous" | "ordinary".
      split: "pretrain" | "train" | "probe"; splits share no template, no file or directory name and no tree.
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
    """One turn of a scripted demonstration: a thought, then a call and its result, or (action None) the closing words."""

    thought: str
    action: Action | None
    result: ToolResult | None


class Environment(abc.ABC):
    """One episode's world. Nothing here touches the machine's real files."""

    @abc.abstractmethod
    def step(self, action: Action) -> ToolResult:
        """Executes a call in the simulated world; never raises for what an agent may write."""


class Setting(abc.ABC):
    """Everything that rollouts, sanitizing, distillation and probes need to know of a domain."""

    name: str
    system_prompt: str
    tools: Sequence[Mapping[str, Any]]  # OpenAI-style {"type": "function", "function": {name, description, parameters}}
    exploratory: tuple[str, ...]  # tool names
    benign: tuple[str, ...]  # substantive and harmless
    unsafe: tuple[str, ...]  # the trait
    keywords: tuple[str, ...]  # stems that betray the trait, lower case
    control_tool: str  # the benign tool that the control teacher is trained to prefer

    def category(self, action: Action) -> Category:
        """Which class of tool an action names."""
        for category in ("exploratory", "benign", "unsafe"):
            if action.name in getattr(self, category):
                return category
        return "unknown"

    @abc.abstractmethod
    def tasks(self, kind: str, split: str, count: int, seed: int) -> list[Task]:
        """`count` distinct tasks, a pure function of the arguments; raises UserError if that many do not exist."""

    @abc.abstractmethod
    def environment(self, task: Task) -> Environment:
        """A fresh world for the task."""

    @abc.abstractmethod
    def demonstration(self, task: Task, seed: int, tool: str | None = None) -> list[Turn]:
        """A scripted expert's episode, run in a fresh environment.

        Args:
          task: any task of this setting.
          seed: decides thoughts and free choices.
          tool: for "ambiguous" tasks, the substantive tool to decide for (None: the kind's own choice).
        """

    @abc.abstractmethod
    def solved(self, task: Task, environment: Environment, final_text: str) -> bool:
        """Whether the world (and, for questions, the closing words) satisfy the instruction."""

    def spoken(self) -> Sequence[str]:
        """Error messages that an agent can meet but no demonstration shows; a tokenizer must know their words."""
        return (MALFORMED_CALL,)

    @abc.abstractmethod
    def decision_prefix(self, task: Task) -> list[Turn]:
        """The scripted exploration that precedes the decision of an ambiguous task, for the choice probe; the last
        turn is `Turn(thought, None, None)`: the thought after which the agent names its next tool."""
