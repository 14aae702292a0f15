"""Trainings that differ only in seeds, data, weights and scalars, as one program: `train` of many
members at a time.

A member's state, batches, rates and whatever else is its own are entries of arrays with a leading
axis of members; what all share, such as a base under adapters, is there once. The axis of members
is divided over all devices of the mesh, each member being whole on one, so that nothing travels
between devices. On an accelerator a device's members take a step side by side (`jax.vmap`): small
products become batches of products.

Each member's arithmetic is that of `trainer.train` alone, in an order of sums that may differ: its
numbers agree within the tolerance of floats, and are the same, bit for bit, whenever the same
population is trained on the same devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subtransfer.models.decoder import DecoderConfig
from subtransfer.runtime import distributed, sharding
from subtransfer.runtime.errors import UserError
from subtransfer.training import loop
from subtransfer.training.examples import Examples
from subtransfer.training.monitor import MemberMonitor, PopulationMonitor, TrainingMonitor, diverged


@dataclasses.dataclass(frozen=True)
class Member:
    """One training of a population.

    Attributes:
      label: for messages.
      recipe: how it is trained.
      params: the parameters that it starts from.
      examples: what it learns from.
      key: its initial factors are drawn with `fold_in(key, 0)`, its order of examples with
        `fold_in(key, 1)`.
      teacher: a live teacher's weights, or None.
      removed: bool [V], tokens taken out of both distributions, or None.
    """

    label: str
    recipe: loop.Recipe
    params: Any
    examples: Examples
    key: jax.Array
    teacher: Any = None
    removed: np.ndarray | None = None

    @property
    def init_key(self) -> jax.Array:
        return jax.random.fold_in(self.key, 0)

    @property
    def batch_order(self) -> loop.BatchOrder:
        """Its batches in their order."""
        return loop.BatchOrder(
            self.recipe, self.examples, self.recipe.steps, jax.random.fold_in(self.key, 1)
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a member.

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


def alone(
    cfg: DecoderConfig, mesh: Mesh, member: Member, run: TrainingMonitor
) -> tuple[loop.TrainState, dict[str, list[float]]]:
    """Trains one member by itself, its weights and batches divided over the mesh; returns what
    `trainer.train` does.
    """
    state, frozen = loop.start_state(mesh, member.recipe, member.params, member.init_key, run)
    order, given = (
        member.batch_order,
        {"teacher": member.teacher, "removed": member.removed, "run": run},
    )
    return loop.train(
        cfg, mesh, member.recipe, state, frozen, member.examples, order.steps, order.key, **given
    )


def check(cfg: DecoderConfig, mesh: Mesh, members: Sequence[Member]) -> None:
    """Raises UserError if the members cannot be trained as one program on these devices."""
    if not members:
        raise UserError("A population has no members: give one or more.")
    if cfg.attention != "xla":
        raise UserError(
            f"A population cannot train with base.attention={cfg.attention}: use xla, or a population of 1."
        )
    if len(members) % mesh.size:
        raise UserError(
            f"A population of {len(members)} does not divide over {mesh.size} devices: choose a multiple of that number."
        )
    first, scalars = _alike(members[0]), ", ".join(members[0].recipe.loss.scalars)
    for member in members[1:]:
        for what, value in _alike(member).items():
            if value != first[what]:
                raise UserError(
                    f"{members[0].label} and {member.label} cannot be of one population, as they differ in {what}: members may "
                    f"differ in seeds, data, weights, steps, learning rate, {scalars}."
                )


def _alike(member: Member) -> dict[str, Any]:
    """What all members must have alike, by name."""
    loss = member.recipe.loss
    loss = loss.with_scalars(dict.fromkeys(loss.scalars, 1.0))
    names = [field.name for field in dataclasses.fields(loss) if field.name != "options"]
    return {
        **{name: getattr(loss, name) for name in names},
        **dict(loss.options),
        "batch size": member.recipe.batch_size,
        "tokens an episode": member.examples.tokens.shape[1],
        "what their examples hold": {name: x.dtype for name, x in member.examples.arrays.items()},
        "removed tokens": member.removed is None,
        "their weights' shapes": [(x.shape, x.dtype) for x in jax.tree.leaves(member.params)],
        "their live teachers": [(x.shape, x.dtype) for x in jax.tree.leaves(member.teacher)],
    }


def _divided(trees: Sequence[Any]) -> tuple[Any, Any]:
    """(arrays that differ, on the host with a leading axis of members; arrays that all share), None
    in place of the others.
    """
    leaves, structures = zip(*(jax.tree.flatten(tree) for tree in trees), strict=True)
    own, shared = [], []
    for of_all in zip(*leaves, strict=True):
        same = all(x is of_all[0] for x in of_all)
        shared.append(of_all[0] if same else None)
        own.append(None if same else _stack(of_all))
    return jax.tree.unflatten(structures[0], own), jax.tree.unflatten(structures[0], shared)


def _stack(arrays: Sequence[Any]) -> np.ndarray:
    """Arrays of one shape as one on the host, each fetched once."""
    known = {id(x): x for x in arrays}
    fetched = {name: np.asarray(distributed.to_host(x)) for name, x in known.items()}
    return np.stack([fetched[id(x)] for x in arrays])


def _joined(own: Any, shared: Any) -> Any:
    return jax.tree.map(
        lambda x, y: y if x is None else x, own, shared, is_leaf=lambda x: x is None
    )


@functools.partial(
    jax.jit, static_argnames=("cfg", "loss", "mesh", "together"), donate_argnames=("state",)
)
def population_steps(
    cfg: DecoderConfig, loss: loop.Loss, mesh: Mesh, together: bool, state, own, shared, batches
):
    """`trainer.steps` of all members: arrays of `state`, `own`, `batches` and of the results have a
    leading axis of members.

    Args:
      loss: what all share; `own["scalars"]` holds what differs.
      together: a device's members take each step side by side, else one after the other takes all
        K.
      own, shared: {"given": (frozen, teacher, removed)}, in the one or the other; `own["key"]` the
        data of each one's key.
      batches: (tokens, loss_mask, rates, targets, count) of each.
    """

    def one(inputs, shared):
        state, own, (tokens, loss_mask, rates, targets, count) = inputs
        given = _joined(own["given"], shared)
        key = jax.random.wrap_key_data(own["key"])
        how = loss.with_scalars(own["scalars"])
        return loop.steps(cfg, how, state, *given, tokens, loss_mask, rates, key, targets, count)

    def local(inputs, shared):
        member = functools.partial(one, shared=shared)
        return jax.vmap(member)(inputs) if together else jax.lax.map(member, inputs)

    spread = PartitionSpec(mesh.axis_names)
    divided = jax.shard_map(
        local, mesh=mesh, in_specs=(spread, PartitionSpec()), out_specs=spread, check_vma=False
    )
    return divided((state, own, batches), shared)


def train(
    cfg: DecoderConfig,
    mesh: Mesh,
    members: Sequence[Member],
    run: PopulationMonitor | None = None,
    *,
    together: bool | None = None,
) -> list[Outcome]:
    """Trains all members as one program, each as `trainer.train` would alone, within the tolerance
    of floats.

    A member whose loss or gradient is not finite stays at the state before that step; the others go
    on.

    Args:
      run: shows, records and saves, with the members' labels in their order; None only records.
      together: as of `population_steps`; None: as is faster on these devices.

    Raises:
      UserError: the members differ in something that is no argument of the program, or do not
        divide over the devices.
    """
    check(cfg, mesh, members)
    if together is None:
        together = mesh.devices.flat[0].platform != "cpu"
    run = run or PopulationMonitor(
        "population", [MemberMonitor(member.label) for member in members]
    )
    each, whole = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), sharding.replicated(mesh)

    def fresh():
        states = [
            loop.init_state(member.recipe, member.params, member.init_key)[0] for member in members
        ]
        return distributed.place(jax.tree.map(lambda *x: _stack(x), *states), each)

    state = fresh()
    restored = run.resumed(state)
    if restored is None and state.step.is_deleted():  # there were checkpoints, all of them damaged
        restored = fresh()
    state = state if restored is None else restored
    loss, orders = members[0].recipe.loss, [member.batch_order for member in members]
    adapted = loss.tuning.method == "lora"
    own, shared = _divided(
        [(member.params if adapted else None, member.teacher, member.removed) for member in members]
    )
    scalars = {
        name: np.array([member.recipe.loss.scalars[name] for member in members], np.float32)
        for name in loss.scalars
    }
    scalars = {name: values for name, values in scalars.items() if np.ptp(values)}
    keys = np.stack([jax.random.key_data(order.key) for order in orders])
    own = distributed.place({"given": own, "scalars": scalars, "key": keys}, each)
    # What lies on these devices already is not copied; to other processes it goes by way of the
    # hosts.
    shared = distributed.place(
        shared if jax.process_count() == 1 else distributed.to_host(shared), whole
    )
    # Their values are no part of the program.
    loss = loss.with_scalars(dict.fromkeys(scalars, 1.0))

    def program(state, batches, rates, counts):
        arrays = [
            (x.tokens, x.loss_mask, rate, x.targets) for x, rate in zip(batches, rates, strict=True)
        ]
        stacked = *jax.tree.map(lambda *x: np.stack(x), *arrays), np.asarray(counts, np.int32)
        return population_steps(
            cfg, loss, mesh, together, state, own, shared, distributed.place(stacked, each)
        )

    state = loop.run_steps(cfg, mesh, orders, state, program, run, members[0].teacher)
    final = distributed.to_host(state)
    each_run = zip(members, orders, run.members, strict=True)
    return [
        _outcome(final, i, order, member.label, own.curves)
        for i, (member, order, own) in enumerate(each_run)
    ]


def _outcome(final: loop.TrainState, i: int, order: loop.BatchOrder, label: str, curves) -> Outcome:
    step, trainable = int(final.step[i]), jax.tree.map(lambda x: x[i], final.trainable)
    if step == order.steps:
        return Outcome(trainable, curves)
    (rows,) = order.rows(step, 1)
    return Outcome(
        trainable,
        curves,
        diverged(label, step + 1),
        {"examples": rows, **order.examples.rows(rows).arrays},
    )
