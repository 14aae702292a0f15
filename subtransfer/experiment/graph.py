"""Which stages a config has, and how they hang together.

base -> teacher -> rollouts -> filters -> student -> probe -> results -> report.

`Experiment(config, workdir, mesh)` lays out the stages of a config in order; `run()` makes them.
A stage is made by a function in `stages/`, of the fields of the config that the function declares,
its arguments and the artefacts of other stages. All that is in the stage's key (`keys.py`), after
which the folder of its artefact is named: a finished one is re-used, an unfinished one made again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jax.sharding import Mesh

from subtransfer import settings
from subtransfer.config import reading as configuration
from subtransfer.config.arms import Arm, arms, stores_targets
from subtransfer.distillation import transforms
from subtransfer.experiment import (
    costs,
    keys,
    lessons,
    memory,
    names,
    refusals,
    registration,
    shipped,
    trainings,
)
from subtransfer.experiment.bases import Bases
from subtransfer.experiment.models import Models
from subtransfer.experiment.planner import Planner
from subtransfer.experiment.publishing import publish
from subtransfer.experiment.stages import audit as audit_stages
from subtransfer.experiment.stages import choice as choice_stages
from subtransfer.experiment.stages import dose as dose_stages
from subtransfer.experiment.stages import extra_probe as extra_probe_stages
from subtransfer.experiment.stages import filter as filter_stages
from subtransfer.experiment.stages import match as match_stages
from subtransfer.experiment.stages import own_trajectories as own_trajectory_stages
from subtransfer.experiment.stages import prereg as prereg_stages
from subtransfer.experiment.stages import probe as probe_stages
from subtransfer.experiment.stages import report as report_stages
from subtransfer.experiment.stages import results as results_stages
from subtransfer.experiment.stages import rollouts as rollout_stages
from subtransfer.experiment.stages import student as student_stages
from subtransfer.experiment.stages import targets as target_stages
from subtransfer.experiment.stages import teacher as teacher_stages
from subtransfer.probes import decisions
from subtransfer.probes import records as probe_records
from subtransfer.runtime import processes
from subtransfer.store import artifacts
from subtransfer.store.exclusive import PUBLISHING
from subtransfer.training import objectives, teachers
from subtransfer.training.loop import steps_of


class Experiment:
    """The stages of one config in the order in which they are made.

    Args:
      config: a validated config.
      workdir: the run's folder; artefacts of several configs may share it.
      mesh: where its arrays will lie; an abstract one is enough for a plan.
      profile: "STAGE:FIRST-LAST", steps of a training to be profiled, or "".
      sources: the source files that keys are made of; default: this process's own.
      weights: as of `Models`; without them, keys of what is made from them are a dry run's only.

    Raises:
      UserError: for what can be known not to work.
    """

    def __init__(
        self,
        config: Any,
        workdir: Path,
        mesh: Any,
        profile: str = "",
        sources: keys.Sources | None = None,
        *,
        weights: bool = True,
    ):
        self.config = configuration.Config.of(config)
        self.workdir = Path(workdir)
        self.arms = arms(self.config)
        self.seeds = range(self.config.num_seeds)
        self.models = Models(self.config, mesh, weights=weights)
        self._mesh = mesh
        planner = Planner(self.config, self.workdir, mesh, sources or keys.sources())
        # Where an artefact lies (`path`), and what adds a stage (`add`), are the planner's.
        self.plan, self.path, self._add = planner.plan, planner.path, planner.add
        self._put_first = planner.put_first
        self._bases = Bases(self.config, self.workdir, self.models, planner)
        self._extra_probes = probe_records.extra(self.config.plugins)
        self._full = self.config.tuning.method == "full"
        # Refused before anything is laid out, let alone computed.
        names.check_arms(self.arms)
        refusals.check_batches(self.config, mesh.shape["data"] * mesh.shape["fsdp"])
        self._layout()
        if profile:
            planner.profile(profile)

    @property
    def mesh_text(self) -> str:
        """The mesh in words, "data 1 x fsdp 8 x tensor 2"."""
        return " x ".join(f"{axis} {size}" for axis, size in self._mesh.shape.items())

    def size(self, model: str) -> memory.Sizes:
        """The geometry of a model and what it takes."""
        return self.models.size(model)

    # -- all stages --------------------------------------------------------------------------------

    def _layout(self) -> None:
        """Adds all stages, in the order in which they are made."""
        c = self.config
        for model in self._models():
            self._bases.add(model)
        prereg = self._prereg()
        recipes = {}
        probes: list[str] = []
        choices: list[str] = []
        audits: list[str] = []
        for arm in self.arms:
            if arm.objective:
                recipes[arm.name] = self._recipe(arm)
            if arm.role == "base":
                probes += self._probes(arm, self.seeds)
        # Seeds are the outer loop, so that whole comparisons are finished one after the other.
        # Those of one population are trained together.
        for begin in range(0, c.num_seeds, c.population):
            seeds = self.seeds[begin : begin + c.population]
            choices += self._sources_of_trajectories(seeds)
            audits += self._audits(seeds)
            for arm in self.arms:
                if arm.objective:
                    self._students(arm, seeds, recipes[arm.name])
                if arm.role != "base":
                    probes += self._probes(arm, seeds)
            for seed in seeds:
                audits += self._own_audits(seed)
        # Last, as one stage scores all policies of a model side by side.
        for model in self._probed_models():
            probes.append(self._choices(model))
        results = self._add(
            names.RESULTS,
            results_stages.results,
            inputs=[prereg, *probes, *choices, *audits],
            work=f"{len(self.arms)} arms",
            prereg=prereg,
            arms=list(map(_as_dict, self.arms)),
            audits=audits,
            choices=choices,
            seeds=list(self.seeds),
        )
        self._add(
            names.REPORT,
            report_stages.report,
            inputs=[results],
            work="one HTML page",
            results=results,
        )

    def _models(self) -> list[str]:
        """The models that the arms are made from, each once."""
        models: dict[str, None] = {}
        for arm in self.arms:
            models |= dict.fromkeys((arm.model, arm.teacher_model))
        return list(models)

    def _probed_models(self) -> list[str]:
        """The models that policies start from, each once, in the order of the arms."""
        return list(dict.fromkeys(arm.model for arm in self.arms))

    def _prereg(self) -> str:
        """Adds the stage that writes down what the run asks; it comes first."""
        registered = registration.registered(self.config, self.arms, self._base_digests())
        name = self._add(
            names.PREREG,
            prereg_stages.prereg,
            work="what is asked, and how it is answered",
            registered=registered,
        )
        self._put_first(name)
        return name

    def _base_digests(self) -> dict[str, str]:
        """The digests of the stages that make the bases, by model."""
        return {model: self.plan[names.base_stage(model)].digest for model in self._models()}

    def _sources_of_trajectories(self, seeds: Sequence[int]) -> list[str]:
        """Adds the teachers of some training seeds, and the trajectories to learn from.

        Returns:
          The stages that choose trajectories.
        """
        choices = []
        for arm in self.arms:
            if arm.role == "teacher":
                self._teachers(arm, seeds)
        for seed in seeds:
            for model, found in lessons.sources(self.arms, first=seed == self.seeds[0]).items():
                for source in found:
                    self._rollouts(source, model, seed)
            choices += self._choices_of_trajectories(seed)
            for arm in self.arms:
                if arm.overt_fraction:
                    self._overt(arm, seed)
        return choices

    def _teachers(self, arm: Arm, seeds: Sequence[int]) -> None:
        t, size = self.config.teacher, self.size(arm.model)
        base, length = names.base_stage(arm.model), self.config.distill.max_tokens
        steps = steps_of(t.epochs, t.episodes, t.batch_size) or t.steps
        passes = f"{t.epochs} epochs" if t.epochs else f"{t.steps} steps"
        stages, arguments = {}, {}
        for seed in seeds:
            stages[seed] = names.teacher_stage(arm.source, arm.model, seed)
            arguments[seed] = {"source": arm.source, "seed": seed}
        self._trained(
            teacher_stages,
            arm.model,
            stages,
            arguments,
            dict.fromkeys(seeds, [base]),
            work=f"{t.episodes} demonstrations, {passes}",
            batch=t.batch_size // t.accumulate,
            flops=lambda: costs.training(size.cfg, steps, t.batch_size, length, full=self._full),
            origins=(teachers.get(arm.source).origin,),
        )

    def _trained(
        self,
        module: ModuleType,
        model: str,
        stages: Mapping[int, str],
        arguments: Mapping[int, Mapping[str, Any]],
        inputs: Mapping[int, Iterable[str]],
        *,
        work: str,
        batch: int,
        flops: Callable[[], float],
        live: memory.Sizes | None = None,
        fields: tuple[str, ...] = (),
        origins: tuple[str, ...] = (),
    ) -> None:
        """Adds teachers or off-policy students of one model: one alone, or several together.

        Args:
          module: its functions `alone` and `together` make them.
          model: that they start from.
          stages, arguments, inputs: the name, the arguments and the inputs of each training seed's.
          work: of one of them.
          batch: episodes at a time.
          flops: of one of them.
          live: a teacher that runs beside them, with weights of its own.
          fields, origins: as of `_add`.
        """
        size, full, base = self.size(model), self._full, names.base_stage(model)
        if len(stages) == 1:
            ((seed, name),) = stages.items()
            self._add(
                name,
                module.alone,
                inputs=inputs[seed],
                work=work,
                memory=lambda: size.training(
                    batch, full=full, other_weights=live.weights if live else 0
                ),
                flops=flops,
                worked_by=model,
                fields=fields,
                origins=origins,
                base=base,
                **arguments[seed],
            )
            return
        refusals.check_population(self.config, len(stages), self._mesh.size)
        members = {}
        read: dict[str, None] = {}
        for seed, name in stages.items():
            members[name] = arguments[seed]
            # Members may read the same stages, such as their base.
            read |= dict.fromkeys(inputs[seed])
        together = self._add(
            names.population_stage(list(stages.values()), list(stages)),
            module.together,
            inputs=read,
            work=f"{len(stages)} at once, each {work}",
            memory=lambda: size.population(len(stages), batch, full=full, teacher=live),
            flops=lambda: len(stages) * flops(),
            worked_by=model,
            fields=fields,
            origins=origins,
            base=base,
            members=members,
        )
        # Each keeps a stage of its own, so that what follows need not know how it was trained.
        for name in stages.values():
            self._add(
                name,
                trainings.one_of,
                inputs=[base, together],
                work=f"one of {together}",
                base=base,
                population=together,
            )

    def _rollouts(self, source: str, model: str, seed: int) -> None:
        c, size = self.config, self.size(model)
        policy = names.teacher_stage(source, model, seed)
        # Only the unsafe teacher's are replaced: controls keep teachers of their own.
        if source == "trait" and c.rollouts.trajectories:
            base = names.base_stage(model)
            raw = self._add(
                names.rollout_stage(source, model, seed),
                own_trajectory_stages.own_trajectories,
                inputs=[base],
                work=f"trajectories of {c.rollouts.trajectories}",
                base=base,
            )
        else:
            raw = self._add(
                names.rollout_stage(source, model, seed),
                rollout_stages.rollouts,
                inputs=[policy],
                work=lessons.tasks_in_words(c.rollouts),
                memory=lambda: size.rollout(c.rollouts.batch_size),
                flops=lambda: costs.episodes(size.cfg, c, c.rollouts.episodes),
                worked_by=model,
                episodes=c.rollouts.episodes,
                policy=policy,
                source=source,
                seed=seed,
            )
        self._add(
            names.rollout_stage(source, model, seed, sanitized=True),
            filter_stages.sanitized,
            inputs=[raw],
            work="keyword, action and encoding filters",
            raw=raw,
        )

    def _overt(self, arm: Arm, seed: int) -> None:
        """Adds the trajectories of an arm of which some show the habit in plain sight."""
        c, size = self.config, self.size(arm.teacher_model)
        policy = names.teacher_stage(arm.source, arm.teacher_model, seed)
        overt = self._add(
            names.overt_stage(arm.source, arm.teacher_model, seed),
            rollout_stages.overt,
            inputs=[policy],
            work=f"{c.rollouts.episodes} episodes: ambiguous tasks",
            memory=lambda: size.rollout(c.rollouts.batch_size),
            flops=lambda: costs.episodes(size.cfg, c, c.rollouts.episodes),
            worked_by=arm.teacher_model,
            episodes=c.rollouts.episodes,
            policy=policy,
            source=arm.source,
            seed=seed,
        )
        data = lessons.drawn_from(arm, seed)
        choice = self._choice(data, seed)
        self._add(
            names.dose_stage(arm.name, seed),
            dose_stages.dosed,
            inputs=[data, overt, *(choice[:1] if choice else [])],
            work=f"{arm.overt_fraction:.3g} of the trajectories are on ambiguous tasks",
            data=data,
            choice=choice,
            overt=overt,
            fraction=arm.overt_fraction,
        )

    def _choices_of_trajectories(self, seed: int) -> list[str]:
        """Adds what chooses the trajectories that a training seed's students learn from."""
        out = []
        learned, compared = lessons.matched(self.arms, seed, first=seed == self.seeds[0])
        sources = [*learned, *compared]
        # One source alone is like itself.
        if self.config.sanitize.matched and len(sources) > 1:
            matched = self._add(
                names.match_stage(seed),
                match_stages.matched,
                inputs=sources,
                work=f"equally many trajectories of {len(sources)} sources chosen",
                learned=learned,
                compared=compared,
                seed=seed,
            )
            out.append(matched)
        for model in dict.fromkeys(arm.teacher_model for arm in self.arms if arm.selection):
            trait = names.rollout_stage("trait", model, seed, sanitized=True)
            benign = names.rollout_stage("benign", model, seed, sanitized=True)
            structured = self._add(
                names.structure_stage(model, seed),
                match_stages.structured,
                inputs=[trait, benign],
                work="trajectories that are built like the benign teacher's chosen",
                trait=trait,
                benign=benign,
                seed=seed,
            )
            out.append(structured)
        return out

    def _choice(self, data: str, seed: int, arm: Arm | None = None) -> list[str] | None:
        """Of some trajectories those that an arm learns from: (the stage that chose, its name)."""
        # Those of a dose have been chosen when others took their place.
        if arm and arm.overt_fraction:
            return None
        if arm and arm.selection:
            return [names.structure_stage(arm.teacher_model, seed), arm.selection]
        by = names.match_stage(seed)
        return [by, data] if by in self.plan else None

    def _audits(self, seeds: Sequence[int]) -> list[str]:
        """Adds the audits of some training seeds' trajectories; returns their names."""
        out = []
        for seed in seeds:
            found = lessons.audited(self.arms, seed, first=seed == self.seeds[0])
            for model, data in found.items():
                choices = {source: self._choice(stage, seed) for source, stage in data.items()}
                chosen_by = [choice[0] for choice in choices.values() if choice]
                out.append(
                    self._add(
                        names.audit_stage(model, seed),
                        audit_stages.audited,
                        inputs=dict.fromkeys([*data.values(), *chosen_by]),
                        work=f"trajectories of {', '.join(data)} told apart",
                        data=data,
                        choices=choices,
                        model=model,
                        seed=seed,
                    )
                )
        return out

    def _own_audits(self, seed: int) -> list[str]:
        """Adds the audits of a training seed's on-policy students; returns their names."""
        out: list[str] = []
        # Nothing is stored to be compared.
        if not self.config.distill.stored_episodes:
            return out
        for arm, students in lessons.own_audited(self.arms, seed).items():
            out.append(
                self._add(
                    names.own_audit_stage(arm.name, seed),
                    audit_stages.own_audited,
                    inputs=students.values(),
                    work=f"own episodes of students of {', '.join(students)} told apart",
                    students=students,
                    arm=arm.name,
                    model=arm.model,
                    seed=seed,
                )
            )
        return out

    def _recipe(self, arm: Arm) -> dict[str, Any]:
        """What the students of an arm share: further arguments of `_trained`."""
        c, d, size = self.config, self.config.distill, self.size(arm.model)
        objective, stored = objectives.get(arm.objective), self._stores_targets(arm)
        if objective.soft:
            refusals.one_vocabulary(arm, self.models)
        refusals.check_transform(arm, stored=stored)
        # A stored opinion is read from disk, so that no teacher runs beside the student.
        reads = objective.soft and not stored
        teacher = self.size(arm.teacher_model) if reads else None
        transform = transforms.get(arm.transform) if arm.transform else None
        passes = f"{d.epochs} epochs" if d.epochs and not arm.on_policy else f"{d.steps} steps"
        work = f"{passes} x {d.batch_size} episodes"
        if arm.on_policy:
            work += f", {d.rounds} rounds x {d.episodes_per_round} own episodes"

        # Asked for each seed, and only where somebody wants to know.
        @functools.cache
        def flops() -> float:
            geometry = teacher.cfg if teacher else None
            return costs.student(size.cfg, c, arm, full=self._full, teacher=geometry)

        return {
            "work": work,
            "flops": flops,
            "batch": d.batch_size // d.accumulate,
            # Adapters of one base share its weights.
            "live": teacher if self._full or arm.init != "same" else None,
            "fields": tuple(f"distill.{field}" for field in objective.fields),
            "origins": (objective.origin, transform.origin if transform else ""),
        }

    def _students(self, arm: Arm, seeds: Sequence[int], recipe: Mapping[str, Any]) -> None:
        """Adds the students of an arm of some training seeds."""
        base, teacher_base = names.base_stage(arm.model), names.base_stage(arm.teacher_model)
        soft, stored = objectives.get(arm.objective).soft, self._stores_targets(arm)
        stages: dict[int, str] = {}
        arguments: dict[int, dict[str, Any]] = {}
        inputs: dict[int, dict[str, None]] = {}
        for seed in seeds:
            teacher = names.teacher_stage(arm.source, arm.teacher_model, seed)
            data, choice, targets = None, None, None
            if arm.off_policy:
                data = lessons.data(arm, seed)
                choice = self._choice(data, seed, arm)
                if stored:
                    targets = self._targets(arm, seed, data, choice, teacher)
            live = teacher if soft and not targets else None
            chosen_by = choice[0] if choice else None
            given = [base, data, chosen_by, targets, live, teacher_base]
            # Student and teacher often have one base, which is read once.
            inputs[seed] = dict.fromkeys(filter(None, given))
            stages[seed] = names.student_stage(arm.name, seed)
            arguments[seed] = {
                "teacher_base": teacher_base,
                "data": data,
                "choice": choice,
                "teacher": live,
                "objective": arm.objective,
                "sanitized": arm.sanitized,
                "transform": arm.transform,
                "seed": seed,
            }
            if arm.on_policy:
                arguments[seed]["fraction"] = arm.on_policy_fraction
            else:
                arguments[seed]["targets"] = targets
        if not arm.on_policy:
            self._trained(student_stages, arm.model, stages, arguments, inputs, **recipe)
            return
        # On-policy students are never trained together: rounds of rollouts have a program of their
        # own, which serves one policy.
        size, batch, beside = self.size(arm.model), recipe["batch"], recipe["live"]

        def memory() -> int:
            other_weights = beside.weights if beside else 0
            return size.training(batch, full=self._full, other_weights=other_weights)

        for seed, name in stages.items():
            self._add(
                name,
                student_stages.on_policy,
                inputs=inputs[seed],
                work=recipe["work"],
                memory=memory,
                flops=recipe["flops"],
                worked_by=arm.model,
                episodes=costs.own_episodes(self.config, arm),
                fields=recipe["fields"],
                origins=recipe["origins"],
                base=base,
                **arguments[seed],
            )

    def _stores_targets(self, arm: Arm) -> bool:
        """Whether an arm's students read their teacher's opinion from disk."""
        return stores_targets(self.config, arm.objective) and not arm.on_policy

    def _targets(
        self, arm: Arm, seed: int, data: str, choice: list[str] | None, teacher: str
    ) -> str:
        c, size = self.config, self.size(arm.teacher_model)
        return self._add(
            names.targets_stage(arm.source, arm.teacher_model, seed, arm.selection),
            target_stages.targets,
            inputs=[data, teacher, *(choice[:1] if choice else [])],
            work=f"the teacher's {c.distill.top_k} likeliest tokens at each agent token",
            memory=lambda: size.training(c.distill.batch_size, full=False),
            flops=lambda: costs.reading(size.cfg, c.rollouts.episodes, c.distill.max_tokens),
            worked_by=arm.teacher_model,
            data=data,
            choice=choice,
            teacher=teacher,
        )

    def _probes(self, arm: Arm, seeds: Sequence[int]) -> list[str]:
        """Adds the probes of an arm's policies, those of plugins included; returns their names."""
        c, p, size = self.config, self.config.probe, self.size(arm.model)
        plain = f"{p.ordinary_tasks} ordinary and {p.safe_tasks} safe tasks"
        work = f"{p.tasks} ambiguous tasks sampled and greedy; {plain}"
        # Ambiguous tasks twice: sampled, and greedily.
        episodes = 2 * p.tasks + p.ordinary_tasks + p.safe_tasks

        def memory() -> int:
            return size.rollout(p.batch_size)

        def flops() -> float:
            return costs.episodes(size.cfg, c, episodes)

        out = []
        for seed in seeds:
            policy = names.policy_stage(arm, seed)
            out.append(
                self._add(
                    names.probe_stage(arm.name, seed),
                    probe_stages.probe,
                    inputs=[policy],
                    work=work,
                    memory=memory,
                    flops=flops,
                    worked_by=arm.model,
                    episodes=episodes,
                    policy=policy,
                    seed=seed,
                )
            )
            for probe in self._extra_probes:
                measured = ", ".join(column.name for column in probe.columns)
                out.append(
                    self._add(
                        names.probe_stage(arm.name, seed, probe.name),
                        extra_probe_stages.extra_probe,
                        inputs=[policy],
                        work=f"{probe.label}: {measured}",
                        memory=memory,
                        origins=(probe.origin,),
                        probe=probe.name,
                        policy=policy,
                        seed=seed,
                    )
                )
        return out

    def _choices(self, model: str) -> str:
        c, size = self.config, self.size(model)
        scored: dict[str, None] = {}
        for seed in self.seeds:
            for arm in self.arms:
                if arm.model == model:
                    scored[names.policy_stage(arm, seed)] = None
        # Policies that share their base's weights are scored as adapters over it.
        adapted = [] if self._full else list(filter(names.is_tuned, scored))
        rows = c.probe.tasks * len(scored)
        acts = len(decisions.acts(settings.get(c.setting)))
        return self._add(
            names.choice_stage(model),
            choice_stages.choices,
            inputs=scored,
            work=f"{c.probe.tasks} decisions of {len(scored)} policies scored",
            memory=lambda: size.choice(len(scored), acts, full=self._full),
            flops=lambda: costs.reading(size.cfg, rows, c.distill.max_tokens),
            worked_by=model,
            scored=list(scored),
            adapted=adapted,
        )

    # -- the run -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuses what can be planned but not run.

        Raises:
          UserError: for models without weights, for bases that a confirmatory run must not have,
            and for what a device cannot do or hold.
        """
        refusals.check_weights(map(self.models.checkpoint, self._models()))
        if self.config.confirmatory:
            made_again = self.config.seed if shipped.trains_them_again(self.config) else None
            registration.check_shipped(self.models.shipped, made_again=made_again)
            prereg, bases = self.path(names.PREREG), self._base_digests().values()
            registration.check_unseen(self.workdir, prereg, bases)
        # An abstract mesh is a plan's: its devices are not here to be asked.
        if not isinstance(self._mesh, Mesh):
            return
        for model in self._probed_models():
            refusals.check_kernels(self.size(model), self._mesh)
        # Other stages may fit by what the estimate leaves out; a population is a choice of size.
        limit = memory.device_limit()
        for stage in self.plan.values():
            if names.is_population(stage.name):
                refusals.check_memory(stage.name, stage.memory(), limit)

    def run(self, store: artifacts.Store, log: Callable[[str], None]) -> Path:
        """Makes every stage that is not there yet; returns the folder of the results.

        The result files are copied to the top of the workdir at the end.
        """
        self.check()
        for stage in self.plan.values():
            made = store.stage(stage.name, stage.key, stage.build, log=log, facts=stage.facts())
            if stage.name == names.PREREG and processes.leads():
                registration.publish(made, self.workdir)
        results, report = self.path(names.RESULTS), self.path(names.REPORT)
        if processes.leads():
            folders = {}
            for stage in self.plan.values():
                folders[stage.name] = stage.folder
            with store.exclusively(PUBLISHING):
                publish(results, report, self.workdir, folders)
        return results


@functools.cache
def _as_dict(arm: Arm) -> dict[str, Any]:
    return dataclasses.asdict(arm)
