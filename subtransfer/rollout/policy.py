"""A policy: a decoder with its weights and tokenizer, from a run's folder, a Hugging Face directory
or a PEFT adapter.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from subtransfer.models import families, hf, lora
from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.models.forward import forward
from subtransfer.rollout import scheduler
from subtransfer.rollout.sampling import Sampling
from subtransfer.rollout.scheduler import Turn
from subtransfer.runtime import distributed, sharding
from subtransfer.runtime.errors import UserError
from subtransfer.store.params import load_params, save_params


@dataclasses.dataclass(frozen=True)
class Policy:
    """A decoder ready to be used.

    Attributes:
      cfg: its geometry.
      params: the parameter tree; of an adapted policy, that of its base, shared with every other
        policy of that base.
      tokenizer: the Hugging Face tokenizer with its chat template.
      adapter: the LoRA factors, or None.
      source: the directory that the base's weights came from.
    """

    cfg: DecoderConfig
    params: Any
    tokenizer: Any
    adapter: lora.Adapter | None = None
    source: str = ""

    @functools.cached_property
    def weights(self) -> dict[str, Any]:
        """What the decoder takes: the parameters and the scaled factors of the adapter."""
        if self.adapter is None:
            return {"params": self.params}
        return lora.attach(
            self.params, self.adapter.factors, alpha=self.adapter.alpha, rank=self.adapter.rank
        )

    def merged(self) -> Any:
        """The parameter tree with the adapter merged in."""
        return self.params if self.adapter is None else lora.merge(self.params, self.adapter)

    def logits(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L V"]:
        """The next token's logits at every position: int32 [B, L] (no padding, or padded on the
        right) to float32 [B, L, V].

        Raises:
          UserError: `tokens` is not [B, L], or holds an id that the vocabulary has not.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
            raise UserError(
                f"Tokens must be integers of the shape [B, L], not {tokens.dtype} {list(tokens.shape)}."
            )
        self._check_ids(tokens)
        cfg = dataclasses.replace(
            self.cfg, attention="xla"
        )  # on whatever device, whichever kernel it was trained with
        return forward(cfg, self.weights, jnp.asarray(tokens, jnp.int32))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
        batch_size: int = 256,
    ) -> list[list[int]]:
        """Continues token-id prompts of any lengths, up to `batch_size` at a time.

        Args:
          temperature: of sampling; 0 is greedy. Row i draws from `fold_in(key(seed), i)`.
          stop_ids: tokens that end a row (and are part of it); None: the tokenizer's
            end-of-sequence token.

        Returns:
          The new ids of each row, up to `max_new_tokens`. `sample` returns their log-probs too.

        Raises:
          UserError: a prompt is empty or holds an id that the vocabulary has not, or a number is
            out of range.
        """
        turns = self.sample(
            prompts,
            Sampling(temperature),
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop_ids=stop_ids,
            batch_size=batch_size,
        )
        return [turn.ids for turn in turns]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        how: Sampling,
        *,
        max_new_tokens: int = 64,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
        batch_size: int = 256,
    ) -> list[Turn]:
        """As `generate`, with every way of sampling and the log-probs: one `Turn` a prompt."""
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise UserError(
                "There is nothing to continue: give one or more prompts of at least one token."
            )
        if min(max_new_tokens, batch_size) < 1 or how.temperature < 0:
            raise UserError(
                "max_new_tokens and batch_size must be above 0 and temperature at least 0."
            )
        for prompt in prompts:
            self._check_ids(np.asarray(prompt))
        if stop_ids is None:
            stop_ids = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        rows = [_Single(i, list(map(int, prompt))) for i, prompt in enumerate(prompts)]
        scheduler.serve(
            self.cfg,
            self.weights,
            rows,
            how,
            jax.random.key(seed),
            slots=batch_size,
            max_new_tokens=max_new_tokens,
            more_tokens=max_new_tokens,
            feed_tokens=1,
            stop_ids=stop_ids,
        )
        return [row.turn for row in rows]

    def _check_ids(self, ids: np.ndarray) -> None:
        if ids.size and not 0 <= ids.min() <= ids.max() < self.cfg.vocab_size:
            raise UserError(
                f"Token ids must lie in 0 .. {self.cfg.vocab_size - 1}: encode with this policy's own tokenizer."
            )


@dataclasses.dataclass
class _Single:
    """A conversation of one turn."""

    index: int
    prompt: list[int]
    turn: Turn = dataclasses.field(default_factory=Turn)

    def take(self, turn: Turn) -> None:
        self.turn = turn


# -- artefacts -------------------------------------------------------------------------------------------------------

META = "policy.json"


def save_base(directory: Path, cfg: DecoderConfig, params, tokenizer) -> None:
    """Writes a policy that stands alone: params.safetensors, policy.json, tokenizer/."""
    save_params(directory / "params.safetensors", params)
    tokenizer.save_pretrained(str(directory / "tokenizer"))
    _write(directory, cfg)


def save_imported(directory: Path, cfg: DecoderConfig, checkpoint: Path) -> None:
    """Writes a policy that stays where it is: policy.json with the path of its Hugging Face
    directory.
    """
    _write(directory, cfg, checkpoint=str(checkpoint.resolve()))


