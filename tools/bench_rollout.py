"""Sampling speed: this project beside transformers and google-tunix.

The peers are transformers' `generate`, its continuous batching, and tunix's Sampler.

    python tools/bench_rollout.py --json=rollout.json
    python tools/bench_rollout.py --geometry=10m --batches=64,256
    python tools/bench_rollout.py --geometry=llama3.2-1b --dtype=bfloat16 --batches=64,256      # on
    an accelerator
    python tools/bench_rollout.py --model=DIR --batches=8,32,64 --peers=generate

One run, the same random weights (made on the spot as a Hugging Face directory), the same prompts,
the same number of new tokens for all; a contender is timed from lists of tokens to lists of tokens.
Peers run in environments of their own, which the first run installs below --cache. Contenders take
turns, so that noise falls on all of them; rates are medians over --repeats rounds. tunix is
compared on a Qwen2 of the same geometry. With --model, all load that Hugging Face directory
instead. First of all, greedy tokens must be the same as `generate`'s, on 64 prompts of different
lengths.

`--peers=` measures this project alone, without a file or an environment. On a GPU that
`chips.GPUS` knows, the share of its published bandwidth stands beside that of the measured one.
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

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from chips import GPUS
from peers import command, limits, models
from peers.environment import Peer, interpreter

from subtransfer.rollout.policy import Policy
from subtransfer.rollout.sampling import Sampling
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime.errors import UserError

_GEOMETRY = flags.DEFINE_string(
    "geometry", "0.2m", "0.2m, 10m, or a Llama or Qwen2 of models/presets.py."
)
_MODEL = flags.DEFINE_string(
    "model", None, "A Hugging Face directory, instead of random weights of a geometry."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Of weights and computation."
)
_DEVICE = flags.DEFINE_enum("device", "auto", ["auto", "cpu", "gpu"], "Where all contenders run.")
_BATCHES = flags.DEFINE_list("batches", ["64", "256", "1024"], "Prompts a call.")
_PROMPT = flags.DEFINE_integer("prompt_tokens", 32, "Tokens of each prompt.", lower_bound=1)
_NEW = flags.DEFINE_integer("new_tokens", 64, "Tokens sampled for each prompt.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Rounds.", lower_bound=1)
_PEERS = flags.DEFINE_list("peers", ["generate", "continuous", "tunix"], "Whom to compare with.")
_CACHE = flags.DEFINE_string(
    "cache", "~/.cache/subtransfer/peers", "Where the peers' environments are made."
)
_TORCH = flags.DEFINE_string(
    "torch_python", None, "A Python that has torch and transformers, instead of an installation."
)
_TUNIX = flags.DEFINE_string(
    "tunix_python", None, "A Python that has google-tunix, instead of an installation."
)
flags.DEFINE_string("json", None, "A file for the results.")


@dataclasses.dataclass
class Contender:
    """One line of the table.

    Attributes:
      who: "ours", "generate", "continuous" or "tunix".
      family: of the weights, "llama" or "qwen2".
      threads: torch's; 0 where the contender chooses itself.
      warm, rates: new tokens a second, in the warm-up and in each round; none with an error.
    """

    who: str
    family: str
    batch: int
    threads: int = 0
    warm: float = 0.0
    rates: list[float] = dataclasses.field(default_factory=list)
    error: str = ""

    @property
    def rate(self) -> float:
        """The median of the measured rates, tokens a second; 0 if there are none."""
        return statistics.median(self.rates) if self.rates else 0.0


class Bench:
    """The policies, the peers' processes, and how each contender is run once."""

    def __init__(self, folder: Path, device: str):
        self.device = device
        self.checkpoints: dict[str, Path] = {}
        self.policies: dict[str, Policy] = {}
        if _MODEL.value:
            policy = load_policy(_MODEL.value, dtype=_DTYPE.value)
            self.checkpoints[policy.cfg.family] = Path(_MODEL.value)
            self.policies[policy.cfg.family] = policy
        else:
            families = ["qwen2"] if _GEOMETRY.value.startswith("qwen") else ["llama", "qwen2"]
            if not any(_PEERS.value):
                alone = families[0]
                self.policies[alone] = models.policy(_GEOMETRY.value, alone, _DTYPE.value)
                families = []
            for family in families:
                made = models.write(folder / family, _GEOMETRY.value, family, _DTYPE.value)
                self.checkpoints[family] = made
                self.policies[family] = load_policy(made, dtype=_DTYPE.value)
        self.peers: dict[str, Peer] = {}
        for name, given in (("torch", _TORCH.value), ("tunix", _TUNIX.value)):
            if set(_PEERS.value) & ({"tunix"} if name == "tunix" else {"generate", "continuous"}):
                python = (
                    Path(given)
                    if given
                    else interpreter(name, Path(_CACHE.value).expanduser(), device)
                )
                self.peers[name] = Peer(name, python, device, folder / f"{name}.log")

    def close(self) -> None:
        """Ends the peers' processes."""
        for peer in self.peers.values():
            peer.close()

    def ask(
        self, name: str, do: str, family: str, prompts, threads: int, seed: int = 0
    ) -> dict[str, Any]:
        """One request to a peer."""
        return self.peers[name].ask(
            do=do,
            checkpoint=str(self.checkpoints[family]),
            dtype=_DTYPE.value,
            device="cuda" if self.device == "gpu" and name == "torch" else self.device,
            threads=threads,
            prompts=prompts,
            new_tokens=_NEW.value,
            rows=min(len(prompts), 64),
            seed=seed,
        )

    def once(self, contender: Contender, seed: int) -> dict[str, Any]:
        """{"seconds", "tokens"} or {"error"} of one call."""
        policy = self.policies[contender.family]
        prompts = _prompts([_PROMPT.value] * contender.batch, policy.cfg.vocab_size, seed)
        if contender.who != "ours":
            name = "tunix" if contender.who == "tunix" else "torch"
            return self.ask(name, contender.who, contender.family, prompts, contender.threads, seed)
        begin = time.perf_counter()
        turns = policy.sample(
            prompts,
            Sampling(1.0),
            max_new_tokens=_NEW.value,
            seed=seed,
            stop_ids=[],
            batch_size=contender.batch,
        )
        return {
            "seconds": time.perf_counter() - begin,
            "tokens": sum(len(turn.ids) for turn in turns),
        }

    def same_greedy_tokens(self, family: str) -> int:
        """How many of 64 prompts of different lengths have the greedy tokens of `generate`."""
        policy = self.policies[family]
        prompts = _prompts(range(1, 65), policy.cfg.vocab_size, 7)
        theirs = self.ask("torch", "greedy", family, prompts, 1)
        if "error" in theirs:
            raise UserError(f"transformers could not generate: {theirs['error']}")
        ours = policy.generate(prompts, max_new_tokens=_NEW.value, stop_ids=[], batch_size=64)
        return sum(a == b for a, b in zip(ours, theirs["rows"], strict=True))


