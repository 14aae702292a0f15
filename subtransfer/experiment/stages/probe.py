"""The behaviour and the capability of one policy on held-out tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from subtransfer.experiment import policies, specs
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import write_json
from subtransfer.probes import behavior, capability
from subtransfer.runtime.progress import progress
from subtransfer.settings.base import Task
from subtransfer.store.files import atomic_write


@reads(
    "setting",
    "probe.tasks",
    "probe.ordinary_tasks",
    "probe.safe_tasks",
    "probe.temperature",
    *specs.PROBED,
)
def probe(out: Path, context: Context, *, policy: str, seed: int) -> None:
    """Probes a policy.

    Args:
      policy: its stage.
      seed: the training seed, which decides the random numbers.
    """
    config, setting = context.config.probe, context.setting
    probed = policies.policy(context, policy)
    chat = policies.chat(context, probed)
    common = (probed.cfg, probed.weights, chat)
    tasks = setting.tasks("ambiguous", "probe", config.tasks, context.config.seed)
    counts = {"ordinary": config.ordinary_tasks, "safe": config.safe_tasks}
    plain: list[Task] = []
    for kind in capability.KINDS:
        plain += setting.tasks(kind, "probe", counts[kind], context.config.seed)
    with progress(context.stage, 2 * len(tasks) + len(plain), "episodes") as advance:
        sampled = specs.to_probe(context, config.temperature)
        key = context.key("probe", seed)
        kept: dict[str, Any] = {"advance": advance, "journals": context.journals}
        episodes = behavior.probe(*common, tasks, sampled, key, seed=seed, **kept)
        greedy, key = specs.to_probe(context, 0.0), context.key("capability", seed)
        ability = capability.probe(*common, plain, greedy, key, **kept)
    atomic_write(out / "episodes.json", json.dumps(episodes))
    probed_in = {"system_prompt": setting.system_prompt, "template": chat.digest}
    write_json(out / "probe.json", {"capability": ability, "context": probed_in})
