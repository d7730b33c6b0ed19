"""The device mesh, and where batches and states lie on it.

Axes `data`, `fsdp`, `tensor`; a batch is split over `data` and `fsdp`. By default every device is on `data`: parameters are
whole on each.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from memjax.config import ConfigError

AXES = ("data", "fsdp", "tensor")


def make_mesh() -> Mesh:
    """All devices of the process on the data axis."""
    return jax.make_mesh((jax.device_count(), 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_rows(rows: int, microbatches: int, mesh: Mesh, key: str) -> None:
    """Raises ConfigError if a microbatch of a batch of `rows` does not split evenly over the mesh."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (shards * microbatches):
        raise ConfigError(
            f"{key}={rows} must be a multiple of {shards * microbatches}: {shards} devices, {microbatches} microbatches"
        )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch, an array or a tree of them, on the devices."""
    return jax.device_put(batch, batch_sharding(mesh))


def abstract(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes, dtypes and a sharding in place of arrays: what a checkpoint is restored onto."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
