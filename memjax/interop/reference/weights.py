"""Exact conversion of weights of the published PyTorch code (Badger 2026), in and out.

A state dict is a mapping of names to numpy arrays, as `safetensors.numpy` reads it. The model
follows from a spec (`memjax.interop.reference.spec`), because names and shapes do not determine
heads, readout and slots.
"""

import difflib
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from memjax.errors import MemjaxError, few
from memjax.interop.reference.names import Entry, Tensors, entries, unused
from memjax.interop.reference.spec import STAGE, Spec, family, objective, to_config
from memjax.models import build, example

UNUSED = "unused"
"""Collection of variables that holds, under their own names, tensors that no forward pass reads."""


class StateDictError(MemjaxError):
    """A state dict does not match its spec; the message names the tensor."""


def import_state_dict(tensors: Tensors, spec: Spec) -> tuple[nn.Module, dict[str, Any]]:
    """Return the memjax module of `spec` and its variables.

    Variables hold `params` and, in the collection `unused`, tensors of the published model that it
    never reads.

    Raises:
      SpecError: the spec lacks a key or contradicts itself.
      StateDictError: a tensor is missing, surplus, or has another shape.
    """
    module, shapes, wanted = _model(spec)
    used = {
        name: tensor.shape
        for path, entry in wanted.items()
        for name, tensor in entry.spread(np.empty(shapes[path].shape, bool)).items()
    }
    surplus = _check(tensors, used, unused(spec))
    params = {path: jnp.asarray(entry.collect(tensors)) for path, entry in wanted.items()}
    variables: dict[str, Any] = {"params": unflatten_dict(params, sep="/")}
    return module, variables | (
        {UNUSED: {name: tensors[name] for name in surplus}} if surplus else {}
    )


def export_state_dict(variables: Mapping[str, Any], spec: Spec) -> dict[str, np.ndarray]:
    """Return the state dict of the variables of an imported model, also after more training: the
    inverse of `import_state_dict`.

    Raises:
      StateDictError: a parameter is missing or belongs to another model.
    """
    flat, (_, _, wanted) = flatten_dict(variables["params"], sep="/"), _model(spec)
    if wanted.keys() != flat.keys():
        raise StateDictError(
            "the parameters are not those of the spec:"
            f" {few(sorted(wanted.keys() ^ flat.keys()))} differ"
        )
    return variables.get(UNUSED, {}) | {
        name: tensor
        for path, entry in wanted.items()
        for name, tensor in entry.spread(np.asarray(flat[path])).items()
    }


def forward(
    module: nn.Module, variables: Mapping[str, Any], tokens: Int[Array, "B N"], spec: Spec
) -> Float[Array, "B T V"]:
    """Return logits as the published model returns them.

    These are the logits of all positions. A memory model returns those of all chunks in order, for
    the sequence that its objective builds from `tokens`. A recurrent memory returns those of the
    last chunk with its read slot. An oracle that concatenates along time includes those at the
    memory.
    """
    apply: Any = functools.partial(module.apply, {"params": variables["params"]})
    head = functools.partial(apply, method=lambda module, hidden: module.head(hidden))
    batch = tokens.shape[0]
    match family(spec):
        case "memory_model":
            logits = apply(_sequence(tokens, spec).reshape(batch, -1, spec["context"]))
            return logits.reshape(batch, -1, logits.shape[-1])
        case "recurrent_memory":
            chunks_BCL = tokens.reshape(batch, -1, spec["context"])
            return head(apply(chunks_BCL, method="states")[:, -1])
        case "oracle":
            memory = apply(tokens, method="encode")
            return head(apply(tokens, memory, with_memory=True, method="hidden"))
    return apply(tokens)


def _sequence(tokens: Int[Array, "B N"], spec: Spec) -> Int[Array, "B N"]:
    """The sequence that a published memory model reads under its objective: text, or its first half
    and then the same again or blanks.
    """
    asked, first = objective(spec), tokens[:, : tokens.shape[1] // 2]
    if asked == "next_token":
        return tokens
    again = first if asked == "copy" else jnp.full_like(first, spec.get("blank_token", 1))
    return jnp.concatenate([first, again], axis=1)


def _model(spec: Spec) -> tuple[nn.Module, dict[str, jax.ShapeDtypeStruct], dict[str, Entry]]:
    """Return the module of `spec`, the shapes of its parameters, and their tensors."""
    config = to_config(spec)
    module = build(config, config.stages[STAGE])
    init = functools.partial(module.init, jax.random.key(0))
    shapes = flatten_dict(jax.eval_shape(init, example(module, config))["params"], sep="/")
    return module, shapes, entries(spec, config, shapes)


def _check(tensors: Tensors, used: Mapping[str, tuple[int, ...]], skipped: str) -> list[str]:
    """Return the names of tensors that are never read; raise StateDictError unless the others match
    `used`.
    """
    for name, shape in used.items():
        if name not in tensors:
            close = difflib.get_close_matches(name, tensors, n=1)
            hint = f"; the nearest name there is {close[0]!r}" if close else ""
            raise StateDictError(f"the state dict has no tensor {name!r}, of shape {shape}{hint}")
        if tensors[name].shape != shape:
            raise StateDictError(
                f"tensor {name!r} has shape {tensors[name].shape}; the spec's model has {shape}"
            )
    others = sorted(tensors.keys() - used.keys())
    surplus = [name for name in others if not re.fullmatch(skipped, name)]
    if surplus:
        raise StateDictError(
            f"the state dict holds {few([*map(repr, surplus)], 3)}, which the spec's model has not"
        )
    return others
