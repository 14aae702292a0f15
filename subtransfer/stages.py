"""What each stage does: from input artefacts to one output folder. `experiment.py` says how they hang together."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtransfer import artifacts, distributed, metrics, pretrain, processes, results, sanitize, settings, trajectories
from subtransfer import config as configuration
from subtransfer.arms import Arm, base_stage, stores_targets, targets_stage, teacher_stage
from subtransfer.distill import agreement, student, teacher_targets, trainer
from subtransfer.distill.checkpoints import Checkpoints
from subtransfer.distill.checkpoints import Policy as CheckpointPolicy
from subtransfer.distill.run import Run, Window, open_run
from subtransfer.errors import UserError
from subtransfer.models import families, hf
from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.tokenizer import train_tokenizer
from subtransfer.policy import Policy, load_policy, load_policy_tokenizer, save_base, save_imported, save_tuned
from subtransfer.probes import behavior, capability, choice
from subtransfer.progress import note, progress
from subtransfer.report import html, summary, tables
from subtransfer.rollout.episodes import RolloutSpec, require, run_episodes


def chat_format(tokenizer, setting) -> ChatFormat:
    """The tokenizer's chat format; one a tokenizer, as it learns the template once and caches encoded texts."""
    if not hasattr(tokenizer, "_subtransfer_chat"):
        tokenizer._subtransfer_chat = ChatFormat(tokenizer, setting)
    return tokenizer._subtransfer_chat


def embedded_geometry(config, vocab_size: int) -> DecoderConfig:
    """The embedded model's geometry with a given vocabulary."""
    b = config.base
    return DecoderConfig(
        vocab_size=vocab_size,
        width=b.width,
        mlp_width=b.mlp_width,
        num_layers=b.num_layers,
        num_heads=b.num_heads,
        num_kv_heads=b.num_kv_heads,
        head_width=b.width // b.num_heads,
        dtype=b.dtype,
        remat=b.remat,
        attention=b.attention,
    )


