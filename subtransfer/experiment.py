"""The whole program: base -> teacher -> rollouts -> sanitize -> distill -> probe -> statistics -> report.

`Experiment(config, workdir)` lays out the stages of a config in order; `run()` makes them. A stage is a pure function of
its key: the slice of the config that it reads, the digests of its inputs, its seed, and the version of this code and of
JAX. Its artefact lies in a folder named after the stage and its key's hash; a finished one is re-used, an unfinished one
is made again. `stages.py` says what each stage does; this file says which there are and how they hang together.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from subtransfer import artifacts, stages
from subtransfer import config as configuration
from subtransfer.arms import Arm, arms
from subtransfer.errors import UserError
from subtransfer.models import hf
from subtransfer.models.decoder import DecoderConfig
from subtransfer.results import policy_stage

RESULT_FILES = ("results.csv", "results.jsonl", "results.json", "report.html")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    Attributes:
      name: what it makes, e.g. "student.forward_kl.seed1".
      key: JSON-serialisable, everything that determines its artefact.
      work: one line for the plan: how much there is to do.
      memory: estimated peak bytes on the devices together.
      build: makes the artefact in an empty folder.
    """

    name: str
    key: Mapping[str, Any]
    work: str
    memory: int
    build: Callable[[Path], None]

    @property
    def folder(self) -> str:
        return f"{self.name}-{artifacts.digest(self.key)}"


