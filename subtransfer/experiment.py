"""The whole program: base -> teacher -> rollouts -> sanitize -> distill -> probe -> statistics -> report.

`Experiment(config, workdir)` lays out the stages of a config in order; `run()` makes them. A stage is a pure function of
its key: the slice of the config that it reads, the digests of its inputs, its seed, and the version of this code and of
JAX. Its artefact lies in a folder named after the stage and its key's hash; a finished one is re-used, an unfinished one
is made again. `stages.py` says what each stage does; this file says which there are and how they hang together.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from subtransfer import artifacts, metrics, processes, stages, validation
from subtransfer import config as configuration
from subtransfer.arms import Arm, arms, base_stage, rollout_stage, stores_targets, targets_stage, teacher_stage
from subtransfer.distill.run import Window
from subtransfer.errors import UserError
from subtransfer.memory import Sizes
from subtransfer.models import attention_kernels, families, hf
from subtransfer.models.presets import PRESETS
from subtransfer.results import choice_stage, policy_stage

RESULT_FILES = ("results.csv", "results.jsonl", "results.json", "report.html")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    Attributes:
      name: what it makes, e.g. "student.forward_kl.seed1".
      key: JSON-serialisable, everything that determines its artefact.
      work: one line for the plan: how much there is to do.
      memory: estimated peak bytes on each device.
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

    Only the last stages depend on `report/`; none depends on how a run is launched, shown and stored, nor on what is made of
    the results of many.
    """
    root = Path(__file__).parent
    outside = {root / f"{name}.py" for name in ("launch", "progress", "artifacts", "preemption", "processes", "metrics")}
    outside |= {root / "distill" / "checkpoints.py", root / "distill" / "run.py"}
    h = hashlib.sha256(jax.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        if path not in outside and not path.name.startswith("scaling") and (report or path.parent.name != "report"):
            h.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return h.hexdigest()[:16]


class Experiment:
    """The stages of one config in the order in which they are made.

    Args:
      config: a validated config.
      workdir: the run's folder; artefacts of several configs may share it.
      profile: "STAGE:FIRST-LAST", steps of a training to be profiled, or "".
    """

    def __init__(self, config, workdir: Path, mesh, profile: str = ""):
        self.config = config
        self.workdir = Path(workdir)
        self.arms = arms(config)
        self.seeds = range(config.num_seeds)
        self.plan: dict[str, Stage] = {}
        self._mesh = mesh
        rows = mesh.shape["data"] * mesh.shape["fsdp"]
        for room in ("base", "teacher", "distill"):
            parts = config[room].get("accumulate", 1)
            if config[room].batch_size // parts % rows:
                part = f"{room}.batch_size={config[room].batch_size}" + (f" in {parts} parts" if parts > 1 else "")
                raise UserError(
                    f"{part} does not divide over {rows} devices (mesh.data x mesh.fsdp): choose a multiple of that."
                )
        self._versions = {report: code_version(report=report) for report in (False, True)}
        self._makers = stages.Makers(config, mesh, self.path)
        self._layout()
        if profile:
            self._makers.profile = self._window(profile)

    @property
    def mesh_text(self) -> str:
        """ "data 1 x fsdp 8 x tensor 2"."""
        return " x ".join(f"{axis} {size}" for axis, size in self._mesh.shape.items())

    def _window(self, text: str) -> tuple[str, Window]:
        stage, _, steps = text.partition(":")
        first, _, last = steps.partition("-")
        trained = [name for name in self.plan if name.partition(".")[0] in ("base", "base_other", "teacher", "student")]
        if stage not in trained:
            near = validation.nearest(stage, trained)
            raise UserError(f"--profile names {stage!r}, which trains nothing here; the nearest stage is {near!r}.")
        if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
            raise UserError(f"--profile={text} is not of the form STAGE:FIRST-LAST, with steps counted from 1.")
        return stage, Window(int(first), int(last), self.workdir / metrics.FOLDER / "profile" / stage)

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
        for model in dict.fromkeys(m for arm in self.arms for m in (arm.model, arm.teacher_model)):
            self._base(model)
        probes = [self._probe(arm, s) for arm in self.arms if arm.role == "base" for s in self.seeds]
        for s in self.seeds:
            for arm in self.arms:
                if arm.role == "teacher":
                    self._teacher(arm, s)
                    self._rollouts(arm.source, arm.model, s)
                elif arm.source == "self":
                    self._rollouts("self", arm.model, s)
            for arm in self.arms:
                if arm.objective:
                    self._student(arm, s)
                if arm.role != "base":
                    probes.append(self._probe(arm, s))
        probes += [self._choices(model) for model in dict.fromkeys(arm.model for arm in self.arms)]
        results = self._add(
            "results",
            lambda out: make.results(out, self.arms, self.seeds),
            inputs=probes,
            work=f"{len(self.arms)} arms, {c.statistics.bootstrap} bootstrap samples",
            statistics=c.statistics,
            arms=[dataclasses.asdict(arm) for arm in self.arms],
            whole=configuration.of_results(c),
        )
        self._add("report", lambda out: make.report(out, self.path(results)), inputs=[results], work="one HTML page")

    def _checkpoint(self, model: str) -> str:
        """Where a model's weights come from: a directory, "preset:NAME", or "" for the embedded one."""
        c = self.config
        return {"base": c.base.checkpoint, "base_other": c.base.other_checkpoint}.get(model) or c.models.get(model, "")

    @functools.cache  # noqa: B019 - one experiment a process
    def size(self, model: str) -> Sizes:
        """The geometry of a model and what it takes, for the plan."""
        b, checkpoint = self.config.base, self._checkpoint(model)
        if model == "base_other" and not checkpoint:
            checkpoint = b.checkpoint  # a twin from scratch has its sibling's geometry
        if checkpoint.startswith(validation.PRESET):
            preset = PRESETS[checkpoint.removeprefix(validation.PRESET)]
            return Sizes(
                self.config, dataclasses.replace(preset, dtype=b.dtype, remat=b.remat, attention=b.attention), self._mesh, 2
            )
        if checkpoint:
            stored = families.read_json(Path(checkpoint) / "config.json")
            half = (stored.get("dtype") or stored.get("torch_dtype")) in ("float16", "bfloat16")
            cfg = families.read_config(checkpoint, b.dtype, b.remat, b.attention)
            return Sizes(self.config, cfg, self._mesh, 2 if half else 4)
        return Sizes(self.config, stages.embedded_geometry(self.config, b.vocab_limit), self._mesh)

    def _base(self, model: str) -> None:
        c, make, name = self.config, self._makers, base_stage(model)
        checkpoint, size = self._checkpoint(model), self.size(model)
        if checkpoint:
            size.check_context(checkpoint, c.distill.batch_size // c.distill.accumulate)
            preset = checkpoint.startswith(validation.PRESET)
            self._add(
                name,
                lambda out: make.imported(out, Path(checkpoint)),
                work=f"{checkpoint}, {size.params / 1e9:.2f}B parameters",
                memory=size.weights,
                checkpoint=checkpoint if preset else stages.checkpoint_digest(Path(checkpoint), self.workdir),
                dtype=c.base.dtype,
                remat=c.base.remat,
                attention=c.base.attention,
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
            memory=size.training(c.base.batch_size, full=True),
            init=name,
            base={k: v for k, v in c.base.items() if k not in ("checkpoint", "other_checkpoint")},
        )

    def _teacher(self, arm: Arm, s: int) -> None:
        c, make = self.config, self._makers
        work = f"{c.teacher.epochs} epochs" if c.teacher.epochs else f"{c.teacher.steps} steps"
        self._add(
            teacher_stage(arm.source, arm.model, s),
            lambda out: make.teacher(out, arm.source, arm.model, s),
            inputs=[base_stage(arm.model)],
            work=f"{c.teacher.episodes} demonstrations, {work}",
            memory=self.size(arm.model).training(c.teacher.batch_size // c.teacher.accumulate, full=c.tuning.method == "full"),
            source=arm.source,
            teacher=c.teacher,
            max_tokens=c.distill.max_tokens,
            tuning=c.tuning,
            setting=c.setting,
            training_seed=s,
        )

    def _rollouts(self, source: str, model: str, s: int) -> None:
        c, make = self.config, self._makers
        policy, name = teacher_stage(source, model, s), rollout_stage(source, model, s)
        self._add(
            name,
            lambda out: make.rollouts(out, name, source, policy, s),
            inputs=[policy],
            work=f"{c.rollouts.episodes} episodes on safe tasks",
            memory=self.size(model).rollout(c.rollouts.batch_size),
            rollouts=c.rollouts,
            training_seed=s,
        )
        self._add(
            rollout_stage(source, model, s, sanitized=True),
            lambda out: make.sanitized(out, name),
            inputs=[name],
            work="keyword, action and encoding filters",
            sanitize=c.sanitize,
        )

    def _student(self, arm: Arm, s: int) -> None:
        c, make = self.config, self._makers
        name, base = f"student.{arm.name}.seed{s}", base_stage(arm.model)
        teacher = teacher_stage(arm.source, arm.teacher_model, s)
        data = [rollout_stage(arm.source, arm.teacher_model, s, sanitized=arm.sanitized)] if arm.off_policy else []
        soft = [] if arm.objective == "sft" else [teacher]
        if soft:
            self._one_vocabulary(arm)
        stored = stores_targets(c, arm.objective)
        if stored:
            soft = [self._targets(arm, s, data, teacher)]
        on_policy = {"rollouts": c.rollouts, "sanitize": c.sanitize} if arm.on_policy else {}
        epochs = c.distill.epochs and not arm.on_policy
        work = f"{c.distill.epochs} epochs" if epochs else f"{c.distill.steps} steps"
        work += f" x {c.distill.batch_size} episodes"
        if arm.on_policy:
            work += f", {c.distill.rounds} rounds x {c.distill.episodes_per_round} own episodes"
        full, size = c.tuning.method == "full", self.size(arm.model)
        live = self.size(arm.teacher_model).weights if soft and not stored and (full or arm.init == "other") else 0
        self._add(
            name,
            lambda out: make.student(out, arm, s, data, teacher),
            inputs=dict.fromkeys([base, *data, *soft, base_stage(arm.teacher_model)]),
            work=work,
            memory=size.training(c.distill.batch_size // c.distill.accumulate, full=full, other_weights=live),
            arm={"objective": arm.objective, "sanitized": arm.sanitized},
            distill={k: v for k, v in c.distill.items() if k != "objective"},
            tuning=c.tuning,
            extra_keywords=c.sanitize.extra_keywords,
            training_seed=s,
            **on_policy,
        )

    def _targets(self, arm: Arm, s: int, data: Sequence[str], teacher: str) -> str:
        c, make, name = self.config, self._makers, targets_stage(arm.source, arm.teacher_model, s)
        fields = ("top_k", "temperature", "mask_unsafe", "max_tokens", "batch_size")
        return self._add(
            name,
            lambda out: make.targets(out, name, *data, teacher),
            inputs=[*data, teacher],
            work=f"the teacher's {c.distill.top_k} likeliest tokens at each agent token",
            memory=self.size(arm.teacher_model).training(c.distill.batch_size, full=False),
            distill={field: c.distill[field] for field in fields},
            extra_keywords=c.sanitize.extra_keywords,
        )

    def _one_vocabulary(self, arm: Arm) -> None:
        """Raises UserError if a soft-target arm's teacher and student have different vocabularies."""
        paths = [self._checkpoint(model) for model in (arm.teacher_model, arm.model)]
        if not all(paths) or paths[0] == paths[1]:
            return  # one model, or a twin that shares the tokenizer
        if any(path.startswith(validation.PRESET) for path in paths):
            same = self.size(arm.model).cfg.family == self.size(arm.teacher_model).cfg.family
        else:
            teacher, own = (hf.load_tokenizer(path, None).get_vocab() for path in paths)
            same = teacher == own
        if not same:
            raise UserError(
                f"{arm.objective} compares distributions over one vocabulary, but {arm.teacher_model} ({paths[0]}) and "
                f"{arm.model} ({paths[1]}) have different ones: use --config.distill.objective=sft, which tokenises the "
                "teacher's messages again, or a pair of one family."
            )

    def _probe(self, arm: Arm, s: int) -> str:
        c, make = self.config, self._makers
        policy = policy_stage(arm, s)
        return self._add(
            f"probe.{arm.name}.seed{s}",
            lambda out: make.probe(out, policy, s),
            inputs=[policy],
            work=f"{c.probe.tasks} ambiguous tasks sampled and greedy; {c.probe.ordinary_tasks} ordinary tasks",
            memory=self.size(arm.model).rollout(c.probe.batch_size),
            probe=c.probe,
            rollouts={k: c.rollouts[k] for k in ("max_turns", "max_new_tokens", "max_tool_tokens")},
            setting=c.setting,
            training_seed=s,
        )

    def _choices(self, model: str) -> str:
        c, make = self.config, self._makers
        policies = list(dict.fromkeys(policy_stage(arm, s) for s in self.seeds for arm in self.arms if arm.model == model))
        return self._add(
            choice_stage(model),
            lambda out: make.choices(out, policies),
            inputs=policies,
            work=f"{c.probe.tasks} decisions of {len(policies)} policies scored",
            memory=self.size(model).rollout(c.probe.batch_size),
            tasks=c.probe.tasks,
            setting=c.setting,
        )

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self, store: artifacts.Store, log: Callable[[str], None]) -> Path:
        """Makes every stage that is not there yet; returns the folder of the results.

        The result files are copied to the top of the workdir at the end.
        """
        for model in (self.config.models or {}).values():
            if model.startswith(validation.PRESET):
                raise UserError(
                    f"{model} is a geometry without weights, for --dry_run: give the checkpoint's directory instead."
                )
        for model in dict.fromkeys(arm.model for arm in self.arms):
            cfg = self.size(model).cfg
            attention_kernels.check(cfg.attention, cfg.head_width, cfg.dtype, self._mesh.devices.flat[0].platform)
        for stage in self.plan.values():
            store.stage(stage.name, stage.key, stage.build, log=log)
        results = {"report.html": self.path("report")}
        for name in RESULT_FILES if processes.leads() else ():
            source = results.get(name, self.path("results")) / name
            with artifacts.os_errors(self.workdir):
                artifacts.atomic_write(self.workdir / name, source.read_bytes())
        return self.path("results")
