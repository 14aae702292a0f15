"""Finished runs, read back from their files: each arm with its outcomes as arrays.

Nothing is computed anew from artefacts: results.json says what a run was, results.jsonl what its
agents did, results.csv what follows (`report.files`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.analysis import columns, summary
from subtransfer.analysis import outcomes as episodes_of
from subtransfer.analysis.columns import Column
from subtransfer.analysis.outcomes import Outcomes
from subtransfer.analysis.scaling_laws import LOG_ODDS, RATE
from subtransfer.config import checks
from subtransfer.config import reading as configuration
from subtransfer.config.arms import Arm
from subtransfer.experiment import names
from subtransfer.experiment.stages import results
from subtransfer.models import families
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.presets import PRESETS
from subtransfer.report import files
from subtransfer.report.files import RunResults
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import misfit, read_json
from subtransfer.store import provenance
from subtransfer.store.workdir import MEMBERS, SWEEP

STUDENT, TEACHER, STRENGTH = "student_params", "teacher_params", "teacher_rate"
# What sets the size of an embedded model, beside its vocabulary.
GEOMETRY = (
    "base.width",
    "base.mlp_width",
    "base.num_layers",
    "base.num_heads",
    "base.num_kv_heads",
)
# What is known of each task and training seed.
OF_TASKS = (
    Column(RATE, "rate", "share of the probe's tasks with an unsafe first action", "share"),
    Column("greedy_rate", "greedy", "the same when actions are not sampled", "share"),
    Column("no_action_rate", "no action", "share without any substantive action", "share"),
    Column("invalid_rate", "invalid", "share whose first action is malformed", "share"),
    Column(
        LOG_ODDS,
        "log-odds",
        "log-odds of an unsafe act at the decision point, mean over tasks",
        "nats",
    ),
    Column("choice_logprob", "log-prob.", "log-probability of the same", "nats"),
)
# What is known of each training seed.
OF_SEEDS = (
    *columns.CAPABILITY,
    Column("final_loss", "loss", "training loss in the last stretch"),
    Column(
        "final_divergence",
        "divergence",
        "the same of objectives whose loss is a divergence from the teacher, a token",
        "nats",
    ),
    Column("teacher_agreement", "agreement", "with the teacher's likeliest token", "share"),
    Column("purity", "purity", "share of own rollouts that pass the filter", "share"),
    Column("trajectories", "trajectories", "of the teacher's, what the filter left"),
    Column("dropped", "dropped", "of the teacher's, what the filter dropped"),
)
SHARES = tuple(column.name for column in OF_TASKS if column.unit == "share")
NATS = tuple(column.name for column in OF_TASKS if column.unit == "nats")
SCALARS = tuple(column.name for column in OF_SEEDS)

# Log-probabilities are stored to 6 decimals: none is known to be nearer to 0.
_NEAREST_TO_ZERO = 5e-7
_OF_RECORD = ("arm", "label", "role", "objective", "init", "sanitized", "masked", "teacher_base")
# The shapes of sweep.json, as far as it is read here, and of a member that failed.
_MEMBER = {
    "name": str,
    "overrides": {str: object},
    "state": str,
    "results": str,
    "stages": {str: str},
}
_FAILED = {"name": str, "failed": str, "error": str, "log": str}
_SWEEP_REMEDY = "run the sweep's command again"


@dataclasses.dataclass(frozen=True)
class RunArm:
    """One arm of one run.

    Attributes:
      run: the folder of its results.
      name: the sweep member's, or the config's.
      fields: the config's by dotted name; the arm's ("arm", "label", "role", "objective", "init",
        "source", "sanitized", "masked", "model", "teacher_base", "student_base"); and
        "student_params", "teacher_params" (parameters of the models; of an embedded one with a full
        vocabulary, as in a plan) and "teacher_rate" (how often the teacher itself acts unsafely).
      design: the arm as the config laid it out.
      tasks: T task ids.
      seeds: S training seeds.
      outcomes: `SHARES` (0 to 1) and `NATS`, each [T, S]; NaN where there is no such episode.
      scalars: `SCALARS` and what further probes measured, each [S]; NaN where it was not measured.
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
    """Returns what a sweep says of its members (sweep.json); [] where there was no sweep.

    Each has "name", "overrides", "state", "results", "stages", and a failed one "failed", "error"
    and "log".

    Raises:
      UserError: sweep.json is damaged.
    """
    path = Path(workdir) / SWEEP
    sweep = read_json(path, {"members": [_MEMBER]}, _SWEEP_REMEDY, default={"members": []})
    for member in sweep["members"]:
        problem = misfit(member, _FAILED) if member["state"] == "failed" else ""
        if problem:
            raise UserError(f"{path} does not hold what it should ({problem}): {_SWEEP_REMEDY}.")
    return sweep["members"]


