"""A part of one trained model seeds another."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.checkpoints.manager import CheckpointError

Tree = Mapping[str, Any]


def parts_of(part: str) -> list[tuple[str, str]]:
    """`init_part` as (path there, path here) pairs: "encoder" is the same on both sides, "backbone:encoder/backbone" is not."""
    pairs = (piece.strip().split(":") for piece in part.split(","))
    return [(pair[0].strip("/"), pair[-1].strip("/")) for pair in pairs]


def transplant(target: Tree, source: Tree, part: str, origin: str, fill_layers: bool = False) -> Tree:
    """`target` with what `part` names taken from `source`.

    Args:
      target: parameters, arrays or abstract.
      source: parameters of the trained model.
      part: as config.stages.NAME.init_part: a path such as `encoder`, SOURCE:TARGET, several with commas, or empty for everything.
      origin: what errors call the source.
      fill_layers: a stack there of fewer layers fills the first layers of the stack here; the others, and a final norm that is not
        there, stay as they are in `target`.

    Raises:
      CheckpointError: a parameter is missing there, or is there in another shape.
    """
    wanted, given = flatten_dict(target, sep="/"), flatten_dict(source, sep="/")
    result = dict(wanted)
    for there, here in parts_of(part):
        prefix = f"{here}/" if here else ""
        taken = sorted(path for path in wanted if path.startswith(prefix))
        if not taken:
            raise CheckpointError(
                f"init_part={part!r}: {here!r} is no part of this model; its parts are {', '.join(sorted(target))}"
            )
        for path in taken:
            name = f"{there}/{path.removeprefix(prefix)}" if here else path
            if fill_layers and name not in given and "/norm/" in path:
                continue
            result[path] = _take(given, name, path, wanted[path], source, origin, fill_layers)
    return unflatten_dict(result, sep="/")


def _take(given: Tree, name: str, path: str, wanted: Any, source: Tree, origin: str, fill_layers: bool) -> Any:
    if name not in given:
        raise CheckpointError(f"{origin} has no parameter {name!r}; its parts are {', '.join(sorted(source))}")
    leaf = given[name]
    if leaf.shape == wanted.shape:
        return leaf
    shallower = "blocks/" in path and leaf.shape[1:] == wanted.shape[1:] and leaf.shape[0] < wanted.shape[0]
    if fill_layers and shallower:
        # On abstract trees, of which only shapes are asked, there is nothing to fill.
        return wanted if isinstance(wanted, jax.ShapeDtypeStruct) else jnp.asarray(wanted).at[: leaf.shape[0]].set(leaf)
    raise CheckpointError(f"{origin} has parameter {name!r} in shape {leaf.shape}, this model needs {path!r} in {wanted.shape}")
