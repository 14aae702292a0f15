"""The frame of a benchmark's command: flags, sentences for mistakes, and the file of --json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from subtransfer.runtime.errors import UserError


def main(argv: list[str], run: Callable[[], dict[str, Any]]) -> int:
    """Parses the flags, runs, and writes what `run` returns to --json.

    Returns:
      0, or 2 after the sentence of a UserError.
    """
    try:
        try:
            flags.FLAGS(argv)
        except flags.Error as error:
            raise UserError(f"{error}: see python {argv[0]} --help.") from error
        results = run()
        if flags.FLAGS.json:
            Path(flags.FLAGS.json).write_text(json.dumps(results, indent=2) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
