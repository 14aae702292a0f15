"""Distillation objectives: plain functions of logits, each a scalar in nats per token, and its metrics.

Shapes: logits float [B, L, V], already aligned so that `logits[:, t]` is the prediction of `tokens[:, t]`; `loss_mask`
bool [B, L], True on the tokens that count (the agent's own). Softmaxes are taken in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

OBJECTIVES = ("sft", "forward_kl", "reverse_kl")
_REMOVED = -1e9


def masked_mean(values: Float[Array, "B L"], loss_mask: Bool[Array, "B L"]) -> Float[Array, ""]:
    """Mean over the tokens that count; 0 where there are none."""
    weights = loss_mask.astype(jnp.float32)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def log_probs(
    logits: Float[Array, "B L V"], temperature: float = 1.0, removed: Bool[Array, " V"] | None = None
) -> Float[Array, "B L V"]:
    """Log-softmax at a temperature; `removed` tokens are taken out of the support and the rest is renormalised."""
    logits = logits.astype(jnp.float32) / temperature
    if removed is not None:
        logits = jnp.where(removed[None, None, :], _REMOVED, logits)
    return jax.nn.log_softmax(logits, axis=-1)


def sft(
    student_logits: Float[Array, "B L V"], tokens: Int[Array, "B L"], loss_mask: Bool[Array, "B L"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of the sampled tokens: -mean_t log q(y_t)."""
    logq = log_probs(student_logits)
    nll = -jnp.take_along_axis(logq, tokens[..., None], axis=-1)[..., 0]
    accuracy = (jnp.argmax(logq, axis=-1) == tokens).astype(jnp.float32)
    loss = masked_mean(nll, loss_mask)
    return loss, {"loss": loss, "accuracy": masked_mean(accuracy, loss_mask)}


def forward_kl(
    student_logits: Float[Array, "B L V"],
    teacher_logits: Float[Array, "B L V"],
    loss_mask: Bool[Array, "B L"],
    temperature: float = 1.0,
    removed: Bool[Array, " V"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """KL(p || q) of teacher p and student q (Hinton et al. 1503.02531), mean over tokens; scaled by temperature^2 as there.

    `removed` tokens leave both distributions, which are renormalised: the teacher's opinion of them is never seen.
    """
    logp = log_probs(jax.lax.stop_gradient(teacher_logits), temperature, removed)
    logq = log_probs(student_logits, temperature, removed)
    return _divergence(jnp.exp(logp), logp, logq, logp, logq, loss_mask, temperature)


def reverse_kl(
    student_logits: Float[Array, "B L V"],
    teacher_logits: Float[Array, "B L V"],
    loss_mask: Bool[Array, "B L"],
    temperature: float = 1.0,
    removed: Bool[Array, " V"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """KL(q || p), the full-distribution reverse KL of on-policy distillation (MiniLLM 2306.08543, GKD 2306.13649).

    Taken in closed form at every position of the student's own rollouts; the rollout itself is not differentiated.
    """
    logp = log_probs(jax.lax.stop_gradient(teacher_logits), temperature, removed)
    logq = log_probs(student_logits, temperature, removed)
    return _divergence(jnp.exp(logq), logq, logp, logp, logq, loss_mask, temperature)


def _divergence(weights, log_first, log_second, logp, logq, loss_mask, temperature):
    kl = masked_mean(jnp.sum(weights * (log_first - log_second), axis=-1), loss_mask)
    agreement = (jnp.argmax(logp, axis=-1) == jnp.argmax(logq, axis=-1)).astype(jnp.float32)
    return kl * temperature**2, {"loss": kl, "teacher_agreement": masked_mean(agreement, loss_mask)}
