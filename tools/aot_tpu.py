"""Compiles a config's real programs for a TPU topology, on a machine without a TPU.

    pip install -e '.[tpu]'
    python tools/aot_tpu.py --config=configs/aot_llama.py --topology=v5e:4x4
    --programs=prefill,decode

For every model of the config it compiles, for the mesh that the config states over the topology's
chips, the prefill (`engine.prefill`), the decoding loop (`engine.decode`), the choice probe and the
training step of a student. It prints the memory that each takes on a chip beside what `--dry_run`
plans, and the time that the compiler expects (see `tpu_time.py`): a step's of the decoding loop, a
call's of the others. The fraction of the HBM limit counts what a decoding step must read: a chip's
weights, its slots, full, and the shared prefix. With `--prefix` the training step is that of rows
which share their first tokens; tokens/s count whole rows all the same. A program that does not fit
ends the command with exit status 1 and what to change. Nothing is executed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Set before JAX is imported: the host computes on its CPU, the compiler believes in a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault(
    "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
)  # no chip is touched: several compilations do not disturb each other

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from chips import CHIPS, Chip
from jax.sharding import NamedSharding, PartitionSpec
from tpu_time import REMEDIES, Program, refusal

from subtransfer import settings
from subtransfer.config import reading as configuration
from subtransfer.config.arms import stores_targets
from subtransfer.experiment import lengths
from subtransfer.experiment.graph import Experiment
from subtransfer.experiment.memory import Sizes
from subtransfer.launch import split_overrides
from subtransfer.models import lora
from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.models.kv_cache import Cache, KeyValues
from subtransfer.probes import choice, decisions
from subtransfer.rollout import engine, lanes
from subtransfer.rollout.sampling import Sampling
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store.files import new_file
from subtransfer.training import loop, objectives
from subtransfer.training.flops import fed_tokens, step_flops
from subtransfer.training.optimizer import Optimizer

_TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:4x4", "Chips, as KIND:SHAPE, such as v5e:4x4, v6e:4x4, v5p:4x4x4."
)
_JSON = flags.DEFINE_string("json", None, "Also write the numbers to this file.")
_PROGRAMS = flags.DEFINE_list(
    "programs", ["prefill", "decode", "probe", "train"], "Which programs to compile."
)
_PREFIX = flags.DEFINE_integer(
    "prefix",
    0,
    "So many of distill.max_tokens are a prefix that all rows share, which the training step "
    "computes once; 0: rows are whole.",
    lower_bound=0,
)

WHOLE = PartitionSpec()
# Rows of the table of tokens that leave soft targets: what real vocabularies had on our tasks.
_REMOVED_ROWS = 32


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of one model on one mesh, with abstract arguments that carry their shardings.

    Attributes:
      objective: of the training step, the config's first one with soft targets, or "sft".
      teacher: the geometry of its live teacher; None without one ("sft", or targets that were
        stored).
    """

    config: Any
    cfg: DecoderConfig
    mesh: Any
    objective: str
    teacher: DecoderConfig | None

    def _array(self, shape, dtype, spec=WHOLE):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def _params(self, cfg, dtype):
        abstract = abstract_params(cfg)
        shardings = sharding.param_shardings(abstract, self.mesh)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s),
            nn.meta.unbox(abstract),
            shardings,
        )

    def _factors(self, params):
        """LoRA factors, sharded like what they adapt."""
        out = {}
        for target in self.config.tuning.targets:
            kernel = params["layers"][target]["kernel"]
            spec = (*kernel.sharding.spec, None, None, None)[:3]
            n, width_in, width_out = kernel.shape
            rank = self.config.tuning.rank
            out[target] = {
                "a": self._array(
                    (n, width_in, rank), jnp.float32, PartitionSpec(None, spec[1], None)
                ),
                "b": self._array(
                    (n, rank, width_out), jnp.float32, PartitionSpec(None, None, spec[2])
                ),
            }
        return {"layers": out}

    def weights(self, cfg=None):
        """A tuned policy's weights, of the model itself or of another geometry."""
        cfg = cfg or self.cfg
        if self.config.tuning.method == "full":
            return {"params": self._params(cfg, jnp.float32)}
        params = self._params(cfg, jnp.dtype(cfg.dtype))
        return {"params": params, "lora": self._factors(params)}

    @property
    def shared_base(self) -> int:
        """Bytes that a training step's arguments name twice and a chip holds once.

        They are those of the base under teacher and student.
        """
        if self.config.tuning.method == "full" or self.teacher != self.cfg:
            return 0
        return sharding.device_bytes(self.weights()["params"])

    def flops(self, *, causal: bool) -> float:
        """Of a training step, over all chips; what is computed again does not count.

        `causal` is `step_flops`'s.
        """
        d, full = self.config.distill, self.config.tuning.method == "full"
        sizes = d.batch_size, d.max_tokens - _PREFIX.value, _PREFIX.value, d.accumulate
        tokens, length = fed_tokens(*sizes, causal=causal)
        return step_flops(
            self.cfg, tokens=tokens, length=length, full=full, teacher=self.teacher, causal=causal
        )

    def _rows(self, shape, dtype, heads=None):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=sharding.rows_sharding(self.mesh, shape, heads=heads)
        )

    @functools.cached_property
    def layout(self) -> lanes.LaneLayout:
        """What the scheduler chooses for the config's rollouts on this mesh."""
        r = self.config.rollouts
        return lanes.layout(
            r.batch_size, lengths.slot_room(self.config), r.max_tool_tokens + 64, self.mesh
        )

    def slots(self) -> engine.Slots:
        """Of one lane."""
        abstract = jax.eval_shape(lambda: engine.start(self.cfg, self.layout.shape))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=engine.slot_sharding(self.mesh, x)
            ),
            abstract,
        )

    def prefix(self) -> tuple[Cache, ...]:
        """The caches that `engine.encode_prefix` leaves."""
        left, past = lengths.prefix_tokens(self.config), []
        while left > 0:
            size = -(-min(left, engine.CHUNK) // engine.ROUND) * engine.ROUND
            shape = (1, self.cfg.num_kv_heads, size, self.cfg.head_width)
            kv = self._rows(shape, jnp.dtype(self.cfg.dtype), heads=1)
            layers = tuple(KeyValues(kv, kv) for _ in range(self.cfg.num_layers))
            past.append(
                Cache(layers, self._array((1, size), jnp.bool_), self._array((1, size), jnp.int32))
            )
            left -= size
        return tuple(past)

    def prefill(self):
        """Lowers `engine.prefill`."""
        shape = self.layout.shape
        rows = self._array((shape.prefill_rows,), jnp.int32)
        numbers = self._rows((shape.prefill_rows,), jnp.int32)
        tokens = self._rows((shape.prefill_rows, shape.prefill_tokens), jnp.int32)
        return engine.prefill.lower(
            self.cfg,
            shape,
            self.weights(),
            self.prefix(),
            self.slots(),
            rows,
            numbers,
            tokens,
            numbers,
        )

    def decode(self):
        """Lowers `engine.decode`."""
        shape = self.layout.shape
        empty = engine.RowState.empty(shape.rows)
        rows = jax.tree.map(lambda x: self._rows(x.shape, x.dtype), empty)
        how, stop = Sampling(self.config.rollouts.temperature), self._array((2,), jnp.int32)
        return engine.decode.lower(
            self.cfg, shape, how, self.weights(), self.prefix(), self.slots(), rows, stop
        )

    def probe(self):
        """Lowers the choice probe of one policy."""
        weights, acts = self.weights(), _acts(self.config)
        length, places = lengths.decision(self.config, acts)
        spec = PartitionSpec(None, ("data", "fsdp"))
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        row = choice.row_bytes(self.cfg, length, places, self.mesh.shape["tensor"])
        rows = choice.portion(row, 0, self.config.probe.tasks, 1, devices).rows * devices
        batches = (
            self._array((2, rows, length), jnp.int32, spec),
            self._array((2, rows, length), jnp.int32, spec),
            self._array((2, rows), jnp.int32, spec),
        )
        # One beginning an act, each token but its last one of the appended ones.
        scored = places - 1 + acts
        fixed = (
            ((length,), jnp.int32),
            ((scored,), jnp.int32),
            ((scored,), jnp.int32),
            ((acts, scored), jnp.bool_),
        )
        shared = {"params": weights.pop("params")} if "lora" in weights else {}
        arrays = (self._array(*f) for f in fixed)
        return choice.score.lower(self.cfg, places, shared, (weights,), batches, *arrays)

    def train(self):
        """One step, with its live teacher or its stored targets."""
        c, objective, t = self.config, self.objective, self.config.tuning
        tuning = lora.Tuning()
        weights = self.weights()
        trainable, frozen = weights["params"], None
        if t.method == "lora":
            tuning = lora.Tuning("lora", t.rank, t.alpha, t.dropout, tuple(t.targets))
            trainable, frozen = weights["lora"], weights["params"]
        opt_state = jax.eval_shape(Optimizer.of(c.optimizer).transformation().init, trainable)
        placed = iter(jax.tree.leaves([trainable, trainable]))
        opt_state = jax.tree.map(
            lambda x: self._array((), x.dtype) if x.ndim == 0 else next(placed), opt_state
        )
        state = loop.TrainState(self._array((), jnp.int32), trainable, opt_state)
        prefix = self._array((_PREFIX.value,), jnp.int32) if _PREFIX.value else None
        shape = (1, c.distill.batch_size, c.distill.max_tokens - _PREFIX.value)
        rows = PartitionSpec(None, ("data", "fsdp"))
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(
            key.shape, key.dtype, sharding=NamedSharding(self.mesh, PartitionSpec())
        )
        targets = (
            {"behavior_logprobs": self._array(shape, jnp.float32, rows)}
            if "behavior_logprobs" in objectives.get(objective).needs
            else {}
        )
        if stores_targets(c, objective):
            stored = (("teacher_ids", jnp.int32), ("teacher_logprobs", jnp.float32))
            targets = {
                name: self._array((*shape, c.distill.top_k), dtype, rows) for name, dtype in stored
            }
        masked = objective != "sft" and c.distill.mask_unsafe
        if masked:
            targets["removed_at"] = self._array(shape, jnp.int32, rows)
        options = {
            "temperature": c.distill.temperature,
            "options": {name: c.distill[name] for name in objectives.get(objective).fields},
            "accumulate": c.distill.accumulate,
            "optimizer": Optimizer.of(c.optimizer),
        }
        return loop.train_steps.lower(
            self.cfg,
            loop.Loss(objective, tuning=tuning, teacher=self.teacher, **options),
            state,
            frozen,
            self.weights(self.teacher) if self.teacher else None,
            self._array((_REMOVED_ROWS, self.cfg.vocab_size), jnp.bool_) if masked else None,
            self._array(shape, jnp.int32, rows),
            self._array(shape, jnp.bool_, rows),
            self._array((1,), jnp.float32),
            key,
            targets,
            prefix,
        )


def measure(programs: Programs, program: str, chip: Chip) -> dict[str, Any]:
    """Compiles a program; returns its memory on a chip and what the compiler expects of it.

    Memory is infinite if the compiler finds no room.
    """
    begin = time.monotonic()
    try:
        with jax.set_mesh(programs.mesh):
            compiled = getattr(programs, program)().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"program": program, "gib": float("inf")}
    sizes, shape = compiled.memory_analysis(), programs.layout.shape
    held = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )
    slots, weights = (
        sharding.device_bytes(programs.slots()),
        sharding.device_bytes(programs.weights()),
    )
    if program == "train":
        held -= programs.shared_base
    if program in ("prefill", "decode"):
        held += (programs.layout.lanes - 1) * slots  # the other lanes' slots wait on the same chip
    read = weights
    work, steps, tokens = Program(compiled.as_text(), chip).whole, 1, 0
    if program == "decode":
        steps, tokens = shape.decode_steps, shape.rows * shape.decode_steps
        read += slots + sharding.device_bytes(programs.prefix())
    elif program == "prefill":
        tokens = shape.prefill_rows * shape.prefill_tokens
    elif program == "train":
        tokens = programs.config.distill.batch_size * programs.config.distill.max_tokens
    seconds = work.reading(steps * read / chip.hbm)
    out = {
        "program": program,
        "gib": held / 2**30,
        "temp_gib": sizes.temp_size_in_bytes / 2**30,
        "compile_s": time.monotonic() - begin,
        "step_ms": seconds / steps * 1e3,
        "collectives_ms": work.collectives / steps * 1e3,
        "waiting_ms": work.waiting / steps * 1e3,
        "kernels_ms": work.kernels / steps * 1e3,
        "between_slices_mb": work.between / steps / 1e6,
        "read_gb": read / 1e9,
        "kernels_without_estimate": work.unknown,
    }
    if tokens:
        out["tokens_per_s"] = tokens / seconds
    if program == "decode":
        out["of_bandwidth_limit"] = steps * read / chip.hbm / seconds
    if program == "train":
        peak = seconds * chip.flops * programs.mesh.size
        out["length"] = programs.config.distill.max_tokens
        out["mfu"] = programs.flops(causal=True) / peak
        out["mfu_whole"] = programs.flops(causal=False) / peak
    return out


