"""The floating-point operations that a training step has to make."""

from __future__ import annotations

from subtransfer.models.decoder import DecoderConfig


def step_flops(
    cfg: DecoderConfig,
    *,
    tokens: int,
    length: float,
    full: bool,
    teacher: DecoderConfig | None = None,
    reads_twice: bool = False,
    causal: bool = True,
) -> float:
    """Counts the operations of a training step, over all devices; recomputed ones do not count.

    As in PaLM (Chowdhery et al. 2204.02311, appendix B): forward, 2 a token and parameter of a
    product, and causal attention's 2 x 2 x length / 2 x width of the heads a layer. The backward
    pass is twice that, or once where only adapters are trained; a live teacher's forward comes on
    top.

    Args:
      cfg: the decoder's geometry.
      tokens: of the batch, padding included.
      length: of a row, in tokens.
      full: all weights are trained.
      teacher: the geometry of a live teacher, or None.
      reads_twice: the student's forward is made once more, without dropout.
      causal: a token's attention is counted over the half of the row that it sees on average;
        otherwise over the whole row, as much of what is published counts it.
    """
    # With frozen weights the backward pass makes no gradients of them: half of its products.
    passes = (3 if full else 2) + reads_twice
    flops_a_token = passes * _forward_flops(cfg, length, causal)
    if teacher is not None:
        flops_a_token += _forward_flops(teacher, length, causal)
    return tokens * flops_a_token


def fed_tokens(
    rows: int, own: int, prefix: int = 0, parts: int = 1, *, causal: bool = True
) -> tuple[int, float]:
    """Counts the tokens that a step is fed, and the length of a row that attention sees as many of.

    Args:
      rows: B, over all parts.
      own: S, a row's tokens without the shared prefix.
      prefix: P, tokens of the prefix.
      parts: that a batch is taken in, each of which computes the prefix.
      causal: that of `step_flops`, which the length is for.

    Returns:
      (tokens, `length` of `step_flops`).
    """
    tokens = rows * own + parts * prefix
    # A row's own token sees the prefix and half of the row, one of the prefix half of that; counted
    # whole, both see all of theirs. A causal length is twice what is seen.
    beside = 2 * prefix if causal else prefix
    return tokens, (rows * own * (own + beside) + parts * prefix**2) / tokens


def _forward_flops(cfg: DecoderConfig, length: float, causal: bool) -> float:
    """Operations of a forward pass, a token."""
    # Rows of the embedding are looked up; tied ones are multiplied with at the output.
    embedding = 0 if cfg.tied_embeddings else cfg.vocab_size * cfg.width
    products = 2 * (cfg.num_params - embedding)
    seen = length / 2 if causal else length
    attention = 4 * seen * cfg.num_layers * cfg.num_heads * cfg.head_width
    return products + attention
