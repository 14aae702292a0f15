"""Measures how often scaling fits are right.

    python -m tools.check_scaling [--simulations=200] [--worlds=power,flat] [--json=FILE]

Simulated studies with known laws, tasks that are easy or hard at all sizes, bases that differ and
training seeds that scatter. For worlds of coverage: how often each parameter's interval, and the
band at the sizes, hold the truth. For worlds of verdicts: how often the true law and the constant
are ruled out, how often a constant is claimed, and which power the verdicts state.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags
from scipy import stats

from subtransfer.analysis import scaling
from subtransfer.analysis.crossed import pseudo_values
from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.store.files import new_file

_SIMULATIONS = flags.DEFINE_integer("simulations", 200, "Studies of each world.", lower_bound=1)
_BOOTSTRAP = flags.DEFINE_integer(
    "bootstrap", 200, "Bootstrap samples of each study.", lower_bound=100
)
_FIRST = flags.DEFINE_integer(
    "first", 0, "Number of the first study: others than 0 to --simulations are other random ones."
)
_WORLDS = flags.DEFINE_list("worlds", [], "Some of the worlds; default: all.")
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


# A beta distribution has no smaller or larger mean in the simulation.
_EDGE = 1e-6
# How a crossing's cell (teacher's base, student's base) scatters: shares of the variance that are
# the teacher's base's, the student's, and the cell's own.
_CROSSED = (0.4, 0.3, 0.3)
# Of students with another initialisation in a crossing.
_OTHER_RATE = 0.1
# Studies of a world whose stated power is looked at.
_TOLD = 10
# Where some bases transfer and the others do not: their rates.
_EITHER_OR = (0.05, 0.8)


@dataclasses.dataclass(frozen=True)
class World:
    """A study with a known law.

    Attributes:
      law: what the outcomes follow.
      truth: its parameters in their own units (a level called "a" at x_ref).
      kind, sizes, bases, seeds, tasks: of the study; sizes from 30k to 1M, `bases` at each, `seeds`
        of each base. A DIFFERENCE is that of a crossing, same minus other.
      base_share, seed_share, task_share: shares of an outcome's variance that belong to the base
        (or pair of bases), to the training seed within it and to the task (of rates: beta with that
        intraclass correlation, and a normal copula has the tasks in common).
      drift: the largest size's base_share over the smallest's; the fits take it to be 1.
      common: share of the bases' variance that is the same at all sizes, as the bases are.
      either_or: each base transfers or does not, instead of a beta distribution of rates.
      mistaken: trainings are taken for bases, which is wrong.
      compared: laws to be compared; empty: the law is fitted and its intervals are counted.
    """

    law: scaling.Law
    truth: tuple[float, ...]
    kind: str = scaling.RATE
    sizes: int = 6
    bases: int = 3
    seeds: int = 2
    tasks: int = 256
    base_share: float = 0.1
    seed_share: float = 0.01
    task_share: float = 0.3
    drift: float = 1.0
    common: float = 0.0
    either_or: bool = False
    mistaken: bool = False
    compared: tuple[str, ...] = ()

    @property
    def x(self) -> np.ndarray:
        """The sizes, [G]."""
        return np.geomspace(3e4, 1e6, self.sizes)

    @property
    def means(self) -> np.ndarray:
        """The law at the sizes, [G]."""
        x_ref = float(np.exp(np.log(self.x).mean()))
        return self.law.values(self.x / x_ref, self.law.internal(self.truth, x_ref))

    def simulate(self, seed: Sequence[int]) -> scaling.Observations:
        """Draws one study."""
        rng = np.random.default_rng(seed)
        task = rng.standard_normal((self.tasks, 1))
        everywhere = rng.standard_normal(self.bases)
        shares = self.base_share * self.drift ** np.linspace(-0.5, 0.5, self.sizes)
        outcomes, names = [], []
        for size, (mean, share) in enumerate(zip(self.means, shares, strict=True)):
            own = rng.standard_normal(self.bases)
            place = np.sqrt(self.common) * everywhere + np.sqrt(1 - self.common) * own
            if self.kind == scaling.DIFFERENCE:
                outcomes.append(self._crossed(rng, task, mean, share))
            else:
                trained = self._trained(rng, task, mean, share, place)
                # Seeds in the bases' place: each of them a column.
                outcomes.append(
                    trained.reshape(self.tasks, -1) if self.mistaken else trained.mean(-1)
                )
            of_size = 0 if self.common else size
            names.append(tuple((of_size, column) for column in range(outcomes[-1].shape[1])))
        trainings = np.full(self.sizes, self.bases * self.seeds)
        return scaling.Observations(
            "size", self.kind, self.x, tuple(outcomes), tuple(names), trainings
        )

    def _crossed(
        self, rng: np.random.Generator, task: np.ndarray, difference: float, share: float
    ) -> np.ndarray:
        """The pseudo-values [T, K] of same minus other, of a crossing of K bases."""
        teacher, student = rng.standard_normal((2, self.bases))
        cell = rng.standard_normal((self.bases, self.bases))
        parts = (teacher[:, None], student, cell)
        place = sum(np.sqrt(part) * of for part, of in zip(_CROSSED, parts, strict=True))
        same = np.eye(self.bases, dtype=bool)
        other_rates = self._trained(rng, task, _OTHER_RATE, share, place[~same]).mean(-1)
        cells = np.zeros((self.bases, self.bases, self.tasks))
        cells[~same] = other_rates.T
        same_rate = _OTHER_RATE + difference
        diagonal = self._trained(rng, task, same_rate, share, place[same]).mean(-1)
        return diagonal - pseudo_values(np.moveaxis(cells, -1, 0))

    def _trained(
        self,
        rng: np.random.Generator,
        task: np.ndarray,
        mean: float,
        share: float,
        place: np.ndarray,
    ) -> np.ndarray:
        """Outcomes [T, K, S] of bases at standard normal places [K]."""
        shape = self.tasks, len(place), self.seeds
        noise = np.sqrt(self.task_share) * task[..., None]
        noise = noise + np.sqrt(1 - self.task_share) * rng.standard_normal(shape)
        if self.kind == scaling.LOG_ODDS:
            seeds = rng.standard_normal(shape[1:]) * _deviation(self.seed_share)
            return mean + noise + seeds + _deviation(share) * place[:, None]
        if self.either_or:
            low, high = _EITHER_OR
            rates = np.where(stats.norm.cdf(place) < (mean - low) / (high - low), high, low)
        else:
            total = 1 / share - 1
            rates = stats.beta.ppf(stats.norm.cdf(place), mean * total, (1 - mean) * total)
        rates = np.clip(rates, _EDGE, 1 - _EDGE)[:, None]
        total = 1 / self.seed_share - 1
        trained = rng.beta(rates * total, (1 - rates) * total, shape[1:])
        return (noise < stats.norm.ppf(trained)).astype(float)


def _deviation(share: float) -> float:
    """The deviation of what has that share of a variance whose rest is 1."""
    return float(np.sqrt(share / (1 - share)))


_THREE = ("constant", "power", "logistic")
_POWER_LAW = World(scaling.POWER, (0.3, 0.1, 0.5))
_FLAT = World(scaling.CONSTANT, (0.3,), sizes=5, compared=_THREE)
_SMALL_POWER = World(scaling.POWER, (0.12, 0.1, 0.5), sizes=5, compared=_THREE)
_S = World(scaling.LOGISTIC, (0.05, 0.8, 2e5, 2.5), sizes=5, compared=_THREE)
WORLDS = {
    "power": _POWER_LAW,
    "power at five sizes": dataclasses.replace(_POWER_LAW, sizes=5),
    "power of the same bases": dataclasses.replace(_POWER_LAW, common=0.7),
    "power under drift": dataclasses.replace(_POWER_LAW, drift=6.0),
    "power of log-odds": World(scaling.POWER, (-2.0, 3.0, 0.6), scaling.LOG_ODDS),
    "logistic": World(scaling.LOGISTIC, (0.05, 0.8, 2e5, 1.5), bases=5),
    "broken power at eight sizes": World(
        scaling.BROKEN, (0.4, 0.1, 0.1, 1.0, 2e5), sizes=8, bases=5
    ),
    "flat": _FLAT,
    "flat with seeds for bases": dataclasses.replace(_FLAT, bases=1, seeds=3, mistaken=True),
    "flat with two bases": dataclasses.replace(_FLAT, bases=2),
    "flat with five bases": dataclasses.replace(_FLAT, bases=5),
    "flat with one seed": dataclasses.replace(_FLAT, seeds=1),
    "flat with equal bases": dataclasses.replace(_FLAT, base_share=0.001),
    "flat and rare": dataclasses.replace(_FLAT, truth=(0.05,)),
    "flat with one base in three": dataclasses.replace(_FLAT, either_or=True),
    "flat with the same bases": dataclasses.replace(_FLAT, common=0.7),
    "flat log-odds": dataclasses.replace(_FLAT, truth=(-2.0,), kind=scaling.LOG_ODDS),
    "flat crossed": dataclasses.replace(_FLAT, truth=(0.3,), kind=scaling.DIFFERENCE),
    "nothing crossed": dataclasses.replace(_FLAT, truth=(0.0,), kind=scaling.DIFFERENCE),
    "small power": _SMALL_POWER,
    "small power with eight bases": dataclasses.replace(_SMALL_POWER, bases=8),
    "S-shaped": _S,
    "S-shaped with eight bases": dataclasses.replace(_S, bases=8),
    "S-shaped crossed": dataclasses.replace(_S, kind=scaling.DIFFERENCE),
}


def coverage(world: World, simulations: int, n_boot: int, first: int = 0) -> dict[str, float]:
    """Returns the share of studies in which an interval holds the truth, by parameter.

    "band" is the share of sizes whose band does.
    """
    hits = dict.fromkeys([p.name for p in world.law.parameters] + ["band"], 0.0)
    for i in range(first, first + simulations):
        fit = scaling.fit(world.simulate([0, i]), world.law, n_boot=n_boot, seed=i)
        for (name, interval), true in zip(fit.intervals.items(), world.truth, strict=True):
            hits[name] += interval.low <= true <= interval.high
        low, high = fit.band(world.x)
        hits["band"] += float(((low <= world.means) & (world.means <= high)).mean())
    return {name: hit / simulations for name, hit in hits.items()}


def verdicts(world: World, simulations: int, n_boot: int, first: int = 0) -> dict[str, Any]:
    """Returns how often a verdict ruled out the true law or the constant, and what it claimed.

    "constant ruled out" and "constant alone" are errors where the truth is flat and where it is
    not; the first is the power where the truth is not flat. "stated power" and "stated change for
    80%" are medians of what the verdicts say. "stood" counts the sets of laws that stood.
    """
    laws = [scaling.LAWS[name] for name in world.compared]
    stood: collections.Counter[str] = collections.Counter()
    counts = dict.fromkeys(("true law ruled out", "constant ruled out", "constant alone"), 0)
    powers = []
    for i in range(first, first + simulations):
        # Of some studies, since the power takes as long as all else.
        tell = i < first + _TOLD
        found = scaling.rank(world.simulate([1, i]), laws, n_boot=n_boot, seed=i, power=tell)
        standing = found.standing
        stood[" ".join(sorted(standing))] += 1
        counts["true law ruled out"] += world.law.name not in standing
        counts["constant ruled out"] += "constant" not in standing
        counts["constant alone"] += standing == ["constant"]
        if found.power is not None:
            powers.append((found.power.share, found.power.least))
    shares: dict[str, Any] = {name: n / simulations for name, n in counts.items()}
    power, least = np.median(powers, axis=0)
    stated = {"stated power": float(power), "stated change for 80%": float(least)}
    return shares | stated | {"stood": dict(stood.most_common())}


def check(world: World, simulations: int, n_boot: int, first: int = 0) -> dict[str, Any]:
    """Measures what a world is for: `verdicts` or `coverage`."""
    if world.compared:
        return verdicts(world, simulations, n_boot, first)
    return dict(coverage(world, simulations, n_boot, first))


def main(_: Sequence[str]) -> None:
    """Measures the worlds that the flags name, prints, and writes --json."""
    unknown = set(_WORLDS.value) - set(WORLDS)
    if unknown:
        raise UserError(f"There is no world {sorted(unknown)[0]!r}: choose of {', '.join(WORLDS)}.")
    file = new_file("--json", _JSON.value) if _JSON.value else None
    out = {}
    for name in _WORLDS.value or WORLDS:
        begin = time.process_time()
        out[name] = check(WORLDS[name], _SIMULATIONS.value, _BOOTSTRAP.value, _FIRST.value)
        out[name]["processor seconds"] = round(time.process_time() - begin, 1)
        shown = []
        for what, value in out[name].items():
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            shown.append(f"{what} {text}")
        print(f"{name}: {', '.join(shown)}")
        sys.stdout.flush()
    if file:
        how = {
            "simulations": _SIMULATIONS.value,
            "first": _FIRST.value,
            "bootstrap": _BOOTSTRAP.value,
            "machine": platform.processor(),
        }
        file.write_text(json.dumps({"how": how, "worlds": out}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: app.run(main)))
