"""What the TPU compiler expects a compiled program to take.

The tool walks the program's schedule with the cycles that the compiler notes at each operation.

`compiled.cost_analysis()["optimal_seconds"]` does not serve: it counts -1 for whatever it has no
model of, and a loop's body once. The scheduled HLO names `estimated_cycles` for every fusion, by
the cost model that the compiler itself tiles and schedules with. Here the operations are walked in
their order, a loop's body as often as its condition lets it run.

- **Collectives** carry no estimate. They take the time of their bytes, by a ring's algorithm, at
  half of a chip's published interconnect bandwidth: at the corner of a slice without wrap-around
  half of its links lead nowhere. Collectives wait for each other. One that the schedule begins and
  ends in two places runs beside what stands between them, as the chip's own engine moves the bytes;
  what is not done by then the chip waits for. One in one place is waited for as a whole.
- **Between slices** bytes take the time of a chip's share of its host's network, likewise beside
  other work.
- **Kernels** (Pallas) carry none either. Splash attention's are counted by their products over the
  causal half of the scores, at the share of the peak that `Chip.splash` gives; others as moving
  their operands and results once, which is the least.
- Copies between HBM and VMEM that run beside arithmetic are not counted; a program's time is at
  least that of the bytes that it must read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

from chips import CHIPS, Chip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Products over the scores that a kernel makes: scores and values; scores, d(values), d(scores) to
# dq; and so on.
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


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
    needs = (
        f"{row['gib']:.1f} GiB of a chip's {CHIPS[kind].gib}"
        if math.isfinite(row["gib"])
        else "more than a chip has"
    )
    return [
        f"{row['program']} of {row['model']} needs {needs}: lower "
        f"{REMEDIES[row['program']]}, or raise mesh.tensor or mesh.fsdp."
    ]


@dataclasses.dataclass(frozen=True)
class Time:
    """Of one call of a program, or a part of one, on a chip.

    Attributes:
      total: seconds.
      waiting: of these, for collectives with nothing to compute beside them.
      collectives: seconds in which the interconnect is busy.
      between: bytes that a chip sends to other slices.
      kernels: seconds of splash attention, by its products.
      unknown: other kernels, which count as what they move.
    """

    total: float = 0.0
    waiting: float = 0.0
    collectives: float = 0.0
    between: float = 0.0
    kernels: float = 0.0
    unknown: int = 0

    def __add__(self, other: Time) -> Time:
        return Time(
            *(
                a + b
                for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
            )
        )

    def times(self, count: int) -> Time:
        """The time of `count` repetitions."""
        return Time(*(x * count for x in dataclasses.astuple(self)))

    def reading(self, seconds: float) -> float:
        """Seconds of a program whose bytes take `seconds` to be read.

        Its arithmetic cannot be done sooner than that.
        """
        return max(self.total - self.waiting, seconds) + self.waiting


def _bytes(shape: str) -> int:
    """Of all arrays in an HLO shape."""
    width = {"pred": 1, "bf16": 2}
    sizes = (
        (width.get(kind) or int(re.sub(r"\D", "", kind)) / 8, dims)
        for kind, dims in _ARRAY.findall(shape)
    )  # "f32" is 4 bytes, "s4" half a one
    return int(sum(size * math.prod(_dims(dims)) for size, dims in sizes))


class Program:
    """The text of a compiled module (`compiled.as_text()`), on a chip."""

    def __init__(self, text: str, chip: Chip):
        self._chip = chip
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
        """Walks a schedule; `time.total` is now."""
        time, ends, received = Time(), {}, {}
        free = network = (
            # when the interconnect, and the network between slices, have done what they were given
            # so far
            0.0
        )
        for match in filter(None, map(_OPERATION.match, self._computations[computation])):
            name, shape, kind, rest = match.groups()
            line, late = match.group(0), 0.0
            rendezvous = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', line)
            collective = self._collective(kind, shape, line)
            if kind == "recv" and rendezvous:
                received[name] = rendezvous.group(1)
            elif kind == "send" and rendezvous:
                sent = _bytes(_elements(shape)[0])
                network = ends[rendezvous.group(1)] = (
                    max(network, time.total) + sent / self._chip.dcn
                )
                time += Time(between=sent)
            elif kind.endswith("-done") or (collective and collective.role == "done"):
                begun = re.match(r"%?([\w.\-]+)", rest).group(1)
                begun = collective.channel if collective else received.get(begun, begun)
                late = ends.get(begun, 0.0) - time.total
            elif collective:
                free = max(free, time.total) + collective.seconds
                time += Time(collectives=collective.seconds)
                if collective.role == "start":
                    ends[collective.channel or name] = free
                else:
                    late = free - time.total
            else:
                inner = self._operation(kind, line, rest, computation)
                free = max(free, time.total) + inner.collectives if inner.collectives else free
                time += inner
            if late > 0:
                time += Time(total=late, waiting=late)
        return time

    @functools.cache  # noqa: B019
    def _shapes(self, computation: str) -> dict[str, str]:
        """What each operation of a computation yields."""
        matches = map(_OPERATION.match, self._computations[computation])
        return {match.group(1): match.group(2) for match in matches if match}

    def _operation(self, kind: str, line: str, rest: str, computation: str) -> Time:
        """Of an operation that is no collective."""
        cycles = _CYCLES.search(line)
        here = Time(float(cycles.group(1)) / self._chip.clock if cycles else 0.0)
        called = [c.strip(" %{}") for group in _CALLED.findall(line) for c in group.split(",")]
        if kind == "while":
            names = dict(re.findall(r"(body|condition)=%?([\w.\-]+)", line))
            return here + self._time(names["body"]).times(self._trips(line, names["condition"]))
        if kind == "conditional":  # the dearest branch
            return here + max((self._time(c) for c in called), key=lambda t: t.total)
        if kind == "call":
            return here + sum((self._time(c) for c in called), Time())
        if kind == "custom-call" and 'custom_call_target="tpu_custom_call"' in line and not cycles:
            return self._kernel(line, rest, computation)
        return here

    def _kernel(self, line: str, rest: str, computation: str) -> Time:
        products = next(
            (n for name, n in _SPLASH.items() if f"%{name}" in line.partition("=")[0]), 0
        )
        if products:
            given = re.search(r"operand_layout_constraints=\{(.*?\})\}", line).group(1)
            q, k = [_dims(dims) for kind, dims in _ARRAY.findall(given) if kind in ("bf16", "f32")][
                :2
            ]
            seconds = (
                products * math.prod(q) * k[-2] / (self._chip.flops * self._chip.splash)
            )  # 2 x the half
            return Time(total=seconds, kernels=seconds)
        shapes = self._shapes(computation)
        operands = [
            shapes[name]
            for name in re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
            if name in shapes
        ]
        moved = sum(map(_bytes, [_OPERATION.match(line).group(2), *operands]))
        return Time(total=moved / self._chip.hbm, unknown=1)

    def _trips(self, line: str, condition: str) -> int:
        """How often a loop runs.

        That is the number its condition compares the counter with, as every `lax.scan` and
        `fori_loop` does.
        """
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

    def _collective(self, kind: str, shape: str, line: str) -> Collective | None:
        """What an operation does with the interconnect; None for one that does nothing."""
        if kind == "fusion":
            return self._fused(_CALLED.search(line).group(1).strip(" %"))
        if kind == "async-start":
            whole = self._time(_CALLED.search(line).group(1).strip(" %")).collectives
            return Collective("start", whole) if whole else None
        started = kind.endswith("-start")
        kind = kind.removesuffix("-start")
        if kind not in _COLLECTIVES:
            return None
        if started and kind in (
            "all-gather",
            "collective-permute",
        ):  # (what is given, what is got, ...)
            shape = _elements(shape)[1]
        return Collective(
            "start" if started else "whole", self._wire(kind, _bytes(shape), _group_size(line))
        )

    @functools.cache  # noqa: B019
    def _fused(self, computation: str) -> Collective | None:
        """The role of a fusion in a collective.

        One fusion begins it, others move parts of it beside their products, a last one ends it.
        """
        lines = self._computations[computation]
        for match in filter(None, map(_OPERATION.match, lines)):
            line, channel = match.group(0), re.search(r"channel_id=(\d+)", match.group(0))
            found = self._collective(match.group(3), match.group(2), line) if channel else None
            if not found:
                continue
            role = next(
                (
                    role
                    for role in ("start", "done")
                    if any(f'"AsyncCollective{role.title()}"' in x for x in lines)
                ),
                "",
            )
            if not role and "async_collective_fusion_config" in line:
                return None
            scattered = match.group(3) == "all-reduce" and any(
                " dynamic-slice(" in x for x in lines
            )
            return Collective(
                role or "whole", found.seconds / (2 if scattered else 1), channel.group(1)
            )
        return None

    def _wire(self, kind: str, size: int, group: int) -> float:
        """Seconds of a collective of `size` bytes on the interconnect, by the ring algorithm."""
        if (
            kind == "collective-permute"
        ):  # to one neighbour, beside another permutation in the opposite direction
            return size / (2 * self._chip.ici / self._chip.links)
        bytes_of_kind = {"all-reduce": 2 * size, "reduce-scatter": size * group}.get(kind, size)
        return bytes_of_kind * (group - 1) / group / (self._chip.ici / 2)


@dataclasses.dataclass(frozen=True)
class Collective:
    """What an operation has to do with a collective.

    It is the "whole" of it, its "start" or its "done"; `channel` ties the two.
    """

    role: str
    seconds: float
    channel: str = ""


def _elements(shape: str) -> list[str]:
    """The parts of a tuple's shape."""
    parts, depth = [""], 0
    for sign in shape[1:-1]:
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def _dims(text: str) -> list[int]:
    return [int(d) for d in text.split(",") if d]


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
