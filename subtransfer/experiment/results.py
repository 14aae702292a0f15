"""Collects what the stages of a run left behind into one bundle: all that the tables and the report
are drawn from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from subtransfer.config import reading as configuration
from subtransfer.config.arms import (
    Arm,
    base_stage,
    rollout_stage,
    stores_targets,
    targets_stage,
    teacher_stage,
)
from subtransfer.settings.base import Setting
from subtransfer.store import artifacts, provenance, trajectories

FILES = ("results.csv", "results.jsonl", "results.json", "report.html")
SAMPLES = 6  # trajectories shown before and after sanitizing


def policy_stage(arm: Arm, seed: int) -> str:
    """The stage whose artefact is the arm's policy."""
    if arm.role == "base":
        return base_stage(arm.model)
    if arm.role == "teacher":
        return teacher_stage(arm.source, arm.model, seed)
    return f"student.{arm.name}.seed{seed}"


def choice_stage(model: str) -> str:
    """The stage that scores the decisions of all policies of a model."""
    return f"choice.{model}"


def record(config, arm: Arm, names: Container[str]) -> dict[str, Any]:
    """What results.json says of an arm; `names`: of all arms of the run."""
    return {
        "arm": arm.name,
        "label": arm.label,
        "role": arm.role,
        "objective": arm.objective,
        "init": arm.init,
        "sanitized": arm.sanitized,
        "masked": bool(
            arm.objective not in ("", "sft") and arm.sanitized and config.distill.mask_unsafe
        ),
        "base": arm.base,
        "control": arm.control if arm.control in names else None,
        "twin": arm.twin if arm.twin in names else None,
        "teacher": arm.teacher if arm.objective else None,
        "teacher_base": arm.teacher_model,
    }


def collect(
    config, setting: Setting, arms: Sequence[Arm], seeds: Iterable[int], path: Callable[[str], Path]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns (the bundle that becomes results.json, the probe episodes that become
    results.jsonl).
    """
    episodes: list[dict[str, Any]] = []
    capability: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[str, Any]] = {}
    purity: dict[str, dict[str, Any]] = {}
    scored: dict[str, dict[str, dict[str, list[float]]]] = {}
    for model in dict.fromkeys(arm.model for arm in arms):
        choices = json.loads((path(choice_stage(model)) / "choices.json").read_text())
        place = {task: i for i, task in enumerate(choices["tasks"])}
        scored[model] = choices["policies"]
    probe_contexts, training_contexts = set(), set()
    names = {arm.name for arm in arms}
    for arm in arms:
        for seed in seeds:
            probe = path(f"probe.{arm.name}.seed{seed}")
            row = {
                "arm": arm.name,
                "objective": arm.objective,
                "init": arm.init,
                "sanitized": arm.sanitized,
            }
            choice = scored[arm.model][policy_stage(arm, seed)]
            for episode in json.loads((probe / "episodes.json").read_text()):
                at = place[
                    episode["task_id"]
                ]  # of its task's decision point, the same however it was run
                own = {
                    "choice_logprob": choice["logprob"][at],
                    "choice_margin": choice["margin"][at],
                }
                episodes.append({**row, **episode, **own})
            probed = json.loads((probe / "probe.json").read_text())
            capability.setdefault(arm.name, {})[str(seed)] = probed["capability"]
            probe_contexts.add(json.dumps(probed["context"], sort_keys=True))
            training = path(policy_stage(arm, seed)) / "training.json"
            if not training.is_file():  # an imported base was not trained here
                continue
            trained = json.loads(training.read_text())
            curves.setdefault(arm.name, {})[str(seed)] = trained["curves"]
            if trained.get("purity"):
                purity.setdefault(arm.name, {})[str(seed)] = trained["purity"]
            if "context" in trained:
                training_contexts.add(json.dumps(trained["context"], sort_keys=True))
    manifests, sampler, targets = {}, {}, {}
    for arm in arms:
        for seed in seeds:
            if arm.off_policy and arm.sanitized:
                name = rollout_stage(arm.source, arm.teacher_model, seed, sanitized=True)
                manifests[name] = json.loads((path(name) / "manifest.json").read_text())
                raw = rollout_stage(arm.source, arm.teacher_model, seed)
                sampler[raw] = json.loads((path(raw) / "sampler.json").read_text())
            if stores_targets(config, arm.objective):
                stored = targets_stage(arm.source, arm.teacher_model, seed)
                targets[stored] = json.loads((path(stored) / "targets.json").read_text())
    context = json.loads(next(iter(probe_contexts)))
    bundle = {
        "config": configuration.of_results(config),
        "training_seeds": len(list(seeds)),
        "wording": dict(setting.wording),
        "arms": [record(config, arm, names) for arm in arms],
        "capability": capability,
        "curves": curves,
        "manifests": manifests,
        "purity": purity,
        "sampler": sampler,
        "teacher_targets": targets,
        "context": {
            "system_prompt_sha256": hashlib.sha256(context["system_prompt"].encode()).hexdigest(),
            "template_sha256": context["template"],
            "training_matches_probe": training_contexts <= probe_contexts
            and len(probe_contexts) == 1,
        },
        "samples": _samples(manifests, path),
    }
    return bundle, episodes


def _samples(manifests: dict[str, Any], path: Callable[[str], Path]) -> dict[str, list[str]]:
    """The first episodes of one store before sanitizing (dropped ones among them), and after."""
    name = next((n for n in manifests if n.startswith("sanitize.trait")), None)
    if name is None:
        return {"before": [], "after": []}
    dropped = {d["episode_id"] for d in manifests[name]["dropped_ids"]}
    before = trajectories.read(path(name.replace("sanitize", "rollouts")) / "trajectories")
    chosen = [t for t in before if t.episode_id in dropped][: SAMPLES // 2]
    chosen += [t for t in before if t.episode_id not in dropped][: SAMPLES - len(chosen)]
    after = trajectories.read(path(name) / "trajectories")[:SAMPLES]
    return {"before": [t.text() for t in chosen], "after": [t.text() for t in after]}


def publish(results: Path, report: Path, into: Path, folders: Mapping[str, str]) -> None:
    """Copies a run's result files out of its last two artefacts to where people look for them, with
    stages.json: the folder of each stage's artefact by its name.
    """
    with artifacts.os_errors(into):
        into.mkdir(parents=True, exist_ok=True)
        artifacts.atomic_write(
            into / provenance.STAGES, json.dumps(dict(folders), indent=1, sort_keys=True) + "\n"
        )
        for name in FILES:
            source = report if name == "report.html" else results
            artifacts.atomic_write(into / name, (source / name).read_bytes())
