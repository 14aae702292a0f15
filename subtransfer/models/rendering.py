"""Rendering of chat templates, which are programs by strangers, within bounds.

transformers renders them in jinja's sandbox, where they see the conversation and nothing else. What
the sandbox does not bound is their time: here a template that goes on and on is given up.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from subtransfer.runtime.errors import UserError

# A conversation takes milliseconds. Waited for in short parts, so that a stopped process, which
# does not wait, does not lose its time.
SECONDS = 10.0
_PART = 0.1


class CannotRender(UserError):
    """A template refuses a conversation or fails on it.

    Attributes:
      reason: how.
    """

    def __init__(self, reason: str):
        super().__init__(
            f"The tokenizer's chat template refuses a conversation with tools ({reason}): use the "
            "template of an instruct model with tools."
        )
        self.reason = reason


def render(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any, **options: Any
) -> str:
    """Renders messages in a tokenizer's chat template.

    Args:
      tokenizer: Hugging Face's.
      messages: as `apply_chat_template` takes them.
      tools: schemas, or None.
      options: further arguments and the template's own variables.

    Raises:
      CannotRender: the template refuses the messages, or fails.
      UserError: it does not end.
    """
    outcome: list[str | BaseException] = []

    def work() -> None:
        try:
            _check_operators(tokenizer.get_chat_template(tools=tools))
            text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
            outcome.append(text)
        except (Exception, SystemExit) as error:
            # A template can fail in any way; the last is how `_give_up` ends it.
            outcome.append(error)

    # In a thread of its own, which can be given up: Python cannot stop a call from outside.
    thread = threading.Thread(target=work, daemon=True, name="chat template")
    thread.start()
    for _ in range(round(SECONDS / _PART)):
        thread.join(_PART)
        if not thread.is_alive():
            break
    else:
        _give_up(thread)
        raise UserError(
            f"The tokenizer's chat template does not end within {SECONDS:g} seconds: use the "
            "template of an instruct model with tools."
        )
    (found,) = outcome
    if isinstance(found, BaseException):
        message = " ".join(str(found).split()) or "no message"
        raise CannotRender(f"{type(found).__name__}: {message}") from found
    return found


@functools.lru_cache(maxsize=64)
def _check_operators(source: str) -> None:
    """Refuses powers: one of large numbers is a single step that nothing can interrupt."""
    import jinja2

    for _, kind, value in jinja2.Environment().lex(source):
        if kind == "operator" and value == "**":
            raise jinja2.TemplateError("powers (**) are not computed")


def _give_up(thread: threading.Thread) -> None:
    """Ends a thread at its next step of Python; a library's caller would pay for it for ever."""
    ident = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
