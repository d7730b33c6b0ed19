"""Which layers need their precision: one layer after another is rounded, its output or its weights, and the loss measured.

Layers are told apart by a flag that travels among the parameters: beside the weights of every layer stands whether it is rounded. Blocks
of a stack are scanned, and their parameters have a leading axis over depth; so has the flag, which thereby reaches each block by itself:
every (path, depth) is measured apart, and all of them by one compiled function.

Shapes: B text of a batch, T token of a text, S layer, the last of which is none; D depth of a stack.
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

from memjax.instruments.information import check_texts, over_batches
from memjax.instruments.quantisation import KINDS, QuantisationError, quantise
from memjax.instruments.system import Params, System, scores_of
from memjax.instruments.uncertainty import Estimate, ratio
from memjax.layers import Embed, Linear

TARGETS = ("output", "weight")
WEIGHTS = ("kernel", "embedding", "mixing")
"""Parameters that are matrices: of linear maps and the head, of token tables, and over positions."""
_FLAG = "rounded"
"""Name of the flag among a layer's parameters."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What rounding costs, one layer at a time."""

    target: str
    kind: str
    nats: Estimate
    """A token, nothing rounded."""
    changes: Mapping[str, Estimate]
    """Nats a token that rounding one layer adds, paired over texts, the most sensitive layer first. A layer of a stack is named with its
    depth: `encoder/backbone/blocks/mlp/up[0]`. Outputs are those of linear maps and token tables; weights are theirs, the head's and a
    mixer's over positions."""


def sensitivity(
    system: System,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    batch: int = 32,
    advance: Callable[[], None] = lambda: None,
    target: str = "output",
    kind: str = "float8_e4m3",
) -> Sensitivity:
    """Rounds each layer in turn and scores texts given their own memories.

    A batch takes as many encodings and decodings as there are layers, and one more. The head's output is left out: the loss never
    holds it.

    Args:
      system: what is measured.
      params: its parameters.
      texts: of `system.length` tokens each.
      batch: texts at a time.
      advance: called when a batch is done.
      target: `output`, what a layer gives, or `weight`, what it is made of.
      kind: how numbers are rounded (memjax/instruments/quantisation.py); a cast has no scale. Of integers, a tensor is the last two axes
        and a vector the last: features of an output, outputs of a kernel.

    Raises:
      QuantisationError: target or kind is unknown.
      TextsError: there are no texts, or they are of another length.
    """
    check_texts(system, texts)
    if target not in TARGETS:
        raise QuantisationError(f"target={target!r}: there are {', '.join(TARGETS)}")
    if kind not in KINDS:
        raise QuantisationError(f"kind={kind!r}: there are {', '.join(KINDS)}")
    layers = _layers(system, params, target)
    nats, count = over_batches(functools.partial(_batch_sums, system, layers, target, kind, params), texts, batch, advance)
    nats, count = nats.astype(np.float64), count.astype(np.float64)
    names = [f"{path}[{at}]" if depth else path for path, depth in layers for at in range(depth or 1)]
    changes = {name: ratio(nats[:, at] - nats[:, -1], count) for at, name in enumerate(names)}
    ordered = sorted(changes.items(), key=lambda item: (-item[1].value, item[0]))
    return Sensitivity(target, kind, ratio(nats[:, -1], count), dict(ordered))


def _layers(system: System, params: Params, target: str) -> tuple[tuple[str, int], ...]:
    """(path, depth of its stack, or 0 if it is in none) of what can be rounded: layers that run, or weights."""
    flat = flatten_dict(params, sep="/")
    if target == "weight":
        paths = [path for path in flat if path.rsplit("/", 1)[-1] in WEIGHTS]
        own = {"kernel": 2, "embedding": 2, "mixing": 4}
        return tuple((path, flat[path].shape[0] if flat[path].ndim > own[path.rsplit("/", 1)[-1]] else 0) for path in paths)
    found: dict[str, int] = {}

    def record(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if context.method_name == "__call__" and isinstance(context.module, (Linear, Embed)):
            path = "/".join(context.module.path)
            weight = flat[f"{path}/{'kernel' if isinstance(context.module, Linear) else 'embedding'}"]
            found[path] = weight.shape[0] if weight.ndim > 2 else 0
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda params, tokens: scores_of(system, params, tokens), params, np.zeros((1, system.length), np.int32))
    return tuple(found.items())


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _batch_sums(
    system: System, layers: tuple[tuple[str, int], ...], target: str, kind: str, params: Params, tokens: Int[Array, "B T"]
) -> tuple[jax.Array, jax.Array]:
    """(nats [B, S], tokens [B]) of each text; the model is compiled once for all S."""
    flat = flatten_dict(params, sep="/")
    sizes = [depth or 1 for _, depth in layers]
    starts = np.cumsum([0, *sizes])

    def score(layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        flags = {
            path: layer == start + (np.arange(depth) if depth else 0)
            for (path, depth), start in zip(layers, starts[:-1], strict=True)
        }
        if target == "weight":
            changed = {path: _where(flag, quantise(flat[path], kind), flat[path]) for path, flag in flags.items()}
        else:
            changed = {f"{path}/{_FLAG}": flag for path, flag in flags.items()}
        with nn.intercept_methods(functools.partial(_round_output, kind=kind)):
            scores = scores_of(system, unflatten_dict({**flat, **changed}, sep="/"), tokens)
        return jnp.sum(scores.nats * scores.weight, axis=(1, 2)), jnp.sum(scores.weight, axis=(1, 2))

    nats, count = jax.lax.map(score, jnp.arange(starts[-1] + 1))
    return nats.T, count[0]


def _round_output(next_fun: Callable, args: tuple, kwargs: dict, context: Any, *, kind: str) -> Any:
    """Rounds what a layer gives where its flag says so."""
    y = next_fun(*args, **kwargs)
    if context.method_name != "__call__" or not isinstance(context.module, (Linear, Embed)):
        return y
    flag = context.module.get_variable("params", _FLAG)
    return y if flag is None else jnp.where(flag, quantise(y, kind).astype(y.dtype), y)


def _where(flag: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    return jnp.where(flag.reshape(flag.shape + (1,) * (no.ndim - flag.ndim)), yes.astype(no.dtype), no)
