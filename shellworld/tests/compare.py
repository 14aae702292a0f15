"""What a line did in a world, by real bash and by the simulator, and whether that is the same."""

from __future__ import annotations

import collections
import gzip
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shellworld.interpreter.session import Session
from shellworld.sandbox.pool import Pool, SandboxLimits
from shellworld.tests.trees import TREES
from shellworld.world import tree

RECORDINGS = Path(__file__).parent / "data" / "recordings.jsonl.gz"
KNOWN = Path(__file__).parent / "data" / "deviations.tsv"
_LIMITS = SandboxLimits(wall=20.0)  # as long as it takes on a busy machine


class Recording(NamedTuple):
    """A line in a world, what it printed, its exit code, and what it changed.

    The changes are {path: entry without time, or None}.
    """

    world: str
    line: str
    stdout: str
    exit_code: int
    changed: dict[str, Any]


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what changed, without times and without the bytes of archives.

    Archives hold times; what they list is compared.
    """
    found = tree.changed(before, after)
    for path, entry in found.items():
        if entry:
            hidden = ("mtime", "content") if path.endswith((".tar", ".tgz", ".gz")) else ("mtime",)
            found[path] = {field: value for field, value in entry.items() if field not in hidden}
    return found


def real(pool: Pool, world: str, line: str) -> Recording:
    """By bash in the sandbox."""
    result, after = pool.run(TREES[world], line, _LIMITS)
    return Recording(world, line, result.stdout, result.exit_code, _compared(TREES[world], after))


def simulated(world: str, line: str) -> tuple[Recording, tuple[str, ...]]:
    """By the simulator, with what it does not support of the line."""
    session = Session(TREES[world])
    result = session.run(line)
    changed = _compared(TREES[world], session.tree())
    return Recording(world, line, result.stdout, result.exit_code, changed), result.unsupported


def difference(expected: Recording, found: Recording) -> list[str]:
    """The fields that are not equal."""
    return [
        field
        for field in ("stdout", "exit_code", "changed")
        if getattr(expected, field) != getattr(found, field)
    ]


def command(line: str) -> str:
    """The first command's name, by which deviations are grouped."""
    match = re.search(r"[a-zA-Z_][\w.-]*(?![\w=])", line)
    return match[0] if match else line[:8]


def describe(expected: Recording, found: Recording) -> str:
    """A deviation in a few lines."""
    fields = difference(expected, found)
    rows = [f"{expected.world}: {expected.line!r}"]
    for field in fields:
        rows.append(f"    {field}: bash {getattr(expected, field)!r}")
        rows.append(f"    {' ' * len(field)}  here {getattr(found, field)!r}")
    return "\n".join(rows)


class Comparison:
    """What the simulator makes of recorded lines.

    Attributes:
      unsupported: recordings that the simulator calls unsupported, each with its reasons.
      deviations: (what bash did, what the simulator did) where the two differ.
    """

    def __init__(self, recordings: Sequence[Recording]):
        self.recordings = recordings
        self.unsupported: list[tuple[Recording, tuple[str, ...]]] = []
        self.deviations: list[tuple[Recording, Recording]] = []
        for expected in recordings:
            found, unsupported = simulated(expected.world, expected.line)
            if unsupported:
                self.unsupported.append((expected, unsupported))
            elif difference(expected, found):
                self.deviations.append((expected, found))

    @property
    def supported(self) -> int:
        """How many of the lines are simulated."""
        return len(self.recordings) - len(self.unsupported)

    @property
    def equal(self) -> float:
        """The share of the supported lines that do the same as in bash."""
        return (self.supported - len(self.deviations)) / max(self.supported, 1)

    def report(self, but: Collection[tuple[str, str]] = frozenset()) -> str:
        """The deviations, grouped by command, without those of the (world, line) pairs `but`."""
        groups = collections.defaultdict(list)
        for expected, found in self.deviations:
            if (expected.world, expected.line) not in but:
                groups[command(expected.line)].append(describe(expected, found))
        rows = [f"{self.equal:.2%} of the supported lines are equal; deviations:"]
        for name, group in sorted(groups.items()):
            rows += [f"{name}: {len(group)}", *group]
        return "\n".join(rows)


def read() -> list[Recording]:
    """All recordings that are kept."""
    with gzip.open(RECORDINGS, "rt", encoding="ascii") as file:
        return [Recording(*json.loads(row)) for row in file]


def write(recordings: Iterable[Recording]) -> None:
    """The same bytes for the same recordings."""
    text = "".join(json.dumps(recording, sort_keys=True) + "\n" for recording in recordings)
    RECORDINGS.write_bytes(gzip.compress(text.encode("ascii"), mtime=0))


def known() -> Iterator[tuple[str, str, str]]:
    """The deviations that are listed: (world, line, why)."""
    for row in KNOWN.read_text("utf-8").splitlines():
        world, line, why = row.split("\t")
        yield world, json.loads(line), why
