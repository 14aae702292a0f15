"""The one exception for a user's mistake."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: the message is one sentence that names the thing and the remedy.

    The command prints the message without a traceback and exits with status 2.
    """
