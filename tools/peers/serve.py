"""The loop of a peer's process: requests in, answers out, one JSON object a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def serve(versions: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Says the versions, then answers until its input ends.

    What a peer cannot do is {"error"}, a line of the table.
    """
    lines, sys.stdout = sys.stdout, sys.stderr  # libraries print; answers alone belong on the pipe
    print(json.dumps({"versions": versions}), file=lines, flush=True)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=lines, flush=True)
