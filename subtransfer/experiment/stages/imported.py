"""A base from a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.models import hf_load
from subtransfer.models.chat import ChatFormat, Form, set_form
from subtransfer.rollout.saved_policy import save_imported
from subtransfer.store import digests


@reads(
    "setting",
    "base.dtype",
    "base.remat",
    "base.attention",
    "chat.enable_thinking",
    "chat.tools",
)
def imported(out: Path, context: Context, *, checkpoint: str) -> None:
    """Checks a checkpoint and writes a policy that stays where it is.

    Args:
      checkpoint: the digest of its files, by which the key knows it.

    Raises:
      UserError: the model, its tokenizer or its template cannot be used in the setting. That is
        said before anything is built on it.
    """
    base, folder = context.config.base, context.path(context.stage)
    directory = context.resident.checkpoints[folder]
    digests.check_checkpoint(directory, checkpoint, folder)
    cfg, tokenizer = hf_load.load_geometry(directory, base.dtype, base.remat, base.attention)
    written = context.config.chat
    set_form(tokenizer, Form(written.enable_thinking, written.tools))
    ChatFormat(tokenizer, context.setting)
    hf_load.Checkpoint(directory).check(cfg)
    # Once more: what has been checked is what the digest names.
    digests.check_checkpoint(directory, checkpoint, folder)
    save_imported(out, cfg, directory, checkpoint, tokenizer)
