"""Records what real bash does with the lines that the simulator is tested on: `python -m tools.record_shell`.

Needs bubblewrap and acl. Each line runs twice, each time in a fresh copy of its world; a line that does not end the same way
twice (it depends on time, load or process numbers) or goes over a limit is left out and named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags

from subtransfer.errors import UserError
from subtransfer.settings.shell.sandbox import Pool
from tests import shell_compare
from tests.shell_corpus import corpus
from tests.shell_grammar import generated

_GENERATED = flags.DEFINE_integer(
    "generated", 2200, "How many grammar-made lines are recorded besides the hand-made list.", lower_bound=0
)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    wanted = dict.fromkeys(corpus())
    wanted.update(dict.fromkeys(("project", line) for line in generated(_GENERATED.value)))
    kept, unstable = [], 0
    try:
        with Pool() as pool:
            for number, (world, line) in enumerate(wanted, 1):
                first, second = (shell_compare.real(pool, world, line) for _ in range(2))
                if first != second or first.exit_code in (124, 137):
                    unstable += 1
                    print(f"left out: {world}: {line!r} ({', '.join(shell_compare.difference(first, second)) or 'limit'})")
                else:
                    kept.append(first)
                if number % 500 == 0:
                    print(f"{number} of {len(wanted)}", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    shell_compare.write(kept)
    print(f"{len(kept)} lines recorded in {shell_compare.RECORDINGS}, {unstable} left out.")


if __name__ == "__main__":
    app.run(main)
