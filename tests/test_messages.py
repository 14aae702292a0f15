"""JSONL of messages: written and read back, taken by transformers' own templates, and refused."""

import json

import numpy as np
import pytest

from subtransfer.models.chat import ChatFormat
from subtransfer.rollout.conversations import export_trajectories, import_trajectories
from subtransfer.runtime.errors import UserError
from subtransfer.store import messages
from subtransfer.store.trajectories import Trajectory
from tests import templates

pytestmark = pytest.mark.quick

USER = {"role": "user", "content": "Please read it."}
DONE = {"role": "assistant", "content": "done."}
RESULT = {"role": "tool", "content": "ok"}


def _called(name="read_file", arguments=None, **more):
    function = {"name": name, "arguments": {"path": "/x"} if arguments is None else arguments}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}], **more}


def _trajectory(chat, setting, task, turns, number):
    """A scripted episode as a rollout would have recorded it."""
    tokens, mask = chat.demonstration(task.instruction, turns)
    said = [
        {"role": "system", "content": setting.system_prompt},
        {"role": "user", "content": task.instruction},
    ]
    actions = []
    for turn in turns:
        if turn.action:
            name, arguments = turn.action.name, dict(turn.action.arguments)
            category = "unsafe" if name in setting.unsafe else "benign"
            category = "exploratory" if name in setting.exploratory else category
            entry = {"turn": len(said), "name": name, "arguments": arguments}
            actions.append({**entry, "category": category, "error": None})
        said.append({"role": "assistant", "content": chat.turn_text(turn.thought, turn.action)})
        if turn.result:
            said.append({"role": "tool", "content": turn.result.text})
    zeros = np.zeros(len(tokens))
    return Trajectory(
        f"e{number}", task.task_id, task.kind, "p", 0, 0, tokens, mask, zeros.astype(np.float32),
        zeros.astype(np.int32), said, actions, True, False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ours(chat, setting, demos):
    return [_trajectory(chat, setting, *demo, number) for number, demo in enumerate(demos[::50])]


def test_what_is_written_is_read_back(tmp_path, chat, setting, ours):
    """Messages, calls, results and categories; and the very tokens that were sampled."""
    for as_text in (False, True):
        path = tmp_path / f"{as_text}.jsonl"
        assert export_trajectories(path, ours, setting, arguments_as_text=as_text) == 0
        back = import_trajectories(path, chat, setting)
        for old, new in zip(ours, back, strict=True):
            assert new.messages == old.messages and new.actions == old.actions
            np.testing.assert_array_equal(new.tokens, old.tokens)
            np.testing.assert_array_equal(new.loss_mask, old.loss_mask)
            assert np.isnan(new.behavior_logprobs[new.loss_mask]).all(), "nobody knows them"
            for index, message in enumerate(new.messages):
                part = chat.decode(new.tokens[new.turn_ids == index])
                assert message["content"] in part or message["role"] == "system"
    assert len({t.episode_id for t in back}) == len(ours)


def test_openai_wants_arguments_as_text(tmp_path, setting, ours):
    export_trajectories(tmp_path / "a.jsonl", ours, setting, arguments_as_text=True)
    calls = 0
    for line in (tmp_path / "a.jsonl").read_text().splitlines():
        record = json.loads(line)
        given = {}
        for message in record["messages"]:
            for call in message.get("tool_calls", []):
                assert isinstance(json.loads(call["function"]["arguments"]), dict)
                given[call["id"]] = call["function"]["name"]
                calls += 1
            if message["role"] == "tool":
                assert given[message["tool_call_id"]] == message["name"]
        assert {tool["function"]["name"] for tool in record["tools"]} == set(setting.tool_names)
    assert calls > 10


@pytest.mark.parametrize("family", ["embedded", "qwen2"])
def test_transformers_renders_what_is_written(tmp_path, chat, setting, demos, ours, family):
    """`apply_chat_template` on a written line gives the tokens that an agent is trained on."""
    export_trajectories(tmp_path / "a.jsonl", ours, setting)
    if family != "embedded":
        texts = [json.dumps(tool) for tool in setting.tools] * 30
        tokenizer = templates.tokenizer(family, [*texts, *(task.instruction for task, _ in demos)])
        chat = ChatFormat(tokenizer, setting)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    for (task, turns), line in zip(demos[::50], lines, strict=True):
        record = json.loads(line)
        rendered = chat.tokenizer.apply_chat_template(
            record["messages"], tools=record["tools"], tokenize=False
        )
        ids = chat.tokenizer.encode(rendered, add_special_tokens=False)
        tokens, _ = chat.demonstration(task.instruction, turns)
        # A template may end a conversation with a line break, which no agent writes.
        assert ids[: len(tokens)] == tokens.tolist() and len(ids) - len(tokens) < 2


def test_forms_of_one_conversation(tmp_path):
    """TRL's two forms, OpenAI's nulls, parts and texts of arguments: all are one conversation."""
    call = _called(arguments={"path": "/é"}, content="amber")
    text = _called(arguments='{"path": "/\\u00e9"}', content=[{"type": "text", "text": "amber"}])
    system = {"role": "system", "content": "File agent."}
    lines = [
        {"messages": [system, USER, call, RESULT, DONE]},
        {"prompt": [system, USER], "completion": [text, RESULT, DONE], "tools": "[]"},
        {"messages": [{**system, "role": "developer"}, USER, text, RESULT, DONE], "tools": None},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    found = messages.read(path)
    assert len({conversation.messages == found[0].messages for conversation in found}) == 1
    assert [conversation.line for conversation in found] == [1, 3, 5]
    assert found[0].messages[2].call == messages.Call("read_file", {"path": "/é"})
    assert found[0].messages[2].content == "amber"


SHAPES = {
    "no JSON": ("{", "no JSON"),
    "an array": ("[]", "JSON array where an object"),
    "no messages": ('{"text": "x"}', "no messages, but text"),
    "both forms": ({"messages": [USER, DONE], "prompt": []}, "both messages and a prompt"),
    "a text": ({"prompt": "Read.", "completion": "done."}, "prompt is a text"),
    "no list": ({"messages": {}}, "messages is object, not a list"),
    "no object": ({"messages": [USER, "done."]}, "message 2 is a JSON string"),
    "role": ({"messages": [USER, {"role": "bot", "content": ""}]}, "the role 'bot'"),
    "no agent": ({"messages": [USER]}, "no assistant turn"),
    "no user": ({"messages": [DONE]}, "0 user messages"),
    "two users": ({"messages": [USER, DONE, USER, DONE]}, "2 user messages"),
    "late system": ({"messages": [USER, {"role": "system", "content": ""}, DONE]}, "a system mess"),
    "no text": (
        {"messages": [USER, {"role": "assistant", "content": 3}]},
        "content that is number",
    ),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, DONE]},
        "part 'image_url' that is no text",
    ),
    "half a pair": ({"messages": [USER, {"role": "assistant", "content": "\ud800"}]}, "surrogate"),
    "several calls": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{}, {}]}]},
        "2 tool calls",
    ),
    "the user calls": ({"messages": [USER | _called() | {"role": "user"}]}, "calls a tool"),
    "no function": ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "a function"),
    "no name": ({"messages": [USER, _called(name="")]}, "without a name"),
    "arguments": ({"messages": [USER, _called(arguments="{path}")]}, "are no JSON"),
    "nested": ({"messages": [USER, _called(arguments='"[1]"')]}, "arguments of read_file are str"),
    "unknown to the line": (
        {"messages": [USER, _called()], "tools": [{"function": {"name": "x"}}]},
        "'read_file', which the line's tools lack",
    ),
    "tools": ({"messages": [USER, DONE], "tools": [{}]}, "entry without a name"),
    "result of nothing": ({"messages": [USER, DONE, RESULT]}, "follows no tool call"),
    "no result": ({"messages": [USER, _called(), DONE]}, "has no result"),
    "two in a row": ({"messages": [USER, DONE, DONE]}, "two assistant messages"),
    "old calls": ({"messages": [USER, DONE | {"function_call": {"name": "x"}}]}, "tool_calls repl"),
    "weight": ({"messages": [USER, DONE | {"weight": 0}]}, "the weight 0"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_mistakes_name_the_line(tmp_path, case):
    line, sentence = SHAPES[case]
    path = tmp_path / "mine.jsonl"
    good = json.dumps({"messages": [USER, DONE]})
    path.write_text(good + "\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(UserError, match="mine.jsonl, line 2: ") as raised:
        messages.read(path)
    assert sentence in str(raised.value) and str(raised.value).endswith(".")


def test_files_that_hold_nothing(tmp_path):
    with pytest.raises(UserError, match="no file"):
        messages.read(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    with pytest.raises(UserError, match="holds no conversation"):
        messages.read(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b'{"messages": "\xff"}')
    with pytest.raises(UserError, match="line 1: byte 15 is no UTF-8"):
        messages.read(tmp_path / "a.jsonl")


MEANT = {
    "tool": ([USER, _called("reed_file"), RESULT, DONE], "the nearest is 'read_file'"),
    "system": ([{"role": "system", "content": "You help."}, USER, DONE], "leave the message out"),
    "word": ([{"role": "user", "content": "Please defenestrate it."}, DONE], "'defenestrate'"),
    "special": ([USER, {"role": "assistant", "content": "ok<|end|>"}], "a special token"),
    "call in words": (
        [USER, {"role": "assistant", "content": '{"name": "read_file", "parameters": {}}'}],
        "write it as tool_calls",
    ),
}


@pytest.mark.parametrize("case", MEANT)
def test_what_the_setting_cannot_mean(tmp_path, chat, setting, case):
    said, sentence = MEANT[case]
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"messages": said}))
    with pytest.raises(UserError, match="mine.jsonl, line 1: ") as raised:
        import_trajectories(path, chat, setting)
    assert sentence in str(raised.value), raised.value


