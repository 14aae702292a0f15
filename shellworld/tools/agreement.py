"""How often the simulator does what real bash does.

    python -m shellworld.tools.agreement                      # the recorded lines
    python -m shellworld.tools.agreement --live=2500 --seed=1 # new lines, against the sandbox
    python -m shellworld.tools.agreement --lines=FILE         # lines of your own, the same way

Compared are stdout, the exit code and the tree afterwards. Each deviation is printed with
what bash did and what the simulator did.

`--lines` takes a line of shell a row, or a JSON object a row: {"line": text, "tree": TREE}, both as
everywhere; without a tree, that of `--tree`, or else a developer's project. The line runs twice in
the sandbox, seconds apart, and in a simulator whose clock stands as the sandbox's does. Compared is
the record of what ran, too: permission-related executions, and changes of modes, owners and access
lists. `tools/strangers.py` makes such files of public collections.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from shellworld.errors import UserError
from shellworld.sandbox.pool import Pool
from shellworld.tests import compare
from shellworld.tests.grammar import generated
from shellworld.world import tree as trees

_LIVE = flags.DEFINE_integer(
    "live",
    0,
    "Compare that many grammar-made lines with the sandbox instead of the recorded lines.",
    lower_bound=0,
)
_SEED = flags.DEFINE_integer("seed", 0, "Which grammar-made lines: the seed of the generator.")
_LINES = flags.DEFINE_string("lines", None, "A file of lines to compare with the sandbox.")
_TREE = flags.DEFINE_string("tree", None, "With --lines: the world of lines that name none.")


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


def read_lines(path: str, tree: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a file, each with its normal tree.

    Args:
      path: a file with a line of shell, or a JSON object of `line` and `tree`, in each row.
      tree: the normal tree of lines that have none.

    Raises:
      UserError: the file cannot be read, or a row of JSON has no line or an impossible tree.
    """
    try:
        rows = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        if not row.startswith('{"'):
            yield row, tree
            continue
        try:
            given = json.loads(row)
        except ValueError as error:
            raise UserError(f"{path}, row {number}: no JSON object ({error}).") from error
        line = given.get("line")
        if not isinstance(line, str):
            raise UserError(f'{path}, row {number}: "line" is no text.')
        yield line, trees.normalise(given["tree"]) if given.get("tree") else tree


def _print_table(verdicts: Sequence[compare.Verdict]) -> None:
    counts = collections.Counter(verdict.kind for verdict in verdicts)
    supported = len(verdicts) - counts["unsupported"] - counts["unstable"]
    equal = counts["equal"] / max(supported, 1)
    print(f"{counts['equal']} of {supported} supported lines equal ({equal:.2%})\n")
    print("| class | lines | share |\n| --- | --- | --- |")
    for kind in compare.KINDS:
        share = counts[kind] / max(len(verdicts), 1)
        print(f"| {compare.KINDS[kind]} | {counts[kind]} | {share:.1%} |")
    print()
    reasons = collections.Counter(
        verdict.reason for verdict in verdicts if verdict.kind == "unsupported"
    )
    print("unsupported:", ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common()))
    for verdict in verdicts:
        if verdict.kind not in ("equal", "unsupported"):
            print(f"\n{verdict.kind}: {verdict.line!r}\n{verdict.reason}")


def main(argv: Sequence[str]) -> None:
    """Prints the counts, then the deviations."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        if _LINES.value:
            tree = trees.load(_TREE.value) if _TREE.value else compare.TREES["project"]
            lines = list(read_lines(_LINES.value, tree))
            with Pool() as pool:
                verdicts = compare.judged(pool, lines)
            comparison = None
        else:
            comparison = measured(_LIVE.value, _SEED.value)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        if comparison is None:
            _print_table(verdicts)
        else:
            equal = comparison.supported - len(comparison.deviations)
            unsupported = len(comparison.unsupported)
            print(f"{len(comparison.recordings)} lines, {unsupported} unsupported")
            print(f"{equal} of {comparison.supported} supported lines equal")
            print(comparison.report())
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads has had enough; what is left in the buffer must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    app.run(main)
