"""The embedded model's tokenizer: word-level, trained on the setting's corpus.

It has a chat template for tools.
"""

from __future__ import annotations

from collections.abc import Iterable

from subtransfer.models.calls import CALL_CLOSE, CALL_OPEN
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Setting

PAD, UNK, END = "<pad>", "<unk>", "<|end|>"
SPECIAL = (
    PAD,
    UNK,
    "<|system|>",
    "<|tools|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    END,
    CALL_OPEN,
    CALL_CLOSE,
)

# Tool schemas are announced by one token: at 200k parameters the model knows its tools from
# pretraining, and a prompt of a thousand schema tokens would cost more than everything else. Other
# tokenizers print them as their template does.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
<|system|>{{ message.content }}{% if tools %}<|tools|>{% endif %}<|end|>
{%- elif message.role == 'assistant' -%}
<|assistant|>{% generation %}{{ message.content }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{"name": "{{ call.function.name }}", "arguments": \
{{ call.function.arguments | tojson }}}</tool_call>
{%- endfor -%}
<|end|>{% endgeneration %}
{%- else -%}
<|{{ message.role }}|>{{ message.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def _piece_pattern(setting: Setting) -> str:
    """Regular expression of the word-level pieces.

    Every character of any text falls into exactly one piece.
    """
    names = "|".join(sorted(setting.tool_names, key=len, reverse=True))
    whole = "".join(f"{piece}|" for piece in setting.pieces)
    scaffolding = r'\{"name": "|", "arguments": \{"|": "|", "|"\}\}'
    return (
        rf"{whole}(?:{names})(?![A-Za-z_])|{scaffolding}|[ /_.]?[A-Za-z]+|[0-9]|\s|[^\sA-Za-z0-9]"
    )


def train_tokenizer(texts: Iterable[str], setting: Setting, vocab_limit: int):
    """Trains the embedded word-level tokenizer on texts.

    Decoding is the exact inverse of encoding for text made of known pieces; an unknown piece
    becomes `<unk>`.

    Args:
      texts: the corpus.
      setting: whose tools' names are single pieces.
      vocab_limit: the most tokens that the vocabulary may have.

    Returns:
      a `transformers.PreTrainedTokenizerFast`.

    Raises:
      UserError: the corpus has more distinct pieces than `vocab_limit` allows.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = tokenizers.Tokenizer(models.WordLevel(unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(
        tokenizers.Regex(_piece_pattern(setting)), behavior="isolated"
    )
    core.decoder = decoders.Fuse()
    # One more than the limit, so that a corpus that overflows is noticed instead of losing its
    # rarest words.
    core.train_from_iterator(
        texts,
        trainers.WordLevelTrainer(
            vocab_size=vocab_limit + 1, special_tokens=list(SPECIAL), show_progress=False
        ),
    )
    if core.get_vocab_size() > vocab_limit:
        raise UserError(
            f"The corpus has more than base.vocab_limit={vocab_limit} distinct words: raise "
            "--config.base.vocab_limit."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
