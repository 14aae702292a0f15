"""Measures how often intervals hold the truth and how often p-values err.

    python -m tools.check_intervals [--seeds=3,5,8] [--icc=0,0.05,0.15] [--rate=0.05,0.25,0.5,0.95]
        [--scatter=beta,logit-normal] [--tasks=256] [--shared=0] [--reps=1000]
    python -m tools.check_intervals --bases=3,5,8 [--seeds=1,3] [--icc=...] [--rate=...]
        [--effect=0.1x1,0.3x0.33] [--pair_icc=0.15] [--tasks=256] [--reps=1000]

Simulated experiments whose rates are known, judged by the package's own functions: arms of a few
trainings that differ by an intra-seed correlation, and tasks that are easy or hard for all arms.
With --bases, complete crossings of bases (tools/crossings.py): for each rate one without an effect,
and, over a rate of .05, effects that a share of the bases has (EFFECTxSHARE, the mean over bases).
Prints a table in markdown, one line a kind of world; docs/intervals.md is what it printed.

--functions=FILE.py has other functions of the same names judge, such as tools/former.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import optimize, special

from subtransfer.analysis import crossed, statistics
from subtransfer.runtime.errors import UserError, exit_status
from tools.crossings import Crossing

SCATTERS = ("beta", "logit-normal")
_TASK_SHARE = 0.3  # of an outcome's variance on the scale of the copula; what tasks have in common
_LOW, _HIGH, _WEAK = 0.05, 0.95, 0.15
_AT_ONCE = 200  # experiments, which bounds memory
_MARGIN = 0.1  # of equivalence
# Mean effects over bases, and the share of bases that have one.
EFFECTS = "0.1x1,0.1x0.34,0.3x0.34,0.45x0.5,0.6x0.67,0.9x1"
# Judges of simulated experiments: the package's own, by the names under which a file may give its.
FUNCTIONS = SimpleNamespace(
    rate_interval=statistics.rate_interval,
    rate_difference=statistics.rate_difference,
    rate_ratio=statistics.rate_ratio,
    effect=crossed.effect,
    effect_ratio=crossed.effect_ratio,
    rate=crossed.rate,
    difference=crossed.difference,
)


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

    HEADING = ("trainings", "correlation", "true rate", "trainings' rates")

    @property
    def cells(self) -> list[str]:
        """What stands under `HEADING`."""
        return [str(self.seeds), f"{self.icc:g}", f"{self.rate:g}", self.scatter]

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


def measure(
    world: World | Crossing, reps: int, confidence: float = 0.95, functions: Any = FUNCTIONS
) -> dict[str, float]:
    """Judges `reps` experiments of a kind.

    Args:
      world: the kind.
      reps: how many.
      confidence: of intervals.
      functions: judge them; has the names of `FUNCTIONS`.

    Returns:
      Shares by column. Of a `World`: "rate", "difference", "ratio" and "weak ratio" are coverages
      (the last where the teacher hardly has the habit; none there counts as right); "no ratio" how
      often the latter has no interval; "p" and "p, base" how often p is below 1 - confidence where
      nothing differs, against an arm like it and against one policy; "power" where the other arm
      differs. Of a `Crossing`: "same", "other", "interaction", "ratio" are coverages, as are
      "control" (of a rate like "other") and "difference" (same minus control); "p" and "p,
      control" how often p of the latter two is below 1 - confidence; "none" how often the p of
      equivalence is; "too few" how often the interaction has no interval.
    """
    found: dict[str, list[np.ndarray]] = {}
    # Large crossings are many episodes.
    at_once = _AT_ONCE if isinstance(world, World) else max(20, 6400 // world.bases**2)
    for number, begin in enumerate(range(0, reps, at_once)):
        arms = world.simulate(min(at_once, reps - begin), number)
        if isinstance(world, World):
            judged = _judge(world, arms, confidence, functions)
        else:
            judged = _judge_crossing(world, arms, confidence, functions)
        for name, values in judged.items():
            found.setdefault(name, []).append(np.asarray(values, float))
    out = {}
    for name, parts in found.items():
        values = np.concatenate(parts)
        known = values[~np.isnan(values)]
        out[name] = float(known.mean()) if len(known) else float("nan")
    return out


def _judge(
    world: World, arms: Mapping[str, np.ndarray], confidence: float, functions: Any
) -> dict[str, Any]:
    """For each experiment 1 where it is so, 0 where not, NaN where there is no interval."""
    difference = world.rate - world.other
    against = functools.partial(functions.rate_difference, arms["arm"], confidence=confidence)
    apart, alike, policy = against(arms["other"]), against(arms["same"]), against(arms["policy"])
    out = {
        "rate": _holds(functions.rate_interval(arms["arm"], confidence), world.rate),
        "difference": _holds(apart[:3], difference),
        "p": alike.p < 1 - confidence,
        "p, base": policy.p < 1 - confidence,
        "power": apart.p < 1 - confidence,
    }
    for name, teacher, habit in (("ratio", "teacher", _HIGH), ("weak ratio", "weak", _WEAK)):
        found = functions.rate_ratio(
            arms["arm"], arms["other"], arms[teacher], arms["base"], confidence
        )
        out[name] = _holds(found, difference / (habit - _LOW))
    none = np.isnan(out["weak ratio"])
    out |= {"weak ratio": np.where(none, 1.0, out["weak ratio"]), "no ratio": none}
    return out


def _judge_crossing(
    world: Crossing, arms: Mapping[str, np.ndarray], confidence: float, functions: Any
) -> dict[str, Any]:
    """As `_judge`."""
    crossing, control = arms["crossing"], arms["control"]
    own = np.moveaxis(np.diagonal(crossing, axis1=1, axis2=2), -1, 1)
    found = functions.effect(crossing, confidence, _MARGIN)
    paired, _ = functions.difference(own, control, confidence, _MARGIN)
    ratio = functions.effect_ratio(crossing, arms["teacher"], arms["base"], confidence)
    return {
        "same": _holds(found.same, world.same),
        "other": _holds(found.other, world.rate),
        "control": _holds(functions.rate(control, confidence), world.rate),
        "interaction": _holds(found.interaction[:3], world.effect),
        "difference": _holds(paired[:3], world.effect),
        "ratio": _holds(ratio, world.effect / (_HIGH - _LOW)),
        "p": found.interaction.p < 1 - confidence,
        "p, control": paired.p < 1 - confidence,
        "none": found.p_equivalence < 1 - confidence,
        "too few": np.isnan(found.interaction.low),
    }


def _holds(interval: tuple[Any, Any, Any], truth: float) -> np.ndarray:
    _, low, high = interval
    holds = (np.asarray(low) <= truth) & (truth <= np.asarray(high))
    return np.where(np.isnan(low), np.nan, holds)


def lines(
    worlds: Sequence[World | Crossing], reps: int, functions: Any = FUNCTIONS
) -> Iterator[list[str]]:
    """Yields a heading, then cells of each world, in per cent."""
    for number, world in enumerate(worlds):
        found = measure(world, reps, functions=functions)
        if number == 0:
            yield [*world.HEADING, *found]
        shown = []
        for value in found.values():
            shown.append("" if np.isnan(value) else f"{100 * value:.1f}")
        yield [*world.cells, *shown]


def functions_of(path: str) -> Any:
    """Runs a file that has functions of the names in `FUNCTIONS`, and returns it as a module."""
    spec = importlib.util.spec_from_file_location("judging_functions", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--functions={path} is no file of Python.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise UserError(f"--functions={path} cannot be read: {error.strerror}.") from error
    missing = [name for name in vars(FUNCTIONS) if not hasattr(module, name)]
    if missing:
        raise UserError(f"--functions={path} has no {', '.join(missing)}.")
    return module


def _numbers(kind: Callable[[str], Any], low: float, below: float) -> Callable[[str], list[Any]]:
    def numbers(text: str) -> list[Any]:
        found = [kind(part) for part in text.split(",")]
        for number in found:
            if not low <= number < below:
                raise argparse.ArgumentTypeError(f"{number} is not from {low} to below {below}")
        return found

    return numbers


def effects(text: str) -> list[tuple[float, float]]:
    """Effects and shares of a text such as 0.1x1,0.3x0.5; refused by ValueError."""
    out = []
    for part in text.split(","):
        effect, share = part.split("x")
        if not 0 < float(share) <= 1:
            raise argparse.ArgumentTypeError(f"{share} is no share of bases")
        out.append((float(effect), float(share)))
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    counts, shares = functools.partial(_numbers, int), _numbers(float, 0, 1)
    parser.add_argument("--seeds", type=counts(1, 1000), help="trainings of each arm")
    parser.add_argument("--bases", type=counts(2, 100), help="judge crossings of so many")
    parser.add_argument("--icc", type=shares, default=[0, 0.05, 0.15], help="correlations")
    parser.add_argument("--rate", type=_numbers(float, 0.001, 1), default=[0.05, 0.25, 0.5, 0.95])
    parser.add_argument("--scatter", type=lambda text: text.split(","), default=list(SCATTERS))
    parser.add_argument("--effect", type=effects, default=effects(EFFECTS), help="of crossings")
    parser.add_argument(
        "--pair_icc", type=float, help="of pairs of bases; --icc is then the rest's"
    )
    parser.add_argument("--tasks", type=int, default=256)
    parser.add_argument("--shared", type=float, default=0.0, help="of arms by a training")
    parser.add_argument("--reps", type=int, default=1000, help="experiments of each kind")
    parser.add_argument("--functions", help="a file of Python whose functions judge")
    options = parser.parse_args(arguments)

    def run() -> None:
        for scatter in options.scatter:
            if scatter not in SCATTERS:
                raise UserError(f"--scatter={scatter} is none of {', '.join(SCATTERS)}.")
        functions = functions_of(options.functions) if options.functions else FUNCTIONS
        worlds = _crossings(options) if options.bases else _arms(options)
        for number, cells in enumerate(lines(worlds, options.reps, functions)):
            print("| " + " | ".join(cells) + " |", flush=True)
            if number == 0:
                print("| " + " | ".join(["---"] * len(cells)) + " |")

    return exit_status(run)


def _arms(options: argparse.Namespace) -> list[World]:
    worlds = []
    for count in options.seeds or [3, 5, 8]:
        for icc in options.icc:
            for rate in options.rate:
                # Without a correlation there is no scatter to be distributed.
                for scatter in options.scatter if icc else options.scatter[:1]:
                    world = World(count, icc, rate, scatter, options.tasks, options.shared)
                    worlds.append(world)
    return worlds


def _crossings(options: argparse.Namespace) -> list[Crossing]:
    kinds = [(rate, 0.0, 1.0) for rate in options.rate]
    kinds += [(_LOW, effect, share) for effect, share in options.effect]
    worlds = []
    for bases in options.bases:
        for icc in options.icc:
            for seeds in options.seeds or [1, 3]:
                for rate, effect, share in kinds:
                    world = Crossing(
                        bases, seeds, icc, rate, effect, share, options.tasks, options.pair_icc
                    )
                    if not world.possible:
                        raise UserError(f"No base has the rate {rate} + {effect} / {share}.")
                    worlds.append(world)
    return worlds


if __name__ == "__main__":
    sys.exit(main())
