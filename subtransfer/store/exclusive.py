"""What one process at a time may do in a workdir, in the order in which they come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from subtransfer.runtime import preemption
from subtransfer.store.claims import ClaimLost, Claims, HeldClaim, Patience

PUBLISHING = "publishing"  # files of two runs must not come between each other
_POLL = 0.05  # seconds between two looks: such work takes no longer


@contextlib.contextmanager
def exclusively(claims: Claims, name: str) -> Iterator[None]:
    """Waits until no other process that lives holds the claim, and holds it meanwhile.

    Raises:
      preemption.Preempted: a notice has come while it waited.
    """
    held = _taken(claims, name)
    try:
        yield
    finally:
        # Nothing is left to be claimed until the next one comes.
        held.release(made=True)


def _taken(claims: Claims, name: str) -> HeldClaim:
    patience = Patience()
    expired: int | None = None
    while True:
        held = claims.take(name, expired)
        if held is not None:
            try:
                # Who looked before the files of the last one went may have created another number.
                held.confirm()
                return held
            except ClaimLost:
                held.release(made=False)
                continue
        claim = claims.look(name)
        if claim is not None:
            expired = claim.number if patience.exhausted(claim) else None
            preemption.check()
            time.sleep(_POLL)
