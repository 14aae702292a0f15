"""Populations: trainings that differ only in seeds, data, weights and scalars, as one program.

A learner's state, batches, rates and whatever else is its own are entries of arrays with a leading
axis of learners; what all share, such as a base under adapters, is there once. The axis of learners
is divided over all devices of the mesh, each learner being whole on one, so that nothing travels
between devices. On an accelerator a device's learners take a step side by side (`jax.vmap`): small
products become batches of products.

Each learner's arithmetic is that of `loop.train` alone, in an order of sums that may differ: its
numbers agree within the tolerance of floats, and are the same, bit for bit, whenever the same
population is trained on the same devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subtransfer.models.decoder import DecoderConfig
from subtransfer.runtime import distributed, sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop
from subtransfer.training.examples import Examples
from subtransfer.training.monitor import (
    LearnerMonitor,
    PopulationMonitor,
    TrainingMonitor,
    diverged,
)


@dataclasses.dataclass(frozen=True)
class Learner:
    """One training, alone or in a population.

    Attributes:
      label: for messages.
      recipe: how it is trained.
      params: the parameters that it starts from.
      examples: what it learns from.
      key: its initial factors are drawn with `fold_in(key, 0)`, its order of examples with
        `fold_in(key, 1)`.
      teacher: a live teacher's weights, or None.
      removed: bool [S, V], tokens taken out of both distributions, by the rows that
        `examples.removed_at` names; or None.
      account: what is stored with the trained weights, beside the curves.
    """

    label: str
    recipe: loop.Recipe
    params: Any
    examples: Examples
    key: jax.Array
    teacher: Any = None
    removed: np.ndarray | None = None
    account: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def init_key(self) -> jax.Array:
        """The key of its initial factors."""
        return jax.random.fold_in(self.key, 0)

    @property
    def batch_order(self) -> loop.BatchOrder:
        """Its batches in their order."""
        return loop.BatchOrder(
            self.recipe, self.examples, self.recipe.steps, jax.random.fold_in(self.key, 1)
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a learner.

    Attributes:
      trainable: the trained tree, on the host.
      curves: each metric, one float a step.
      error: "", or why it stays at an earlier step: `trainable` is its last good one.
      batch: the arrays of the step that went wrong, or {}.
    """

    trainable: Any
    curves: dict[str, list[float]]
    error: str = ""
    batch: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def train_alone(
    cfg: DecoderConfig, mesh: Mesh, learner: Learner, run: TrainingMonitor
) -> tuple[loop.TrainState, dict[str, list[float]]]:
    """Trains one learner by itself, its weights and batches divided over the mesh.

    Returns:
      what `loop.train` does: (the final state, each metric's values over the steps).
    """
    state, frozen = loop.start_state(mesh, learner.recipe, learner.params, learner.init_key, run)
    order = learner.batch_order
    return loop.train(
        cfg,
        mesh,
        learner.recipe,
        state,
        frozen,
        learner.examples,
        order.steps,
        order.key,
        teacher=learner.teacher,
        removed=learner.removed,
        run=run,
    )


def check(cfg: DecoderConfig, mesh: Mesh, learners: Sequence[Learner]) -> None:
    """Refuses learners that cannot be trained as one program on these devices.

    Raises:
      UserError: they differ in something that is no argument of the program, or do not divide over
        the devices.
    """
    if not learners:
        raise UserError("A population has no learners: give one or more.")
    if cfg.attention != "xla":
        raise UserError(
            f"A population cannot train with base.attention={cfg.attention}: use xla, or a "
            "population of 1."
        )
    if len(learners) % mesh.size:
        raise UserError(
            f"A population of {len(learners)} does not divide over {mesh.size} devices: choose a "
            "multiple of that number."
        )
    first, scalars = _alike(learners[0]), ", ".join(learners[0].recipe.loss.scalars)
    for learner in learners[1:]:
        for what, value in _alike(learner).items():
            if value != first[what]:
                raise UserError(
                    f"{learners[0].label} and {learner.label} cannot be of one population, as they "
                    f"differ in {what}: learners may differ in seeds, data, weights, steps, "
                    f"learning rate, {scalars}."
                )


