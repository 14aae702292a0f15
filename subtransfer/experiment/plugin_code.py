"""Running functions of users' plugins: their errors become sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from subtransfer.runtime.errors import UserError


@contextlib.contextmanager
def failures_of(kind: str, record: Any) -> Iterator[None]:
    """Around the function of a record, such as a probe or a transform.

    Args:
      kind: what the record is called in sentences.
      record: with its `name` and `origin`; an error of the package's own (origin "") is a bug, and
        stays as it is.

    Raises:
      UserError: the function of a plugin has failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not record.origin:
            raise
        raise UserError(
            f"The {kind} {record.name!r} of {record.origin} fails with "
            f"{type(error).__name__}: {error}."
        ) from error
