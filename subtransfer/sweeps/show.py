"""What a sweep shows of itself: the plan with its estimated cost, and how it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from subtransfer.experiment import names
from subtransfer.sweeps.jobs import log_path
from subtransfer.sweeps.schedule import Failure, Node, Plan

_ROWS = 30  # members that are listed


@dataclasses.dataclass(frozen=True)
class Rates:
    """Seconds that stages take, from those that were computed in the workdir.

    Attributes:
      per_flop: by kind of stage, for kinds with operations; "" is all kinds together.
      each: by kind of stage, for the others.
      count: stages that this is from.
    """

    per_flop: Mapping[str, float]
    each: Mapping[str, float]
    count: int

    @classmethod
    def of(cls, history: Iterable[Mapping[str, Any]]) -> Rates:
        """From `artifacts.history`; stages that were cut off in between do not count."""
        seconds: dict[str, float] = {}
        flops: dict[str, float] = {}
        numbers: dict[str, int] = {}
        total = 0
        for record in history:
            if record["what"] != "computed" or "flops" not in record:
                continue
            total += 1
            kind = names.kind(record["stage"])
            for name in (kind, "") if record["flops"] else (kind,):
                seconds[name] = seconds.get(name, 0.0) + record["seconds"]
                flops[name] = flops.get(name, 0.0) + record["flops"]
                numbers[name] = numbers.get(name, 0) + 1
        per_flop = {name: seconds[name] / flops[name] for name in seconds if flops[name]}
        return cls(
            per_flop,
            {name: seconds[name] / numbers[name] for name in seconds if not flops[name]},
            total,
        )

    def seconds(self, node: Node) -> float | None:
        """What a stage will take, or None where nothing is known of its kind."""
        if node.flops:
            rate = self.per_flop.get(node.kind, self.per_flop.get(""))
            return None if rate is None else rate * node.flops
        return self.each.get(node.kind, 0.0 if self.count else None)


def in_words(seconds: float) -> str:
    """ "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def print_plan(
    plan: Plan,
    finished: set[int],
    rates: Rates,
    workdir: Path,
    workers: str,
    count: int,
    console: Console,
) -> None:
    """Members with their stages, and what all of it will cost.

    Args:
      finished: numbers of the nodes that are there.
      workers: in words. count: how many.
    """
    table = Table(
        "member",
        "stages",
        "shared",
        "to do",
        "TFLOP (est.)",
        "time (est.)",
        title=f"sweep of {workdir}",
        box=None,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    counted: set[int] = set(finished)
    all_flops, all_seconds = 0.0, 0.0
    for at, (member, stages) in enumerate(zip(plan.members, plan.stages, strict=True)):
        shared = sum(len(plan.nodes[n].users) > 1 for n in stages)
        own = [
            n for n in stages if n not in counted
        ]  # shared stages count for the first member that needs them
        counted.update(own)
        flops, seconds = (
            sum(plan.nodes[n].flops for n in own),
            [rates.seconds(plan.nodes[n]) for n in own],
        )
        known = None if None in seconds else sum(seconds)
        all_flops += flops
        all_seconds += sum(s or 0.0 for s in seconds)
        if at < _ROWS:
            time = "" if known is None else in_words(known)
            table.add_row(
                member.name,
                str(len(stages)),
                str(shared),
                str(len(own)),
                f"{flops / 1e12:.3g}",
                time,
            )
    console.print(table)
    if len(plan.members) > _ROWS:
        console.print(f"... and {len(plan.members) - _ROWS} more members.")
    shared = sum(len(node.users) > 1 for node in plan.nodes)
    console.print(
        f"{len(plan.members)} members with {sum(map(len, plan.stages))} stages, of which {len(plan.nodes)} are different and "
        f"{shared} shared; {len(plan.nodes) - len(finished)} to do, each counted for the first member that needs it.",
        soft_wrap=True,
    )
    if rates.count:
        console.print(
            f"Estimated: {all_flops / 1e12:.3g} TFLOP, {in_words(all_seconds)} of one worker, {in_words(all_seconds / count)} "
            f"with {workers}; from the times of the {rates.count} stages computed in this workdir so far, by kind of stage.",
            soft_wrap=True,
        )
    else:
        console.print(
            f"Estimated: {all_flops / 1e12:.3g} TFLOP on {workers}; nothing has been computed in this workdir yet, from which "
            "times could be reckoned.",
            soft_wrap=True,
        )


def print_end(
    plan: Plan,
    failures: Mapping[int, Failure],
    events: Mapping[str, int],
    seconds: float,
    workdir: Path,
    console: Console,
) -> None:
    """How it ended: what was computed, and each failed stage with its sentence, its log and its
    members.
    """
    by_stage: dict[int, list[str]] = {}
    for member, failure in sorted(failures.items()):
        by_stage.setdefault(failure.stage, []).append(plan.members[member].name)
    for stage, members in by_stage.items():
        node, sentence = (
            plan.nodes[stage],
            failures[next(m for m in failures if failures[m].stage == stage)].sentence,
        )
        console.print(
            f"FAILED {_listed(members)}: {node.name}: {sentence}", soft_wrap=True, markup=False
        )
        console.print(f"       log: {log_path(workdir, node.folder)}", soft_wrap=True, markup=False)
    computed = events["computed"] + events["redone"]
    console.print(
        f"{len(plan.members) - len(failures)} of {len(plan.members)} members have their results, {len(failures)} failed; "
        f"{computed} stages computed here in {in_words(seconds)}. Results: {workdir / 'runs'}, {workdir / 'sweep.json'}",
        soft_wrap=True,
    )


def _listed(words: Sequence[str], most: int = 5) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
