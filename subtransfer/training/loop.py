"""The one training loop: base, teacher and every student pass through `train`.

What varies is the loss, what is trained and by which optimiser (`Loss`), the learning rates
(`Recipe`), and where the examples come from. Many optimiser steps run in one dispatch as a
`lax.scan`: on a CPU a fresh set of buffers a step costs as much as the arithmetic, and on an
accelerator the host stays out of the way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from subtransfer.models import lora
from subtransfer.models.decoder import DecoderConfig, head, unembed
from subtransfer.models.forward import forward
from subtransfer.models.lora import Tuning
from subtransfer.runtime import distributed, sharding
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.user_code import failures_of_record
from subtransfer.training import batch_parts, chunked_loss, common_prefix, objectives
from subtransfer.training.examples import Examples
from subtransfer.training.flops import fed_tokens, step_flops
from subtransfer.training.monitor import TrainingMonitor, steps_done
from subtransfer.training.optimizer import Optimizer, Schedule


@dataclasses.dataclass(frozen=True)
class Loss:
    """What is minimised over which weights: all that a compiled step depends on besides shapes.

    Attributes:
      objective: the name of an `objectives.Objective`.
      temperature: softmax temperature of soft targets (but the policy gradient's, which is 1).
      tuning: the weights that are trained.
      options: the objective's own fields: a mapping, or pairs of name and value; those that are
        not given have their defaults.
      accumulate: parts that a batch is taken in, one after the other, to need less memory.
      teacher: the live teacher's geometry; None: the student's own.
      optimizer: how a gradient becomes a step.
      positions: the most tokens of a row that count; logits are made of so many alone. 0: of all.
      record: the objective itself, found by its name.
    """

    objective: str
    temperature: float = 1.0
    tuning: Tuning = Tuning()
    options: Any = ()
    accumulate: int = 1
    teacher: DecoderConfig | None = None
    optimizer: Optimizer = Optimizer()
    positions: int = 0
    record: objectives.Objective = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        record = objectives.get(self.objective)
        given = dict(self.options)
        options = {}
        for name, value in record.defaults().items():
            options[name] = given.pop(name, value)
        # What is left is a bug of the caller's: fields are checked with the config.
        if given:
            raise ValueError(f"{self.objective} has no option {next(iter(given))!r}")
        object.__setattr__(self, "record", record)
        # Pairs can be hashed: a compiled step is found by them.
        object.__setattr__(self, "options", tuple(options.items()))

    @property
    def scalars(self) -> dict[str, Any]:
        """The numbers that a compiled step can take as arguments, by name."""
        own = {name: value for name, value in self.options if name in self.record.scalars}
        return {"temperature": self.temperature, "alpha": self.tuning.alpha, **own}

    def with_scalars(self, values: Mapping[str, Any]) -> Loss:
        """The same with other values, also traced ones, for some of its `scalars`."""
        values = {**self.scalars, **values}
        temperature, alpha = values.pop("temperature"), values.pop("alpha")
        return dataclasses.replace(
            self,
            temperature=temperature,
            tuning=dataclasses.replace(self.tuning, alpha=alpha),
            options={**dict(self.options), **values},
        )

    @property
    def dropout(self) -> float:
        """The probability that a feature is dropped."""
        # Dropout is of adapters' inputs: without adapters there is nothing to drop.
        return self.tuning.dropout if self.tuning.method == "lora" else 0.0

    @property
    def reads_twice(self) -> bool:
        """Whether the student is run once more, without dropout, as its tokens are sampled.

        That is for objectives that weigh tokens by how much likelier they have become since they
        were sampled: to the network with dropout, a student that has not moved seems to have.
        """
        return bool(self.dropout) and "behavior_logprobs" in self.record.needs

    def per_token(
        self,
        student_logits,
        teacher_logits,
        targets: Mapping[str, jax.Array],
        removed,
        current_logits=None,
    ) -> objectives.PerToken:
        """The objective and its metrics for each token, float32 [B, L].

        Args:
          student_logits, teacher_logits: [B, L, V] (the teacher's is None for an objective without
            one, and for stored targets).
          targets: "tokens" [B, L], and what the objective needs beside them (see `Examples`).
          removed: bool [S, V] or None, tokens outside the support of both distributions: at each
            place those of the row that targets["removed_at"] names. The metric "removed_mass" is
            then what a live teacher gives to them.
          current_logits: as of `objectives.TokenInputs`.

        Raises:
          UserError: a plugin's objective returns something else.
        """
        if removed is not None:
            targets = dict(targets)
            removed = removed[targets.pop("removed_at")]
        inputs = objectives.TokenInputs(
            student_logits,
            teacher_logits,
            targets,
            removed,
            self.temperature,
            dict(self.options),
            current_logits,
        )
        with failures_of_record("objective", self.record):
            values = self.record.per_token(inputs)
        _check_per_token(self.record, values, student_logits.shape[:2])
        if removed is not None and teacher_logits is not None:
            mass = objectives.removed_mass(teacher_logits, removed, self.temperature)
            values[1]["removed_mass"] = mass
        return values


def _check_per_token(record: objectives.Objective, values: Any, shape: tuple[int, ...]) -> None:
    """Raises UserError if an objective's values are not a loss and metrics for each token."""
    # One number for the whole batch would broadcast, and train on something else without a word.
    whole = isinstance(values, tuple) and len(values) == 2 and isinstance(values[1], dict)
    if whole and "loss" in values[1]:
        try:
            chex.assert_shape(jax.tree.leaves(values), shape)
            return
        except AssertionError:
            pass
    where = f" of {record.origin}" if record.origin else ""
    found = jax.tree.map(lambda x: getattr(x, "shape", x), values)
    raise UserError(
        f"The objective {record.name!r}{where} must return a loss and a dict of metrics with "
        f"'loss', each of shape {shape}, one number a token; it returns {found}."
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
      loss: what one compiled step depends on.
      steps: optimiser steps of the whole run, where the schedule ends.
      batch_size: B, episodes a step.
      learning_rate: the schedule's peak.
      schedule: of the learning rate.
      share_prefix: whether what all rows begin with is computed once a step (`common_prefix.py`).
    """

    loss: Loss
    steps: int
    batch_size: int
    learning_rate: float
    schedule: Schedule = Schedule()
    share_prefix: bool = False

    @property
    def tuning(self) -> Tuning:
        """The weights that are trained."""
        return self.loss.tuning

    def learning_rates(self, first: int, count: int) -> np.ndarray:
        """The rates of the steps first, first + 1, ...: float32 [count]."""
        return self.schedule.rates(self.learning_rate, self.steps, first, count)


@struct.dataclass
class TrainState:
    """What a step changes. `trainable` is the decoder's parameter tree, or the LoRA factors."""

    step: jax.Array
    trainable: Any
    opt_state: Any


def steps_of(epochs: int, examples: int, batch_size: int) -> int:
    """Optimiser steps of whole passes over the examples; 0 for no passes.

    The last batch is filled from the next pass.
    """
    return -(-epochs * examples // batch_size)


def tuned_weights(tuning: Tuning, trainable, frozen) -> dict[str, Any]:
    """The decoder's weights that a trained tree stands for.

    These are the tree itself, or the tree as adapters beside the frozen base.
    """
    if tuning.method == "full":
        return {"params": trainable}
    return lora.attach(frozen, trainable, alpha=tuning.alpha, rank=tuning.rank)


def loss_fn(
    cfg,
    loss: Loss,
    trainable,
    frozen,
    teacher,
    removed,
    tokens,
    loss_mask,
    key,
    targets: Mapping[str, Any],
    prefix=None,
):
    """The loss and the metrics of a batch: float32 scalars, means over its weighted tokens.

    Args:
      trainable: the tree that is trained; `frozen`: the base under LoRA factors, None for full
        tuning.
      teacher: a live teacher's weights, or None.
      removed: bool [S, V] or None, tokens outside the support of both distributions, by rows.
      tokens: int32 [B, L]; `loss_mask`: [B, L], bool or each token's weight.
      key: of the dropout.
      targets: what the objective needs beside tokens, [B, L, ...] each (`Examples.targets`).
      prefix: int32 [P], what all rows have before `tokens` (`common_prefix.Fed`), or None.
    """
    chex.assert_rank(tokens, 2)
    chex.assert_equal_shape([tokens, loss_mask])
    chex.assert_equal_shape_prefix([tokens, *targets.values()], 2)
    tuning = loss.tuning
    weights, theirs = tuned_weights(tuning, trainable, frozen), loss.teacher or cfg
    # The last token has no target; weighing it 0 instead of dropping it keeps the length an even
    # multiple.
    targets = dict(targets)
    segments = targets.pop("segments", None)
    along = jax.tree.map(batch_parts.next_of, {"tokens": tokens, **targets})
    fed = {"prefix": prefix, "segments": segments, "hidden": True}
    along["student"] = forward(cfg, weights, tokens, lora_dropout=loss.dropout, key=key, **fed)
    if loss.reads_twice:
        along["current"] = jax.lax.stop_gradient(forward(cfg, weights, tokens, **fed))
    if teacher is not None:
        along["teacher"] = forward(theirs, teacher, tokens, **fed)

    def per_token(heads, part):
        wanted = None if teacher is None else unembed(theirs, heads["teacher"], part["teacher"])
        logits, taken = unembed(cfg, heads["student"], part["student"]), removed
        current = None
        if "current" in part:
            current = jax.lax.stop_gradient(unembed(cfg, heads["student"], part["current"]))
        # Embeddings of one tokenizer may be padded to different sizes. Every token lies in both,
        # and what lies beyond the smaller one stands for none.
        if wanted is not None and wanted.shape[-1] != logits.shape[-1]:
            rows = min(wanted.shape[-1], logits.shape[-1])
            wanted, logits = wanted[..., :rows], logits[..., :rows]
            current = None if current is None else current[..., :rows]
            taken = None if removed is None else removed[:, :rows]
        return loss.per_token(logits, wanted, part, taken, current)

    weights_of_tokens = batch_parts.next_of(loss_mask)
    if 0 < loss.positions < tokens.shape[1]:
        along, weights_of_tokens = chunked_loss.counting(along, weights_of_tokens, loss.positions)
    # Logits are made chunk by chunk out of hidden states: those of a batch would not fit.
    heads = {"student": head(cfg, weights["params"])}
    if teacher is not None:
        heads["teacher"] = head(theirs, teacher["params"])
    trained_width = cfg.width if tuning.method == "full" else 0
    batch, length = weights_of_tokens.shape
    chunk = chunked_loss.chunk_length(batch, length, cfg.vocab_size, trained_width=trained_width)
    return chunked_loss.mean_in_chunks(per_token, heads, along, weights_of_tokens, chunk)


def _with_positions(loss: Loss, cfg: DecoderConfig, examples: Examples) -> Loss:
    """The loss that makes logits where examples have tokens that count, and nowhere else.

    A small model's step is what it was: its vocabulary is small, too.
    """
    if not cfg.is_large:
        return loss
    most = int(np.max(np.sum(examples.loss_mask != 0, axis=1)))
    # Rounded, so that rounds of an on-policy student share programs.
    return dataclasses.replace(loss, positions=-(-most // 32) * 32, options=dict(loss.options))


def steps(
    cfg: DecoderConfig,
    loss: Loss,
    state: TrainState,
    frozen,
    teacher,
    removed,
    tokens,
    loss_mask,
    rates,
    key,
    targets=None,
    count: jax.Array | int | None = None,
    prefix=None,
):
    """K optimiser steps; returns the new state and each metric, float32 [K].

    The first step whose loss or gradient is not finite, and all after it, leave the state as it
    was.

    Args:
      tokens: int32 [K, B, L]; `loss_mask`: [K, B, L]; `rates`: float32 [K], learning rates.
      key: of the dropout; each step folds its number into it.
      targets: `Examples.targets` of the batches, [K, B, L, ...] each.
      count: only so many of the first steps are taken; None: all.
      prefix: int32 [P], what all rows of all batches have before their tokens, or None.
    """
    optimizer = loss.optimizer.transformation()

    def step(carry, batch):
        state, good = carry
        tokens, loss_mask, rate, targets, due = batch

        def objective(trainable, tokens, loss_mask, targets, key):
            given = (trainable, frozen, teacher, removed)
            return loss_fn(cfg, loss, *given, tokens, loss_mask, key, targets, prefix)

        gradient = functools.partial(jax.grad(objective, has_aux=True), state.trainable)
        # By the step's number, so that a resumed training has the dropout that it would have had.
        step_key = jax.random.fold_in(key, state.step)
        grads, metrics = batch_parts.in_parts(
            gradient, loss.accumulate, tokens, loss_mask, targets, step_key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        metrics["grad_norm"] = optax.tree.norm(grads)
        # Once not good, never again: later steps of the dispatch would start from another state.
        good = good & due & jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        moved = TrainState(state.step + 1, optax.apply_updates(state.trainable, updates), opt_state)
        return (
            jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state),
            good,
        ), metrics

    due = jnp.arange(len(tokens)) < (len(tokens) if count is None else count)
    (state, _), metrics = jax.lax.scan(
        step, (state, jnp.array(True)), (tokens, loss_mask, rates, targets or {}, due)
    )
    return state, metrics


@functools.partial(jax.jit, static_argnames=("cfg", "loss"), donate_argnames=("state",))
def train_steps(
    cfg: DecoderConfig,
    loss: Loss,
    state: TrainState,
    frozen,
    teacher,
    removed,
    tokens,
    loss_mask,
    rates,
    key,
    targets=None,
    prefix=None,
):
    """`steps` of one training, all K of them, as a program that takes the state's place."""
    given = (frozen, teacher, removed)
    batches = (tokens, loss_mask, rates)
    return steps(cfg, loss, state, *given, *batches, key, targets, prefix=prefix)


def init_state(recipe: Recipe, params, key) -> tuple[TrainState, Any]:
    """A fresh state that starts from `params`; returns (state, the frozen base or None).

    What is trained is float32, whatever the dtype of `params`: small updates would be lost in less.
    """
    if recipe.tuning.method == "lora":
        frozen = params
        # The second factor of each is 0, so that training starts at the base itself.
        trainable = lora.init_factors(key, params, recipe.tuning.targets, recipe.tuning.rank)
    else:
        frozen = None
        # The step donates its state: the caller's parameters must not be the same buffers.
        trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)
    opt_state = recipe.loss.optimizer.transformation().init(trainable)
    return TrainState(jnp.zeros((), jnp.int32), trainable, opt_state), frozen


def on_mesh(mesh: Mesh, state: TrainState) -> TrainState:
    """The state with all of its arrays on the mesh.

    What lies elsewhere (counters) is made whole on every device.
    """
    whole = sharding.replicated(mesh)
    return jax.tree.map(
        lambda x: x if sharding.mesh_of(x) == mesh else distributed.place(x, whole), state
    )


def start_state(
    mesh: Mesh, recipe: Recipe, params, key, run: TrainingMonitor
) -> tuple[TrainState, Any]:
    """As `init_state`, or the newest checkpoint of an earlier attempt, laid out alike.

    Raises:
      UserError: something large of the state would be whole on several devices.
    """
    state, frozen = init_state(recipe, params, key)
    state = on_mesh(mesh, state)
    sharding.check_divided(state, mesh, f"The training state of {run.label}")
    restored = run.resumed(state)
    if restored is not None:
        return restored, frozen
    if state.step.is_deleted():  # there were checkpoints, all of them damaged
        state, frozen = init_state(recipe, params, key)
    return on_mesh(mesh, state), frozen


def current_weights(recipe: Recipe, state: TrainState, frozen) -> dict[str, Any]:
    """The decoder's weights that a state stands for."""
    return tuned_weights(recipe.tuning, state.trainable, frozen)


def batch_indices(key, examples: int, batch_size: int, steps: int) -> np.ndarray:
    """Which examples a step learns from: int32 [steps, B].

    Each epoch is a fresh permutation, and nothing is dropped between epochs.
    """
    epochs = -(-steps * batch_size // examples)
    order = []
    for epoch in range(epochs):
        # A key for each epoch: the order of the first ones does not depend on how many follow.
        permuted = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
        order.append(np.asarray(permuted))
    return np.concatenate(order)[: steps * batch_size].reshape(steps, batch_size)


# Steps a dispatch: enough to hide the dispatch, few enough for a live progress line.
STEPS_PER_DISPATCH = 20
# Of a large model's: one takes longer than a dispatch anywhere, and on a CPU seconds, so that more
# would show and save nothing for minutes.
STEPS_PER_DISPATCH_OF_LARGE = 2


@dataclasses.dataclass(frozen=True)
class BatchOrder:
    """The batches of a training in their order, which is a function of `key`.

    Attributes:
      recipe: how the batches are learned from.
      examples: what they are made of.
      steps: how many steps this order has.
      key: decides the order.
      first: the step of the recipe's whole run that the first batch is of.
      cut: where a shared prefix is taken off the examples, or None.
    """

    recipe: Recipe
    examples: Examples
    steps: int
    key: jax.Array
    first: int = 0
    cut: common_prefix.Cut | None = None

    @functools.cached_property
    def fed(self) -> common_prefix.Fed:
        """The examples as steps are fed with them."""
        return common_prefix.fed(self.examples, self.cut)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """int32 [steps, B], which examples a step learns from."""
        return batch_indices(self.key, len(self.examples), self.recipe.batch_size, self.steps)

    def rows(self, begin: int, count: int) -> np.ndarray:
        """The rows of `order` from `begin` on: int32 [count, B].

        Beyond its end the last row is given again.
        """
        return self.order[np.minimum(np.arange(begin, begin + count), self.steps - 1)]

    def rates(self, begin: int, count: int) -> np.ndarray:
        """float32 [count], their learning rates."""
        return self.recipe.learning_rates(self.first + begin, count)


def cut_together(cfg: DecoderConfig, orders: Sequence[BatchOrder]) -> list[BatchOrder]:
    """Cuts what the rows of each order share off them, where their recipe wants it.

    All are cut alike, as one program takes them.
    """
    recipe, packed = orders[0].recipe, orders[0].examples.segments is not None
    # A kernel sees an episode of a packed row by its segment; a shared prefix has none.
    if not recipe.share_prefix or (packed and cfg.attention != "xla"):
        return list(orders)
    rows = recipe.batch_size // recipe.loss.accumulate
    cut = common_prefix.cut([order.examples for order in orders], rows)
    return [dataclasses.replace(order, cut=cut) for order in orders]


def run_steps(
    cfg: DecoderConfig,
    mesh: Mesh,
    orders: Sequence[BatchOrder],
    state: TrainState,
    program: Callable[..., Any],
    run: TrainingMonitor,
    teacher,
) -> TrainState:
    """The loop: takes the steps of one training, or of several side by side.

    It begins where `run` and the state are.

    Args:
      orders: the batches of each training.
      program: from the state, the batches [K, B, L ...] of each training, their rates [K] and how
        many of these K steps each takes, to the new state and each metric, [K], or [M, K] of
        several.
      teacher: a live teacher's weights or None, for the count of operations.

    Raises:
      UserError: a single training's loss or gradient is not finite, or a text holds a token that
        the model has no row for.
    """
    for order in orders:
        # A device would read the last row instead, without a word.
        if order.examples.tokens.max() >= cfg.vocab_size:
            raise UserError(
                f"A training text holds the token {order.examples.tokens.max()}, for which the "
                f"model's embedding of {cfg.vocab_size} rows has none: copy the model and its "
                "tokenizer from one checkpoint."
            )
    laid_out = jax.tree.map(lambda x: x.sharding, state)
    first = orders[0].first
    last = max(order.steps for order in orders)
    tokens, flops = _step_size(cfg, orders[0], teacher)
    done = steps_done(state) - first
    keys = np.concatenate([np.ravel(jax.random.key_data(order.key)) for order in orders])
    run.enter_order(tuple(keys.tolist()), resumed=done > 0)
    most = STEPS_PER_DISPATCH_OF_LARGE if cfg.is_large else STEPS_PER_DISPATCH
    for begin in range(done, last, most):
        steps = min(most, last - begin)
        # One that has fallen behind has failed and stays where it is.
        reached = np.ravel(distributed.to_host(state.step)) - first
        left = []
        for order, at in zip(orders, reached, strict=True):
            left.append(order.steps - begin if at == begin else 0)
        counts = np.clip(left, 0, steps)
        # All have failed.
        if not counts.any():
            break
        rows, batches, rates = [], [], []
        for order in orders:
            rows.append(order.rows(begin, steps))
            batches.append(order.fed.rows.rows(rows[-1]))
            rates.append(order.rates(begin, steps))
        with run.dispatch(first + begin, steps) as cost:
            with jax.set_mesh(mesh):  # kernels divide themselves over it
                state, metrics = program(state, batches, rates, counts)
            # As it came: whoever restores it meets the same compiled program.
            state = jax.device_put(state, laid_out)
            metrics = distributed.to_host(metrics)
        # [K] of a single training, [M, K] of several: the same from here on.
        metrics = {name: values.reshape(len(orders), steps) for name, values in metrics.items()}
        working = int(np.count_nonzero(counts))
        facts = cost.facts(steps, working * tokens, working * flops)
        for i, (order, learner, count) in enumerate(zip(orders, run.learners, counts, strict=True)):
            values = {name: of_all[i, :count] for name, of_all in metrics.items()}
            good = _finite_steps(values, count)
            # What comes after a step that is not finite was computed but not taken.
            values = {name: value[:good] for name, value in values.items()}
            shown = _shown(order.recipe, values, rates[i][:good])
            learner.record(first + begin, values, shown, facts)
            if good < count:
                chosen = rows[i][good]
                batch = {"examples": chosen, **order.examples.rows(chosen).arrays}
                learner.fail(first + begin + good + 1, state, batch)
        run.keep(state)
    return state


def _step_size(cfg: DecoderConfig, order: BatchOrder, teacher) -> tuple[int, float]:
    """The tokens of a step, and its floating-point operations."""
    rows, parts = order.recipe.batch_size, order.recipe.loss.accumulate
    prefix = 0 if order.cut is None else order.cut.prefix
    tokens, length = fed_tokens(rows, order.fed.rows.tokens.shape[1], prefix, parts)
    # Without a geometry of its own, a teacher has the student's.
    theirs = None if teacher is None else order.recipe.loss.teacher or cfg
    full, twice = order.recipe.tuning.method == "full", order.recipe.loss.reads_twice
    flops = step_flops(
        cfg, tokens=tokens, length=length, full=full, teacher=theirs, reads_twice=twice
    )
    return tokens, flops


def _finite_steps(values: Mapping[str, np.ndarray], count: int) -> int:
    """How many of `count` steps, from the first on, had a finite loss and gradient."""
    # As the compiled steps decide; both read float32.
    finite = np.isfinite(values["loss"]) & np.isfinite(values["grad_norm"])
    return count if finite.all() else int(np.argmin(finite))


def _shown(
    recipe: Recipe, values: Mapping[str, np.ndarray], rates: np.ndarray
) -> dict[str, np.ndarray]:
    """What people read of steps: "forward_kl", not "loss"; and what the steps were given."""
    out = {}
    for name, value in values.items():
        out[recipe.loss.objective if name == "loss" else name] = value
    return {**out, "learning_rate": rates}


def train(
    cfg: DecoderConfig,
    mesh: Mesh,
    recipe: Recipe,
    state: TrainState,
    frozen,
    examples: Examples,
    steps: int,
    key,
    *,
    first: int = 0,
    teacher=None,
    removed: np.ndarray | None = None,
    run: TrainingMonitor | None = None,
) -> tuple[TrainState, dict[str, list[float]]]:
    """Runs the steps `first`, ..., `first + steps - 1` over the examples.

    Their order is a function of `key`.

    A state that stands further than `first` (one restored from a checkpoint) goes on from where it
    is.

    Args:
      teacher: the teacher's weights, for the soft-target objectives.
      removed: bool [S, V], tokens taken out of both distributions, by the rows that
        `examples.removed_at` names; or None.
      run: shows, records and saves; None only records.

    Returns:
      (the new state, each metric as a list of floats, one a step of the run so far).

    Raises:
      UserError: the loss or a gradient became NaN or infinite; the state before that step is kept.
    """
    run, placed = run or TrainingMonitor(), sharding.batch_sharding(mesh, leading=1)
    loss = _with_positions(recipe.loss, cfg, examples)
    order = cut_together(cfg, [BatchOrder(recipe, examples, steps, key, first)])[0]
    prefix = distributed.place(order.fed.prefix, sharding.replicated(mesh))
    given = (frozen, teacher, removed)

    def program(state, batches, rates, counts):
        (batch,), (rates,) = batches, rates
        tokens, mask, targets = distributed.place(
            (batch.tokens, batch.loss_mask, batch.targets), placed
        )
        batches = (tokens, mask, rates)
        return train_steps(cfg, loss, state, *given, *batches, key, targets, prefix)

    state = run_steps(cfg, mesh, [order], on_mesh(mesh, state), program, run, teacher)
    return state, run.curves
