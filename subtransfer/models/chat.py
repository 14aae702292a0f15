"""Conversations of a setting in the chat template of a tokenizer, turn by turn.

`ChatFormat` works with every Hugging Face tokenizer that has a chat template: it learns the
template's fixed pieces by rendering it with marker texts, then builds conversations from token
segments, and proves on one conversation that this is what the template renders as a whole. Sampled
tokens are therefore never decoded and tokenised again: two texts with the same letters can have
different tokens, and a policy's log-probs are of the tokens that it sampled. (No library renders
turns one by one; transformers renders whole conversations.)

Three ways of carrying tools are known, and found by what the template does:
- its own (Qwen, the embedded model): calls as `tool_calls`, results in the "tool" role;
- its own, but without room for words beside a call (Llama 3.x): the call's text stands in the
  content, after the words;
- none (Gemma): the prompt describes the tools and the JSON of a call, and results come as user
  messages.
A template that carries tools in a way that cannot be used is refused, with the reason.

Reasoning models have templates that open a thought for the agent, or leave it to the agent to open
one, or shut it at once (`enable_thinking=False`). Words beside a call then stand in the thought,
or behind it where it is shut. A template that drops the thoughts of past turns is refused: what
was sampled would not be what it renders.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from subtransfer.models import rendering
from subtransfer.models.calls import AgentTurn, read_turn
from subtransfer.models.stop_tokens import stop_ids
from subtransfer.models.tokenizer import CHAT_TEMPLATE
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Action, Setting, ToolResult, Turn

# Llama 3.x prints today's date unless it is given one: the clock has no place in an artefact.
_CONSTANTS = {"date_string": "26 Jul 2024"}
_TOOL_PROMPT = (
    "You have access to functions. If you decide to call one, write a line of JSON in the form "
    '{"name": the function\'s name, "parameters": an object of argument names and values} and '
    "nothing after it.\n"
)
_SHORT_TOOL_PROMPT = (
    'Call a function by one line, {"name": NAME, "parameters": {ARGUMENT: VALUE}}. Functions:\n'
)
# How an agent's thoughts are asked for: as the template does by itself, on, or off.
THINKING = ("template", "true", "false")
# How tools are described: by their whole schemas, or by names and parameters alone.
TOOLS = ("full", "short")
_ATTRIBUTE = "_subtransfer_form"
# Qwen's templates leave a past turn's empty thought out, unless the message has a thought that is
# empty but for this.
_NO_THOUGHT = {"reasoning_content": "\n"}
_ANOTHER = "give the model another template, or use another model"
# Characters of two texts that are shown where they differ.
_EXCERPT = 40
# Characters; longer texts do not come again, so their tokens are not kept.
_CACHED_TEXT = 400
# Marker texts that no template changes.
_SHOWN = "zq{}qz"


@dataclasses.dataclass(frozen=True)
class Form:
    """How conversations are written, where a template leaves a choice.

    Attributes:
      thinking: whether thoughts are asked for, one of `THINKING`.
      tools: how tools are described, one of `TOOLS`.
    """

    thinking: str = THINKING[0]
    tools: str = TOOLS[0]


def set_form(tokenizer: Any, form: Form) -> None:
    """Notes with a Hugging Face tokenizer how its conversations are written."""
    setattr(tokenizer, _ATTRIBUTE, form)


def form_of(tokenizer: Any) -> Form:
    """What `set_form` noted with a tokenizer; the usual form where nothing was."""
    return getattr(tokenizer, _ATTRIBUTE, Form())


def _without_descriptions(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's schema with names and types alone."""
    function = tool["function"]
    parameters = function["parameters"]
    properties = {}
    for name, schema in parameters["properties"].items():
        properties[name] = {key: value for key, value in schema.items() if key != "description"}
    kept = {"name": function["name"], "parameters": {**parameters, "properties": properties}}
    return {**tool, "function": kept}


def _signature(tool: Mapping[str, Any]) -> str:
    """A tool as a line: its name and its parameters."""
    function = tool["function"]
    return f"{function['name']}({', '.join(function['parameters']['properties'])})"


def _json(value: Any) -> str:
    # Without escapes, as the `tojson` that transformers gives to templates.
    return json.dumps(value, ensure_ascii=False)


