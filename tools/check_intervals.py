"""Measures how often intervals hold the truth and how often p-values err.

    python -m tools.check_intervals [--seeds=3,5,8] [--icc=0,0.05,0.15] [--rate=0.05,0.25,0.5,0.95]
        [--scatter=beta,logit-normal] [--tasks=256] [--shared=0] [--reps=1000]

Simulated experiments whose rates are known, judged by the package's own functions: arms of a few
trainings that differ by an intra-seed correlation, and tasks that are easy or hard for all arms.
Prints a table in markdown, one line a kind of world; docs/intervals.md is what it printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from subtransfer.analysis import statistics
from subtransfer.runtime.errors import UserError, exit_status

SCATTERS = ("beta", "logit-normal")
_TASK_SHARE = 0.3  # of an outcome's variance on the scale of the copula; what tasks have in common
_LOW, _HIGH, _WEAK = 0.05, 0.95, 0.15
_AT_ONCE = 200  # experiments, which bounds memory


@dataclasses.dataclass(frozen=True)
class World:
    """A kind of experiment.

    Attributes:
      seeds: trainings of each arm.
      icc: intra-seed correlation of each arm.
      rate: of the arm that is judged.
      scatter: how trainings' rates are distributed, one of `SCATTERS`.
      tasks: of the probe.
      shared: the correlation of two arms' rates by a training (of their normal scores), as from a
        common teacher.
    """

    seeds: int
    icc: float
    rate: float
    scatter: str = SCATTERS[0]
    tasks: int = 256
    shared: float = 0.0

    @property
    def other(self) -> float:
        """The rate of an arm that differs."""
        return _LOW if self.rate != _LOW else 0.25

    def simulate(self, reps: int, number: int = 0) -> dict[str, np.ndarray]:
        """Draws outcomes [reps, T, S] of arms of the same tasks, by name.

        "arm" has the world's rate, "same" too, "policy" too but all its trainings are one policy
        that is probed S times; "other" has another; "teacher" and "weak" have the habit often and
        hardly; "base" is one policy at 5%.
        """
        which = [self.seeds, round(1e4 * self.icc), round(1e4 * self.rate), self.tasks]
        which += [SCATTERS.index(self.scatter), round(1e4 * self.shared), number]
        rng = np.random.default_rng(which)
        tasks = rng.standard_normal((reps, self.tasks, 1), dtype=np.float32)
        common = rng.standard_normal((reps, self.seeds))
        rates = {
            "arm": (self.rate, self.icc),
            "same": (self.rate, self.icc),
            "policy": (self.rate, 0.0),
            "other": (self.other, self.icc),
            "teacher": (_HIGH, self.icc),
            "weak": (_WEAK, self.icc),
            "base": (_LOW, 0.0),
        }
        own = np.float32(np.sqrt(1 - _TASK_SHARE))
        out = {}
        for name, (rate, icc) in rates.items():
            scores = np.sqrt(self.shared) * common
            scores = scores + np.sqrt(1 - self.shared) * rng.standard_normal(common.shape)
            of_seeds = of_trainings(scores, rate, icc, self.scatter)  # [reps, S]
            # A normal copula: every training's outcomes have its own rate, over tasks in common.
            noise = own * rng.standard_normal((reps, self.tasks, self.seeds), dtype=np.float32)
            noise += np.float32(np.sqrt(_TASK_SHARE)) * tasks
            bound = special.ndtri(of_seeds).astype(np.float32)[:, None, :]
            out[name] = (noise < bound).astype(np.float32)
        return out


def of_trainings(scores: np.ndarray, rate: float, icc: float, scatter: str) -> np.ndarray:
    """Rates of trainings with a mean and an intra-seed correlation, from normal scores."""
    if icc == 0:
        return np.full(scores.shape, rate)
    if scatter == "beta":
        total = 1 / icc - 1
        return special.betaincinv(rate * total, (1 - rate) * total, special.ndtr(scores))
    middle, sd = _logit_normal(rate, icc)
    return special.expit(middle + sd * scores)


@functools.cache
def _logit_normal(rate: float, icc: float) -> tuple[float, float]:
    """Middle and deviation of log-odds whose rates have a mean and an intra-seed correlation."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()

    def misses(guess: np.ndarray) -> list[float]:
        rates = special.expit(guess[0] + np.exp(guess[1]) * nodes)
        mean = weights @ rates
        variance = weights @ (rates - mean) ** 2
        return [mean - rate, variance / (rate * (1 - rate)) - icc]

    found = optimize.root(misses, [special.logit(rate), 0.0])
    if not found.success:
        raise UserError(f"No logit-normal rates have the mean {rate} and the correlation {icc}.")
    return float(found.x[0]), float(np.exp(found.x[1]))


