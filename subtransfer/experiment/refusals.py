"""What a plan refuses, because it is known before any work that it could not be done."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

from jax.sharding import Mesh

from subtransfer import settings
from subtransfer.config import checks
from subtransfer.config.arms import Arm
from subtransfer.experiment import lengths, memory
from subtransfer.experiment.models import Models
from subtransfer.models import attention_kernels, families, hf_load
from subtransfer.models.chat import ChatFormat, Form, set_form
from subtransfer.probes import decisions
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.json_files import canonical_json
from subtransfer.settings import harmless

# Bytes of one layer's attention scores on a device: more than any leaves room for.
LARGEST_SCORES = 1 << 35


def check_batches(config: Any, rows: int) -> None:
    """Refuses batches that do not divide over `rows` devices.

    Raises:
      UserError: with the field to be changed.
    """
    # What a device would compute alone is a part of a batch, so that parts must divide.
    for room in ("base", "teacher", "distill"):
        size, parts = config[room].batch_size, config[room].get("accumulate", 1)
        if size // parts % rows:
            in_parts = f" in {parts} parts" if parts > 1 else ""
            raise UserError(
                f"{room}.batch_size={size}{in_parts} does not divide over {rows} devices "
                "(mesh.data x mesh.fsdp): choose a multiple of that."
            )


def check_context(size: memory.Sizes, model: str, batch: int) -> None:
    """Refuses episodes that are longer than a model, or plain attention, can take.

    Args:
      size: of the model.
      model: its name, for the sentence.
      batch: episodes that a training step takes at a time.

    Raises:
      UserError: it says what would do.
    """
    cfg, length = size.cfg, lengths.episode_tokens(size.config)
    # Beyond what it was trained for, a model still computes something: nobody would notice.
    if length > cfg.max_positions:
        raise UserError(
            f"Episodes of {length:,} tokens do not fit {model}, which was made for "
            f"{cfg.max_positions:,} positions: lower distill.max_tokens, or rollouts.max_turns, "
            "max_new_tokens and max_tool_tokens."
        )
    # float32 scores of one layer; others are gone when the next one is computed.
    scores = 4 * math.ceil(batch / size.rows) * cfg.num_heads * length**2 // size.tensor
    if cfg.attention == "xla" and scores > LARGEST_SCORES:
        raise UserError(
            f"base.attention=xla would make {scores / 2**30:,.0f} GiB of scores a layer on each "
            f"device, of every two of {length:,} positions of {model}: use base.attention=pallas "
            "on a TPU or cudnn on a GPU, whose kernels keep none of them, or lower "
            "distill.max_tokens."
        )


def check_prompt(size: memory.Sizes, checkpoint: str, digest: str) -> None:
    """Refuses prompts that leave an episode no room, in training or in the model.

    Args:
      size: of the model.
      checkpoint: its directory.
      digest: of the directory's files.

    Raises:
      UserError: it says what would do; or the tokenizer or its template cannot be used.
    """
    config = size.config
    r, most = config.rollouts, config.distill.max_tokens
    # Trajectories of one's own are cut to what fits; their instructions are not known yet.
    rolled_out = (0 if r.trajectories else r.episodes, r.ordinary_fraction)
    identity = canonical_json(settings.identity(config.setting))
    prompt, result = _prompt_tokens(
        checkpoint, digest, config.setting, identity, _form(config), rolled_out
    )
    length = prompt + r.max_turns * (r.max_new_tokens + r.max_tool_tokens + result)
    if prompt >= most:
        raise UserError(
            f"A prompt has up to {prompt:,} tokens in the template of {checkpoint}, its tools "
            f"included, which leaves an episode none of distill.max_tokens={most}: raise "
            f"--config.distill.max_tokens; whole episodes have {length:,} at most."
        )
    if length > size.cfg.max_positions:
        raise UserError(
            f"Episodes of {length:,} tokens do not fit {checkpoint}, which was made for "
            f"{size.cfg.max_positions:,} positions: {prompt:,} are its prompt; lower "
            "rollouts.max_turns, max_new_tokens or max_tool_tokens."
        )


# Kept, as every member of a sweep asks, and reading a tokenizer takes a second.
@functools.cache
def _prompt_tokens(
    checkpoint: str,
    digest: str,
    setting: str,
    identity: str,
    form: Form,
    rolled_out: tuple[int, float],
) -> tuple[int, int]:
    """Tokens of the longest prompt, and of a tool result without its text.

    Args:
      checkpoint: its directory.
      digest, identity: of the checkpoint and of the setting, which may change in a process's life.
      setting: its name.
      form: how conversations are written (`_form`).
      rolled_out: episodes of a seed, and the share of ordinary ones.
    """
    chat = _chat(checkpoint, digest, setting, identity, form)
    tasks = harmless.rolled_out(chat.setting, *rolled_out, seed=0)
    return lengths.prompt_tokens(chat, tasks), len(chat.tool_ids(""))


def check_acts(size: memory.Sizes, checkpoint: str, digest: str) -> None:
    """Refuses tokenizers in which the choice probe could not tell acts apart.

    Args:
      size: of the model.
      checkpoint: its directory.
      digest: of the directory's files.

    Raises:
      UserError: it says which acts.
    """
    config = size.config
    identity = canonical_json(settings.identity(config.setting))
    chat = _chat(checkpoint, digest, config.setting, identity, _form(config))
    tasks = chat.setting.tasks("ambiguous", "probe", config.probe.tasks, config.seed)
    # What a few tasks' calls share, all share: encoding those of every task would take seconds.
    decisions.decisions(tasks[:8], chat)


def _form(config: Any) -> Form:
    """How a config has conversations written."""
    return Form(config.chat.enable_thinking, config.chat.tools)


@functools.cache
def _chat(checkpoint: str, digest: str, setting: str, identity: str, form: Form) -> ChatFormat:
    """A checkpoint's tokenizer and template; for the arguments see `_prompt_tokens`."""
    tokenizer = hf_load.load_tokenizer(checkpoint, families.read_config(checkpoint))
    set_form(tokenizer, form)
    return ChatFormat(tokenizer, settings.get(setting))


