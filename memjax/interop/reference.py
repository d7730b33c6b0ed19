"""Weights of the published PyTorch implementation of memory models (Badger 2026), in and out, exactly.

A state dict is a mapping of names to numpy arrays, as `safetensors.numpy` reads it; what the model is comes from a spec
(`memjax.interop.spec`), because names and shapes do not say it all: heads, read-out and slots leave no trace in them.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from memjax.interop.names import Tensors, entries, unused
from memjax.interop.spec import Spec, SpecError, family, objective, to_config, value
from memjax.models import build, example

UNUSED = "unused"
"""Collection of variables that holds, under their own names, tensors no forward pass reads."""


class StateDictError(ValueError):
    """A state dict does not fit its spec; the message names the tensor."""


def import_state_dict(tensors: Tensors, spec: Spec) -> tuple[nn.Module, dict[str, Any]]:
    """The memjax module that `spec` describes and its variables.

    Variables hold `params` and, in the collection `unused`, what the published model has and never reads.

    Raises:
      SpecError: the spec lacks a key or contradicts itself.
      StateDictError: a tensor is missing, surplus, or of another shape.
    """
    config = to_config(spec)
    module = build(config, config.stages[next(iter(config.stages))])
    shapes = jax.eval_shape(functools.partial(module.init, jax.random.key(0)), example(module, config))["params"]
    flat = flatten_dict(shapes, sep="/")
    wanted = {entry.path: entry for entry in entries(spec, config)}
    if wanted.keys() != flat.keys():
        raise SpecError(f"the spec is of no published model: {', '.join(sorted(wanted.keys() ^ flat.keys()))} would not match")
    used = {}
    for path, entry in wanted.items():
        used |= {name: x.shape for name, x in entry.spread(np.empty(flat[path].shape, bool)).items()}
    surplus = _check(tensors, used, unused(spec))
    params = {path: jnp.asarray(entry.collect(tensors)) for path, entry in wanted.items()}
    variables: dict[str, Any] = {"params": unflatten_dict(params, sep="/")}
    return module, variables | ({UNUSED: {name: tensors[name] for name in surplus}} if surplus else {})


def export_state_dict(variables: Mapping[str, Any], spec: Spec) -> dict[str, np.ndarray]:
    """The state dict of the variables of an imported model, or of one trained on from it: the inverse of `import_state_dict`.

    Raises:
      StateDictError: a parameter is missing or is of another model.
    """
    config = to_config(spec)
    flat = flatten_dict(variables["params"], sep="/")
    wanted = {entry.path: entry for entry in entries(spec, config)}
    if wanted.keys() != flat.keys():
        raise StateDictError(
            f"the parameters are not those of the spec: {', '.join(sorted(wanted.keys() ^ flat.keys()))} differ"
        )
    tensors = dict(variables.get(UNUSED, {}))
    for path, entry in wanted.items():
        tensors |= entry.spread(np.asarray(flat[path]))
    return tensors


def _check(tensors: Tensors, used: Mapping[str, tuple[int, ...]], skipped: str) -> list[str]:
    """Raises StateDictError where tensors are not those of `used`; returns the names of those that are never read."""
    for name, shape in used.items():
        if name not in tensors:
            close = difflib.get_close_matches(name, tensors, n=1)
            hint = f"; the nearest name there is {close[0]!r}" if close else ""
            raise StateDictError(f"the state dict has no tensor {name!r}, of shape {shape}{hint}")
        if tensors[name].shape != shape:
            raise StateDictError(f"tensor {name!r} has shape {tensors[name].shape}; the spec's model has {shape}")
    others = sorted(tensors.keys() - used.keys())
    surplus = [name for name in others if not re.fullmatch(skipped, name)]
    if surplus:
        more = f" and {len(surplus) - 3} more" if len(surplus) > 3 else ""
        raise StateDictError(f"the state dict holds {', '.join(map(repr, surplus[:3]))}{more}, which the spec's model has not")
    return others


def forward(module: nn.Module, variables: Mapping[str, Any], tokens: Int[Array, "B N"], spec: Spec) -> Float[Array, "B T V"]:
    """Logits as the published model returns them.

    That is: of all positions; of a memory model those of all chunks in order, for the row its objective builds from `tokens`; of
    recurrent memory those of the last chunk with its read slot; of an oracle that concatenates along time, those at the memory too.
    """
    params = {"params": variables["params"]}
    batch = tokens.shape[0]
    match family(spec):
        case "memory_model":
            chunks_BCL = objective_row(tokens, spec).reshape(batch, -1, value(spec, "context"))
            logits: Any = module.apply(params, chunks_BCL)
            return logits.reshape(batch, -1, logits.shape[-1])
        case "recurrent_memory":
            chunks_BCL = tokens.reshape(batch, -1, value(spec, "context"))
            states: Any = module.apply(params, chunks_BCL, method="states")
            return _head(module, params, states[:, -1])
        case "oracle":
            memory = module.apply(params, tokens, method="encode")
            hidden = module.apply(params, tokens, memory, with_memory=True, method="hidden")
            return _head(module, params, hidden)
    return module.apply(params, tokens)  # type: ignore[return-value]


def _head(module: nn.Module, params: Mapping[str, Any], hidden: Any) -> Any:
    return module.apply(params, hidden, method=lambda module, h: module.head(h))


def objective_row(tokens: Int[Array, "B N"], spec: Spec) -> Int[Array, "B N"]:
    """The row a published memory model reads under its objective: text, or its first half and that again or blanks."""
    asked, first = objective(spec), tokens[:, : tokens.shape[1] // 2]
    if asked == "next_token":
        return tokens
    again = first if asked == "copy" else jnp.full_like(first, spec.get("blank_token", 1))
    return jnp.concatenate([first, again], axis=1)


def parameter_count(tensors: Iterable[np.ndarray]) -> int:
    """Numbers in all tensors."""
    return sum(tensor.size for tensor in tensors)
