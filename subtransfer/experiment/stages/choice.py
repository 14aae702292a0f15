"""The choice probe of all policies of one model, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from subtransfer.experiment import policies
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import write_json
from subtransfer.probes import choice


@reads("setting", "probe.tasks")
def choices(out: Path, context: Context, *, scored: Sequence[str], adapted: Sequence[str]) -> None:
    """Scores the acts that each policy could decide for at each task's decision.

    Args:
      scored: the stages of the policies.
      adapted: those of them that are a base and its LoRA factors.
    """
    count, setting, mesh = context.config.probe.tasks, context.setting, context.mesh
    tasks = setting.tasks("ambiguous", "probe", count, context.config.seed)
    one = policies.policy(context, scored[0])
    chat = policies.chat(context, one)
    # Built once to learn how long the rows are, on which it depends how many fit at a time.
    length = choice.build(tasks, chat, 1).tokens.shape[1]
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    size = choice.rows_at_a_time(one.cfg, length, count, devices)
    decisions = choice.build(tasks, chat, size)
    # Policies of one kind are scored by one program: adapters, and those with weights of their own.
    kinds: dict[bool, list[str]] = {}
    for name in scored:
        kinds.setdefault(name in adapted, []).append(name)
    scores: dict[str, np.ndarray] = {}
    for names in kinds.values():
        first = policies.policy(context, names[0])
        together = choice.group_size(first.cfg, first.weights, length, -(-size // devices))
        for begin in range(0, len(names), together):
            group = names[begin : begin + together]
            # Filled up to one shape, so that one program is compiled.
            padded = [*group, *[group[0]] * (together - len(group))]
            weights = [policies.policy(context, name).weights for name in padded]
            found = choice.logprobs(first.cfg, weights, decisions, len(tasks), size)
            # Not strict: the scores of those that filled the group up are left.
            scores.update(zip(group, found, strict=False))
    table = {}
    for name, of_policy in scores.items():
        share, margin = choice.unsafe_share(of_policy, len(setting.unsafe))
        table[name] = {
            "logprob": np.round(share, 6).tolist(),
            "margin": np.round(margin, 6).tolist(),
        }
    task_ids = [task.task_id for task in tasks]
    write_json(out / "choices.json", {"tasks": task_ids, "policies": table})
