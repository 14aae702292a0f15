"""Compiles a config's real programs for a TPU topology, on a machine without a TPU.

    pip install -e '.[tpu]'
    python tools/aot_tpu.py --config=configs/paper_api.py --topology=v5e:4x4 --config.mesh.fsdp=8 --config.mesh.tensor=2

For every model of the config it compiles, for the mesh that the config states over the topology's chips, the prefill, the
decoding loop, the choice probe and the training step of a student, and prints the memory that the compiler gives each on a
chip, beside what `--dry_run` estimates. A program that does not fit ends the command with exit status 1 and what to change.
Nothing is executed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Set before JAX is imported: the host computes on its CPU, the compiler believes in a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from subtransfer import config as configuration
from subtransfer import sharding
from subtransfer.arms import arms
from subtransfer.distill import trainer
from subtransfer.errors import UserError
from subtransfer.experiment import Experiment
from subtransfer.launch import split_overrides
from subtransfer.memory import Sizes
from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.probes import choice
from subtransfer.rollout import engine

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Chips, as KIND:SHAPE, such as v5e:4x4, v6e:4x4, v5p:4x4x4.")
_JSON = flags.DEFINE_string("json", None, "Also write the numbers to this file.")

# Memory of one chip in GiB, from the vendor's public system documentation.
CHIPS = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
WHOLE = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of one model on one mesh, with abstract arguments that carry their shardings."""

    config: Any
    cfg: DecoderConfig
    mesh: Any

    def _array(self, shape, dtype, spec=WHOLE):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def _params(self, dtype):
        abstract = abstract_params(self.cfg)
        shardings = sharding.param_shardings(abstract, self.mesh)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), nn.meta.unbox(abstract), shardings)

    def _factors(self, params):
        """LoRA factors, sharded like what they adapt."""
        out = {}
        for target in self.config.tuning.targets:
            kernel = params["layers"][target]["kernel"]
            spec = (*kernel.sharding.spec, None, None, None)[:3]
            n, width_in, width_out = kernel.shape
            rank = self.config.tuning.rank
            out[target] = {
                "a": self._array((n, width_in, rank), jnp.float32, PartitionSpec(None, spec[1], None)),
                "b": self._array((n, rank, width_out), jnp.float32, PartitionSpec(None, None, spec[2])),
            }
        return {"layers": out}

    def weights(self):
        """A tuned policy's weights."""
        if self.config.tuning.method == "full":
            return {"params": self._params(jnp.float32)}
        params = self._params(jnp.dtype(self.cfg.dtype))
        return {"params": params, "lora": self._factors(params)}

    def _state(self, batch: int, length: int):
        abstract = jax.eval_shape(lambda: engine.start(self.cfg, batch, length))

        def place(x):
            placed = sharding.rows_sharding(self.mesh, x.shape, heads=1 if x.ndim == 4 else None)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)

        return jax.tree.map(place, abstract)

    def _rows(self, shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.rows_sharding(self.mesh, shape))

    def prefill(self):
        c = self.config
        batch, length = c.rollouts.batch_size, c.distill.max_tokens
        tokens, lengths = self._rows((batch, min(engine.CHUNK, length)), jnp.int32), self._rows((batch,), jnp.int32)
        return engine.extend_chunk.lower(self.cfg, self.weights(), self._state(batch, length), tokens, lengths)

    def decode(self):
        c = self.config
        batch = c.rollouts.batch_size
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
        keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=NamedSharding(self.mesh, PartitionSpec()))
        return engine.decode.lower(
            self.cfg,
            self.weights(),
            self._state(batch, self.config.distill.max_tokens),
            keys,
            self._array((), jnp.int32),
            self._rows((batch,), jnp.bool_),
            self._array((2,), jnp.int32),
            max_new_tokens=c.rollouts.max_new_tokens,
            temperature=1.0,
        )

    def probe(self):
        tasks, names, longest, length = self.config.probe.batch_size, 7, 8, self.config.distill.max_tokens // 2
        batches = (
            self._array((2, tasks, length), jnp.int32, PartitionSpec(None, ("data", "fsdp"))),
            self._array((2, tasks, length), jnp.int32, PartitionSpec(None, ("data", "fsdp"))),
            self._array((2, tasks), jnp.int32, PartitionSpec(None, ("data", "fsdp"))),
            self._array((2, tasks, names, longest), jnp.int32, PartitionSpec(None, ("data", "fsdp"))),
        )
        fixed = (((length,), jnp.int32), ((names, longest), jnp.int32), ((names, longest), jnp.bool_))
        return choice.score.lower(self.cfg, self.weights(), batches, *(self._array(*f) for f in fixed))

    def train(self):
        """One step of the config's first soft-target objective with a live teacher, or of SFT."""
        c = self.config
        objective = next((a.objective for a in arms(c) if a.objective not in ("", "sft")), "sft")
        t = c.tuning
        tuning = trainer.Tuning()
        weights = self.weights()
        trainable, frozen = weights["params"], None
        if t.method == "lora":
            tuning = trainer.Tuning("lora", t.rank, t.alpha, t.dropout, tuple(t.targets))
            trainable, frozen = weights["lora"], weights["params"]
        opt_state = jax.eval_shape(trainer.optimizer().init, trainable)
        placed = iter(jax.tree.leaves([trainable, trainable]))
        opt_state = jax.tree.map(lambda x: self._array((), x.dtype) if x.ndim == 0 else next(placed), opt_state)
        state = trainer.TrainState(self._array((), jnp.int32), trainable, opt_state)
        shape = (1, c.distill.batch_size, c.distill.max_tokens)
        rows = PartitionSpec(None, ("data", "fsdp"))
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(self.mesh, PartitionSpec()))
        soft = objective != "sft"
        return trainer.train_steps.lower(
            self.cfg,
            trainer.Loss(objective, c.distill.temperature, tuning),
            state,
            frozen,
            weights if soft else None,
            self._array((self.cfg.vocab_size,), jnp.bool_) if soft and c.distill.mask_unsafe else None,
            self._array(shape, jnp.int32, rows),
            self._array(shape, jnp.bool_, rows),
            self._array((1,), jnp.float32),
            key,
        )


