"""A teacher's stored opinion of its sanitized trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from subtransfer.distillation import student, teacher_targets
from subtransfer.experiment import policies
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import reads
from subtransfer.experiment.output import write_json
from subtransfer.experiment.stages import guard, match
from subtransfer.runtime.progress import note, progress

FIELDS = (
    "distill.top_k",
    "distill.temperature",
    "distill.max_tokens",
    "distill.batch_size",
    "share_prefix",
)


@reads(*guard.FIELDS, *FIELDS)
def targets(
    out: Path, context: Context, *, data: str, choice: Sequence[str] | None, teacher: str
) -> None:
    """Writes the teacher's likeliest tokens at each agent token, and how far they are from it.

    Args:
      data: the stage of the sanitized trajectories.
      choice: which of them, as of `match.chosen`.
      teacher: the stage of the teacher.
    """
    d, label, policy = context.config.distill, context.stage, policies.policy(context, teacher)
    chat = policies.chat(context, policy)
    check = guard.guard(context)
    kept = match.chosen(context, data, choice)
    rows, dropped = student.training_rows(kept, chat, check)
    fitted = rows.fitted_to(d.max_tokens)
    examples, removed, account = check.masked(fitted, chat, policy.cfg.vocab_size)
    path = out / "targets.safetensors"
    with progress(label, len(examples), "episodes") as advance:
        computed = teacher_targets.compute(
            policy.cfg,
            context.mesh,
            policy.weights,
            examples,
            d.top_k,
            d.temperature,
            removed,
            d.batch_size,
            advance,
            share_prefix=context.config.share_prefix,
        )
        computed.write(path)
    # What is checked is the file, as students read it, and not what was written to it.
    stored = teacher_targets.Targets.read(path)
    gap = teacher_targets.verify(policy.cfg, policy.weights, examples, stored, removed)
    note(
        f"{label}: stored log-probs within {gap['max_gap']:g} of the teacher's, "
        f"its own top {d.top_k} hold at most {gap['max_missed']:g} more"
    )
    more = {"removed_mass": computed.removed_mass, "removed_tokens": account}
    write_json(out / "targets.json", {**gap, "dropped_ids": dropped, **more})
