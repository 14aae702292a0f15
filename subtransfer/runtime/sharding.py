"""The mesh, the one table of sharding rules, and the check that nothing large is replicated."""

from __future__ import annotations

import contextlib
import math

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from subtransfer.runtime.errors import UserError

AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter or an activation -> mesh axes. One that is not listed is an error,
# never silent replication.
RULES = {
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
    data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 1, devices=None
) -> Mesh:
    """A mesh with axes (data, fsdp, tensor); `data=-1` takes the devices that are left.

    Args:
      slices: groups of devices that are joined by a slower network than the devices of one: the
        data axis runs over them first, so that between them only gradients travel.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or the data axis does not
        divide over the slices.
    """
    devices = jax.devices() if devices is None else devices
    data = data_size(data, fsdp, tensor, len(devices))
    if data % slices:
        raise UserError(
            f"mesh.data={data} does not divide over mesh.slices={slices}: choose a multiple, or mesh.data=-1."
        )
    if slices > 1:
        inner, outer = (data // slices, fsdp, tensor), (slices, 1, 1)
        by_process = getattr(devices[0], "slice_index", None) is None
        try:
            placed = mesh_utils.create_hybrid_device_mesh(
                inner, outer, devices, process_is_granule=by_process, allow_split_physical_axes=True
            )
        except ValueError as error:
            raise UserError(f"mesh.slices={slices} does not fit these devices: {error}.") from error
        return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)
    if (
        devices[0].platform == "tpu"
    ):  # an axis of 8 may be half of a torus's 4 x 4, which `jax.make_mesh` refuses
        placed = mesh_utils.create_device_mesh(
            (data, fsdp, tensor), devices, allow_split_physical_axes=True
        )
        return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)
    return jax.make_mesh(
        (data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def data_size(data: int, fsdp: int, tensor: int, devices: int) -> int:
    """The size of the data axis on so many devices; -1 takes what the other axes leave.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    if data == -1:
        data = max(devices // (fsdp * tensor), 1)
    if data * fsdp * tensor != devices:
        raise UserError(
            f"mesh.data x mesh.fsdp x mesh.tensor = {data} x {fsdp} x {tensor} does not use all {devices} "
            "devices: choose sizes that multiply to that number, or mesh.data=-1."
        )
    return data


def plan_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 1, *, devices: int | None = None
) -> AbstractMesh:
    """The mesh that a plan is made for: of any size, whatever devices there are; `data=-1` counts
    on `devices` of them.
    """
    if data == -1:
        data = max((devices or len(jax.devices())) // (fsdp * tensor), 1)
    return AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def _spec(shape, logical, mesh: Mesh) -> PartitionSpec:
    entries = []
    for size, axis in zip(shape, logical, strict=True):
        if axis not in RULES:
            raise ValueError(f"no sharding rule for the logical axis {axis!r}")
        target = RULES[axis]
        parts = math.prod(
            mesh.shape[name] for name in ((target,) if isinstance(target, str) else target or ())
        )
        # A dimension that the mesh axes do not divide (a 1-head test model, say) stays whole.
        entries.append(target if size % parts == 0 else None)
    return PartitionSpec(*entries)


def laid_out(x: jax.Array, *logical: str) -> jax.Array:
    """An activation under the ambient mesh (`jax.set_mesh`), laid out by the rules.

    Without a mesh, or within `jax.shard_map`, it stays as it is.
    Weights are divided over fsdp as rows are: left alone, the compiler may keep the weights'
    division and every row everywhere.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(x.shape, logical, mesh))


def param_shardings(abstract_params, mesh: Mesh):
    """NamedShardings for a boxed abstract parameter tree (from `jax.eval_shape` of
    `Decoder.init`).
    """

    def one(box):
        if not isinstance(box, nn.LogicallyPartitioned):
            raise ValueError(f"a parameter of shape {box.shape} has no logical axes")
        return NamedSharding(mesh, _spec(box.value.shape, box.names, mesh))

    return jax.tree.map(
        one, abstract_params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Rows over (data, fsdp), after `leading` unsharded axes."""
    return NamedSharding(mesh, PartitionSpec(*([None] * leading), *BATCH))


def mesh_of(tree) -> Mesh | None:
    """The mesh that a tree of arrays lies on, or None for arrays that lie on no named mesh."""
    placed = jax.tree.leaves(tree)[0].sharding
    return placed.mesh if isinstance(placed, NamedSharding) else None


def using(mesh: Mesh | None):
    """A context in which kernels divide themselves over a mesh; none for None."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def rows_sharding(mesh: Mesh, shape: tuple[int, ...], *, heads: int | None = None) -> NamedSharding:
    """Axis 0 over (data, fsdp) and, if given, axis `heads` over tensor; an axis that the mesh does
    not divide stays whole.
    """
    spec: list = [None] * len(shape)
    if shape and shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0:
        spec[0] = ("data", "fsdp")
    if heads is not None and shape[heads] % mesh.shape["tensor"] == 0:
        spec[heads] = "tensor"
    return NamedSharding(mesh, PartitionSpec(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_divided(tree, mesh: Mesh, what: str, *, largest_shared: int = 1 << 28) -> None:
    """Checks that nothing large is replicated.

    Args:
      tree: arrays, abstract or not, with shardings: parameters, a training's state.
      what: their name, which the sentence begins with.
      largest_shared: bytes of an array that a device may hold although its neighbours along fsdp or
        tensor hold the same.

    Raises:
      UserError: it names an array of which they hold more.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        held = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if held <= largest_shared:
            continue
        spec = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else ()
        divided = {
            axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,))
        }
        for axis in ("fsdp", "tensor"):
            if mesh.shape[axis] > 1 and axis not in divided:
                raise UserError(
                    f"{what} has {jax.tree_util.keystr(path)} {leaf.shape}, of which all {mesh.shape[axis]} devices of "
                    f"mesh.{axis} would hold the same {held / 2**20:,.0f} MiB: choose a mesh.{axis} that divides its axes, or "
                    "for factors of LoRA a lower tuning.rank."
                )


def bytes_of(tree) -> int:
    """Total bytes of the arrays (or abstract arrays) of a tree."""
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
