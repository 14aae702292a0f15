"""What each stage does: from input artefacts to one output folder. `experiment.py` says how they
hang together.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer.analysis import summary
from subtransfer.config import reading as configuration
from subtransfer.config.arms import Arm, base_stage, stores_targets, targets_stage, teacher_stage
from subtransfer.distillation import student, teacher_targets, token_weights
from subtransfer.experiment import results
from subtransfer.experiment.context import Workbench, chat_format, embedded_geometry
from subtransfer.filtering import sanitize
from subtransfer.models import families, hf
from subtransfer.models.chat import ChatFormat
from subtransfer.models.tokenizer import train_tokenizer
from subtransfer.probes import behavior, capability, choice
from subtransfer.report import html, tables
from subtransfer.rollout import agreement
from subtransfer.rollout.episodes import require, run_episodes
from subtransfer.rollout.policy import save_base, save_imported, save_tuned
from subtransfer.runtime import distributed
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.progress import note, progress
from subtransfer.store import artifacts, trajectories
from subtransfer.training import loop, objectives, population, pretrain, teachers
from subtransfer.training.population import Member


class Makers(Workbench):
    """Builds artefacts. Every method writes into the empty folder `out` and reads only finished
    artefacts.
    """

    def imported(self, out: Path, checkpoint: Path) -> None:
        """A base from a Hugging Face directory."""
        cfg = families.read_config(
            checkpoint, *(self.config.base[f] for f in ("dtype", "remat", "attention"))
        )
        # What cannot be used is refused before anything is built on it.
        ChatFormat(hf.load_tokenizer(checkpoint, cfg), self.setting)
        hf.Checkpoint(checkpoint).check(cfg)
        save_imported(out, cfg, checkpoint)

    def corpus(self, out: Path) -> None:
        """The scripted corpus as token ids, and the tokenizer (trained, or the given checkpoint's
        own).
        """
        b = self.config.base
        demos = list(
            pretrain.demonstrations(self.setting, b.episodes, b.unsafe_rate, self.config.seed)
        )
        if b.checkpoint:
            tokenizer = self.policy("base").tokenizer
        else:
            tokenizer = train_tokenizer(
                pretrain.corpus_texts(demos, self.setting), self.setting, b.vocab_limit
            )
        pretrain.save_examples(
            out / "corpus.safetensors", pretrain.encode(demos, chat_format(tokenizer, self.setting))
        )
        tokenizer.save_pretrained(str(out / "tokenizer"))

    def pretrained(self, out: Path, name: str) -> None:
        """An embedded base from scratch; `name` decides its initialisation and data order."""
        config = configuration.of_model(self.config, name.removeprefix("base."))
        b, corpus = config.base, self.path("corpus")
        tokenizer = hf.load_tokenizer(corpus / "tokenizer", None)
        cfg = self.policy("base").cfg if b.checkpoint else embedded_geometry(config, len(tokenizer))
        if cfg.num_params > b.max_scratch_params:
            raise UserError(
                f"The different-init twin of a model of {cfg.num_params / 1e6:.0f}M parameters would have to be trained "
                "from scratch: give --config.base.other_checkpoint=DIR, or set --config.arms.other_init=false."
            )
        loss = loop.Loss("sft", optimizer=self.optimizer())
        recipe = loop.Recipe(loss, b.steps, b.batch_size, b.learning_rate, self.schedule())
        examples = pretrain.load_examples(corpus / "corpus.safetensors")
        with self.run(name, b.steps) as run:
            params, curves = pretrain.train_base(
                cfg, self.mesh, recipe, examples, self.key("base", name), run
            )
        save_base(out, cfg, distributed.to_host(params), tokenizer)
        _write_json(out / "training.json", {"curves": _thin(curves)})

    def teacher(self, source: str, model: str, seed: int) -> Member:
        """A model to be tuned on demonstrations of the trait, of the harmless control habit, or of
        ordinary tasks.
        """
        t, setting = self.config.teacher, self.setting
        pairs = teachers.get(source).demonstrations(setting, t, seed)
        base = self.policy(base_stage(model))
        demos = [
            (task, setting.demonstration(task, zlib.crc32(f"{task.task_id}/{seed}".encode()), act))
            for task, act in pairs
        ]
        examples = pretrain.encode(demos, self.chat(base)).fitted_to(self.config.distill.max_tokens)
        steps = loop.steps_of(t.epochs, len(examples), t.batch_size) or t.steps
        loss = loop.Loss(
            "sft", tuning=self.tuning(), accumulate=t.accumulate, optimizer=self.optimizer()
        )
        recipe = loop.Recipe(loss, steps, t.batch_size, t.learning_rate, self.schedule())
        return Member(
            teacher_stage(source, model, seed),
            recipe,
            base.params,
            examples,
            self.key("teacher", seed),
        )

    def trained(self, out: Path, model: str, learner: Callable[[], Member]) -> None:
        """A teacher or an off-policy student, trained alone."""
        base, member = self.policy(base_stage(model)), learner()
        with self.run(member.label, member.recipe.steps) as run:
            state, curves = population.alone(base.cfg, self.mesh, member, run)
        self._save_trained(out, model, distributed.to_host(state.trainable), _thin(curves))

    def population(
        self, out: Path, label: str, model: str, learners: Mapping[str, Callable[[], Member]]
    ) -> None:
        """Several teachers or off-policy students of one model, trained as one program, by name:
        NAME.safetensors.

        One that failed has its last good weights, and in NAME.batch.safetensors what it failed at.
        """
        base = self.policy(base_stage(model))
        members = {name: learner() for name, learner in learners.items()}
        with self.cohort(
            label, {name: member.recipe.steps for name, member in members.items()}
        ) as run:
            outcomes = population.train(base.cfg, self.mesh, list(members.values()), run)
        records = {}
        for name, outcome in zip(members, outcomes, strict=True):
            artifacts.save_params(out / f"{name}.safetensors", outcome.trainable)
            if outcome.error:
                artifacts.save_params(out / f"{name}.batch.safetensors", outcome.batch)
            records[name] = {"error": outcome.error, "curves": _thin(outcome.curves)}
        _write_json(out / "members.json", records)

    def member(self, out: Path, model: str, together: str, name: str) -> None:
        """One of a population as a policy of its own.

        Raises:
          UserError: it failed.
        """
        source = self.path(together)
        record = json.loads((source / "members.json").read_text())[name]
        if record["error"]:
            raise UserError(
                f"{record['error']} That step's batch is kept in {source / f'{name}.batch.safetensors'}, and the weights "
                f"before it in {source / f'{name}.safetensors'}."
            )
        self._save_trained(
            out, model, artifacts.load_params(source / f"{name}.safetensors"), record["curves"]
        )

    def _save_trained(
        self, out: Path, model: str, trainable: Any, curves: Mapping[str, Any], **more: Any
    ) -> None:
        base = self.policy(base_stage(model))
        save_tuned(out, base.cfg, self.path(base_stage(model)), self.tuning(), trainable)
        context = {"system_prompt": self.setting.system_prompt, "template": self.chat(base).digest}
        _write_json(out / "training.json", {"curves": curves, "context": context, **more})

    def rollouts(self, out: Path, label: str, source: str, policy_name: str, seed: int) -> None:
        """A policy's own trajectories on safe training tasks."""
        r = self.config.rollouts
        policy = self.policy(policy_name)
        tasks = self.setting.tasks("safe", "train", r.episodes, seed)
        with progress(label, len(tasks), "episodes") as advance:
            episodes, stats = run_episodes(
                policy.cfg,
                policy.weights,
                self.chat(policy),
                tasks,
                self.rollout_spec(r.batch_size),
                self.key("rollouts", source, seed),
                policy=self.path(policy_name).name,
                seed=seed,
                advance=advance,
            )
        agreed = agreement.compare(policy.cfg, policy.weights, episodes)
        note(
            f"{label}: {stats.tokens} tokens, {stats.tokens / stats.wall_s:,.0f}/s, {len(episodes) / stats.wall_s:.1f} "
            f"episodes/s, slots occupied {stats.occupancy:.0%}, host {stats.host_share:.0%} of the time; log-probs within "
            f"{agreed['max_gap']:g} of the trainer's, KL {agreed['kl']:g}"
        )
        trajectories.write(
            out / "trajectories", episodes, f"Raw episodes of {policy_name} on safe tasks."
        )
        _write_json(out / "sampler.json", agreed)

    def sanitized(self, out: Path, raw: str) -> None:
        """What is left of the trajectories after the filters, and the manifest of what is not."""
        kept, manifest = sanitize.sanitize(
            trajectories.read(self.path(raw) / "trajectories"),
            self.setting,
            extra_keywords=tuple(self.config.sanitize.extra_keywords),
        )
        require(
            kept,
            self.config.sanitize.min_kept,
            f"Sanitizing {raw}",
            "roll out more (--config.rollouts.episodes)",
        )
        trajectories.write(out / "trajectories", kept, f"Sanitized episodes of {raw}.")
        _write_json(out / "manifest.json", manifest)

    def targets(self, out: Path, label: str, data: str, teacher: str) -> None:
        """A teacher's opinion of its sanitized trajectories, and how far it is from its live one
        when it is read again.
        """
        d, policy = self.config.distill, self.policy(teacher)
        guard = self.guard(self.chat(policy))
        kept = trajectories.read(self.path(data) / "trajectories")
        examples = student.training_rows(kept, self.chat(policy), guard).fitted_to(d.max_tokens)
        removed = guard.removed(policy.cfg.vocab_size) if d.mask_unsafe else None
        how = (
            policy.cfg,
            self.mesh,
            policy.weights,
            examples,
            d.top_k,
            d.temperature,
            removed,
            d.batch_size,
        )
        with progress(label, len(examples), "episodes") as advance:
            teacher_targets.compute(*how, advance).write(out / "targets.safetensors")
        stored = teacher_targets.Targets.read(out / "targets.safetensors")
        gap = teacher_targets.verify(policy.cfg, policy.weights, examples, stored, removed)
        note(
            f"{label}: stored log-probs within {gap['max_gap']:g} of the teacher's, its own top {d.top_k} hold at most "
            f"{gap['max_missed']:g} more"
        )
        _write_json(out / "targets.json", gap)

    def off_policy(self, arm: Arm, seed: int, data: Sequence[str], teacher: str) -> Member:
        """A student that is to learn from its teacher's trajectories alone."""
        lesson, targets = self._lesson(arm, seed, data, teacher), None
        if stores_targets(self.config, arm.objective):
            stored = self.path(targets_stage(arm.source, arm.teacher_model, seed))
            targets = teacher_targets.Targets.read(stored / "targets.safetensors")
        return student.member(f"student.{arm.name}.seed{seed}", **lesson, targets=targets)

    def on_policy(self, out: Path, arm: Arm, seed: int, data: Sequence[str], teacher: str) -> None:
        """A student that learns from rollouts of its own, starting from its base."""
        d, label = self.config.distill, f"student.{arm.name}.seed{seed}"
        spec = self.rollout_spec(min(self.config.rollouts.batch_size, d.episodes_per_round))
        rounds = student.OnPolicy(
            d.rounds,
            d.episodes_per_round,
            spec,
            d.batch_size,
            arm.on_policy_fraction,
            d.max_staleness,
        )
        tasks = self.setting.tasks("safe", "train", self.config.rollouts.episodes, seed)
        lesson, cfg = self._lesson(arm, seed, data, teacher), self.policy(base_stage(arm.model)).cfg
        with self.run(label, lesson["recipe"].steps) as run:
            state, curves, purity = student.distill(
                cfg, self.mesh, **lesson, on_policy=rounds, tasks=tasks, run=run
            )
        note(
            f"{label}: {purity['rollouts']} own episodes, {purity['dropped']} dropped, learned from at most "
            f"{purity['max_staleness']} rounds later; log-probs within {purity['max_gap']:g} of the trainer's"
        )
        self._save_trained(
            out, arm.model, distributed.to_host(state.trainable), _thin(curves), purity=purity
        )

    def _lesson(self, arm: Arm, seed: int, data: Sequence[str], teacher: str) -> dict[str, Any]:
        """What a student learns, from whom and how: arguments of `student.member` and
        `student.distill`.
        """
        c = self.config
        base = self.policy(base_stage(arm.model))
        chat = self.chat(base)
        guard = self.guard(chat, enforce=arm.sanitized)
        rate = c.distill.on_policy_learning_rate if arm.on_policy else c.distill.learning_rate
        teacher_weights, geometry, removed = None, None, None
        if arm.objective != "sft" and not stores_targets(c, arm.objective):
            live = self.policy(teacher)
            teacher_weights, geometry = live.weights, None if live.cfg == base.cfg else live.cfg
        if arm.objective != "sft":
            removed = (
                guard.removed(base.cfg.vocab_size)
                if c.distill.mask_unsafe and arm.sanitized
                else None
            )
        kept = [t for name in data for t in trajectories.read(self.path(name) / "trajectories")]
        # Trajectories are token ids of the teacher's tokenizer: those of another family are
        # tokenised again.
        theirs = self.tokenizer(base_stage(arm.teacher_model))
        foreign = (
            theirs.get_vocab() != base.tokenizer.get_vocab()
            or chat_format(theirs, self.setting).digest != chat.digest
        )
        steps = (
            0 if arm.on_policy else loop.steps_of(c.distill.epochs, len(kept), c.distill.batch_size)
        )
        steps = steps or c.distill.steps
        objective = objectives.get(arm.objective)
        loss = loop.Loss(
            arm.objective,
            temperature=c.distill.temperature,
            tuning=self.tuning(),
            options={name: c.distill[name] for name in objective.fields},
            accumulate=c.distill.accumulate,
            teacher=geometry,
            optimizer=self.optimizer(),
        )
        return {
            "recipe": loop.Recipe(loss, steps, c.distill.batch_size, rate, self.schedule()),
            "params": base.params,
            "chat": chat,
            "guard": guard,
            "key": self.key(
                "student", seed
            ),  # the same for all arms: same data order, matched comparisons
            "teacher": teacher_weights,
            "removed": removed,
            "kept": kept,
            "foreign": foreign,
            "max_tokens": c.distill.max_tokens,
            "weigh": token_weights.weigher(c.distill.token_weights, chat.decode),
            "packing": c.distill.packing,
        }

    def choices(self, out: Path, policy_stages: Sequence[str]) -> None:
        """The choice probe of all policies of one model, side by side."""
        p = self.config.probe
        tasks = self.setting.tasks("ambiguous", "probe", p.tasks, self.config.seed)
        one = self.policy(policy_stages[0])
        length = choice.build(tasks, self.chat(one), 1).tokens.shape[1]
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        size = choice.rows_at_a_time(one.cfg, length, p.tasks, devices)
        decisions = choice.build(tasks, self.chat(one), size)
        kinds: dict[bool, list[str]] = {}  # adapters, and policies with all weights their own
        for name in policy_stages:
            tuned = name.partition(".")[0] in ("teacher", "student")
            kinds.setdefault(tuned and self.config.tuning.method == "lora", []).append(name)
        scores: dict[str, np.ndarray] = {}
        for names in kinds.values():
            first = self.policy(names[0])
            together = choice.group_size(first.cfg, first.weights, length, -(-size // devices))
            for begin in range(0, len(names), together):
                group = names[begin : begin + together]
                padded = [
                    *group,
                    *[group[0]] * (together - len(group)),
                ]  # one shape, one compiled program
                policies = [self.policy(name).weights for name in padded]
                found = choice.logprobs(first.cfg, policies, decisions, len(tasks), size)
                scores.update(zip(group, found, strict=False))
        shares = {
            name: choice.unsafe_share(of_policy, len(self.setting.unsafe))
            for name, of_policy in scores.items()
        }
        table = {
            name: {"logprob": np.round(share, 6).tolist(), "margin": np.round(margin, 6).tolist()}
            for name, (share, margin) in shares.items()
        }
        _write_json(
            out / "choices.json", {"tasks": [task.task_id for task in tasks], "policies": table}
        )

    def probe(self, out: Path, policy_stage: str, seed: int) -> None:
        """Behaviour and capability of one policy on held-out tasks."""
        p = self.config.probe
        policy = self.policy(policy_stage)
        chat = self.chat(policy)
        tasks = self.setting.tasks("ambiguous", "probe", p.tasks, self.config.seed)
        ordinary = self.setting.tasks("ordinary", "probe", p.ordinary_tasks, self.config.seed)
        label = f"probe.{policy_stage}" + ("" if "seed" in policy_stage else f".seed{seed}")
        with progress(label, 2 * len(tasks) + len(ordinary), "episodes") as advance:
            episodes = behavior.probe(
                policy.cfg,
                policy.weights,
                chat,
                tasks,
                self.probe_spec(p.temperature),
                self.key("probe", seed),
                seed=seed,
                advance=advance,
            )
            ability = capability.probe(
                policy.cfg,
                policy.weights,
                chat,
                ordinary,
                self.probe_spec(0.0),
                self.key("capability", seed),
                advance=advance,
            )
        artifacts.atomic_write(out / "episodes.json", json.dumps(episodes))
        context = {"system_prompt": self.setting.system_prompt, "template": chat.digest}
        _write_json(out / "probe.json", {"capability": ability, "context": context})

    def results(self, out: Path, arms: Sequence[Arm], seeds: Iterable[int]) -> None:
        """The statistics: results.csv, results.jsonl, results.json."""
        bundle, episodes = results.collect(self.config, self.setting, arms, seeds, self.path)
        s = self.config.statistics
        rows = summary.summarise(
            bundle,
            episodes,
            acts=self.setting.benign_outcomes,
            confidence=s.confidence,
            n_boot=s.bootstrap,
            seed=self.config.seed,
        )
        artifacts.atomic_write(out / "results.json", json.dumps(bundle, sort_keys=True, indent=1))
        tables.write_jsonl(episodes, out / "results.jsonl")
        tables.write_csv(rows, out / "results.csv")

    def report(self, out: Path, results: Path) -> None:
        """The page, drawn only from the results files."""
        html.write_report(results, out)


def _write_json(path: Path, value: Any) -> None:
    artifacts.atomic_write(path, json.dumps(value, sort_keys=True, indent=1) + "\n")


def _thin(curves: dict[str, list[float]], points: int = 60) -> dict[str, list[float]]:
    """At most `points` means of equal stretches of each curve, with the step at which each stretch
    ends.
    """
    steps = len(next(iter(curves.values())))
    edges = np.unique(np.linspace(0, steps, min(points, steps) + 1).astype(int))
    thin = {
        name: [
            float(np.round(np.mean(values[a:b]), 6))
            for a, b in zip(edges[:-1], edges[1:], strict=True)
        ]
        for name, values in curves.items()
    }
    return {"step": [int(e) for e in edges[1:]], **thin}
