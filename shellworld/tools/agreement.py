"""How often the simulator does what real bash does.

    python -m shellworld.tools.agreement                      # the recorded lines
    python -m shellworld.tools.agreement --live=2500 --seed=1 # new lines, against the sandbox

Compared are stdout, the exit code and the tree afterwards. Each deviation is printed with
what bash did and what the simulator did.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from absl import app, flags

from shellworld.errors import UserError
from shellworld.sandbox.pool import Pool
from shellworld.tests import compare
from shellworld.tests.grammar import generated

_LIVE = flags.DEFINE_integer(
    "live",
    0,
    "Compare that many grammar-made lines with the sandbox instead of the recorded lines.",
    lower_bound=0,
)
_SEED = flags.DEFINE_integer("seed", 0, "Which grammar-made lines: the seed of the generator.")


def measured(lines: int, seed: int) -> compare.Comparison:
    """Compares new lines with the sandbox, or the recorded ones if `lines` is 0.

    Raises:
      UserError: this machine has no sandbox.
    """
    if not lines:
        return compare.Comparison(compare.read())
    with Pool() as pool:
        recordings = [compare.real(pool, "project", line) for line in generated(lines, seed)]
    return compare.Comparison(recordings)


def main(argv: Sequence[str]) -> None:
    """Prints the counts, then the deviations."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        comparison = measured(_LIVE.value, _SEED.value)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    equal = comparison.supported - len(comparison.deviations)
    try:
        print(f"{len(comparison.recordings)} lines, {len(comparison.unsupported)} unsupported")
        print(f"{equal} of {comparison.supported} supported lines equal")
        print(comparison.report(), flush=True)
    except BrokenPipeError:
        # Who reads has had enough; what is left in the buffer must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    app.run(main)
