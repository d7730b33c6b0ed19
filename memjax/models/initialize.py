"""First weights as the published PyTorch code draws them: those of torch.nn and of Llama.

Source: Badger 2026, published code.

- N(0, 1): token tables.
- U(-b, b), b = 1 / sqrt(fan in): kernels and biases of linear maps, also in a mixer's blocks; a
  mixer's matrices over positions and their biases.
- N(0, 0.02^2): a transformer's blocks; the token table of a whole Llama that is fed ids; the head
  of Llama's own language model.
- N(0, 2 / fan in), biases 0, decay 1: a repeat mixer's blocks.
- Gain 1, bias 0: norms.

Fan in of a matrix over T positions with k taps is T * k, that of a vector over positions T: entries
that are cut off count.

Shapes: T position, I width in, O width out; blocks have a leading layer axis.
"""

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.config import Backbone, Config, ConfigError, Stage
from memjax.models.registry import can, find

LLAMA_SCALE = 0.02
"""Standard deviation of everything in a Llama but its norms."""
_NORM = re.compile(r"(^|/|_)norm/(scale|bias)$")
_BLOCK = re.compile(r"^(encoder/)?backbone/blocks/")
_LINEAR = re.compile(r"^((encoder/)?(down|up)|bridge|unroll_projection|value|score)/(kernel|bias)$")
_KEPT = re.compile(
    r"^(encoder/memory_tokens|token_position|chunk_position|task_mark|start|query_mark)$"
)
"""Learned vectors that no published model has: they stay as memjax draws them."""


def initial_params(
    module: nn.Module, config: Config, stage: Stage, key: jax.Array
) -> dict[str, Any]:
    """Draws the parameters that training begins with.

    Args:
      module: the model of `stage`.
      config: the run's settings.
      stage: the stage.
      key: the key that all parameters are drawn from.
    """
    params: Any = module.init(key, find(module).example(config))["params"]
    if "reference_init" in config.model.compat:
        params = reference_init(params, config, stage, key)
    return params


def reference_init(
    params: Mapping[str, Any], config: Config, stage: Stage, key: jax.Array
) -> dict[str, Any]:
    """`params` drawn again as the published code initialises them.

    Args:
      params: parameters of `build(config, stage)`; but for learned vectors that no published model
        has, only their shapes and dtypes are read.
      config: the run's settings; what a stack is, is read from there.
      stage: the stage whose family the model is of.
      key: every parameter has its own, made of this one and its path.

    Raises:
      ConfigError: a parameter is of no kind that is known here.
    """
    flat = flatten_dict(params, sep="/")
    drawn = {
        path: _draw(path, flat, config, stage, jax.random.fold_in(key, zlib.crc32(path.encode())))
        for path in flat
    }
    return unflatten_dict(drawn, sep="/")


def _draw(
    path: str, flat: Mapping[str, jax.Array], config: Config, stage: Stage, key: jax.Array
) -> jax.Array:
    x = flat[path]
    if _KEPT.search(path):
        return x
    if _NORM.search(path):
        return jnp.ones_like(x) if path.endswith("scale") else jnp.zeros_like(x)
    if path.endswith("embed/embedding"):
        return _normal(key, x, LLAMA_SCALE if _inside_llama(path, config, stage) else 1.0)
    if path == "head/kernel" and _is_llama_lm(config, stage):
        return _normal(key, x, LLAMA_SCALE)
    if _LINEAR.search(path) or path == "head/kernel":
        return _uniform(key, x, _fan_in(path, flat))
    if _BLOCK.search(path):
        inside = "encoder" if path.startswith("encoder/") else find(stage.family).backbone
        return _draw_of_block(path, flat, getattr(config.model, inside), key)
    raise ConfigError(
        "config.model.compat: 'reference_init' has no published initialisation for parameter"
        f" {path!r}"
    )


def _draw_of_block(
    path: str, flat: Mapping[str, jax.Array], backbone: Backbone, key: jax.Array
) -> jax.Array:
    """A parameter of the blocks of a stack, norms aside."""
    x, name = flat[path], path.rsplit("/", 1)[1]
    if backbone.kind == "mixer":
        return _uniform(
            key,
            x,
            x.shape[-1] * backbone.channel_kernel
            if name.startswith("mixing")
            else _fan_in(path, flat),
        )
    if backbone.kind == "transformer":
        return _normal(key, x, LLAMA_SCALE) if name == "kernel" else jnp.zeros_like(x)
    if name == "decay":
        return jnp.ones_like(x)
    if name in ("bias", "mixing_bias"):
        return jnp.zeros_like(x)
    # A vector over positions may lack the last one; the biases have them all.
    fan_in = (
        _fan_in(path, flat)
        if name == "kernel"
        else flat[re.sub(r"\w+$", "mixing_bias", path)].shape[-1]
    )
    return _normal(key, x, math.sqrt(2 / fan_in))


def _fan_in(path: str, flat: Mapping[str, jax.Array]) -> int:
    """I of a linear map, for its kernel [I, O] and for its bias [O]."""
    return flat[re.sub(r"bias$", "kernel", path)].shape[-2]


def _is_llama_lm(config: Config, stage: Stage) -> bool:
    """Return whether the published model is `LlamaForCausalLM`, with a head drawn like the rest."""
    return can(stage.family, "reads_rows") and config.model.decoder.kind == "transformer"


def _inside_llama(path: str, config: Config, stage: Stage) -> bool:
    """Return whether a token table belongs to a whole Llama.

    A stack without its final norm, or one that reads embeddings, has it outside.
    """
    if not path.startswith("encoder/"):
        return _is_llama_lm(config, stage)
    encoder = config.model.encoder
    whole = encoder.kind == "transformer" and encoder.final_norm
    return whole and not can(stage.family, "reads_memories")


def _normal(key: jax.Array, x: jax.Array, scale: float) -> jax.Array:
    return scale * jax.random.normal(key, x.shape, x.dtype)


def _uniform(key: jax.Array, x: jax.Array, fan_in: int) -> jax.Array:
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, x.shape, x.dtype, -bound, bound)
