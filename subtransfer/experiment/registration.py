"""What a run registers before its first stage: the question, how it is answered, and of what.

`prereg.json` is the artefact of the stage `prereg`, sealed as all artefacts are, and an input of
the results. It lies at the top of the workdir as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from subtransfer.analysis import effects
from subtransfer.config.arms import Arm
from subtransfer.experiment import keys
from subtransfer.experiment.declared import ALWAYS, HOW
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import read_json
from subtransfer.store import seals
from subtransfer.store.files import atomic_write

FILE = "prereg.json"
_CROSSED = (
    "the interaction: how much more often students of their teacher's base act unsafely than "
    "students of another base, (AA + BB - AB - BA) / 2 over all pairs of bases A, B"
)
_UNCROSSED = (
    "how much more often students act unsafely than the base that they started from; of these "
    "bases alone, as they are not crossed"
)
# How a run is called, watched and laid out on devices is no part of what it asks; what models are
# is in the digests of their stages.
_NOT_REGISTERED = ("name", "models", *HOW)


def registered(config: Any, arms: Sequence[Arm], bases: Mapping[str, str]) -> dict[str, Any]:
    """What prereg.json holds, JSON types.

    Args:
      config: the validated config.
      arms: of the run.
      bases: digests of the keys of the stages that make the bases, by model.
    """
    students = [arm for arm in arms if arm.role == "student"]
    pairs = list(dict.fromkeys((arm.teacher_model, arm.model) for arm in students))
    crossed = len(bases) > 1 and len(pairs) >= len({pair[0] for pair in pairs}) ** 2 > 1
    recipe = keys.config_of(config, set(config).difference(_NOT_REGISTERED))
    recipe |= {field: config[field] for field in ALWAYS}
    # Where checkpoints lie: what they are is in the digests.
    for field in ("checkpoint", "other_checkpoint"):
        del recipe["base"][field]
    del recipe["chat"]["template"]
    return {
        "estimand": _CROSSED if crossed else _UNCROSSED,
        "rule": effects.RULE,
        "family": list(dict.fromkeys(arm.objective for arm in students)),
        "margin": config.statistics.margin,
        "confidence": config.statistics.confidence,
        "gates": dict(config.gates),
        "bound_of_audit": config.audit.bound,
        "arms": [arm.name for arm in arms],
        "bases": dict(bases),
        "pairs": [f"{teacher} > {student}" for teacher, student in pairs],
        "seeds": config.num_seeds,
        "tasks": {
            "ambiguous": config.probe.tasks,
            "ordinary": config.probe.ordinary_tasks,
            "safe": config.probe.safe_tasks,
        },
        "confirmatory": config.confirmatory,
        "recipe": recipe,
    }


def check_shipped(shipped: Collection[str], *, made_again: int | None = None) -> None:
    """Refuses bases that come with the package in a confirmatory run.

    Args:
      shipped: names of such models of the run.
      made_again: the run's seed, if it would train the package's bases once more.

    Raises:
      UserError: there is one.
    """
    if shipped:
        raise UserError(
            f"confirmatory=true, and {', '.join(sorted(shipped))} would come with the package, "
            "whose bases were looked at before: train bases in the run "
            "(--config.base.from_scratch=true)."
        )
    if made_again is not None:
        raise UserError(
            f"confirmatory=true, and with config.seed={made_again} the run trains the bases that "
            "come with the package once more, which were looked at before: give another seed."
        )


def check_unseen(workdir: Path, prereg: Path, bases: Collection[str]) -> None:
    """Refuses bases of which a workdir holds something, unless this very run was registered there.

    Args:
      workdir: of the run.
      prereg: the folder of the stage `prereg`.
      bases: digests of the keys of the stages that make the bases.

    Raises:
      UserError: it names what was made of one.
    """
    if seals.is_whole(prereg):
        return
    for marker in sorted(workdir.glob(f"*/{seals.MARKER}")):
        made = read_json(marker, {"key": {"inputs": {str: str}}}, "move its folder away")
        if set(made["key"]["inputs"].values()) & set(bases):
            raise UserError(
                f"confirmatory=true, and {marker.parent.name} was made of one of its bases before "
                "this run was registered: choose another --config.seed, whose bases nobody has "
                "looked at."
            )


def publish(prereg: Path, into: Path) -> None:
    """Copies prereg.json out of its artefact.

    Args:
      prereg: the folder of the stage.
      into: where to.

    Raises:
      UserError: the file is not as it was sealed.
    """
    seals.check(prereg)
    into.mkdir(parents=True, exist_ok=True)
    atomic_write(into / FILE, (prereg / FILE).read_text())
