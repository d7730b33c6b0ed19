"""The device mesh and what lies on it apart from parameters.

Axes `data`, `fsdp`, `tensor`; the rows of a batch are split over `data` and `fsdp`. Devices of several TPU slices are laid out so that
only `data` goes from slice to slice: what is summed over it once a step is all that the slow network between slices has to carry.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from memjax.config import ConfigError
from memjax.config import Mesh as MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
Layout = tuple[str | None, ...]
"""Mesh axes of an array's first dimensions, as `constrain` takes them."""


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:  # noqa: B008
    """The mesh of `config.mesh` over `devices`, by default all of all processes.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or an axis other than data would cross slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = _sizes(config, len(devices))
    slices = len({_slice(device) for device in devices})
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        if shape[0] % slices:
            raise ConfigError(
                f"config.mesh.data={shape[0]} must be a multiple of the {slices} slices, which only the data axis spans; use"
                f" {slices * max(1, shape[0] // slices)}"
            )
        within = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice(device: Any) -> int:
    """The TPU slice a device is of; other devices are all of one."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def _sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    wanted = (config.data, config.fsdp, config.tensor)
    given = math.prod(size for size in wanted if size != -1)
    said = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, wanted, strict=True))
    if -1 not in wanted and given != devices:
        raise ConfigError(f"config.mesh ({said}) is of {given} devices and there are {devices}; -1 on one axis takes the rest")
    if devices % given:
        raise ConfigError(f"config.mesh ({said}) does not divide {devices} devices; their product without -1 must")
    data, fsdp, tensor = (devices // given if size == -1 else size for size in wanted)
    return data, fsdp, tensor


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Parts a batch is split in."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_rows(rows: int, microbatches: int, mesh: jax.sharding.Mesh, key: str) -> None:
    """Raises ConfigError if a microbatch of a batch of `rows` does not split evenly over the mesh."""
    shards = batch_shards(mesh)
    if rows % (shards * microbatches):
        raise ConfigError(
            f"{key}={rows} must be a multiple of {shards * microbatches}: {shards} devices, {microbatches} microbatches"
        )


def local_rows(mesh: jax.sharding.Mesh, rows: int) -> np.ndarray:
    """Places in a batch of `rows` whose rows this process's devices hold, ascending: what the process has to read."""
    held = batch_sharding(mesh).addressable_devices_indices_map((rows,))
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held.values()]))


def put_batch(batch: Any, mesh: jax.sharding.Mesh, rows: int | None = None) -> Any:
    """A batch, an array or a tree of them, over the devices.

    Args:
      batch: the rows at `local_rows`; with one process that is all of them.
      mesh: the devices.
      rows: rows in the whole batch; needed with several processes.
    """
    if jax.process_count() == 1 or rows is None:
        return jax.device_put(batch, batch_sharding(mesh))
    put = functools.partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
    return jax.tree.map(lambda x: put(x, (rows, *x.shape[1:])), batch)


def batch_parts(rows: int) -> int:
    """Parts that the mesh in context splits `rows` in; 1 where there is none, or where it cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return 1 if rows % parts else parts


def on_mesh(function: Callable[..., Any], mesh: jax.sharding.Mesh | None, **kwargs: Any) -> Callable[..., Any]:
    """`jax.jit` of a function whose results are whole on every device of the mesh, if there is one."""
    if mesh is None:
        return jax.jit(function, **kwargs)
    jitted = jax.jit(function, out_shardings=replicated(mesh), **kwargs)

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return jitted(*args)

    return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gathered(x: jax.Array, stored: Layout, used: Layout) -> jax.Array:
    """A parameter brought from the layout it is stored in to the one it is used in; its gradient goes straight back to the first.

    Said of every parameter that `fsdp` splits, this keeps the compiler from moving activations in its place, and from adding up whole
    gradients on every device where each needs only its part.
    """
    return _lay_out(x, used)


def _lay_out(x: jax.Array, layout: Layout) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    # Where parameters are whole there is nothing to bring together, and gradients need not be added up yet.
    return x if mesh.empty or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1 else constrain(x, *layout)


def _gathered_forward(x: jax.Array, stored: Layout, used: Layout) -> tuple[jax.Array, None]:
    return _lay_out(x, used), None


def _gathered_backward(stored: Layout, used: Layout, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (_lay_out(gradient, stored),)


gathered.defvjp(_gathered_forward, _gathered_backward)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` laid out over the mesh in context, one name a dimension; as it is where there is no mesh.

    Args:
      x: an activation.
      axes: `batch` for data and fsdp, `fsdp`, `tensor`, or None for whole; dimensions not named are left to the compiler. An axis that does
        not divide its dimension is left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = []
    for size, axis in zip(x.shape, axes, strict=False):
        names = BATCH_AXES if axis == "batch" else axis
        parts = math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names or ()))
        spec.append(names if parts > 1 and size % parts == 0 else None)
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(spec))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec, *rest))
