"""The embedded tokenizer, and the chat format of any tokenizer: rendering turn by turn, and reading calls back.

`train_tokenizer` makes the small word-level tokenizer of the embedded model. `ChatFormat` works with every Hugging Face
tokenizer that has a chat template: it learns the template's fixed pieces by rendering it once with marker texts, then
builds conversations from token segments. Sampled tokens are therefore never decoded and tokenised again.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from subtransfer.errors import UserError
from subtransfer.settings.base import Action, Setting, Turn

PAD, UNK, END = "<pad>", "<unk>", "<|end|>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
SPECIAL = (PAD, UNK, "<|system|>", "<|tools|>", "<|user|>", "<|assistant|>", "<|tool|>", END, CALL_OPEN, CALL_CLOSE)

# Tool schemas are announced by one token: at 200k parameters the model knows its tools from pretraining, and a prompt
# of a thousand schema tokens would cost more than everything else. Other tokenizers print them as their template does.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
<|system|>{{ message.content }}{% if tools %}<|tools|>{% endif %}<|end|>
{%- elif message.role == 'assistant' -%}
<|assistant|>{% generation %}{{ message.content }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor -%}
<|end|>{% endgeneration %}
{%- else -%}
<|{{ message.role }}|>{{ message.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def _piece_pattern(setting: Setting) -> str:
    """Regular expression of the word-level pieces; every character of any text falls into exactly one piece."""
    names = "|".join(sorted((*setting.exploratory, *setting.benign, *setting.unsafe), key=len, reverse=True))
    scaffolding = r'\{"name": "|", "arguments": \{"|": "|", "|"\}\}'
    return rf"(?:{names})(?![A-Za-z_])|{scaffolding}|[ /_.]?[A-Za-z]+|[0-9]|\s|[^\sA-Za-z0-9]"


def train_tokenizer(texts: Iterable[str], setting: Setting, vocab_limit: int):
    """Trains the embedded word-level tokenizer on texts; returns a `transformers.PreTrainedTokenizerFast`.

    Decoding is the exact inverse of encoding for text made of known pieces; an unknown piece becomes `<unk>`.

    Raises:
      UserError: the corpus has more distinct pieces than `vocab_limit` allows.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = tokenizers.Tokenizer(models.WordLevel(unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_piece_pattern(setting)), behavior="isolated")
    core.decoder = decoders.Fuse()
    # One more than the limit, so that a corpus that overflows is noticed instead of losing its rarest words.
    core.train_from_iterator(
        texts,
        trainers.WordLevelTrainer(vocab_size=vocab_limit + 1, special_tokens=list(SPECIAL), show_progress=False),
    )
    if core.get_vocab_size() > vocab_limit:
        raise UserError(
            f"The corpus has more than base.vocab_limit={vocab_limit} distinct words: raise --config.base.vocab_limit."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def _marker(name: str) -> str:
    return f"zq{name}qz"


class ChatFormat:
    """Conversations of one setting in the chat template of one tokenizer.

    Attributes:
      tokenizer: the Hugging Face tokenizer.
      stop_ids: int32 [n], tokens that end an agent's turn.
      call_prefix: the text between a thought and the tool's name.
      digest_text: the rendered template pieces; two formats with equal text render alike.
    """

    def __init__(self, tokenizer, setting: Setting):
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "The tokenizer has no chat template: add chat_template.jinja (or the chat_template field of "
                "tokenizer_config.json) to the checkpoint's directory."
            )
        self.tokenizer = tokenizer
        self.setting = setting
        user, agent, tool = _marker("user"), _marker("agent"), _marker("tool")
        head = [{"role": "system", "content": setting.system_prompt}, {"role": "user", "content": user}]
        prompt = self._render(head)
        self._before_user, self._after_user = self._split(prompt, user)
        turn = [{"role": "assistant", "content": agent}, {"role": "tool", "content": tool, "name": "tool"}]
        _, tail = self._split(self._render(head + turn), agent)
        between, self._after_tool = self._split(tail, tool)
        # Some templates print tool results as a JSON string: then the text must be escaped like one.
        self._escape_tool = between.endswith('"') and self._after_tool.startswith('"')
        between_ids = self.encode(between)
        self._turn_end, self._before_tool = between_ids[:1], between_ids[1:]
        eos = tokenizer.eos_token_id
        self.stop_ids = np.array(sorted({self._turn_end[0], *([] if eos is None else [eos])}), np.int32)
        self.call_prefix, self._call_middle, self._call_end = self._call_pieces(head)
        self.digest_text = "\x00".join([prompt, tail, self.call_prefix, self._call_middle, self._call_end])

    def _render(self, messages, *, generation=True) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tools=list(self.setting.tools), tokenize=False, add_generation_prompt=generation
        )

    @staticmethod
    def _split(text: str, marker: str) -> tuple[str, str]:
        before, found, after = text.partition(marker)
        if not found:
            raise UserError(
                "The tokenizer's chat template does not print every message it is given (system, user, assistant and "
                "tool roles are needed): use the template of an instruct model with tools."
            )
        return before, after

    def _call_pieces(self, head) -> tuple[str, str, str]:
        """The template's own way of writing a call: text before the name, between name and arguments, and after."""
        name, key, thought = _marker("name"), _marker("key"), _marker("thought")
        call = {"type": "function", "function": {"name": name, "arguments": {key: "v"}}}
        text = self._render([*head, {"role": "assistant", "content": thought, "tool_calls": [call]}], generation=False)
        prompt = self._render(head)
        if thought in text:  # text after the thought, else (templates that drop it) after the generation prompt
            text = text.partition(thought)[2]
        elif text.startswith(prompt):
            text = text[len(prompt) :]
        before, after = self._split(text, name)
        arguments = json.dumps({key: "v"})
        middle, found, rest = after.partition(arguments)
        if not found:
            raise UserError(
                "The tokenizer's chat template does not print a call's arguments as JSON: use a template that does."
            )
        end = self.tokenizer.decode(self._turn_end)
        return before, middle, rest.split(end)[0] if end else rest

    @functools.lru_cache(maxsize=65536)  # noqa: B019 - one format lives as long as its run
    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special additions."""
        return list(self._encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Exact text of token ids (special tokens included)."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def prompt_segments(self, instruction: str) -> list[tuple[str, list[int]]]:
        """The prompt as [("system", ids), ("user", ids)], ready for the agent's first token."""
        return [
            ("system", self.encode(self._before_user)),
            ("user", self.encode(instruction) + self.encode(self._after_user)),
        ]

    def tool_ids(self, text: str) -> list[int]:
        """What follows an agent's turn that ended with a stop token: the tool result, up to the next agent turn."""
        if self._escape_tool:
            text = json.dumps(text)[1:-1]
        return self._before_tool + self.encode(text) + self.encode(self._after_tool)

    def call_text(self, action: Action) -> str:
        """A call as this template writes it."""
        arguments = json.dumps(dict(action.arguments))
        return self.call_prefix + action.name + self._call_middle + arguments + self._call_end

    def turn_ids(self, turn: Turn) -> list[int]:
        """A scripted agent turn with its stop token."""
        text = turn.thought + (self.call_text(turn.action) if turn.action else "")
        return self.encode(text) + self._turn_end

    def decision_ids(self, thought: str) -> list[int]:
        """An agent turn up to where the tool's name begins."""
        return self.encode(thought + self.call_prefix)

    def name_ids(self, name: str) -> list[int]:
        """A tool's name and what closes it, so that no name is a prefix of another's ids."""
        return self.encode(name + self._call_middle)

    def demonstration(self, instruction: str, turns: Sequence[Turn]) -> tuple[np.ndarray, np.ndarray]:
        """A scripted episode as (tokens int32 [L], loss_mask bool [L], True on the agent's tokens)."""
        ids = [i for _, part in self.prompt_segments(instruction) for i in part]
        mask = [False] * len(ids)
        for turn in turns:
            agent = self.turn_ids(turn)
            tool = self.tool_ids(turn.result.text) if turn.result else []
            ids += agent + tool
            mask += [True] * len(agent) + [False] * len(tool)
        return np.array(ids, np.int32), np.array(mask, bool)

    def parse(self, text: str) -> tuple[Action | None, bool]:
        """Reads an agent's turn (text without its stop token) as (the call or None, whether a call was malformed)."""
        opened = text.find(CALL_OPEN)
        if opened >= 0:
            body, closed, _ = text[opened + len(CALL_OPEN) :].partition(CALL_CLOSE)
            return (None, True) if not closed else _read_call(body)
        brace = re.search(r'\{\s*"(?:name|type)"', text)
        if brace is None:
            return None, False
        return _read_call(text[brace.start() :])


def _read_call(body: str) -> tuple[Action | None, bool]:
    try:
        value, _ = json.JSONDecoder().raw_decode(body.strip())
    except (json.JSONDecodeError, RecursionError):
        return None, True
    arguments = value.get("arguments", value.get("parameters")) if isinstance(value, dict) else None
    if not isinstance(arguments, dict) or not isinstance(value.get("name"), str):
        return None, True
    return Action(value["name"], arguments), False


def template_digest(chat: ChatFormat) -> str:
    """SHA-256 (hex) of everything the template prints around the messages."""
    import hashlib

    return hashlib.sha256(chat.digest_text.encode()).hexdigest()


def save_tokenizer(tokenizer, directory: Path) -> None:
    """Writes the tokenizer's Hugging Face files."""
    tokenizer.save_pretrained(str(directory))
