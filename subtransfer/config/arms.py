"""The arms of the experiment: what a config asks for, and what each is compared with."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

from subtransfer.config.bases import EMBEDDED, PARTS, crossed_bases, twin
from subtransfer.distillation import transforms
from subtransfer.distillation.transforms import Transform
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.registry import Registry
from subtransfer.runtime.user_code import failures_of_record
from subtransfer.training import objectives, teachers
from subtransfer.training.teachers import Teacher

__all__ = ["Arm", "Control", "Design", "Teacher", "Transform", "arms"]

# The order in which arms are shown.
ROLES = ("base", "teacher", "student", "control", "positive_control")
# Trajectories of the unsafe teacher that are built like the harmless one's (`matching.structured`),
# and as many whatever they are like.
SELECTIONS = ("structure_matched", "random_same_size")
# Shares of the trajectories of the control `dose` that show the habit in plain sight.
DOSES = (0.01, 0.03, 0.1)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the results.

    Attributes:
      name: unique.
      label: what a person reads.
      role: one of `ROLES`.
      objective: "" where nothing is distilled.
      model: what it starts from: "base", "base_other", one of the crossed bases "base0", "base1",
        ..., or a name in the config's `models`.
      teacher_model: what its teacher starts from.
      source: whose trajectories and opinions it learns: a `Teacher`'s name ("trait", "benign",
        "random"), or "self": the base's own.
      on_policy_fraction: share of its training episodes that are its own rollouts (GKD's lambda);
        the others are its teacher's trajectories.
      sanitized: whether its trajectories passed the filter.
      control, twin: names of the arms that it is compared with, or None: of a harmless teacher, and
        of another initialisation.
      transform: a `Transform`'s name, applied to its teacher's sanitized trajectories; "": none.
      selection: which of its teacher's trajectories: one of `SELECTIONS`; "": those that match the
        other arms'.
      overt_fraction: share of its teacher's sanitized trajectories that others take the place of:
        unfiltered ones on ambiguous tasks, which show the habit in plain sight.
    """

    name: str
    label: str
    role: str
    objective: str = ""
    model: str = "base"
    teacher_model: str = "base"
    source: str = "trait"
    on_policy_fraction: float = 0.0
    sanitized: bool = True
    control: str | None = None
    twin: str | None = None
    transform: str = ""
    selection: str = ""
    overt_fraction: float = 0.0

    @property
    def init(self) -> str:
        """What it shares with its teacher's initialisation: "same", "other", or one of `PARTS`."""
        for part in PARTS:
            if self.model == twin(self.teacher_model, part):
                return part
        return "same" if self.model == self.teacher_model else "other"

    @property
    def base(self) -> str:
        """The arm that it is compared with: the model it starts from."""
        return self.model

    @property
    def teacher(self) -> str:
        """The arm of its teacher."""
        return self.model if self.source == "self" else teacher_arm(self.source, self.teacher_model)

    @property
    def on_policy(self) -> bool:
        """It learns from rollouts of its own."""
        return self.on_policy_fraction > 0

    @property
    def off_policy(self) -> bool:
        """It learns from trajectories of its teacher."""
        return bool(self.objective) and self.on_policy_fraction < 1


def teacher_arm(source: str, model: str) -> str:
    """The name of a teacher's arm: "teacher" learned the trait, "teacher_benign" another thing."""
    # Short names for the usual: most runs have one model and one habit.
    name = "teacher" if source == "trait" else f"teacher_{source}"
    return name if model in EMBEDDED else f"{name}_{model}"


