"""Tools that are Python functions over a small world: the domain of a habit with tools of its own.

A tool is a function of the world, a dict of JSON values, and of what the agent says:

    def archive_mail(world, mail):
        "Move a mail into the archive."
        world[mail]["folder"] = "archive"

Its name, the first line of its docstring and its parameters are what the agent is told. It changes
the world, returns what the agent reads (nothing: "ok"), and refuses with `ToolError`.
"""

from __future__ import annotations

import copy
import inspect
import random
import string
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Action, ToolResult
from subtransfer.settings.tool_setting import Domain, ToolEnvironment
from subtransfer.settings.words import pairs

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
_MISSING = "error: no such thing"


class ToolError(Exception):
    """Raised by a tool for what an agent does wrong; the agent reads "error: MESSAGE"."""


class _Tool:
    """A function as a tool."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.name = function, function.__name__
        lines = (inspect.getdoc(function) or "").splitlines()
        if not lines:
            raise UserError(
                f"The tool {self.name} has no docstring: its first line is the description that "
                "the agent reads."
            )
        self.description = lines[0]
        parameters = list(inspect.signature(function).parameters.values())[1:]  # after the world
        hints = typing.get_type_hints(function, include_extras=True)
        self.types: dict[str, type] = {}
        self.notes: dict[str, str] = {}
        self.defaults: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
                raise UserError(
                    f"The tool {self.name} takes {parameter}: write out its parameters by name."
                )
            hint = hints.get(parameter.name, str)
            note = parameter.name
            if typing.get_origin(hint) is typing.Annotated:
                hint, note = typing.get_args(hint)[:2]
            if hint not in _TYPES:
                raise UserError(
                    f"The tool {self.name} takes {parameter.name} as {hint}: the types are str, "
                    "int, float and bool."
                )
            self.types[parameter.name], self.notes[parameter.name] = hint, str(note)
            if parameter.default is not parameter.empty:
                self.defaults[parameter.name] = parameter.default

    @property
    def schema(self) -> dict[str, Any]:
        """The OpenAI-style schema."""
        properties = {}
        for name, kind in self.types.items():
            properties[name] = {"type": _TYPES[kind], "description": self.notes[name]}
        # Also those with a default, which is the scripted expert's and not the agent's.
        parameters = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
        }
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": parameters,
        }
        return {"type": "function", "function": function}

    def accepts(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call's arguments are the tool's parameters, each of its type."""
        if set(arguments) != set(self.types):
            return False
        for name, kind in self.types.items():
            # Not isinstance, by which True is an int.
            if type(arguments[name]) is not kind or arguments[name] == "":
                return False
        return True


class WorldEnvironment(ToolEnvironment):
    """One episode's world behind functions."""

    def __init__(self, tools: Mapping[str, _Tool], world: Any):
        self._tools, self._world = tools, copy.deepcopy(world)

    def state(self) -> Any:
        """The whole world."""
        return self._world

    def step(self, action: Action) -> ToolResult:
        """Executes a call; one that fails changes nothing.

        Raises:
          UserError: the tool itself is broken.
        """
        tool = self._tools.get(action.name)
        if tool is None:
            return ToolResult("error: no such tool", "unknown_tool")
        if not tool.accepts(action.arguments):
            return ToolResult("error: bad arguments", "bad_arguments")
        # A tool may have changed half of what it wanted to before it fails: on a copy.
        world = copy.deepcopy(self._world)
        try:
            said = tool.function(world, **action.arguments)
        except ToolError as error:
            return ToolResult(f"error: {error}", "conflict")
        except LookupError:  # what the agent names is not in the world
            return ToolResult(_MISSING, "unknown_path")
        except Exception as error:
            raise UserError(
                f"The tool {tool.name} fails with {type(error).__name__}: {error}; raise "
                "ToolError for what an agent may do wrong."
            ) from error
        if said is not None and not isinstance(said, str):
            raise UserError(
                f"The tool {tool.name} returns {said!r}: return a text, or nothing for 'ok'."
            )
        self._world = world
        if said is None:
            return ToolResult("ok")
        return ToolResult(said or "empty")


