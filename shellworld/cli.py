"""The command `python -m shellworld --backend=sim|sandbox --tree=TREE.json < LINES`.

Runs each line of stdin in a fresh copy of the tree and prints one JSON object for it: `stdout`,
`stderr`, `exit_code`, `supported` and what is `unsupported`; `record`: what ran, each execution
with its name, arguments, effective user and exit status, and which modes, owners and access lists
it or the whole line changed (see `interpreter/record.py`, and `sandbox/executions.py` for what the
sandbox cannot see); `first_permission_command`: the first permission-related command that ran
("effect" for another command that changed such things, null if there was nothing of the kind); and
`changed`: the paths that differ afterwards, each with its entry as in TREE.json (see `tree.py`), or
null if it is gone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from shellworld.errors import UserError
from shellworld.interpreter.result import Result
from shellworld.interpreter.session import Image, Session
from shellworld.reading.permissions import permission_commands
from shellworld.reading.ran import permissions_of
from shellworld.sandbox.pool import Pool
from shellworld.world import tree as trees

Backend = Callable[[str], tuple[Result, dict[str, Any]]]  # line -> result, tree afterwards


def _flags() -> flags.FlagValues:
    """The flags with their defaults; own ones, as `launch` has others."""
    own = flags.FlagValues()
    flags.DEFINE_enum(
        "backend",
        "sim",
        ["sim", "sandbox"],
        "The simulator, or real bash in a sandbox.",
        flag_values=own,
    )
    flags.DEFINE_string(
        "tree",
        None,
        "The world that each line runs in; default: a home and nothing in it.",
        flag_values=own,
    )
    flags.DEFINE_bool(
        "stats",
        False,
        "At the end, say on stderr how many lines were not supported, and why.",
        flag_values=own,
    )
    flags.DEFINE_bool("help", False, "This text.", flag_values=own)
    return own


def simulate(image: Image, line: str) -> tuple[Result, dict[str, Any]]:
    """One line in the simulator."""
    session = Session(image)
    return session.run(line), session.tree()


@contextlib.contextmanager
def backend(name: str, tree: Mapping[str, Any]) -> Iterator[Backend]:
    """Gives what runs a line in a fresh copy of the tree.

    Args:
      name: "sim" or "sandbox".
      tree: a normal tree.

    Raises:
      UserError: this machine has no sandbox.
    """
    if name == "sim":
        yield functools.partial(simulate, Image(tree))
    else:
        with Pool() as pool:
            with pool.take():
                pass  # one is started at once, so that its absence is known before the first line
            yield functools.partial(pool.run, tree)


def rows(run: Backend, tree: Mapping[str, Any], lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What is printed for each line, in order."""
    for line in lines:
        result, after = run(line)
        record = result.record.to_json()
        yield {
            "stdout": result.stdout,
            "stderr": result.stderr,
            "exit_code": result.exit_code,
            "supported": result.supported,
            "unsupported": list(result.unsupported),
            "record": record,
            "first_permission_command": next(
                permissions_of(record, permission_commands(line)), None
            ),
            "changed": trees.changed(tree, after),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for a user's mistake."""
    given = _flags()
    try:
        try:
            rest = given(list(sys.argv if argv is None else argv))
        except flags.Error as error:
            raise UserError(f"{error}: see python -m shellworld --help.") from error
        if given.help:
            print(f"{__doc__}\n{given.get_help()}")
            return 0
        if len(rest) > 1:
            raise UserError(f"Unexpected argument {rest[1]!r}: lines are read from stdin.")
        tree = trees.normalise({}) if given.tree is None else trees.load(given.tree)
        lines = (os.fsdecode(line.removesuffix(b"\n")) for line in sys.stdin.buffer)
        count, unsupported = 0, []
        with backend(given.backend, tree) as run:
            for row in rows(run, tree, lines):
                print(json.dumps(row), flush=True)
                count += 1
                if not row["supported"]:
                    unsupported.append(row["unsupported"])
        if given.stats:
            reasons = Counter(reason for line in unsupported for reason in line)
            named = "".join(f"\n  {number}  {reason}" for reason, number in reasons.most_common())
            print(
                f"{len(unsupported)} of {count} lines were not supported.{named}", file=sys.stderr
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # who read the lines has had enough
    return 0


if __name__ == "__main__":
    sys.exit(main())