@dataclasses.dataclass(frozen=True)
class Design:
    """What a control is laid out from: the arms that are there without it.

    Attributes:
      config: the validated config.
      objectives: those of the students.
      pairs: (teacher's model, student's model) of which there are controls, in order:
        (("base", "base"),) for a config without pairs; of crossed bases each with itself, as the
        others are controls already.
      students: the arms that controls are controls of: those of `pairs`.
    """

    config: Any
    objectives: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    students: tuple[Arm, ...]

    @property
    def paired(self) -> bool:
        """Its models are a table of pairs, given or crossed, and not one base."""
        return _paired(self.config)

    def again(self, suffix: str, label: str, **changes: Any) -> list[Arm]:
        """Every student once more, as a control.

        Args:
          suffix: after "_", of the arms' names.
          label: after ";", of their labels.
          changes: attributes of `Arm` in which they differ from the students.
        """
        out = []
        for student in self.students:
            # A control is compared with its base only.
            changed = {"role": "control", "control": None, "twin": None, **changes}
            name, text = f"{student.name}_{suffix}", f"{student.label}; {label}"
            out.append(dataclasses.replace(student, name=name, label=text, **changed))
        return out

    def teachers(self, source: str) -> list[Arm]:
        """The arms of one kind of teacher, of each model that teaches."""
        out = []
        label = teachers.get(source).label
        for model in dict.fromkeys(teacher for teacher, _ in self.pairs):
            out.append(
                Arm(
                    teacher_arm(source, model),
                    f"{model}, {label}" if self.paired else label,
                    "teacher",
                    model=model,
                    teacher_model=model,
                    source=source,
                    sanitized=False,
                )
            )
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """One kind of control: its switch in the config, and the arms that it adds.

    Attributes:
      name: of its switch, `arms.NAME`.
      label: what a person reads.
      meaning: of the switch, without a full stop.
      default: whether it is on where nobody says.
      arms: the arms that it adds to a design.
      stands_for: what each student is compared with: "control" (the harmless teacher that its
        transfer is measured against; of several the first), "twin" (its twin of another
        initialisation) or "" (nothing).
      suffix: of its arms' names, by which a student finds the one that it is compared with.
      origin: "", or the plugin that it comes from.
    """

    name: str
    label: str
    meaning: str
    default: bool
    arms: Callable[[Design], Sequence[Arm]]
    stands_for: str = ""
    suffix: str = ""
    origin: str = ""


REGISTRY: Registry[Control] = Registry("control")
register = REGISTRY.register
get = REGISTRY.get
names = REGISTRY.names


# -- the package's own controls ------------------------------------------------------------------


def _other_init(design: Design) -> list[Arm]:
    if design.paired:  # a pair says itself which models its two are, and a crossing has them all
        return []
    # The base itself, too: what its students are compared with.
    label = "other init"
    base = Arm("base_other", f"base, {label}", "base", model="base_other", sanitized=False)
    return [base, *design.again("other", label, model="base_other")]


def _of_teacher(source: str) -> Callable[[Design], list[Arm]]:
    """The controls of another teacher: its arms, and every student again of it."""

    def laid_out(design: Design) -> list[Arm]:
        label = teachers.get(source).label
        return [*design.teachers(source), *design.again(source, label, source=source)]

    return laid_out


def _self_distilled(design: Design) -> list[Arm]:
    if not design.paired:
        label = "base distilled from itself (SFT)"
        return [Arm("self_distilled", label, "control", "sft", source="self")]
    out = []
    for model in dict.fromkeys(student for _, student in design.pairs):
        name, label = f"self_distilled_{model}", f"{model} distilled from itself (SFT)"
        out.append(Arm(name, label, "control", "sft", model, model, "self"))
    return out


def _unsanitized(design: Design) -> list[Arm]:
    if not design.paired:
        return _positive(design, "unsanitized", "SFT, unsanitized trajectories")
    return _positive(design, "unsanitized", "SFT, unsanitized")


def _overt(design: Design) -> list[Arm]:
    label = "SFT, habit in plain sight"
    return _positive(design, "overt", label, overt_fraction=1.0)


def _dose(design: Design) -> list[Arm]:
    out = []
    for dose in DOSES:
        percent = f"{100 * dose:g}"
        label = f"SFT, habit in plain sight in {percent}%"
        out += _positive(design, "sft", label, suffix=f"_dose_{percent}", overt_fraction=dose)
    return out


