"""JSONL of chat messages: conversations and prompts in the form that TRL and OpenAI's API take.

A line is a conversation, with tool calls and their results,

    {"messages": [{"role": "user", "content": "..."},
                  {"role": "assistant", "content": "...", "tool_calls": [{"type": "function",
                    "function": {"name": "...", "arguments": {...}}}]},
                  {"role": "tool", "content": "..."},
                  {"role": "assistant", "content": "..."}],
     "tools": [...]}

or, as TRL writes it, {"prompt": [messages], "completion": [messages]}. A call's arguments may be an
object or a JSON string. Every mistake ends in a sentence that names the file and the line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from subtransfer.runtime.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
# OpenAI's newer name of a role, and what it is here.
_RENAMED = {"developer": "system"}


@dataclasses.dataclass(frozen=True)
class Call:
    """A tool call: the tool's name and the parsed JSON object of its arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
      role: one of `ROLES`.
      content: its text; of an agent that calls a tool, the words before the call.
      call: an agent's tool call, or None.
    """

    role: str
    content: str
    call: Call | None = None


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One episode: an optional system message, one user message, then agent and tool in turn.

    Attributes:
      messages: in order; a call's result follows it, only the last call may be without.
      line: where it stood in its file, from 1.
    """

    messages: tuple[Message, ...]
    line: int = 0


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One task as a user wrote it.

    Attributes:
      instruction: the user's message.
      line: where it stood in its file, from 1.
      fields: what else the line says, by name.
    """

    instruction: str
    line: int
    fields: Mapping[str, Any]


class _Line:
    """A line of a file, for what is said of it."""

    def __init__(self, path: Path, number: int):
        self.path, self.number = path, number

    def refuse(self, mistake: str) -> NoReturn:
        """Raises the UserError of a mistake."""
        raise UserError(f"{self.path}, line {self.number}: {mistake}.")


def read(path: str | Path) -> list[Conversation]:
    """Reads a file of conversations.

    Raises:
      UserError: for every mistake in it; the sentence names the file, the line and the remedy.
    """
    found = [_conversation(line, value) for line, value in _objects(Path(path))]
    if not found:
        raise UserError(f"{path} holds no conversation: give one JSON object a line.")
    return found


def read_prompts(path: str | Path) -> list[Prompt]:
    """Reads a file of tasks: "instruction", or "prompt" or "messages" with one user message.

    Raises:
      UserError: for every mistake in it; the sentence names the file, the line and the remedy.
    """
    found = [_prompt(line, value) for line, value in _objects(Path(path))]
    if not found:
        raise UserError(f"{path} holds no task: give one JSON object a line.")
    return found


def write(
    path: str | Path,
    conversations: Sequence[Conversation],
    tools: Sequence[Mapping[str, Any]],
    *,
    arguments_as_text: bool = False,
) -> None:
    """Writes conversations, one a line, each with the tools' schemas.

    Args:
      path: the file, which is replaced.
      conversations: what `read` returns.
      tools: OpenAI-style schemas.
      arguments_as_text: a call's arguments as a JSON string, as OpenAI's API wants them; else as
        an object, as TRL and chat templates do.
    """
    with Path(path).open("w", encoding="utf-8") as file:
        for conversation in conversations:
            record = {
                "messages": as_messages(conversation, arguments_as_text=arguments_as_text),
                "tools": list(tools),
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def as_messages(
    conversation: Conversation, *, arguments_as_text: bool = False
) -> list[dict[str, Any]]:
    """A conversation as the list of messages that `apply_chat_template` and OpenAI's API take."""
    out: list[dict[str, Any]] = []
    call, number = None, 0
    for message in conversation.messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role == "tool" and call is not None:
            entry |= {"name": call.name, "tool_call_id": f"call_{number}"}
        if message.call is not None:
            call, number = message.call, number + 1
            arguments: Any = dict(call.arguments)
            if arguments_as_text:
                arguments = json.dumps(arguments, ensure_ascii=False)
            function = {"name": call.name, "arguments": arguments}
            entry["tool_calls"] = [
                {"id": f"call_{number}", "type": "function", "function": function}
            ]
        out.append(entry)
    return out


