"""Layouts of parameters, by ordered rules on their paths, and bytes per device.

A rule names mesh axes for the last dimensions of a parameter, so that it applies with and without a
leading layer axis.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_map_with_path

from memjax.config import ConfigError, Rules, match_rules
from memjax.sharding.mesh import local_mesh, memory, replicated

WHOLE = 0.25
"""The share of a device's memory that parameters for inference may fill, whole on each."""


def spec_of(
    path: str, shape: tuple[int, ...], rules: Rules, mesh: jax.sharding.Mesh
) -> PartitionSpec:
    """Return the layout of one parameter.

    A dimension stays whole if its mesh axis does not divide it.

    Raises:
      ConfigError: no rule matches the path, or the matching rule names more dimensions than there
        are.
    """
    axes = match_rules(rules, path, "config.mesh.rules")
    ConfigError.require(
        len(axes) <= len(shape),
        f"config.mesh.rules: got {len(axes)} dimensions {axes} for {path!r}, expected at most"
        f" {len(shape)}, its shape being {shape}",
    )
    aligned = (None,) * (len(shape) - len(axes)) + tuple(axes)
    fits = (
        axis if axis and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(aligned, shape, strict=True)
    )
    return PartitionSpec(*fits)


def shardings(params: Any, rules: Rules, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Return the layout of every parameter of a tree, arrays or abstract.

    Raises:
      ConfigError: as `spec_of`.
    """
    flat = flatten_dict(params, sep="/")
    return unflatten_dict(
        {
            path: NamedSharding(mesh, spec_of(path, leaf.shape, rules, mesh))
            for path, leaf in flat.items()
        },
        sep="/",
    )


def local_layouts(params: Any, rules: Rules) -> Any:
    """Return the layout of every parameter over the devices of this process, which are several.

    Parameters are whole on each device, or split by their rules where they would fill more than
    WHOLE of its memory.
    """
    mesh = local_mesh()
    assert mesh, "one device"
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))
    if size <= WHOLE * memory(mesh.devices.flat[0]):
        return jax.tree.map(lambda _: replicated(mesh), params)
    return shardings(params, rules, mesh)


def state_shardings(state: Any, params: Any, places: Any, mesh: jax.sharding.Mesh) -> Any:
    """Return the layout of an optimizer's state.

    Moments have the layout of their parameters; scalars are whole everywhere.

    Args:
      state: arrays or abstract arrays; the path of a moment ends in that of its parameter.
      params: trainable parameters, arrays or abstract.
      places: layouts of the parameters.
      mesh: the devices.
    """
    shapes, known = flatten_dict(params, sep="/"), flatten_dict(places, sep="/")

    def place(path: Any, leaf: Any) -> NamedSharding:
        parts = keystr(path, simple=True, separator="/").split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        name = next((end for end in ends if end in known and shapes[end].shape == leaf.shape), None)
        return known[name] if name else NamedSharding(mesh, PartitionSpec())

    return tree_map_with_path(place, state)


def abstract(tree: Any, places: Any) -> Any:
    """Replace arrays by shapes, dtypes and layouts, the target of restoring a checkpoint.

    Args:
      tree: arrays or abstract arrays.
      places: a layout for every leaf.
    """
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
    )


class Placement(NamedTuple):
    """Layout and size of one parameter."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    bytes_per_device: int
    trainable: bool


def placements(
    params: Any, trainable: Mapping[str, Any], rules: Rules, mesh: jax.sharding.Mesh
) -> list[Placement]:
    """Return one `Placement` per parameter, in the order of their paths, for the start-up table.

    Args:
      params: all parameters, arrays or abstract.
      trainable: the trainable parameters among them.
      rules: `config.mesh.rules`.
      mesh: the devices.
    """
    moving = flatten_dict(trainable, sep="/")
    lines = []
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        spec = spec_of(path, leaf.shape, rules, mesh)
        held = math.prod(NamedSharding(mesh, spec).shard_shape(leaf.shape)) * leaf.dtype.itemsize
        lines.append(Placement(path, leaf.shape, leaf.dtype.name, spec, held, path in moving))
    return lines
