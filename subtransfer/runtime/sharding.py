"""The mesh, the one table of sharding rules, and the check that nothing large is replicated."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from subtransfer.runtime.errors import UserError

AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter or an activation -> mesh axes. One that is not listed is an error,
# never silent replication.
RULES: dict[str, str | tuple[str, ...] | None] = {
    # Activations between layers: the tensor axis, which shares a layer's heads and columns, shares
    # positions between them (sequence parallelism, Korthikanti et al. 2205.05198), so that what is
    # kept for a long row's backward pass is divided.
    "rows": ("data", "fsdp"),
    "length": "tensor",
    "features": None,
    "layers": None,
    "head_width": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 1, devices: Any = None
) -> Mesh:
    """Makes a mesh of devices with the axes (data, fsdp, tensor).

    Args:
      data: size of the axis that batches are divided over; -1 takes the devices that are left.
      fsdp: size of the axis that weights and batches are divided over.
      tensor: size of the axis that heads and columns are divided over.
      slices: groups of devices that are joined by a slower network than the devices of one: the
        data axis runs over them first, so that between them only gradients travel.
      devices: default: all.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or the data axis does not
        divide over the slices.
    """
    devices = jax.devices() if devices is None else devices
    data = data_size(data, fsdp, tensor, len(devices))
    if data % slices:
        raise UserError(
            f"mesh.data={data} does not divide over mesh.slices={slices}: choose a multiple, or "
            "mesh.data=-1."
        )
    if slices > 1:
        inner, outer = (data // slices, fsdp, tensor), (slices, 1, 1)
        # Simulated and GPU devices know no slices: their processes stand for them.
        by_process = getattr(devices[0], "slice_index", None) is None
        try:
            placed = mesh_utils.create_hybrid_device_mesh(
                inner, outer, devices, process_is_granule=by_process, allow_split_physical_axes=True
            )
        except ValueError as error:
            raise UserError(f"mesh.slices={slices} does not fit these devices: {error}.") from error
        return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)
    # On a TPU an axis of 8 may be half of a torus's 4 x 4, which `jax.make_mesh` refuses.
    if devices[0].platform == "tpu":
        placed = mesh_utils.create_device_mesh(
            (data, fsdp, tensor), devices, allow_split_physical_axes=True
        )
        return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)
    return jax.make_mesh(
        (data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def data_size(data: int, fsdp: int, tensor: int, devices: int) -> int:
    """Returns the size of the data axis.

    Args:
      data: as asked for; -1 takes what the other axes leave.
      fsdp: size of that axis.
      tensor: size of that axis.
      devices: how many there are.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    if data == -1:
        data = max(devices // (fsdp * tensor), 1)
    if data * fsdp * tensor != devices:
        raise UserError(
            f"mesh.data x mesh.fsdp x mesh.tensor = {data} x {fsdp} x {tensor} does not use all "
            f"{devices} devices: choose sizes that multiply to that number, or mesh.data=-1."
        )
    return data


def plan_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 1, *, devices: int | None = None
) -> AbstractMesh:
    """Makes the mesh that a plan is made for: of any size, whatever devices there are.

    Args:
      data: as of `make_mesh`; -1 counts on `devices` of them.
      fsdp: as of `make_mesh`.
      tensor: as of `make_mesh`.
      slices: not used, as a plan does not depend on it.
      devices: default: as many as there are.
    """
    if data == -1:
        data = max((devices or len(jax.devices())) // (fsdp * tensor), 1)
    return AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def _spec(shape: Sequence[int], logical: Sequence[str], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How an array's axes are divided, by the table of rules.

    Raises:
      ValueError: a logical axis has no rule.
    """
    entries: list[str | tuple[str, ...] | None] = []
    for size, axis in zip(shape, logical, strict=True):
        if axis not in RULES:
            raise ValueError(f"no sharding rule for the logical axis {axis!r}")
        target = RULES[axis]
        names = (target,) if isinstance(target, str) else target or ()
        parts = math.prod(mesh.shape[name] for name in names)
        # A dimension that the mesh axes do not divide (a 1-head test model, say) stays whole.
        entries.append(target if size % parts == 0 else None)
    return PartitionSpec(*entries)


def laid_out(x: jax.Array, *logical: str) -> jax.Array:
    """Lays an activation out by the rules, under the ambient mesh (`jax.set_mesh`).

    Without a mesh, or within `jax.shard_map`, it stays as it is.
    Weights are divided over fsdp as rows are: left alone, the compiler may keep the weights'
    division and every row everywhere.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(x.shape, logical, mesh))


def param_shardings(abstract_params: Any, mesh: Mesh) -> Any:
    """Returns the shardings of a tree of parameters, a NamedSharding each.

    Args:
      abstract_params: boxed, from `jax.eval_shape` of `Decoder.init`.
      mesh: where they will live.

    Raises:
      ValueError: a parameter has no logical axes.
    """

    def is_box(x: Any) -> bool:
        return isinstance(x, nn.LogicallyPartitioned)

    def sharding_of(box: Any) -> NamedSharding:
        if not is_box(box):
            raise ValueError(f"a parameter of shape {box.shape} has no logical axes")
        return NamedSharding(mesh, _spec(box.value.shape, box.names, mesh))

    return jax.tree.map(sharding_of, abstract_params, is_leaf=is_box)


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Returns the sharding of a batch: rows over (data, fsdp), after `leading` whole axes."""
    return NamedSharding(mesh, PartitionSpec(*([None] * leading), *BATCH))


def mesh_of(tree: Any) -> Mesh | None:
    """Returns the mesh that a tree of arrays lies on, or None if it lies on no named mesh."""
    placed = jax.tree.leaves(tree)[0].sharding
    if not isinstance(placed, NamedSharding):
        return None
    return cast(Mesh, placed.mesh)  # an abstract mesh only of abstract arrays


def using(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which kernels divide themselves over a mesh; none for None."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def rows_sharding(mesh: Mesh, shape: tuple[int, ...], *, heads: int | None = None) -> NamedSharding:
    """Returns the sharding of an array whose axis 0 are rows.

    An axis that the mesh does not divide stays whole.

    Args:
      mesh: where it lies.
      shape: of the array.
      heads: the axis of attention heads, which is divided over tensor; None: there is none.
    """
    spec: list[Any] = [None] * len(shape)
    if shape and shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0:
        spec[0] = ("data", "fsdp")
    if heads is not None and shape[heads] % mesh.shape["tensor"] == 0:
        spec[heads] = "tensor"
    return NamedSharding(mesh, PartitionSpec(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def check_divided(tree: Any, mesh: Mesh, what: str, *, largest_shared: int = 1 << 28) -> None:
    """Checks that nothing large is replicated.

    Args:
      tree: arrays, abstract or not, with shardings: parameters, a training's state.
      mesh: where they lie.
      what: their name, which the sentence begins with.
      largest_shared: bytes of an array that a device may hold although its neighbours along fsdp or
        tensor hold the same.

    Raises:
      UserError: it names an array of which they hold more.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # What one device holds of the array.
        held = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if held <= largest_shared:
            continue
        divided = _axes_of(leaf.sharding)
        for axis in ("fsdp", "tensor"):
            if mesh.shape[axis] > 1 and axis not in divided:
                raise UserError(
                    f"{what} has {jax.tree_util.keystr(path)} {leaf.shape}, of which all "
                    f"{mesh.shape[axis]} devices of mesh.{axis} would hold the same "
                    f"{held / 2**20:,.0f} MiB: choose a mesh.{axis} that divides its axes, or for "
                    "factors of LoRA a lower tuning.rank."
                )


def _axes_of(sharding: jax.sharding.Sharding) -> set[str]:
    """The mesh axes that an array is divided over."""
    if not isinstance(sharding, NamedSharding):
        return set()
    axes: set[str] = set()
    for entry in sharding.spec:
        if isinstance(entry, tuple):
            axes.update(entry)
        elif isinstance(entry, str):
            axes.add(entry)
    return axes


def device_bytes(tree: Any) -> int:
    """Returns the bytes that one device holds of all arrays of a tree, which have shardings."""
    held = 0
    for x in jax.tree.leaves(tree):
        held += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return held
