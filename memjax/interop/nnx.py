"""A memjax model as an NNX module, for code that is written in NNX, and back.

Flax's own bridge does the work: the module is called as it is in Linen, and its parameters are `nnx.Param`s that `nnx.jit`, `nnx.grad` and
`nnx.Optimizer` see. NNX is imported when a function here is called.

    model = to_nnx(*memjax.load("runs/quickstart")[:2])
    memories = model.encode(tokens)
    logits = model.decode(tokens, memories)
"""

import importlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax


class NNXError(ValueError):
    """Something cannot be an NNX module, or is none that `to_nnx` made; the message says why."""


def to_nnx(module: nn.Module, variables: Mapping[str, Any]) -> Any:
    """An NNX module that computes what `module.apply(variables, ...)` computes.

    Args:
      module: a model of memjax, as `memjax.load` gives it, or any Linen module that has nothing but parameters.
      variables: {"params": ...}. The arrays are shared, not copied; NNX replaces them and writes into none.

    Returns:
      An `nnx.Module`. It is called as the module is; other methods by their names (`model.encode(tokens)`).

    Raises:
      NNXError: there are other variables than parameters, or a parameter has the name of a method.
    """
    nnx = importlib.import_module("flax.nnx")
    if set(variables) != {"params"}:
        raise NNXError(f"variables must be {{'params': ...}}; these hold {', '.join(map(repr, variables)) or 'nothing'}")
    model = nnx.bridge.ToNNX(module)
    for name, part in variables["params"].items():
        if hasattr(type(model), name) or callable(getattr(type(module), name, None)):
            raise NNXError(f"parameter {name!r} has the name of a method of {type(module).__name__}, which it would hide")
        setattr(model, name, nnx.data(jax.tree.map(nnx.Param, dict(part) if isinstance(part, Mapping) else part)))
    return model


def from_nnx(model: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The Linen module and the variables that an NNX module of `to_nnx` holds now, after training perhaps.

    Raises:
      NNXError: it is another NNX module.
    """
    nnx = importlib.import_module("flax.nnx")
    if not isinstance(model, nnx.bridge.ToNNX):
        raise NNXError(f"{type(model).__name__} was not made by to_nnx: it holds no module of Linen")
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return model.to_nnx__module, {"params": params}