def measure(world: World, reps: int, confidence: float = 0.95) -> dict[str, float]:
    """Judges `reps` experiments of a kind.

    Returns:
      Shares by column: "rate", "difference", "ratio" and "weak ratio" are coverages (the last where
      the teacher hardly has the habit; none there counts as right); "no ratio" how often the latter
      has no interval; "p" and "p, base" how often p is below 1 - confidence where nothing differs,
      against an arm like it and against one policy; "power" where the other arm differs.
    """
    found: dict[str, list[np.ndarray]] = {}
    for number, begin in enumerate(range(0, reps, _AT_ONCE)):
        arms = world.simulate(min(_AT_ONCE, reps - begin), number)
        for name, values in _judge(world, arms, confidence).items():
            found.setdefault(name, []).append(np.asarray(values, float))
    out = {}
    for name, parts in found.items():
        values = np.concatenate(parts)
        known = values[~np.isnan(values)]
        out[name] = float(known.mean()) if len(known) else float("nan")
    return out


def _judge(world: World, arms: Mapping[str, np.ndarray], confidence: float) -> dict[str, Any]:
    """For each experiment 1 where it is so, 0 where not, NaN where there is no interval."""
    difference = world.rate - world.other
    against = functools.partial(statistics.rate_difference, arms["arm"], confidence=confidence)
    apart, alike, policy = against(arms["other"]), against(arms["same"]), against(arms["policy"])
    out = {
        "rate": _holds(statistics.rate_interval(arms["arm"], confidence), world.rate),
        "difference": _holds(apart[:3], difference),
        "p": alike.p < 1 - confidence,
        "p, base": policy.p < 1 - confidence,
        "power": apart.p < 1 - confidence,
    }
    for name, teacher, habit in (("ratio", "teacher", _HIGH), ("weak ratio", "weak", _WEAK)):
        found = statistics.rate_ratio(
            arms["arm"], arms["other"], arms[teacher], arms["base"], confidence
        )
        out[name] = _holds(found, difference / (habit - _LOW))
    none = np.isnan(out["weak ratio"])
    out |= {"weak ratio": np.where(none, 1.0, out["weak ratio"]), "no ratio": none}
    return out


def _holds(interval: tuple[Any, Any, Any], truth: float) -> np.ndarray:
    _, low, high = interval
    holds = (np.asarray(low) <= truth) & (truth <= np.asarray(high))
    return np.where(np.isnan(low), np.nan, holds)


def lines(worlds: Sequence[World], reps: int) -> Iterator[list[str]]:
    """Yields a heading, then cells of each world, in per cent."""
    for number, world in enumerate(worlds):
        found = measure(world, reps)
        if number == 0:
            yield ["trainings", "correlation", "true rate", "trainings' rates", *found]
        shown = []
        for value in found.values():
            shown.append("" if np.isnan(value) else f"{100 * value:.1f}")
        yield [str(world.seeds), f"{world.icc:g}", f"{world.rate:g}", world.scatter, *shown]


def _numbers(kind: Callable[[str], Any], low: float, below: float) -> Callable[[str], list[Any]]:
    def numbers(text: str) -> list[Any]:
        found = [kind(part) for part in text.split(",")]
        for number in found:
            if not low <= number < below:
                raise argparse.ArgumentTypeError(f"{number} is not from {low} to below {below}")
        return found

    return numbers


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    seeds, shares = _numbers(int, 2, 1000), _numbers(float, 0, 1)
    parser.add_argument("--seeds", type=seeds, default=[3, 5, 8], help="trainings of each arm")
    parser.add_argument("--icc", type=shares, default=[0, 0.05, 0.15], help="correlations")
    parser.add_argument("--rate", type=_numbers(float, 0.001, 1), default=[0.05, 0.25, 0.5, 0.95])
    parser.add_argument("--scatter", type=lambda text: text.split(","), default=list(SCATTERS))
    parser.add_argument("--tasks", type=int, default=256)
    parser.add_argument("--shared", type=float, default=0.0, help="of arms by a training")
    parser.add_argument("--reps", type=int, default=1000, help="experiments of each kind")
    options = parser.parse_args(arguments)

    def run() -> None:
        for scatter in options.scatter:
            if scatter not in SCATTERS:
                raise UserError(f"--scatter={scatter} is none of {', '.join(SCATTERS)}.")
        worlds = []
        for count in options.seeds:
            for icc in options.icc:
                for rate in options.rate:
                    # Without a correlation there is no scatter to be distributed.
                    for scatter in options.scatter if icc else options.scatter[:1]:
                        world = World(count, icc, rate, scatter, options.tasks, options.shared)
                        worlds.append(world)
        for number, cells in enumerate(lines(worlds, options.reps)):
            print("| " + " | ".join(cells) + " |", flush=True)
            if number == 0:
                print("| " + " | ".join(["---"] * len(cells)) + " |")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
