"""Conversion between memjax models and NNX modules.

Flax's own bridge does the work: the module is called as in Linen, and its parameters are
`nnx.Param`s for `nnx.jit`, `nnx.grad` and `nnx.Optimizer`. NNX is imported when a function here is
called.

    trained = memjax.load("runs/quickstart")
    model = to_nnx(trained.module, {"params": trained.params})
    memories = model.encode(tokens)
    logits = model.decode(tokens, memories)
"""

import importlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from memjax.errors import MemjaxError


class NNXError(MemjaxError):
    """A model cannot be an NNX module, or a module was not made by `to_nnx`; the message gives the
    reason.
    """


def to_nnx(module: nn.Module, variables: Mapping[str, Any]) -> Any:
    """Return an NNX module that computes `module.apply(variables, ...)`.

    Args:
      module: a model of memjax, such as `memjax.load(PATH).module`, or any Linen module with
        parameters alone.
      variables: {"params": ...}. The arrays are shared, not copied; NNX replaces them and never
        writes into them.

    Returns:
      An `nnx.Module` that is called like the Linen module; other methods have the same names
        (`model.encode(tokens)`).

    Raises:
      NNXError: there are other variables than parameters, or a parameter has the name of a method.
    """
    nnx = importlib.import_module("flax.nnx")
    if set(variables) != {"params"}:
        raise NNXError(
            f"variables must be {{'params': ...}}; these hold"
            f" {', '.join(map(repr, variables)) or 'nothing'}"
        )
    model = nnx.bridge.ToNNX(module)
    for name, part in variables["params"].items():
        if hasattr(type(model), name) or callable(getattr(type(module), name, None)):
            raise NNXError(
                f"parameter {name!r} has the name of a method of {type(module).__name__}, which it"
                " would hide"
            )
        setattr(
            model,
            name,
            nnx.data(jax.tree.map(nnx.Param, dict(part) if isinstance(part, Mapping) else part)),
        )
    return model


def from_nnx(model: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return the Linen module and the present variables of an NNX module from `to_nnx`.

    Raises:
      NNXError: it is another NNX module.
    """
    nnx = importlib.import_module("flax.nnx")
    if not isinstance(model, nnx.bridge.ToNNX):
        raise NNXError(f"{type(model).__name__} has no Linen module, expected a result of to_nnx")
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return model.to_nnx__module, {"params": params}
