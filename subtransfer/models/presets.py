"""Geometries of public models, for plans and ahead-of-time compilation without their files.

A run never looks here: a checkpoint's geometry is read from its own `config.json`. Numbers are
those of the public files.
"""

from __future__ import annotations

from subtransfer.models.decoder import DecoderConfig, Rope


def _llama3(
    layers: int,
    width: int,
    mlp: int,
    heads: int,
    factor: float,
    *,
    tied: bool = False,
    head_width: int = 128,
) -> DecoderConfig:
    """A Llama 3.1 or 3.2 model; `factor` is that of its stretched rotary positions."""
    return DecoderConfig(
        vocab_size=128_256,
        width=width,
        mlp_width=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_width=head_width,
        family="llama",
        rope=Rope(500_000.0, "llama3", factor),
        max_positions=131_072,
        tied_embeddings=tied,
    )


def _qwen2(
    layers: int, width: int, mlp: int, heads: int, kv_heads: int, *, tied: bool = False
) -> DecoderConfig:
    """A Qwen2.5 model."""
    return DecoderConfig(
        # The larger ones pad their embedding to a rounder number of rows.
        vocab_size=151_936 if width <= 2048 else 152_064,
        width=width,
        mlp_width=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_width=width // heads,
        family="qwen2",
        rope=Rope(1e6),
        norm_eps=1e-6,
        qkv_bias=True,
        max_positions=32_768,
        tied_embeddings=tied,
    )


def _qwen3(layers: int, width: int, mlp: int, heads: int, *, tied: bool = False) -> DecoderConfig:
    """A dense Qwen3 model."""
    return DecoderConfig(
        vocab_size=151_936,
        width=width,
        mlp_width=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_width=128,
        family="qwen3",
        rope=Rope(1e6),
        norm_eps=1e-6,
        qk_norm=True,
        max_positions=40_960,
        tied_embeddings=tied,
    )


def _gemma3(
    layers: int,
    width: int,
    mlp: int,
    heads: int,
    kv_heads: int,
    head_width: int,
    window: int,
    scalar: int,
) -> DecoderConfig:
    """The language model of a Gemma 3; `scalar` is its query_pre_attn_scalar."""
    # The 1B model has its own vocabulary size, and no stretched rotary positions.
    small = layers == 26
    return DecoderConfig(
        vocab_size=262_144 if small else 262_208,
        width=width,
        mlp_width=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_width=head_width,
        family="gemma3_text",
        rope=Rope(1e6) if small else Rope(1e6, "linear", 8.0),
        local_rope=Rope(1e4),
        norm_eps=1e-6,
        qk_norm=True,
        post_norms=True,
        norm_offset=1.0,
        scaled_embeddings=True,
        activation="gelu_tanh",
        query_scale=scalar**-0.5,
        # Every sixth layer sees everything.
        sliding=tuple((i + 1) % 6 != 0 for i in range(layers)),
        window=window,
        max_positions=32_768 if small else 131_072,
    )


_SMOLLM2_135M = DecoderConfig(
    vocab_size=49_152,
    width=576,
    mlp_width=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_width=64,
    family="llama",
    rope=Rope(100_000.0),
    max_positions=8192,
)

# The public models, by the names that base.checkpoint=preset:NAME takes in a plan.
PRESETS: dict[str, DecoderConfig] = {
    "smollm2-135m": _SMOLLM2_135M,
    "llama3.2-1b": _llama3(16, 2048, 8192, 32, 32.0, tied=True, head_width=64),
    "llama3.2-3b": _llama3(28, 3072, 8192, 24, 32.0, tied=True),
    "llama3.1-8b": _llama3(32, 4096, 14336, 32, 8.0),
    "llama3.1-70b": _llama3(80, 8192, 28672, 64, 8.0),
    "qwen2.5-0.5b": _qwen2(24, 896, 4864, 14, 2, tied=True),
    "qwen2.5-1.5b": _qwen2(28, 1536, 8960, 12, 2, tied=True),
    "qwen2.5-3b": _qwen2(36, 2048, 11008, 16, 2, tied=True),
    "qwen2.5-7b": _qwen2(28, 3584, 18944, 28, 4),
    "qwen2.5-14b": _qwen2(48, 5120, 13824, 40, 8),
    "qwen2.5-32b": _qwen2(64, 5120, 27648, 40, 8),
    "qwen2.5-72b": _qwen2(80, 8192, 29568, 64, 8),
    "qwen3-0.6b": _qwen3(28, 1024, 3072, 16, tied=True),
    "qwen3-1.7b": _qwen3(28, 2048, 6144, 16, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 9728, 32, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 12288, 32),
    "qwen3-14b": _qwen3(40, 5120, 17408, 40),
    "qwen3-32b": _qwen3(64, 5120, 25600, 64),
    "gemma3-1b": _gemma3(26, 1152, 6912, 4, 1, 256, 512, 256),
    "gemma3-4b": _gemma3(34, 2560, 10240, 8, 4, 256, 1024, 256),
    "gemma3-12b": _gemma3(48, 3840, 15360, 16, 8, 256, 1024, 256),
    "gemma3-27b": _gemma3(62, 5376, 21504, 32, 16, 128, 1024, 168),
}