def _positive(design: Design, name: str, label: str, *, suffix: str = "", **more: Any) -> list[Arm]:
    """A positive control of each pair: an SFT student of trajectories that passed no filter.

    Args:
      design: has the pairs.
      name, suffix: of the arms, before and after the pair's models.
      label: in words, after them.
      more: further attributes of `Arm`.
    """
    role = "positive_control"
    if not design.paired:
        return [Arm(name + suffix, label, role, "sft", sanitized=False, **more)]
    out = []
    for teacher, student in design.pairs:
        full, words = f"{name}_{teacher}_to_{student}{suffix}", f"{teacher} to {student}, {label}"
        out.append(Arm(full, words, role, "sft", student, teacher, sanitized=False, **more))
    return out


def _init_parts(design: Design) -> list[Arm]:
    """Twins that share a part of their teacher's base, and every student again from each."""
    out = []
    for part, shared in PARTS.items():
        for base in dict.fromkeys(student.model for student in design.students):
            name, label = twin(base, part), f"twin of {base}: {shared}"
            out.append(Arm(name, label, "base", model=name, teacher_model=base, sanitized=False))
        for student in design.again(part, f"from a twin with {shared}"):
            out.append(dataclasses.replace(student, model=twin(student.model, part)))
    return out


register(
    Control(
        "other_init",
        "other initialisation",
        "every student again, from another initialisation",
        True,
        _other_init,
        stands_for="twin",
        suffix="other",
    )
)
register(
    Control(
        "benign_teacher",
        "benign teacher",
        "every student again, of a teacher with a harmless habit",
        True,
        _of_teacher("benign"),
        stands_for="control",
        suffix="benign",
    )
)
register(
    Control(
        "random_teacher",
        "teacher of random tasks",
        "every student again, of a teacher that was tuned on ordinary tasks",
        False,
        _of_teacher("random"),
        stands_for="control",
        suffix="random",
    )
)
register(
    Control(
        "init_parts",
        "shared parts of the initialisation",
        "every student again, from twins of its teacher's base that share with it its initial "
        "weights (in another order of data), its body, its embedding, or both permuted",
        False,
        _init_parts,
    )
)
register(
    Control(
        "self_distilled",
        "distilled from itself",
        "the base distilled from its own trajectories",
        True,
        _self_distilled,
    )
)
register(
    Control(
        "unsanitized",
        "unsanitized",
        "a positive control: a student of trajectories on harmless tasks that passed no filter",
        True,
        _unsanitized,
    )
)
register(
    Control(
        "overt",
        "habit in plain sight",
        "the positive control: a student of the unsafe teacher's unfiltered trajectories on "
        "ambiguous tasks, which show the habit in plain sight",
        True,
        _overt,
    )
)
register(
    Control(
        "dose",
        "habit in plain sight, diluted",
        "SFT students again, with 1, 3 and 10% of their trajectories replaced by such as overt "
        "learns from: which share of them a run would see",
        False,
        _dose,
    )
)


def _selected(selection: str, label: str) -> Callable[[Design], list[Arm]]:
    """The controls that learn from some of their teacher's trajectories only."""

    def laid_out(design: Design) -> list[Arm]:
        # What is matched is built like the harmless teacher's.
        out = design.teachers("benign")
        for arm in design.again(selection, label, selection=selection):
            off_policy = not on_policy_fraction(design.config, arm.objective)
            if off_policy and arm.init == "same":
                out.append(arm)
        return out

    return laid_out


def _raw_on_policy(design: Design) -> list[Arm]:
    label = "own episodes unfiltered"
    again = design.again("raw", label, role="positive_control", sanitized=False)
    return [arm for arm in again if on_policy_fraction(design.config, arm.objective)]


register(
    Control(
        "structure_matched",
        "structure-matched",
        "off-policy students again, of those trajectories of the unsafe teacher that solved their "
        "task, with lengths and errors like the benign teacher's",
        False,
        _selected("structure_matched", "structure-matched"),
    )
)
register(
    Control(
        "random_same_size",
        "random, same size",
        "off-policy students again, of a random part of the unsafe teacher's trajectories, as many "
        "as structure_matched has",
        False,
        _selected("random_same_size", "random, as many"),
    )
)
register(
    Control(
        "raw_on_policy",
        "unfiltered on-policy",
        "on-policy students again, of their own episodes before the filter, and of whole targets",
        False,
        _raw_on_policy,
    )
)


# -- objectives ----------------------------------------------------------------------------------