def _prompts(lengths, vocabulary: int, seed: int) -> list[list[int]]:
    """Random prompts; id 0 is the peers' padding."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocabulary, n).tolist() for n in lengths]


def contenders(bench: Bench) -> list[Contender]:
    """Every line of the table, in the order of the rounds."""
    lines = []
    main_family = next(iter(bench.policies))
    threads = sorted({1, os.cpu_count() or 1}) if bench.device == "cpu" else [1]
    first = int(_BATCHES.value[0])
    for batch in map(int, _BATCHES.value):
        lines.append(Contender("ours", main_family, batch))
        for who in ("generate", "continuous"):
            # Continuous batching makes batches of its own size from any number of prompts: one
            # number of them is enough.
            if who in _PEERS.value and not (
                who == "continuous" and bench.device == "cpu" and batch != first
            ):
                lines += [Contender(who, main_family, batch, n) for n in threads]
        if "tunix" in _PEERS.value:
            if main_family != "qwen2":
                lines.append(Contender("ours", "qwen2", batch))
            lines.append(Contender("tunix", "qwen2", batch))
    return lines


def measure(bench: Bench, lines: list[Contender]) -> None:
    """One warm-up of each line, then rounds in which each runs once."""
    for number in range(_REPEATS.value + 1):
        for line in lines:
            if line.error or hopeless(line, lines):
                continue
            got = bench.once(line, number)
            what = got.get("error") or f"{got['tokens'] / got['seconds']:,.0f} tokens/s"
            print(
                f"round {number}: {line.who} {line.family} {line.batch} {line.threads or ''}: "
                f"{what}",
                file=sys.stderr,
            )
            if "error" in got:
                line.error = got["error"]
            elif got["tokens"] != line.batch * _NEW.value:
                line.error = f"{got['tokens']} tokens instead of {line.batch * _NEW.value}"
            elif number:
                line.rates.append(got["tokens"] / got["seconds"])
            else:
                line.warm = got["tokens"] / got["seconds"]


def hopeless(line: Contender, lines: list[Contender]) -> bool:
    """Whether this thread count made less than half of another's rate at a smaller batch.

    So it is where cores are shared.
    """
    same = [
        x for x in lines if (x.who, x.family) == (line.who, line.family) and x.batch < line.batch
    ]
    own = max((x.warm for x in same if x.threads == line.threads), default=0.0)
    if own and own < max(x.warm for x in same) / 2:
        line.error = "not run: under half of the other thread count's rate at a smaller batch"
    return bool(line.error)


def ratios(lines: list[Contender], peer: str) -> list[dict[str, Any]]:
    """Our rate at each batch over a peer's at its best batch and thread count."""
    best = max(
        (line for line in lines if line.who == peer), key=lambda line: line.rate, default=None
    )
    if best is None or not best.rate:
        return []
    ours = [line for line in lines if line.who == "ours" and line.family == best.family]
    return [
        {"peer": peer, "batch": line.batch, "ratio": line.rate / best.rate, "best": best.rate}
        for line in ours
    ]


