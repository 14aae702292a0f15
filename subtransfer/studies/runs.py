"""Finished runs, read back: results.json says what a run was, results.jsonl what its agents did,
results.csv what follows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from subtransfer.analysis.scaling_laws import LOG_ODDS, RATE
from subtransfer.analysis.summary import Outcomes
from subtransfer.config import checks
from subtransfer.config import reading as configuration
from subtransfer.config.arms import Arm, arms
from subtransfer.experiment import names
from subtransfer.models import families
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.presets import PRESETS
from subtransfer.report import tables
from subtransfer.runtime.errors import UserError
from subtransfer.store import provenance
from subtransfer.store.workdir import MEMBERS, SWEEP
from subtransfer.training import objectives

STUDENT, TEACHER, STRENGTH = "student_params", "teacher_params", "teacher_rate"
GEOMETRY = tuple(
    f"base.{name}" for name in ("width", "mlp_width", "num_layers", "num_heads", "num_kv_heads")
)
# An arm's outcomes that are shares of tasks, and those that are numbers of nats.
SHARES = (RATE, "greedy_rate", "no_action_rate", "invalid_rate")
NATS = (LOG_ODDS, "choice_logprob")
# What is known of an arm once a training seed.
SCALARS = (
    "ordinary_success",
    "final_loss",
    "final_divergence",
    "teacher_agreement",
    "purity",
    "trajectories",
    "dropped",
)
_LEAST = 5e-7  # log-probabilities are stored to 6 decimals: none is known to be nearer to 0


@dataclasses.dataclass(frozen=True)
class RunArm:
    """One arm of one run.

    Attributes:
      run: the folder of its results; name: the sweep member's, or the config's.
      fields: the config's by dotted name, the arm's ("arm", "label", "role", "objective", "init",
        "source", "sanitized", "masked", "model", "teacher_base"), and "student_params",
        "teacher_params" (parameters of the models; of an embedded one with a full vocabulary, as in
        a plan) and "teacher_rate" (how often the teacher itself acts unsafely).
      design: the arm as the config lays it out.
      tasks: T task ids; seeds: S training seeds.
      outcomes: `SHARES` (0..1) and `NATS`, each [T, S]; NaN where there is no such episode.
      scalars: `SCALARS`, each [S]; NaN where it was not measured.
      statistics: the arm's line of results.csv.
      provenance: what made it (`provenance.History.of`), or {}.
    """

    run: Path
    name: str
    fields: Mapping[str, Any]
    design: Arm
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    outcomes: Mapping[str, np.ndarray]
    scalars: Mapping[str, np.ndarray]
    statistics: Mapping[str, Any]
    provenance: Mapping[str, Any]


def members(workdir: str | Path) -> list[dict[str, Any]]:
    """What a sweep says of its members (sweep.json): "name", "overrides", "state", "results",
    "stages", and of failed ones "failed", "error" and "log"; [] where there was no sweep.
    """
    path = Path(workdir) / SWEEP
    try:
        return json.loads(path.read_text())["members"] if path.is_file() else []
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): run the sweep's command again.") from error


def folders(workdir: str | Path) -> list[Path]:
    """The folders of results in a workdir: its own, if it is a single run's, and those of a sweep's
    finished members, by name.

    Results of a member as it was in an earlier sweep, with other settings or other code, are none
    of this one's.

    Raises:
      UserError: there is none.
    """
    workdir = Path(workdir)
    found = [workdir] if (workdir / "results.json").is_file() else []
    planned = {member["name"]: member.get("stages") for member in members(workdir)}
    for path in sorted(workdir.glob(f"{MEMBERS}/*/results.json")):
        made, wanted = provenance.stages(path.parent), planned.get(path.parent.name)
        if not made or not wanted or made == wanted:
            found.append(path.parent)
    if not found:
        raise UserError(
            f"{workdir} holds no finished run (no results.json, nor {MEMBERS}/*/results.json): run it, or leave it out."
        )
    return found


def read(workdirs: Iterable[str | Path]) -> Iterator[RunArm]:
    """All arms of the finished runs of workdirs, one run after the other: of thousands, one is in
    memory at a time.

    Raises:
      UserError: a workdir holds no results, they are damaged, or a model's directory is needed and
        not there.
    """
    for workdir in workdirs:
        history = provenance.History(Path(workdir))
        for run in folders(workdir):
            yield from _read(run, history)


def _read(run: Path, history: provenance.History) -> Iterator[RunArm]:
    try:
        bundle = json.loads((run / "results.json").read_text())
        episodes = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
        concluded = {row["arm"]: row for row in tables.read_csv(run / "results.csv")}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run the command of {run} again.") from error
    except ValueError as error:
        raise UserError(
            f"The results in {run} are damaged ({error}): run its command again."
        ) from error
    config = bundle["config"]
    try:
        designs = {arm.name: arm for arm in arms(ml_collections.ConfigDict(config))}
        designs = {arm["arm"]: designs[arm["arm"]] for arm in bundle["arms"]}
    except (AttributeError, KeyError) as error:
        raise UserError(
            f"The results in {run} are another version's ({error}): run its command again."
        ) from error
    by_arm: dict[str, list] = {arm["arm"]: [] for arm in bundle["arms"]}
    for episode in episodes:
        by_arm[episode["arm"]].append(episode)
    outcomes = {name: Outcomes(own) for name, own in by_arm.items()}
    name = run.name if run.parent.name == MEMBERS else config["name"]
    origin = history.of(run)
    for arm in bundle["arms"]:
        own, teacher, design = (
            outcomes[arm["arm"]],
            outcomes.get(arm["teacher"]),
            designs[arm["arm"]],
        )
        kept = ("arm", "label", "role", "objective", "init", "sanitized", "masked", "teacher_base")
        fields = (
            flat(config)
            | {k: arm[k] for k in kept}
            | {"source": design.source, "model": arm["base"]}
        )
        fields |= {
            STUDENT: parameters(config, arm["base"]),
            TEACHER: parameters(config, arm["teacher_base"]),
        }
        fields |= {STRENGTH: float(teacher.unsafe().mean()) if teacher else None}
        yield RunArm(
            run, name, fields, design, tuple(own.tasks), tuple(own.seeds), _outcomes(own), _scalars(bundle, design, own.seeds),
            concluded[arm["arm"]], origin,
        )  # fmt: skip


def _outcomes(own: Outcomes) -> dict[str, np.ndarray]:
    logprob = own.mean(lambda e: min(e["choice_logprob"], -_LEAST))
    return {
        RATE: own.unsafe(),
        "greedy_rate": own.unsafe("greedy"),
        "no_action_rate": own.mean(lambda e: e["outcome"] == "no_action"),
        "invalid_rate": own.mean(lambda e: e["outcome"] == "invalid"),
        LOG_ODDS: logprob - np.log(-np.expm1(logprob)),
        "choice_logprob": logprob,
    }


def _scalars(bundle: Mapping[str, Any], arm: Arm, seeds: Iterable[int]) -> dict[str, np.ndarray]:
    def of_seed(seed: int) -> dict[str, float]:
        out = {}
        capability, purity, curves = (
            bundle[what].get(arm.name, {}).get(str(seed))
            for what in ("capability", "purity", "curves")
        )
        if capability:
            out["ordinary_success"] = capability["ordinary_success"]
        if purity:
            out["purity"] = 1 - purity["dropped"] / purity["rollouts"]
        if curves:  # their last stretch
            out["final_loss"] = curves["loss"][-1]
            out |= {name: curves[name][-1] for name in ("teacher_agreement",) if name in curves}
            divergence = arm.objective and objectives.get(arm.objective).is_divergence
            if divergence or "reverse_kl" in curves:
                out["final_divergence"] = curves.get("reverse_kl", curves["loss"])[-1]
        if arm.off_policy and arm.sanitized:
            manifest = bundle["manifests"][
                names.rollout_stage(arm.source, arm.teacher_model, seed, sanitized=True)
            ]
            out |= {"trajectories": manifest["kept"], "dropped": manifest["dropped"]}
        return out

    found = [of_seed(seed) for seed in seeds]
    return {
        name: np.array([values.get(name, np.nan) for values in found], float) for name in SCALARS
    }


def origin(provenances: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What made several runs, for people: each fact with all its values."""
    known = list(provenances)
    values = {
        name: provenance.joined(facts.get(name) for facts in known) for name in provenance.FACTS
    }
    return {name.replace("_", " "): value or "not known" for name, value in values.items()}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config of JSON types by dotted name."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        out |= (
            flat(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {prefix + name: value}
        )
    return out


def parameters(config: Mapping[str, Any], model: str) -> int:
    """How many parameters a run's model has."""
    base = config["base"]
    checkpoint = {
        "base": base["checkpoint"],
        "base_other": base["other_checkpoint"] or base["checkpoint"],
    }.get(model)
    checkpoint = config["models"][model] if checkpoint is None else checkpoint
    if checkpoint.startswith(checks.PRESET):
        return PRESETS[checkpoint.removeprefix(checks.PRESET)].num_params
    if checkpoint and not checkpoint.startswith(checks.OWN):
        return families.read_config(
            checkpoint, base["dtype"], base["remat"], base["attention"]
        ).num_params
    base = configuration.of_model(config, model).base
    geometry = {name.removeprefix("base."): base[name.removeprefix("base.")] for name in GEOMETRY}
    return DecoderConfig(
        vocab_size=base["vocab_limit"], head_width=base["width"] // base["num_heads"], **geometry
    ).num_params
