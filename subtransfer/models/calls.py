"""Reading tool calls back from what an agent wrote, in the model families' native formats.

Understood are `<tool_call>{...}</tool_call>` (Qwen, the embedded model), `<|python_tag|>` followed
by JSON or by a Python call, `<function=NAME>{...}</function>` and bare JSON (Llama 3.x), and a JSON
object or a Python call in a code fence (Gemma, by prompt), and `[name(key=value)]` (Llama 3.2).
Small mistakes that runtimes forgive are forgiven: a missing `</tool_call>`, line breaks within
strings, single quotes, arguments that are encoded twice.

As in a runtime without parallel calls, a turn's first call counts and what follows it is not read;
what begins like a call but cannot be read as one is malformed, and the agent is told so. A whole
JSON object without marks and without arguments is no call: answers quote such objects.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import warnings
from typing import Any

from subtransfer.settings.base import Action

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(</function>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```(?:tool_code|tool_call|python)\s*\n(.*?)(```|\Z)", re.DOTALL)
_BRACE = re.compile(
    r"(?:```json\s*)?\{\s*(?P<quote>[\"'])(?:name|type|function|arguments|parameters)(?P=quote)"
)
_STRICT_BRACE = re.compile(r'(?:```json\s*)?\{\s*"(?:name|type|function)"')
# A list of Python calls, on lines of its own up to the end of the turn.
_LIST = re.compile(r"^[ \t]*(\[\s*[A-Za-z_]\w*\(.*\])\s*\Z", re.DOTALL | re.MULTILINE)
# What a scanner of a Python dict looks at: strings as a whole, and braces.
_STRING_OR_BRACE = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[{}]""", re.DOTALL)
# Line breaks within strings are no JSON, but models write them and runtimes take them.
_DECODER, _STRICT_DECODER = json.JSONDecoder(strict=False), json.JSONDecoder()
# A model's arguments may be a string of JSON, or a string of that.
_ENCODINGS = 3


@dataclasses.dataclass(frozen=True)
class AgentTurn:
    """What an agent's turn says.

    Attributes:
      thought: the words before the call, or all of them where there is none; without the marks of a
        `<think>` block.
      action: the call, or None.
      malformed: something began like a call and is none.
    """

    thought: str
    action: Action | None
    malformed: bool = False


def read_turn(text: str, *, strict: bool = False) -> AgentTurn:
    """Reads an agent's turn (text without its stop token).

    It never raises for what an agent may write.

    Args:
      text: the turn.
      strict: nothing is forgiven, and each unmarked object that begins like a call is taken for
        one. So the embedded model is read: it was pretrained on exact calls alone.
    """
    reasoning, rest = "", text
    opened, end = text.lstrip().startswith("<think>"), text.find("</think>")
    if opened and end < 0:
        # A thought that never ended is no call, whatever it quotes.
        return AgentTurn(text, None)
    begin, call = _find(rest, strict)
    # What opens a thought may have been part of the prompt, so its end alone counts too.
    if end >= 0 and (opened or end < begin):
        reasoning, rest = text[:end].replace("<think>", "").strip(), text[end + len("</think>") :]
        begin, call = _find(rest, strict)
    words = rest[:begin].strip()
    if begin == len(rest):
        return AgentTurn(words or reasoning, None)
    thought = "\n".join(part for part in (reasoning, words) if part)
    return AgentTurn(thought, call, malformed=call is None)