class FunctionTools(Domain):
    """Functions as tools, and a world that is filled in for each task.

    Args:
      functions: the tools.
      system_prompt: the agent's.
      looks: names of the tools that change nothing.
      names: fact -> (first stems, joint, second stems); each joined pair belongs to one split.
      words: fact -> words that all splits use.
      world: nested dicts whose keys and texts may hold {facts}.
      errors: what the tools say when they refuse.

    Raises:
      UserError: for what does not fit together.
    """

    def __init__(
        self,
        functions: Sequence[Callable[..., Any]],
        *,
        system_prompt: str,
        looks: Sequence[str],
        names: Mapping[str, tuple[Sequence[str], str, Sequence[str]]],
        words: Mapping[str, Sequence[str]],
        world: Mapping[str, Any],
        errors: Sequence[str] = (),
    ):
        self._tools = {tool.name: tool for tool in map(_Tool, functions)}
        self.system_prompt = system_prompt
        self.tools = tuple(tool.schema for tool in self._tools.values())
        self.looks = self.inspecting = tuple(looks)
        self.facts = (*names, *words)
        self._words, self._world = dict(words), world
        refusals = [f"error: {error}" for error in errors]
        self.spoken = (_MISSING, "error: no such tool", "error: bad arguments", "empty", *refusals)
        self._names = {}
        for fact, parts in names.items():
            self._names[fact] = _by_split(fact, parts)
        self.values = []
        for by_split in self._names.values():
            for found in by_split.values():
                self.values += found
        for fact_words in words.values():
            self.values += fact_words
        for text in _texts_in(world):
            for fact in placeholders(text):
                if fact not in self.facts:
                    raise UserError(
                        f"The world names the fact {fact!r} in {text!r}: add it to names or words."
                    )
        parameters: list[str] = []
        for tool in self._tools.values():
            parameters += tool.types
        if not parameters:
            raise UserError("No tool takes a parameter: give what a call is about as one.")
        self.argument = parameters[0]
        for tool in self._tools.values():
            for name in set(tool.types) - set(tool.defaults):
                if name not in self.facts or tool.types[name] is not str:
                    raise UserError(
                        f"The tool {tool.name} takes {name!r}, which is no fact of a task: add "
                        f"{name!r} to names or words, or give the parameter a default, which is "
                        "what the scripted expert says."
                    )

    def draw(
        self, split: str, rng: random.Random, given: Mapping[str, str], acts: Sequence[str]
    ) -> tuple[Any, dict[str, str]]:
        """Draws facts, no name twice, and fills in the world; see `Domain.draw`."""
        facts = dict(given)
        # Drawn also where a fact is given, so that this one moves none of the draws that follow.
        for fact, by_split in self._names.items():
            free = [name for name in by_split[split] if name not in facts.values()]
            facts.setdefault(fact, rng.choice(free))
        for fact, values in self._words.items():
            facts.setdefault(fact, rng.choice(values))
        return filled(self._world, facts), facts

    def environment(self, tree: Any) -> WorldEnvironment:
        """A fresh environment of a world."""
        return WorldEnvironment(self._tools, tree)

    def arguments(self, tool: str, facts: Mapping[str, str]) -> dict[str, Any]:
        """What the scripted expert calls a tool with: its defaults, and facts for the rest."""
        known = self._tools[tool]
        out = {}
        for name in known.types:
            out[name] = known.defaults.get(name, facts.get(name))
        return out


def placeholders(text: str) -> list[str]:
    """The names in braces that a text holds.

    Raises:
      UserError: its braces cannot be read.
    """
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(
            f"The text {text!r} cannot be filled in ({error}): write {{{{ and }}}} for braces."
        ) from error
    return [name for _, name, _, _ in parts if name is not None]


def _texts_in(world: Any) -> Iterator[str]:
    """All keys and texts of a world."""
    if isinstance(world, str):
        yield world
    elif isinstance(world, Mapping):
        for key, value in world.items():
            yield from _texts_in(key)
            yield from _texts_in(value)
    elif isinstance(world, (list, tuple)):
        for value in world:
            yield from _texts_in(value)


def filled(template: Any, facts: Mapping[str, str]) -> Any:
    """A world with facts in place of {placeholders}, in keys and in texts."""
    if isinstance(template, str):
        return template.format(**facts)
    if isinstance(template, Mapping):
        out = {}
        for key, value in template.items():
            out[filled(key, facts)] = filled(value, facts)
        return out
    if isinstance(template, (list, tuple)):
        return [filled(value, facts) for value in template]
    return template


def _by_split(fact: str, parts: tuple[Sequence[str], str, Sequence[str]]) -> dict[str, list[str]]:
    """The names of a fact that belong to each split."""
    if not (isinstance(parts, tuple) and len(parts) == 3 and isinstance(parts[1], str)):
        raise UserError(
            f"names[{fact!r}] is {parts!r}: give (first stems, joint, second stems), of which "
            "each pair belongs to one split, such as (NOUNS, '_', PLACES)."
        )
    out = {split: pairs(*parts, split) for split in ("pretrain", "train", "probe")}
    fewest = min(out, key=lambda split: len(out[split]))
    # With fewer, tasks would repeat each other's names.
    if len(out[fewest]) < 4:
        raise UserError(
            f"names[{fact!r}] leaves {len(out[fewest])} for the {fewest} split: give more stems "
            "(8 and 8 are a good start)."
        )
    return out
