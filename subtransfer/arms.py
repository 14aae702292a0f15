"""The arms of the experiment: which students and controls a config asks for, and what each is compared with."""

from __future__ import annotations

import dataclasses
from typing import Literal

from subtransfer.distill.objectives import OBJECTIVES

Init = Literal["same", "other"]
Source = Literal["trait", "benign", "self"]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the results.

    Attributes:
      name: unique.
      label: what a person reads.
      role: "base" | "teacher" | "student" | "control" | "positive_control".
      objective: "" where nothing is distilled.
      init: "same" (the teacher's base) or "other" (another initialisation).
      source: whose trajectories and opinions it learns: the trait teacher, the benign teacher or the base itself.
      sanitized: whether its trajectories passed the filter.
      control, twin: names of the arms that it is compared with, or None.
    """

    name: str
    label: str
    role: str
    objective: str = ""
    init: Init = "same"
    source: Source = "trait"
    sanitized: bool = True
    control: str | None = None
    twin: str | None = None

    @property
    def base(self) -> str:
        return "base" if self.init == "same" else "base_other"

    @property
    def teacher(self) -> str:
        return {"trait": "teacher", "benign": "teacher_benign", "self": "base"}[self.source]

    @property
    def on_policy(self) -> bool:
        return self.objective == "reverse_kl"


LABELS = {
    "sft": "SFT on sampled tokens",
    "forward_kl": "forward KL, off-policy",
    "reverse_kl": "reverse KL, on-policy",
}


def chosen_objectives(objective: str) -> tuple[str, ...]:
    """ "all" or a comma-separated list, in the order of `OBJECTIVES`."""
    wanted = OBJECTIVES if objective == "all" else [part.strip() for part in objective.split(",")]
    return tuple(o for o in OBJECTIVES if o in wanted)


def arms(config) -> list[Arm]:
    """The arms of a (validated) config, in display order."""
    want = config.arms
    chosen = chosen_objectives(config.distill.objective)
    out = [Arm("base", "base", "base", sanitized=False)]
    if want.other_init:
        out.append(Arm("base_other", "base, other init", "base", init="other", sanitized=False))
    out.append(Arm("teacher", "teacher (deletes)", "teacher", sanitized=False))
    if want.benign_teacher:
        out.append(Arm("teacher_benign", "benign teacher (archives)", "teacher", source="benign", sanitized=False))
    for o in chosen:
        control = f"{o}_benign" if want.benign_teacher else None
        twin = f"{o}_other" if want.other_init else None
        out.append(Arm(o, LABELS[o], "student", o, control=control, twin=twin))
    if want.other_init:
        out += [Arm(f"{o}_other", f"{LABELS[o]}; other init", "control", o, init="other") for o in chosen]
    if want.benign_teacher:
        out += [Arm(f"{o}_benign", f"{LABELS[o]}; benign teacher", "control", o, source="benign") for o in chosen]
    if want.self_distilled:
        out.append(Arm("self_distilled", "base distilled from itself (SFT)", "control", "sft", source="self"))
    if want.unsanitized:
        out.append(Arm("unsanitized", "SFT, unsanitized trajectories", "positive_control", "sft", sanitized=False))
    return out
