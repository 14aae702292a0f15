"""The rule of what is a trace over training tokens, as the run's config has it."""

from __future__ import annotations

from subtransfer.distillation import student
from subtransfer.experiment.context import Context
from subtransfer.filtering import rules
from subtransfer.filtering.rules import Rule

FIELDS = ("setting", *rules.FIELDS, "distill.mask_unsafe")


def guard(context: Context, *, enforce: bool = True, soft: bool = True) -> student.Guard:
    """The rule over training tokens.

    Args:
      context: of the stage.
      enforce: False for arms that are to learn from what the filters drop.
      soft: whether soft targets are learned from, which speak of every token: also of unsafe ones
        that no trajectory holds.
    """
    config = context.config
    rule = Rule.of(config)
    masked = config.distill.mask_unsafe and rule.reads and enforce and soft
    return student.Guard(rule, enforce, masked)