def _alike(learner: Learner) -> dict[str, Any]:
    """What all learners must have alike, by name."""
    loss = learner.recipe.loss
    # Scalars can be arguments of a step, so they may differ.
    loss = loss.with_scalars(dict.fromkeys(loss.scalars, 1.0))
    examples = learner.examples
    of_loss = {}
    for field in dataclasses.fields(loss):
        of_loss[field.name] = getattr(loss, field.name)
    # Each option by its own name, so that the sentence can say which one differs.
    of_loss |= dict(of_loss.pop("options"))
    return {
        **of_loss,
        "batch size": learner.recipe.batch_size,
        "tokens an episode": examples.tokens.shape[1],
        "what their examples hold": {name: x.dtype for name, x in examples.arrays.items()},
        "removed tokens": learner.removed is None,
        "their weights' shapes": _shapes(learner.params),
        "their live teachers": _shapes(learner.teacher),
    }


def _shapes(tree: Any) -> list[tuple[Any, Any]]:
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def _divided(trees: Sequence[Any]) -> tuple[Any, Any]:
    """Divides trees of equal structure into what differs and what all share.

    Returns:
      (arrays that differ, on the host with a leading axis of learners; arrays that all share),
      each with None in place of the other's.
    """
    leaves, structures = zip(*map(jax.tree.flatten, trees), strict=True)
    differing: list[Any] = []
    shared: list[Any] = []
    for arrays in zip(*leaves, strict=True):
        # The same object, not equal values: to compare those would move all weights to the host.
        same = all(x is arrays[0] for x in arrays)
        shared.append(arrays[0] if same else None)
        differing.append(None if same else _stack(arrays))
    structure = structures[0]
    return jax.tree.unflatten(structure, differing), jax.tree.unflatten(structure, shared)


def _stack(arrays: Sequence[Any]) -> np.ndarray:
    """Arrays of one shape as one on the host, each fetched once."""
    fetched: dict[int, np.ndarray] = {}
    for x in arrays:
        if id(x) not in fetched:
            fetched[id(x)] = np.asarray(distributed.to_host(x))
    return np.stack([fetched[id(x)] for x in arrays])


def _joined(differing: Any, shared: Any) -> Any:
    """The inverse of `_divided`, for one learner."""

    def either(x, y):
        return y if x is None else x

    return jax.tree.map(either, differing, shared, is_leaf=lambda x: x is None)


@functools.partial(
    jax.jit, static_argnames=("cfg", "loss", "mesh", "together"), donate_argnames=("state",)
)
def population_steps(
    cfg: DecoderConfig,
    loss: loop.Loss,
    mesh: Mesh,
    together: bool,
    state,
    differing,
    shared,
    batches,
):
    """`loop.steps` of all learners.

    Arrays of `state`, `differing`, `batches` and of the results have a leading axis of learners.

    Args:
      cfg: the decoder's geometry.
      loss: what all share; `differing["scalars"]` holds what does not.
      mesh: the devices.
      together: a device's learners take each step side by side, else one after the other takes all
        K.
      state: the learners' `loop.TrainState`s.
      differing: {"given": (frozen, teacher, removed), "scalars": {name: values}, "key": the data of
        each one's key}; None where `shared` has an array.
      shared: (frozen, teacher, removed), None where `differing` has an array.
      batches: (tokens, loss_mask, rates, targets, prefix, count) of each.
    """

    def one(inputs, shared):
        state, differing, (tokens, loss_mask, rates, targets, prefix, count) = inputs
        given = _joined(differing["given"], shared)
        key = jax.random.wrap_key_data(differing["key"])
        how = loss.with_scalars(differing["scalars"])
        batches = (tokens, loss_mask, rates)
        return loop.steps(cfg, how, state, *given, *batches, key, targets, count, prefix)

    # One after the other, a CPU keeps its caches; side by side, an accelerator is fuller.
    def local(inputs, shared):
        learner = functools.partial(one, shared=shared)
        return jax.vmap(learner)(inputs) if together else jax.lax.map(learner, inputs)

    spread = PartitionSpec(mesh.axis_names)
    divided = jax.shard_map(
        local, mesh=mesh, in_specs=(spread, PartitionSpec()), out_specs=spread, check_vma=False
    )
    return divided((state, differing, batches), shared)