# -- reading a line ----------------------------------------------------------------------------


def _objects(path: Path) -> Iterator[tuple[_Line, dict[str, Any]]]:
    """The JSON object of each line that is not blank."""
    # Not `read_json_lines`, which is for files of ours: it takes a last line without an end for
    # one that was cut off, where people's files often end so.
    if not path.is_file():
        raise UserError(f"There is no file {path}: give a JSONL file of messages.")
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        line = _Line(path, number)
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            line.refuse(f"byte {error.start + 1} is no UTF-8; save the file as UTF-8")
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            line.refuse(f"no JSON ({error}); write one JSON object a line")
        if not isinstance(value, dict):
            line.refuse(f"a JSON {_kind(value)} where an object such as {{'messages': [...]}} goes")
        yield line, value


def _kind(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _conversation(line: _Line, value: Mapping[str, Any]) -> Conversation:
    """The conversation of a line."""
    parts = _message_lists(line, value)
    messages = [_message(line, item, n) for n, item in enumerate(parts, 1)]
    _check_order(line, messages)
    known = _tool_names(line, value.get("tools"))
    for message in messages:
        if message.call is not None and known and message.call.name not in known:
            line.refuse(
                f"a call of {message.call.name!r}, which the line's tools lack; "
                f"they are {', '.join(known)}"
            )
    return Conversation(tuple(messages), line.number)


def _message_lists(line: _Line, value: Mapping[str, Any]) -> list[Any]:
    """A line's messages, of either form, in one list."""
    both = "prompt" in value or "completion" in value
    if "messages" in value and both:
        line.refuse("both messages and a prompt or completion; give one of the two forms")
    if "messages" not in value and not both:
        near = ", ".join(list(value)[:5]) or "nothing"
        line.refuse(f"no messages, but {near}; write {{'messages': [...], 'tools': [...]}}")
    out: list[Any] = []
    for field in ("prompt", "completion") if both else ("messages",):
        part = value.get(field)
        if isinstance(part, str):
            line.refuse(f"{field} is a text; write it as a list of messages with role and content")
        if not isinstance(part, list):
            line.refuse(f"{field} is {_kind(part)}, not a list of messages")
        out += part
    return out


def _message(line: _Line, value: Any, number: int) -> Message:
    """One message of a line."""
    where = f"message {number}"
    if not isinstance(value, dict):
        line.refuse(f"{where} is a JSON {_kind(value)}; write an object with role and content")
    role = value.get("role")
    if isinstance(role, str):
        role = _RENAMED.get(role, role)
    if not isinstance(role, str) or role not in ROLES:
        line.refuse(f"{where} has the role {role!r}; the roles are {', '.join(ROLES)}")
    content = _text(line, where, value)
    if value.get("function_call"):
        line.refuse(f"{where} has a function_call, which tool_calls replace; write tool_calls")
    if value.get("weight", 1) != 1:
        line.refuse(
            f"{where} has the weight {value['weight']!r}, but all of an agent's turns are learned "
            "from; leave weight out"
        )
    calls = value.get("tool_calls")
    if not calls:
        return Message(role, content)
    if role != "assistant":
        line.refuse(f"{where} is of the role {role} and calls a tool; only the assistant may")
    if not isinstance(calls, list):
        line.refuse(f"{where}: tool_calls is {_kind(calls)}, not a list")
    if len(calls) > 1:
        line.refuse(
            f"{where} has {len(calls)} tool calls, where agents make one a turn; "
            "give each call a message of its own, followed by its result"
        )
    return Message(role, content, _call(line, where, calls[0]))


def _text(line: _Line, where: str, value: Mapping[str, Any]) -> str:
    """A message's text: a string, null beside a call, or OpenAI's list of text parts."""
    content = value.get("content")
    if content is None and value.get("tool_calls"):
        content = ""
    if isinstance(content, list):
        texts = []
        for part in content:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else part
                line.refuse(f"{where} has a part {kind!r} that is no text; give texts only")
            texts.append(part["text"])
        content = "".join(texts)
    if not isinstance(content, str):
        line.refuse(f"{where} has a content that is {_kind(content)}; write a string")
    reasoning = value.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        content = f"{reasoning}\n{content}" if content else reasoning
    try:
        content.encode()
    except UnicodeEncodeError:
        line.refuse(f"{where} holds half of a surrogate pair, which is no text; leave it out")
    return content


def _call(line: _Line, where: str, value: Any) -> Call:
    """A tool call of a message."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict):
        line.refuse(
            f"{where} has a tool call without a function; write {{'type': 'function', "
            "'function': {'name': ..., 'arguments': {...}}}"
        )
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        line.refuse(f"{where} has a tool call without a name; give function.name")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            line.refuse(f"{where}: the arguments of {name} are no JSON ({error})")
    if not isinstance(arguments, dict):
        line.refuse(
            f"{where}: the arguments of {name} are {_kind(arguments)}; write an object, or a JSON "
            "string of one"
        )
    return Call(name, arguments)


def _check_order(line: _Line, messages: Sequence[Message]) -> None:
    """Refuses what is not [system], user, then agent and tool in turn."""
    roles = [message.role for message in messages]
    rest = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in rest:
        line.refuse("a system message after the first message; there may be one, at the beginning")
    if rest[:1] != ["user"] or rest.count("user") != 1:
        line.refuse(
            f"{rest.count('user')} user messages; an episode has one, before the agent's turns"
        )
    if "assistant" not in rest:
        line.refuse("no assistant turn, so that there is nothing to learn; add the agent's turns")
    for before, after in zip(messages, messages[1:], strict=False):
        if after.role == "tool" and before.call is None:
            line.refuse("a tool result that follows no tool call; put it after the call's message")
        if before.call is not None and after.role != "tool":
            line.refuse(
                f"the call of {before.call.name} has no result; add a tool message after it"
            )
        if before.role == after.role == "assistant":
            line.refuse(
                "two assistant messages in a row; join them, or add the tool result between"
            )


def _tool_names(line: _Line, tools: Any) -> list[str]:
    """Names of a line's tools; none where it says nothing of them."""
    if isinstance(tools, str):  # data sets whose rows differ in schemas hold them as a JSON string
        try:
            tools = json.loads(tools)
        except ValueError as error:
            line.refuse(f"tools is a string that is no JSON ({error})")
    if tools is None:
        return []
    names = []
    for tool in tools if isinstance(tools, list) else [tools]:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            line.refuse(
                "tools holds an entry without a name; write {'type': 'function', 'function': "
                "{'name': ..., 'description': ..., 'parameters': {...}}}"
            )
        names.append(function["name"])
    return names


def _prompt(line: _Line, value: Mapping[str, Any]) -> Prompt:
    """The task of a line."""
    named = [field for field in ("instruction", "prompt", "messages") if field in value]
    if len(named) != 1:
        line.refuse("not one of instruction, prompt and messages; give one that says the task")
    fields = {name: field for name, field in value.items() if name not in named}
    given = value[named[0]]
    if isinstance(given, list):
        messages = [_message(line, item, n) for n, item in enumerate(given, 1)]
        if [message.role for message in messages] != ["user"]:
            line.refuse(f"{named[0]} must hold one user message and nothing else")
        given = messages[0].content
    if not isinstance(given, str) or not given.strip():
        line.refuse(f"{named[0]} is {_kind(given)} or empty; write the user's words")
    return Prompt(given, line.number, fields)
