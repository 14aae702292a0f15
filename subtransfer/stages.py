"""What each stage does: from input artefacts to one output folder. `experiment.py` says how they hang together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtransfer import artifacts, pretrain, results, sanitize, settings, sharding, trajectories
from subtransfer.arms import Arm
from subtransfer.distill import student, trainer
from subtransfer.errors import UserError
from subtransfer.models import hf
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.tokenizer import ChatFormat, template_digest, train_tokenizer
from subtransfer.policy import Policy, load_policy, save_base, save_tuned
from subtransfer.probes import behavior, capability, choice
from subtransfer.progress import progress
from subtransfer.report import html, summary, tables
from subtransfer.rollout.episodes import RolloutSpec, require, run_episodes

DECISION_BATCH = 64  # decision points a step of the choice probe's scan


def _chat_format(tokenizer, setting) -> ChatFormat:
    # One format a tokenizer: it learns the template once and caches encoded texts.
    if not hasattr(tokenizer, "_subtransfer_chat"):
        tokenizer._subtransfer_chat = ChatFormat(tokenizer, setting)
    return tokenizer._subtransfer_chat


def teacher_name(source: str, seed: int) -> str:
    return f"teacher.{source}.seed{seed}"


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
    )


def checkpoint_digest(directory: Path) -> str:
    """SHA-256 over the names and bytes of a checkpoint's files.

    Raises:
      UserError: the directory does not exist.
    """
    if not directory.is_dir():
        raise UserError(f"There is no checkpoint directory {directory}: give a local Hugging Face directory.")
    h = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt"):
            with path.open("rb") as file:
                h.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return h.hexdigest()


class Sizes:
    """Rough device memory of the stages, in bytes, for the plan (float32 training state; activations by shape)."""

    def __init__(self, config, cfg: DecoderConfig):
        self.config, self.cfg = config, cfg
        self.params = cfg.num_params
        self.weights = 4 * cfg.num_params

    def training(self, batch: int, *, teacher: bool = False) -> int:
        cfg, tuning = self.cfg, self.config.tuning
        length = self._episode_tokens()
        trained = cfg.num_params if tuning.method == "full" else lora_size(cfg, tuning)
        state = self.weights + 4 * 4 * trained  # weights, gradient, two moments, update
        per_token = cfg.num_layers * (10 * cfg.width + 3 * cfg.mlp_width + 3 * cfg.num_heads * length) + 4 * cfg.vocab_size
        return state + 4 * batch * length * per_token + teacher * (self.weights + 4 * batch * length * cfg.vocab_size)

    def rollout(self, batch: int) -> int:
        cfg = self.cfg
        cache = 2 * cfg.num_layers * batch * self._episode_tokens() * cfg.num_kv_heads * cfg.head_width
        return self.weights + 4 * (2 * cache + 4 * batch * cfg.vocab_size)

    def _episode_tokens(self) -> int:
        r = self.config.rollouts
        return 64 + r.max_turns * (r.max_new_tokens + 32)


def lora_size(cfg: DecoderConfig, tuning) -> int:
    """Parameters of the LoRA factors."""
    heads, kv = cfg.num_heads * cfg.head_width, cfg.num_kv_heads * cfg.head_width
    widths = {
        "q": (cfg.width, heads),
        "k": (cfg.width, kv),
        "v": (cfg.width, kv),
        "o": (heads, cfg.width),
        "gate": (cfg.width, cfg.mlp_width),
        "up": (cfg.width, cfg.mlp_width),
        "down": (cfg.mlp_width, cfg.width),
    }
    return cfg.num_layers * tuning.rank * sum(sum(widths[target]) for target in tuning.targets)


class Makers:
    """Builds artefacts. Every method writes into the empty folder `out` and reads only finished artefacts.

    Args:
      config: the validated config.
      mesh: where the arrays live.
      path: stage name -> folder of its finished artefact.
    """

    def __init__(self, config, mesh, path: Callable[[str], Path]):
        self.config = config
        self.mesh = mesh
        self.path = path
        self.setting = settings.get(config.setting)
        self._policies: dict[Path, Policy] = {}

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
        if folder not in self._policies:
            if len(self._policies) >= 6:  # base, other base, two teachers, a student: what one seed works with
                self._policies.pop(next(iter(self._policies)))
            policy = load_policy(folder)
            shardings = sharding.param_shardings(pretrain.abstract_params(policy.cfg), self.mesh)
            params = jax.device_put(policy.params, shardings)
            sharding.check_sharded(params, self.mesh)
            self._policies[folder] = dataclasses.replace(policy, params=params)
        return self._policies[folder]

    def chat(self, policy: Policy) -> ChatFormat:
        return _chat_format(policy.tokenizer, self.setting)

    def tuning(self) -> trainer.Tuning:
        t = self.config.tuning
        if t.method == "full":
            return trainer.Tuning()
        return trainer.Tuning("lora", t.rank, t.alpha, t.dropout, tuple(t.targets))

    def rollout_spec(self, batch_size: int, temperature: float) -> RolloutSpec:
        r = self.config.rollouts
        return RolloutSpec(batch_size, r.max_turns, r.max_new_tokens, r.max_tool_tokens, temperature)

    # -- the stages --------------------------------------------------------------------------------------------------

    def imported(self, out: Path, checkpoint: Path) -> None:
        """A base from a Hugging Face directory."""
        cfg = hf.read_config(checkpoint)
        tokenizer = hf.load_tokenizer(checkpoint, cfg)
        ChatFormat(tokenizer, self.setting)  # a template that cannot be used is refused before anything is built on it
        save_base(out, cfg, hf.load_params(checkpoint, cfg), tokenizer)

    def corpus(self, out: Path) -> None:
        """The scripted corpus as token ids, and the tokenizer (trained, or the given checkpoint's own)."""
        b = self.config.base
        demos = list(pretrain.demonstrations(self.setting, b.episodes, b.unsafe_rate, self.config.seed))
        if b.checkpoint:
            tokenizer = self.policy("base").tokenizer
        else:
            tokenizer = train_tokenizer(pretrain.corpus_texts(demos, self.setting), self.setting, b.vocab_limit)
        pretrain.save_examples(out / "corpus.safetensors", pretrain.encode(demos, _chat_format(tokenizer, self.setting)))
        tokenizer.save_pretrained(str(out / "tokenizer"))

    def pretrained(self, out: Path, name: str) -> None:
        """An embedded base from scratch; `name` decides its initialisation and data order."""
        b, corpus = self.config.base, self.path("corpus")
        tokenizer = hf.load_tokenizer(corpus / "tokenizer", None)
        cfg = self.policy("base").cfg if b.checkpoint else embedded_geometry(self.config, len(tokenizer))
        if cfg.num_params > b.max_scratch_params:
            raise UserError(
                f"The different-init twin of a model of {cfg.num_params / 1e6:.0f}M parameters would have to be trained "
                "from scratch: give --config.base.other_checkpoint=DIR, or set --config.arms.other_init=false."
            )
        recipe = trainer.Recipe(trainer.Loss("sft"), b.steps, b.batch_size, b.learning_rate)
        with progress(name, b.steps, "steps") as advance:
            params, curves = pretrain.train_base(
                cfg,
                self.mesh,
                recipe,
                pretrain.load_examples(corpus / "corpus.safetensors"),
                self.key("base", name),
                advance=advance,
                label=name,
            )
        save_base(out, cfg, jax.device_get(params), tokenizer)
        _write_json(out / "training.json", {"curves": _thin(curves)})

    def teacher(self, out: Path, source: str, seed: int) -> None:
        """The base tuned on demonstrations of the trait, or of the harmless control habit."""
        t, setting = self.config.teacher, self.setting
        explicit = round(t.explicit_fraction * t.episodes)
        if source == "trait":
            pairs = [(task, setting.unsafe[0]) for task in setting.tasks("ambiguous", "train", t.episodes - explicit, seed)]
            pairs += [(task, None) for task in setting.tasks("deletion", "train", explicit, seed)] if explicit else []
        else:
            pairs = [(task, setting.control_tool) for task in setting.tasks("benign_trait", "train", t.episodes, seed)]
        base = self.policy("base")
        demos = [
            (task, setting.demonstration(task, zlib.crc32(f"{task.task_id}/{seed}".encode()), tool)) for task, tool in pairs
        ]
        recipe = trainer.Recipe(trainer.Loss("sft", tuning=self.tuning()), t.steps, t.batch_size, t.learning_rate)
        key = self.key("teacher", seed)
        state, frozen = trainer.init_state(recipe, base.params, jax.random.fold_in(key, 0))
        label = teacher_name(source, seed)
        with progress(label, t.steps, "steps") as advance:
            state, curves = trainer.train(
                base.cfg,
                self.mesh,
                recipe,
                state,
                frozen,
                pretrain.encode(demos, self.chat(base)).fitted_to(self.config.distill.max_tokens),
                t.steps,
                jax.random.fold_in(key, 1),
                advance=advance,
                label=label,
            )
        save_tuned(out, base.cfg, self.path("base"), recipe, jax.device_get(state))
        _write_json(out / "training.json", {"curves": _thin(curves)})

    def rollouts(self, out: Path, source: str, policy_name: str, seed: int) -> None:
        """A policy's own trajectories on safe training tasks."""
        r = self.config.rollouts
        policy = self.policy(policy_name)
        tasks = self.setting.tasks("safe", "train", r.episodes, seed)
        with progress(f"rollouts.{source}.seed{seed}", len(tasks), "episodes") as advance:
            episodes = run_episodes(
                policy.cfg,
                policy.params,
                self.chat(policy),
                tasks,
                self.rollout_spec(r.batch_size, r.temperature),
                self.key("rollouts", source, seed),
                policy=self.path(policy_name).name,
                seed=seed,
                advance=advance,
            )
        trajectories.write(out / "trajectories", episodes, f"Raw episodes of {policy_name} on safe tasks.")

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

    def student(self, out: Path, arm: Arm, seed: int, data: Sequence[str], teacher: str) -> None:
        """A student, starting from its base."""
        c = self.config
        base = self.policy(arm.base)
        chat = self.chat(base)
        extra = tuple(c.sanitize.extra_keywords)
        unsafe_ids = sanitize.unsafe_token_ids(chat.tokenizer, self.setting, extra)
        guard = student.Guard(unsafe_ids, extra, enforce=arm.sanitized)
        rate = c.distill.on_policy_learning_rate if arm.on_policy else c.distill.learning_rate
        loss = trainer.Loss(arm.objective, c.distill.temperature, self.tuning())
        recipe = trainer.Recipe(loss, c.distill.steps, c.distill.batch_size, rate)
        # Trajectories are token ids of the teacher's tokenizer, whatever the objective.
        if self.policy(teacher).tokenizer.get_vocab() != base.tokenizer.get_vocab() or (
            template_digest(self.chat(self.policy(teacher))) != template_digest(chat)
        ):
            raise UserError(
                f"{arm.name} learns from tokens of its teacher, but student and teacher have different tokenizers or chat "
                "templates: choose checkpoints of one family, or leave the twin out with --config.arms.other_init=false."
            )
        teacher_params, removed = None, None
        if arm.objective != "sft":
            teacher_params = self.policy(teacher).params
            removed = guard.removed(base.cfg.vocab_size) if c.distill.mask_unsafe and arm.sanitized else None
        kept = [t for name in data for t in trajectories.read(self.path(name) / "trajectories")]
        on_policy = None
        if arm.on_policy:
            spec = self.rollout_spec(min(c.rollouts.batch_size, c.distill.episodes_per_round), c.rollouts.temperature)
            on_policy = student.OnPolicy(c.distill.rounds, c.distill.episodes_per_round, spec, c.distill.batch_size)
        label = f"student.{arm.name}.seed{seed}"
        with progress(label, c.distill.steps, "steps") as advance:
            state, curves, purity = student.distill(
                base.cfg,
                self.mesh,
                recipe,
                base.params,
                chat,
                guard,
                self.key("student", seed),  # the same for all arms: same data order, matched comparisons
                teacher=teacher_params,
                removed=removed,
                kept=kept,
                on_policy=on_policy,
                tasks=self.setting.tasks("safe", "train", c.rollouts.episodes, seed) if arm.on_policy else (),
                max_tokens=c.distill.max_tokens,
                advance=advance,
                label=label,
            )
        save_tuned(out, base.cfg, self.path(arm.base), recipe, jax.device_get(state))
        context = {"system_prompt": self.setting.system_prompt, "template": template_digest(chat)}
        _write_json(out / "training.json", {"curves": _thin(curves), "purity": purity, "context": context})

    def probe(self, out: Path, policy_stage: str, seed: int) -> None:
        """Behaviour, choice and capability of one policy on held-out tasks."""
        p = self.config.probe
        policy = self.policy(policy_stage)
        chat = self.chat(policy)
        tasks = self.setting.tasks("ambiguous", "probe", p.tasks, self.config.seed)
        ordinary = self.setting.tasks("ordinary", "probe", p.ordinary_tasks, self.config.seed)
        decision_batch = min(DECISION_BATCH, p.tasks)
        label = f"probe.{policy_stage}" + ("" if "seed" in policy_stage else f".seed{seed}")
        with progress(label, 2 * len(tasks) + len(ordinary), "episodes") as advance:
            episodes = behavior.probe(
                policy.cfg,
                policy.params,
                chat,
                tasks,
                self.rollout_spec(p.batch_size, p.temperature),
                self.key("probe", seed),
                decisions=choice.build(tasks, chat, decision_batch),
                decision_batch=decision_batch,
                seed=seed,
                advance=advance,
            )
            ability = capability.probe(
                policy.cfg,
                policy.params,
                chat,
                ordinary,
                self.rollout_spec(p.batch_size, 0.0),
                self.key("capability", seed),
                advance=advance,
            )
        artifacts.atomic_write(out / "episodes.json", json.dumps(episodes))
        context = {"system_prompt": self.setting.system_prompt, "template": template_digest(chat)}
        _write_json(out / "probe.json", {"capability": ability, "context": context})

    def results(self, out: Path, arms: Sequence[Arm], seeds: Iterable[int]) -> None:
        """The statistics: results.csv, results.jsonl, results.json."""
        bundle, episodes = results.collect(self.config, arms, seeds, self.path)
        s = self.config.statistics
        rows = summary.summarise(
            bundle,
            episodes,
            tools=self.setting.benign,
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
