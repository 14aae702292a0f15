"""The geometry of the embedded model."""

from __future__ import annotations

from typing import Any

from subtransfer.models.decoder import DecoderConfig

# The fields of `base` that decide it, beside the size of the vocabulary.
FIELDS = (
    "base.width",
    "base.mlp_width",
    "base.num_layers",
    "base.num_heads",
    "base.num_kv_heads",
    "base.dtype",
    "base.remat",
    "base.attention",
)


def embedded_geometry(config: Any, vocab_size: int) -> DecoderConfig:
    """The embedded model's geometry with a given vocabulary."""
    b = config.base
    return DecoderConfig(
        vocab_size=vocab_size,
        width=b.width,
        mlp_width=b.mlp_width,
        num_layers=b.num_layers,
        num_heads=b.num_heads,
        num_kv_heads=b.num_kv_heads,
        # No field of its own: heads that do not fill the width have no use here.
        head_width=b.width // b.num_heads,
        dtype=b.dtype,
        remat=b.remat,
        attention=b.attention,
    )
