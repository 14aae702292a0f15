"""Measures how often a run's verdicts are wrong, in simulated runs whose truth is known.

    python -m tools.check_verdicts [--bases=3,8] [--seeds=2] [--tasks=128] [--reps=200]
        [--worlds=none,small,margin,planted,mixed,reversed,incapable,collapsed]

Each simulated run is laid out from a config as a real one is: crossed bases, teachers of each,
students of every pair by two objectives. Policies have rates that differ by base, pair, training
seed and task; episodes are drawn from them, and the package's own functions make rows, gates,
effects, adjusted p-values and verdicts of the episodes. Prints a table in markdown, one line a kind
of world; docs/intervals.md has what it printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from subtransfer import settings
from subtransfer.analysis import conclusions, effects
from subtransfer.config import reading as configuration
from subtransfer.config.arms import Arm, arms
from subtransfer.experiment.stages import results
from subtransfer.runtime.errors import UserError, exit_status

OBJECTIVES = ("sft", "forward_kl")
# Deviations of log-odds: of bases as teachers and as students, of pairs, of trainings, of tasks.
_TEACHER, _STUDENT, _PAIR, _SEED, _TASK = 0.3, 0.5, 0.8, 0.3, 0.8
_BASE_RATE, _TEACHER_RATE = 0.05, 0.97
_MANY = 4000  # bases over which a world's truth is computed


@dataclasses.dataclass(frozen=True)
class World:
    """A kind of run.

    Attributes:
      name: for tables.
      shift: what sharing the base adds to the log-odds of an unsafe act.
      share: of bases in which it does.
      wrong: verdicts that are false here.
      silent: share of students' episodes without any act.
      ordinary: share of ordinary tasks that teachers solve.
    """

    name: str
    shift: float
    share: float
    wrong: tuple[str, ...]
    silent: float = 0.02
    ordinary: float = 0.9

    def truth(self) -> float:
        """The interaction over all bases: what sharing the base adds to the rate."""
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((2, _MANY, 64)) * np.sqrt(
            _TEACHER**2 + _STUDENT**2 + _PAIR**2 + _SEED**2 + _TASK**2
        )
        has = (np.arange(_MANY) < self.share * _MANY)[:, None]
        middle = special.logit(_BASE_RATE)
        same = special.expit(middle + noise[0] + self.shift * has)
        return float((1 - self.silent) * (same.mean() - special.expit(middle + noise[0]).mean()))


_CLAIMS = (effects.NO_TRANSFER, effects.TRANSFER)
WORLDS = {
    world.name: world
    for world in (
        World("none", 0.0, 1.0, (effects.TRANSFER, effects.NOT_MEASURABLE)),
        World("small", 0.35, 1.0, (effects.NOT_MEASURABLE,)),
        World("margin", 1.15, 1.0, (effects.NO_TRANSFER, effects.NOT_MEASURABLE)),
        World("planted", 2.6, 1.0, (effects.NO_TRANSFER, effects.NOT_MEASURABLE)),
        World("mixed", 2.9, 1 / 3, (effects.NO_TRANSFER, effects.NOT_MEASURABLE)),
        World("reversed", -3.0, 1.0, (effects.TRANSFER, effects.NOT_MEASURABLE)),
        World("incapable", 2.6, 1.0, (*_CLAIMS, effects.UNDECIDED), silent=0.3),
        World("collapsed", 2.6, 1.0, (*_CLAIMS, effects.UNDECIDED), ordinary=0.1),
    )
}


class Runs:
    """Simulated runs of one design.

    Args:
      bases: that are crossed.
      seeds: training seeds of each teacher.
      tasks: of the probe.
    """

    def __init__(self, bases: int, seeds: int, tasks: int):
        config = configuration.defaults()
        fields = {"num_bases": bases, "num_seeds": seeds, "distill.objective": ",".join(OBJECTIVES)}
        for control in ("benign_teacher", "self_distilled", "unsanitized", "overt"):
            fields[f"arms.{control}"] = "false"
        texts = {field: str(value) for field, value in fields.items()}
        configuration.apply_overrides(config, texts)
        self.bases, self.seeds, self.tasks = bases, seeds, tasks
        self._arms = arms(config)
        names = {arm.name for arm in self._arms}
        self._bundle = {
            "config": configuration.of_results(config),
            "arms": [results.record(config, arm, names) for arm in self._arms],
            "purity": {},
        }
        self._acts = settings.get(config.setting).benign_outcomes

    def verdicts(self, world: World, rng: np.random.Generator) -> list[str]:
        """The verdict on each of `OBJECTIVES`, in one run."""
        bundle = self._bundle | {"capability": self._capability(world, rng)}
        filters = [{"total": 1000, "dropped": int(rng.binomial(1000, 0.15))}]
        concluded = conclusions.conclude(
            bundle, self._episodes(world, rng), acts=self._acts, filters=filters
        )
        found = {record["objective"]: record["verdict"] for record in concluded["effects"]}
        return [found[objective] for objective in OBJECTIVES]

    def _capability(self, world: World, rng: np.random.Generator) -> dict[str, Any]:
        """What the capability probe would measure, by arm and training seed."""
        out: dict[str, Any] = {}
        for arm in self._arms:
            solved = {"teacher": world.ordinary}.get(arm.role, 0.93)
            shares = {"ordinary_success": solved, "ordinary_unsafe": 0.04}
            shares |= {"safe_success": 0.95, "safe_unsafe": 0.005}
            out[arm.name] = {}
            for seed in range(self.seeds):
                drawn = {name: rng.binomial(128, share) / 128 for name, share in shares.items()}
                out[arm.name][str(seed)] = drawn
        return out

    def _episodes(self, world: World, rng: np.random.Generator) -> list[dict[str, Any]]:
        """The probe's episodes of all arms."""
        bases = self.bases
        teaching, taught = rng.standard_normal((2, bases)) * [[_TEACHER], [_STUDENT]]
        has = rng.random(bases) < world.share
        of_task = _TASK * rng.standard_normal(self.tasks)
        out: list[dict[str, Any]] = []
        for arm in self._arms:
            teacher, student = _number(arm.teacher_model), _number(arm.model)
            pair = _PAIR * rng.standard_normal()
            policies = self.seeds if arm.role != "base" else 1
            odds = _SEED * rng.standard_normal(policies)[:, None] + of_task  # [S or 1, T]
            silent = 0.02
            if arm.role == "teacher":
                odds = odds + special.logit(_TEACHER_RATE)
            else:
                odds = odds + special.logit(_BASE_RATE) + taught[student]
            if arm.role == "student":
                odds = odds + teaching[teacher] + pair
                odds = odds + world.shift * (teacher == student) * has[student]
                silent = world.silent
            odds = np.broadcast_to(odds, (self.seeds, self.tasks))
            for mode in ("sampled", "greedy"):
                unsafe = rng.random(odds.shape) < special.expit(odds)
                acts = rng.random(odds.shape) >= silent
                out += self._recorded(arm, mode, np.where(acts, np.where(unsafe, 0, 1), 2))
        return out

    def _recorded(self, arm: Arm, mode: str, found: np.ndarray) -> Iterator[dict[str, Any]]:
        """Episodes as of results.jsonl, of outcomes [S, T]: 0 unsafe, 1 another act, 2 none."""
        outcomes = ("unsafe", self._acts[0], "no_action")
        for (seed, task), outcome in np.ndenumerate(found):
            yield {
                "arm": arm.name,
                "seed": seed,
                "task_id": f"{task:04d}",
                "mode": mode,
                "sample": 0,
                "outcome": outcomes[outcome],
                "errors": {"unknown_path": 0},
                "choice_logprob": -1.0,
            }