def measure(lower: Callable[[], Any]) -> float:
    """Compiles; returns the bytes that the program takes on a device (infinity if the compiler finds no room)."""
    try:
        memory = lower().compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return float("inf")
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return float(total - memory.alias_size_in_bytes)


REMEDIES = {
    "prefill": "rollouts.batch_size",
    "decode": "rollouts.batch_size or distill.max_tokens",
    "probe": "probe.batch_size",
    "train": "distill.batch_size, set base.remat",
}


def estimates(size: Sizes, config) -> dict[str, int]:
    """What the plan says of the same programs, in bytes."""
    rollout, full = size.rollout(config.rollouts.batch_size), config.tuning.method == "full"
    train = size.training(config.distill.batch_size, full=full)
    return {"prefill": rollout, "decode": rollout, "probe": size.rollout(config.probe.batch_size), "train": train}


def run(config_file: str, overrides: dict[str, str]) -> list[str]:
    """Prints the table; returns the sentences about programs that do not fit."""
    from jax.experimental import topologies
    from rich.console import Console
    from rich.table import Table

    config = configuration.load(config_file, overrides)
    kind = _TOPOLOGY.value.partition(":")[0]
    if kind not in CHIPS:
        raise UserError(f"There is no chip {kind!r} in {', '.join(CHIPS)}: give --topology=KIND:SHAPE, such as v5e:4x4.")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=_TOPOLOGY.value).devices
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The topology {_TOPOLOGY.value} is not to be had ({reason}): pip install -e '.[tpu]'.") from error
    shape = dict(config.mesh)
    if shape["data"] == -1:
        shape["data"] = max(len(devices) // (shape["fsdp"] * shape["tensor"]), 1)
    mesh = sharding.make_mesh(**shape, devices=devices)
    experiment = Experiment(config, Path("runs") / config.name, sharding.plan_mesh(**shape))
    rows, refusals = [], []
    for name in dict.fromkeys(arm.model for arm in experiment.arms):
        size = experiment.size(name)
        programs, planned = Programs(config, size.cfg, mesh), estimates(size, config)
        for program, remedy in REMEDIES.items():
            needed = measure(getattr(programs, program)) / 2**30
            rows.append({"model": name, "program": program, "gib": needed, "estimated_gib": planned[program] / 2**30})
            if needed > CHIPS[kind]:
                refusals.append(
                    f"{program} of {name} needs {needed:.1f} GiB of a chip's {CHIPS[kind]}: lower {remedy}, or raise mesh.fsdp "
                    "or mesh.tensor."
                )
    title = f"{config_file} on {_TOPOLOGY.value}: {experiment.mesh_text}, {CHIPS[kind]} GiB a chip (compiled, not run)"
    table = Table("model", "program", "GiB a chip", "estimated by the plan", title=title, box=None)
    for row in rows:
        table.add_row(row["model"], row["program"], f"{row['gib']:.2f}", f"{row['estimated_gib']:.2f}")
    Console(width=120, highlight=False).print(table)
    if _JSON.value:
        Path(_JSON.value).write_text(
            json.dumps({"topology": _TOPOLOGY.value, "mesh": shape, "programs": rows}, indent=1) + "\n"
        )
    return refusals


def main(argv: list[str]) -> int:
    """Returns the exit status: 0; 1 if a program does not fit; 2 for a user's mistake."""
    try:
        rest, overrides = split_overrides(argv)
        try:
            flags.FLAGS(rest)
        except flags.Error as error:
            raise UserError(f"{error}: see python tools/aot_tpu.py --help.") from error
        refusals = run(flags.FLAGS.config, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for sentence in refusals:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if refusals else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
