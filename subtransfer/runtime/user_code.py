"""Running code of a user's own: its errors become sentences that name the file and the line."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

from subtransfer.runtime.errors import UserError


@contextlib.contextmanager
def failures_of(what: str, path: str) -> Iterator[None]:
    """Around code of a user's file.

    Args:
      what: the subject of the sentence, such as "The config file mine.py".
      path: of the file, as Python was given it, to find the line.

    Raises:
      UserError: the code has failed, or would have ended the process.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.lineno:
            line, message = error.lineno, error.msg
        else:
            line, message = _line(error, path), str(error)
        at = f" at line {line}" if line else ""
        words = " ".join(f"{type(error).__name__}: {message}".split()).rstrip(":.")
        raise UserError(f"{what}{at} fails with {words}.") from error


@contextlib.contextmanager
def failures_of_record(kind: str, record: Any) -> Iterator[None]:
    """Around a function of a registered record, such as a probe's or an objective's.

    Args:
      kind: what the record is called in sentences.
      record: with its `name` and `origin`. An error of the package's own (origin "") is a bug, and
        stays as it is.

    Raises:
      UserError: the function of a plugin has failed.
    """
    if not record.origin:
        yield
        return
    with failures_of(f"The {kind} {record.name!r} of {record.origin}", record.origin):
        yield


def _line(error: BaseException, path: str) -> int:
    """The last line of the file that an error passed, or 0."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == path:
            return frame.lineno or 0
    return 0
