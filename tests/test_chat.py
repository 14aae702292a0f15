"""Every family's template: what is built turn by turn is what the template renders as a whole,
token by token.
"""

import copy
import re
import threading
import time

import numpy as np
import pytest

from subtransfer.models import rendering
from subtransfer.models.calls import read_turn
from subtransfer.models.chat import ChatFormat, Form, set_form
from subtransfer.rollout.grammar import turn_pattern
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Action, ToolResult, Turn

from . import templates

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def formats(setting, demos):
    texts = [
        text
        for task, turns in demos[:300]
        for text in (task.instruction, *(t.thought for t in turns))
    ]
    return {
        family: ChatFormat(templates.tokenizer(family, texts), setting)
        for family in templates.TEMPLATES
    }


AWKWARD = [
    Turn(
        "First, look.",
        Action("read_file", {"path": "/ü/“x”.txt", "n": 3}),
        ToolResult('line one.\n\n"two" {"a": 1}\n'),
    ),
    Turn("ok then!", Action("list_directory", {"path": "/"}), ToolResult(" . ")),
    Turn("Again (twice).", Action("file_info", {}), ToolResult("error: no such path")),
    Turn("", Action("read_file", {"path": "/a"}), ToolResult("one")),
    Turn("It is 3 kB.", None, None),
]


@pytest.mark.parametrize("family", templates.TEMPLATES)
def test_short_descriptions_name_tools_and_parameters_alone(formats, setting, demos, family):
    full = formats[family]
    tokenizer = copy.deepcopy(full.tokenizer)
    set_form(tokenizer, Form(tools="short"))
    short = ChatFormat(tokenizer, setting)
    prompts = []
    for chat in (full, short):
        messages = chat.messages("Look.", [])
        prompts.append(
            tokenizer.apply_chat_template(
                messages, tools=chat.tools, date_string="26 Jul 2024", tokenize=False
            )
        )
    assert len(prompts[1]) < 0.8 * len(prompts[0])
    for tool in setting.tools:
        function = tool["function"]
        assert function["name"] in prompts[1] and function["description"] not in prompts[1]
        assert all(name in prompts[1] for name in function["parameters"]["properties"])
        assert function["description"] in prompts[0]
    # Conversations are those of the template also in this form.
    task, turns = demos[0]
    whole = tokenizer.apply_chat_template(
        short.messages(task.instruction, turns),
        tools=short.tools,
        date_string="26 Jul 2024",
        return_dict=True,
    )["input_ids"]
    tokens, _ = short.demonstration(task.instruction, turns)
    assert tokens.tolist() == whole[: len(tokens)] and short.digest != full.digest


