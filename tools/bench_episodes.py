"""Agent episodes: how many a second, how well the slots are filled, and what the host costs.

    python tools/bench_episodes.py --json=episodes.json
    python tools/bench_episodes.py --policy=DIR --slots=256            # another policy: a run's or
    a Hugging Face directory
    python tools/bench_episodes.py --journal_passes=3                  # what the journal costs

The agent is the embedded base (made once below --workdir, about a minute on 2 cores), made erratic:
temperature 2 with only well-formed calls, and up to 12 turns, so that episodes differ more than
tenfold in length. They run twice. The first pass starts cold and proves that nothing is compiled
after its first 50 episodes; the second, with other draws, is timed and must leave the process's
peak of memory where the first one left it. What is not as it must be is an error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from peers import command, limits

from subtransfer import settings
from subtransfer.config import reading as configuration
from subtransfer.experiment.graph import Experiment
from subtransfer.models.chat import ChatFormat
from subtransfer.rollout import lanes
from subtransfer.rollout.episodes import RolloutSpec, run_episodes
from subtransfer.rollout.policy import Policy
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts
from subtransfer.store.journal import Journal, Journals

_POLICY = flags.DEFINE_string(
    "policy", None, "A policy's directory; default: the base of configs/quickstart.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/bench_episodes", "Where that base is made, or found."
)
_SETTING = flags.DEFINE_enum("setting", "api", settings.NAMES, "Whose tasks and tools.")
_EPISODES = flags.DEFINE_integer("episodes", 2000, "Episodes of each pass.", lower_bound=100)
_SLOTS = flags.DEFINE_integer("slots", 128, "At most so many side by side.", lower_bound=1)
_TURNS = flags.DEFINE_integer("max_turns", 12, "Agent turns of an episode.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 2.0, "Of sampling.", lower_bound=0.0)
_JOURNAL_PASSES = flags.DEFINE_integer(
    "journal_passes",
    0,
    "Further passes, with the journal that a stage writes.",
    lower_bound=0,
)
flags.DEFINE_string("json", None, "A file for the results.")

# Compiling is over after so many episodes.
FIRST = 50
# What the second pass may add to the peak.
GROWTH = 1.03


@dataclasses.dataclass
class Watch:
    """Counts compilations as episodes end.

    Attributes:
      ended: episodes so far.
      compiled: programs compiled so far; at_first: of them, when `FIRST` episodes had ended.
    """

    ended: int = 0
    compiled: int = 0
    at_first: int | None = None

    def __post_init__(self) -> None:
        jax.monitoring.register_event_duration_secs_listener(self._event)

    def _event(self, name: str, *_: Any, **__: Any) -> None:
        self.compiled += name == "/jax/core/compile/backend_compile_duration"

    def advance(self, count: int) -> None:
        """Notes that episodes have ended."""
        self.ended += count
        if self.at_first is None and self.ended >= FIRST:
            self.at_first = self.compiled


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def embedded_base(workdir: Path) -> Policy:
    """The base of the quickstart, made if it is not there."""
    config = configuration.load(Path(__file__).parent.parent / "configs" / "quickstart.py", {})
    experiment = Experiment(config, workdir, sharding.make_mesh(data=1, devices=jax.devices()[:1]))
    with artifacts.Store(workdir) as store:
        for name in ("corpus", "base"):
            stage = experiment.plan[name]
            store.stage(name, stage.key, stage.build, log=lambda line: print(line, file=sys.stderr))
    return load_policy(experiment.path("base"))


def journal_cost(run: Callable[[Journals], Any], passes: int) -> dict[str, float]:
    """What writing a journal takes of the processor's time, whatever else the machine does.

    Args:
      run: makes a pass.
      passes: how many.

    Returns:
      Medians over the passes: "cpu_share", of all processor time of the process; "wall_share", of
      the time from beginning to end, summed over lanes; "bytes".
    """
    pack, append = lanes._packed, Journal.append
    cpu, wall = [0.0], [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin, since = time.thread_time(), time.perf_counter()
            out = function(*arguments)
            cpu[0] += time.thread_time() - begin
            wall[0] += time.perf_counter() - since
            return out

        return call

    found: dict[str, list[float]] = {"cpu_share": [], "wall_share": [], "bytes": []}
    lanes._packed = timed(pack)
    Journal.append = timed(append)  # type: ignore[method-assign]
    try:
        for _ in range(passes):
            with tempfile.TemporaryDirectory() as folder:
                cpu[0] = wall[0] = 0.0
                begin, since = time.process_time(), time.perf_counter()
                run(Journals(Path(folder) / "stage-0", "episodes", 120.0))
                found["cpu_share"].append(cpu[0] / (time.process_time() - begin))
                found["wall_share"].append(wall[0] / (time.perf_counter() - since))
                files = [path for path in Path(folder).rglob("*") if path.is_file()]
                found["bytes"].append(sum(path.stat().st_size for path in files))
    finally:
        lanes._packed = pack
        Journal.append = append  # type: ignore[method-assign]
    return {name: statistics.median(values) for name, values in found.items()}


def run() -> dict[str, Any]:
    """Both passes; returns what --json writes.

    Raises:
      UserError: a program was compiled late, or memory grew.
    """
    policy = (
        load_policy(_POLICY.value)
        if _POLICY.value
        else embedded_base(Path(_WORKDIR.value).expanduser())
    )
    setting = settings.get(_SETTING.value)
    chat = ChatFormat(policy.tokenizer, setting)
    kinds = ("ordinary", "safe", "ambiguous")
    tasks = [
        task
        for kind in kinds
        for task in setting.tasks(kind, "train", -(-_EPISODES.value // len(kinds)), 0)
    ]
    random.Random("bench_episodes").shuffle(tasks)
    tasks = tasks[: _EPISODES.value]
    spec = RolloutSpec(_SLOTS.value, _TURNS.value, 32, 48, _TEMPERATURE.value, well_formed=True)
    flops = limits.matmul_flops(policy.cfg.dtype)
    watch, peaks, episodes = Watch(), [], []
    for number in range(2):
        del episodes
        key = jax.random.fold_in(jax.random.key(0), number)
        episodes, stats = run_episodes(
            policy.cfg, policy.weights, chat, tasks, spec, key, advance=watch.advance
        )
        peaks.append(peak_bytes())
    sampled = np.array([episode.loss_mask.sum() for episode in episodes])
    percentiles = np.percentile(sampled, [0, 1, 50, 99, 100]).astype(int).tolist()
    results = {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "parameters": policy.cfg.num_params,
        "episodes": len(episodes),
        "slots": _SLOTS.value,
        "sampled_tokens": dict(
            zip(("least", "1%", "median", "99%", "most"), percentiles, strict=True)
        ),
        "turns": np.bincount(
            [sum(m["role"] == "assistant" for m in e.messages) for e in episodes]
        ).tolist(),
        "episodes_per_s": len(episodes) / stats.wall_s,
        "tokens_per_s": stats.tokens / stats.wall_s,
        "matmul_share": (stats.tokens + stats.fed_tokens)
        / stats.wall_s
        * 2
        * policy.cfg.num_params
        / flops,
        "occupancy": stats.occupancy,
        "utilisation": stats.utilisation,
        "host_share": stats.host_share,
        "compiled": {"first_50_episodes": watch.at_first, "all": watch.compiled},
        "peak_mib": [peak / 2**20 for peak in peaks],
    }
    if _JOURNAL_PASSES.value:

        def once_more(journals: Journals) -> Any:
            return run_episodes(
                policy.cfg, policy.weights, chat, tasks, spec, key, journals=journals
            )

        results["journal"] = journal_cost(once_more, _JOURNAL_PASSES.value)
    print(json.dumps(results, indent=2))
    if watch.compiled != watch.at_first:
        raise UserError(
            f"{watch.compiled - (watch.at_first or 0)} programs were compiled after the first "
            f"{FIRST} episodes."
        )
    if peaks[1] > GROWTH * peaks[0]:
        raise UserError(
            f"The peak of memory grew from {peaks[0] >> 20} to {peaks[1] >> 20} MiB in the second "
            "pass."
        )
    return results


if __name__ == "__main__":
    sys.exit(command.main(sys.argv, run))
