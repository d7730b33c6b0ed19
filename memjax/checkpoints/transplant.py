"""A part of one trained model seeds another."""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.checkpoints.manager import CheckpointError

Tree = Mapping[str, Any]


def transplant(target: Tree, source: Tree, part: str, origin: str) -> Tree:
    """`target` with the subtree `part` (or, if empty, everything) taken from `source`.

    Args:
      target: parameters, arrays or abstract.
      source: parameters of the trained model.
      part: top-level name, such as `encoder`.
      origin: what errors call the source.

    Raises:
      CheckpointError: a parameter is missing there, or is there in another shape.
    """
    wanted, given = flatten_dict(target, sep="/"), flatten_dict(source, sep="/")
    prefix = f"{part}/" if part else ""
    taken = {path for path in wanted if path.startswith(prefix)}
    if not taken:
        raise CheckpointError(f"init_part={part!r} is no part of this model; its parts are {', '.join(sorted(target))}")
    for path in sorted(taken):
        if path not in given:
            raise CheckpointError(f"{origin} has no parameter {path!r}; its parts are {', '.join(sorted(source))}")
        if given[path].shape != wanted[path].shape:
            raise CheckpointError(
                f"{origin} has parameter {path!r} in shape {given[path].shape}, this model needs {wanted[path].shape}"
            )
    return unflatten_dict({path: given[path] if path in taken else leaf for path, leaf in wanted.items()}, sep="/")
