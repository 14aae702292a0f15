"""How long a run will take on this machine's CPU, reckoned before it begins.

The rate of a float32 product is measured, which takes a second. Trainings and episodes reach a
share of it, which was measured once for small and for large models; `costs` counts their
operations. What multiplies no matrices is left out: loading, compiling, filters, audits, tables.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp

from subtransfer.experiment import costs
from subtransfer.experiment.graph import Experiment

# Of the product that is timed: its operands fit into a cache, as a layer's do.
_WIDTH = 512
_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Shares:
    """Which share of a product's rate is reached, by the operations that `costs` counts.

    Attributes:
      training: also of reading without training.
      episodes: also of what is fed to them.
    """

    training: float
    episodes: float


# On 2 CPU cores (AMD EPYC, virtual), 2026-12-01, where a product reaches about 225 GFLOP/s. The
# large model is SmolLM2 (LoRA, 4 rows of 288 tokens; 64 slots), the small one the embedded
# model. All were measured beside other work, so that a quiet machine may be faster.
OF_LARGE = Shares(training=0.9, episodes=0.36)
OF_SMALL = Shares(training=0.3, episodes=0.2)


def product_rate() -> float:
    """Measures the float32 operations a second of a product on this process's device."""
    multiply = jax.jit(jnp.matmul)
    x = jnp.ones((_WIDTH, _WIDTH))
    multiply(x, x).block_until_ready()
    # The best of many: what else the machine does only makes them slower.
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        multiply(x, x).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * _WIDTH**3 / best


def seconds(experiment: Experiment, rate: float) -> dict[str, float]:
    """Reckons how long each stage takes that trains, reads or samples.

    Args:
      experiment: the plan.
      rate: as of `product_rate`.

    Returns:
      seconds by the name of the stage.
    """
    config, out = experiment.config, {}
    for stage in experiment.plan.values():
        if not stage.worked_by:
            continue
        cfg = experiment.size(stage.worked_by).cfg
        reached = OF_LARGE if cfg.is_large else OF_SMALL
        trained = stage.flops() - costs.episodes(cfg, config, stage.episodes)
        sampled = costs.typical_episodes(cfg, config, stage.episodes)
        out[stage.name] = (trained / reached.training + sampled / reached.episodes) / rate
    return out