def train(
    cfg: DecoderConfig,
    mesh: Mesh,
    learners: Sequence[Learner],
    run: PopulationMonitor | None = None,
    *,
    together: bool | None = None,
) -> list[Outcome]:
    """Trains all learners as one program, each as `loop.train` would alone.

    Numbers agree within the tolerance of floats. A learner whose loss or gradient is not finite
    stays at the state before that step; the others go on.

    Args:
      cfg: the decoder's geometry.
      mesh: the devices, over which the learners are divided.
      learners: one or more.
      run: shows, records and saves, with the learners' labels in their order; None only records.
      together: as of `population_steps`; None: as is faster on these devices.

    Raises:
      UserError: as of `check`.
    """
    check(cfg, mesh, learners)
    if together is None:
        together = mesh.devices.flat[0].platform != "cpu"
    run = run or PopulationMonitor(
        "population", [LearnerMonitor(learner.label) for learner in learners]
    )
    each, whole = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), sharding.replicated(mesh)

    def fresh():
        states = []
        for learner in learners:
            states.append(loop.init_state(learner.recipe, learner.params, learner.init_key)[0])
        return distributed.place(jax.tree.map(lambda *x: _stack(x), *states), each)

    # A checkpoint holds all learners' states; they go on together.
    state = fresh()
    restored = run.resumed(state)
    if restored is None and state.step.is_deleted():
        # There were checkpoints, all of them damaged: reading them took the state's buffers.
        restored = fresh()
    state = state if restored is None else restored
    # `check` has made sure that what follows from the loss is the same for all.
    loss = learners[0].recipe.loss
    orders = loop.cut_together(cfg, [learner.batch_order for learner in learners])
    adapted = loss.tuning.method == "lora"
    rows = max(0 if x.removed is None else len(x.removed) for x in learners)
    given = []
    for learner in learners:
        removed = learner.removed
        if removed is not None:
            # Tables of different lengths are filled up, as they are stacked.
            removed = np.pad(removed, [(0, rows - len(removed)), (0, 0)])
        # What is fully trained is part of the state, not of what is given.
        given.append((learner.params if adapted else None, learner.teacher, removed))
    differing, shared = _divided(given)
    scalars = {}
    for name in loss.scalars:
        values = np.array([x.recipe.loss.scalars[name] for x in learners], np.float32)
        # A scalar that is the same in all stays a constant of the program.
        if np.ptp(values):
            scalars[name] = values
    keys = np.stack([jax.random.key_data(order.key) for order in orders])
    differing = distributed.place({"given": differing, "scalars": scalars, "key": keys}, each)
    # What lies on these devices already is not copied; to other processes it goes by way of the
    # hosts.
    on_host = shared if jax.process_count() == 1 else distributed.to_host(shared)
    shared = distributed.place(on_host, whole)
    # The scalars' own values are no part of the program, so that others need not compile it again.
    loss = loss.with_scalars(dict.fromkeys(scalars, 1.0))

    def program(state, batches, rates, counts):
        arrays = []
        for order, x, rate in zip(orders, batches, rates, strict=True):
            arrays.append((x.tokens, x.loss_mask, rate, x.targets, order.fed.prefix))
        stacked = *jax.tree.map(lambda *x: np.stack(x), *arrays), np.asarray(counts, np.int32)
        placed = distributed.place(stacked, each)
        return population_steps(cfg, loss, mesh, together, state, differing, shared, placed)

    state = loop.run_steps(cfg, mesh, orders, state, program, run, learners[0].teacher)
    final = distributed.to_host(state)
    outcomes = []
    for i, (learner, record) in enumerate(zip(learners, run.learners, strict=True)):
        outcomes.append(_outcome(final, i, orders[i], learner.label, record.curves))
    return outcomes


def _outcome(final: loop.TrainState, i: int, order: loop.BatchOrder, label: str, curves) -> Outcome:
    """The outcome of learner i, from the states of all."""
    step, trainable = int(final.step[i]), jax.tree.map(lambda x: x[i], final.trainable)
    if step == order.steps:
        return Outcome(trainable, curves)
    # It stopped before a step that was not finite: that step's batch may say why.
    (rows,) = order.rows(step, 1)
    batch = {"examples": rows, **order.examples.rows(rows).arrays}
    return Outcome(trainable, curves, diverged(label, step + 1), batch)
