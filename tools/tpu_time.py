"""What the TPU compiler expects of a compiled program: reads the cycles that it notes at each operation of its HLO.

`compiled.cost_analysis()["optimal_seconds"]` does not serve: it counts -1 for whatever it has no model of, and a loop's body
once. The scheduled HLO names `estimated_cycles` for every fusion, by the cost model that the compiler itself tiles and
schedules with; here they are summed, a loop's body as often as its condition lets it run.

Collectives carry no estimate. They are counted at the chip's published interconnect bandwidth, which is the least they take.
Nor do kernels (Pallas): they are counted as reading their operands and writing their results once, the least that they take.
Copies between HBM and VMEM that run beside arithmetic carry none either: a program's time is at least that of its bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip, from the vendor's system architecture pages.

    Attributes:
      gib: HBM.
      hbm: its bandwidth, bytes/s.
      flops: peak in bfloat16, 1/s.
      clock: Hz, what turns cycles into seconds: peak / (2 x 128 x 128 x number of matrix units), of v6e 256 x 256.
      ici: bytes/s that a chip sends over all its links.
    """

    gib: float
    hbm: float
    flops: float
    clock: float
    ici: float


CHIPS = {
    "v4": Chip(32, 1228e9, 275e12, 1.05e9, 2400e9 / 16),
    "v5e": Chip(16, 819e9, 197e12, 1.5e9, 1600e9 / 16),
    "v5p": Chip(95, 2765e9, 459e12, 1.75e9, 4800e9 / 16),
    "v6e": Chip(32, 1640e9, 918e12, 1.75e9, 3584e9 / 16),
}


# What lowers the memory of a program, by the config's fields.
REMEDIES = {
    "prefill": "rollouts.batch_size",
    "decode": "rollouts.batch_size or distill.max_tokens",
    "probe": "distill.max_tokens",
    "train": "distill.batch_size, raise distill.accumulate, set base.remat=full",
}


def refusal(row: dict[str, Any], kind: str) -> list[str]:
    """The sentence about a program that does not fit a chip; none for one that does."""
    if row["gib"] <= CHIPS[kind].gib:
        return []
    needs = f"{row['gib']:.1f} GiB of a chip's {CHIPS[kind].gib}" if math.isfinite(row["gib"]) else "more than a chip has"
    return [
        f"{row['program']} of {row['model']} needs {needs}: lower "
        f"{REMEDIES[row['program']]}, or raise mesh.tensor or mesh.fsdp."
    ]


@dataclasses.dataclass(frozen=True)
class Time:
    """Cycles of the compiler's own estimate, and bytes that a chip sends to others."""

    cycles: float = 0.0
    sent: float = 0.0
    unknown: int = 0  # custom calls (Pallas kernels) that the compiler has no estimate of
    moved: float = 0.0  # bytes of their operands and results

    def __add__(self, other: Time) -> Time:
        return Time(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def times(self, count: int) -> Time:
        return Time(*(x * count for x in dataclasses.astuple(self)))

    def seconds(self, chip: Chip, least_bytes: float = 0.0) -> float:
        """Of a program that reads at least so many bytes of HBM."""
        return max(self.cycles / chip.clock + self.moved / chip.hbm, least_bytes / chip.hbm) + self.sent / chip.ici


def _bytes(shape: str) -> int:
    """Of all arrays in an HLO shape."""
    width = {"pred": 1, "bf16": 2}
    sizes = (
        (width.get(kind) or int(re.sub(r"\D", "", kind)) / 8, dims) for kind, dims in _ARRAY.findall(shape)
    )  # "f32" is 4 bytes, "s4" half a one
    return int(sum(size * math.prod(int(d) for d in dims.split(",") if d) for size, dims in sizes))


class Program:
    """The text of a compiled module (`compiled.as_text()`)."""

    def __init__(self, text: str):
        self._computations: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in text.splitlines():
            head = None if line.startswith((" ", "}")) else _COMPUTATION.match(line)
            if head:
                lines = self._computations[head.group(2)] = []
                if head.group(1):
                    self._entry = head.group(2)
            elif line.startswith(" "):
                lines.append(line)

    @property
    def whole(self) -> Time:
        """Of one call."""
        return self._time(self._entry)

    @functools.cache  # noqa: B019 - as long-lived as the text
    def _time(self, computation: str) -> Time:
        return sum((self._operation(line, computation) for line in self._computations[computation]), Time())

    @functools.cache  # noqa: B019
    def _shapes(self, computation: str) -> dict[str, str]:
        """What each operation of a computation yields."""
        matches = map(_OPERATION.match, self._computations[computation])
        return {match.group(1): match.group(2) for match in matches if match}

    def _operation(self, line: str, computation: str) -> Time:
        match = _OPERATION.match(line)
        if not match:
            return Time()
        _, shape, kind, rest = match.groups()
        cycles = _CYCLES.search(line)
        here = Time(float(cycles.group(1)) if cycles else 0.0)
        called = [c.strip(" %{}") for group in _CALLED.findall(line) for c in group.split(",")]
        if kind == "while":
            names = dict(re.findall(r"(body|condition)=%?([\w.\-]+)", line))
            return here + self._time(names["body"]).times(self._trips(line, names["condition"]))
        if kind == "conditional":  # the dearest branch
            return here + max((self._time(c) for c in called), key=lambda t: t.cycles)
        if kind in ("call", "async-start"):
            return here + sum((self._time(c) for c in called), Time())
        if kind.removesuffix("-start") in _COLLECTIVES:
            return here + Time(0.0, self._sent(kind.removesuffix("-start"), shape, line))
        if kind == "custom-call" and 'custom_call_target="tpu_custom_call"' in line and not cycles:
            shapes = self._shapes(computation)
            operands = [shapes[name] for name in re.findall(r"%([\w.\-]+)", rest.partition(")")[0]) if name in shapes]
            return Time(unknown=1, moved=sum(map(_bytes, [shape, *operands])))
        return here

    def _trips(self, line: str, condition: str) -> int:
        """Of a loop: the number its condition compares the counter with, as every `lax.scan` and `fori_loop` does."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        if known:
            return int(known.group(1))
        return max(self._constants(condition), default=1)

    def _constants(self, computation: str) -> list[int]:
        found = []
        for line in self._computations[computation]:
            found += [int(n) for n in re.findall(r"= s32\[\]\S* constant\((\d+)\)", line)]
            for name in re.findall(r"calls=%?([\w.\-]+)", line):
                found += self._constants(name)
        return found

    @staticmethod
    def _sent(kind: str, shape: str, line: str) -> float:
        """Bytes that a chip sends in a collective, by the ring algorithm."""
        group = _group_size(line)
        size = _bytes(shape)
        if kind == "collective-permute":
            return size
        share = (group - 1) / group
        return {"all-reduce": 2 * size, "reduce-scatter": size * group}.get(kind, size) * share


def _group_size(line: str) -> int:
    """Chips that take part in one collective, in either notation of HLO."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']+)'", mesh.group(2)))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota.group(1))
    listed = re.search(r"replica_groups=\{\{([^}]*)\}", line)
    return len(listed.group(1).split(",")) if listed else 1
