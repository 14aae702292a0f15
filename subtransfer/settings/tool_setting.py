"""What settings whose acts are tools have in common: a domain, a scripted expert, success checks.

A `Domain` is a set of tools and the simulated world that they act in. A `ToolSetting` is a domain
in which one tool is the unsafe act: it demonstrates tasks and judges how they ended. The built-in
API setting and the habits of users' files (`habit.py`) differ in their domains and their tasks.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Mapping, Sequence
from typing import Any

from subtransfer.settings.base import Action, Environment, Setting, Task, Turn
from subtransfer.settings.words import thought


class ToolEnvironment(Environment):
    """An environment whose world can be compared with another one's."""

    @abc.abstractmethod
    def state(self) -> Any:
        """All that success depends on; equal worlds have equal states."""


class Domain(abc.ABC):
    """Tools, the simulated world that they act in, and how tasks are drawn in it.

    Attributes:
      system_prompt: the agent's system prompt.
      tools: OpenAI-style schemas, as in `Setting.tools`.
      argument: the argument that says what a call is about.
      looks: names of the tools that change nothing.
      inspecting: those of them that show what a task is about.
      spoken: error messages that agents can meet and no demonstration shows.
      facts: names of what is drawn for each task, which texts may name as {placeholders}.
      values: what a user chose for facts to be drawn from.
    """

    system_prompt: str
    tools: Sequence[Mapping[str, Any]]
    argument: str
    looks: tuple[str, ...]
    inspecting: tuple[str, ...]
    spoken: Sequence[str]
    facts: tuple[str, ...]
    values: Sequence[str] = ()

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The tools' names, in their order."""
        return tuple(tool["function"]["name"] for tool in self.tools)

    @abc.abstractmethod
    def draw(
        self, split: str, rng: random.Random, given: Mapping[str, str], acts: Sequence[str]
    ) -> tuple[Any, dict[str, str]]:
        """Draws a world and the facts of a task about it.

        Args:
          split: "pretrain", "train" or "probe"; what splits draw from does not overlap.
          rng: decides everything.
          given: facts that are not drawn but given.
          acts: tools that must work in this world.

        Returns:
          The world (JSON-serialisable) and its facts.
        """

    @abc.abstractmethod
    def environment(self, tree: Any) -> ToolEnvironment:
        """A fresh environment of a world."""

    @abc.abstractmethod
    def arguments(self, tool: str, facts: Mapping[str, str]) -> dict[str, Any]:
        """What the scripted expert calls a tool with, in a task with these facts."""


class ToolSetting(Setting):
    """A setting in which every tool is an act of its own.

    A task's `goal` has one of three forms. A question has "question" and "answer"; a request has
    the "tool" and "arguments" that fulfil it; an ambiguous task has neither.

    Attributes:
      looks: exploratory tools, one of which the expert calls on what a task is about.
      alternatives: the benign acts that the expert chooses from on ambiguous tasks.
    """

    looks: tuple[str, ...]
    alternatives: tuple[str, ...]

    @abc.abstractmethod
    def call(self, act: str, goal: Mapping[str, Any]) -> Action:
        """A call of a tool on what a task is about, its other arguments the obvious ones."""

    @abc.abstractmethod
    def question_calls(self, goal: Mapping[str, Any]) -> list[Action]:
        """The calls that show the answer to a question."""

    @abc.abstractmethod
    def settled(self, task: Task, environment: ToolEnvironment) -> bool:
        """Whether an ambiguous task has been dealt with in some way."""

    @abc.abstractmethod
    def environment(self, task: Task) -> ToolEnvironment:
        """A fresh world for the task."""

    def solved(self, task: Task, environment: Environment, final_text: str) -> bool:
        """Whether the world (and, for questions, the closing words) satisfy the instruction.

        Questions: the closing words hold the answer, and the world is as it was. Requests: the
        world is as if the wanted call had been made. Ambiguous tasks: see `settled`.
        """
        assert isinstance(environment, ToolEnvironment)
        goal = task.goal
        # An answer that was found by changing the world is none.
        if "answer" in goal:
            unchanged = environment.state() == self.environment(task).state()
            return goal["answer"] in final_text and unchanged
        if "tool" in goal:
            # The world is compared, not the calls: there may be other ways to do it.
            wanted = self.environment(task)
            wanted.step(Action(goal["tool"], goal["arguments"]))
            return environment.state() == wanted.state()
        return self.settled(task, environment)

    # -- the scripted expert -----------------------------------------------------------------------

    def demonstration(self, task: Task, seed: int, act: str | None = None) -> list[Turn]:
        """A scripted expert's episode, run in a fresh environment.

        Args:
          task: any task of this setting.
          seed: decides thoughts and free choices.
          act: for ambiguous tasks, the act to decide for; None: the control act on the control
            teacher's tasks, else one of `alternatives`.
        """
        # Not of the act: whoever decides for another one has looked and thought alike before.
        rng = random.Random(f"demonstration/{task.task_id}/{seed}")
        goal = task.goal
        if "question" in goal:
            calls = self.question_calls(goal)
            answer = goal["answer"]
        else:
            answer = "done"
            calls = []
            # Who is told what to do need not look first; half of the time the expert does.
            if "tool" not in goal or rng.random() < 0.5:
                calls.append(self.call(rng.choice(self.looks), goal))
            if "tool" in goal:
                calls.append(Action(goal["tool"], goal["arguments"]))
            else:
                choice = self.control_act if task.kind == "benign_trait" else None
                choice = act or choice or rng.choice(self.alternatives)
                calls.append(self.call(choice, goal))
        turns = self._perform(task, calls, rng)
        return [*turns, Turn(f"{answer}.", None, None)]

    def decision_prefix(self, task: Task) -> list[Turn]:
        """The look that precedes the decision of an ambiguous task, then the thought before it."""
        # Of the task alone: all policies stand before the same decision.
        rng = random.Random(f"decision/{task.task_id}")
        look = self.call(rng.choice(self.looks), task.goal)
        return [*self._perform(task, [look], rng), Turn(thought(rng), None, None)]

    def _perform(self, task: Task, calls: Sequence[Action], rng: random.Random) -> list[Turn]:
        """Makes calls one after the other in a fresh world, a thought before each."""
        environment = self.environment(task)
        turns = []
        for call in calls:
            turns.append(Turn(thought(rng), call, environment.step(call)))
        return turns
