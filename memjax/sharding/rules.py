"""Where every parameter lies, by ordered rules on its path, and what that costs a device.

A rule names mesh axes for the last dimensions of a parameter, so that it holds with a leading layer axis and without.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_map_with_path

from memjax.config import ConfigError, Rules, match_rules


def spec_of(path: str, shape: tuple[int, ...], rules: Rules, mesh: jax.sharding.Mesh) -> PartitionSpec:
    """The layout of one parameter. An axis of the mesh that does not divide its dimension is left out: the dimension stays whole.

    Raises:
      ConfigError: no rule matches the path, or the rule that does names more dimensions than there are.
    """
    axes = match_rules(rules, path, "config.mesh.rules")
    if len(axes) > len(shape):
        raise ConfigError(f"config.mesh.rules name {len(axes)} dimensions {axes} for {path!r}, which has shape {shape}")
    aligned = (None,) * (len(shape) - len(axes)) + tuple(axes)
    fits = (
        axis if axis and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(aligned, shape, strict=True)
    )
    return PartitionSpec(*fits)


def shardings(params: Any, rules: Rules, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The layout of every parameter of a tree, arrays or abstract; raises as `spec_of`."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict(
        {path: NamedSharding(mesh, spec_of(path, leaf.shape, rules, mesh)) for path, leaf in flat.items()}, sep="/"
    )


def state_shardings(state: Any, params: Any, places: Any, mesh: jax.sharding.Mesh) -> Any:
    """The layout of an optimizer's state: moments lie as their parameters do, numbers are whole everywhere.

    Args:
      state: arrays or abstract; the path of a moment ends in that of its parameter.
      params: what the optimizer moves, arrays or abstract.
      places: their layouts.
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
    """Shapes, dtypes and layouts in place of arrays: what a checkpoint is restored onto.

    Args:
      tree: arrays or abstract arrays.
      places: a layout for every leaf, or one for all.
    """
    if isinstance(places, jax.sharding.Sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places), tree)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)


@dataclasses.dataclass(frozen=True)
class Placement:
    """One parameter: where it lies and what it takes."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    bytes_a_device: int
    trainable: bool


def placements(params: Any, trainable: Mapping[str, Any], rules: Rules, mesh: jax.sharding.Mesh) -> list[Placement]:
    """A line of the start-up table for every parameter, in the order of their paths.

    Args:
      params: all parameters, arrays or abstract.
      trainable: those of them that move.
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
