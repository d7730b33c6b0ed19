"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): a matrix stays as it is, and a product of two thin ones is added to it.

They stand beside the kernel they add to, `.../query/kernel` has `.../query/lora_in` and `.../query/lora_out`, in parameters, checkpoints and
optimizer alike; `Linear` adds what is there. Rules (`config.stages.NAME.trainable`) that give a kernel a whole number in place of True or
False say which have them, and of what rank. There is no factor on the product: to move it by a share of the learning rate is
`config.optimizer.rate_rules`.

Shapes: I width in, O width out, r rank; in a stack, all have a leading layer axis.
"""

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.config import ConfigError, Rules, match_rules

Tree = Mapping[str, Any]
ADAPTABLE = re.compile(r"backbone/blocks/(mix/(query|key|value|gate|out)|mlp/(gate|up|down))/kernel$")
"""Matrices that can have adapters: those of a stack's blocks."""
_ADAPTER = re.compile(r"/lora_(in|out)$")


def ranks(params: Tree, rules: Rules, key: str) -> dict[str, int]:
    """{path of a kernel: rank of its adapters}, of those that have any.

    Raises:
      ConfigError: a rule gives a rank to no matrix at all, or one that is greater than a matrix has.
    """
    flat = flatten_dict(params, sep="/")
    found: dict[str, int] = {}
    for path in filter(ADAPTABLE.search, flat):
        rank = match_rules(rules, path, key)
        if isinstance(rank, bool):
            continue
        found[path] = rank
        most = min(flat[path].shape[-2:])
        if rank > most:
            raise ConfigError(f"{key} gives {path!r} of shape {flat[path].shape} a rank of {rank}; use {most} at most")
    asked = [pattern for pattern, value in rules if not isinstance(value, bool)]
    if asked and not found:
        raise ConfigError(
            f"{key} gives a rank to {asked[0]!r}, which is no matrix of a block here; such as 'backbone/blocks/mix/query/kernel' are"
        )
    return found


def adapter_shapes(params: Tree, rules: Rules, key: str) -> Tree:
    """The adapters, abstract, that the rules ask for beside `params`, arrays or abstract; raises as `ranks`."""
    flat, adapters = flatten_dict(params, sep="/"), {}
    for path, rank in ranks(params, rules, key).items():
        (*layers, into, out), dtype = flat[path].shape, flat[path].dtype
        at = path.removesuffix("/kernel")
        adapters[f"{at}/lora_in"] = jax.ShapeDtypeStruct((*layers, into, rank), dtype)
        adapters[f"{at}/lora_out"] = jax.ShapeDtypeStruct((*layers, rank, out), dtype)
    return unflatten_dict(adapters, sep="/")


def draw_adapters(shapes: Tree, key: jax.Array) -> Tree:
    """Adapters of these shapes: N(0, 1 / I) going in, 0 coming out, so that the model starts as it was."""

    def draw(path: str, leaf: Any) -> jax.Array:
        if path.endswith("/lora_out"):
            return jnp.zeros(leaf.shape, leaf.dtype)
        noise = jax.random.normal(jax.random.fold_in(key, zlib.crc32(path.encode())), leaf.shape, leaf.dtype)
        return noise / math.sqrt(leaf.shape[-2])

    return unflatten_dict({path: draw(path, leaf) for path, leaf in flatten_dict(shapes, sep="/").items()}, sep="/")


def is_adapter(path: str) -> bool:
    """Whether a parameter is one half of an adapter."""
    return _ADAPTER.search(path) is not None


def merge_lora(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters in which every adapter is added to its kernel, kernel + lora_in @ lora_out, and is gone; the others are the same arrays."""
    flat = flatten_dict(params, sep="/")
    if not any(map(is_adapter, flat)):
        return params
    merged = {}
    for path, leaf in flat.items():
        if is_adapter(path):
            continue
        into = flat.get(re.sub(r"kernel$", "lora_in", path)) if path.endswith("/kernel") else None
        merged[path] = leaf if into is None else leaf + into @ flat[re.sub(r"kernel$", "lora_out", path)]
    return unflatten_dict(merged, sep="/")
