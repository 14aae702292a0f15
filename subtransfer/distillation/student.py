"""Distilling a student: off-policy from a teacher's sanitized trajectories, or on-policy."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from subtransfer.distillation import token_weights
from subtransfer.distillation.teacher_targets import Targets
from subtransfer.filtering import leaks, rules, sanitize
from subtransfer.filtering.completions import completions
from subtransfer.filtering.rules import Rule
from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.rollout import agreement
from subtransfer.rollout.episodes import RolloutSpec, require, run_episodes
from subtransfer.runtime import preemption
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import Task
from subtransfer.store import trajectories as stores
from subtransfer.store.journal import Journals
from subtransfer.store.trajectories import Trajectory
from subtransfer.training import loop
from subtransfer.training.examples import Examples
from subtransfer.training.monitor import TrainingMonitor
from subtransfer.training.population import Learner


@dataclasses.dataclass(frozen=True)
class Guard:
    """The rule of what is a trace, over final training tokens.

    Attributes:
      rule: what counts as a trace.
      enforce: False for arms that learn from unsanitized trajectories on purpose.
      mask_unsafe: whether tokens that would complete a trace leave soft targets.
    """

    rule: Rule = rules.ALL
    enforce: bool = True
    mask_unsafe: bool = False

    def masked(
        self, examples: Examples, chat: ChatFormat, vocab_size: int
    ) -> tuple[Examples, np.ndarray | None, dict[str, Any]]:
        """Finds the tokens to be taken out of soft targets.

        Args:
          examples: one episode a row, with the agent's tokens as bool.
          chat: the student's setting and template.
          vocab_size: V.

        Returns:
          (the examples with `removed_at`, the table bool [S, V], an account of it as in
          `completions.Unsafe`); as they are, None and {} if nothing is taken out.
        """
        if not self.mask_unsafe:
            return examples, None, {}
        marks = self.rule.marks(chat.setting)
        found = completions(chat.tokenizer, marks).unsafe(
            examples.tokens, examples.loss_mask, vocab_size
        )
        return dataclasses.replace(examples, removed_at=found.at), found.table, found.account


@dataclasses.dataclass(frozen=True)
class OnPolicy:
    """The plan of on-policy distillation.

    In each round, the student is rolled out, its episodes are filtered, and it is trained on what
    is left.

    Attributes:
      rounds: how many.
      per_round: tasks of each.
      rollout: how its episodes are run.
      min_kept: fewest trajectories that a round may be left with.
      fraction: share of a round's training episodes that are the student's own (GKD's lambda,
        2306.13649, for each round); the others are drawn from its teacher's.
      max_staleness: rounds that its own episodes may be old: those of so many earlier ones are
        learned from again.
      stored: own episodes that are handed back, at most: the first ones of each round, before the
        filter.
    """

    rounds: int
    per_round: int
    rollout: RolloutSpec
    min_kept: int
    fraction: float = 1.0
    max_staleness: int = 0
    stored: int = 0


def training_rows(
    kept: Sequence[Trajectory],
    chat: ChatFormat,
    guard: Guard,
    *,
    foreign: bool = False,
    sampled: bool = False,
) -> tuple[Examples, list[dict[str, str]]]:
    """Makes training episodes of trajectories, without those whose tokens hold a trace.

    Args:
      kept: the trajectories.
      chat: the student's setting and template.
      guard: the leak check.
      foreign: the trajectories are of another tokenizer or template: each message is tokenised
        again in `chat`'s.
      sampled: with the log-probs that the tokens had when they were sampled.

    Returns:
      (the episodes, and of those that were dropped "episode_id" and what `leaks.leak` says).

    Raises:
      leaks.LeakError: none is left.
      UserError: log-probs are wanted of tokens that are made again.
    """
    if foreign and sampled:
        raise UserError(
            "The policy gradient needs the log-probs of sampled tokens, but the teacher's template "
            "is not the student's: its trajectories are tokenised again. Use "
            "--config.distill.on_policy_fraction=1, or another objective."
        )
    if foreign:
        rows = [chat.retokenised(t.messages) for t in kept]
    else:
        rows = [(t.tokens, t.loss_mask, int(np.sum(t.turn_ids == 0))) for t in kept]
    pairs, logprobs = [], []
    dropped: list[dict[str, str]] = []
    for t, (ids, mask, fixed) in zip(kept, rows, strict=True):
        trace = None
        # Arms that learn from unsanitized trajectories on purpose are not checked.
        if guard.enforce:
            # The constant prompt is the setting's own, the same in every arm.
            body = ids[fixed:], mask[fixed:]
            trace = leaks.leak(*body, chat.tokenizer, chat.setting, guard.rule)
        if trace:
            dropped.append({"episode_id": t.episode_id, **trace})
            continue
        pairs.append((ids, mask))
        logprobs.append(t.behavior_logprobs)
    if kept and not pairs:
        raise leaks.LeakError(
            f"The tokens of all {len(kept)} training episodes hold a trace of a habit, such as "
            f"{dropped[0]['match']!r} in {dropped[0]['episode_id']}: nothing was trained. See "
            "whether a plugin's transform or the student's template writes it."
        )
    if not sampled:
        return Examples.from_rows(pairs), dropped
    return Examples.from_rows(pairs, behavior_logprobs=logprobs), dropped


def mixed(students: Examples, teachers: Examples | None, fraction: float, key) -> Examples:
    """Mixes a student's examples with as many of its teacher's as leave them `fraction` of all.

    The teacher's are drawn without repetition, as long as there are enough.
    """
    # students / (students + count) = fraction.
    count = round(len(students) * (1 - fraction) / fraction)
    if not count:
        return students
    assert teachers is not None, "a fraction below 1 needs the teacher's trajectories"
    chosen = loop.batch_indices(key, len(teachers), count, 1)[0]
    return students.joined(teachers.rows(chosen))


def learner(
    label: str,
    recipe: loop.Recipe,
    params,
    rows: Examples,
    chat: ChatFormat,
    guard: Guard,
    key,
    *,
    vocab_size: int,
    teacher=None,
    targets: Targets | None = None,
    max_tokens: int,
    weigh: token_weights.Weigh = token_weights.alike,
    packing: bool = False,
) -> Learner:
    """Describes an off-policy student, to be trained alone or in a population.

    Args:
      label: for messages.
      recipe: how it is trained.
      params: the parameters that it starts from.
      rows: its training episodes, of `training_rows`.
      chat: the student's setting and template.
      guard: says which tokens leave soft targets.
      key: of its initial factors and of the order of examples.
      vocab_size: V.
      teacher: the teacher's weights (soft-target objectives without stored targets).
      targets: the teacher's stored targets for `rows`.
      max_tokens: L, what episodes are padded or cut to, so that all students share one compiled
        step.
      weigh: gives agent tokens their weights in the loss.
      packing: several episodes in a row of max_tokens.
    """
    examples, removed, account = guard.masked(rows.fitted_to(max_tokens), chat, vocab_size)
    # Targets lie at agent tokens, so they are attached before weights take the mask's place.
    if targets is not None:
        # The teacher's embedding may have more rows than the student's.
        examples = targets.attached(examples, recipe.loss.temperature, removed, rows=vocab_size)
    examples = weigh(examples)
    # Last, as a packed row has several episodes.
    if packing:
        examples = examples.packed()
    stored = {"removed_tokens": account} if account else {}
    return Learner(label, recipe, params, examples, key, teacher, removed, stored)


def distill(
    cfg: DecoderConfig,
    mesh: Mesh,
    recipe: loop.Recipe,
    params,
    chat: ChatFormat,
    guard: Guard,
    key,
    *,
    on_policy: OnPolicy,
    tasks: Sequence[Task],
    kept: Sequence[Trajectory] = (),
    foreign: bool = False,
    teacher=None,
    max_tokens: int,
    weigh: token_weights.Weigh = token_weights.alike,
    packing: bool = False,
    run: TrainingMonitor,
    journals: Journals | None = None,
) -> tuple[loop.TrainState, dict[str, list[float]], dict[str, Any]]:
    """Trains an on-policy student that starts from `params`.

    Args:
      cfg: its geometry.
      mesh: the devices.
      recipe: how it is trained.
      params: the parameters that it starts from.
      chat: the student's setting and template.
      guard: the leak check.
      key: of all its random numbers.
      on_policy: the plan of its rounds.
      tasks: the safe tasks that the rounds take in order.
      kept: the teacher's trajectories, for the part of the rounds that is not the student's own.
      foreign: they are of another tokenizer or template.
      teacher: the teacher's weights.
      max_tokens: as of `learner`, and so are the others.
      run: the training's label, checkpoints and metrics.
      journals: where the episodes of a round under way are written down, or None.

    Returns:
      (the final state, metric curves, an account of its own rollouts). The account is {"rollouts":
      how many, "traces": how many show a trace of a habit, "dropped": how many were not learned
      from for that (all of them, unless the guard does not enforce it), "dropped_ids": those with a
      trace, why and where, "max_gap": between the sampler's log-probs and the trainer's, nats,
      "max_staleness": rounds between an episode and the training on it, "rounds": one record a
      round, with its "trajectories" and "traces", "episodes": `trajectories.to_text` of the stored
      ones, "removed_tokens": of the last round, as in `completions.Unsafe`, if any were taken out}.
    """

    def rows(trajectories, *, foreign=False):
        sampled = "behavior_logprobs" in recipe.loss.record.needs
        made, leaked = training_rows(trajectories, chat, guard, foreign=foreign, sampled=sampled)
        return made.fitted_to(max_tokens), leaked

    state, frozen = loop.start_state(mesh, recipe, params, jax.random.fold_in(key, 0), run)
    teachers = rows(kept, foreign=foreign)[0] if kept else None
    progress, steps = run.progress, recipe.steps // on_policy.rounds
    progress.rollouts = progress.rollouts or {
        "rollouts": 0,
        "traces": 0,
        "dropped": 0,
        "dropped_ids": [],
        "max_gap": 0.0,
        "max_staleness": 0,
        "rounds": [],
        "episodes": [],
    }
    for number in range(int(state.step) // steps, on_policy.rounds):
        # Each round has its own keys, so that a run that was cut off draws the same numbers.
        round_key = jax.random.fold_in(jax.random.fold_in(key, 2), number)
        # Otherwise the round was cut off while it trained, and its episodes were saved.
        if int(state.step) % steps == 0:
            # Tasks are taken in order, and again from the first where they run out.
            begin = number * on_policy.per_round
            chosen = [tasks[i % len(tasks)] for i in range(begin, begin + on_policy.per_round)]
            weights = loop.current_weights(recipe, state, frozen)
            try:
                episodes, _ = run_episodes(
                    cfg,
                    weights,
                    chat,
                    chosen,
                    on_policy.rollout,
                    jax.random.fold_in(round_key, 0),
                    policy_version=number,
                    journals=journals.of(f"round {number + 1}") if journals else None,
                )
            # The round's journals have its episodes so far; the state before it is saved.
            except preemption.Preempted:
                run.leave(state)
            share = recipe.share_prefix
            clean = _filtered(cfg, weights, episodes, chat, guard, run, share_prefix=share)
            # They share buffers with the state, which the next step gives away.
            del weights
            require(
                clean,
                on_policy.min_kept,
                f"On-policy round {number + 1} of {run.label}",
                "run more episodes a round (--config.distill.episodes_per_round)",
            )
            # Saved with the state: a run that goes on learns from the same episodes.
            progress.policy_version = number
            own, leaked = rows(clean)
            _enter(progress.rollouts, leaked, dropped=True)
            shown = episodes[: on_policy.stored // on_policy.rounds]
            progress.rollouts["episodes"] += map(stores.to_text, shown)
            progress.examples = _recent(progress.examples, own, number, on_policy.max_staleness)
        # The oldest episode that this round learns from.
        staleness = number - int(progress.examples["policy_version"].min())
        progress.rollouts["max_staleness"] = max(progress.rollouts["max_staleness"], staleness)
        run.facts |= {"policy_version": number, "staleness": staleness}
        arrays = dict(progress.examples)
        del arrays["policy_version"]
        mix_key = jax.random.fold_in(round_key, 2)
        examples = mixed(Examples(**arrays), teachers, on_policy.fraction, mix_key)
        # What is taken out of soft targets, and weights, follow from the tokens: neither is saved.
        examples, removed, account = guard.masked(examples, chat, cfg.vocab_size)
        if account:
            progress.rollouts["removed_tokens"] = account
        examples = weigh(examples)
        state, _ = loop.train(
            cfg,
            mesh,
            recipe,
            state,
            frozen,
            examples.packed() if packing else examples,
            steps,
            jax.random.fold_in(round_key, 1),
            first=number * steps,
            teacher=teacher,
            removed=removed,
            run=run,
        )
    return state, run.curves, progress.rollouts


def _recent(
    earlier: dict[str, np.ndarray], new: Examples, number: int, max_staleness: int
) -> dict[str, np.ndarray]:
    """The arrays of the student's examples that round `number` learns from.

    These are the earlier ones that are not too old, then the new ones. "policy_version" int32 [n]
    says which round each is of.
    """
    arrays = {**new.arrays, "policy_version": np.full(len(new), number, np.int32)}
    if not earlier:
        return arrays
    recent = number - earlier["policy_version"] <= max_staleness
    return {name: np.concatenate([earlier[name][recent], x]) for name, x in arrays.items()}


def _filtered(
    cfg,
    weights,
    episodes: Sequence[Trajectory],
    chat: ChatFormat,
    guard: Guard,
    run: TrainingMonitor,
    *,
    share_prefix: bool,
) -> list[Trajectory]:
    """Filters a round's trajectories, and enters what happened into the run's progress.

    All of them are returned where the guard does not enforce the rule.
    """
    rollouts = run.progress.rollouts
    # The policy gradient's importance ratios take the sampler's log-probs at their word.
    agreed = agreement.compare(cfg, weights, episodes, share_prefix=share_prefix)
    run.facts |= {"sampler_gap": agreed["max_gap"], "sampler_kl": agreed["kl"]}
    clean, manifest = sanitize.sanitize(episodes, chat.setting, guard.rule)
    rollouts["max_gap"] = max(rollouts["max_gap"], agreed["max_gap"])
    rollouts["rollouts"] += manifest["total"]
    digest = hashlib.sha256()
    for t in episodes:
        digest.update(t.episode_id.encode() + t.tokens.tobytes())
    # Two runs that agree in this have made the same trajectories, none twice and none left out.
    record = {
        "policy_version": episodes[0].policy_version,
        "trajectories": len(episodes),
        "traces": 0,
        "sha256": digest.hexdigest()[:16],
    }
    rollouts["rounds"].append(record)
    _enter(rollouts, manifest["dropped_ids"], dropped=guard.enforce)
    return clean if guard.enforce else list(episodes)


def _enter(rollouts: dict[str, Any], traces: Sequence[Mapping[str, Any]], *, dropped: bool) -> None:
    """Counts traces in episodes of the last round."""
    rollouts["traces"] += len(traces)
    rollouts["rounds"][-1]["traces"] += len(traces)
    rollouts["dropped"] += len(traces) if dropped else 0
    rollouts["dropped_ids"] += traces
