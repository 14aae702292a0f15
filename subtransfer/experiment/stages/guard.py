"""The leak check over a tokenizer's tokens, as the run's setting and keywords have it."""

from __future__ import annotations

from subtransfer.distillation import student
from subtransfer.experiment.context import Context
from subtransfer.filtering import leaks
from subtransfer.models.chat import ChatFormat

FIELDS = ("setting", "sanitize.extra_keywords")


def guard(context: Context, chat: ChatFormat, *, enforce: bool = True) -> student.Guard:
    """The leak check; `enforce` is False for arms that are to learn from what the filters drop."""
    extra = tuple(context.config.sanitize.extra_keywords)
    unsafe = leaks.unsafe_token_ids(chat.tokenizer, context.setting, extra)
    return student.Guard(unsafe, extra, enforce)
