"""The one exception for a user's mistake, and how a command ends with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: the message is one sentence that names the thing and the remedy.

    `launch` and the tools print the message without a traceback and exit with status 2.
    """


def exit_status(work: Callable[[], object]) -> int:
    """Does a command's work; returns 0, or 2 for a user's mistake, which is printed.

    What the system refuses to do with a file (it is missing, may not be read, is a folder) is the
    user's to mend, too.
    """
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        # Of a renaming, the second name is the one that the user gave.
        name = os.fsdecode(error.filename if error.filename2 is None else error.filename2)
        print(f"error: {name} cannot be used: {error.strerror}.", file=sys.stderr)
        return 2
    return 0
