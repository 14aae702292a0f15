"""Loaded policies, tokenizers and chat formats: each is there once for all stages of a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subtransfer.experiment.context import Context
from subtransfer.models.chat import ChatFormat
from subtransfer.rollout.policy import Policy
from subtransfer.rollout.saved_policy import META, load_policy, load_policy_tokenizer
from subtransfer.runtime.json_files import read_json
from subtransfer.runtime.progress import moved
from subtransfer.settings.base import Setting

# A stage works with two models (a teacher's and a student's) and two policies tuned from them. So
# many are kept while another is loaded.
KEPT = 2


def policy(context: Context, name: str) -> Policy:
    """A finished stage's policy, its parameters on their devices."""
    folder, resident = context.input(name), context.resident
    for loaded in (resident.bases, resident.tuned):
        if folder in loaded:
            return _used(loaded, folder)
    base = _base_of(folder)
    if base in resident.bases:
        _used(resident.bases, base)  # it is needed, and must not make room
    # Before the next one is loaded: more than these may not fit on the devices.
    for loaded in (resident.bases, resident.tuned):
        while len(loaded) > KEPT:
            loaded.pop(next(iter(loaded)))
    moved()
    # Adapters share the base that is loaded; loading may add one to `bases`.
    found = load_policy(
        folder,
        context.mesh,
        resident=resident.bases,
        checkpoint=resident.checkpoints.get(base or folder),
    )
    if folder not in resident.bases:
        resident.tuned[folder] = found
    return found


def tokenizer(context: Context, base: str) -> Any:
    """A base's tokenizer, without its weights."""
    folder, tokenizers = context.input(base), context.resident.tokenizers
    if folder not in tokenizers:
        # The loaded policy's own, if there is one, so that both have one chat format.
        loaded = context.resident.bases.get(folder)
        where = context.resident.checkpoints.get(folder)
        tokenizers[folder] = loaded.tokenizer if loaded else load_policy_tokenizer(folder, where)
    return tokenizers[folder]


def chat(context: Context, of: Policy) -> ChatFormat:
    """The chat format of a policy's tokenizer in the run's setting."""
    return chat_format(of.tokenizer, context.setting)


def chat_format(tokenizer: Any, setting: Setting) -> ChatFormat:
    """The chat format of a tokenizer.

    There is one a tokenizer, which learns the template once and caches encoded texts.
    """
    if not hasattr(tokenizer, "_subtransfer_chat"):
        tokenizer._subtransfer_chat = ChatFormat(tokenizer, setting)
    return tokenizer._subtransfer_chat


def _used(loaded: dict[Path, Any], folder: Path) -> Any:
    """Moves an entry to the end, as the most recently used one."""
    found = loaded[folder] = loaded.pop(folder)
    return found


def _base_of(folder: Path) -> Path | None:
    """The folder of the base that a policy was tuned from; None of a base itself."""
    remedy = "delete its folder and run again to make it anew"
    base = read_json(folder / META, {"base": (str, type(None))}, remedy)["base"]
    return folder.parent / base if base else None
