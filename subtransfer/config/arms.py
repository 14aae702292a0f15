"""The arms of the experiment: which students and controls a config asks for, and what each is
compared with.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from subtransfer.training.objectives import OBJECTIVES, TABLE

Source = Literal["trait", "benign", "random", "self"]
EMBEDDED = ("base", "base_other")  # the models of a config without pairs


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the results.

    Attributes:
      name: unique.
      label: what a person reads.
      role: "base" | "teacher" | "student" | "control" | "positive_control".
      objective: "" where nothing is distilled.
      model: what it starts from: "base", "base_other" or a name in the config's `models`.
      teacher_model: what its teacher starts from.
      source: whose trajectories and opinions it learns: the trait teacher, the benign one (a
        harmless habit), the random one (ordinary tasks) or the base itself.
      own: share of its training episodes that are its own rollouts (GKD's lambda); the others are
        its teacher's trajectories.
      sanitized: whether its trajectories passed the filter.
      control, twin: names of the arms that it is compared with, or None.
    """

    name: str
    label: str
    role: str
    objective: str = ""
    model: str = "base"
    teacher_model: str = "base"
    source: Source = "trait"
    own: float = 0.0
    sanitized: bool = True
    control: str | None = None
    twin: str | None = None

    @property
    def init(self) -> str:
        """ "same" (the teacher's initialisation) or "other"."""
        return "same" if self.model == self.teacher_model else "other"

    @property
    def base(self) -> str:
        """The arm that it is compared with: the model it starts from."""
        return self.model

    @property
    def teacher(self) -> str:
        """The arm of its teacher."""
        return (
            self.model if self.source == "self" else _teacher_arm(self.source, self.teacher_model)
        )

    @property
    def on_policy(self) -> bool:
        """It learns from rollouts of its own."""
        return self.own > 0

    @property
    def off_policy(self) -> bool:
        """It learns from trajectories of its teacher."""
        return bool(self.objective) and self.own < 1


# Objectives of which a config says how much is on-policy; the others learn from the teacher's
# trajectories.
ON_POLICY = ("reverse_kl", "jsd", "policy_gradient")
_NAMES = {
    "sft": "SFT on sampled tokens",
    "forward_kl": "forward KL, off-policy",
    "reverse_kl": "reverse KL",
    "jsd": "generalised JSD",
    "policy_gradient": "policy gradient of the reverse KL",
}


def own_share(config, objective: str) -> float:
    """Share of an objective's training episodes that are the student's own rollouts."""
    return config.distill.on_policy_fraction if objective in ON_POLICY else 0.0


def in_words(config, objective: str) -> str:
    """What a person reads of an objective."""
    if objective not in ON_POLICY:
        return _NAMES[objective]
    own = own_share(config, objective)
    how = {0.0: "off-policy", 1.0: "on-policy"}.get(own, f"{own:.0%} on-policy")
    return f"{_NAMES[objective]}, {how}"


def chosen_objectives(objective: str) -> tuple[str, ...]:
    """ "all" (the table's) or a comma-separated list, in the order of `OBJECTIVES`."""
    wanted = TABLE if objective == "all" else [part.strip() for part in objective.split(",")]
    return tuple(o for o in OBJECTIVES if o in wanted)


def base_stage(model: str) -> str:
    """The stage that makes a model."""
    return model if model in EMBEDDED else f"base.{model}"


def teacher_stage(source: str, model: str, seed: int) -> str:
    """The stage whose policy a source's trajectories come from."""
    if source == "self":
        return base_stage(model)
    return f"teacher.{_of(source, model)}.seed{seed}"


def rollout_stage(source: str, model: str, seed: int, *, sanitized: bool = False) -> str:
    """The stage of a source's trajectories."""
    return f"{'sanitize' if sanitized else 'rollouts'}.{_of(source, model)}.seed{seed}"


def targets_stage(source: str, model: str, seed: int) -> str:
    """The stage of a source's stored opinion of its sanitized trajectories."""
    return f"targets.{_of(source, model)}.seed{seed}"


def stores_targets(config, objective: str) -> bool:
    """Whether an objective reads its teacher's opinion from disk; only the forward KL over the
    teacher's top k can.
    """
    return objective == "forward_kl" and config.distill.teacher_targets == "stored"


def _of(source: str, model: str) -> str:
    return source if model in EMBEDDED else f"{source}.{model}"


