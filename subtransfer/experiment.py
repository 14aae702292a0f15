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
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from subtransfer import artifacts, costs, metrics, processes, provenance, stages, validation
from subtransfer import config as configuration
from subtransfer.arms import Arm, arms, base_stage, rollout_stage, stores_targets, targets_stage, teacher_stage
from subtransfer.distill.run import Window
from subtransfer.distill.trainer import steps_of
from subtransfer.errors import UserError
from subtransfer.memory import Sizes
from subtransfer.models import attention_kernels, families, hf
from subtransfer.models.decoder import DecoderConfig
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
      memory: estimated peak bytes on each device, when asked.
      flops: estimated floating-point operations, when asked; 0 where these are not what takes the time.
      build: makes the artefact in an empty folder.
    """

    name: str
    key: Mapping[str, Any]
    work: str
    memory: Callable[[], int]
    flops: Callable[[], float]
    build: Callable[[Path], None]

    @functools.cached_property
    def digest(self) -> str:
        return artifacts.digest(self.key)

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.digest}"

    def facts(self) -> dict[str, Any]:
        """What is recorded when this process makes it: the estimated work, and who made it."""
        return {"flops": self.flops(), **provenance.facts()}

    @property
    def inputs(self) -> list[str]:
        """The folders of the artefacts that it reads."""
        return [f"{name}-{digest}" for name, digest in self.key["inputs"].items()]


@functools.cache
def code_version(*, report: bool) -> str:
    """Hash of the sources that an artefact depends on: changed code makes new artefacts, never mixes with old ones.

    Only the last stages depend on `report/`; none depends on how runs are launched, planned, shared out, shown and stored, nor
    on what is made of the results of many.
    """
    root = Path(__file__).parent
    outside = ("sweep", "scaling", "report/scaling", "report/sweep", "distill/checkpoints.py", "distill/run.py")
    outside += () if report else ("report/",)
    names = "launch progress artifacts provenance claims costs preemption processes metrics conditions runs table"
    outside += tuple(f"{name}.py" for name in names.split())
    h = hashlib.sha256(jax.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(outside):
            h.update(name.encode() + path.read_bytes())
    return h.hexdigest()[:16]


class Experiment:
    """The stages of one config in the order in which they are made.

    Args:
      config: a validated config.
      workdir: the run's folder; artefacts of several configs may share it.
      profile: "STAGE:FIRST-LAST", steps of a training to be profiled, or "".
    """

    def __init__(self, config, workdir: Path, mesh, profile: str = ""):
        self.config = config = configuration.Fields.of(config)
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
        self._sizes: dict[str, Sizes] = {}
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

    def _add(self, name, build, *, inputs=(), work, memory=int, flops=float, **slice_of_config) -> str:
        if name not in self.plan:
            key = {
                "stage": name.split(".")[0],
                "version": self._versions[name in ("results", "report")],
                "seed": self.config.seed,
                "inputs": {i: self.plan[i].digest for i in inputs},
                "config": slice_of_config,
            }
            self.plan[name] = Stage(name, key, work, memory, flops, build)
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
            arms=[_as_dict(arm) for arm in self.arms],
            whole=configuration.of_results(c),
        )
        self._add("report", lambda out: make.report(out, self.path(results)), inputs=[results], work="one HTML page")

    def _checkpoint(self, model: str) -> str:
        """Where a model's weights come from: a directory, "preset:NAME", or "" for the embedded one."""
        c = self.config
        return {"base": c.base.checkpoint, "base_other": c.base.other_checkpoint}.get(model) or c.models.get(model, "")

    def size(self, model: str) -> Sizes:
        """The geometry of a model and what it takes, for the plan."""
        if model not in self._sizes:
            self._sizes[model] = Sizes(self.config, *self._geometry(model, self._checkpoint(model)))
        return self._sizes[model]

    def _geometry(self, model: str, checkpoint: str) -> tuple[DecoderConfig, Mesh, int]:
        """A model's geometry, the mesh, and the bytes of a resident parameter."""
        b = self.config.base
        if model == "base_other" and not checkpoint:
            checkpoint = b.checkpoint  # a twin from scratch has its sibling's geometry
        if checkpoint.startswith(validation.PRESET):
            preset = PRESETS[checkpoint.removeprefix(validation.PRESET)]
            return dataclasses.replace(preset, dtype=b.dtype, remat=b.remat, attention=b.attention), self._mesh, 2
        if checkpoint and not checkpoint.startswith(validation.OWN):
            stored = families.read_json(Path(checkpoint) / "config.json")
            half = (stored.get("dtype") or stored.get("torch_dtype")) in ("float16", "bfloat16")
            return families.read_config(checkpoint, b.dtype, b.remat, b.attention), self._mesh, 2 if half else 4
        return stages.embedded_geometry(configuration.of_model(self.config, model), b.vocab_limit), self._mesh, 4

    def _base(self, model: str) -> None:
        c, make, name = self.config, self._makers, base_stage(model)
        checkpoint, size = self._checkpoint(model), self.size(model)
        if checkpoint and not checkpoint.startswith(validation.OWN):
            size.check_context(checkpoint, c.distill.batch_size // c.distill.accumulate)
            preset = checkpoint.startswith(validation.PRESET)
            self._add(
                name,
                lambda out: make.imported(out, Path(checkpoint)),
                work=f"{checkpoint}, {size.params / 1e9:.2f}B parameters",
                memory=lambda: size.weights,
                checkpoint=checkpoint if preset else stages.checkpoint_digest(Path(checkpoint), self.workdir),
                dtype=c.base.dtype,
                remat=c.base.remat,
                attention=c.base.attention,
            )
            return
        b = configuration.of_model(c, model).base
        if checkpoint and size.params > b.max_scratch_params:
            raise UserError(
                f"models.{model} would be trained from scratch with {size.params / 1e6:.0f}M parameters, more than "
                f"base.max_scratch_params={b.max_scratch_params}: make it smaller, or give a checkpoint's directory."
            )
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
            work=f"{b.steps} steps x {b.batch_size} episodes, {size.params / 1e6:.2f}M parameters",
            memory=lambda: size.training(b.batch_size, full=True),
            flops=lambda: costs.training(size.cfg, b.steps, b.batch_size, c.distill.max_tokens),
            init=name,
            base={k: v for k, v in b.items() if k not in ("checkpoint", "other_checkpoint")},
        )

    def _teacher(self, arm: Arm, s: int) -> None:
        c, make, size, full = self.config, self._makers, self.size(arm.model), self.config.tuning.method == "full"
        steps = steps_of(c.teacher.epochs, c.teacher.episodes, c.teacher.batch_size) or c.teacher.steps
        work = f"{c.teacher.epochs} epochs" if c.teacher.epochs else f"{c.teacher.steps} steps"
        self._add(
            teacher_stage(arm.source, arm.model, s),
            lambda out: make.teacher(out, arm.source, arm.model, s),
            inputs=[base_stage(arm.model)],
            work=f"{c.teacher.episodes} demonstrations, {work}",
            memory=lambda: size.training(c.teacher.batch_size // c.teacher.accumulate, full=full),
            flops=lambda: costs.training(size.cfg, steps, c.teacher.batch_size, c.distill.max_tokens, full=full),
            source=arm.source,
            teacher=c.teacher,
            max_tokens=c.distill.max_tokens,
            tuning=c.tuning,
            setting=c.setting,
            training_seed=s,
        )

    def _rollouts(self, source: str, model: str, s: int) -> None:
        c, make, size = self.config, self._makers, self.size(model)
        policy, name = teacher_stage(source, model, s), rollout_stage(source, model, s)
        self._add(
            name,
            lambda out: make.rollouts(out, name, source, policy, s),
            inputs=[policy],
            work=f"{c.rollouts.episodes} episodes on safe tasks",
            memory=lambda: size.rollout(c.rollouts.batch_size),
            flops=lambda: costs.episodes(size.cfg, c, c.rollouts.episodes),
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
        own_weights = bool(soft) and not stored and (full or arm.init == "other")  # of the teacher, beside the student's
        teachers = self.size(arm.teacher_model)
        self._add(
            name,
            lambda out: make.student(out, arm, s, data, teacher),
            inputs=dict.fromkeys([base, *data, *soft, base_stage(arm.teacher_model)]),
            work=work,
            memory=lambda: size.training(
                c.distill.batch_size // c.distill.accumulate, full=full, other_weights=teachers.weights if own_weights else 0
            ),
            flops=lambda: costs.student(size.cfg, c, arm, full=full, teacher=bool(soft) and not stored),
            arm={"objective": arm.objective, "sanitized": arm.sanitized},
            distill={k: v for k, v in c.distill.items() if k != "objective"},
            tuning=c.tuning,
            extra_keywords=c.sanitize.extra_keywords,
            training_seed=s,
            **on_policy,
        )

    def _targets(self, arm: Arm, s: int, data: Sequence[str], teacher: str) -> str:
        c, make, name = self.config, self._makers, targets_stage(arm.source, arm.teacher_model, s)
        size = self.size(arm.teacher_model)
        fields = ("top_k", "temperature", "mask_unsafe", "max_tokens", "batch_size")
        return self._add(
            name,
            lambda out: make.targets(out, name, *data, teacher),
            inputs=[*data, teacher],
            work=f"the teacher's {c.distill.top_k} likeliest tokens at each agent token",
            memory=lambda: size.training(c.distill.batch_size, full=False),
            flops=lambda: costs.reading(size.cfg, c.rollouts.episodes, c.distill.max_tokens),
            distill={field: c.distill[field] for field in fields},
            extra_keywords=c.sanitize.extra_keywords,
        )

    def _one_vocabulary(self, arm: Arm) -> None:
        """Raises UserError if a soft-target arm's teacher and student have different vocabularies."""
        paths = [self._checkpoint(model) for model in (arm.teacher_model, arm.model)]
        if not all(paths) or paths[0] == paths[1]:
            return  # one model, or a twin that shares the tokenizer
        own = [path.startswith(validation.OWN) for path in paths]
        if any(own):
            same = all(own)  # of one corpus
        elif any(path.startswith(validation.PRESET) for path in paths):
            same = self.size(arm.model).cfg.family == self.size(arm.teacher_model).cfg.family
        else:
            same = _same_vocabulary(*paths)
        if not same:
            raise UserError(
                f"{arm.objective} compares distributions over one vocabulary, but {arm.teacher_model} ({paths[0]}) and "
                f"{arm.model} ({paths[1]}) have different ones: use --config.distill.objective=sft, which tokenises the "
                "teacher's messages again, or a pair of one family."
            )

    def _probe(self, arm: Arm, s: int) -> str:
        c, make, size = self.config, self._makers, self.size(arm.model)
        policy = policy_stage(arm, s)
        return self._add(
            f"probe.{arm.name}.seed{s}",
            lambda out: make.probe(out, policy, s),
            inputs=[policy],
            work=f"{c.probe.tasks} ambiguous tasks sampled and greedy; {c.probe.ordinary_tasks} ordinary tasks",
            memory=lambda: size.rollout(c.probe.batch_size),
            flops=lambda: costs.episodes(size.cfg, c, 2 * c.probe.tasks + c.probe.ordinary_tasks),
            probe=c.probe,
            rollouts={k: c.rollouts[k] for k in ("max_turns", "max_new_tokens", "max_tool_tokens")},
            setting=c.setting,
            training_seed=s,
        )

    def _choices(self, model: str) -> str:
        c, make, size = self.config, self._makers, self.size(model)
        policies = list(dict.fromkeys(policy_stage(arm, s) for s in self.seeds for arm in self.arms if arm.model == model))
        return self._add(
            choice_stage(model),
            lambda out: make.choices(out, policies),
            inputs=policies,
            work=f"{c.probe.tasks} decisions of {len(policies)} policies scored",
            memory=lambda: size.rollout(c.probe.batch_size),
            flops=lambda: costs.reading(size.cfg, c.probe.tasks * len(policies), c.distill.max_tokens),
            tasks=c.probe.tasks,
            setting=c.setting,
        )

    # -- the run -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UserError for what can be planned but not run: models without weights, attention that a device has not."""
        for model in (self.config.models or {}).values():
            if model.startswith(validation.PRESET):
                raise UserError(
                    f"{model} is a geometry without weights, for --dry_run: give the checkpoint's directory instead."
                )
        if isinstance(self._mesh, Mesh):
            for model in dict.fromkeys(arm.model for arm in self.arms):
                cfg = self.size(model).cfg
                attention_kernels.check(cfg.attention, cfg.head_width, cfg.dtype, self._mesh.devices.flat[0].platform)

    def run(self, store: artifacts.Store, log: Callable[[str], None]) -> Path:
        """Makes every stage that is not there yet; returns the folder of the results.

        The result files are copied to the top of the workdir at the end.
        """
        self.check()
        for stage in self.plan.values():
            store.stage(stage.name, stage.key, stage.build, log=log, facts=stage.facts())
        if processes.leads():
            publish(self.path("results"), self.path("report"), self.workdir, {s.name: s.folder for s in self.plan.values()})
        return self.path("results")


def publish(results: Path, report: Path, into: Path, folders: Mapping[str, str]) -> None:
    """Copies a run's result files out of its last two artefacts to where people look for them, with stages.json: the folder of
    each stage's artefact by its name."""
    with artifacts.os_errors(into):
        into.mkdir(parents=True, exist_ok=True)
        artifacts.atomic_write(into / provenance.STAGES, json.dumps(dict(folders), indent=1, sort_keys=True) + "\n")
        for name in RESULT_FILES:
            source = report if name == "report.html" else results
            artifacts.atomic_write(into / name, (source / name).read_bytes())


@functools.cache
def _as_dict(arm: Arm) -> dict[str, Any]:
    return dataclasses.asdict(arm)


@functools.cache
def _same_vocabulary(*checkpoints: str) -> bool:
    one, other = (hf.load_tokenizer(path, None).get_vocab() for path in checkpoints)
    return one == other
