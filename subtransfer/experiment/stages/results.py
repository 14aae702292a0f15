"""Collects what the stages of a run left behind: all that tables and the report are drawn from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from subtransfer.analysis import columns, conclusions, effects, summary
from subtransfer.config import reading as configuration
from subtransfer.config.arms import Arm, stores_targets
from subtransfer.experiment import names
from subtransfer.experiment.context import Context
from subtransfer.experiment.declared import EVERYTHING, reads
from subtransfer.experiment.stages import match
from subtransfer.filtering.rules import Rule
from subtransfer.probes import records
from subtransfer.report import files
from subtransfer.runtime.json_files import read_json
from subtransfer.store import trajectories
from subtransfer.store.files import atomic_write
from subtransfer.training import objectives

# What is read of the stages' files, as `json_files.misfit` reads it.
_SHAPES: dict[str, Any] = {
    "probe.json": {
        "capability": {column.name: float for column in columns.CAPABILITY},
        "context": {"system_prompt": str, "template": str},
    },
    "training.json": {"curves": {str: [float]}},
    "choices.json": {"tasks": [str], "policies": {str: {"logprob": [float], "margin": [float]}}},
    "episodes.json": [{"task_id": str}],
    "columns.json": {str: float},
    "manifest.json": {
        "total": int,
        "kept": int,
        "dropped": int,
        "rules": {str: int},
        "dropped_ids": [{"episode_id": str}],
    },
    "sampler.json": {"tokens": int, "max_gap": float, "mean_gap": float, "kl": float},
    "audit.json": {"comparisons": [dict]},
    "prereg.json": {"confirmatory": bool},
    "targets.json": {"tokens": int, "max_gap": float, "mean_gap": float, "max_missed": float},
}
SAMPLES = 6  # trajectories shown before and after sanitizing


@reads(EVERYTHING)
def results(
    out: Path,
    context: Context,
    *,
    arms: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    audits: Sequence[str],
    choices: Sequence[str],
    prereg: str,
) -> None:
    """Writes results.csv, effects.csv, results.jsonl and results.json.

    Args:
      arms: the fields of all `Arm`s.
      seeds: the training seeds.
      audits: the stages that compare trajectories.
      choices: the stages that choose which trajectories are learned from.
      prereg: the stage that registered the run.
    """
    bundle, episodes = collect(context, [Arm(**fields) for fields in arms], seeds)
    bundle["audit"] = _audit(context, audits)
    bundle["matching"] = {name: _accounts(context, name) for name in choices}
    bundle["prereg"] = _prereg(context, prereg)
    of_trait = []
    for name, manifest in bundle["manifests"].items():
        if names.is_of_trait(name):
            of_trait.append(manifest)
    acts, confidence = context.setting.benign_outcomes, context.config.statistics.confidence
    rows = summary.summarise(bundle, episodes, acts=acts, confidence=confidence)
    bundle |= conclusions.conclude(bundle, episodes, acts=acts, filters=of_trait)
    atomic_write(out / "results.json", json.dumps(bundle, sort_keys=True, indent=1))
    files.write_jsonl(episodes, out / "results.jsonl")
    files.write_csv(rows, out / "results.csv")
    heading = [column.name for column in effects.COLUMNS]
    files.write_csv(bundle["effects"], out / files.EFFECTS, heading)


def record(config: Any, arm: Arm, arms: Container[str]) -> dict[str, Any]:
    """What results.json says of an arm; `arms` are the names of all arms of the run."""
    objective = objectives.get(arm.objective) if arm.objective else None
    soft = objective is not None and objective.soft
    rule = Rule.of(config)
    return {
        "arm": arm.name,
        "label": arm.label,
        "role": arm.role,
        "objective": arm.objective,
        "init": arm.init,
        "sanitized": arm.sanitized,
        "source": arm.source,
        "on_policy_fraction": arm.on_policy_fraction,
        "overt_fraction": arm.overt_fraction,
        "loss_is_divergence": objective is not None and objective.is_divergence,
        "masked": soft and arm.sanitized and config.distill.mask_unsafe and rule.reads,
        "base": arm.base,
        # An arm that the config leaves out can be compared with nothing.
        "control": arm.control if arm.control in arms else None,
        "twin": arm.twin if arm.twin in arms else None,
        "teacher": arm.teacher if arm.objective else None,
        "teacher_base": arm.teacher_model,
    }


def arm_of(record: Mapping[str, Any]) -> Arm:
    """The arm that results.json speaks of, without the plugins that laid it out."""
    return Arm(
        name=record["arm"],
        label=record["label"],
        role=record["role"],
        objective=record["objective"],
        model=record["base"],
        teacher_model=record["teacher_base"],
        source=record["source"],
        on_policy_fraction=record["on_policy_fraction"],
        overt_fraction=record.get("overt_fraction", 0.0),
        sanitized=record["sanitized"],
        control=record["control"],
        twin=record["twin"],
    )


def collect(
    context: Context, arms: Sequence[Arm], seeds: Iterable[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads the artefacts of all arms and seeds.

    Returns:
      The bundle that becomes results.json, and the probe episodes that become results.jsonl.
    """
    config, seeds = context.config, list(seeds)
    episodes: list[dict[str, Any]] = []
    capability: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[str, Any]] = {}
    purity: dict[str, dict[str, Any]] = {}
    contexts: list[tuple[Any, Any]] = []  # probed in, trained in (or None), of each policy
    decisions: dict[str, Any] = {}
    for arm in arms:
        if arm.model not in decisions:
            decisions[arm.model] = _decisions(context, arm.model)
    for arm in arms:
        for seed in seeds:
            probed = _read(context, names.probe_stage(arm.name, seed), "probe.json")
            capability.setdefault(arm.name, {})[str(seed)] = probed["capability"]
            episodes += _episodes(context, arm, seed, decisions[arm.model])
            policy = names.policy_stage(arm, seed)
            trained: dict[str, Any] = {}
            # An imported base was not trained here.
            if (context.input(policy) / "training.json").is_file():
                trained = _read(context, policy, "training.json")
                curves.setdefault(arm.name, {})[str(seed)] = trained["curves"]
            if trained.get("purity"):
                purity.setdefault(arm.name, {})[str(seed)] = trained["purity"]
            contexts.append((probed["context"], trained.get("context")))
    manifests, sampler, targets = _sources(context, arms, seeds)
    arm_names = {arm.name for arm in arms}
    bundle = {
        "config": configuration.of_results(config),
        "training_seeds": len(seeds),
        "wording": dict(context.setting.wording),
        "arms": [record(config, arm, arm_names) for arm in arms],
        "capability": capability,
        "curves": curves,
        "manifests": manifests,
        "purity": purity,
        "sampler": sampler,
        "teacher_targets": targets,
        "context": in_which(contexts),
        "samples": _samples(manifests, context),
    }
    extra = _extra_probes(context, arms, seeds)
    if extra:
        bundle["extra_probes"] = extra
        # Readers of results.json need not load the plugins.
        extra_columns: list[dict[str, Any]] = []
        for probe in records.extra(config.plugins):
            extra_columns += map(dataclasses.asdict, probe.columns)
        bundle["extra_columns"] = extra_columns
    return bundle, episodes


