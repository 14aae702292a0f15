"""A base from a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.models import families, hf_load
from subtransfer.models.chat import ChatFormat, set_thinking
from subtransfer.rollout.saved_policy import save_imported


@reads("setting", "base.dtype", "base.remat", "base.attention", "chat.enable_thinking")
def imported(out: Path, context: Context, *, checkpoint: str) -> None:
    """Checks a checkpoint and writes a policy that stays where it is.

    Args:
      checkpoint: its directory (the key holds the digest of its files instead).

    Raises:
      UserError: the model, its tokenizer or its template cannot be used in the setting. That is
        said before anything is built on it.
    """
    directory, base = Path(checkpoint), context.config.base
    cfg = families.read_config(directory, base.dtype, base.remat, base.attention)
    tokenizer = hf_load.load_tokenizer(directory, cfg)
    set_thinking(tokenizer, context.config.chat.enable_thinking)
    ChatFormat(tokenizer, context.setting)
    hf_load.Checkpoint(directory).check(cfg)
    save_imported(out, cfg, directory, tokenizer)
