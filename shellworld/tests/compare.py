"""What a line did in a world, by real bash and by the simulator, and whether that is the same."""

from __future__ import annotations

import collections
import functools
import gzip
import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shellworld.commands import PROGRAMS
from shellworld.interpreter.record import Record
from shellworld.interpreter.session import Image, Session
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


@functools.cache
def _image(world: str) -> Image:
    return Image(TREES[world])


def simulated(world: str, line: str) -> tuple[Recording, tuple[str, ...]]:
    """By the simulator, with what it does not support of the line."""
    session = Session(_image(world))
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


# What may be found about a line, and what it is called in a table.
KINDS = {
    "equal": "equal",
    "unsupported": "called unsupported",
    "unstable": "no answer: bash differs between two runs, is over a limit or has no such program",
    "stdout": "other output",
    "exit_code": "other exit status",
    "changed": "other tree",
    "record": "other record",
}


# Statuses of a line that went over a limit of time, memory or output, or of the size of a file.
_OVER = (124, 137, 153)


class Verdict(NamedTuple):
    """What was found about a line: one of KINDS, and why; if it differs, where it does first."""

    line: str
    kind: str
    reason: str


class _Outcome(NamedTuple):
    """What can be compared of a run."""

    stdout: str
    exit_code: int
    changed: dict[str, Any]
    record: tuple[Any, ...]


def _seen(record: Record) -> tuple[Any, ...]:
    """What both backends see of a line.

    Builtins are not seen by the kernel; the parts of a pipeline begin in any order.
    """
    ran = [(e.name, e.arguments, e.user) for e in record.executions if e.permission]
    return sorted(one for one in ran if one[0] != "umask"), record.changes


def _in_bash(
    pool: Pool, tree: Mapping[str, Any], line: str, limits: SandboxLimits
) -> tuple[_Outcome, int]:
    """A line in the sandbox, and the time of day when it began."""
    clock = int(time.time())
    result, after = pool.run(tree, line, limits)
    changed = _compared(tree, after)
    return _Outcome(result.stdout, result.exit_code, changed, _seen(result.record)), clock


def _here(tree: Mapping[str, Any], line: str, clock: int) -> _Outcome:
    """A line in a simulator that begins at a time of day."""
    session = Session(Image(tree, clock))
    result = session.run(line)
    changed = _compared(tree, session.tree())
    return _Outcome(result.stdout, result.exit_code, changed, _seen(result.record))


def _lacking(pool: Pool) -> frozenset[str]:
    """The simulated programs that this machine does not have."""
    line = f"for name in {' '.join(PROGRAMS)}; do type -P $name > /dev/null || echo $name; done"
    return frozenset(pool.run(TREES["project"], line, _LIMITS)[0].stdout.split())


def judged(
    pool: Pool,
    lines: Sequence[tuple[str, Mapping[str, Any]]],
    limits: SandboxLimits = SandboxLimits(wall=5.0),  # noqa: B008 (immutable)
) -> list[Verdict]:
    """Compares lines with the sandbox, each in a fresh copy of its normal tree.

    The second run of each in the sandbox comes after the first of all: by then the time of day and
    the processes' numbers are others, and what depends on them is told from what does not.
    """
    verdicts: list[Verdict] = []
    first: dict[int, tuple[_Outcome, int]] = {}
    lacking = _lacking(pool)
    for number, (line, world) in enumerate(lines):
        result = Session(Image(world)).run(line)
        ran = (e.name for e in result.record.executions if e.kind == "program")
        absent = [name for name in ran if name in lacking]
        if result.unsupported:
            verdicts.append(Verdict(line, "unsupported", result.unsupported[0]))
        elif absent:
            verdicts.append(Verdict(line, "unstable", f"no {absent[0]} on this machine"))
        else:
            verdicts.append(Verdict(line, "equal", ""))
            first[number] = _in_bash(pool, world, line, limits)
    for number, (outcome, _) in first.items():
        line, world = lines[number]
        again, clock = _in_bash(pool, world, line, limits)
        found = _here(world, line, clock - 1)  # its first command is a second later
        if outcome != again or again.exit_code in _OVER:
            apart = [f for f in _Outcome._fields if getattr(outcome, f) != getattr(again, f)]
            verdicts[number] = Verdict(line, "unstable", ", ".join(apart) or "limit")
        elif found != again:
            apart = [f for f in _Outcome._fields if getattr(found, f) != getattr(again, f)]
            told = [
                f"  {f}\n    bash {getattr(again, f)!r}\n    here {getattr(found, f)!r}"
                for f in apart
            ]
            verdicts[number] = Verdict(line, apart[0], "\n".join(told))
    return verdicts


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