def _acts(config) -> int:
    """How many acts the choice probe scores."""
    return len(decisions.acts(settings.get(config.setting)))


def estimates(size: Sizes, config, teacher: Sizes | None) -> dict[str, int]:
    """Returns what the plan says of the same programs, in bytes.

    `teacher` is a live one of another model.
    """
    rollout, full = size.rollout(config.rollouts.batch_size), config.tuning.method == "full"
    other = teacher.weights if teacher else 0
    train = size.training(
        config.distill.batch_size // config.distill.accumulate, full=full, other_weights=other
    )
    return {
        "prefill": rollout,
        "decode": rollout,
        "probe": size.choice(1, _acts(config), full=full),
        "train": train,
    }


def run(config_file: str, overrides: dict[str, str]) -> list[str]:
    """Prints the table; returns the sentences about programs that do not fit."""
    from jax.experimental import topologies

    config = configuration.load(config_file, overrides)
    file = new_file("--json", _JSON.value) if _JSON.value else None
    kind = _TOPOLOGY.value.partition(":")[0]
    if kind not in CHIPS:
        raise UserError(
            f"There is no chip {kind!r} in {', '.join(CHIPS)}: give --topology=KIND:SHAPE, such as "
            "v5e:4x4."
        )
    for program in _PROGRAMS.value:
        if program not in REMEDIES:
            raise UserError(
                f"There is no program {program!r} in {', '.join(REMEDIES)}: correct --programs."
            )
    try:
        several = {"num_slices": config.mesh.slices} if config.mesh.slices > 1 else {}
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=_TOPOLOGY.value, **several
        ).devices
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"The topology {_TOPOLOGY.value} is not to be had ({reason}): pip install -e '.[tpu]'."
        ) from error
    shape = dict(config.mesh)
    if shape["data"] == -1:
        shape["data"] = max(len(devices) // (shape["fsdp"] * shape["tensor"]), 1)
    mesh = sharding.make_mesh(**shape, devices=devices)
    experiment = Experiment(config, Path("runs") / config.name, sharding.plan_mesh(**shape))
    if _PREFIX.value >= config.distill.max_tokens:
        raise UserError(
            f"--prefix={_PREFIX.value} leaves nothing of rows of {config.distill.max_tokens} "
            "tokens: raise --config.distill.max_tokens."
        )
    chip, rows, refusals = CHIPS[kind], [], []
    for name in dict.fromkeys(arm.model for arm in experiment.arms if arm.objective):
        size = experiment.size(name)
        soft = [
            arm for arm in experiment.arms if arm.model == name and arm.objective not in ("", "sft")
        ]
        objective, teacher = (soft[0].objective, soft[0].teacher_model) if soft else ("sft", name)
        live = objective != "sft" and not stores_targets(config, objective)
        theirs = experiment.size(teacher) if live else None
        programs = Programs(config, size.cfg, mesh, objective, theirs.cfg if theirs else None)
        planned = estimates(size, config, theirs if teacher != name else None)
        for program in _PROGRAMS.value:
            row = {
                "model": name,
                "estimated_gib": planned[program] / 2**30,
                **measure(programs, program, chip),
            }
            rows.append(row)
            refusals += refusal(row, kind)
    show(
        rows,
        f"{config_file} on {_TOPOLOGY.value}: {experiment.mesh_text}, {chip.gib} GiB a chip "
        "(compiled, not run)",
    )
    if file:
        file.write_text(
            json.dumps({"topology": _TOPOLOGY.value, "mesh": shape, "programs": rows}, indent=1)
            + "\n"
        )
    return refusals


def show(rows: list[dict[str, Any]], title: str) -> None:
    """The table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    columns = {
        "gib": ("GiB a chip", ".2f"),
        "estimated_gib": ("planned", ".2f"),
        "temp_gib": ("of it temporary", ".2f"),
        "step_ms": ("predicted ms", ".2f"),
        "collectives_ms": ("collectives", ".2f"),
        "waiting_ms": ("waited for", ".2f"),
        "tokens_per_s": ("tokens/s", ",.0f"),
        "of_bandwidth_limit": ("of HBM limit", ".0%"),
        "length": ("row", ",.0f"),
        "mfu": ("MFU, causal", ".1%"),
        "mfu_whole": ("MFU, whole", ".1%"),
        "compile_s": ("compiled in s", ".0f"),
    }
    table = Table(
        "model", "program", *(head for head, _ in columns.values()), title=title, box=None
    )
    for row in rows:
        cells = (format(row[key], how) if key in row else "" for key, (_, how) in columns.items())
        table.add_row(row["model"], row["program"], *cells)
    Console(width=160, highlight=False).print(table)


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