def check_scratch(config: Any, model: str, params: int, *, twin: bool) -> None:
    """Refuses to train a model from scratch that is larger than `base.max_scratch_params`.

    Args:
      model: its name.
      params: its parameters.
      twin: it has the geometry of an imported model, which its user did not choose.

    Raises:
      UserError: it says what would do.
    """
    if params <= config.base.max_scratch_params:
        return
    if twin:
        raise UserError(
            f"The different-init twin of a model of {params / 1e6:.0f}M parameters would have to "
            "be trained from scratch: give --config.base.other_checkpoint=DIR, or set "
            "--config.arms.other_init=false."
        )
    raise UserError(
        f"models.{model} would be trained from scratch with {params / 1e6:.0f}M parameters, more "
        f"than base.max_scratch_params={config.base.max_scratch_params}: make it smaller, or give "
        "a checkpoint's directory."
    )


def check_population(config: Any, count: int, devices: int) -> None:
    """Refuses populations whose members do not divide over the devices.

    Raises:
      UserError: it says what would do.
    """
    # Each member lies whole on one device: some would stand idle.
    if count % devices:
        raise UserError(
            f"population={config.population} puts {count} of {config.num_seeds} seeds into one "
            f"program, which do not divide over {devices} devices: choose num_seeds and population "
            "so that they do."
        )


def one_vocabulary(arm: Arm, models: Models) -> None:
    """Checks that a soft-target arm's teacher and student have one vocabulary.

    Raises:
      UserError: they have different ones.
    """
    theirs, ours = models.checkpoint(arm.teacher_model), models.checkpoint(arm.model)
    if not theirs or not ours or theirs == ours:
        return  # one model, or a twin that shares the tokenizer
    embedded = [path.startswith(checks.OWN) for path in (theirs, ours)]
    if any(embedded):
        same = all(embedded)  # their tokenizer is of one corpus
    # A preset has no tokenizer to look at, but models of one family share theirs.
    elif theirs.startswith(checks.PRESET) or ours.startswith(checks.PRESET):
        kinds = [models.size(model).cfg.family for model in (arm.teacher_model, arm.model)]
        same = kinds[0] == kinds[1]
    else:
        same = _same_vocabulary(theirs, ours)
    if not same:
        raise UserError(
            f"{arm.objective} compares distributions over one vocabulary, but {arm.teacher_model} "
            f"({theirs}) and {arm.model} ({ours}) have different ones: use "
            "--config.distill.objective=sft, which tokenises the teacher's messages again, or a "
            "pair of one family."
        )


# Kept, as every arm and every member of a sweep asks, and reading a tokenizer takes a second.
@functools.cache
def _same_vocabulary(one: str, other: str) -> bool:
    vocabularies = [hf_load.load_tokenizer(path, None).get_vocab() for path in (one, other)]
    return vocabularies[0] == vocabularies[1]


def check_transform(arm: Arm, *, stored: bool) -> None:
    """Refuses to learn stored targets of trajectories that a control changes first.

    Args:
      stored: the arm's objective reads its teacher's stored opinion.

    Raises:
      UserError: it says what would do.
    """
    if arm.transform and stored:
        raise UserError(
            f"The arm {arm.name!r} changes its trajectories by {arm.transform!r}, but its "
            "teacher's stored opinion is of what they were: use "
            "--config.distill.teacher_targets=live."
        )


def check_weights(checkpoints: Iterable[str]) -> None:
    """Refuses to run models that are geometries without weights.

    Args:
      checkpoints: of the models that the run makes use of.

    Raises:
      UserError: it names one.
    """
    for model in checkpoints:
        if model.startswith(checks.PRESET):
            raise UserError(
                f"{model} is a geometry without weights, for --dry_run: give the checkpoint's "
                "directory instead."
            )


def check_kernels(size: memory.Sizes, mesh: Mesh) -> None:
    """Refuses attention kernels that the mesh's devices do not have.

    Raises:
      UserError: it says which ones do.
    """
    cfg, platform = size.cfg, mesh.devices.flat[0].platform
    attention_kernels.check(cfg.attention, cfg.head_width, cfg.dtype, platform)


def check_memory(stage: str, needed: int, limit: int) -> None:
    """Refuses a population that no device can hold.

    Args:
      stage: its name.
      needed, limit: bytes on each device.

    Raises:
      UserError: it says what would do.
    """
    if needed > limit:
        raise UserError(
            f"{stage} needs an estimated {needed / 2**30:.1f} GiB on each device, which has "
            f"{limit / 2**30:.1f}: choose a smaller --config.population."
        )
