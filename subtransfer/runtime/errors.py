"""The one exception for a user's mistake, and how a command ends with it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: the message is one sentence that names the thing and the remedy.

    `launch` and the tools print the message without a traceback and exit with status 2.
    """


def exit_status(work: Callable[[], object]) -> int:
    """Does a command's work; returns 0, or 2 for a user's mistake, which is printed."""
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
