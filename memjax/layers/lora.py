"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) for matrices of a stack's blocks.

The factors lie beside the kernel, in parameters, checkpoints and optimizer alike:
`.../query/kernel` has `.../query/lora_in` and `.../query/lora_out`; `Linear` adds their product if
they exist. Rules (`config.stages.NAME.trainable`) give a kernel an integer rank in place of True or
False. The product has no scale; `config.optimizer.rate_rules` can change its learning rate.

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
ADAPTABLE = re.compile(
    r"backbone/blocks/(mix/(query|key|value|gate|out)|mlp/(gate|up|down))/kernel$"
)
"""Matrices that can have adapters: those of a stack's blocks."""


def adapter_shapes(params: Tree, rules: Rules, key: str) -> Tree:
    """Return the abstract adapters that the rules define for `params`, arrays or abstract.

    Adapters are float32, whatever the type of their matrix.

    Raises:
      ConfigError: a rank is given to no matrix at all, or is greater than a matrix has.
    """
    flat, adapters = flatten_dict(params, sep="/"), {}
    for path in filter(ADAPTABLE.search, flat):
        rank = match_rules(rules, path, key)
        if isinstance(rank, bool):
            continue
        *layers, into, out = flat[path].shape
        ConfigError.require(
            rank <= min(into, out),
            f"{key}: got rank {rank} for {path!r} of shape {flat[path].shape}, expected at most"
            f" {min(into, out)}",
        )
        at = path.removesuffix("/kernel")
        for half, shape in (("in", (*layers, into, rank)), ("out", (*layers, rank, out))):
            adapters[f"{at}/lora_{half}"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    unmatched = [pattern for pattern, value in rules if not isinstance(value, bool)]
    ConfigError.require(
        adapters or not unmatched,
        f"{key}: got a rank for {(unmatched or [''])[0]!r}, which matches no matrix of a block,"
        " expected a pattern of kernels such as 'backbone/blocks/mix/query/kernel'",
    )
    return unflatten_dict(adapters, sep="/")


def draw_adapters(shapes: Tree, key: jax.Array) -> Tree:
    """Initialise adapters of these shapes: lora_in ~ N(0, 1 / I), lora_out = 0.

    The model's function is unchanged at the start.
    """

    def draw(path: str, leaf: Any) -> jax.Array:
        if path.endswith("/lora_out"):
            return jnp.zeros(leaf.shape, leaf.dtype)
        noise = jax.random.normal(
            jax.random.fold_in(key, zlib.crc32(path.encode())), leaf.shape, leaf.dtype
        )
        return noise / math.sqrt(leaf.shape[-2])

    return unflatten_dict(
        {path: draw(path, leaf) for path, leaf in flatten_dict(shapes, sep="/").items()}, sep="/"
    )


def is_adapter(path: str) -> bool:
    """Return whether a parameter is a factor of an adapter."""
    return path.endswith(("/lora_in", "/lora_out"))


def merge_lora(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with every adapter merged, kernel + lora_in @ lora_out, and removed.

    A merged matrix is float32. The other parameters are the same arrays.
    """
    flat = flatten_dict(params, sep="/")
    adapted = [path.removesuffix("/lora_in") for path in flat if path.endswith("/lora_in")]
    if not adapted:
        return params
    merged = {path: leaf for path, leaf in flat.items() if not is_adapter(path)}
    for path in adapted:
        added = flat[f"{path}/lora_in"] @ flat[f"{path}/lora_out"]
        merged[f"{path}/kernel"] = merged[f"{path}/kernel"] + added
    return unflatten_dict(merged, sep="/")