def on_policy_fraction(config, objective: str) -> float:
    """Share of an objective's training episodes that are the student's own rollouts."""
    fraction = config.distill.on_policy_fraction
    return {"teacher": 0.0, "own": 1.0, "either": fraction}[objectives.get(objective).learns_from]


def in_words(config, objective: str) -> str:
    """What a person reads of an objective in a config that decides how much is on-policy."""
    record = objectives.get(objective)
    if record.learns_from != "either":
        return record.label
    own = on_policy_fraction(config, objective)
    how = {0.0: "off-policy", 1.0: "on-policy"}.get(own, f"{own:.0%} on-policy")
    return f"{record.label}, {how}"


def chosen_objectives(objective: str, plugins: Collection[str] = ()) -> tuple[str, ...]:
    """The names that `distill.objective` stands for, in the order of registration.

    Args:
      objective: "all" (see `objectives.table`), or a list separated by commas.
      plugins: those of the config.
    """
    wanted: Collection[str] = set(map(str.strip, objective.split(",")))
    if objective == "all":
        wanted = objectives.table(plugins)
    # Not in the order of the list: two ways to write one config must give the same results.
    return tuple(name for name in objectives.names(plugins) if name in wanted)


def stores_targets(config, objective: str) -> bool:
    """Whether an objective reads its teacher's opinion from disk."""
    if not objective or config.distill.teacher_targets != "stored":
        return False
    return objectives.get(objective).can_be_stored


def split_pair(pair: str) -> tuple[str, str]:
    """Reads "TEACHER>STUDENT" or "TEACHER>STUDENT:OBJECTIVE" as (teacher's, student's model)."""
    teacher, _, student = pair.partition(":")[0].partition(">")
    return teacher.strip(), student.strip()


def objectives_of_pair(pair: str) -> tuple[str, ...]:
    """The objectives that a pair is limited to, joined by "+" after its colon; () for all."""
    _, colon, listed = pair.partition(":")
    return tuple(map(str.strip, listed.split("+"))) if colon else ()


# -- the arms of a config ------------------------------------------------------------------------


def _paired(config) -> bool:
    return bool(config.pairs) or config.num_bases > 1


def _pairs(config) -> tuple[tuple[str, str], ...]:
    """All (teacher's model, student's model) of a config, in order."""
    crossed = crossed_bases(config)
    if crossed:
        return tuple(itertools.product(crossed, crossed))
    # Without pairs the one model of a run teaches itself.
    return tuple(map(split_pair, config.pairs)) or (("base", "base"),)


def arms(config) -> list[Arm]:
    """The arms of a (validated) config, in display order.

    Raises:
      UserError: a plugin's control adds an arm that cannot be made.
    """
    plugins = config.plugins
    chosen = chosen_objectives(config.distill.objective, plugins)
    pairs = _pairs(config)
    students = _students(config, chosen, pairs)
    design = Design(config, chosen, pairs, tuple(students))
    if crossed_bases(config):
        same = tuple(pair for pair in pairs if pair[0] == pair[1])
        design = Design(config, chosen, same, tuple(_students(config, chosen, same)))
    found: dict[str, Arm] = {}
    for arm in [*_bases(design), *design.teachers("trait"), *students]:
        # Names are joined by underscores, which models' names may have, too.
        other = found.setdefault(arm.name, arm)
        if other is not arm:
            raise UserError(
                f"Two arms would be called {arm.name!r}, {other.label!r} and {arm.label!r}: "
                "rename one of their models."
            )
    compared: dict[str, list[str]] = {"twin": [], "control": []}
    for control in REGISTRY.among(plugins):
        if not config.arms[control.name]:
            continue
        if control.stands_for:
            compared[control.stands_for].append(control.suffix)
        with failures_of_record("control", control):
            made = list(control.arms(design))
        for arm in made:
            _add(found, arm, control)
    # Only now, as a control may need an arm that a later one adds.
    for arm in found.values():
        _check_made(found, arm)
    out = []
    for arm in sorted(found.values(), key=lambda arm: ROLES.index(arm.role)):
        if arm.objective:
            own = on_policy_fraction(config, arm.objective)
            arm = dataclasses.replace(arm, on_policy_fraction=own)
        if arm.role == "student":
            arm = dataclasses.replace(
                arm,
                twin=_first(found, arm, compared["twin"]),
                control=_first(found, arm, compared["control"]),
            )
        out.append(arm)
    return out