def _teacher_arm(source: str, model: str) -> str:
    name = "teacher" if source == "trait" else f"teacher_{source}"
    return name if model in EMBEDDED else f"{name}_{model}"


_TEACHERS = {
    "trait": "teacher (unsafe)",
    "benign": "benign teacher",
    "random": "teacher of random tasks",
}


def split_pair(pair: str) -> tuple[str, str]:
    """ "TEACHER>STUDENT" as (teacher's model, student's model)."""
    teacher, _, student = pair.partition(">")
    return teacher.strip(), student.strip()


def arms(config) -> list[Arm]:
    """The arms of a (validated) config, in display order."""
    chosen = chosen_objectives(config.distill.objective)
    controls = [
        s
        for s, wanted in (
            ("benign", config.arms.benign_teacher),
            ("random", config.arms.random_teacher),
        )
        if wanted
    ]
    table = _table(config, chosen, controls) if config.pairs else _twins(config, chosen, controls)
    return [dataclasses.replace(arm, own=own_share(config, arm.objective)) for arm in table]


def _twins(config, chosen, controls) -> list[Arm]:
    """One base: every student again from another initialisation, and of harmless teachers."""
    want, labels = config.arms, {o: in_words(config, o) for o in chosen}
    out = [Arm("base", "base", "base", sanitized=False)]
    if want.other_init:
        out.append(
            Arm("base_other", "base, other init", "base", model="base_other", sanitized=False)
        )
    for source in ("trait", *controls):
        out.append(
            Arm(
                _teacher_arm(source, "base"),
                _TEACHERS[source],
                "teacher",
                source=source,
                sanitized=False,
            )
        )
    for o in chosen:
        control = f"{o}_{controls[0]}" if controls else None
        out.append(
            Arm(
                o,
                labels[o],
                "student",
                o,
                control=control,
                twin=f"{o}_other" if want.other_init else None,
            )
        )
    if want.other_init:
        out += [
            Arm(f"{o}_other", f"{labels[o]}; other init", "control", o, "base_other")
            for o in chosen
        ]
    for source in controls:
        out += [
            Arm(f"{o}_{source}", f"{labels[o]}; {_TEACHERS[source]}", "control", o, source=source)
            for o in chosen
        ]
    if want.self_distilled:
        out.append(
            Arm(
                "self_distilled",
                "base distilled from itself (SFT)",
                "control",
                "sft",
                source="self",
            )
        )
    if want.unsanitized:
        out.append(
            Arm(
                "unsanitized",
                "SFT, unsanitized trajectories",
                "positive_control",
                "sft",
                sanitized=False,
            )
        )
    return out


def _table(config, chosen, controls) -> list[Arm]:
    """Pairs of models, as in the published table: each student, its base, and its control of a
    harmless teacher.
    """
    pairs = [split_pair(pair) for pair in config.pairs]
    students, teachers = dict.fromkeys(s for _, s in pairs), dict.fromkeys(t for t, _ in pairs)
    models = students | teachers
    out = [
        Arm(model, f"{model}, untuned", "base", model=model, teacher_model=model, sanitized=False)
        for model in models
    ]
    for model in teachers:
        for source in ("trait", *controls):
            name, label = _teacher_arm(source, model), f"{model}, {_TEACHERS[source]}"
            out.append(Arm(name, label, "teacher", "", model, model, source, sanitized=False))
    for role, sources in (("student", ("trait",)), ("control", tuple(controls))):
        for source in sources:
            for t, s in pairs:
                for o in chosen:
                    name, label = f"{o}_{t}_to_{s}", f"{t} to {s}, {in_words(config, o)}"
                    control = f"{name}_{controls[0]}" if controls and role == "student" else None
                    if role == "control":
                        name, label = f"{name}_{source}", f"{label}; {_TEACHERS[source]}"
                    out.append(Arm(name, label, role, o, s, t, source, control=control))
    for t, s in pairs:
        if config.arms.unsanitized:
            label = f"{t} to {s}, SFT, unsanitized"
            out.append(
                Arm(
                    f"unsanitized_{t}_to_{s}",
                    label,
                    "positive_control",
                    "sft",
                    s,
                    t,
                    sanitized=False,
                )
            )
    if config.arms.self_distilled:
        for model in students:
            label = f"{model} distilled from itself (SFT)"
            out.append(
                Arm(f"self_distilled_{model}", label, "control", "sft", model, model, "self")
            )
    return out