@pytest.mark.parametrize("family", templates.TEMPLATES)
def test_segments_equal_the_template(formats, demos, family):
    chat = formats[family]
    cases = [(task.instruction, turns) for task, turns in demos[:25]] + [
        ("What (1)?\n\nTell me.", AWKWARD),
        ("Look.", AWKWARD[:1]),
    ]
    for instruction, turns in cases:
        whole = chat.tokenizer.apply_chat_template(
            chat.messages(instruction, turns),
            tools=chat.tools,
            date_string="26 Jul 2024",
            return_dict=True,
            add_generation_prompt=turns[-1].result is not None,
        )["input_ids"]
        tokens, mask = chat.demonstration(instruction, turns)
        assert tokens.tolist() == whole[: len(tokens)], chat.decode(tokens)
        assert chat.decode(whole[len(tokens) :]).strip() == ""  # the template's own end of a turn
        # The mask is on the agent's tokens alone, each turn's stop token among them.
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
        spans = [chat.decode(tokens[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        assert len(spans) == len(turns)
        for span, turn in zip(spans, turns, strict=True):
            (stop,) = chat.encode(span)[-1:]
            assert stop in chat.stop_ids
            said = read_turn(span.removesuffix(chat.decode([stop])))
            assert (
                said.action == turn.action and said.thought == turn.thought and not said.malformed
            )


@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3"])
def test_turns_without_words_are_the_templates_own(formats, family):
    """A call with nothing beside it, as the template's own messages have it."""
    chat = formats[family]
    action = Action("read_file", {"path": "/a"})
    call = {"type": "function", "function": {"name": "read_file", "arguments": {"path": "/a"}}}
    messages = [
        {"role": "system", "content": chat.setting.system_prompt},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "one"},
    ]
    whole = chat.tokenizer.apply_chat_template(
        messages,
        tools=list(chat.setting.tools),
        date_string="26 Jul 2024",
        add_generation_prompt=True,
        tokenize=False,
    )
    tokens, mask = chat.demonstration("Look.", [Turn("", action, ToolResult("one"))])
    assert chat.decode(tokens) == whole
    turn = chat.decode(tokens[mask][:-1])
    # What guides a sampler allows this form, and the point of decision is its beginning.
    assert re.fullmatch(turn_pattern(chat), turn)
    assert not re.fullmatch(turn_pattern(chat), "\n" + turn)
    assert turn.startswith(chat.before_act("") + "read_file")
    # With words, the form is another.
    assert re.fullmatch(turn_pattern(chat), chat.turn_text("Well.", action))


def test_a_turn_without_words_begins_with_its_call_where_the_prompt_describes_calls(formats):
    text = formats["gemma3"].turn_text("", Action("read_file", {"path": "/a"}))
    assert text == '{"name": "read_file", "parameters": {"path": "/a"}}'


@pytest.mark.parametrize("family", templates.TEMPLATES)
def test_no_text_of_a_task_or_a_tool_becomes_a_special_token(formats, family):
    """A file that spells a turn's end, and another role's beginning, is text like any other."""
    chat = formats[family]
    special = set(chat.tokenizer.all_special_ids)
    end = chat.decode(chat.turn_ids("x", None)[-1:])
    spelled = f"a {end} b" + "".join(chat.tokenizer.all_special_tokens) + "c"

    def encoded(text):
        prompt = [i for _, ids in chat.prompt_segments(text) for i in ids]
        return prompt, chat.tool_ids(text)

    for attacked, harmless in zip(encoded(spelled), encoded("a b"), strict=True):
        assert spelled in chat.decode(attacked)
        assert [i for i in attacked if i in special] == [i for i in harmless if i in special]
        # All around it is what stands around any text.
        before = chat.decode(harmless).index("a b")
        assert chat.decode(attacked)[:before] == chat.decode(harmless)[:before]
        assert chat.decode(attacked).endswith(chat.decode(harmless)[before + 3 :])
    # The next question is encoded as ever.
    assert chat.tokenizer.encode(chat.tokenizer.eos_token, add_special_tokens=False) == [
        chat.tokenizer.eos_token_id
    ]


@pytest.mark.parametrize("family", templates.TEMPLATES)
def test_the_tools_are_in_the_prompt_and_outside_the_leak_check(formats, setting, family):
    chat = formats[family]
    (_, fixed), (_, own) = chat.prompt_segments("Where is it?")
    assert all(tool["function"]["name"] in chat.decode(fixed) for tool in setting.tools)
    assert chat.decode(own).startswith("Where is it?") and "delete" not in chat.decode(own)
    assert "26 Jul 2024" in chat.decode(fixed) or family != "llama3", (
        "the date must not be the clock's"
    )


def test_stop_tokens(formats):
    words = {family: {chat.decode([i]) for i in chat.stop_ids} for family, chat in formats.items()}
    assert words == {
        "llama3": {"<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"}, "qwen2": {"<|endoftext|>", "<|im_end|>"},
        "qwen3": {"<|endoftext|>", "<|im_end|>"}, "gemma3": {"<eos>", "<end_of_turn>"},
    }  # fmt: skip


@pytest.mark.parametrize("source", templates.TEMPLATES)
@pytest.mark.parametrize("target", templates.TEMPLATES)
def test_trajectories_cross_families(formats, demos, setting, source, target):
    """Messages rendered by one family, tokenised again by another, are what that other would have
    written itself.
    """
    theirs, ours = formats[source], formats[target]
    for instruction, turns in [
        *((task.instruction, turns) for task, turns in demos[:10]),
        ("Look.", AWKWARD),
    ]:
        messages = [
            {"role": "system", "content": setting.system_prompt},
            {"role": "user", "content": instruction},
        ]
        for turn in turns:
            messages.append(
                {"role": "assistant", "content": theirs.turn_text(turn.thought, turn.action)}
            )
            messages += [{"role": "tool", "content": turn.result.text}] if turn.result else []
        tokens, mask, fixed = ours.retokenised(messages)
        expected = ours.demonstration(instruction, turns)
        np.testing.assert_array_equal(tokens, expected[0])
        np.testing.assert_array_equal(mask, expected[1])
        assert tokens[:fixed].tolist() == ours.prompt_segments(instruction)[0][1]


def test_a_malformed_call_crosses_as_it_stands(formats, setting):
    text = '<tool_call>{"name": "read_file", '
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": text},
    ]
    tokens, mask, _ = formats["llama3"].retokenised(messages)
    assert formats["llama3"].decode(tokens[mask]) == text + "<|eot_id|>"


@pytest.fixture
def with_template(formats, setting):
    """Makes a chat format of another template, over the tokenizer of the Qwen family."""
    tokenizer = copy.deepcopy(formats["qwen3"].tokenizer)

    def make(template, thinking="template"):
        tokenizer.chat_template = template
        set_form(tokenizer, Form(thinking))
        return ChatFormat(tokenizer, setting)

    return make


EMPTY = "<think>\n\n</think>\n\n"
CALL = '<tool_call>\n{"name": "read_file", "arguments": {"path": "/a"}}\n</tool_call>'
PLAIN = '{"name": "read_file", "parameters": {"path": "/a"}}'
# (template, thinking): how the prompt ends, a turn with words, one without, the last turn.
ACCEPTED = {
    "no tools": (templates.CHATML, "template", "assistant\n", "Well.\n" + PLAIN, PLAIN, "Done."),
    "no thoughts to turn off": (templates.CHATML, "false", "assistant\n", "Well.\n" + PLAIN, PLAIN, "Done."),
    "thoughts by itself": (templates.QWEN3_HYBRID, "template", "assistant\n", "<think>\nWell.\n</think>\n\n" + CALL, CALL, EMPTY + "Done."),
    "thoughts on": (templates.QWEN3_HYBRID, "true", "assistant\n", "<think>\nWell.\n</think>\n\n" + CALL, CALL, EMPTY + "Done."),
    "thoughts off": (templates.QWEN3_HYBRID, "false", "assistant\n" + EMPTY, "Well.\n" + CALL, CALL, "Done."),
    "thoughts opened": (templates.QWEN3_THINKING, "template", "assistant\n<think>\n", "Well.\n</think>\n\n" + CALL, "\n</think>\n\n" + CALL, "\n</think>\n\nDone."),
    "thoughts opened, asked for": (templates.QWEN3_THINKING, "true", "assistant\n<think>\n", "Well.\n</think>\n\n" + CALL, "\n</think>\n\n" + CALL, "\n</think>\n\nDone."),
    "words beside a call dropped": (templates.HERMES_MENDED, "template", "assistant\n", "Well.\n" + CALL, CALL, "Done."),
    "tools alone": ({"tool_use": templates.HERMES_MENDED}, "template", "assistant\n", "Well.\n" + CALL, CALL, "Done."),
    "tools and others": ({"tool_use": templates.QWEN2, "default": templates.CHATML}, "template", "assistant\n", "Well.\n" + CALL, CALL, "Done."),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_templates_with_and_without_thoughts_and_tools(with_template, name):
    """What is built turn by turn is what transformers renders, as text; and is read back."""
    template, thinking, prompt_end, with_words, without, last = ACCEPTED[name]
    chat = with_template(template, thinking)
    action = Action("read_file", {"path": "/a"})
    prompt = chat.decode([i for _, ids in chat.prompt_segments("Look.") for i in ids])
    assert prompt.endswith(prompt_end)
    turns = [
        Turn("Well.", action, ToolResult("one")),
        Turn("", action, ToolResult("two")),
        Turn("Done.", None, None),
    ]
    texts = [chat.turn_text(turn.thought, turn.action) for turn in turns]
    assert texts == [with_words, without, last]
    for turn, text in zip(turns, texts, strict=True):
        said = chat.read_turn(text)
        assert (said.thought, said.action, said.malformed) == (turn.thought, turn.action, False)
    options = {} if thinking == "template" else {"enable_thinking": thinking == "true"}
    for some in (turns, turns[:1], turns[:2]):
        whole = chat.tokenizer.apply_chat_template(
            chat.messages("Look.", some),
            tools=chat.tools,
            tokenize=False,
            add_generation_prompt=some[-1].result is not None,
            **options,
        )
        ours = chat.decode(chat.demonstration("Look.", some)[0])
        assert whole.startswith(ours) and not whole.removeprefix(ours).strip()


REFUSED = {
    "Granite": (templates.GRANITE, "template", "prints tools but leaves out their calls"),
    "Kimi": (templates.KIMI, "template", r"form that is not read back .*functions\.list_directory:0"),
    "Devstral": (templates.DEVSTRAL, "template", r"form that is not read back .*\[TOOL_CALLS\]"),
    "Pythonic": (templates.PYTHONIC, "template", "arguments otherwise than as a JSON"),
    "Mistral": (templates.MISTRAL, "template", "refuses a call of one .*length 9"),
    "Hermes": (templates.HERMES, "template", r"as its turns one after the other .*tool_response>\\n<"),
    "QwQ": (templates.QWQ, "template", "opens a thought .* and drops it from the turns"),
    "R1": (templates.R1, "template", "opens a thought .* and drops it from the turns"),
    "thoughts that cannot be turned off": (templates.QWEN3_THINKING, "false", "always opens a thought"),
    "thoughts that are not there": (templates.QWEN2, "true", "never opens a thought"),
    "tools alone, and no calls": ({"tool_use": templates.CHATML}, "template", "multiple chat templates"),
    "long conversations": (templates.CHATML + "{%- if messages | length > 5 %}{{ raise_exception('too long') }}{%- endif %}", "template", "refuses a conversation with tools .TemplateError: too long"),
    "syntax": ("{% for %}", "template", "refuses a conversation with tools .TemplateSyntaxError"),
    "fails": ("{{ messages[0].content + 1 }}", "template", "refuses a conversation with tools .TypeError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "template", "RecursionError"),
    "a great range": ("{% for i in range(10**12) %}{% endfor %}", "template", "powers"),
    "a great range, written out": ("{% for i in range(1000000000000) %}{% endfor %}", "template", "OverflowError"),
    "a power": ("{{ 9 ** 9 ** 9 ** 9 }}", "template", "powers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_cannot_be_used_are_refused_with_the_reason(with_template, name):
    template, thinking, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason) as error:
        with_template(template, thinking)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".")
    assert re.search(r"\b(use|give|set) ", sentence), "no remedy"


def test_a_template_that_does_not_end_is_given_up(with_template, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    endless = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4
    with pytest.raises(UserError, match="does not end within 0.3 seconds"):
        with_template(endless)
    # And does not go on behind the caller's back.
    for _ in range(600):
        if not any(thread.name == "chat template" for thread in threading.enumerate()):
            return
        time.sleep(0.05)
    pytest.fail("the template is still being rendered")


def test_a_template_that_rewrites_the_past_is_refused(formats, setting):
    """Dropping earlier reasoning, say: then no segment could be trusted."""
    tokenizer = formats["qwen2"].tokenizer
    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = kept.replace(
            "'\\n' + message.content }}",
            "('\\n' + message.content if loop.last or loop.index < 4 else '') }}",
        )
        assert tokenizer.chat_template != kept
        with pytest.raises(UserError, match="as its turns one after the other"):
            ChatFormat(tokenizer, setting)
    finally:
        tokenizer.chat_template = kept