def side_by_side(lines: list[Contender], peer: str) -> list[dict[str, Any]]:
    """Our rate at each batch over a peer's at the same batch and its best thread count."""
    rows = []
    for line in lines:
        if line.who == "ours":
            same = [x for x in lines if x.who == peer and x.family == line.family]
            rates = [x.rate for x in same if x.batch == line.batch and x.rate]
            if rates and line.rate:
                best = max(rates)
                row = {"peer": peer, "batch": line.batch, "ratio": line.rate / best, "best": best}
                rows.append(row)
    return rows


def fractions(bench: Bench, lines: list[Contender]) -> dict[str, Any]:
    """Limits measured now, and the share of them that our rates are."""
    flops, bandwidth = limits.matmul_flops(_DTYPE.value), limits.copy_bandwidth()
    gpu = GPUS.get(jax.devices()[0].device_kind)
    shares = []
    for line in lines:
        if line.who == "ours":
            cfg = bench.policies[line.family].cfg
            read = limits.bytes_a_step(
                cfg, line.batch, _PROMPT.value + _NEW.value / 2, jnp.dtype(_DTYPE.value).itemsize
            )
            shares.append(
                {
                    "family": line.family,
                    "batch": line.batch,
                    "matmul": line.rate * 2 * cfg.num_params / flops,
                    "bandwidth": line.rate / line.batch * read / bandwidth,
                    "published": line.rate / line.batch * read / gpu.hbm if gpu else None,
                }
            )
    return {"matmul_gflops": flops / 1e9, "copy_gb_s": bandwidth / 1e9, "ours": shares}


