"""What a sweep shows of itself: the plan with its estimated cost, and how it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from subtransfer.experiment import names as stage_names
from subtransfer.store.workdir import MEMBERS, SWEEP
from subtransfer.sweeps.requests import log_path
from subtransfer.sweeps.schedule import MemberFailure, PlannedStage, SweepPlan

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
        """Reckons them from `history.read`; stages that were cut off in between do not count."""
        seconds: dict[str, float] = {}
        flops: dict[str, float] = {}
        numbers: dict[str, int] = {}
        total = 0
        for record in history:
            # Only the last part of one that was cut off would be counted, as if it were the whole.
            if record["what"] != "computed" or "flops" not in record:
                continue
            total += 1
            kind = stage_names.kind(record["stage"])
            # Under "" as well, for kinds that this workdir has not computed yet.
            for name in (kind, "") if record["flops"] else (kind,):
                seconds[name] = seconds.get(name, 0.0) + record["seconds"]
                flops[name] = flops.get(name, 0.0) + record["flops"]
                numbers[name] = numbers.get(name, 0) + 1
        per_flop, each = {}, {}
        for name in seconds:
            if flops[name]:
                per_flop[name] = seconds[name] / flops[name]
            else:
                each[name] = seconds[name] / numbers[name]
        return cls(per_flop, each, total)

    def seconds(self, node: PlannedStage) -> float | None:
        """Returns what a stage will take, or None where nothing is known of its kind."""
        if node.flops:
            # Another kind's rate is a guess, but better than none: most time is spent in products.
            rate = self.per_flop.get(node.kind, self.per_flop.get(""))
            return None if rate is None else rate * node.flops
        return self.each.get(node.kind, 0.0 if self.count else None)


def in_words(seconds: float) -> str:
    """Writes a time as "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def print_plan(
    plan: SweepPlan,
    finished: set[int],
    rates: Rates,
    workdir: Path,
    workers: str,
    count: int,
    console: Console,
) -> None:
    """Prints the members with their stages, and what all of it will cost.

    Args:
      plan: of the sweep.
      finished: numbers of the stages that are there.
      rates: of stages computed so far.
      workdir: of the sweep.
      workers: in words.
      count: of the workers.
      console: where it is printed.
    """
    table = Table(title=f"sweep of {workdir}", box=None)
    table.add_column("member")
    for name in ("stages", "shared", "to do", "TFLOP (est.)", "time (est.)"):
        table.add_column(name, justify="right")
    counted = set(finished)
    all_flops, all_seconds = 0.0, 0.0
    for at, (member, stages) in enumerate(zip(plan.members, plan.stages, strict=True)):
        shared = sum(len(plan.nodes[n].users) > 1 for n in stages)
        # Shared stages count for the first member that needs them.
        to_do = [n for n in stages if n not in counted]
        counted.update(to_do)
        flops = sum(plan.nodes[n].flops for n in to_do)
        seconds = [rates.seconds(plan.nodes[n]) for n in to_do]
        known = [s for s in seconds if s is not None]
        all_flops += flops
        all_seconds += sum(known)
        if at < _ROWS:
            # A sum that leaves out a stage would look like a promise.
            time = in_words(sum(known)) if len(known) == len(seconds) else ""
            numbers = (str(len(stages)), str(shared), str(len(to_do)), f"{flops / 1e12:.3g}")
            table.add_row(member.name, *numbers, time)
    console.print(table)
    if len(plan.members) > _ROWS:
        console.print(f"... and {len(plan.members) - _ROWS} more members.")
    shared = sum(len(node.users) > 1 for node in plan.nodes)
    console.print(
        f"{len(plan.members)} members with {sum(map(len, plan.stages))} stages, of which "
        f"{len(plan.nodes)} are different and {shared} shared; "
        f"{len(plan.nodes) - len(finished)} to do, each counted for the first member that needs "
        "it.",
        soft_wrap=True,
    )
    if rates.count:
        console.print(
            f"Estimated: {all_flops / 1e12:.3g} TFLOP, {in_words(all_seconds)} of one worker, "
            f"{in_words(all_seconds / count)} with {workers}; from the times of the {rates.count} "
            "stages computed in this workdir so far, by kind of stage.",
            soft_wrap=True,
        )
    else:
        console.print(
            f"Estimated: {all_flops / 1e12:.3g} TFLOP on {workers}; nothing has been computed in "
            "this workdir yet, from which times could be reckoned.",
            soft_wrap=True,
        )


def print_end(
    plan: SweepPlan,
    failures: Mapping[int, MemberFailure],
    events: Mapping[str, int],
    seconds: float,
    workdir: Path,
    console: Console,
) -> None:
    """Prints what was computed, and each failed stage with its sentence, log and members.

    Args:
      plan: of the sweep.
      failures: by the number of a member that has failed.
      events: how many stages were "computed" and "redone".
      seconds: that the command took.
      workdir: of the sweep.
      console: where it is printed.
    """
    sentences: dict[int, str] = {}  # by the number of a stage that failed
    names: dict[int, list[str]] = {}  # of the members that needed it
    for member, failure in sorted(failures.items()):
        sentences.setdefault(failure.stage, failure.sentence)
        names.setdefault(failure.stage, []).append(plan.members[member].name)
    for stage, sentence in sentences.items():
        node = plan.nodes[stage]
        # Without markup: sentences hold brackets, which rich would take for styles.
        failed = f"FAILED {_listed(names[stage])}: {node.name}: {sentence}"
        console.print(failed, soft_wrap=True, markup=False)
        console.print(f"       log: {log_path(workdir, node.folder)}", soft_wrap=True, markup=False)
    computed = events["computed"] + events["redone"]
    console.print(
        f"{len(plan.members) - len(failures)} of {len(plan.members)} members have their results, "
        f"{len(failures)} failed; {computed} stages computed here in {in_words(seconds)}. "
        f"Results: {workdir / MEMBERS}, {workdir / SWEEP}",
        soft_wrap=True,
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
