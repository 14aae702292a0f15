"""The scripted corpus that an embedded model is pretrained on, and its tokenizer."""

from __future__ import annotations

from pathlib import Path

from subtransfer.experiment import policies
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.models.tokenizer import train_tokenizer
from subtransfer.training import pretrain


@reads("setting", "base.episodes", "base.unsafe_rate", "base.vocab_limit")
def corpus(out: Path, context: Context, *, base: str | None) -> None:
    """Writes the corpus as token ids, and the tokenizer.

    Args:
      base: the stage of the imported model whose tokenizer is used; None: one is trained.
    """
    config, setting = context.config, context.setting
    demos = list(
        pretrain.demonstrations(setting, config.base.episodes, config.base.unsafe_rate, config.seed)
    )
    if base:
        tokenizer = policies.policy(context, base).tokenizer
    else:
        texts = pretrain.corpus_texts(demos, setting)
        tokenizer = train_tokenizer(texts, setting, config.base.vocab_limit)
    examples = pretrain.encode(demos, policies.chat_format(tokenizer, setting))
    pretrain.save_examples(out / "corpus.safetensors", examples)
    tokenizer.save_pretrained(str(out / "tokenizer"))