def _find(text: str, strict: bool) -> tuple[int, Action | None]:
    """Finds the first call of a text.

    Returns:
      (where the call begins, the call or None if it is malformed); (len(text), None) where there
      is none.
    """
    # Every way of writing a call is tried; the one that begins first counts.
    begins = []
    at = text.find(CALL_OPEN)
    if at >= 0:
        body = text[at + len(CALL_OPEN) :]
        begins.append((at, _json_call(body, strict, before=CALL_CLOSE)))
    at = text.find(PYTHON_TAG)
    if at >= 0:
        body = text[at + len(PYTHON_TAG) :].strip()
        begins.append(
            (at, _json_call(body, strict) if body.startswith("{") else _python_call(body))
        )
    match = _FUNCTION.search(text)
    if match:
        body = f'{{"name": {json.dumps(match[1])}, "arguments": {match[2]}}}'
        begins.append((match.start(), _json_call(body, strict) if match[3] else None))
    match = _FENCE.search(text)
    if match:
        body = match[1].strip()
        fenced = _json_call(body, strict) if body.startswith("{") else _python_call(body)
        begins.append((match.start(), fenced))
    match = None if strict else _LIST.search(text)
    called = _python_call(match[1]) if match else None
    if match and called:
        begins.append((match.start(), called))
    # Bare JSON last: the other ways hold it too, and begin before it.
    brace = _STRICT_BRACE if strict else _BRACE
    match = brace.search(text)
    while match:
        begin = text.index("{", match.start())
        value, size = _read_object(text[begin:], strict)
        if strict or value is None or _is_call(value):
            begins.append((match.start(), _json_call(text[begin:], strict)))
            break
        # An object that an answer quotes; a call may follow.
        match = brace.search(text, begin + size)
    return min(begins, key=lambda found: found[0], default=(len(text), None))


def _read_object(body: str, strict: bool) -> tuple[Any, int]:
    """Reads the JSON value, or the Python dict in single quotes, at the beginning of `body`.

    Returns:
      (the value, how many characters it has); (None, 0) where there is none.
    """
    try:
        if strict or not re.match(r"\{\s*'", body):
            return (_STRICT_DECODER if strict else _DECODER).raw_decode(body)
        depth = 0
        for match in _STRING_OR_BRACE.finditer(body):
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if depth == 0:
                value = ast.literal_eval(_parse(body[: match.end()]))
                return (value, match.end()) if _is_json(value) else (None, 0)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        pass
    return None, 0


def _parse(source: str) -> ast.expr:
    """Parses a Python expression."""
    with warnings.catch_warnings():
        # Of escapes that Python does not know; they are an agent's, not ours.
        warnings.simplefilter("ignore")
        return ast.parse(source, mode="eval").body


def _is_json(value: Any) -> bool:
    """Whether a Python literal is what JSON can say; sets, bytes and complex numbers are not."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def _is_call(value: dict[str, Any]) -> bool:
    """Whether an object without marks is meant as a call, well-formed or not."""
    if isinstance(value.get("function"), dict):
        value = value["function"]
    return value.get("type") == "function" or "arguments" in value or "parameters" in value


def _json_call(body: str, strict: bool, before: str = "") -> Action | None:
    """Reads a JSON object at the beginning of `body` as a call.

    `before` must come after the object (or nothing at all, where that is forgiven); what a string
    inside it says is no end.
    """
    body = body.strip()
    value, end = _read_object(body, strict)
    closed = before in body[end:] or not (strict or body[end:].strip())
    if not isinstance(value, dict) or not closed:
        return None
    if isinstance(value.get("function"), dict):
        # {"type": "function", "function": {...}}, as the API's messages have it.
        value = value["function"]
    name = value.get("name", value.get("function"))
    arguments = value.get("arguments", value.get("parameters"))
    decoder = _STRICT_DECODER if strict else _DECODER
    for _ in range(1 if strict else _ENCODINGS):
        if not isinstance(arguments, str):
            break
        try:
            arguments = decoder.decode(arguments)
        except (ValueError, RecursionError):
            return None
    if isinstance(name, str) and isinstance(arguments, dict):
        return Action(name, arguments)
    return None


def _python_call(body: str) -> Action | None:
    """Reads a Python call; only literals count, and nothing is evaluated.

    Understood are `tool(path="/x")` and `tool.call(path="/x")`, also inside `print(...)` or a list.
    """
    try:
        node = _parse(body.strip())
        if isinstance(node, ast.List) and node.elts:
            node = node.elts[0]
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            and len(node.args) == 1
        ):
            node = node.args[0]
        if not isinstance(node, ast.Call) or node.args:
            return None
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr == "call":
            function = function.value
        if not isinstance(function, ast.Name) or any(k.arg is None for k in node.keywords):
            return None
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        return Action(function.id, arguments) if _is_json(arguments) else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
