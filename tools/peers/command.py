"""The frame of a benchmark's command: flags, sentences for mistakes, and the file of --json."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from absl import flags

from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.store.files import new_file


def main(argv: list[str], run: Callable[[], dict[str, Any]]) -> int:
    """Parses the flags, runs, and writes what `run` returns to --json.

    Returns:
      0, or 2 after the sentence of a UserError.
    """

    def work() -> None:
        try:
            flags.FLAGS(argv)
        except flags.Error as error:
            raise UserError(f"{error}: see python {argv[0]} --help.") from error
        out = flags.FLAGS.json and new_file("--json", flags.FLAGS.json)
        results = run()
        if out:
            out.write_text(json.dumps(results, indent=2) + "\n")

    return exit_status(work)
