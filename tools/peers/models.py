"""Checkpoints of random weights, made on the spot."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from subtransfer.models import hf_export
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.presets import PRESETS
from subtransfer.rollout.policy import Policy
from subtransfer.runtime import sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import pretrain

GEOMETRIES = {
    "0.2m": DecoderConfig(197, 64, 256, 3, 4, 4, 16, tied_embeddings=False),
    "10m": DecoderConfig(197, 320, 1280, 6, 5, 5, 64, tied_embeddings=False),
}


def geometry(name: str, family: str, dtype: str) -> DecoderConfig:
    """The named geometry as one of a family."""
    known = {
        **GEOMETRIES,
        **{key: cfg for key, cfg in PRESETS.items() if cfg.family in ("llama", "qwen2")},
    }
    if name not in known:
        raise UserError(f"Unknown geometry {name!r}: choose one of {', '.join(known)}.")
    cfg = dataclasses.replace(known[name], dtype=dtype)
    if family == "qwen2" and cfg.family != "qwen2":
        return dataclasses.replace(
            cfg, family="qwen2", qkv_bias=True, rope=dataclasses.replace(cfg.rope, kind="default")
        )
    return cfg


def write(directory: Path, name: str, family: str, dtype: str, seed: int = 0) -> Path:
    """Writes a checkpoint: a Hugging Face directory whose tokenizer has one word for each id."""
    made = policy(name, family, dtype, seed)
    hf_export.save_checkpoint(directory, made.cfg, made.params, made.tokenizer)
    return directory


def policy(name: str, family: str, dtype: str, seed: int = 0) -> Policy:
    """The same as a policy in memory, for geometries whose files would take minutes to write."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    cfg = geometry(name, family, dtype)
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    params = pretrain.init_params(cfg, mesh, jax.random.key(seed))
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
    words = tokenizers.models.WordLevel({f"t{i}": i for i in range(cfg.vocab_size)}, unk_token="t0")
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words),
        unk_token="t0",
        pad_token="t0",
        eos_token="t0",
        chat_template=template,
    )
    return Policy(cfg, params, tokenizer)
