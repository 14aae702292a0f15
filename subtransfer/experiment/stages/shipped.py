"""A base that comes with the package."""

from __future__ import annotations

from pathlib import Path

from subtransfer.experiment import geometry
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.models import hf_load
from subtransfer.rollout.saved_policy import save_base
from subtransfer.store import shipped as files
from subtransfer.store.params import load_params


@reads("setting", *geometry.FIELDS)
def shipped(out: Path, context: Context, *, weights: str, tokenizer: str) -> None:
    """Writes a shipped base as a policy of the run.

    Args:
      weights, tokenizer: digests of its files, by which the key knows it.

    Raises:
      UserError: a file is missing, unreadable or another.
    """
    params, folder = files.found(context.config.setting, weights, tokenizer)
    # A copy, so that the run's folder stands alone, also after the package is another.
    words = hf_load.load_tokenizer(folder, None)
    cfg = geometry.embedded_geometry(context.config, len(words))
    save_base(out, cfg, load_params(params), words)
