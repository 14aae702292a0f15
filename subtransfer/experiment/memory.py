"""Estimated memory of a run's stages on each device of a mesh, which `--dry_run` prints.

All is reckoned from shapes alone.
"""

from __future__ import annotations

import functools
import math
import os

import flax.linen as nn
import jax
import numpy as np

from subtransfer.experiment import lengths
from subtransfer.models.decoder import DecoderConfig, abstract_params
from subtransfer.probes import choice
from subtransfer.rollout import engine
from subtransfer.runtime import sharding
from subtransfer.training.chunked_loss import chunk_bytes


@functools.cache
def shard_count(cfg: DecoderConfig, mesh) -> int:
    """Parameters that the fullest device holds; `mesh` may be abstract."""
    shardings = sharding.param_shardings(abstract_params(cfg), mesh)
    shapes = jax.tree.map(
        lambda x: x.shape,
        nn.meta.unbox(abstract_params(cfg)),
        is_leaf=lambda x: hasattr(x, "shape"),
    )
    flat = zip(
        jax.tree.leaves(shardings),
        jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple)),
        strict=True,
    )
    return sum(math.prod(placed.shard_shape(shape)) for placed, shape in flat)


class Sizes:
    """Bytes on one device.

    Args:
      config: the validated config.
      cfg: the model's geometry.
      mesh: the mesh, or an abstract one.
      weight_bytes: of one resident parameter (4, or 2 for a checkpoint in 16 bits).
    """

    def __init__(self, config, cfg: DecoderConfig, mesh, weight_bytes: int = 4):
        self.config, self.cfg = config, cfg
        self.params = cfg.num_params
        self.rows = mesh.shape["data"] * mesh.shape["fsdp"]
        self.tensor = mesh.shape["tensor"]
        self._mesh, self._weight_bytes = mesh, weight_bytes
        self._width = np.dtype("float32").itemsize if cfg.dtype == "float32" else 2

    @functools.cached_property
    def _held(self) -> int:
        return shard_count(self.cfg, self._mesh)

    @property
    def weights(self) -> int:
        """The resident parameters."""
        return self._weight_bytes * self._held

    def training(self, batch: int, *, full: bool, other_weights: int = 0) -> int:
        """Peak of a training step on `batch` episodes.

        Args:
          full: all weights are trained, not only adapters.
          other_weights: bytes of a live teacher whose base is not shared.
        """
        cfg, tuning = self.cfg, self.config.tuning
        # Rows are padded or cut to so many.
        length = self.config.distill.max_tokens
        tokens = -(-batch // self.rows) * length
        trained = self._held if full else lora_size(cfg, tuning) // self.rows
        # Five float32 arrays: weights, gradient, two moments, update.
        state = (0 if full else self.weights) + 4 * 5 * trained
        # Kernels keep no scores.
        scores = 0
        if cfg.attention == "xla":
            scores = 4 * cfg.num_heads * length // self.tensor
        heads, kv = cfg.num_heads * cfg.head_width, cfg.num_kv_heads * cfg.head_width
        layer = (
            self._width * (8 * cfg.width + (3 * cfg.mlp_width + 4 * heads) // self.tensor)
            + 3 * scores
        )
        # Between layers, positions lie over the tensor axis.
        shared = self.tensor if length % self.tensor == 0 else 1
        products = self._width * (
            3 * cfg.width // shared + (heads + 2 * kv + 2 * cfg.mlp_width) // self.tensor
        )
        # What rematerialisation leaves of a layer for the backward pass.
        kept = {
            "full": self._width * cfg.width // shared,
            "projections": products,
            "dots": products + scores,
            "none": layer,
        }[cfg.remat]
        # Of one chunk: float32 logits, their softmax and its gradient; with a live teacher, twice.
        entries = cfg.vocab_size // self.tensor
        chunk = min(4 * tokens * entries, chunk_bytes(entries, cfg.width if full else 0))
        logits = 3 * chunk * (2 if other_weights or not full else 1)
        return (
            state
            + other_weights
            + self._fetched(full)
            + tokens * (cfg.num_layers * kept + layer)
            + logits
        )

    def _fetched(self, full: bool) -> int:
        """What each device holds whole (but for the tensor axis) of weights that lie divided.

        The head, or a layer, to compute with; and float32 gradients of both tables and a layer,
        before they are divided.
        """
        if self._mesh.shape["fsdp"] == 1:
            return 0
        cfg = self.cfg
        table, tables = cfg.vocab_size * cfg.width, 1 if cfg.tied_embeddings else 2
        layer = (cfg.num_params - tables * table) // cfg.num_layers
        gradients = 4 * (tables * table + layer) if full else 0
        return (self._width * max(table, layer) + gradients) // self.tensor

    def population(
        self, members: int, batch: int, *, full: bool, teacher: Sizes | None = None
    ) -> int:
        """Peak of a step of `members` trainings side by side, each whole on one device.

        A frozen base is there once on each device.

        Args:
          full: as of `training`.
          teacher: the live teachers, if their base is not shared.
        """
        shared = 0 if full else self._whole.weights
        own = (
            self._whole.training(
                batch, full=full, other_weights=teacher._whole.weights if teacher else 0
            )
            - shared
        )
        return shared + -(-members // (self.rows * self.tensor)) * own

    @functools.cached_property
    def _whole(self) -> Sizes:
        """The same on one device."""
        return Sizes(self.config, self.cfg, sharding.plan_mesh(1, 1, 1), self._weight_bytes)

    def rollout(self, batch: int) -> int:
        """Peak of a rollout of `batch` episodes side by side.

        These are all slots, and what the larger of a prefill and a call of `decode` needs.
        """
        cfg = self.cfg
        split = min(self.tensor, cfg.num_kv_heads) if cfg.num_kv_heads % self.tensor == 0 else 1
        rows = -(-batch // self.rows)
        lane = -(-rows // 2)  # two lanes take turns, so that one's work is half of all rows
        token = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_width * self._width // split
        prefix, slot = lengths.prefix_tokens(self.config), lengths.slot_tokens(self.config)
        logits = 4 * cfg.vocab_size // self.tensor
        fed = lengths.fed_tokens(self.config)
        # Float32 scores and weights of one layer's attention, the fed tokens' KV, the MLP's
        # activations.
        scores = 2 * 4 * cfg.num_heads // self.tensor * fed * (prefix + slot + fed)
        feed = lane * (
            scores
            + fed * (token + self._width * (4 * cfg.width + 3 * cfg.mlp_width // self.tensor))
        )
        burst = lane * (engine.Shape.decode_steps * token + 4 * logits)
        return self.weights + (rows * slot + prefix) * token + rows * logits + max(feed, burst)

    def choice(self, policies: int, acts: int, *, full: bool) -> int:
        """Peak of the choice probe of all policies of one model.

        Args:
          policies: how many.
          acts: how many are scored at a decision.
          full: as of `training`.
        """
        cfg = self.cfg
        length, places = lengths.decision(self.config, acts)
        row = choice.row_bytes(cfg, length, places, self.tensor)
        own = 4 * self._held if full else 0
        take = choice.portion(row, own, self.config.probe.tasks, policies, self.rows)
        # Loaded one by one, then side by side; one alone stays as it is.
        loaded = take.policies * (own or 4 * lora_size(cfg, self.config.tuning) // self.rows)
        stacked = loaded if take.policies > 1 else 0
        layer = self._width * (4 * cfg.width + 3 * cfg.mlp_width // self.tensor)
        worked = take.rows * take.policies * (length * layer + row)
        return self.weights + loaded + stacked + worked


def device_limit() -> int:
    """Bytes of one device: what its backend may use.

    Of a CPU that is its share of the machine's memory.
    """
    devices = jax.local_devices()
    # Only accelerators' backends have statistics.
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)


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
