"""Records what real bash does with the lines that the simulator is tested on.

    python -m shellworld.tools.record

Needs bubblewrap and acl. Each line runs twice, each time in a fresh copy of its world; a line that
does not end the same way twice (it depends on time, load or process numbers) or goes over a limit
is left out and named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags

from shellworld.errors import UserError
from shellworld.sandbox.pool import Pool
from shellworld.tests import compare
from shellworld.tests.corpus import corpus
from shellworld.tests.grammar import generated

_GENERATED = flags.DEFINE_integer(
    "generated",
    2200,
    "How many grammar-made lines are recorded besides the hand-made list.",
    lower_bound=0,
)


def main(argv: Sequence[str]) -> None:
    """Records the hand-made list and grammar-made lines, and replaces the file of recordings."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    wanted = dict.fromkeys(corpus())
    wanted.update(dict.fromkeys(("project", line) for line in generated(_GENERATED.value)))
    kept, unstable = [], 0
    try:
        with Pool() as pool:
            for number, (world, line) in enumerate(wanted, 1):
                first, second = (compare.real(pool, world, line) for _ in range(2))
                if first != second or first.exit_code in (124, 137):
                    unstable += 1
                    print(
                        f"left out: {world}: {line!r} "
                        f"({', '.join(compare.difference(first, second)) or 'limit'})"
                    )
                else:
                    kept.append(first)
                if number % 500 == 0:
                    print(f"{number} of {len(wanted)}", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    compare.write(kept)
    print(f"{len(kept)} lines recorded in {compare.RECORDINGS}, {unstable} left out.")


if __name__ == "__main__":
    app.run(main)
