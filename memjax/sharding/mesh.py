"""The device mesh, and layouts of batches and activations.

The axes are `data`, `fsdp` and `tensor`; a batch is split over `data` and `fsdp`. Devices of
several TPU slices are arranged so that only `data` crosses slices: the slow network between slices
carries only the sum over `data`, once per step.
"""

import contextlib
import functools
import math
import os
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
"""Mesh axes of an array's leading dimensions, as in `constrain`."""


def make_mesh(
    config: MeshConfig = MeshConfig(),  # noqa: B008
    devices: Sequence[Any] | None = None,
) -> jax.sharding.Mesh:
    """Return the mesh of `config.mesh` over `devices`, by default all devices of all processes.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or an axis other than data
        would cross slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = _sizes(config, len(devices))
    # Only devices of TPUs are in slices; others form one.
    slices = len(
        {getattr(one, "slice_index", 0) for one in devices if one.platform == "tpu"} or {0}
    )
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        ConfigError.require(
            shape[0] % slices == 0,
            f"config.mesh.data: got {shape[0]}, expected a multiple of the {slices} slices, as"
            f" only this axis spans slices. Use {slices * max(1, shape[0] // slices)}",
        )
        within = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    return jax.sharding.Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@functools.lru_cache(maxsize=1)
def local_mesh() -> jax.sharding.Mesh | None:
    """Return the mesh over all devices of this process, which split batches; None if it has one."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return None
    return make_mesh(MeshConfig(data=1, fsdp=-1), devices)


def on_local_devices() -> contextlib.AbstractContextManager[Any]:
    """Lay out what is computed in a block over all devices of this process."""
    mesh = local_mesh()
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    wanted = (config.data, config.fsdp, config.tensor)
    given = math.prod(size for size in wanted if size != -1)
    axes = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, wanted, strict=True))
    ConfigError.require(
        -1 in wanted or given == devices,
        f"config.mesh: got {axes}, which needs {given} devices, expected {devices} devices. Set"
        " one axis to -1 to use all",
    )
    ConfigError.require(
        devices % given == 0,
        f"config.mesh: got {axes}, expected a product without -1 that divides {devices} devices",
    )
    data, fsdp, tensor = (devices // given if size == -1 else size for size in wanted)
    return data, fsdp, tensor


def memory(device: jax.Device) -> int:
    """Return the bytes of memory of a device; those of a CPU share the machine's."""
    stats = device.memory_stats() or {} if device.platform != "cpu" else {}
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit", machine // jax.local_device_count())


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Return the sharding that keeps an array whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Return the sharding of a batch, split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Return the number of shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_rows(rows: int, microbatches: int, mesh: jax.sharding.Mesh, key: str) -> None:
    """Check that every microbatch of a batch splits evenly over the mesh.

    Args:
      rows: batch size.
      microbatches: number of microbatches.
      mesh: the devices.
      key: setting of the batch size, for the message.

    Raises:
      ConfigError: a microbatch does not split evenly.
    """
    shards = batch_shards(mesh)
    ConfigError.require(
        rows % (shards * microbatches) == 0,
        f"{key}: got {rows}, expected a multiple of {shards * microbatches} ({shards} devices,"
        f" {microbatches} microbatches)",
    )


def local_rows(mesh: jax.sharding.Mesh, rows: int) -> np.ndarray:
    """Return the indices in a batch of `rows` that this process's devices hold, ascending.

    The process must read these.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((rows,))
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held.values()]))


def put_batch(batch: Any, mesh: jax.sharding.Mesh, rows: int | None = None) -> Any:
    """Put a batch, an array or a tree of them, on the devices.

    Args:
      batch: the rows at `local_rows`; with one process, all rows.
      mesh: the devices.
      rows: size of the whole batch; required with several processes.
    """
    if jax.process_count() == 1 or rows is None:
        return jax.device_put(batch, batch_sharding(mesh))
    put = functools.partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
    return jax.tree.map(lambda x: put(x, (rows, *x.shape[1:])), batch)


def batch_axes() -> tuple[str, ...]:
    """Return the axes of BATCH_AXES that the compiler splits batches over; see `sum_copies`."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in BATCH_AXES if axis not in manual)


def batch_parts(rows: int) -> int:
    """Return the number of parts that the mesh in context splits `rows` into.

    It is 1 without a mesh, or if `rows` does not divide. In `sum_copies` the rows are those of one
    copy.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in batch_axes())
    return 1 if rows % parts else parts


def axis_size(axis: str) -> int:
    """Return the size of an axis of the mesh in context; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def platform() -> str:
    """Return the platform of the mesh in context, or without one that of the default devices.

    It is `tpu` where a step is compiled for a TPU topology on another machine.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def sum_copies(function: Callable[..., Any], params: Any, rows: Any, layouts: Any) -> Any:
    """Compute `function(params, rows)` on the rows of every copy, and add the results up once.

    What the function itself adds up, such as gradients over microbatches, is not exchanged between
    copies before that.

    Args:
      function: from params and rows to a tree of arrays, each a sum over rows.
      params: a tree of arrays that are whole over `data`.
      rows: a tree of arrays.
      layouts: per array of `rows` its PartitionSpec over `data` alone.
    """
    # Unchecked: gradients are then those of a copy's own rows, where JAX would sum them at once.
    return jax.shard_map(
        lambda params, rows: jax.lax.psum(function(params, rows), "data"),
        in_specs=(PartitionSpec(), layouts),
        out_specs=PartitionSpec(),
        axis_names={"data"},
        check_vma=False,
    )(params, rows)


def on_mesh(
    function: Callable[..., Any], mesh: jax.sharding.Mesh | None, **kwargs: Any
) -> Callable[..., Any]:
    """Return `jax.jit` of a function whose results are whole on every device of the mesh."""
    if mesh is None:
        return jax.jit(function, **kwargs)
    jitted = jax.jit(function, out_shardings=replicated(mesh), **kwargs)

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return jitted(*args)

    return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_params(x: jax.Array, stored: Layout, used: Layout) -> jax.Array:
    """Bring a parameter from its stored layout to the layout of its use; the gradient goes back.

    Applied to every parameter that `fsdp` splits, this prevents the compiler from moving
    activations instead, and from summing whole gradients on devices that need only their part.
    """
    return _lay_out(x, used)


def _lay_out(x: jax.Array, layout: Layout) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    # Whole parameters need no gathering, and their gradients can be summed later.
    return (
        x if mesh.empty or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1 else constrain(x, *layout)
    )


def _gather_forward(x: jax.Array, stored: Layout, used: Layout) -> tuple[jax.Array, None]:
    return _lay_out(x, used), None


def _gather_backward(
    stored: Layout, used: Layout, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (_lay_out(gradient, stored),)


gather_params.defvjp(_gather_forward, _gather_backward)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lay `x` out over the mesh in context, one name per dimension; without a mesh, return it.

    Args:
      x: an activation.
      axes: `batch` for data and fsdp, `fsdp`, `tensor`, or None for whole; the compiler chooses the
        layout of dimensions not named. An axis that does not divide its dimension is omitted.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = []
    for size, axis in zip(x.shape, axes, strict=False):
        names = batch_axes() if axis == "batch" else axis
        parts = math.prod(
            mesh.shape[name] for name in ((names,) if isinstance(names, str) else names or ())
        )
        spec.append(names if parts > 1 and size % parts == 0 else None)
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(spec))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec, *rest))
