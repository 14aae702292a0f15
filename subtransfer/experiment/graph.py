"""The whole program: base -> teacher -> rollouts -> sanitize -> distill -> probe -> statistics ->
report.

`Experiment(config, workdir)` lays out the stages of a config in order; `run()` makes them. A stage
is a pure function of its key: the slice of the config that it reads, the digests of its inputs, its
seed, and the version of this code and of JAX. Its artefact lies in a folder named after the stage
and its key's hash; a finished one is re-used, an unfinished one is made again. `stages.py` says
what each stage does; this file says which there are and how they hang together.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from subtransfer.config import checks
from subtransfer.config import reading as configuration
from subtransfer.config.arms import (
    Arm,
    arms,
    base_stage,
    rollout_stage,
    stores_targets,
    targets_stage,
    teacher_stage,
)
from subtransfer.distillation import token_weights
from subtransfer.experiment import context, costs, memory, stages
from subtransfer.experiment.plan import Digests, Stage, code_version
from subtransfer.experiment.results import choice_stage, policy_stage, publish
from subtransfer.models import attention_kernels, families
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.presets import PRESETS
from subtransfer.runtime import processes
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts
from subtransfer.training import metrics
from subtransfer.training.loop import steps_of
from subtransfer.training.population import Member
from subtransfer.training.run import Window


class Experiment:
    """The stages of one config in the order in which they are made.

    Args:
      config: a validated config.
      workdir: the run's folder; artefacts of several configs may share it.
      profile: "STAGE:FIRST-LAST", steps of a training to be profiled, or "".
    """

    def __init__(self, config, workdir: Path, mesh, profile: str = ""):
        self.config = config = configuration.Config.of(config)
        self.workdir = Path(workdir)
        self.arms = arms(config)
        self.seeds = range(config.num_seeds)
        self.plan: dict[str, Stage] = {}
        self._mesh = mesh
        rows = mesh.shape["data"] * mesh.shape["fsdp"]
        for room in ("base", "teacher", "distill"):
            parts = config[room].get("accumulate", 1)
            if config[room].batch_size // parts % rows:
                part = f"{room}.batch_size={config[room].batch_size}" + (
                    f" in {parts} parts" if parts > 1 else ""
                )
                raise UserError(
                    f"{part} does not divide over {rows} devices (mesh.data x mesh.fsdp): choose a multiple of that."
                )
        self._sizes: dict[str, memory.Sizes] = {}
        self._digests = Digests()
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
        kinds = ("base", "base_other", "population", "teacher", "student")
        taken = {
            name
            for name, stage in self.plan.items()
            if any(i.startswith("population.") for i in stage.key["inputs"])
        }
        trained = [
            name for name in self.plan if name.partition(".")[0] in kinds and name not in taken
        ]
        if stage not in trained:
            near = checks.nearest(stage, trained)
            raise UserError(
                f"--profile names {stage!r}, which trains nothing here; the nearest stage is {near!r}."
            )
        if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
            raise UserError(
                f"--profile={text} is not of the form STAGE:FIRST-LAST, with steps counted from 1."
            )
        return stage, Window(
            int(first), int(last), self.workdir / metrics.FOLDER / "profile" / stage
        )

    # -- the plan ----------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Where a stage's artefact lies."""
        return self.workdir / self.plan[name].folder

    def _add(
        self, name, build, *, inputs=(), work, memory=int, flops=float, **slice_of_config
    ) -> str:
        if name not in self.plan:
            key = {
                "stage": name.split(".")[0],
                "version": self._versions[name in ("results", "report")],
                "seed": self.config.seed,
                "inputs": {i: self.plan[i].digest for i in inputs},
                "config": slice_of_config,
            }
            self.plan[name] = Stage(name, key, self._digests.of(key), work, memory, flops, build)
        return name

    def _layout(self) -> None:
        c, make = self.config, self._makers
        for model in dict.fromkeys(m for arm in self.arms for m in (arm.model, arm.teacher_model)):
            self._base(model)
        recipes = {arm.name: self._recipe(arm) for arm in self.arms if arm.objective}
        probing = {arm.name: self._probing(arm) for arm in self.arms}
        probes = [
            self._probe(arm, s, probing[arm.name])
            for arm in self.arms
            if arm.role == "base"
            for s in self.seeds
        ]
        for begin in range(0, c.num_seeds, c.population):
            seeds = self.seeds[begin : begin + c.population]
            for arm in self.arms:
                if arm.role == "teacher":
                    self._teachers(arm, seeds)
                if arm.role == "teacher" or arm.source == "self":
                    for s in seeds:
                        self._rollouts(arm.source, arm.model, s)
            for arm in self.arms:
                if arm.objective:
                    self._students(arm, seeds, recipes[arm.name])
                if arm.role != "base":
                    probes += [self._probe(arm, s, probing[arm.name]) for s in seeds]
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
        self._add(
            "report",
            lambda out: make.report(out, self.path(results)),
            inputs=[results],
            work="one HTML page",
        )

    def _checkpoint(self, model: str) -> str:
        """Where a model's weights come from: a directory, "preset:NAME", or "" for the embedded
        one.
        """
        c = self.config
        return {"base": c.base.checkpoint, "base_other": c.base.other_checkpoint}.get(
            model
        ) or c.models.get(model, "")

    def size(self, model: str) -> memory.Sizes:
        """The geometry of a model and what it takes, for the plan."""
        if model not in self._sizes:
            self._sizes[model] = memory.Sizes(
                self.config, *self._geometry(model, self._checkpoint(model))
            )
        return self._sizes[model]

    def _geometry(self, model: str, checkpoint: str) -> tuple[DecoderConfig, Mesh, int]:
        """A model's geometry, the mesh, and the bytes of a resident parameter."""
        b = self.config.base
        if model == "base_other" and not checkpoint:
            checkpoint = b.checkpoint  # a twin from scratch has its sibling's geometry
        if checkpoint.startswith(checks.PRESET):
            preset = PRESETS[checkpoint.removeprefix(checks.PRESET)]
            return (
                dataclasses.replace(preset, dtype=b.dtype, remat=b.remat, attention=b.attention),
                self._mesh,
                2,
            )
        if checkpoint and not checkpoint.startswith(checks.OWN):
            stored = families.read_json(Path(checkpoint) / "config.json")
            half = (stored.get("dtype") or stored.get("torch_dtype")) in ("float16", "bfloat16")
            return (
                families.read_config(checkpoint, b.dtype, b.remat, b.attention),
                self._mesh,
                2 if half else 4,
            )
        return (
            context.embedded_geometry(configuration.of_model(self.config, model), b.vocab_limit),
            self._mesh,
            4,
        )

    def _base(self, model: str) -> None:
        c, make, name = self.config, self._makers, base_stage(model)
        checkpoint, size = self._checkpoint(model), self.size(model)
        if checkpoint and not checkpoint.startswith(checks.OWN):
            size.check_context(checkpoint, c.distill.batch_size // c.distill.accumulate)
            preset = checkpoint.startswith(checks.PRESET)
            self._add(
                name,
                lambda out: make.imported(out, Path(checkpoint)),
                work=f"{checkpoint}, {size.params / 1e9:.2f}B parameters",
                memory=lambda: size.weights,
                checkpoint=checkpoint
                if preset
                else context.checkpoint_digest(Path(checkpoint), self.workdir),
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
            optimizer=c.optimizer,
        )

    def _teachers(self, arm: Arm, seeds: Sequence[int]) -> None:
        c, make, size, full = (
            self.config,
            self._makers,
            self.size(arm.model),
            self.config.tuning.method == "full",
        )
        steps = (
            steps_of(c.teacher.epochs, c.teacher.episodes, c.teacher.batch_size) or c.teacher.steps
        )
        work = f"{c.teacher.epochs} epochs" if c.teacher.epochs else f"{c.teacher.steps} steps"
        self._trained(
            arm.model,
            {s: teacher_stage(arm.source, arm.model, s) for s in seeds},
            lambda s: make.teacher(arm.source, arm.model, s),
            {s: [base_stage(arm.model)] for s in seeds},
            work=f"{c.teacher.episodes} demonstrations, {work}",
            batch=c.teacher.batch_size // c.teacher.accumulate,
            flops=lambda: costs.training(
                size.cfg, steps, c.teacher.batch_size, c.distill.max_tokens, full=full
            ),
            source=arm.source,
            teacher=c.teacher,
            optimizer=c.optimizer,
            max_tokens=c.distill.max_tokens,
            tuning=c.tuning,
            setting=c.setting,
        )

    def _trained(
        self,
        model: str,
        names: Mapping[int, str],
        learner: Callable[[int], Member],
        inputs: Mapping[int, Sequence[str]],
        *,
        work: str,
        batch: int,
        flops: Callable[[], float],
        live: memory.Sizes | None = None,
        **slice_of_config: Any,
    ) -> None:
        """The stages of teachers or off-policy students of one model: one alone, or several out of
        one population.

        Args:
          names, inputs: of each training seed.
          learner: makes what a seed's stage is to train.
          batch: episodes at a time.
          flops: of one of them.
          live: a teacher that runs, too, with weights of its own.
        """
        make, size, full = self._makers, self.size(model), self.config.tuning.method == "full"
        if len(names) == 1:
            ((s, name),) = names.items()
            self._add(
                name,
                lambda out: make.trained(out, model, lambda: learner(s)),
                inputs=inputs[s],
                work=work,
                memory=lambda: size.training(
                    batch, full=full, other_weights=live.weights if live else 0
                ),
                flops=flops,
                training_seed=s,
                **slice_of_config,
            )
            return
        if len(names) % self._mesh.size:
            raise UserError(
                f"population={self.config.population} puts {len(names)} of {self.config.num_seeds} seeds into one program, "
                f"which do not divide over {self._mesh.size} devices: choose num_seeds and population so that they do."
            )
        (first, name), *_, (last, _) = names.items()
        together = f"population.{name.rpartition('.')[0]}.seeds{first}to{last}"
        learners = {name: functools.partial(learner, s) for s, name in names.items()}
        self._add(
            together,
            lambda out: make.population(out, together, model, learners),
            inputs=dict.fromkeys(name for s in names for name in inputs[s]),
            work=f"{len(names)} at once, each {work}",
            memory=lambda: size.population(len(names), batch, full=full, teacher=live),
            flops=lambda: len(names) * flops(),
            training_seeds=list(names),
            **slice_of_config,
        )
        for s, name in names.items():
            self._add(
                name,
                lambda out, name=name: make.member(out, model, together, name),
                inputs=[base_stage(model), together],
                work=f"one of {together}",
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

    def _recipe(self, arm: Arm) -> dict[str, Any]:
        """What the students of an arm share: arguments of `_trained`, or of `_add` for those that
        roll out themselves.
        """
        c, size, full = self.config, self.size(arm.model), self.config.tuning.method == "full"
        if arm.objective != "sft":
            context.one_vocabulary(arm, self._checkpoint, lambda model: self.size(model).cfg.family)
        reads = arm.objective != "sft" and not stores_targets(c, arm.objective)
        live = self.size(arm.teacher_model) if reads and (full or arm.init == "other") else None
        batch = c.distill.batch_size // c.distill.accumulate
        work = (
            f"{c.distill.epochs} epochs"
            if c.distill.epochs and not arm.on_policy
            else f"{c.distill.steps} steps"
        )
        work += f" x {c.distill.batch_size} episodes"

        @functools.cache
        def flops():
            return costs.student(
                size.cfg,
                c,
                arm,
                full=full,
                teacher=self.size(arm.teacher_model).cfg if reads else None,
            )

        common = {
            "work": work,
            "flops": flops,
            "arm": {"objective": arm.objective, "sanitized": arm.sanitized},
            "distill": self._distill,
            "tuning": c.tuning,
            "optimizer": c.optimizer,
            "extra_keywords": c.sanitize.extra_keywords,
        }
        if not arm.on_policy:
            return {**common, "batch": batch, "live": live}
        return common | {
            "work": f"{work}, {c.distill.rounds} rounds x {c.distill.episodes_per_round} own episodes",
            "memory": lambda: size.training(
                batch, full=full, other_weights=live.weights if live else 0
            ),
            "rollouts": c.rollouts,
            "sanitize": c.sanitize,
        }

    @functools.cached_property
    def _distill(self) -> dict[str, Any]:
        """What of `distill` all students depend on."""
        weights = token_weights.part_of_key(self.config.distill.token_weights)
        return {k: v for k, v in self.config.distill.items() if k != "objective"} | {
            "token_weights": weights
        }

    def _students(self, arm: Arm, seeds: Sequence[int], recipe: Mapping[str, Any]) -> None:
        make, bases = self._makers, (base_stage(arm.model), base_stage(arm.teacher_model))
        teachers, data, inputs = {}, {}, {}
        for s in seeds:
            teachers[s] = teacher = teacher_stage(arm.source, arm.teacher_model, s)
            data[s] = (
                [rollout_stage(arm.source, arm.teacher_model, s, sanitized=arm.sanitized)]
                if arm.off_policy
                else []
            )
            soft = [] if arm.objective == "sft" else [teacher]
            if stores_targets(self.config, arm.objective):
                soft = [self._targets(arm, s, data[s], teacher)]
            inputs[s] = dict.fromkeys([bases[0], *data[s], *soft, bases[1]])
        names = {s: f"student.{arm.name}.seed{s}" for s in seeds}
        if not arm.on_policy:
            self._trained(
                arm.model,
                names,
                lambda s: make.off_policy(arm, s, data[s], teachers[s]),
                inputs,
                **recipe,
            )
            return
        for s in seeds:  # rounds of rollouts have a program of their own, which serves one policy
            build = functools.partial(
                make.on_policy, arm=arm, seed=s, data=data[s], teacher=teachers[s]
            )
            self._add(names[s], build, inputs=inputs[s], training_seed=s, **recipe)

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

    def _probing(self, arm: Arm) -> dict[str, Any]:
        """What the probes of an arm share: arguments of `_add`."""
        c, size = self.config, self.size(arm.model)
        return {
            "work": f"{c.probe.tasks} ambiguous tasks sampled and greedy; {c.probe.ordinary_tasks} ordinary tasks",
            "memory": lambda: size.rollout(c.probe.batch_size),
            "flops": functools.cache(
                lambda: costs.episodes(size.cfg, c, 2 * c.probe.tasks + c.probe.ordinary_tasks)
            ),
            "probe": c.probe,
            "rollouts": self._episodes,
            "setting": c.setting,
        }

    @functools.cached_property
    def _episodes(self) -> dict[str, Any]:
        """What of `rollouts` probes depend on."""
        return {
            k: self.config.rollouts[k] for k in ("max_turns", "max_new_tokens", "max_tool_tokens")
        }

    def _probe(self, arm: Arm, s: int, shared: Mapping[str, Any]) -> str:
        make, policy = self._makers, policy_stage(arm, s)
        build = functools.partial(make.probe, policy_stage=policy, seed=s)
        return self._add(
            f"probe.{arm.name}.seed{s}", build, inputs=[policy], training_seed=s, **shared
        )

    def _choices(self, model: str) -> str:
        c, make, size = self.config, self._makers, self.size(model)
        policies = list(
            dict.fromkeys(
                policy_stage(arm, s) for s in self.seeds for arm in self.arms if arm.model == model
            )
        )
        return self._add(
            choice_stage(model),
            lambda out: make.choices(out, policies),
            inputs=policies,
            work=f"{c.probe.tasks} decisions of {len(policies)} policies scored",
            memory=lambda: size.rollout(c.probe.batch_size),
            flops=lambda: costs.reading(
                size.cfg, c.probe.tasks * len(policies), c.distill.max_tokens
            ),
            tasks=c.probe.tasks,
            setting=c.setting,
        )

    # -- the run -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UserError for what can be planned but not run: models without weights, what a
        device cannot do or hold.
        """
        for model in (self.config.models or {}).values():
            if model.startswith(checks.PRESET):
                raise UserError(
                    f"{model} is a geometry without weights, for --dry_run: give the checkpoint's directory instead."
                )
        if isinstance(self._mesh, Mesh):
            for model in dict.fromkeys(arm.model for arm in self.arms):
                cfg = self.size(model).cfg
                attention_kernels.check(
                    cfg.attention, cfg.head_width, cfg.dtype, self._mesh.devices.flat[0].platform
                )
            limit = memory.device_limit()
            for stage in self.plan.values():
                if stage.name.startswith("population.") and stage.memory() > limit:
                    raise UserError(
                        f"{stage.name} needs an estimated {stage.memory() / 2**30:.1f} GiB on each device, which has "
                        f"{limit / 2**30:.1f}: choose a smaller --config.population."
                    )

    def run(self, store: artifacts.Store, log: Callable[[str], None]) -> Path:
        """Makes every stage that is not there yet; returns the folder of the results.

        The result files are copied to the top of the workdir at the end.
        """
        self.check()
        for stage in self.plan.values():
            store.stage(stage.name, stage.key, stage.build, log=log, facts=stage.facts())
        if processes.leads():
            publish(
                self.path("results"),
                self.path("report"),
                self.workdir,
                {s.name: s.folder for s in self.plan.values()},
            )
        return self.path("results")


@functools.cache
def _as_dict(arm: Arm) -> dict[str, Any]:
    return dataclasses.asdict(arm)
