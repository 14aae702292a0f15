"""Training speed: this project's step beside that of torch and transformers.

Weights, batch and objective are the same.

    python tools/bench_train.py --json=train.json
    python tools/bench_train.py --objectives=sft,forward_kl,gkd
    python tools/bench_train.py --geometry=llama3.2-1b --dtype=bfloat16 --batch=4 --length=2048
    --attention=cudnn \
        --compiled                                                                          # on an
        accelerator
    python tools/bench_train.py --model=DIR --lora_rank=16 --objectives=sft --batch=8 --length=512 \
        --steps=1 --rounds=3

One run: random weights (made on the spot as Hugging Face directories), one batch, Adam after
clipping the gradient's norm at 1. Soft targets come from a live teacher, whose forward is part of
the step. Before anything is timed, the loss, the norm of every tensor's gradient and the losses of
the first steps must agree. Then contenders take turns, so that noise falls on all of them; a turn
is --steps steps, what is reported are medians over --rounds turns. "gkd" is TRL's generalised JSD
loss at beta 0, the reference of forward KL. The peer's environment is installed below --cache,
unless --torch_python names one. With --lora_rank, both train adapters of all projections of a
layer (the peer by PEFT), from the same factors.

On a CPU we train twice: with all cores as one device, and with a device a core and rows divided
over them (as a run does with JAX_NUM_CPU_DEVICES=N); torch with one thread and with one a core. The
best of each is compared.

`--alone` times this project's steps only, without a file or an environment:

    python tools/bench_train.py --alone --lora_rank=16 --geometry=llama3.1-8b --dtype=bfloat16
    --batch=4 --length=2048 --attention=cudnn --remat=full
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # a waiting contender's threads must not turn in the other's time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from chips import GPUS
from peers import command, limits, models
from peers.environment import Peer, interpreter
from safetensors.numpy import load_file

from subtransfer.models import hf_export, lora, peft_adapter
from subtransfer.models.decoder import REMAT
from subtransfer.rollout.policy import Policy
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop
from subtransfer.training.flops import step_flops

_GEOMETRY = flags.DEFINE_string("geometry", "0.2m", "0.2m, 10m, or a Llama of models/presets.py.")
_MODEL = flags.DEFINE_string(
    "model", None, "A Hugging Face directory, instead of random weights; it teaches itself."
)
_LORA = flags.DEFINE_integer(
    "lora_rank", 0, "The rank of LoRA adapters; 0 trains all weights.", lower_bound=0
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of computation.")
_DEVICE = flags.DEFINE_enum("device", "auto", ["auto", "cpu", "gpu"], "Where all contenders run.")
_BATCH = flags.DEFINE_integer("batch", 64, "Episodes a step.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens of each.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 10, "Steps a turn.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each contender.", lower_bound=1)
_OBJECTIVES = flags.DEFINE_list("objectives", ["sft", "forward_kl"], "Of sft, forward_kl and gkd.")
_ATTENTION = flags.DEFINE_string("attention", "xla", "Our base.attention.")
_COMPILED = flags.DEFINE_bool("compiled", False, "torch.compile of the peer.")
_CACHE = flags.DEFINE_string(
    "cache", "~/.cache/subtransfer/peers", "Where the peer's environment is made."
)
_TORCH = flags.DEFINE_string(
    "torch_python", None, "A Python that has torch and transformers, instead of an installation."
)
_ALONE = flags.DEFINE_bool("alone", False, "Without torch.")
_REMAT = flags.DEFINE_enum("remat", "none", list(REMAT), "Our base.remat.")
flags.DEFINE_string("json", None, "A file for the results.")

RATE = 1e-3
# The projections that adapters are trained for.
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(eq=False)
class Contender:
    """One line of the table.

    It says who trains on which objective, on how many devices (ours) or threads (torch's), and the
    seconds of each step.
    """

    who: str
    objective: str
    width: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        """The median of the seconds a step."""
        return statistics.median(self.seconds)


class Ours:
    """The weights, the batch, and a turn of ours."""

    def __init__(self, student: Policy, teacher: Policy):
        self.student, self.teacher = student, teacher
        self.tuning = lora.Tuning()
        self.adapter: lora.Adapter | None = None
        if _LORA.value:
            self.tuning = lora.Tuning("lora", _LORA.value, 2.0 * _LORA.value, targets=TARGETS)
            self.adapter = self._adapter()
        self.cfg = dataclasses.replace(student.cfg, attention=_ATTENTION.value, remat=_REMAT.value)
        rng = np.random.default_rng(0)
        shape = (
            _BATCH.value,
            _LENGTH.value,
        )  # id 0 is padding, which gets no gradient in transformers
        self.tokens = rng.integers(1, self.student.cfg.vocab_size, shape).astype(np.int32)
        self.mask = rng.random(shape) < 0.7
        self._states: dict[Contender, loop.TrainState] = {}
        # The base under adapters, by the number of devices that it lies on.
        self._frozen: dict[int, Any] = {}

    def _adapter(self) -> lora.Adapter:
        """Random factors; of a second one that is 0, the first would have no gradient."""
        key = jax.random.key(0)
        factors = lora.init_factors(key, self.student.params, TARGETS, _LORA.value)
        for number, pair in enumerate(factors["layers"].values()):
            drawn = jax.random.normal(jax.random.fold_in(key, number), pair["b"].shape)
            pair["b"] = 0.01 * drawn
        return lora.Adapter(factors, self.tuning.rank, self.tuning.alpha)

    def _loss(self, objective: str) -> tuple[loop.Loss, Any]:
        """Our objective, and the teacher's weights if it needs them."""
        loss = loop.Loss("forward_kl" if objective == "gkd" else objective, tuning=self.tuning)
        return loss, None if loss.objective == "sft" else self.teacher.weights

    def turn(self, contender: Contender) -> tuple[float, list[float]]:
        """Seconds a step and the losses of our next steps."""
        loss, teacher = self._loss(contender.objective)
        mesh = sharding.make_mesh(devices=jax.devices()[: contender.width])
        if contender not in self._states:
            recipe = loop.Recipe(loss, _STEPS.value, _BATCH.value, RATE)
            state, frozen = loop.init_state(recipe, self.student.params, jax.random.key(0))
            if self.adapter:
                # Copies, as a step gives its state away.
                factors = jax.tree.map(jnp.copy, self.adapter.factors)
                state = state.replace(trainable=factors)
            self._states[contender] = loop.on_mesh(mesh, state)
            self._frozen[contender.width] = jax.device_put(frozen, sharding.replicated(mesh))
        batch = [np.stack([x] * _STEPS.value) for x in (self.tokens, self.mask)]
        batch, teacher = jax.block_until_ready(
            (
                jax.device_put(batch, sharding.batch_sharding(mesh, leading=1)),
                jax.device_put(teacher, sharding.replicated(mesh)),
            )
        )
        rates, key = np.full(_STEPS.value, RATE, np.float32), jax.random.key(0)
        begin = time.perf_counter()
        with jax.set_mesh(mesh):
            self._states[contender], metrics = loop.train_steps(
                self.cfg,
                loss,
                self._states[contender],
                self._frozen[contender.width],
                teacher,
                None,
                *batch,
                rates,
                key,
            )
        losses = jax.device_get(metrics["loss"]).tolist()
        return (time.perf_counter() - begin) / _STEPS.value, losses

    def flops(self, objective: str, *, causal: bool) -> float:
        """Floating-point operations of the products of one step, as `step_flops` counts them."""
        return step_flops(
            self.cfg,
            tokens=self.tokens.size,
            length=_LENGTH.value,
            full=self.adapter is None,
            teacher=None if objective == "sft" else self.cfg,
            causal=causal,
        )


class Bench(Ours):
    """The same with the peer's process, from files that both read."""

    def __init__(self, folder: Path, device: str):
        self.device = device
        self.folder = folder
        if _MODEL.value:
            self.paths = [Path(_MODEL.value)] * 2
        else:
            self.paths = [
                models.write(folder / f"model{i}", _GEOMETRY.value, "llama", _DTYPE.value, i)
                for i in (0, 1)
            ]
        loaded: dict[Path, Any] = {}
        super().__init__(
            *(load_policy(path, dtype=_DTYPE.value, resident=loaded) for path in self.paths)
        )
        if self.adapter:
            self._save("adapter", self.adapter.factors)
        python = (
            Path(_TORCH.value)
            if _TORCH.value
            else interpreter("train", Path(_CACHE.value).expanduser(), device)
        )
        self.peer = Peer("train", python, device, folder / "peer.log")

    def _save(self, name: str, factors: Any) -> Path:
        """Writes a tree of factors as an adapter of PEFT; returns the file of its tensors."""
        adapter = lora.Adapter(factors, self.tuning.rank, self.tuning.alpha)
        peft_adapter.save_adapter(
            self.folder / name, adapter, str(self.paths[0]), self.student.tokenizer
        )
        return self.folder / name / "adapter_model.safetensors"

    def ask(self, do: str, contender: Contender) -> dict[str, Any]:
        """One request to the peer."""
        return self.peer.ask(
            do=do,
            objective=contender.objective,
            checkpoint=str(self.paths[0]),
            teacher=str(self.paths[1]),
            adapter=str(self.folder / "adapter") if self.adapter else None,
            dtype=_DTYPE.value,
            device="cuda" if self.device == "gpu" else "cpu",
            threads=contender.width,
            tokens=self.tokens.tolist(),
            mask=self.mask.tolist(),
            steps=_STEPS.value,
            learning_rate=RATE,
            compiled=_COMPILED.value,
        )

    def gradients(self, objective: str) -> tuple[float, dict[str, float]]:
        """Our loss and the norm of each tensor's gradient, by the names of Hugging Face's files."""
        loss, teacher = self._loss(objective)
        cfg = self.cfg
        trained, frozen = self.student.params, None
        if self.adapter:
            trained, frozen = self.adapter.factors, self.student.params

        def value(trained, frozen):
            return loop.loss_fn(
                cfg, loss, trained, frozen, teacher, None, self.tokens, self.mask, None, {}
            )

        (got, _), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(trained, frozen)
        if self.adapter:
            tensors = load_file(self._save(f"gradients-{objective}", grads))
        else:
            tensors = {name: fetch() for name, _, fetch in hf_export.to_tensors(cfg, grads)}
        return float(got), {name: float(np.linalg.norm(x)) for name, x in tensors.items()}


def agreement(bench: Bench, ours: Contender, contender: Contender) -> dict[str, float]:
    """Returns the largest relative differences between ours and the peer's.

    They are those of the loss, of gradients' norms, and of the losses of the first steps.

    Raises:
      UserError: the two do not train the same thing.
    """
    theirs = bench.ask("gradients", contender)
    if "error" in theirs:
        raise UserError(f"The peer cannot train on {contender.objective}: {theirs['error']}")
    loss, norms = bench.gradients(contender.objective)
    missing = set(norms) ^ set(theirs["norms"])
    if missing:
        raise UserError(f"The peer has other weights than we: {sorted(missing)[:3]}.")
    found = {
        "loss": abs(loss / theirs["loss"] - 1),
        "gradients": max(abs(norm / theirs["norms"][name] - 1) for name, norm in norms.items()),
    }
    _, losses = bench.turn(ours)
    later = bench.ask("train", contender)["losses"]
    found["later_losses"] = max(abs(a / b - 1) for a, b in zip(losses, later, strict=True))
    limit = 1e-4 if _DTYPE.value == "float32" else 5e-2
    for what, gap in found.items():
        if not gap < limit:
            raise UserError(
                f"{contender.objective}: {what} differs from the peer's by {gap:.1e}: no speed "
                "counts before."
            )
    return found


def measure(bench: Bench, lines: list[Contender]) -> float:
    """All turns; returns the best rate of a large product before and after them, 1/s."""
    peak = limits.matmul_flops(_DTYPE.value)
    for number in range(_ROUNDS.value + 1):
        for line in lines:
            if line.error:
                continue
            if line.who == "torch":
                got = bench.ask("train", line)
                line.error = got.get("error", "")
                seconds = got.get("seconds", 0.0)
            else:
                seconds, _ = bench.turn(line)
            if number and not line.error:  # the first round warms up
                line.seconds.append(seconds)
    return max(peak, limits.matmul_flops(_DTYPE.value))


def run(folder: Path) -> dict[str, Any]:
    """The whole benchmark; returns what --json writes."""
    device = "cpu" if jax.default_backend() == "cpu" else "gpu"
    cores = len(os.sched_getaffinity(0))
    bench = Bench(folder, device)
    try:
        results: dict[str, Any] = {
            "geometry": _MODEL.value or _GEOMETRY.value,
            "lora_rank": _LORA.value,
            "parameters": bench.cfg.num_params,
            "batch": [_BATCH.value, _LENGTH.value],
            "dtype": _DTYPE.value,
            "device": jax.devices()[0].device_kind,
            "cores": cores,
            "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
            "versions": {"jax": jax.__version__, "peer": bench.peer.versions},
        }
        widths = sorted({1, cores}) if device == "cpu" else [1]
        results["agreement"], results["lines"], results["ratios"] = {}, [], {}
        for objective in _OBJECTIVES.value:
            ours, theirs = (
                [Contender(who, objective, n) for n in widths] for who in ("ours", "torch")
            )
            found = agreement(bench, ours[-1], theirs[-1])
            results["agreement"][objective] = found
            print(
                f"{objective}: differs from torch by "
                + ", ".join(f"{k} {v:.1e}" for k, v in found.items()),
                flush=True,
            )
            peak = measure(bench, [*ours, *theirs])
            best = [
                min((line for line in lines if not line.error), key=lambda line: line.median)
                for lines in (ours, theirs)
            ]
            for line in (*ours, *theirs):
                row = dataclasses.asdict(line)
                if not line.error:
                    row |= {
                        "median": line.median,
                        "of_matmul_peak": bench.flops(objective, causal=False) / line.median / peak,
                    }
                results["lines"].append(row)
            results["ratios"][objective] = best[1].median / best[0].median
            results.setdefault("matmul_gflops", {})[objective] = peak / 1e9
        report(results)
        return results
    finally:
        bench.peer.close()


def run_alone() -> dict[str, Any]:
    """Our steps alone, on one device; returns what --json writes."""
    # A teacher is read, never trained: the student's own weights cost as much as others.
    if _MODEL.value:
        student = load_policy(_MODEL.value, dtype=_DTYPE.value)
    else:
        student = models.policy(_GEOMETRY.value, "llama", _DTYPE.value)
    ours = Ours(student, student)
    kind = jax.devices()[0].device_kind
    gpu = GPUS.get(kind) if _DTYPE.value == "bfloat16" else None
    results: dict[str, Any] = {
        "geometry": _MODEL.value or _GEOMETRY.value,
        "parameters": ours.cfg.num_params,
        "lora_rank": _LORA.value,
        "batch": [_BATCH.value, _LENGTH.value],
        "dtype": _DTYPE.value,
        "remat": _REMAT.value,
        "attention": _ATTENTION.value,
        "device": kind,
        "versions": {"jax": jax.__version__},
        "lines": [],
    }
    for objective in _OBJECTIVES.value:
        line = Contender("ours", objective, 1)
        for number in range(_ROUNDS.value + 1):
            seconds, losses = ours.turn(line)
            if not np.isfinite(losses).all():
                raise UserError(f"The losses of {objective} are not finite: no speed counts.")
            if number:  # the first one compiles
                line.seconds.append(seconds)
        row = {**dataclasses.asdict(line), "median": line.median}
        for name, causal in (("causal", True), ("whole", False)):
            rate = ours.flops(objective, causal=causal) / line.median
            row[f"tflops_{name}"] = rate / 1e12
            row[f"mfu_{name}"] = rate / gpu.flops if gpu else None
        results["lines"].append(row)
        print(
            f"{objective}: {1e3 * line.median:.1f} ms a step, "
            f"{row['tflops_causal']:.2f} TFLOP/s with causal scores, "
            f"{row['tflops_whole']:.2f} with whole ones",
            flush=True,
        )
    return results


def report(results: dict[str, Any]) -> None:
    """Prints everything as Markdown."""
    print(
        json.dumps(
            {k: v for k, v in results.items() if k not in ("lines", "ratios", "agreement")},
            indent=2,
        )
    )
    print(
        "\n| objective | contender | devices or threads | ms a step | least - most "
        "| of the matmul peak |\n" + "| --- " * 6 + "|"
    )
    for row in results["lines"]:
        head = f"| {row['objective']} | {row['who']} | {row['width']} |"
        if row["error"]:
            print(f"{head} {row['error']} | | |")
            continue
        spread = f"{1e3 * min(row['seconds']):.1f} - {1e3 * max(row['seconds']):.1f}"
        print(f"{head} {1e3 * row['median']:.1f} | {spread} | {row['of_matmul_peak']:.0%} |")
    for objective, ratio in results["ratios"].items():
        print(f"{objective}: ours at its best is {ratio:.2f}x as fast as torch at its best")


def checked_run() -> dict[str, Any]:
    """The benchmark, after what flags cannot check themselves."""
    if unknown := set(_OBJECTIVES.value) - {"sft", "forward_kl", "gkd"}:
        raise UserError(f"Unknown objectives {sorted(unknown)}: choose among sft, forward_kl, gkd.")
    if _DEVICE.value != "auto":
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[_DEVICE.value])
    if _ALONE.value:
        return run_alone()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder))


if __name__ == "__main__":
    sys.exit(command.main(sys.argv, checked_run))