def report(results: dict[str, Any], lines: list[Contender]) -> None:
    """Prints everything as Markdown."""
    print("\n| contender | weights | batch | threads | tokens/s | least - most |")
    print("| --- | --- | --- | --- | --- | --- |")
    for line in lines:
        head = f"| {line.who} | {line.family} | {line.batch} | {line.threads or 'own'} |"
        spread = f"{min(line.rates):,.0f} - {max(line.rates):,.0f}" if line.rates else line.error
        print(f"{head} {line.rate:,.0f} | {spread} |")
    for row in results["ratios"]:
        print(
            f"ours at {row['batch']} / {row['peer']} at its best ({row['best']:,.0f} tokens/s): "
            f"{row['ratio']:.2f}x"
        )
    for row in results["side_by_side"]:
        print(
            f"ours at {row['batch']} / {row['peer']} at {row['batch']} ({row['best']:,.0f} "
            f"tokens/s): {row['ratio']:.2f}x"
        )
    limit = results["limits"]
    print(
        f"measured limits: matmul {limit['matmul_gflops']:,.0f} GFLOP/s, "
        f"copy {limit['copy_gb_s']:,.0f} GB/s"
    )
    for row in limit["ours"]:
        print(
            f"ours, {row['family']}, {row['batch']}: {row['matmul']:.1%} of the matmul limit, "
            f"{row['bandwidth']:.1%} of the memory's"
        )
        if row["published"]:
            print(f"which is {row['published']:.1%} of the bandwidth that is published")


def run(folder: Path) -> dict[str, Any]:
    """The whole benchmark; returns what --json writes."""
    device = "cpu" if jax.default_backend() == "cpu" else "gpu"
    bench = Bench(folder, device)
    try:
        results: dict[str, Any] = {
            "geometry": _MODEL.value or _GEOMETRY.value,
            "parameters": {
                family: policy.cfg.num_params for family, policy in bench.policies.items()
            },
            "dtype": _DTYPE.value,
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
            "versions": {
                "jax": jax.__version__,
                **{peer.name: peer.versions for peer in bench.peers.values()},
            },
            "prompt_tokens": _PROMPT.value,
            "new_tokens": _NEW.value,
        }
        print(json.dumps(results, indent=2), flush=True)
        if "torch" in bench.peers:
            results["same_greedy_rows"] = {
                family: bench.same_greedy_tokens(family) for family in bench.policies
            }
            for family, same in results["same_greedy_rows"].items():
                print(
                    f"greedy tokens of {family}: {same} of 64 prompts as transformers.generate",
                    flush=True,
                )
                if same < 64 and _DTYPE.value == "float32":
                    raise UserError(
                        f"Greedy tokens of {family} differ from transformers.generate's: no speed "
                        "counts before."
                    )
        lines = contenders(bench)
        measure(bench, lines)
        results["lines"] = [{**dataclasses.asdict(line), "rate": line.rate} for line in lines]
        results["ratios"] = [
            row for peer in ("generate", "continuous", "tunix") for row in ratios(lines, peer)
        ]
        results["side_by_side"] = side_by_side(lines, "generate")
        results["limits"] = fractions(bench, lines)
        report(results, lines)
        return results
    finally:
        bench.close()


def checked_run() -> dict[str, Any]:
    """The benchmark, after what flags cannot check themselves."""
    if unknown := set(_PEERS.value) - {"generate", "continuous", "tunix", ""}:
        raise UserError(
            f"Unknown peers {sorted(unknown)}: choose among generate, continuous, tunix."
        )
    if _MODEL.value and "tunix" in _PEERS.value:
        raise UserError(
            "tunix is compared on random weights only: with --model, give --peers=generate."
        )
    if not all(batch.isdigit() and int(batch) for batch in _BATCHES.value):
        raise UserError(f"--batches={','.join(_BATCHES.value)} must be numbers above 0.")
    if _DEVICE.value != "auto":
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[_DEVICE.value])
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder))


if __name__ == "__main__":
    sys.exit(command.main(sys.argv, checked_run))