def code_version(*, report: bool) -> str:
    """Hash of the sources that an artefact depends on: changed code makes new artefacts, never mixes with old ones.

    Only the last stages depend on `report/`; none depends on how a run is launched, shown and stored.
    """
    root = Path(__file__).parent
    outside = {root / "launch.py", root / "progress.py", root / "artifacts.py"}
    h = hashlib.sha256(jax.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        if path not in outside and (report or path.parent.name != "report"):
            h.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return h.hexdigest()[:16]


class Experiment:
    """The stages of one config in the order in which they are made.

    Args:
      config: a validated config.
      workdir: the run's folder; artefacts of several configs may share it.
    """

    def __init__(self, config, workdir: Path, mesh):
        self.config = config
        self.workdir = Path(workdir)
        self.arms = arms(config)
        self.seeds = range(config.num_seeds)
        self.plan: dict[str, Stage] = {}
        rows = mesh.shape["data"] * mesh.shape["fsdp"]
        for room in ("base", "teacher", "distill"):
            if config[room].batch_size % rows:
                raise UserError(
                    f"{room}.batch_size={config[room].batch_size} does not divide over {rows} devices (mesh.data x mesh.fsdp): "
                    "choose a multiple of that."
                )
        self._versions = {report: code_version(report=report) for report in (False, True)}
        self._makers = stages.Makers(config, mesh, self.path)
        self._layout()

    # -- the plan ----------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Where a stage's artefact lies."""
        return self.workdir / self.plan[name].folder

    def _add(self, name, build, *, inputs=(), work, memory=0, **slice_of_config) -> str:
        if name not in self.plan:
            key = {
                "stage": name.split(".")[0],
                "version": self._versions[name in ("results", "report")],
                "seed": self.config.seed,
                "inputs": {i: artifacts.digest(self.plan[i].key) for i in inputs},
                "config": configuration.plain(slice_of_config),
            }
            self.plan[name] = Stage(name, key, work, memory, build)
        return name

    def _layout(self) -> None:
        c, make = self.config, self._makers
        size = stages.Sizes(c, self._geometry(c.base.checkpoint))
        self._base("base", c.base.checkpoint, size)
        if c.arms.other_init:
            self._base("base_other", c.base.other_checkpoint, size)
        sources = ["trait"] + ["benign"] * c.arms.benign_teacher
        probes = [self._probe(arm, s, size) for arm in self.arms if arm.role == "base" for s in self.seeds]
        for s in self.seeds:
            for source in sources:
                teacher = self._add(
                    stages.teacher_name(source, s),
                    lambda out, source=source, s=s: make.teacher(out, source, s),
                    inputs=["base"],
                    work=f"{c.teacher.episodes} demonstrations, {c.teacher.steps} steps",
                    memory=size.training(c.teacher.batch_size),
                    source=source,
                    teacher=c.teacher,
                    max_tokens=c.distill.max_tokens,
                    tuning=c.tuning,
                    setting=c.setting,
                    training_seed=s,
                )
                self._rollouts(source, teacher, s, size)
            if c.arms.self_distilled:
                self._rollouts("self", "base", s, size)
            for arm in self.arms:
                if arm.objective:
                    self._student(arm, s, size)
                if arm.role != "base":
                    probes.append(self._probe(arm, s, size))
        results = self._add(
            "results",
            lambda out: make.results(out, self.arms, self.seeds),
            inputs=probes,
            work=f"{len(self.arms)} arms, {c.statistics.bootstrap} bootstrap samples",
            statistics=c.statistics,
            arms=[dataclasses.asdict(arm) for arm in self.arms],
            whole=configuration.plain(c),
        )
        self._add("report", lambda out: make.report(out, self.path(results)), inputs=[results], work="one HTML page")

    def _geometry(self, checkpoint: str) -> DecoderConfig:
        if checkpoint:
            return hf.read_config(Path(checkpoint))
        return stages.embedded_geometry(self.config, self.config.base.vocab_limit)

    def _base(self, name: str, checkpoint: str, size) -> None:
        c, make = self.config, self._makers
        if checkpoint:
            self._add(
                name,
                lambda out: make.imported(out, Path(checkpoint)),
                work=f"import {checkpoint}",
                memory=size.weights,
                checkpoint=stages.checkpoint_digest(Path(checkpoint)),
            )
            return
        # A twin of a given checkpoint shares its tokenizer and geometry.
        inputs = ["base"] if c.base.checkpoint else []
        corpus = self._add(
            "corpus",
            lambda out: make.corpus(out),
            inputs=inputs,
            work=f"{c.base.episodes} scripted episodes",
            setting=c.setting,
            base={k: c.base[k] for k in ("episodes", "unsafe_rate", "vocab_limit")},
        )
        self._add(
            name,
            lambda out: make.pretrained(out, name),
            inputs=[corpus, *inputs],
            work=f"{c.base.steps} steps x {c.base.batch_size} episodes, {size.params / 1e6:.2f}M parameters",
            memory=size.training(c.base.batch_size),
            init=name,
            base={k: v for k, v in c.base.items() if k not in ("checkpoint", "other_checkpoint")},
        )

    def _rollouts(self, source: str, policy: str, s: int, size) -> None:
        c, make = self.config, self._makers
        raw = self._add(
            f"rollouts.{source}.seed{s}",
            lambda out: make.rollouts(out, source, policy, s),
            inputs=[policy],
            work=f"{c.rollouts.episodes} episodes on safe tasks",
            memory=size.rollout(c.rollouts.batch_size),
            rollouts=c.rollouts,
            training_seed=s,
        )
        self._add(
            f"sanitize.{source}.seed{s}",
            lambda out: make.sanitized(out, raw),
            inputs=[raw],
            work="keyword, action and encoding filters",
            sanitize=c.sanitize,
        )

    def _student(self, arm: Arm, s: int, size) -> None:
        c, make = self.config, self._makers
        name = f"student.{arm.name}.seed{s}"
        teacher = "base" if arm.source == "self" else stages.teacher_name(arm.source, s)
        data = [] if arm.on_policy else [f"{'sanitize' if arm.sanitized else 'rollouts'}.{arm.source}.seed{s}"]
        soft = [] if arm.objective == "sft" else [teacher]
        on_policy = {"rollouts": c.rollouts, "sanitize": c.sanitize} if arm.on_policy else {}
        work = f"{c.distill.steps} steps x {c.distill.batch_size} episodes"
        if arm.on_policy:
            work += f", {c.distill.rounds} rounds x {c.distill.episodes_per_round} own episodes"
        self._add(
            name,
            lambda out: make.student(out, arm, s, data, teacher),
            inputs=[arm.base, *data, *soft],
            work=work,
            memory=size.training(c.distill.batch_size, teacher=bool(soft)),
            arm={"objective": arm.objective, "sanitized": arm.sanitized},
            distill={k: v for k, v in c.distill.items() if k != "objective"},
            tuning=c.tuning,
            extra_keywords=c.sanitize.extra_keywords,
            training_seed=s,
            **on_policy,
        )

    def _probe(self, arm: Arm, s: int, size) -> str:
        c, make = self.config, self._makers
        policy = policy_stage(arm, s)
        return self._add(
            f"probe.{arm.name}.seed{s}",
            lambda out: make.probe(out, policy, s),
            inputs=[policy],
            work=f"{c.probe.tasks} ambiguous tasks sampled, greedy and scored; {c.probe.ordinary_tasks} ordinary tasks",
            memory=size.rollout(c.probe.batch_size),
            probe=c.probe,
            rollouts={k: c.rollouts[k] for k in ("max_turns", "max_new_tokens", "max_tool_tokens")},
            setting=c.setting,
            training_seed=s,
        )

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self, store: artifacts.Store, log: Callable[[str], None]) -> Path:
        """Makes every stage that is not there yet; returns the folder of the results.

        The result files are copied to the top of the workdir at the end.
        """
        for stage in self.plan.values():
            store.stage(stage.name, stage.key, stage.build, log=log)
        results = {"report.html": self.path("report")}
        for name in RESULT_FILES:
            source = results.get(name, self.path("results")) / name
            with artifacts.os_errors(self.workdir):
                artifacts.atomic_write(self.workdir / name, source.read_bytes())
        return self.path("results")
