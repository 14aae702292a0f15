"""What the stages of a run share: random keys, loaded policies, tokenizers, and what accompanies a
training.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from subtransfer import settings
from subtransfer.config import checks
from subtransfer.config.arms import Arm
from subtransfer.distillation import student
from subtransfer.filtering import sanitize
from subtransfer.models import hf, lora
from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.rollout.episodes import RolloutSpec
from subtransfer.rollout.policy import Policy, load_policy, load_policy_tokenizer
from subtransfer.runtime import processes
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.progress import progress
from subtransfer.store import artifacts
from subtransfer.training import metrics
from subtransfer.training.checkpoints import Checkpoints
from subtransfer.training.checkpoints import Policy as CheckpointPolicy
from subtransfer.training.optimizer import Optimizer, Schedule
from subtransfer.training.run import Cohort, Run, Window, open_cohort, open_run


def chat_format(tokenizer, setting) -> ChatFormat:
    """The tokenizer's chat format; one a tokenizer, as it learns the template once and caches
    encoded texts.
    """
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

    The workdir remembers each file's digest with its size and time of change: tens of gigabytes are
    read once.

    Raises:
      UserError: the directory does not exist.
    """
    if not directory.is_dir():
        raise UserError(
            f"There is no checkpoint directory {directory}: give a local Hugging Face directory."
        )
    memory = workdir / ".digests.json"
    known = json.loads(memory.read_text()) if memory.is_file() else {}
    paths = [
        p
        for p in sorted(directory.iterdir())
        if p.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt")
    ]
    stamps = {
        path: [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths
    }
    new = [path for path in paths if known.get(stamps[path][0], [])[:2] != stamps[path][1:]]
    if new:
        with progress(
            f"reading {directory}", sum(stamps[path][1] for path in new) >> 20, "MiB"
        ) as advance:
            for path in new:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                known[stamps[path][0]] = [*stamps[path][1:], digest]
                advance(stamps[path][1] >> 20)
        if workdir.is_dir() and processes.leads():
            artifacts.atomic_write(memory, json.dumps(known))
    names = [[path.name, known[stamps[path][0]][2]] for path in paths]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


class Workbench:
    """What the makers of a run's stages work with.

    Args:
      config: the validated config.
      mesh: where the arrays live.
      path: stage name -> folder of its finished artefact.
      profile: (a stage's name, its steps to be profiled), or None.
    """

    def __init__(
        self, config, mesh, path: Callable[[str], Path], profile: tuple[str, Window] | None = None
    ):
        self.profile = profile
        self.config = config
        self.mesh = mesh
        self.path = path
        self.setting = settings.get(config.setting)
        self._bases: dict[Path, Policy] = {}
        self._tuned: dict[Path, Policy] = {}
        self._tokenizers: dict[Path, Any] = {}

    def key(self, *labels: Any) -> jax.Array:
        """A random key from the config's seed and labels (CRC-32: the same on every machine and
        run).
        """
        key = jax.random.key(self.config.seed)
        for label in labels:
            key = jax.random.fold_in(key, zlib.crc32(str(label).encode()))
        return key

    def policy(self, name: str) -> Policy:
        """A finished stage's policy, its parameters on their devices."""
        folder = self.path(name)
        if folder in self._tuned:
            return self._tuned[folder]
        # Two models (a teacher's and a student's) and two policies tuned from them are all that a
        # stage works with.
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

    def tuning(self) -> lora.Tuning:
        t = self.config.tuning
        if t.method == "full":
            return lora.Tuning()
        return lora.Tuning("lora", t.rank, t.alpha, t.dropout, tuple(t.targets))

    def optimizer(self) -> Optimizer:
        """How every training of the run takes its steps."""
        return Optimizer.of(self.config.optimizer)

    def schedule(self) -> Schedule:
        """The learning rates of every training of the run, as shares of its peak."""
        return Schedule.of(self.config.optimizer)

    def run(self, stage: str, steps: int) -> contextlib.AbstractContextManager[Run]:
        """What accompanies a stage's training."""
        return open_run(
            stage, steps, self._checkpoints(stage), self._writer(stage), **self._watched(stage)
        )

    def cohort(
        self, stage: str, steps: Mapping[str, int]
    ) -> contextlib.AbstractContextManager[Cohort]:
        """What accompanies a population's training: its members' stages, each with its steps."""
        writers = {member: self._writer(member) for member in steps}
        return open_cohort(
            stage, sum(steps.values()), self._checkpoints(stage), writers, **self._watched(stage)
        )

    def _checkpoints(self, stage: str) -> Checkpoints:
        c = self.config.checkpoint
        saved = CheckpointPolicy(c.every_seconds, c.every_steps, c.keep)
        return Checkpoints(artifacts.steps_folder(self.path(stage)), stage, saved)

    def _writer(self, stage: str) -> metrics.Writer:
        m, scope = self.config.metrics, stage.partition(".")[0]
        scope = {"student": "distill", "base_other": "base"}.get(scope, scope)
        return metrics.Writer(self.path(stage), scope, tensorboard=m.tensorboard, wandb=m.wandb)

    def _watched(self, stage: str) -> dict[str, Any]:
        profiled = self.profile is not None and self.profile[0] == stage
        window = self.profile[1] if profiled else None
        return {"peak_flops": self.config.metrics.peak_flops * self.mesh.size, "window": window}

    def rollout_spec(self, batch_size: int) -> RolloutSpec:
        """How trajectories to learn from are made."""
        r = self.config.rollouts
        options = {
            k: r[k] for k in ("top_k", "top_p", "min_p", "well_formed", "weights", "int8_cache")
        }
        return RolloutSpec(
            batch_size, r.max_turns, r.max_new_tokens, r.max_tool_tokens, r.temperature, **options
        )

    def probe_spec(self, temperature: float) -> RolloutSpec:
        """How a policy is probed: as it is, in full precision and free to fail."""
        r = self.config.rollouts
        return RolloutSpec(
            self.config.probe.batch_size,
            r.max_turns,
            r.max_new_tokens,
            r.max_tool_tokens,
            temperature,
        )

    def guard(self, chat: ChatFormat, *, enforce: bool = True) -> student.Guard:
        """The leak check over a tokenizer's tokens."""
        extra = tuple(self.config.sanitize.extra_keywords)
        return student.Guard(
            sanitize.unsafe_token_ids(chat.tokenizer, self.setting, extra), extra, enforce
        )


def one_vocabulary(
    arm: Arm, checkpoint: Callable[[str], str], family: Callable[[str], str]
) -> None:
    """Checks that a soft-target arm's teacher and student have one vocabulary.

    Args:
      checkpoint: where a model's weights come from, "" for the one that is trained first.
      family: of a model's geometry.

    Raises:
      UserError: they have different ones.
    """
    paths = [checkpoint(model) for model in (arm.teacher_model, arm.model)]
    if not all(paths) or paths[0] == paths[1]:
        return  # one model, or a twin that shares the tokenizer
    own = [path.startswith(checks.OWN) for path in paths]
    if any(own):
        same = all(own)  # of one corpus
    elif any(path.startswith(checks.PRESET) for path in paths):
        same = family(arm.model) == family(arm.teacher_model)
    else:
        same = _same_vocabulary(*paths)
    if not same:
        raise UserError(
            f"{arm.objective} compares distributions over one vocabulary, but {arm.teacher_model} ({paths[0]}) and "
            f"{arm.model} ({paths[1]}) have different ones: use --config.distill.objective=sft, which tokenises the "
            "teacher's messages again, or a pair of one family."
        )


@functools.cache
def _same_vocabulary(*checkpoints: str) -> bool:
    one, other = (hf.load_tokenizer(path, None).get_vocab() for path in checkpoints)
    return one == other
