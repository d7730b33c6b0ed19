"""A part of one trained model seeds another."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.checkpoints.manager import CheckpointError
from memjax.errors import few

Tree = Mapping[str, Any]


def parts_of(part: str) -> list[tuple[str, str]]:
    """Return `init_part` as pairs (path there, path here).

    `encoder` is the same on both sides, `backbone:encoder/backbone` is not.
    """
    pairs = (piece.strip().split(":") for piece in part.split(","))
    return [(pair[0].strip("/"), pair[-1].strip("/")) for pair in pairs]


def paths_of(part: str, params: Tree) -> set[str]:
    """Return the paths among `params` that `init_part` names; empty names all."""
    prefixes = tuple(f"{here}/" if here else "" for _, here in parts_of(part))
    return {path for path in flatten_dict(params, sep="/") if path.startswith(prefixes)}


def transplant(
    target: Tree, source: Tree, part: str, origin: str, fill_layers: bool = False
) -> Tree:
    """Return `target` with the parameters that `part` names taken from `source`.

    Args:
      target: parameters, arrays or abstract.
      source: parameters of the trained model.
      part: as config.stages.NAME.init_part: a path such as `encoder`, SOURCE:TARGET, several with
        commas, or empty for everything.
      origin: what errors call the source.
      fill_layers: a stack there of fewer layers fills the first layers of the stack here; the
        others, and a final norm that is not there, stay as they are in `target`.

    Raises:
      CheckpointError: a parameter is missing there, or is there in another shape.
    """
    wanted, given = flatten_dict(target, sep="/"), flatten_dict(source, sep="/")
    result = dict(wanted)
    for there, here in parts_of(part):
        prefix = f"{here}/" if here else ""
        taken = sorted(path for path in wanted if path.startswith(prefix))
        CheckpointError.require(
            taken,
            f"init_part={part!r}: {here!r} is no part of this model; its parts are"
            f" {few(sorted(target))}",
        )
        for path in taken:
            name = f"{there}/{path.removeprefix(prefix)}" if here else path
            if fill_layers and name not in given and "/norm/" in path:
                continue
            CheckpointError.require(
                name in given,
                f"{origin} has no parameter {name!r}; its parts are {few(sorted(source))}",
            )
            leaf, own = given[name], wanted[path]
            if leaf.shape != own.shape:
                fills = fill_layers and "blocks/" in path and leaf.shape[1:] == own.shape[1:]
                CheckpointError.require(
                    fills and leaf.shape[0] < own.shape[0],
                    f"{origin} has parameter {name!r} in shape {leaf.shape}, this model needs"
                    f" {path!r} in {own.shape}",
                )
                # Abstract trees have shapes alone: there is nothing to fill.
                abstract = isinstance(own, jax.ShapeDtypeStruct)
                leaf = own if abstract else jnp.asarray(own).at[: leaf.shape[0]].set(leaf)
            result[path] = leaf
    return unflatten_dict(result, sep="/")