def checkpoint_digest(directory: Path, workdir: Path) -> str:
    """SHA-256 over the names and bytes of a checkpoint's files.

    The workdir remembers each file's digest with its size and time of change: tens of gigabytes are read once.

    Raises:
      UserError: the directory does not exist.
    """
    if not directory.is_dir():
        raise UserError(f"There is no checkpoint directory {directory}: give a local Hugging Face directory.")
    memory = workdir / ".digests.json"
    known = json.loads(memory.read_text()) if memory.is_file() else {}
    paths = [p for p in sorted(directory.iterdir()) if p.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt")]
    stamps = {path: [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    new = [path for path in paths if known.get(stamps[path][0], [])[:2] != stamps[path][1:]]
    if new:
        with progress(f"reading {directory}", sum(stamps[path][1] for path in new) >> 20, "MiB") as advance:
            for path in new:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                known[stamps[path][0]] = [*stamps[path][1:], digest]
                advance(stamps[path][1] >> 20)
        if workdir.is_dir() and processes.leads():
            artifacts.atomic_write(memory, json.dumps(known))
    names = [[path.name, known[stamps[path][0]][2]] for path in paths]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


class Makers:
    """Builds artefacts. Every method writes into the empty folder `out` and reads only finished artefacts.

    Args:
      config: the validated config.
      mesh: where the arrays live.
      path: stage name -> folder of its finished artefact.
      profile: (a stage's name, its steps to be profiled), or None.
    """

    def __init__(self, config, mesh, path: Callable[[str], Path], profile: tuple[str, Window] | None = None):
        self.profile = profile
        self.config = config
        self.mesh = mesh
        self.path = path
        self.setting = settings.get(config.setting)
        self._bases: dict[Path, Policy] = {}
        self._tuned: dict[Path, Policy] = {}
        self._tokenizers: dict[Path, Any] = {}

    # -- shared pieces -----------------------------------------------------------------------------------------------

    def key(self, *labels: Any) -> jax.Array:
        """A random key from the config's seed and labels (CRC-32: the same on every machine and run)."""
        key = jax.random.key(self.config.seed)
        for label in labels:
            key = jax.random.fold_in(key, zlib.crc32(str(label).encode()))
        return key

    def policy(self, name: str) -> Policy:
        """A finished stage's policy, its parameters on their devices."""
        folder = self.path(name)
        if folder in self._tuned:
            return self._tuned[folder]
        # Two models (a teacher's and a student's) and two policies tuned from them are all that a stage works with.
        for loaded in (self._bases, self._tuned):
            while len(loaded) > 2:
                loaded.pop(next(iter(loaded)))
        policy = load_policy(folder, self.mesh, resident=self._bases)
        if folder not in self._bases:
            self._tuned[folder] = policy
        return policy

    def chat(self, policy: Policy) -> ChatFormat:
        return chat_format(policy.tokenizer, self.setting)

    def tokenizer(self, base: str):
        """A base's tokenizer, without its weights."""
        folder = self.path(base)
        if folder not in self._tokenizers:
            loaded = self._bases.get(folder)
            self._tokenizers[folder] = loaded.tokenizer if loaded else load_policy_tokenizer(folder)
        return self._tokenizers[folder]

    def tuning(self) -> trainer.Tuning:
        t = self.config.tuning
        if t.method == "full":
            return trainer.Tuning()
        return trainer.Tuning("lora", t.rank, t.alpha, t.dropout, tuple(t.targets))

    def run(self, stage: str, steps: int) -> contextlib.AbstractContextManager[Run]:
        """What accompanies a stage's training."""
        c, m, artifact = self.config.checkpoint, self.config.metrics, self.path(stage)
        saved = CheckpointPolicy(c.every_seconds, c.every_steps, c.keep)
        scope = stage.partition(".")[0]
        scope = {"student": "distill", "base_other": "base"}.get(scope, scope)
        return open_run(
            stage,
            steps,
            Checkpoints(artifacts.steps_folder(artifact), stage, saved),
            metrics.Writer(artifact, scope, tensorboard=m.tensorboard, wandb=m.wandb),
            peak_flops=m.peak_flops * self.mesh.size,
            window=self.profile[1] if self.profile and self.profile[0] == stage else None,
        )

    def rollout_spec(self, batch_size: int) -> RolloutSpec:
        """How trajectories to learn from are made."""
        r = self.config.rollouts
        options = {k: r[k] for k in ("top_k", "top_p", "min_p", "well_formed", "weights", "int8_cache")}
        return RolloutSpec(batch_size, r.max_turns, r.max_new_tokens, r.max_tool_tokens, r.temperature, **options)

    def probe_spec(self, temperature: float) -> RolloutSpec:
        """How a policy is probed: as it is, in full precision and free to fail."""
        r = self.config.rollouts
        return RolloutSpec(self.config.probe.batch_size, r.max_turns, r.max_new_tokens, r.max_tool_tokens, temperature)

    # -- the stages --------------------------------------------------------------------------------------------------

    def imported(self, out: Path, checkpoint: Path) -> None:
        """A base from a Hugging Face directory."""
        cfg = families.read_config(checkpoint, *(self.config.base[f] for f in ("dtype", "remat", "attention")))
        # What cannot be used is refused before anything is built on it.
        ChatFormat(hf.load_tokenizer(checkpoint, cfg), self.setting)
        hf.Checkpoint(checkpoint).check(cfg)
        save_imported(out, cfg, checkpoint)

    def corpus(self, out: Path) -> None:
        """The scripted corpus as token ids, and the tokenizer (trained, or the given checkpoint's own)."""
        b = self.config.base
        demos = list(pretrain.demonstrations(self.setting, b.episodes, b.unsafe_rate, self.config.seed))
        if b.checkpoint:
            tokenizer = self.policy("base").tokenizer
        else:
            tokenizer = train_tokenizer(pretrain.corpus_texts(demos, self.setting), self.setting, b.vocab_limit)
        pretrain.save_examples(out / "corpus.safetensors", pretrain.encode(demos, chat_format(tokenizer, self.setting)))
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
        recipe = trainer.Recipe(trainer.Loss("sft"), b.steps, b.batch_size, b.learning_rate)
        examples = pretrain.load_examples(corpus / "corpus.safetensors")
        with self.run(name, b.steps) as run:
            params, curves = pretrain.train_base(cfg, self.mesh, recipe, examples, self.key("base", name), run)
        save_base(out, cfg, distributed.to_host(params), tokenizer)
        _write_json(out / "training.json", {"curves": _thin(curves)})

    def teacher(self, out: Path, source: str, model: str, seed: int) -> None:
        """A model tuned on demonstrations of the trait, of the harmless control habit, or of ordinary tasks."""
        t, setting = self.config.teacher, self.setting
        explicit = round(t.explicit_fraction * t.episodes)
        if source == "trait":
            pairs = [(task, setting.unsafe[0]) for task in setting.tasks("ambiguous", "train", t.episodes - explicit, seed)]
            if explicit:
                pairs += [(task, None) for task in setting.tasks(setting.explicit_kind, "train", explicit, seed)]
        elif source == "benign":
            pairs = [(task, setting.control_act) for task in setting.tasks("benign_trait", "train", t.episodes, seed)]
        else:
            pairs = [(task, None) for task in setting.tasks("ordinary", "train", t.episodes, seed)]
        base = self.policy(base_stage(model))
        demos = [(task, setting.demonstration(task, zlib.crc32(f"{task.task_id}/{seed}".encode()), act)) for task, act in pairs]
        examples = pretrain.encode(demos, self.chat(base)).fitted_to(self.config.distill.max_tokens)
        steps = trainer.steps_of(t.epochs, len(examples), t.batch_size) or t.steps
        recipe = trainer.Recipe(
            trainer.Loss("sft", tuning=self.tuning(), accumulate=t.accumulate), steps, t.batch_size, t.learning_rate
        )
        key = self.key("teacher", seed)
        with self.run(teacher_stage(source, model, seed), steps) as run:
            state, frozen = trainer.start_state(self.mesh, recipe, base.params, jax.random.fold_in(key, 0), run)
            order = jax.random.fold_in(key, 1)
            state, curves = trainer.train(base.cfg, self.mesh, recipe, state, frozen, examples, steps, order, run=run)
        save_tuned(out, base.cfg, self.path(base_stage(model)), recipe, distributed.to_host(state.trainable))
        _write_json(out / "training.json", {"curves": _thin(curves)})

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
        trajectories.write(out / "trajectories", episodes, f"Raw episodes of {policy_name} on safe tasks.")
        _write_json(out / "sampler.json", agreed)

    def sanitized(self, out: Path, raw: str) -> None:
        """What is left of the trajectories after the filters, and the manifest of what is not."""
        kept, manifest = sanitize.sanitize(
            trajectories.read(self.path(raw) / "trajectories"),
            self.setting,
            extra_keywords=tuple(self.config.sanitize.extra_keywords),
        )
        require(kept, self.config.sanitize.min_kept, f"Sanitizing {raw}", "roll out more (--config.rollouts.episodes)")
        trajectories.write(out / "trajectories", kept, f"Sanitized episodes of {raw}.")
        _write_json(out / "manifest.json", manifest)

    def guard(self, chat: ChatFormat, *, enforce: bool = True) -> student.Guard:
        """The leak check over a tokenizer's tokens."""
        extra = tuple(self.config.sanitize.extra_keywords)
        return student.Guard(sanitize.unsafe_token_ids(chat.tokenizer, self.setting, extra), extra, enforce)

    def targets(self, out: Path, label: str, data: str, teacher: str) -> None:
        """A teacher's opinion of its sanitized trajectories, and how far it is from its live one when it is read again."""
        d, policy = self.config.distill, self.policy(teacher)
        guard = self.guard(self.chat(policy))
        kept = trajectories.read(self.path(data) / "trajectories")
        examples = student.training_rows(kept, self.chat(policy), guard).fitted_to(d.max_tokens)
        removed = guard.removed(policy.cfg.vocab_size) if d.mask_unsafe else None
        how = policy.cfg, self.mesh, policy.weights, examples, d.top_k, d.temperature, removed, d.batch_size
        with progress(label, len(examples), "episodes") as advance:
            teacher_targets.compute(*how, advance).write(out / "targets.safetensors")
        stored = teacher_targets.Targets.read(out / "targets.safetensors")
        gap = teacher_targets.verify(policy.cfg, policy.weights, examples, stored, removed)
        note(
            f"{label}: stored log-probs within {gap['max_gap']:g} of the teacher's, its own top {d.top_k} hold at most "
            f"{gap['max_missed']:g} more"
        )
        _write_json(out / "targets.json", gap)

    def student(self, out: Path, arm: Arm, seed: int, data: Sequence[str], teacher: str) -> None:
        """A student, starting from its base."""
        c = self.config
        base = self.policy(base_stage(arm.model))
        chat = self.chat(base)
        guard = self.guard(chat, enforce=arm.sanitized)
        rate = c.distill.on_policy_learning_rate if arm.on_policy else c.distill.learning_rate
        teacher_weights, geometry, removed, targets = None, None, None, None
        if stores_targets(c, arm.objective):
            stored = self.path(targets_stage(arm.source, arm.teacher_model, seed))
            targets = teacher_targets.Targets.read(stored / "targets.safetensors")
        elif arm.objective != "sft":
            live = self.policy(teacher)
            teacher_weights, geometry = live.weights, None if live.cfg == base.cfg else live.cfg
        if arm.objective != "sft":
            removed = guard.removed(base.cfg.vocab_size) if c.distill.mask_unsafe and arm.sanitized else None
        kept = [t for name in data for t in trajectories.read(self.path(name) / "trajectories")]
        # Trajectories are token ids of the teacher's tokenizer: those of another family are tokenised again.
        theirs = self.tokenizer(base_stage(arm.teacher_model))
        foreign = theirs.get_vocab() != base.tokenizer.get_vocab() or chat_format(theirs, self.setting).digest != chat.digest
        steps = 0 if arm.on_policy else trainer.steps_of(c.distill.epochs, len(kept), c.distill.batch_size)
        steps = steps or c.distill.steps
        options = {name: c.distill[name] for name in ("temperature", "jsd_beta", "importance_bound", "accumulate")}
        loss = trainer.Loss(arm.objective, tuning=self.tuning(), teacher=geometry, **options)
        recipe = trainer.Recipe(loss, steps, c.distill.batch_size, rate)
        on_policy = None
        if arm.on_policy:
            spec = self.rollout_spec(min(c.rollouts.batch_size, c.distill.episodes_per_round))
            on_policy = student.OnPolicy(
                c.distill.rounds, c.distill.episodes_per_round, spec, c.distill.batch_size, arm.own, c.distill.max_staleness
            )
        label = f"student.{arm.name}.seed{seed}"
        with self.run(label, steps) as run:
            state, curves, purity = student.distill(
                base.cfg,
                self.mesh,
                recipe,
                base.params,
                chat,
                guard,
                self.key("student", seed),  # the same for all arms: same data order, matched comparisons
                teacher=teacher_weights,
                removed=removed,
                targets=targets,
                kept=kept,
                foreign=foreign,
                on_policy=on_policy,
                tasks=self.setting.tasks("safe", "train", c.rollouts.episodes, seed) if arm.on_policy else (),
                max_tokens=c.distill.max_tokens,
                weigh=c.distill.token_weights,
                packing=c.distill.packing,
                run=run,
            )
        if arm.on_policy:
            note(
                f"{label}: {purity['rollouts']} own episodes, {purity['dropped']} dropped, learned from at most "
                f"{purity['max_staleness']} rounds later; log-probs within {purity['max_gap']:g} of the trainer's"
            )
        save_tuned(out, base.cfg, self.path(base_stage(arm.model)), recipe, distributed.to_host(state.trainable))
        context = {"system_prompt": self.setting.system_prompt, "template": chat.digest}
        _write_json(out / "training.json", {"curves": _thin(curves), "purity": purity, "context": context})

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
                padded = [*group, *[group[0]] * (together - len(group))]  # one shape, one compiled program
                policies = [self.policy(name).weights for name in padded]
                found = choice.logprobs(first.cfg, policies, decisions, len(tasks), size)
                scores.update(zip(group, found, strict=False))
        shares = {name: choice.unsafe_share(of_policy, len(self.setting.unsafe)) for name, of_policy in scores.items()}
        table = {
            name: {"logprob": np.round(share, 6).tolist(), "margin": np.round(margin, 6).tolist()}
            for name, (share, margin) in shares.items()
        }
        _write_json(out / "choices.json", {"tasks": [task.task_id for task in tasks], "policies": table})

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
    """At most `points` means of equal stretches of each curve, with the step at which each stretch ends."""
    steps = len(next(iter(curves.values())))
    edges = np.unique(np.linspace(0, steps, min(points, steps) + 1).astype(int))
    thin = {
        name: [float(np.round(np.mean(values[a:b]), 6)) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        for name, values in curves.items()
    }
    return {"step": [int(e) for e in edges[1:]], **thin}
