"""Measures how often scaling fits are right.

    python -m tools.check_scaling [--simulations=200] [--worlds=power,flat] [--json=FILE]

Simulated studies with known laws, tasks that are easy or hard at all sizes, and training seeds that
scatter. For worlds of coverage: how often each parameter's interval, and the band at the sizes,
hold the truth. For worlds of verdicts: how often the true law stands, which laws stand, and how
often the verdict is as it should be.
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


@dataclasses.dataclass(frozen=True)
class World:
    """A study with a known law.

    Attributes:
      law: what the outcomes follow.
      truth: its parameters in their own units (a level called "a" at x_ref).
      kind, sizes, seeds, tasks: of the study; sizes from 30k to 1M.
      seed_share, task_share: shares of an outcome's variance that belong to the training seed and
        to the task (of rates: seeds' rates are beta with that intraclass correlation, and a normal
        copula has the tasks in common).
      drift: the largest size's seed_share over the smallest's; the fits take it to be 1.
      compared: laws to be compared; empty: the law is fitted and its intervals are counted.
      standing: the laws that a right verdict leaves standing at least.
      lone: whether it is to leave no other.
    """

    law: scaling.Law
    truth: tuple[float, ...]
    kind: str = scaling.RATE
    sizes: int = 6
    seeds: int = 3
    tasks: int = 256
    seed_share: float = 0.01
    task_share: float = 0.3
    drift: float = 1.0
    compared: tuple[str, ...] = ()
    standing: tuple[str, ...] = ()
    lone: bool = False

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
        task = rng.standard_normal(self.tasks)[:, None]
        cell_share, outcomes = np.sqrt(1 - self.task_share), []
        shares = self.seed_share * self.drift ** np.linspace(-0.5, 0.5, self.sizes)
        for mean, share in zip(self.means, shares, strict=True):
            cells = rng.standard_normal((self.tasks, self.seeds))
            noise = np.sqrt(self.task_share) * task + cell_share * cells
            if self.kind == scaling.RATE:
                total = 1 / share - 1
                rates = rng.beta(mean * total, (1 - mean) * total, self.seeds)
                outcomes.append((noise < stats.norm.ppf(rates)).astype(float))
            else:
                scatter = np.sqrt(share / (1 - share)) * rng.standard_normal(self.seeds)
                outcomes.append(mean + noise + scatter)
        return scaling.Observations("size", self.kind, self.x, tuple(outcomes))


_THREE = ("constant", "power", "logistic")
WORLDS = {
    "power": World(scaling.POWER, (0.3, 0.1, 0.5)),
    "logistic": World(scaling.LOGISTIC, (0.05, 0.8, 2e5, 1.5)),
    "power of log-odds": World(scaling.POWER, (-2.0, 3.0, 0.6), scaling.LOG_ODDS, seed_share=0.05),
    "power at five sizes": World(scaling.POWER, (0.3, 0.1, 0.5), sizes=5),
    "broken power at eight sizes": World(scaling.BROKEN, (0.4, 0.1, 0.1, 1.0, 2e5), sizes=8),
    "power under drift": World(scaling.POWER, (0.3, 0.1, 0.5), drift=6.0),
    "flat": World(scaling.CONSTANT, (0.3,), compared=_THREE, standing=("constant", "power")),
    "one curve": World(
        scaling.LOGISTIC, (0.02, 0.8, 6e4, 0.8), compared=_THREE, standing=("power", "logistic")
    ),
    "S-shaped": World(
        scaling.LOGISTIC, (0.05, 0.8, 2e5, 2.5), compared=_THREE, standing=("logistic",), lone=True
    ),
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
    """Returns how often the true law stands, the verdict is right and the extrapolation hits.

    "stood" counts the sets of laws that stood.
    """
    laws = [scaling.LAWS[name] for name in world.compared]
    stood: collections.Counter[str] = collections.Counter()
    true = right = hits = 0
    for i in range(first, first + simulations):
        found = scaling.compare(world.simulate([1, i]), laws, n_boot=n_boot, seed=i)
        stood[" ".join(sorted(found.standing))] += 1
        true += world.law.name in found.standing
        stands, expected = set(found.standing), set(world.standing)
        right += stands == expected if world.lone else stands >= expected
        hits += found.extrapolations[world.law.name].hit
    shares = {"true law stands": true, "verdict is right": right, "extrapolation hits": hits}
    found_shares: dict[str, Any] = {name: n / simulations for name, n in shares.items()}
    return found_shares | {"stood": dict(stood.most_common())}


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
