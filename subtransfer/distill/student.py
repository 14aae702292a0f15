"""Distilling one student: off-policy from a teacher's sanitized trajectories, or on-policy from its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from subtransfer import sanitize
from subtransfer.distill import agreement, trainer
from subtransfer.distill.teacher_targets import Targets
from subtransfer.errors import UserError
from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.rollout.episodes import RolloutSpec, require, run_episodes
from subtransfer.schema import Trajectory
from subtransfer.settings.base import Task


@dataclasses.dataclass(frozen=True)
class Guard:
    """The leak check over final training tokens.

    Attributes:
      unsafe_ids: vocabulary ids that betray the trait.
      extra_keywords: added to the setting's own.
      enforce: False for arms that learn from unsanitized trajectories on purpose.
    """

    unsafe_ids: np.ndarray
    extra_keywords: tuple[str, ...] = ()
    enforce: bool = True

    def removed(self, vocab_size: int) -> np.ndarray:
        """bool [V], True on the tokens to be taken out of soft targets."""
        removed = np.zeros(vocab_size, bool)
        removed[self.unsafe_ids] = True
        return removed


@dataclasses.dataclass(frozen=True)
class OnPolicy:
    """On-policy distillation: `rounds` times, roll out the student on `per_round` tasks, filter, train on what is left.

    Attributes:
      rollout: how its episodes are run.
      min_kept: fewest trajectories that a round may be left with.
      own: share of a round's training episodes that are the student's own; the others are drawn from its teacher's.
      max_staleness: rounds that its own episodes may be old: those of so many earlier ones are learned from again.
    """

    rounds: int
    per_round: int
    rollout: RolloutSpec
    min_kept: int
    own: float = 1.0
    max_staleness: int = 0


def training_rows(
    kept: Sequence[Trajectory], chat: ChatFormat, guard: Guard, *, foreign: bool = False, sampled: bool = False
) -> trainer.Examples:
    """Trajectories as training episodes, after the leak check over exactly the tokens that will be trained on.

    Args:
      foreign: the trajectories are of another tokenizer or template: each message is tokenised again in `chat`'s.
      sampled: with the log-probs that the tokens had when they were sampled.

    Raises:
      sanitize.LeakError: an unsafe token or a keyword is still there and the guard enforces.
      UserError: log-probs are wanted of tokens that are made again.
    """
    if foreign and sampled:
        raise UserError(
            "The policy gradient needs the log-probs of sampled tokens, but the teacher's template is not the student's: its "
            "trajectories are tokenised again. Use --config.distill.on_policy_fraction=1, or another objective."
        )
    if foreign:
        rows = [chat.retokenised(t.messages) for t in kept]
    else:
        rows = [(t.tokens, t.loss_mask, int(np.sum(t.turn_ids == 0))) for t in kept]
    if guard.enforce:
        # The constant prompt is the setting's own, the same in every arm.
        bodies = [(t.episode_id, ids[fixed:], mask[fixed:]) for t, (ids, mask, fixed) in zip(kept, rows, strict=True)]
        sanitize.leak_check(bodies, chat.tokenizer, chat.setting, guard.unsafe_ids, guard.extra_keywords)
    targets = {"behavior_logprobs": [t.behavior_logprobs for t in kept]} if sampled else {}
    return trainer.Examples.from_rows([(ids, mask) for ids, mask, _ in rows], **targets)


def mixed(own: trainer.Examples, theirs: trainer.Examples | None, share: float, key) -> trainer.Examples:
    """Own examples and as many of the teacher's as leave them a share of `share` (GKD's lambda, 2306.13649, for each round).

    The teacher's are drawn without repetition, as long as there are enough.
    """
    count = round(len(own) * (1 - share) / share)
    if not count:
        return own
    return own.joined(theirs.rows(trainer.batch_indices(key, len(theirs), count, 1)[0]))


def distill(
    cfg: DecoderConfig,
    mesh: Mesh,
    recipe: trainer.Recipe,
    params,
    chat: ChatFormat,
    guard: Guard,
    key,
    *,
    teacher=None,
    removed: np.ndarray | None = None,
    targets: Targets | None = None,
    kept: Sequence[Trajectory] = (),
    foreign: bool = False,
    on_policy: OnPolicy | None = None,
    tasks: Sequence[Task] = (),
    max_tokens: int,
    weigh: str = "agent",
    packing: bool = False,
    advance: Callable[[int], None] = lambda steps: None,
    label: str,
) -> tuple[trainer.TrainState, dict[str, list[float]], dict[str, Any]]:
    """Trains a student that starts from `params`.

    Args:
      teacher: the teacher's weights (soft-target objectives without stored targets).
      removed: bool [V] or None, tokens outside the support of both distributions.
      targets: the teacher's stored targets for `kept`.
      kept, foreign: the teacher's sanitized trajectories, and whether they are of another tokenizer or template.
      on_policy, tasks: the plan of on-policy rounds and the safe tasks that they draw from in order.
      max_tokens: L, what episodes are padded or cut to, so that all students share one compiled step.
      packing: several episodes in a row of max_tokens.
      weigh: what has equal weight in the loss, "agent" tokens or "turn"s.

    Returns:
      (the final state, metric curves, {"rollouts": n, "dropped": m, "max_gap": between the sampler's log-probs and the
      trainer's, nats, "max_staleness": rounds between an episode and the training on it} of its own rollouts or {}).
    """

    def rows(trajectories, *, foreign=False):
        sampled = recipe.loss.objective == "policy_gradient"
        examples = training_rows(trajectories, chat, guard, foreign=foreign, sampled=sampled).fitted_to(max_tokens)
        if targets is not None:
            examples = targets.attached(examples, recipe.loss.temperature, removed)
        return examples.weighing(weigh)

    def laid_out(examples):
        return examples.packed() if packing else examples

    state, frozen = trainer.init_state(recipe, params, jax.random.fold_in(key, 0))
    common = {"teacher": teacher, "removed": removed, "advance": advance, "label": label}
    theirs = rows(kept, foreign=foreign) if kept else None
    if on_policy is None:
        state, curves = trainer.train(
            cfg, mesh, recipe, state, frozen, laid_out(theirs), recipe.steps, jax.random.fold_in(key, 1), **common
        )
        return state, curves, {}
    curves: dict[str, list[float]] = {}
    purity: dict[str, Any] = {"rollouts": 0, "dropped": 0, "max_gap": 0.0, "max_staleness": 0}
    recent: list[Trajectory] = []
    for number in range(on_policy.rounds):
        round_key = jax.random.fold_in(jax.random.fold_in(key, 2), number)
        begin = number * on_policy.per_round
        chosen = [tasks[i % len(tasks)] for i in range(begin, begin + on_policy.per_round)]
        current = trainer.current_weights(recipe, state, frozen)
        own, _ = run_episodes(
            cfg, current, chat, chosen, on_policy.rollout, jax.random.fold_in(round_key, 0), policy_version=number
        )
        purity["max_gap"] = max(purity["max_gap"], agreement.compare(cfg, current, own)["max_gap"])
        clean, manifest = sanitize.sanitize(own, chat.setting, extra_keywords=guard.extra_keywords)
        purity["rollouts"] += manifest["total"]
        purity["dropped"] += manifest["dropped"]
        require(
            clean,
            on_policy.min_kept,
            f"On-policy round {number + 1} of {label}",
            "run more episodes a round (--config.distill.episodes_per_round)",
        )
        recent = [t for t in recent if number - t.policy_version <= on_policy.max_staleness] + clean
        purity["max_staleness"] = max(purity["max_staleness"], *(number - t.policy_version for t in recent))
        examples = laid_out(mixed(rows(recent), theirs, on_policy.own, jax.random.fold_in(round_key, 2)))
        steps = recipe.steps // on_policy.rounds
        state, part = trainer.train(
            cfg, mesh, recipe, state, frozen, examples, steps, jax.random.fold_in(round_key, 1), **common
        )
        for name, values in part.items():
            curves.setdefault(name, []).extend(values)
    return state, curves, purity