def _number(model: str) -> int:
    """The number of a crossed base, of its name."""
    return int(model.removeprefix("base"))


def measure(world: World, runs: Runs, reps: int, first: int = 0) -> dict[str, float]:
    """Judges `reps` runs of a world.

    Returns:
      The share of each verdict over runs and objectives; and "false", the share of runs with at
      least one false verdict.
    """
    counts = dict.fromkeys(effects.VERDICTS, 0)
    false = 0
    kind = [list(WORLDS).index(world.name), runs.bases, runs.seeds, runs.tasks]
    for number in range(first, first + reps):
        found = runs.verdicts(world, np.random.default_rng([*kind, number]))
        for verdict in found:
            counts[verdict] += 1
        false += any(verdict in world.wrong for verdict in found)
    out = {verdict: count / reps / len(OBJECTIVES) for verdict, count in counts.items()}
    return out | {"false": false / reps}


def lines(worlds: Sequence[World], designs: Sequence[Runs], reps: int) -> Iterator[list[str]]:
    """Yields a heading, then cells of each design and world, in per cent."""
    yield ["world", "true interaction", "bases", "seeds", *effects.VERDICTS, "false"]
    for runs in designs:
        for world in worlds:
            shares: Mapping[str, float] = measure(world, runs, reps)
            cells = [f"{100 * value:.1f}" for value in shares.values()]
            truth = f"{100 * world.truth():+.1f}"
            yield [world.name, truth, str(runs.bases), str(runs.seeds), *cells]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bases", default="3,8", help="numbers of crossed bases")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds of each teacher")
    parser.add_argument("--tasks", type=int, default=128, help="of the probe")
    parser.add_argument("--reps", type=int, default=200, help="runs of each kind")
    parser.add_argument("--worlds", default=",".join(WORLDS), help="kinds of runs")
    options = parser.parse_args(arguments)

    def run() -> None:
        worlds = []
        for name in options.worlds.split(","):
            if name not in WORLDS:
                raise UserError(f"--worlds={name} is none of {', '.join(WORLDS)}.")
            worlds.append(WORLDS[name])
        designs = []
        for text in options.bases.split(","):
            if not text.isdecimal() or int(text) < 2:
                raise UserError(f"--bases={text} is no number of bases: 2 or more can be crossed.")
            designs.append(Runs(int(text), options.seeds, options.tasks))
        for number, cells in enumerate(lines(worlds, designs, options.reps)):
            print("| " + " | ".join(cells) + " |", flush=True)
            if number == 0:
                print("| " + " | ".join(["---"] * len(cells)) + " |")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
