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
    "qwen, not closed": ("Look.\n<tool_call>\n" + JSON + "\n", "Look."),
    "qwen, single quotes": ("<tool_call>{'name': 'read_file', 'arguments': {'path': \"/a b.txt\"}}</tool_call>", ""),
    "qwen, single quotes, not closed": ("<tool_call>\n{'name': 'read_file', 'arguments': {'path': '/a b.txt'}}", ""),
    "qwen, arguments encoded twice": ("<tool_call>" + json.dumps({"name": "read_file", "arguments": json.dumps(json.dumps(READ.arguments))}) + "</tool_call>", ""),
    "qwen, arguments first": ('<tool_call>{"arguments": {"path": "/a b.txt"}, "name": "read_file"}</tool_call>', ""),
    "llama json, arguments first": ('So.\n{"parameters": {"path": "/a b.txt"}, "name": "read_file"}', "So."),
    "llama json, single quotes, words after": ("{'name': 'read_file', 'parameters': {'path': '/a b.txt'}}\nThat's it}.", ""),
    "llama json after a quoted object": ('I saw {"name": "Bingo"}.\n' + PARAMETERS, 'I saw {"name": "Bingo"}.'),
    "llama 3.2 list": ("[read_file(path='/a b.txt')]", ""),
    "llama 3.2 list after words": ('I look.\n[read_file(path="/a b.txt"), x(y=1)]\n', "I look."),
    "gemma list": ('```tool_code\n[read_file(path="/a b.txt")]\n```', ""),
}  # fmt: skip


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_native_calls(name):
    text, words = UNDERSTOOD[name]
    turn = read_turn(text)
    assert (turn.action, turn.malformed, turn.thought) == (READ, False, words)


def test_line_breaks_within_strings_are_taken():
    text = '<tool_call>{"name": "write", "arguments": {"text": "a\n\tb"}}</tool_call>'
    assert read_turn(text).action == Action("write", {"text": "a\n\tb"})
    twice = json.dumps({"name": "write", "arguments": '{"text": "a\nb"}'})
    assert read_turn(twice).action == Action("write", {"text": "a\nb"})


def test_the_embedded_model_is_read_as_strictly_as_ever(chat):
    """It was pretrained on exact calls; its published results count what it gets wrong."""
    assert chat.read_turn("Let me look.<tool_call>" + JSON + "</tool_call>").action == READ
    for text in (
        "<tool_call>" + JSON,
        '<tool_call>{"name": "x", "arguments": {"a": "b\nc"}}</tool_call>',
        "<tool_call>{'name': 'x', 'arguments': {}}</tool_call>",
        'It says {"name": "Bingo", "age": 30}.',
        '{"name": "x", "arguments": "\\"{}\\""}',
    ):
        turn = chat.read_turn(text)
        assert turn.malformed and turn.action is None, text
    for text in ("[read_file(path='/a')]", '{"arguments": {}, "name": "x"}'):
        turn = chat.read_turn(text)
        assert turn.thought == text and turn.action is None and not turn.malformed


def test_escapes_that_python_does_not_know_warn_nobody():
    assert read_turn(r"<|python_tag|>f(x='\d')").action == Action("f", {"x": r"\d"})


MALFORMED = [
    "<tool_call>{", "<tool_call>{}</tool_call>", "<tool_call>" + JSON + " and", "<tool_call>" + JSON[:-1], '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "x", "arguments": []}</tool_call>', '{"name": "x"', '{"name": "x", "arguments": "no json"}',
    "<|python_tag|>read_file('/a')", "<|python_tag|>read_file(path=other)", "<|python_tag|>read_file(**x)", "<|python_tag|>",
    '<function=read_file>{"path": "/a"', "<function=read_file>no</function>", "```tool_code\nimport os\n```",
    "```tool_code\nprint(1)\n```", "<|python_tag|>f(x={1})", "<|python_tag|>f(x=b'')", "{'name': 'x', 'arguments': {'a': {1}}}",
    "{'name': 'x', 'arguments': {'a': 1}", "<tool_call>{'name': 'x'}</tool_call>", '{"arguments": {}, "name": 3}',
    '{"type": "function", "name": "x"}', '<tool_call>"' + "[" * 5000 + "</tool_call>",
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_calls_are_noticed(text):
    turn = read_turn("First this. " + text)
    assert turn.action is None and turn.malformed and turn.thought == "First this."


@pytest.mark.parametrize(
    "text",
    [
        "Done.",
        "",
        "a {b} c",
        "<think>I could call " + JSON,
        "<think>\n\n</think>\n\nDone.",
        'The file says {"name": "Bingo", "age": 30}, and no more.',
        "It says {'name': 'Bingo', 'age': 30}.",
        '```json\n{"type": "object", "name": "x"}\n```',
        "[see](https://a.b) and [f(x)]",
        "[f(x)]",
    ],
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
    *"{}[]\"<>|/`\n :,ab'\\()=",
    "'name': 'x'",
    "'arguments': {",
    "[f(",
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