def folders(workdir: str | Path) -> list[Path]:
    """Returns the folders of results in a workdir, by name.

    They are its own, if it is a single run's, and those of a sweep's finished members. Results of a
    member as it was in an earlier sweep, with other settings or other code, are none of this one's.

    Raises:
      UserError: there is none.
    """
    workdir = Path(workdir)
    found = [workdir] if (workdir / files.BUNDLE).is_file() else []
    planned = {}
    for member in members(workdir):
        planned[member["name"]] = member["stages"]
    # Sorted, since the file system's order differs between machines.
    for path in sorted(workdir.glob(f"{MEMBERS}/*/{files.BUNDLE}")):
        made, wanted = provenance.stages(path.parent), planned.get(path.parent.name)
        # Without stages.json nothing can be said against them, as in workdirs of single runs.
        if not made or not wanted or made == wanted:
            found.append(path.parent)
    if not found:
        raise UserError(
            f"{workdir} holds no finished run (no {files.BUNDLE}, nor {MEMBERS}/*/{files.BUNDLE}): "
            "run it, or leave it out."
        )
    return found


def read(workdirs: Iterable[str | Path]) -> Iterator[RunArm]:
    """Reads all arms of the finished runs of workdirs, one run after the other.

    Of thousands of runs, one is in memory at a time.

    Raises:
      UserError: a workdir is given twice or holds no results, they are damaged, or a model's
        directory is needed and not there.
    """
    found = list(map(Path, workdirs))
    refuse_doubles(found)
    for workdir in found:
        history = provenance.History(workdir)
        for run in folders(workdir):
            yield from _arms_of(run, history)


def refuse_doubles(workdirs: Iterable[Path]) -> None:
    """Refuses to count the runs of one workdir twice.

    Raises:
      UserError: a workdir is given twice.
    """
    seen = set()
    for workdir in workdirs:
        # Two names of one folder are the same runs.
        if workdir.resolve() in seen:
            raise UserError(f"{workdir} is given twice: name each workdir once.")
        seen.add(workdir.resolve())


def further_names(workdirs: Iterable[str | Path]) -> list[str]:
    """Returns columns that only some runs have: settings, and what further probes measured.

    Raises:
      UserError: a workdir holds no results, or they are damaged.
    """
    names: dict[str, None] = {}
    for workdir in workdirs:
        for run in folders(workdir):
            bundle = files.read_bundle(run)
            names |= dict.fromkeys(flat(bundle["config"], "config."))
            names |= dict.fromkeys(columns.extra_names(bundle))
    return sorted(names)


def _arms_of(run: Path, history: provenance.History) -> Iterator[RunArm]:
    found = files.read(run)
    config = found.bundle["config"]
    settings = flat(config)
    lines = {}
    for row in found.rows:
        lines[row["arm"]] = row
    outcomes = episodes_of.by_arm(found.episodes)
    name = run.name if run.parent.name == MEMBERS else config["name"]
    made_of = history.of(run)
    for record in found.bundle["arms"]:
        arm = results.arm_of(record)
        own, teacher = outcomes[arm.name], outcomes.get(record["teacher"])
        try:
            sizes = {
                STUDENT: parameters(config, record["base"]),
                TEACHER: parameters(config, record["teacher_base"]),
            }
            scalars = _scalars(found, record, own.seeds)
        # The shapes of the files were checked, the config's fields were not: other versions have
        # others, of other types.
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"The results in {run} are another version's ({error}): run its command again."
            ) from error
        fields = dict(settings)
        for key in _OF_RECORD:
            fields[key] = record[key]
        fields |= sizes | {"source": arm.source, "model": record["base"]}
        # With the teacher's base a pair, which only students are of.
        fields["student_base"] = record["base"] if arm.objective else None
        # The base itself has no teacher.
        fields[STRENGTH] = float(teacher.unsafe().mean()) if teacher else None
        yield RunArm(
            run=run,
            name=name,
            fields=fields,
            design=arm,
            tasks=tuple(own.tasks),
            seeds=tuple(own.seeds),
            outcomes=_of_tasks(own),
            scalars=scalars,
            statistics=lines[arm.name],
            provenance=made_of,
        )


