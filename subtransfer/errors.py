"""The one exception for a user's mistake."""


class UserError(Exception):
    """Bad input: the message is one sentence that names the thing and the remedy.

    `launch` and the tools print the message without a traceback and exit with status 2.
    """