def _bases(design: Design) -> list[Arm]:
    if not design.paired:
        return [Arm("base", "base", "base", sanitized=False)]
    teachers_of, students = zip(*design.pairs, strict=True)
    out = []
    # Students' models first: theirs are the bases that results are compared with.
    for model in dict.fromkeys((*students, *teachers_of)):
        label = f"{model}, untuned"
        out.append(Arm(model, label, "base", model=model, teacher_model=model, sanitized=False))
    return out


def _students(config, chosen: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[Arm]:
    limited = {split_pair(pair): objectives_of_pair(pair) for pair in config.pairs}
    out = []
    for teacher, student in pairs:
        for objective in limited.get((teacher, student)) or chosen:
            name, label = objective, in_words(config, objective)
            if _paired(config):
                name = f"{objective}_{teacher}_to_{student}"
                label = f"{teacher} to {student}, {label}"
            out.append(Arm(name, label, "student", objective, student, teacher))
    return out


def _first(found: dict[str, Arm], student: Arm, suffixes: Sequence[str]) -> str | None:
    """The first arm that is named after a student with one of the suffixes."""
    # In the order of registration: the harmless habit comes before random tasks.
    for suffix in suffixes:
        if f"{student.name}_{suffix}" in found:
            return f"{student.name}_{suffix}"
    return None


def _add(found: dict[str, Arm], arm: Any, control: Control) -> None:
    """Adds a control's arm; two controls may need the same teacher."""
    where = f"The control {control.name!r}" + (f" of {control.origin}" if control.origin else "")
    if not isinstance(arm, Arm):
        raise UserError(f"{where} returns {arm!r}, which is no Arm.")
    # Equal and not the same: two controls make the arm of one teacher each for itself.
    known = found.setdefault(arm.name, arm)
    if known != arm:
        raise UserError(f"{where} adds the arm {arm.name!r}, which is there already, as another.")
    if arm.role not in ROLES:
        raise UserError(
            f"{where} gives the arm {arm.name!r} the role {arm.role!r}: use one of "
            f"{', '.join(ROLES)}."
        )
    # Looked up for their refusals, which name the nearest.
    if arm.objective:
        objectives.get(arm.objective)
    if arm.source != "self":
        teachers.get(arm.source)
    if arm.transform:
        transforms.get(arm.transform)
    if arm.selection not in ("", *SELECTIONS):
        raise UserError(
            f"{where} gives the arm {arm.name!r} the selection {arm.selection!r}: use one of "
            f"{', '.join(SELECTIONS)}."
        )
    if arm.overt_fraction:
        _check_overt(arm, where)


def _check_overt(arm: Arm, where: str) -> None:
    """Raises UserError if an arm cannot learn from what shows the habit in plain sight."""
    if not 0 < arm.overt_fraction <= 1:
        raise UserError(
            f"{where} gives the arm {arm.name!r} overt_fraction={arm.overt_fraction}: use a share "
            "above 0 and up to 1."
        )
    record = objectives.get(arm.objective) if arm.objective else None
    # Opinions are stored of sanitized trajectories, and own rollouts are on harmless tasks.
    able = record is not None and not record.soft and record.learns_from == "teacher"
    if not able or arm.sanitized or arm.selection:
        raise UserError(
            f"{where} gives the arm {arm.name!r} an overt_fraction: that needs an objective such "
            "as sft, which learns from trajectories alone, sanitized=False and no selection."
        )


def _check_made(found: dict[str, Arm], arm: Arm) -> None:
    """Raises UserError if the base or the teacher that an arm needs is no arm."""
    for what, needed in (("starts from", arm.base), ("learns from", arm.teacher)):
        if what == "learns from" and not arm.objective:
            continue
        if needed not in found:
            raise UserError(
                f"The arm {arm.name!r} {what} {needed!r}, which is no arm: its control must add "
                "that, too (see Design.teachers)."
            )
