"""Reading tool calls back from what an agent wrote, in the model families' native formats.

Understood are `<tool_call>{...}</tool_call>` (Qwen, the embedded model), `<|python_tag|>` followed
by JSON or by a Python call, `<function=NAME>{...}</function>` and bare JSON (Llama 3.x), and a JSON
object or a Python call in a code fence (Gemma, by prompt). As in a runtime without parallel calls,
a turn's first call counts and what follows it is not read; what begins like a call but cannot be
read as one is malformed, and the agent is told so.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re

from subtransfer.settings.base import Action

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(</function>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```(?:tool_code|tool_call|python)\s*\n(.*?)(```|\Z)", re.DOTALL)
_BRACE = re.compile(r'(?:```json\s*)?\{\s*"(?:name|type|function)"')


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


def read_turn(text: str) -> AgentTurn:
    """Reads an agent's turn (text without its stop token).

    It never raises for what an agent may write.
    """
    reasoning, rest = "", text
    opened, end = text.lstrip().startswith("<think>"), text.find("</think>")
    if opened and end < 0:
        # A thought that never ended is no call, whatever it quotes.
        return AgentTurn(text, None)
    begin, call = _find(rest)
    # What opens a thought may have been part of the prompt, so its end alone counts too.
    if end >= 0 and (opened or end < begin):
        reasoning, rest = text[:end].replace("<think>", "").strip(), text[end + len("</think>") :]
        begin, call = _find(rest)
    words = rest[:begin].strip()
    if begin == len(rest):
        return AgentTurn(words or reasoning, None)
    thought = "\n".join(part for part in (reasoning, words) if part)
    return AgentTurn(thought, call, malformed=call is None)


def _find(text: str) -> tuple[int, Action | None]:
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
        begins.append((at, _json_call(body, before=CALL_CLOSE)))
    at = text.find(PYTHON_TAG)
    if at >= 0:
        body = text[at + len(PYTHON_TAG) :].strip()
        begins.append((at, _json_call(body) if body.startswith("{") else _python_call(body)))
    match = _FUNCTION.search(text)
    if match:
        body = f'{{"name": {json.dumps(match[1])}, "arguments": {match[2]}}}'
        begins.append((match.start(), _json_call(body) if match[3] else None))
    match = _FENCE.search(text)
    if match:
        body = match[1].strip()
        fenced = _json_call(body) if body.startswith("{") else _python_call(body)
        begins.append((match.start(), fenced))
    # Bare JSON last: the other ways hold it too, and begin before it.
    match = _BRACE.search(text)
    if match:
        begins.append((match.start(), _json_call(text[text.index("{", match.start()) :])))
    return min(begins, key=lambda found: found[0], default=(len(text), None))


def _json_call(body: str, before: str = "") -> Action | None:
    """Reads a JSON object at the beginning of `body` as a call.

    `before` must come after the object: what a string inside it says is no end.
    """
    try:
        body = body.strip()
        value, end = json.JSONDecoder().raw_decode(body)
        # Without its closing mark, a call may have been cut off.
        if before not in body[end:]:
            return None
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            # {"type": "function", "function": {...}}, as the API's messages have it.
            value = value["function"]
        if not isinstance(value, dict):
            return None
        name = value.get("name", value.get("function"))
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(arguments, str):  # some models write them as a JSON string
            arguments = json.loads(arguments)
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
        node = ast.parse(body.strip(), mode="eval").body
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
        return Action(function.id, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords})
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
