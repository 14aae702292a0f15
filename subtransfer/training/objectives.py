"""Distillation objectives: plain functions of logits to nats per token, and metrics.

Shapes: logits float [B, L, V], already aligned so that `logits[:, t]` is the prediction of
`tokens[:, t]`; `loss_mask` [B, L], either bool, True on the tokens that count (the agent's own), or
float, each token's weight. All means over tokens are sum_t w_t x_t / sum_t w_t. Softmaxes are taken
in float32. Below, q is the student, p the teacher, y the tokens; no objective differentiates the
teacher. `removed` tokens (bool [V], or [B, L, V] where each place has its own; the unsafe ones)
leave both distributions, which are renormalised: neither value nor gradient depends on what teacher
or student think of them.

Every objective is defined once, for each token (the `..._tokens` functions, which `chunked_loss.py`
runs over chunks of a long batch): values [B, L] of what is minimised, and metrics [B, L]. The
functions over whole batches are weighted means of these.

What the rest of the program must know of an objective is one `Objective`, at the end of this file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from subtransfer.runtime.field import Field
from subtransfer.runtime.registry import Registry

_REMOVED = -1e9
# Less probability than this beyond a teacher's top k is rounding of float32 sums, not a tail.
_NO_TAIL = 1e-6

Weights = Float[Array, "B L"] | Bool[Array, "B L"]
Scalar = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]
PerToken = tuple[Float[Array, "B L"], dict[str, Float[Array, "B L"]]]


def log_probs(
    logits: Float[Array, "B L V"],
    temperature: float = 1.0,
    removed: Bool[Array, "*rows V"] | None = None,
) -> Float[Array, "B L V"]:
    """Log-softmax at a temperature, without the `removed` tokens.

    They are taken out of the support, and the rest is renormalised.
    """
    return jax.nn.log_softmax(_supported(logits, temperature, removed), axis=-1)


def removed_mass(
    logits: Float[Array, "B L V"], removed: Bool[Array, "*rows V"], temperature: float = 1.0
) -> Float[Array, "B L"]:
    """The probability of the `removed` tokens at each place, at a temperature; no gradient."""
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32) / temperature
    out = jnp.where(removed, logits, _REMOVED)
    return jnp.exp(jax.nn.logsumexp(out, axis=-1) - jax.nn.logsumexp(logits, axis=-1))


def weighted_sums(values: PerToken, loss_mask: Weights) -> Scalar:
    """Sums over tokens of weight x value, of the loss and of each metric.

    Without weight, a value may be anything.
    """
    weights = loss_mask.astype(jnp.float32)
    return jax.tree.map(lambda x: jnp.sum(jnp.where(weights > 0, x * weights, 0.0)), values)


def divided(sums: Scalar, loss_mask: Weights) -> Scalar:
    """Weighted sums as means; 0 where no token counts."""
    total = jnp.sum(loss_mask.astype(jnp.float32))
    return jax.tree.map(lambda x: x / jnp.where(total > 0, total, 1.0), sums)


def weighted_mean(values: PerToken, loss_mask: Weights) -> Scalar:
    """Means over tokens, of the loss and of each metric."""
    return divided(weighted_sums(values, loss_mask), loss_mask)


# -- over a batch --------------------------------------------------------------------------------


def sft(
    student_logits: Float[Array, "B L V"],
    tokens: Int[Array, "B L"],
    loss_mask: Weights,
    removed: Bool[Array, "*rows V"] | None = None,
) -> Scalar:
    """Cross-entropy of the sampled tokens: -mean_t log q(y_t)."""
    return weighted_mean(sft_tokens(student_logits, tokens, removed), loss_mask)


def forward_kl(
    student_logits: Float[Array, "B L V"],
    teacher_logits: Float[Array, "B L V"],
    loss_mask: Weights,
    temperature: float = 1.0,
    removed: Bool[Array, "*rows V"] | None = None,
) -> Scalar:
    """KL(p || q) of teacher p and student q (Hinton et al. 1503.02531).

    It is scaled by temperature^2, as there. The metric "loss" is the divergence itself, without
    that factor.
    """
    return weighted_mean(
        forward_kl_tokens(student_logits, teacher_logits, temperature, removed), loss_mask
    )


def reverse_kl(
    student_logits: Float[Array, "B L V"],
    teacher_logits: Float[Array, "B L V"],
    loss_mask: Weights,
    temperature: float = 1.0,
    removed: Bool[Array, "*rows V"] | None = None,
) -> Scalar:
    """KL(q || p), the full-distribution reverse KL of on-policy distillation.

    See MiniLLM (2306.08543) and GKD (2306.13649). Taken in closed form at every position of the
    student's own rollouts; the rollout itself is not differentiated. Scaled by temperature^2 like
    the forward KL; the metric "loss" is not.
    """
    return weighted_mean(
        reverse_kl_tokens(student_logits, teacher_logits, temperature, removed), loss_mask
    )


def jsd(
    student_logits: Float[Array, "B L V"],
    teacher_logits: Float[Array, "B L V"],
    loss_mask: Weights,
    beta: float = 0.5,
    temperature: float = 1.0,
    removed: Bool[Array, "*rows V"] | None = None,
) -> Scalar:
    """Generalised Jensen-Shannon divergence (GKD, Agarwal et al. 2306.13649, equation 1).

        beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q

    TRL's `generalized_jsd_loss` is the reference, also in two conventions. At the ends, where the
    formula is 0, stand the limits of the formula divided by beta (1 - beta): beta = 0 is KL(p || q)
    and beta = 1 is KL(q || p). And the logits are divided by the temperature but the divergence is
    NOT multiplied by temperature^2, unlike that of `forward_kl` and `reverse_kl`: forward_kl(T) =
    T^2 jsd(beta=0, T). TRL reduces to the same mean over tokens.

    Args:
      beta: static, in [0, 1].
    """
    return weighted_mean(
        jsd_tokens(student_logits, teacher_logits, beta, temperature, removed), loss_mask
    )


def policy_gradient(
    student_logits: Float[Array, "B L V"],
    teacher_logits: Float[Array, "B L V"],
    tokens: Int[Array, "B L"],
    behavior_logprobs: Float[Array, "B L"],
    loss_mask: Weights,
    importance_bound: float = 2.0,
    removed: Bool[Array, "*rows V"] | None = None,
    current_logits: Float[Array, "B L V"] | None = None,
) -> Scalar:
    """Reverse KL as a policy gradient on the sampled tokens alone.

        A_t = log p(y_t) - log q(y_t),  r_t = q(y_t) / q_behavior(y_t)
        loss     = -mean_t min(r_t, c) A_t
        gradient = -mean_t min(r_t, c) A_t grad log q(y_t)

    A_t is each token's own advantage, not differentiated and without a return from later tokens, as
    in on-policy distillation (Lu and Thinking Machines Lab, On-Policy Distillation, 2025; MiniLLM
    2306.08543 has the sum over later tokens). r_t corrects for a student that has moved since its
    rollouts; it is truncated at c as in IMPALA (Espeholt et al. 1802.01561): a token beyond the
    bound keeps the weight c instead of dropping out. At r = 1, the expectation of the gradient over
    y_t ~ q is that of KL(q || p) at this position.

    `removed` renormalises p and q, not the caller's `behavior_logprobs`: if those are of all
    tokens, r_t is larger by 1 / (1 - the student's mass on removed tokens).

    Args:
      behavior_logprobs: log-prob of each token when it was sampled, at temperature 1.
      importance_bound: c, at least 1.
      current_logits: the student's logits without dropout, where `student_logits` have it. A_t and
        r_t are of the policy that is sampled from, which has none; only the gradient of log q(y_t)
        passes through the dropout. None: `student_logits` have none.

    Metrics: "loss"; "reverse_kl", the mean of log q(y) - log p(y); "importance", of r
    (untruncated); "truncated", the share of tokens with r > c; "teacher_agreement", of arg-max.
    """
    values = policy_gradient_tokens(
        student_logits,
        teacher_logits,
        tokens,
        behavior_logprobs,
        importance_bound,
        removed,
        current_logits,
    )
    return weighted_mean(values, loss_mask)


def forward_kl_top_k(
    student_logits: Float[Array, "B L V"],
    teacher_ids: Int[Array, "B L k"],
    teacher_logprobs: Float[Array, "B L k"],
    loss_mask: Weights,
    temperature: float = 1.0,
    removed: Bool[Array, "*rows V"] | None = None,
) -> Scalar:
    """KL(p || q) over the teacher's k likeliest tokens, and all other tokens as one.

        sum_i p_i log(p_i / q_i) + p_rest log(p_rest / q_rest),  p_rest = 1 - sum_i p_i

    This is a lower bound of `forward_kl`, as merging outcomes loses information (TRL's IW-OPD
    trainer calls it `add_tail`). It is the same where teacher and student agree on how the rest is
    divided, and with k = the whole support. Scaled by temperature^2.

    Args:
      teacher_ids: int32, k different tokens at each position, none of them `removed`.
      teacher_logprobs: their log-probs AT `temperature` and over the tokens that are not `removed`.
        Log-probs at another temperature cannot be converted, as the sum over the rest at one tells
        nothing of that at another; at the same temperature nothing is approximate.
    """
    values = forward_kl_top_k_tokens(
        student_logits, teacher_ids, teacher_logprobs, temperature, removed
    )
    return weighted_mean(values, loss_mask)


# -- for each token ------------------------------------------------------------------------------


def sft_tokens(student_logits, tokens, removed=None) -> PerToken:
    """`sft` of each token."""
    logits = _supported(student_logits, 1.0, removed)
    # As in log_softmax, but no log-prob of another token is ever made: [B, L, V] once less.
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    nll = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - _of(shifted, tokens)
    return nll, {"loss": nll, "accuracy": _equal(_likeliest(logits), tokens)}


def forward_kl_tokens(
    student_logits, teacher_logits, temperature: float = 1.0, removed=None
) -> PerToken:
    """`forward_kl` of each token."""
    logp, logq = _pair(student_logits, teacher_logits, temperature, removed)
    return _divergence(_kl(logp, logq), logp, logq, temperature**2)


def reverse_kl_tokens(
    student_logits, teacher_logits, temperature: float = 1.0, removed=None
) -> PerToken:
    """`reverse_kl` of each token."""
    logp, logq = _pair(student_logits, teacher_logits, temperature, removed)
    return _divergence(_kl(logq, logp), logp, logq, temperature**2)


def jsd_tokens(
    student_logits, teacher_logits, beta: float = 0.5, temperature: float = 1.0, removed=None
) -> PerToken:
    """`jsd` of each token.

    Raises:
      ValueError: beta is not in [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta} cannot be: it weighs two distributions, from 0 to 1")
    logp, logq = _pair(student_logits, teacher_logits, temperature, removed)
    if beta == 0:
        value = _kl(logp, logq)
    elif beta == 1:
        value = _kl(logq, logp)
    else:
        logm = jnp.logaddexp(logp + math.log(beta), logq + math.log1p(-beta))
        value = beta * _kl(logp, logm) + (1 - beta) * _kl(logq, logm)
    return _divergence(value, logp, logq, 1.0)


def policy_gradient_tokens(
    student_logits,
    teacher_logits,
    tokens,
    behavior_logprobs,
    importance_bound: float = 2.0,
    removed=None,
    current_logits=None,
) -> PerToken:
    """`policy_gradient` of each token."""
    logp, logq = _pair(student_logits, teacher_logits, 1.0, removed)
    own = _of(logq, tokens)
    current = (
        own if current_logits is None else _of(log_probs(current_logits, 1.0, removed), tokens)
    )
    fixed = jax.lax.stop_gradient(current)
    gap = fixed - _of(logp, tokens)
    importance = jnp.exp(fixed - behavior_logprobs)
    weighted = jnp.minimum(importance, importance_bound) * gap
    # Its value is `weighted`, its gradient `weighted` times that of log q.
    loss = weighted * (1 + own - jax.lax.stop_gradient(own))
    metrics = {
        "loss": weighted,
        "reverse_kl": gap,
        "importance": importance,
        "truncated": (importance > importance_bound).astype(jnp.float32),
        "teacher_agreement": _equal(_likeliest(logp), _likeliest(logq)),
    }
    return loss, metrics


def forward_kl_top_k_tokens(
    student_logits, teacher_ids, teacher_logprobs, temperature: float = 1.0, removed=None
) -> PerToken:
    """`forward_kl_top_k` of each token."""
    logq = log_probs(student_logits, temperature, removed)
    teacher_logprobs = teacher_logprobs.astype(jnp.float32)
    p = jnp.exp(teacher_logprobs)
    rest = 1 - jnp.sum(p, axis=-1)
    rest = jnp.where(rest > _NO_TAIL, rest, 0.0)
    # 1 - sum(q) would lose a small tail, and its gradient, to rounding: the tail is summed for
    # itself.
    tail = jnp.put_along_axis(logq, teacher_ids, _REMOVED, axis=-1, inplace=False)
    log_tail = jax.nn.logsumexp(tail, axis=-1)
    kl = jnp.sum(p * (teacher_logprobs - jnp.take_along_axis(logq, teacher_ids, axis=-1)), axis=-1)
    kl = kl + rest * (jnp.log(jnp.where(rest > 0, rest, 1.0)) - log_tail)
    best = jnp.argmax(p, axis=-1, keepdims=True)
    likeliest = jnp.take_along_axis(teacher_ids, best, axis=-1)[..., 0]
    return kl * temperature**2, {
        "loss": kl,
        "teacher_agreement": _equal(likeliest, _likeliest(logq)),
    }


def _supported(logits, temperature, removed) -> Float[Array, "B L V"]:
    """Logits in float32 at a temperature.

    Those of removed tokens are so low that they have no probability.
    """
    logits = logits.astype(jnp.float32) / temperature
    return logits if removed is None else jnp.where(removed, _REMOVED, logits)


def _pair(student_logits, teacher_logits, temperature, removed):
    """(log p, log q)."""
    # A teacher beside the student may share its base: no gradient must reach it from here.
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    return log_probs(teacher_logits, temperature, removed), log_probs(
        student_logits, temperature, removed
    )


def _kl(log_first, log_second) -> Float[Array, "B L"]:
    return jnp.sum(jnp.exp(log_first) * (log_first - log_second), axis=-1)


def _divergence(value, logp, logq, scale) -> PerToken:
    agreement = _equal(_likeliest(logp), _likeliest(logq))
    return value * scale, {"loss": value, "teacher_agreement": agreement}


@jax.custom_vjp
def _of(values: Float[Array, "B L V"], tokens: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """The token's entry at each place.

    Its gradient is a comparison that fuses with what follows, not a scatter into zeros.
    """
    return jnp.take_along_axis(values, tokens[..., None], axis=-1)[..., 0]


def _of_forward(values, tokens):
    return _of(values, tokens), (tokens, jnp.arange(values.shape[-1]))


def _of_backward(kept, d):
    tokens, entries = kept
    return jnp.where(tokens[..., None] == entries, d[..., None], 0), None


_of.defvjp(_of_forward, _of_backward)


def _likeliest(values: Float[Array, "B L V"]) -> Int[Array, "B L"]:
    """The first of the largest, by two plain reductions.

    The arg-max takes ten times as long on a CPU.
    """
    best = jnp.max(values, axis=-1, keepdims=True)
    last = values.shape[-1] - 1
    return jnp.min(jnp.where(values == best, jnp.arange(last + 1), last), axis=-1)


def _equal(a, b) -> Float[Array, "B L"]:
    return (a == b).astype(jnp.float32)


# -- what the rest of the program knows of an objective ------------------------------------------


@dataclasses.dataclass(frozen=True)
class TokenInputs:
    """What an objective is computed from, at each place of [B, L].

    Attributes:
      student_logits: float [B, L, V].
      teacher_logits: float [B, L, V]; None without a live teacher.
      targets: "tokens" int32 [B, L], and what else the examples hold (see `Examples.targets`).
      removed: bool [B, L, V], tokens outside the support of both distributions at each place; None:
        there are none.
      temperature: of the softmax of soft targets.
      options: the values of the objective's own fields, by name.
      current_logits: float [B, L, V], not differentiated, for objectives that need
        "behavior_logprobs": the student's logits without the dropout of its training, as it is
        sampled from; ratios to the behaviour are of these. None: `student_logits` have no dropout.
    """

    student_logits: Any
    teacher_logits: Any
    targets: Mapping[str, Any]
    removed: Any
    temperature: Any
    options: Mapping[str, Any]
    current_logits: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """One objective: all that config, plan, training, table, report and studies know of it.

    Attributes:
      name: as in `distill.objective`, and in the names of arms.
      label: what a person reads. How much is on-policy is added where the config decides it.
      per_token: from `TokenInputs` to what is minimised and to metrics, float32 [B, L] each. One
        metric is "loss", what is shown as the objective's value.
      learns_from: "teacher": from its teacher's trajectories; "own": from its own rollouts;
        "either": from as much of its own as `distill.on_policy_fraction` says.
      teacher: what it needs of its teacher's opinion: "none", "live" (a forward pass at each step)
        or "live or stored" (it can also learn from the teacher's top k, read from disk).
      needs: arrays of the examples that it reads beside the tokens, such as "behavior_logprobs".
      in_table: part of "all".
      is_divergence: its "loss" is a divergence of student and teacher, in nats a token.
      fields: config fields of its own below `distill.`, by name.
      scalars: which of these are numbers that a compiled step can take as arguments, so that the
        trainings of a population may differ in them.
      origin: "", or the plugin that it comes from.
    """

    name: str
    label: str
    per_token: Callable[[TokenInputs], PerToken]
    learns_from: Literal["teacher", "own", "either"] = "teacher"
    teacher: Literal["none", "live", "live or stored"] = "live"
    needs: tuple[str, ...] = ()
    in_table: bool = False
    is_divergence: bool = False
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    scalars: tuple[str, ...] = ()
    origin: str = ""

    @property
    def soft(self) -> bool:
        """It compares the student's distribution with its teacher's."""
        return self.teacher != "none"

    @property
    def can_be_stored(self) -> bool:
        """It can learn from stored targets."""
        return self.teacher == "live or stored"

    def defaults(self) -> dict[str, Any]:
        """The values of its own fields where nobody sets them."""
        return {name: field.default for name, field in self.fields.items()}


REGISTRY: Registry[Objective] = Registry("objective")
register = REGISTRY.register
get = REGISTRY.get
names = REGISTRY.names


def table(plugins: Collection[str] = ()) -> tuple[str, ...]:
    """What "all" means in a config: the published table's objectives, and those of plugins."""
    return tuple(record.name for record in REGISTRY.among(plugins) if record.in_table)


def _forward_kl(inputs: TokenInputs) -> PerToken:
    x = inputs
    if "teacher_ids" in x.targets:
        ids, logprobs = x.targets["teacher_ids"], x.targets["teacher_logprobs"]
        return forward_kl_top_k_tokens(x.student_logits, ids, logprobs, x.temperature, x.removed)
    return forward_kl_tokens(x.student_logits, x.teacher_logits, x.temperature, x.removed)


register(
    Objective(
        "sft",
        "SFT on sampled tokens",
        lambda x: sft_tokens(x.student_logits, x.targets["tokens"], x.removed),
        teacher="none",
        in_table=True,
    )
)
register(
    Objective(
        "forward_kl",
        "forward KL, off-policy",
        _forward_kl,
        teacher="live or stored",
        in_table=True,
        is_divergence=True,
    )
)
register(
    Objective(
        "reverse_kl",
        "reverse KL",
        lambda x: reverse_kl_tokens(x.student_logits, x.teacher_logits, x.temperature, x.removed),
        learns_from="either",
        in_table=True,
        is_divergence=True,
    )
)
register(
    Objective(
        "jsd",
        "generalised JSD",
        lambda x: jsd_tokens(
            x.student_logits, x.teacher_logits, x.options["jsd_beta"], x.temperature, x.removed
        ),
        learns_from="either",
        is_divergence=True,
        fields={
            "jsd_beta": Field(
                0.5,
                "of jsd: the teacher's share of the mixture that both are compared with. At 0 and "
                "1, where that divergence is 0, the forward and the reverse KL stand in its place: "
                "they are its limits divided by beta (1 - beta), so that the ends are no "
                "continuation of the values beside them",
                low=0,
                high=1,
            )
        },
    )
)
register(
    Objective(
        "policy_gradient",
        "policy gradient of the reverse KL",
        lambda x: policy_gradient_tokens(
            x.student_logits,
            x.teacher_logits,
            x.targets["tokens"],
            x.targets["behavior_logprobs"],
            x.options["importance_bound"],
            x.removed,
            x.current_logits,
        ),
        learns_from="either",
        needs=("behavior_logprobs",),
        fields={
            "importance_bound": Field(
                2.0,
                "of policy_gradient: a token that is likelier now than when it was sampled weighs "
                "at most so many times as much for it",
                above=0,
            )
        },
        scalars=("importance_bound",),
    )
)
