"""Writes the table (table.parquet) and the page (sweep.html) of workdirs.

    python tools/write_table.py WORKDIR...

A sweep does so when it ends. This is for a sweep that still runs or was stopped, of which the
finished part is shown, and for workdirs of single runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from subtransfer.runtime.errors import exit_status
from subtransfer.store.files import user_path
from subtransfer.studies import sweep_page, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workdirs",
        nargs="+",
        type=user_path,
        metavar="WORKDIR",
        help="of finished runs, or of a sweep",
    )
    workdirs = parser.parse_args(arguments).workdirs

    def write() -> None:
        for workdir in workdirs:
            print(table.write(workdir), sweep_page.write(workdir))

    return exit_status(write)


if __name__ == "__main__":
    sys.exit(main())
