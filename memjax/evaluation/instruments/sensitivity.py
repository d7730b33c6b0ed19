"""Sensitivity of layers to rounding: the loss with the output or weights of one layer rounded.

A flag among the parameters of every layer selects it for rounding. Blocks of a stack are scanned,
and their parameters have a leading axis over depth. The flag has it too, and so selects single
blocks: one compiled function measures every (path, depth) separately.

Shapes: B text of a batch, T token of a text, S layer, with none as the last; D depth of a stack.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Int

from memjax.evaluation.instruments.quantisation import KINDS, QuantisationError, quantise
from memjax.inference.codec import MemoryCodec, Params, TextSums, scores_of, text_sums
from memjax.inference.texts import check_texts, over_batches
from memjax.layers import Embed, Linear
from memjax.objectives.uncertainty import Estimate, ratio

TARGETS = ("output", "weight")
WEIGHTS: Mapping[str, int] = {"kernel": 2, "embedding": 2, "mixing": 4}
"""Matrices of linear maps and head, of token tables, and over positions, and their axes.

A stack of layers has one more axis.
"""
_FLAG = "rounded"
"""Name of the flag among a layer's parameters."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Increase of the loss by rounding, one layer at a time."""

    target: str
    kind: str
    nats: Estimate
    """Nats per token without rounding."""
    changes: Mapping[str, Estimate]
    """Nats per token that rounding one layer adds, paired over texts, in decreasing order.

    A layer of a stack is named with its depth: `encoder/backbone/blocks/mlp/up[0]`. Outputs are
    those of linear maps and token tables. Weights are theirs, the head's and a mixer's over
    positions.
    """


def sensitivity(
    system: MemoryCodec,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    batch: int = 32,
    target: str = "output",
    kind: str = "float8_e4m3",
) -> Sensitivity:
    """Round each layer in turn and score texts given their own memories.

    A batch takes one encoding and decoding per layer, and one more. The head's output is left out,
    since the loss never materialises it.

    Args:
      system: encoder and decoder.
      params: its parameters.
      texts: texts of `system.length` tokens each.
      batch: texts per batch.
      target: `output` of a layer, or its `weight`.
      kind: kind of rounding (quantisation.py); a cast has no scale. For integers, a tensor is the
        last two axes and a vector the last: features of an output, outputs of a kernel.

    Raises:
      QuantisationError: target or kind is unknown.
      TextsError: there are no texts, or they have another length.
    """
    check_texts(system, texts)
    QuantisationError.require_one_of("target", target, TARGETS)
    QuantisationError.require_one_of("kind", kind, KINDS)
    layers = _layers(system, params, target)
    of_batch = functools.partial(_batch_sums, system, layers, target, kind, params)
    nats, count = over_batches(of_batch, texts, batch, f"{target}s", np.float64)
    names = [
        f"{path}[{at}]" if depth else path for path, depth in layers for at in range(depth or 1)
    ]
    changes = {name: ratio(nats[:, at] - nats[:, -1], count) for at, name in enumerate(names)}
    ordered = sorted(changes.items(), key=lambda item: (-item[1].value, item[0]))
    return Sensitivity(target, kind, ratio(nats[:, -1], count), dict(ordered))


def _layers(system: MemoryCodec, params: Params, target: str) -> tuple[tuple[str, int], ...]:
    """Return (path, depth in its stack, or 0) of the layers that run, or of their weights."""
    flat = flatten_dict(params, sep="/")
    weights = {
        path: weight.shape[0] if weight.ndim > WEIGHTS[name] else 0
        for path, weight in flat.items()
        if (name := path.rpartition("/")[2]) in WEIGHTS
    }
    if target == "weight":
        return tuple(weights.items())
    found: dict[str, int] = {}

    def record(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if context.method_name == "__call__" and isinstance(context.module, (Linear, Embed)):
            path = "/".join(context.module.path)
            name = "kernel" if isinstance(context.module, Linear) else "embedding"
            found[path] = weights[f"{path}/{name}"]
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(
            lambda params, tokens: scores_of(system, params, tokens),
            params,
            np.zeros((1, system.length), np.int32),
        )
    return tuple(found.items())


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _batch_sums(
    system: MemoryCodec,
    layers: tuple[tuple[str, int], ...],
    target: str,
    kind: str,
    params: Params,
    tokens: Int[Array, "B T"],
) -> tuple[jax.Array, jax.Array]:
    """Return (nats [B, S], tokens [B]) of each text; the model is compiled once for all S."""
    flat = flatten_dict(params, sep="/")
    starts = np.cumsum([0, *(depth or 1 for _, depth in layers)])

    def score(layer: jax.Array) -> TextSums:
        flags = {
            path: layer == start + (np.arange(depth) if depth else 0)
            for (path, depth), start in zip(layers, starts[:-1], strict=True)
        }
        if target == "weight":
            changed = {
                path: _where(flag, quantise(flat[path], kind), flat[path])
                for path, flag in flags.items()
            }
        else:
            changed = {f"{path}/{_FLAG}": flag for path, flag in flags.items()}
        with nn.intercept_methods(functools.partial(_round_output, kind=kind)):
            scores = scores_of(system, unflatten_dict({**flat, **changed}, sep="/"), tokens)
        return text_sums(scores)

    nats, _, tokens_of_text = jax.lax.map(score, jnp.arange(starts[-1] + 1))
    return nats.T, tokens_of_text[0]


def _round_output(next_fun: Callable, args: tuple, kwargs: dict, context: Any, *, kind: str) -> Any:
    """Round the output of a layer where its flag is set."""
    y = next_fun(*args, **kwargs)
    if context.method_name != "__call__" or not isinstance(context.module, (Linear, Embed)):
        return y
    flag = context.module.get_variable("params", _FLAG)
    return y if flag is None else jnp.where(flag, quantise(y, kind).astype(y.dtype), y)


def _where(flag: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    return jnp.where(
        flag.reshape(flag.shape + (1,) * (no.ndim - flag.ndim)), yes.astype(no.dtype), no
    )
