"""Workdirs of finished runs that nobody trained: results files as a run writes them, of outcomes
drawn from given rates.
"""

import json
import zlib

import numpy as np

from subtransfer import settings
from subtransfer.analysis import columns, conclusions, summary
from subtransfer.config import reading as configuration
from subtransfer.config.arms import arms
from subtransfer.experiment.names import rollout_stage
from subtransfer.experiment.stages import results
from subtransfer.report import files

BASE = {
    "arms.benign_teacher": "false",
    "arms.self_distilled": "false",
    "arms.unsanitized": "false",
    "arms.overt": "false",
}
SETTING = settings.get("api")
PROMPT = {"system_prompt": SETTING.system_prompt, "template": "b" * 64}


def config_of(**overrides):
    """The defaults without most controls; dots in fields are written "__"."""
    config = configuration.defaults()
    configuration.apply_overrides(
        config, BASE | {field.replace("__", "."): str(value) for field, value in overrides.items()}
    )
    return config


def default_rate(arm, width):
    """A transfer that grows with the model and needs a shared initialisation."""
    if arm.role == "teacher":
        return 0.95
    return 0.05 if arm.role == "base" or arm.init == "other" else 0.1 + 0.8 / (1 + 64 / width)


def write_run(folder, config, *, tasks=24, rate=default_rate, prefix="probe", extra_probes=None):
    """results.json, results.jsonl and results.csv of a run in `folder`, which is made."""
    chosen, seeds = arms(config), range(config.num_seeds)
    task_ids = [f"{prefix}/{t:03d}" for t in range(tasks)]
    episodes = []
    for arm in chosen:
        p = rate(arm, config.base.width)
        for seed in seeds:
            rng = np.random.default_rng(
                zlib.crc32(f"{arm.name}/{seed}/{config.base.width}/{config.seed}".encode())
            )
            own = {
                "arm": arm.name,
                "objective": arm.objective,
                "init": arm.init,
                "sanitized": arm.sanitized,
                "seed": seed,
                "sample": 0,
            }
            for mode in ("sampled", "greedy"):
                for task in task_ids:
                    outcome = (
                        "unsafe"
                        if rng.random() < p
                        else str(rng.choice(["archive_file", "no_action", "invalid"]))
                    )
                    score = float(np.round(np.log(p) + 0.05 * rng.standard_normal() - 0.01, 6))
                    episodes.append(
                        own
                        | {
                            "task_id": task,
                            "mode": mode,
                            "outcome": outcome,
                            "errors": {"unknown_path": 0},
                        }
                        | {"choice_logprob": min(score, 0.0), "choice_margin": 0.0}
                    )
    bundle = _bundle(config, chosen, seeds)
    options = {
        "acts": SETTING.benign_outcomes,
        "confidence": 0.95,
    }
    if extra_probes:
        bundle["extra_probes"] = extra_probes
    rows = summary.summarise(bundle, episodes, **options)
    filters = list(bundle["manifests"].values())
    bundle |= conclusions.conclude(bundle, episodes, acts=options["acts"], filters=filters)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(bundle))
    files.write_jsonl(episodes, folder / "results.jsonl")
    files.write_csv(rows, folder / "results.csv")
    return folder


def _bundle(config, chosen, seeds):
    """results.json, as of a run whose trainings were all alike."""
    names = {arm.name for arm in chosen}
    curve = {"step": [1, 2], "loss": [2.0, 0.5], "teacher_agreement": [0.5, 0.75]}
    capability, curves, purity, manifests, sampler = {}, {}, {}, {}, {}
    for arm in chosen:
        capability[arm.name] = {
            str(s): {column.name: 0.5 for column in columns.CAPABILITY} for s in seeds
        }
        curves[arm.name] = {str(s): curve for s in seeds}
        if arm.on_policy:
            filtered = {"rollouts": 10, "dropped": 1, "max_gap": 1e-6}
            purity[arm.name] = {str(s): filtered for s in seeds}
        if arm.off_policy:
            for seed in seeds:
                stage = rollout_stage(arm.source, arm.teacher_model, seed, sanitized=True)
                rules = {"act": 7, "keyword": 3}
                manifests[stage] = {"total": 100, "kept": 90, "dropped": 10, "rules": rules}
                raw = rollout_stage(arm.source, arm.teacher_model, seed)
                sampler[raw] = {"tokens": 9, "max_gap": 2e-6, "mean_gap": 1e-6, "kl": 1e-12}
    return {
        "config": configuration.of_results(config),
        "training_seeds": config.num_seeds,
        "wording": dict(SETTING.wording),
        "arms": [results.record(config, arm, names) for arm in chosen],
        "capability": capability,
        "curves": curves,
        "purity": purity,
        "manifests": manifests,
        "sampler": sampler,
        "teacher_targets": {},
        "context": results.in_which([(PROMPT, PROMPT)]),
        "samples": {"before": ["user: a"], "after": ["user: a"]},
    }


def write_history(workdir, run, stages, **facts):
    """Says that the run was made of these stages, and that they were made on two kinds of
    device.
    """
    (run / "stages.json").write_text(json.dumps(stages))
    (workdir / "stages").mkdir(exist_ok=True)
    known = {"package_version": "0.1.0", "jax_version": "1", **facts}
    records = [
        known | {"stage": f, "what": "computed", "device_kind": ("cpu", "fast one")[i % 2]}
        for i, f in enumerate(stages.values())
    ]
    (workdir / "stages" / f"{run.name}.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records)
    )