def save_tuned(
    directory: Path, cfg: DecoderConfig, base: Path, tuning: lora.Tuning, trainable
) -> None:
    """Writes a policy that was tuned from `base`: all weights, or only the LoRA factors."""
    adapter = None
    if tuning.method == "lora":
        adapter = {"alpha": tuning.alpha, "rank": tuning.rank, "dropout": tuning.dropout}
    save_params(directory / "params.safetensors", trainable)
    _write(directory, cfg, base=base.name, lora=adapter)


def _write(directory: Path, cfg: DecoderConfig, **more: Any) -> None:
    value = {
        "model": dataclasses.asdict(cfg),
        "base": None,
        "checkpoint": None,
        "lora": None,
        **more,
    }
    (directory / META).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def load_policy(
    directory: str | Path,
    mesh: Mesh | None = None,
    *,
    dtype: str = "float32",
    resident: MutableMapping[Path, Policy] | None = None,
) -> Policy:
    """Loads a policy: a policy folder of a run, a Hugging Face directory, or a PEFT adapter
    directory.

    Args:
      mesh: the devices that its parameters are sharded over; None is the first device.
      dtype: of computation, "float32" or "bfloat16" (a run's folder has its own).
      resident: policies that are loaded already, by folder; bases are taken from it and added to
        it, so that adapters of one base share one copy.

    Raises:
      UserError: the directory is none of these, or a file of it is missing or damaged.
    """
    directory = Path(directory)
    mesh = mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
    resident = {} if resident is None else resident
    if (directory / META).is_file():
        return _load_artifact(directory, mesh, resident)
    if (directory / "adapter_config.json").is_file():
        path = (
            families.read_json(directory / "adapter_config.json").get("base_model_name_or_path")
            or ""
        )
        if not Path(path).is_dir():
            raise UserError(
                f"The adapter {directory} belongs to {path!r}, which is no local directory: correct "
                "base_model_name_or_path in its adapter_config.json."
            )
        base = load_policy(path, mesh, dtype=dtype, resident=resident)
        adapter, _ = hf.load_adapter(directory, base.cfg)
        return _adapted(base, adapter)
    if (directory / "config.json").is_file():
        folder = directory.resolve()
        if folder not in resident:
            cfg = families.read_config(directory, dtype)
            tokenizer = hf.load_tokenizer(directory, cfg)
            params = _checked(hf.load_params(directory, cfg, mesh), mesh)
            resident[folder] = Policy(cfg, params, tokenizer, None, str(directory))
        return resident[folder]
    raise UserError(
        f"{directory} holds no policy (no policy.json, config.json or adapter_config.json): give a base*, teacher* or "
        "student* folder of a run's workdir, a Hugging Face directory or a PEFT adapter."
    )


def _load_artifact(directory: Path, mesh: Mesh, resident: MutableMapping[Path, Policy]) -> Policy:
    if directory in resident:
        return resident[directory]
    meta = families.read_json(directory / META)
    cfg = _geometry(directory, meta)
    if meta["checkpoint"] is not None:
        checkpoint = Path(meta["checkpoint"])
        if not checkpoint.is_dir():
            raise UserError(
                f"The checkpoint {checkpoint} that {directory} stands for is gone: put it back there."
            )
        params = _checked(hf.load_params(checkpoint, cfg, mesh), mesh)
        policy = Policy(cfg, params, hf.load_tokenizer(checkpoint, cfg), None, str(checkpoint))
        resident[directory] = policy
        return policy
    if meta["base"] is not None and not (directory.parent / meta["base"]).is_dir():
        base = directory.parent / meta["base"]
        raise UserError(
            f"The policy {directory} was tuned from {base}, which is missing: keep both in one workdir."
        )
    tree = load_params(directory / "params.safetensors")
    if meta["lora"] is not None:
        base = _load_artifact(directory.parent / meta["base"], mesh, resident)
        return _adapted(base, lora.Adapter(tree, **meta["lora"]))
    params = _checked(
        distributed.place(tree, sharding.param_shardings(abstract_params(cfg), mesh)), mesh
    )
    base = resident.get(directory.parent / meta["base"]) if meta["base"] else None
    policy = Policy(
        cfg,
        params,
        base.tokenizer if base else load_policy_tokenizer(directory),
        None,
        str(directory),
    )
    if meta["base"] is None:
        resident[directory] = policy
    return policy


def load_policy_tokenizer(directory: Path):
    """The tokenizer of a run's policy folder, without reading weights; a tuned policy has its
    base's.
    """
    meta = families.read_json(directory / META)
    if meta["base"] is not None:
        return load_policy_tokenizer(directory.parent / meta["base"])
    return hf.load_tokenizer(
        meta["checkpoint"] or directory / "tokenizer", _geometry(directory, meta)
    )


def _geometry(directory: Path, meta: dict[str, Any]) -> DecoderConfig:
    try:
        return DecoderConfig.from_dict(meta["model"])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The policy {directory} is of another version of this package ({error}): make it again."
        ) from error


def _adapted(base: Policy, adapter: lora.Adapter) -> Policy:
    placed = adapter.replace(factors=lora.place_factors(adapter.factors, base.params))
    return dataclasses.replace(base, adapter=placed)


def _checked(params, mesh: Mesh):
    sharding.check_divided(params, mesh, "The model")
    return params