def test_what_messages_cannot_say_is_left_out(tmp_path, chat, setting, ours):
    broken = [_copy(t) for t in ours[:3]]
    broken[0].actions = [{"turn": 2, "name": "", "arguments": {}, "error": "parse"}]
    broken[1].truncated = True  # within its last turn
    assert export_trajectories(tmp_path / "a.jsonl", broken, setting) == 2
    assert len(messages.read(tmp_path / "a.jsonl")) == 1


def _copy(trajectory):
    return Trajectory(**vars(trajectory))


def test_prompts(tmp_path):
    path = tmp_path / "tasks.jsonl"
    lines = [
        {"instruction": "Look.", "kind": "safe"},
        {"prompt": [USER], "split": "probe"},
        {"messages": [USER]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = messages.read_prompts(path)
    assert [(p.instruction, p.line, dict(p.fields)) for p in found] == [
        ("Look.", 1, {"kind": "safe"}),
        ("Please read it.", 2, {"split": "probe"}),
        ("Please read it.", 3, {}),
    ]
    for line, sentence in (
        ({"kind": "safe"}, "not one of instruction"),
        ({"prompt": [USER, DONE]}, "one user message and nothing else"),
        ({"instruction": " "}, "or empty"),
    ):
        path.write_text(json.dumps(line))
        with pytest.raises(UserError, match="tasks.jsonl, line 1: ") as raised:
            messages.read_prompts(path)
        assert sentence in str(raised.value)