def _of_tasks(own: Outcomes) -> dict[str, np.ndarray]:
    # Log-odds of a log-probability of 0 would be infinite.
    logprob = own.mean(lambda episode: min(episode["choice_logprob"], -_NEAREST_TO_ZERO))
    return {
        RATE: own.unsafe(),
        # Of one greedy episode a task, so 0 or 1 for each task and seed.
        "greedy_rate": own.unsafe("greedy"),
        "no_action_rate": own.share("no_action"),
        "invalid_rate": own.share("invalid"),
        # log p - log(1 - p); `expm1` keeps the digits of 1 - p where p is near to 1.
        LOG_ODDS: logprob - np.log(-np.expm1(logprob)),
        "choice_logprob": logprob,
    }


def _scalars(
    found: RunResults, record: Mapping[str, Any], seeds: Iterable[int]
) -> dict[str, np.ndarray]:
    """What is known of an arm once a training seed, [S] each."""
    known = [_of_seed(found.bundle, record, seed) for seed in seeds]
    # Every arm has every column, so that arms of all kinds can stand in one table.
    out = {}
    for name in (*SCALARS, *columns.extra_names(found.bundle)):
        out[name] = np.array([values.get(name, np.nan) for values in known], float)
    return out


def _of_seed(bundle: Mapping[str, Any], record: Mapping[str, Any], seed: int) -> dict[str, float]:
    """What is known of an arm's training of one seed; what was not measured is left out."""
    arm = results.arm_of(record)

    def recorded(what: str) -> Mapping[str, Any] | None:
        return bundle[what].get(arm.name, {}).get(str(seed))

    out: dict[str, float] = {}
    capability, purity, curves = map(recorded, ("capability", "purity", "curves"))
    if capability:
        for column in columns.CAPABILITY:
            out[column.name] = capability[column.name]
    # Only students that learn from rollouts of their own have a purity.
    if purity:
        out["purity"] = 1 - (summary.own_traces({str(seed): purity}) or 0.0)
    if curves:
        # The last point of a curve is the mean over its last stretch.
        out["final_loss"] = curves["loss"][-1]
        # What a curve has depends on the objective: only some compare with the teacher's choice.
        if "teacher_agreement" in curves:
            out["teacher_agreement"] = curves["teacher_agreement"][-1]
        if record["loss_is_divergence"] or "reverse_kl" in curves:
            out["final_divergence"] = curves.get("reverse_kl", curves["loss"])[-1]
    # What a student generates itself is no file of trajectories with a manifest.
    if arm.off_policy and arm.sanitized:
        stage = names.rollout_stage(arm.source, arm.teacher_model, seed, sanitized=True)
        manifest = bundle["manifests"][stage]
        out |= {"trajectories": manifest["kept"], "dropped": manifest["dropped"]}
    return out | columns.extra_values(bundle, arm.name, str(seed))


def origin(provenances: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns what made several runs, for people: each fact with all its values."""
    known = list(provenances)
    out = {}
    for fact in provenance.FACTS:
        values = provenance.joined(facts.get(fact) for facts in known)
        out[fact.replace("_", " ")] = values or "not known"
    return out


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a config of JSON types by dotted name."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out


def parameters(config: Mapping[str, Any], model: str) -> int:
    """Returns how many parameters a run's model has.

    Raises:
      UserError: the model's directory is needed and not there.
    """
    base = config["base"]
    if model == "base":
        checkpoint = base["checkpoint"]
    elif model == "base_other":
        checkpoint = base["other_checkpoint"] or base["checkpoint"]
    else:
        checkpoint = config["models"].get(model, "")  # crossed bases are embedded
    # A preset's own file says its size, so that a plan needs no weights.
    if checkpoint.startswith(checks.PRESET):
        return PRESETS[checkpoint.removeprefix(checks.PRESET)].num_params
    if checkpoint and not checkpoint.startswith(checks.OWN):
        return families.read_config(
            checkpoint, base["dtype"], base["remat"], base["attention"]
        ).num_params
    # An embedded model: its geometry is in the config, but for a vocabulary that is not full.
    base = configuration.of_model(config, model).base
    geometry = {}
    for field in GEOMETRY:
        name = field.removeprefix("base.")
        geometry[name] = base[name]
    return DecoderConfig(
        vocab_size=base["vocab_limit"], head_width=base["width"] // base["num_heads"], **geometry
    ).num_params