def _difference(one: str, other: str) -> tuple[str, str]:
    """Where two texts begin to differ: what each has there."""
    at = 0
    while at < min(len(one), len(other)) and one[at] == other[at]:
        at += 1
    begin = max(at - _EXCERPT, 0)
    return one[begin : at + _EXCERPT], other[begin : at + _EXCERPT]


class ChatFormat:
    """Conversations of one setting in the chat template of one tokenizer.

    Attributes:
      tokenizer: the Hugging Face tokenizer, with what `set_form` noted.
      setting: whose system prompt and tools the conversations have.
      words_open: what stands before an agent's words beside a call.
      call_prefix: what stands between the words and a call's name.
      wordless_prefix: what stands before a call's name in a turn without words.
      call_middle: what stands between a call's name and its arguments.
      call_end: what stands behind the arguments.
      stop_ids: int32 [n], tokens that end an agent's turn.
      digest: SHA-256 (hex) of everything the template prints around the messages; equal ones render
        alike.

    Raises:
      UserError: the template cannot carry a conversation with tools, changes earlier turns when
        later ones come, writes calls that are not read back, does not do as `set_form` says,
        or does not end.
    """

    def __init__(self, tokenizer, setting: Setting):
        """Learns the template and proves what was learnt."""
        if not getattr(tokenizer, "chat_template", None):
            where = f" in {tokenizer.name_or_path}" if tokenizer.name_or_path else ""
            raise UserError(
                f"The tokenizer{where} has no chat template: use an instruct "
                "model, or give a template to base models with --config.chat.template=FILE.jinja."
            )
        self.tokenizer = tokenizer
        self.setting = setting
        special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._system = setting.system_prompt
        self._tool_role, self._tool_wrap = "tool", ("", "")
        # Where the words beside a call go: "content", "reasoning_content" or "before the call".
        self._words_as = "content"
        # What an agent's message says of its thoughts where it has none.
        self._silence: dict[str, str] = {}
        form = form_of(tokenizer)
        self._thinking, self._short = form.thinking, form.tools == "short"
        self._schemas = list(setting.tools)
        if self._short:
            self._schemas = [_without_descriptions(tool) for tool in self._schemas]
        self._learn()
        self._prove()

    # -- learning the template -------------------------------------------------------------------

    def _render(self, messages, *, generation=False, tools=True, think="") -> str:
        schemas = self._schemas if tools and self._tool_role == "tool" else None
        options: dict[str, Any] = {**_CONSTANTS, "add_generation_prompt": generation}
        think = think or self._thinking
        if think != "template":
            options["enable_thinking"] = think == "true"
        return rendering.render(self.tokenizer, messages, schemas, **options)

    def _tool_call(self, action: Action) -> dict[str, Any]:
        return {
            "type": "function",
            "function": {"name": action.name, "arguments": dict(action.arguments)},
        }

    def _learn(self) -> None:
        """Finds the template's fixed pieces by rendering it with marker texts."""
        shown = {name: _SHOWN.format(name) for name in ("user", "words", "tool", "name", "key")}
        head = [
            {"role": "system", "content": self._system},
            {"role": "user", "content": shown["user"]},
        ]
        call = self._tool_call(Action(shown["name"], {shown["key"]: "v"}))
        calling = {"role": "assistant", "content": "", "tool_calls": [call]}
        if self._prints_tools(head):
            self._check_native([*head, calling, self._result(shown["tool"])], shown)
        else:
            self._tool_role, self._words_as = "user", "before the call"
            self._tool_wrap = ("```tool_output\n", "\n```")
            asked, lines = _TOOL_PROMPT, [_json(tool["function"]) for tool in self.setting.tools]
            if self._short:
                asked, lines = _SHORT_TOOL_PROMPT, list(map(_signature, self.setting.tools))
            self._system += "\n\n" + asked + "\n".join(lines)
        head[0]["content"] = self._system
        result = self._result(shown["tool"])
        words = [*head, {"role": "assistant", "content": shown["words"]}]
        prompt = self._render(head, generation=True)
        final = self._render(words)
        tail = self._split(self._render([*words, result], generation=True), shown["words"])[1]
        # Some templates trim what they are given: then so must the segments' texts.
        spaced_user = {**head[1], "content": f" {shown['user']} "}
        spaced_tool = self._result(f" {shown['tool']} ")
        self._trims = {
            "user": f" {shown['user']}" not in self._render([head[0], spaced_user]),
            "tool": f" {shown['tool']}" not in self._render([*words, spaced_tool]),
        }
        self._check_thinking(head, prompt.partition(shown["user"])[2])
        self._before_user, self._after_user = self._split(prompt, shown["user"])
        wrapped = self._tool_wrap[0] + shown["tool"] + self._tool_wrap[1]
        between, self._after_tool = self._split(tail, wrapped)
        # Some templates print tool results as a JSON string: then the text must be escaped like
        # one.
        self._escape_tool = between.endswith('"') and self._after_tool.startswith('"')
        if not final.startswith(prompt):
            self._refuse_beginning(self._after_user)
        self._final_open, _ = self._split(final[len(prompt) :], shown["words"])
        self._learn_end(between)
        self._learn_call(head, prompt, call, shown)
        self._learn_wordless_call(head, calling, result, prompt, shown["name"])
        self._act_open = ""
        if self.setting.acts_in_argument:
            # The act is a word of the only tool's argument: its name begins inside that string.
            value = _json({self.setting.argument: ""}).removesuffix('"}')
            self._act_open = self.setting.tool_names[0] + self.call_middle + value
        pieces: tuple[str, ...] = (
            prompt,
            tail,
            self.words_open,
            self.call_prefix,
            self.call_middle,
            self.call_end,
            self._final_open,
        )
        # Where it follows from the others, a template's digest stays as it was without it.
        if self.wordless_prefix != self.words_open + self.call_prefix:
            pieces = (*pieces, self.wordless_prefix)
        self.digest = hashlib.sha256("\x00".join(pieces).encode()).hexdigest()

    def _prints_tools(self, head) -> bool:
        """Whether the template tells the agent by itself which tools there are."""
        try:
            with_tools = self._render(head)
        except rendering.CannotRender:
            # Without tools it may do; if not, that is said there.
            return False
        try:
            without = self._render(head, tools=False)
        except rendering.CannotRender:
            without = None
        if self.tokenizer.chat_template == CHAT_TEMPLATE:
            # By one token: the embedded model knows its tools from pretraining.
            return with_tools != without
        if with_tools == without:
            return False
        return all(name in with_tools for name in self.setting.tool_names)

    def _check_native(self, conversation, shown) -> None:
        """Refuses a template that prints tools, but no calls and results that can be used."""
        try:
            whole = self._render(conversation)
        except rendering.CannotRender as error:
            raise UserError(
                "The tokenizer's chat template prints tools but refuses a call of one "
                f"({error.reason}): {_ANOTHER}."
            ) from error
        for marker, what in ((shown["name"], "calls"), (shown["tool"], "results")):
            if marker not in whole:
                raise UserError(
                    f"The tokenizer's chat template prints tools but leaves out their {what}, so "
                    f"that what its model expects is not known: {_ANOTHER}."
                )
        if _json({shown["key"]: "v"}) not in whole:
            raise UserError(
                "The tokenizer's chat template writes a call's arguments otherwise than as a JSON "
                "object (some write Python, as name(key='value')): use a template that writes JSON."
            )

    def _check_thinking(self, head, after_user: str) -> None:
        """Refuses a template that does not do what `set_form` says."""
        if self._thinking == "template":
            return
        on, off = (self._render(head, generation=True, think=t) for t in ("true", "false"))
        if on != off or self._thinks(after_user) == (self._thinking == "true"):
            return
        does = "always opens" if self._thinking == "false" else "never opens"
        raise UserError(
            f"chat.enable_thinking={self._thinking} cannot be: the tokenizer's chat template does "
            f"not know that variable and {does} a thought; set chat.enable_thinking=template."
        )

    @staticmethod
    def _thinks(generation_prompt: str) -> bool:
        """Whether a generation prompt opens a thought and leaves it open."""
        _, opened, rest = generation_prompt.rpartition("<think>")
        return bool(opened) and "</think>" not in rest

    def _refuse_beginning(self, after_user: str) -> NoReturn:
        """Says why past turns begin otherwise than the generation prompt."""
        if self._thinks(after_user):
            raise UserError(
                "The tokenizer's chat template opens a thought (<think>) for the agent and drops "
                "it from the turns that have passed, so that they cannot be kept as they were "
                "sampled: use the template of a model that keeps its thoughts or has none."
            )
        raise UserError(
            "The tokenizer's chat template writes an agent's turn otherwise than its "
            "generation prompt begins one: use a template in which both agree."
        )

    @staticmethod
    def _split(text: str, marker: str) -> tuple[str, str]:
        """What stands before and after a marker; UserError where the template did not print it."""
        before, found, after = text.partition(marker)
        if not found:
            raise UserError(
                "The tokenizer's chat template does not print every message it is given (system, "
                "user, assistant and tool roles are needed): use the template of an instruct model "
                "with tools."
            )
        return before, after

    def _learn_end(self, between: str) -> None:
        """Finds what ends an agent's turn, and what stands between that and a tool result."""
        tokenizer = self.tokenizer
        end = self.encode(between)[0]
        if end not in tokenizer.added_tokens_decoder:
            raise UserError(
                "The tokenizer's chat template ends an agent's turn with plain text: use one that "
                "ends it with a special token."
            )
        self._turn_end = end
        self._end_text = self.decode([end])
        self._before_tool = between.removeprefix(self._end_text)
        ids = {end, *stop_ids(tokenizer)}
        # Llama 3 ends a turn with <|eom_id|> where it expects a tool's result.
        end_of_message = tokenizer.get_vocab().get("<|eom_id|>")
        if end_of_message is not None:
            ids.add(end_of_message)
        self.stop_ids = np.array(sorted(ids), np.int32)

    def _learn_call(self, head, prompt: str, call, shown) -> None:
        """Finds the template's own way of writing a call.

        It has text before the name, between name and arguments, and after.
        """
        self.words_open, separator = "", ""
        if self._tool_role == "user":
            # As the prompt describes a call.
            self.call_prefix = '\n{"name": "'
            self.call_middle = '", "parameters": '
            self.call_end = "}"
            return
        body = None
        for self._words_as in ("reasoning_content", "content", "before the call"):
            message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
            if self._words_as != "before the call":
                message[self._words_as] = shown["words"]
            try:
                whole = self._render([*head, message])
            except rendering.CannotRender:
                continue
            if not whole.startswith(prompt):
                # Such as words in a thought that the prompt has shut.
                continue
            body = whole.removeprefix(prompt)
            if shown["words"] in body:
                self.words_open, body = self._split(body, shown["words"])
                break
        else:
            separator = "\n"  # the template drops what is said beside a call
        if body is None:
            self._refuse_beginning(self._after_user)
        before, after = self._split(body, shown["name"])
        middle, _, rest = after.partition(_json({shown["key"]: "v"}))
        self.call_prefix = separator + before
        self.call_middle = middle
        self.call_end = rest.split(self._end_text)[0]

    def _learn_wordless_call(self, head, calling, result, prompt: str, name: str) -> None:
        """Finds what stands before a call's name where nothing is said beside the call.

        Templates leave out what would stand between the words and the call, and Qwen 3 leaves out
        the thoughts' block in all turns but the last; so a tool's result follows.
        """
        if self._tool_role == "user":
            # As the prompt describes a call: it begins the turn.
            self.wordless_prefix = self.call_prefix.lstrip("\n")
            return
        for self._silence in ({}, _NO_THOUGHT):
            whole = self._render([*head, calling | self._silence, result])
            if whole.startswith(prompt):
                self.wordless_prefix, _ = self._split(whole.removeprefix(prompt), name)
                return
        self._refuse_beginning(self._after_user)

    def _prove(self) -> None:
        """Refuses calls that are not read back, and conversations that are no row of segments."""
        names = (*self.setting.tool_names, *self.setting.tool_names)[:2]
        calls = [Action(name, {self.setting.argument: f"/é/{i}"}) for i, name in enumerate(names)]
        turns = [
            Turn("one two.", calls[0], ToolResult("a b.")),
            Turn("", calls[0], ToolResult("c d.")),
            Turn("one two.", calls[1], ToolResult('"x"\n{y}')),
            Turn("", calls[1], ToolResult('"x"\n{y}')),
            Turn("done.", None, None),
        ]
        for turn in turns:
            text = self.turn_text(turn.thought, turn.action)
            said = self.read_turn(text)
            if (said.thought, said.action) != (turn.thought, turn.action):
                raise UserError(
                    f"The tokenizer's chat template writes calls in a form that is not read back "
                    f"({text!r}): use a model whose calls are JSON objects with a name and "
                    "arguments, such as those of Qwen, Llama 3 and Hermes."
                )
        text, tokens = self._both(turns)
        same = text.startswith(self.decode(tokens))
        if self._thinks(self._after_user):
            # An empty thought is sampled behind the prompt's line break; a tokenizer that is given
            # the whole joins the two.
            same_texts, turns = same, [turn for turn in turns if turn.thought and turn.action]
            text, tokens = self._both(turns)
            same = same_texts and self.encode(text)[: len(tokens)] == tokens
        else:
            same = self.encode(text)[: len(tokens)] == tokens
        if not same:
            theirs, ours = _difference(text, self.decode(tokens))
            raise UserError(
                "The tokenizer's chat template does not render a conversation as its turns one "
                "after the other (it changes earlier turns when later ones come, or joins them: "
                f"{theirs!r} where the turns alone give {ours!r}): {_ANOTHER}."
            )

    def _both(self, turns: Sequence[Turn]) -> tuple[str, list[int]]:
        """A conversation as the template renders it, and its tokens turn by turn."""
        goes_on = turns[-1].result is not None
        text = self._render(self.messages("Look.", turns), generation=goes_on)
        return text, self.demonstration("Look.", turns)[0].tolist()

    # -- texts and tokens ------------------------------------------------------------------------

    @functools.lru_cache(maxsize=65536)  # noqa: B019 - one format lives as long as its run
    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def encode(self, text: str) -> list[int]:
        """Encodes a text, without special additions."""
        if len(text) > _CACHED_TEXT:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        return list(self._encode(text))

    def _encode_between(self, before: str, text: str, after: str) -> list[int]:
        """Encodes a text of the world between two pieces of the template.

        What the text spells like a special token stays text: else a file that says `<|im_end|>`
        would end the turn that shows it, and what follows would speak as another role.
        """
        if not self._special.search(text):
            return self.encode(before + text + after)
        # Tokenizers cut texts at special tokens first, so what lies between them can be encoded
        # apart and is what it would be within the whole.
        begin = max((match.end() for match in self._special.finditer(before)), default=0)
        match = self._special.search(after)
        end = match.start() if match else len(after)
        middle = self.tokenizer.encode(
            before[begin:] + text + after[:end],
            add_special_tokens=False,
            split_special_tokens=True,
        )
        return [*self.encode(before[:begin]), *middle, *self.encode(after[end:])]

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes token ids to their exact text, special tokens included."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def prompt_segments(self, instruction: str) -> list[tuple[str, list[int]]]:
        """Returns the prompt as [("system", ids), ("user", ids)], up to the agent's first token.

        "system" is all that stands before the user's own words, tool descriptions included.
        """
        text = instruction.strip() if self._trims["user"] else instruction
        ids = self._encode_between(self._before_user, text, self._after_user)
        fixed = self.encode(self._before_user)
        # The last token before the user's words may be another with them than without.
        common = 0
        while common < min(len(ids), len(fixed)) and ids[common] == fixed[common]:
            common += 1
        return [("system", ids[:common]), ("user", ids[common:])]

    def tool_ids(self, text: str) -> list[int]:
        """Encodes what follows an agent's turn that ended with a stop token.

        That is the tool result and all that stands before the next agent turn's first token.
        """
        if self._escape_tool:
            text = _json(text)[1:-1]
        elif self._trims["tool"]:
            text = text.strip()
        before, after = (
            self._before_tool + self._tool_wrap[0],
            self._tool_wrap[1] + self._after_tool,
        )
        return self._encode_between(before, text, after)

    def turn_text(self, words: str, action: Action | None) -> str:
        """Writes an agent turn as this template does, without its stop token."""
        if action is None:
            return self._final_open + words
        arguments = _json(dict(action.arguments))
        call = action.name + self.call_middle + arguments + self.call_end
        return self._before_name(words) + call

    def _before_name(self, words: str) -> str:
        """What an agent turn says up to its call's name."""
        if not words:
            return self.wordless_prefix
        return self.words_open + words + self.call_prefix

    def read_turn(self, text: str) -> AgentTurn:
        """Reads an agent's turn, as the runtime of this tokenizer's model would.

        Public runtimes forgive small mistakes in a call; the embedded model's does not.
        """
        return read_turn(text, strict=self.tokenizer.chat_template == CHAT_TEMPLATE)

    def turn_ids(self, words: str, action: Action | None) -> list[int]:
        """Encodes an agent turn with its stop token."""
        return [*self.encode(self.turn_text(words, action)), self._turn_end]

    def before_act(self, words: str) -> str:
        """Writes an agent turn up to where the act's name begins.

        That is the tool's name, or that of what the only tool is told to do.
        """
        return self._before_name(words) + self._act_open

    def demonstration(
        self, instruction: str, turns: Sequence[Turn]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a scripted episode.

        Returns:
          (tokens int32 [L], loss_mask bool [L], True on the agent's tokens).
        """
        parts = []
        for turn in turns:
            parts.append((self.turn_ids(turn.thought, turn.action), True))
            if turn.result:
                parts.append((self.tool_ids(turn.result.text), False))
        return self._joined(instruction, parts)

    def _joined(self, instruction: str, parts) -> tuple[np.ndarray, np.ndarray]:
        """The prompt and (ids, whether they are the agent's) parts as tokens and their mask."""
        prompt = [(ids, False) for _, ids in self.prompt_segments(instruction)]
        tokens: list[int] = []
        mask: list[bool] = []
        for ids, agent in (*prompt, *parts):
            tokens += ids
            mask += [agent] * len(ids)
        return np.array(tokens, np.int32), np.array(mask, bool)

    def retokenised(self, messages: Sequence[dict[str, str]]) -> tuple[np.ndarray, np.ndarray, int]:
        """Encodes a trajectory's messages in this format.

        Each message is tokenised anew; an agent's call is written as this template writes calls,
        one that could not be read is left as it stands. The constant prompt is this format's own.

        Returns:
          (tokens int32 [L], loss_mask bool [L], how many tokens the constant prompt has).
        """
        (instruction,) = (m["content"] for m in messages if m["role"] == "user")
        parts = []
        for message in messages:
            if message["role"] == "assistant":
                text = message["content"]
                turn = self.read_turn(text)
                if not turn.malformed:
                    text = self.turn_text(turn.thought, turn.action)
                parts.append(([*self.encode(text), self._turn_end], True))
            elif message["role"] == "tool":
                parts.append((self.tool_ids(message["content"]), False))
        return *self._joined(instruction, parts), len(self.prompt_segments(instruction)[0][1])

    # -- the same conversation as the template's own messages ------------------------------------

    def _result(self, text: str) -> dict[str, Any]:
        return {
            "role": self._tool_role,
            "content": self._tool_wrap[0] + text + self._tool_wrap[1],
            "name": "tool",
        }

    def messages(self, instruction: str, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """Returns a scripted episode as the messages that `apply_chat_template` takes."""
        out: list[dict[str, Any]] = [
            {"role": "system", "content": self._system},
            {"role": "user", "content": instruction},
        ]
        for turn in turns:
            if turn.action is None:
                out.append({"role": "assistant", "content": turn.thought, **self._silence})
                continue
            native = self._tool_role == "tool"
            if not native or (turn.thought and self._words_as == "before the call"):
                text = self.turn_text(turn.thought, turn.action)
                out.append({"role": "assistant", "content": text, **self._silence})
            else:
                calls = [self._tool_call(turn.action)]
                message = {"role": "assistant", "content": "", "tool_calls": calls}
                # An empty field of thoughts would be printed by some templates.
                words = {self._words_as: turn.thought} if turn.thought else {}
                out.append(message | self._silence | words)
            if turn.result:
                out.append(self._result(turn.result.text))
        return out

    @property
    def tools(self) -> list[Any] | None:
        """The tools' schemas that `apply_chat_template` is to be given, or None."""
        return self._schemas if self._tool_role == "tool" else None
