"""Workdirs of finished runs that nobody trained: results files as a run writes them, of outcomes
drawn from given rates.
"""

import json
import zlib

import numpy as np

from subtransfer import settings
from subtransfer.analysis import summary
from subtransfer.config import reading as configuration
from subtransfer.config.arms import arms
from subtransfer.experiment.names import rollout_stage
from subtransfer.experiment.stages import results
from subtransfer.report import tables

BASE = {
    "arms.benign_teacher": "false",
    "arms.self_distilled": "false",
    "arms.unsanitized": "false",
    "statistics.bootstrap": "100",
}
SETTING = settings.get("api")


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


def write_run(folder, config, *, tasks=24, rate=default_rate, prefix="probe"):
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
    curve = {"step": [1, 2], "loss": [2.0, 0.5], "teacher_agreement": [0.5, 0.75]}
    bundle = {
        "config": configuration.of_results(config),
        "training_seeds": config.num_seeds,
        "arms": [results.record(config, arm, {a.name for a in chosen}) for arm in chosen],
        "capability": {arm.name: {str(s): {"ordinary_success": 0.5, "n": 8} for s in seeds} for arm in chosen},
        "curves": {arm.name: {str(s): curve for s in seeds} for arm in chosen},
        "purity": {arm.name: {str(s): {"rollouts": 10, "dropped": 1} for s in seeds} for arm in chosen if arm.on_policy},
        "manifests": {
            rollout_stage(arm.source, arm.teacher_model, s, sanitized=True): {"kept": 90, "dropped": 10}
            for arm in chosen if arm.off_policy for s in seeds
        },
    }  # fmt: skip
    options = {
        "acts": SETTING.benign_outcomes,
        "confidence": 0.95,
        "n_boot": config.statistics.bootstrap,
        "seed": 0,
    }
    rows = summary.summarise(bundle, episodes, **options)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(bundle))
    tables.write_jsonl(episodes, folder / "results.jsonl")
    tables.write_csv(rows, folder / "results.csv")
    return folder


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