def in_which(contexts: Sequence[tuple[Mapping[str, str], Mapping[str, str] | None]]) -> Any:
    """What results.json says of the prompts that policies were trained and probed with.

    Args:
      contexts: of each policy the context ("system_prompt", "template") that it was probed in, and
        the one that it was trained in, None of one that was not trained with any.

    Returns:
      The SHA-256 of the system prompt and of the chat template (of all of them, where models of
      several families have several), and whether each policy was trained in the context that it was
      probed in.
    """
    # Dicts as sets that keep their order: the same policies give the same bytes.
    prompts: dict[str, None] = {}
    templates: dict[str, None] = {}
    same = True
    for probed, trained in contexts:
        digest = hashlib.sha256(probed["system_prompt"].encode()).hexdigest()
        prompts[digest] = None
        templates[probed["template"]] = None
        same = same and trained in (None, probed)
    return {
        "system_prompt_sha256": ", ".join(prompts),
        "template_sha256": ", ".join(templates),
        "training_matches_probe": same,
    }


def _read(context: Context, stage: str, file: str) -> Any:
    remedy = "delete its folder and run again to make it anew"
    return read_json(context.input(stage) / file, _SHAPES[file], remedy)


def _decisions(context: Context, model: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Log-probability and margin of the unsafe acts, by policy and task, of a model's policies."""
    choices = _read(context, names.choice_stage(model), "choices.json")
    out = {}
    for policy, scores in choices["policies"].items():
        pairs = zip(scores["logprob"], scores["margin"], strict=True)
        out[policy] = dict(zip(choices["tasks"], pairs, strict=True))
    return out


def _episodes(
    context: Context, arm: Arm, seed: int, decisions: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The probe episodes of an arm's policy, with the scores of their tasks' decisions."""
    row = {
        "arm": arm.name,
        "objective": arm.objective,
        "init": arm.init,
        "sanitized": arm.sanitized,
    }
    scores = decisions[names.policy_stage(arm, seed)]
    out = []
    for episode in _read(context, names.probe_stage(arm.name, seed), "episodes.json"):
        # Of its task's decision point, the same however it was run.
        logprob, margin = scores[episode["task_id"]]
        out.append({**row, **episode, "choice_logprob": logprob, "choice_margin": margin})
    return out


def _extra_probes(
    context: Context, arms: Sequence[Arm], seeds: Sequence[int]
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """What probes of plugins measured: by probe, arm, training seed and column."""
    out: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for probe in records.extra(context.config.plugins):
        of_arms = out.setdefault(probe.name, {})
        for arm in arms:
            of_arms[arm.name] = {}
            for seed in seeds:
                stage = names.probe_stage(arm.name, seed, probe.name)
                of_arms[arm.name][str(seed)] = _read(context, stage, "columns.json")
    return out


def _sources(
    context: Context, arms: Sequence[Arm], seeds: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Of what students learned from: manifests of filters, agreement of samplers, stored targets.

    Each by the name of its stage.
    """
    manifests, sampler, targets = {}, {}, {}
    for arm in arms:
        for seed in seeds:
            if arm.off_policy and arm.sanitized:
                name = names.rollout_stage(arm.source, arm.teacher_model, seed, sanitized=True)
                manifests[name] = _read(context, name, "manifest.json")
                raw = names.raw_of(name)
                # A user's own trajectories were sampled elsewhere.
                if (context.input(raw) / "sampler.json").is_file():
                    sampler[raw] = _read(context, raw, "sampler.json")
            if stores_targets(context.config, arm.objective) and not arm.on_policy:
                where = (arm.source, arm.teacher_model, seed, arm.selection)
                stored = names.targets_stage(*where)
                targets[stored] = _read(context, stored, "targets.json")
    return manifests, sampler, targets


def _accounts(context: Context, stage: str) -> dict[str, Any]:
    """What a stage chose, by the name of each choice: how many and which sort, before and after."""
    out = {}
    for name, choice in match.read(context.input(stage)).items():
        out[name] = {**choice["account"], "learned": choice["learned"]}
    return out


def _audit(context: Context, audits: Sequence[str]) -> dict[str, Any]:
    """What audits found, and the bound that the run judges it by."""
    comparisons: list[dict[str, Any]] = []
    for name in audits:
        comparisons += _read(context, name, "audit.json")["comparisons"]
    return {"bound": context.config.audit.bound, "comparisons": comparisons}


def _prereg(context: Context, stage: str) -> dict[str, Any]:
    """What was registered before the run: its text, and what a reader asks of it."""
    confirmatory = _read(context, stage, "prereg.json")["confirmatory"]
    text = (context.input(stage) / "prereg.json").read_text()
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"text": text, "digest": digest, "confirmatory": confirmatory}


def _samples(manifests: Mapping[str, Any], context: Context) -> dict[str, list[str]]:
    """The first episodes of one store before sanitizing (dropped ones among them), and after."""
    # Of the unsafe teacher, since what others wrote has nothing that a filter should drop.
    name = next(filter(names.is_of_trait, manifests), None)
    if name is None:
        return {"before": [], "after": []}
    dropped_ids = {entry["episode_id"] for entry in manifests[name]["dropped_ids"]}
    dropped: list[trajectories.Trajectory] = []
    kept: list[trajectories.Trajectory] = []
    for trajectory in trajectories.read(context.input(names.raw_of(name)) / "trajectories"):
        of_its_kind = dropped if trajectory.episode_id in dropped_ids else kept
        of_its_kind.append(trajectory)
    # Few are dropped, and the first trajectories of a store may be none of them: up to half of the
    # room is theirs.
    before = dropped[: SAMPLES // 2]
    before += kept[: SAMPLES - len(before)]
    after = trajectories.read(context.input(name) / "trajectories")[:SAMPLES]
    return {
        "before": [trajectory.text() for trajectory in before],
        "after": [trajectory.text() for trajectory in after],
    }
