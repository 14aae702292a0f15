"""What the machine can do at best, measured in the run that quotes it."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from subtransfer.models.decoder import DecoderConfig


def _seconds(run, *args) -> float:
    """The best of ten calls: a limit, not a typical case."""
    jax.block_until_ready(run(*args))
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        jax.block_until_ready(run(*args))
        best = min(best, time.perf_counter() - begin)
    return best


def matmul_flops(dtype: str) -> float:
    """FLOP/s of one large product."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n), jnp.dtype(dtype))
    return 2 * n**3 / _seconds(jax.jit(jnp.matmul), x, x)


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy of 256 MiB (CPU) or 4 GiB."""
    size = 2**28 if jax.default_backend() == "cpu" else 2**32
    x = jnp.zeros(size // 4, jnp.float32)
    # Written in place: pages of a fresh buffer would be most of what is measured.
    step, best = jax.jit(lambda x: x + 1, donate_argnums=0), float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        x = jax.block_until_ready(step(x))
        best = min(best, time.perf_counter() - begin)
    return 2 * size / best


def bytes_a_step(cfg: DecoderConfig, batch: int, context: float, itemsize: int) -> float:
    """Bytes that one decoding step must read.

    These are every weight but the embedding's unused rows, and the batch's keys and values.
    """
    unused = 0 if cfg.tied_embeddings else cfg.vocab_size * cfg.width
    cache = 2 * batch * context * cfg.num_layers * cfg.num_kv_heads * cfg.head_width
    return itemsize * (cfg.num_params - unused + cache)
