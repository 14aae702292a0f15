"""Native tool calls of every family, read back; and what a runtime does with malformed ones."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from subtransfer.models.calls import read_turn
from subtransfer.settings.base import Action

pytestmark = pytest.mark.quick

READ = Action("read_file", {"path": "/a b.txt"})
JSON = '{"name": "read_file", "arguments": {"path": "/a b.txt"}}'
PARAMETERS = JSON.replace("arguments", "parameters")

UNDERSTOOD = {
    "qwen": ("Let me look.\n<tool_call>\n" + JSON + "\n</tool_call>", "Let me look."),
    "qwen, arguments as text": ('<tool_call>{"name": "read_file", "arguments": "{\\"path\\": \\"/a b.txt\\"}"}</tool_call>', ""),
    "qwen, two calls": ("<tool_call>" + JSON + '</tool_call>\n<tool_call>{"name": "x", "arguments": {}}</tool_call>', ""),
    "qwen3, with reasoning": ("<think>\nHm {\"name\": 1}.\n</think>\n\nSo.\n<tool_call>\n" + JSON + "\n</tool_call>", 'Hm {"name": 1}.\nSo.'),
    "llama json": (PARAMETERS, ""),
    "llama json after words": ("I will read it.\n" + PARAMETERS, "I will read it."),
    "llama json with a type": ('{"type": "function", "name": "read_file", "parameters": {"path": "/a b.txt"}}', ""),
    "llama json, nested": ('{"type": "function", "function": ' + PARAMETERS + "}", ""),
    "llama json, function as name": ('{"function": "read_file", "parameters": {"path": "/a b.txt"}}', ""),
    "llama python tag, json": ("<|python_tag|>" + PARAMETERS, ""),
    "llama python tag, call": ("<|python_tag|>read_file.call(path='/a b.txt')", ""),
    "llama function tag": ('<function=read_file>{"path": "/a b.txt"}</function>', ""),
    "gemma json": ("Reading.\n" + PARAMETERS, "Reading."),
    "gemma fenced json": ("Reading.\n```json\n" + PARAMETERS + "\n```", "Reading."),
    "gemma tool code": ('```tool_code\nprint(read_file(path="/a b.txt"))\n```', ""),
    "gemma list": ('```tool_code\n[read_file(path="/a b.txt")]\n```', ""),
}  # fmt: skip


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_native_calls(name):
    text, words = UNDERSTOOD[name]
    turn = read_turn(text)
    assert (turn.action, turn.malformed, turn.thought) == (READ, False, words)


MALFORMED = [
    "<tool_call>{", "<tool_call>{}</tool_call>", "<tool_call>" + JSON, '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "x", "arguments": []}</tool_call>', '{"name": "x"', '{"name": "x", "arguments": "no json"}',
    "<|python_tag|>read_file('/a')", "<|python_tag|>read_file(path=other)", "<|python_tag|>read_file(**x)", "<|python_tag|>",
    '<function=read_file>{"path": "/a"', "<function=read_file>no</function>", "```tool_code\nimport os\n```",
    "```tool_code\nprint(1)\n```", '<tool_call>"' + "[" * 5000 + "</tool_call>",
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_calls_are_noticed(text):
    turn = read_turn("First this. " + text)
    assert turn.action is None and turn.malformed and turn.thought == "First this."


@pytest.mark.parametrize(
    "text", ["Done.", "", "a {b} c", "<think>I could call " + JSON, "<think>\n\n</think>\n\nDone."]
)
def test_words_are_no_calls(text):
    turn = read_turn(text)
    assert turn.action is None and not turn.malformed
    if text.endswith("Done."):
        assert turn.thought == "Done."


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
)


@example("write_file", {"text": "</tool_call>"})
@given(st.text(alphabet="abc_", min_size=1), st.dictionaries(st.text(), json_values, max_size=4))
def test_any_json_call_survives(name, arguments):
    for text in (
        "<tool_call>" + json.dumps({"name": name, "arguments": arguments}) + "</tool_call>",
        json.dumps({"name": name, "parameters": arguments}),
    ):
        assert read_turn(text).action == Action(name, arguments)


PIECES = [
    *'{}[]"<>|/`\n :,ab',
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    '"name"',
    "```json\n",
    "<think>",
    "</think>",
]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_nothing_an_agent_writes_raises(text):
    turn = read_turn(text)
    assert not (turn.malformed and turn.action)
