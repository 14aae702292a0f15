"""Training speed with the prefix that all rows share computed once, beside that of whole rows.

    python tools/bench_prefix.py --json=prefix.json
    python tools/bench_prefix.py --rows=4 --rounds=1

One process, random weights, one batch of episodes that begin with the same tokens; SFT of LoRA
factors on q, k, v and o. The defaults are the published API setting at the size of SmolLM2-135M.
Before anything is timed, the losses of the first step must agree. Then both take turns of one step.
Seconds are the clock's, and the processor's of all threads, which other programs disturb less.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from peers import command, models

from subtransfer.models.lora import Tuning
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import common_prefix, loop, pretrain

_GEOMETRY = flags.DEFINE_string("geometry", "smollm2-135m", "0.2m, 10m, smollm2-135m, or a preset.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of computation.")
_REMAT = flags.DEFINE_string("remat", "full", "base.remat.")
_ATTENTION = flags.DEFINE_string("attention", "xla", "base.attention.")
_ROWS = flags.DEFINE_integer("rows", 8, "Episodes a step.", lower_bound=2)
_PREFIX = flags.DEFINE_integer("prefix", 1100, "Tokens that all begin with.", lower_bound=256)
_OWN = flags.DEFINE_integer("own", 400, "Tokens of each episode behind them.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each contender.", lower_bound=1)
flags.DEFINE_string("json", None, "A file for the results.")

RATE = 1e-3
# What the losses of whole rows and of the shared prefix may differ by, relatively.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def _episodes(vocab_size: int) -> loop.Examples:
    """Random episodes, of which about half of the tokens behind the prefix count."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, vocab_size, (_ROWS.value, _PREFIX.value + _OWN.value)).astype(np.int32)
    tokens[:, : _PREFIX.value] = tokens[0, : _PREFIX.value]
    mask = rng.random(tokens.shape) < 0.5
    mask[:, : _PREFIX.value + 1] = False
    mask[:, -1] = True
    return loop.Examples(tokens, mask)


@dataclasses.dataclass(eq=False)
class Contender:
    """One way of taking the step: its program and arguments, its losses and seconds."""

    who: str
    program: Any
    state: loop.TrainState
    arguments: tuple[Any, ...]
    gib: float
    losses: list[float] = dataclasses.field(default_factory=list)
    wall: list[float] = dataclasses.field(default_factory=list)
    processor: list[float] = dataclasses.field(default_factory=list)

    def turn(self) -> None:
        """Takes one step."""
        wall, processor = time.perf_counter(), time.process_time()
        self.state, metrics = self.program(self.state, *self.arguments)
        self.losses.append(float(jax.device_get(metrics["loss"])[0]))
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)


def _contenders() -> list[Contender]:
    cfg = models.geometry(_GEOMETRY.value, "llama", _DTYPE.value)
    cfg = dataclasses.replace(cfg, remat=_REMAT.value, attention=_ATTENTION.value)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    params = pretrain.init_params(cfg, mesh, jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(cfg.dtype), params)
    examples = _episodes(cfg.vocab_size)
    # Without dropout: the two would draw different masks.
    loss = loop.Loss("sft", tuning=Tuning("lora", 16, 32.0, 0.0))
    recipe = loop.Recipe(loss, 1, _ROWS.value, RATE)
    cut = common_prefix.cut([examples], _ROWS.value)
    if cut is None:
        raise UserError("The rows have too few tokens in common: raise --prefix.")
    made = []
    for who, at in (("whole rows", None), ("prefix once", cut)):
        fed = common_prefix.fed(examples, at)
        state, frozen = loop.init_state(recipe, params, jax.random.key(1))
        rates = np.full(1, RATE, np.float32)
        batch = (fed.rows.tokens[None], fed.rows.loss_mask[None], rates)
        given = (frozen, None, None, *batch, jax.random.key(2), None, fed.prefix)
        program = loop.train_steps.lower(cfg, loss, state, *given).compile()
        gib = program.memory_analysis().temp_size_in_bytes / 2**30
        made.append(Contender(who, program, state, given, gib))
    return made


def run() -> dict[str, Any]:
    """The whole benchmark; returns what --json writes."""
    contenders = _contenders()
    # The first round warms up.
    for number in range(_ROUNDS.value + 1):
        for contender in contenders:
            contender.turn()
        if number == 0:
            one, two = (contender.losses[0] for contender in contenders)
            if not abs(two / one - 1) < TOLERANCE[_DTYPE.value]:
                raise UserError(f"The losses {one} and {two} differ: no speed counts before.")
    rows = []
    for contender in contenders:
        rows.append(
            {
                "who": contender.who,
                "wall_s": contender.wall[1:],
                "processor_s": contender.processor[1:],
                "temporary_gib": contender.gib,
                "first_loss": contender.losses[0],
            }
        )
    ratios = {}
    for clock in ("wall_s", "processor_s"):
        ratios[clock] = statistics.median(rows[0][clock]) / statistics.median(rows[1][clock])
    results = {
        "geometry": _GEOMETRY.value,
        "dtype": _DTYPE.value,
        "remat": _REMAT.value,
        "rows": _ROWS.value,
        "prefix": _PREFIX.value,
        "own": _OWN.value,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "contenders": rows,
        "ratios": ratios,
    }
    report(results)
    return results


def report(results: dict[str, Any]) -> None:
    """Prints the table."""
    print("| | s a step | processor s a step | temporary GiB |\n| --- | --- | --- | --- |")
    for row in results["contenders"]:
        wall, processor = (statistics.median(row[clock]) for clock in ("wall_s", "processor_s"))
        print(f"| {row['who']} | {wall:.2f} | {processor:.2f} | {row['temporary_gib']:.2f} |")
    wall, processor = results["ratios"].values()
    print(f"the prefix once is {wall:.2f}x as fast by the clock, {processor:.2f}x by the processor")


if __name__ == "__main__":
    sys.exit(command.main(sys.argv, run))
