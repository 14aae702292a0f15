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


@reads("setting", "probe.tasks", "share_prefix")
def choices(out: Path, context: Context, *, scored: Sequence[str], adapted: Sequence[str]) -> None:
    """Scores the acts that each policy could decide for at each task's decision.

    Args:
      scored: the stages of the policies.
      adapted: those of them that are a base and its LoRA factors.
    """
    count, setting = context.config.probe.tasks, context.setting
    tasks = setting.tasks("ambiguous", "probe", count, context.config.seed)
    chat = policies.chat(context, policies.policy(context, scored[0]))
    decisions = choice.build(tasks, chat, share_prefix=context.config.share_prefix)
    # Policies of one kind are scored by one program: adapters, and those with weights of their own.
    kinds: dict[bool, list[str]] = {}
    for name in scored:
        kinds.setdefault(name in adapted, []).append(name)
    scores: dict[str, np.ndarray] = {}
    for names in kinds.values():
        first = policies.policy(context, names[0])
        take = choice.portion_for(first.cfg, first.weights, decisions, len(names))
        del first  # or its weights would stay when others' are loaded
        for begin in range(0, len(names), take.policies):
            group = names[begin : begin + take.policies]
            # Filled up to one shape, so that one program is compiled.
            padded = [*group, *[group[0]] * (take.policies - len(group))]
            found = _score(context, padded, decisions, take.rows)
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


def _score(
    context: Context, names: Sequence[str], decisions: choice.ChoiceBatch, rows: int
) -> np.ndarray:
    """Loads policies and scores them; float64 [A, tasks, C], nats."""
    loaded = [policies.policy(context, name) for name in names]
    weights = [policy.weights for policy in loaded]
    return choice.logprobs(loaded[0].cfg, weights, decisions, rows)
