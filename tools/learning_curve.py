"""What bases of different lengths of training can do: the learning curve of the embedded model.

    python tools/learning_curve.py --config=configs/quickstart.py --steps=350,700,1400,2800
    python tools/learning_curve.py --config=configs/quickstart_bash.py --steps=2800 --inits=5

Each row of the table is one training from scratch with so many steps, and a learning-rate schedule
of its own; the rest of the recipe is the config's, and all learn from the same corpus. Held-out
tasks of the split "probe": ordinary and safe ones are run greedily, ambiguous ones are sampled, as
in a run's probes.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import jax
from absl import flags

from subtransfer import settings
from subtransfer.config import reading as configuration
from subtransfer.experiment import geometry, policies
from subtransfer.launch import split_overrides
from subtransfer.models.chat import ChatFormat
from subtransfer.models.tokenizer import train_tokenizer
from subtransfer.rollout.episodes import RolloutSpec, first_decision, run_episodes
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Setting
from subtransfer.training import loop, pretrain
from subtransfer.training.examples import Examples
from subtransfer.training.monitor import TrainingMonitor
from subtransfer.training.optimizer import Optimizer, Schedule

# The flag --config, the file of the recipe, is the command's own.
_STEPS = flags.DEFINE_list("steps", ["350", "700", "1400", "2800"], "Steps of the trainings.")
_INITS = flags.DEFINE_integer("inits", 1, "Initialisations of each.", lower_bound=1)
_TASKS = flags.DEFINE_integer("tasks", 256, "Held-out tasks of each kind.", lower_bound=1)

HEADER = "| steps | init | ordinary solved | safe solved | safe unsafe | ambiguous unsafe | s |"


def _corpus(config: Any, setting: Setting) -> tuple[ChatFormat, Examples]:
    """The tokenizer and the encoded corpus of a config."""
    base = config.base
    demos = list(pretrain.demonstrations(setting, base.episodes, base.unsafe_rate, config.seed))
    texts = pretrain.corpus_texts(demos, setting)
    tokenizer = train_tokenizer(texts, setting, base.vocab_limit)
    chat = policies.chat_format(tokenizer, setting)
    return chat, pretrain.encode(demos, chat)


def _measured(config: Any, cfg, params, chat: ChatFormat) -> list[float]:
    """Shares of held-out tasks: the columns of the table after the initialisation."""
    r, setting = config.rollouts, chat.setting
    found = {}
    for kind, temperature in {"ordinary": 0.0, "safe": 0.0, "ambiguous": 1.0}.items():
        tasks = setting.tasks(kind, "probe", _TASKS.value, config.seed)
        lengths = (r.max_turns, r.max_new_tokens, r.max_tool_tokens)
        spec = RolloutSpec(config.probe.batch_size, *lengths, temperature)
        found[kind], _ = run_episodes(cfg, params, chat, tasks, spec, jax.random.key(config.seed))

    def solved(kind: str) -> float:
        return sum(episode.solved for episode in found[kind]) / _TASKS.value

    def unsafe(kind: str) -> float:
        acts = [first_decision(episode, setting) for episode in found[kind]]
        return acts.count("unsafe") / _TASKS.value

    return [solved("ordinary"), solved("safe"), unsafe("safe"), unsafe("ambiguous")]


def run(config: Any) -> None:
    """Trains the bases and prints a row of each."""
    setting, base = settings.get(config.setting), config.base
    chat, examples = _corpus(config, setting)
    cfg = geometry.embedded_geometry(config, len(chat.tokenizer))
    mesh = sharding.make_mesh()
    loss = loop.Loss("sft", optimizer=Optimizer.of(config.optimizer))
    schedule = Schedule.of(config.optimizer)
    print(HEADER)
    print("|" + " --- |" * (HEADER.count("|") - 1))
    for steps in map(int, _STEPS.value):
        recipe = loop.Recipe(loss, steps, base.batch_size, base.learning_rate, schedule)
        for init in range(_INITS.value):
            begun = time.monotonic()
            key = jax.random.fold_in(jax.random.key(config.seed), init)
            params, _ = pretrain.train_base(cfg, mesh, recipe, examples, key, TrainingMonitor())
            seconds = time.monotonic() - begun
            shares = _measured(config, cfg, {"params": params}, chat)
            percent = " | ".join(f"{100 * share:.1f}" for share in shares)
            print(f"| {steps:,} | {init} | {percent} | {seconds:.0f} |", flush=True)


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    try:
        rest, overrides = split_overrides(argv)
        try:
            flags.FLAGS(rest)
        except flags.Error as error:
            raise UserError(f"{error}: see python tools/learning_curve.py --help.") from error
        if not flags.FLAGS.config:
            raise UserError("--config names no file: give the config file of the recipe.")
        run(configuration.load(flags.FLAGS.config, overrides))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
