"""The linear map used throughout: one matrix product over all positions at once."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from memjax.config import Backbone
from memjax.sharding import gather_params, platform

COLUMN_PARALLEL, ROW_PARALLEL = ("fsdp", "tensor"), ("tensor", "fsdp")
"""Layouts of a pair of matrices. Over `tensor` the first is split by outputs and the second by
inputs, so that the activations between them need no exchange."""


FIRST = nn.initializers.lecun_normal()
"""Scale of a matrix before training."""


def last_init(config: Backbone) -> nn.initializers.Initializer:
    """Return the first values of a matrix whose output is added to the residual stream."""
    return nn.initializers.zeros if config.zero_outputs else FIRST


class Linear(nn.Module):
    """Computes y = x @ kernel (+ bias) with a product in `dtype`, whatever that of parameters is.

    On CPUs, leading axes are folded into one first. The weight's gradient is then a plain product
    of two matrices; contracting two axes at once makes XLA write transposed copies of the
    activations (about half the time of an MLP's backward pass). On TPUs they are not: folding
    copies activations whose length is no multiple of a tile (a seventh of a step's HBM traffic).

    LoRA factors beside the kernel (layers/lora.py) are added: y += x @ lora_in @ lora_out.
    """

    features: int
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = FIRST
    layout: tuple[str | None, str | None] = ("fsdp", None)
    """Mesh axes that the kernel is stored over (config.mesh.rules); `fsdp` is gathered before use.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "*any I"]) -> Float[Array, "*any O"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        rows = (math.prod(x.shape[:-1]),) if platform() == "cpu" else x.shape[:-1]
        flat = x.reshape(*rows, x.shape[-1]).astype(self.dtype)
        used = tuple(None if axis == "fsdp" else axis for axis in self.layout)
        y = flat @ gather_params(kernel.astype(self.dtype), self.layout, used)
        if self.has_variable("params", "lora_in"):
            into, out = (
                gather_params(
                    self.get_variable("params", name).astype(self.dtype), stored, (None, None)
                )
                for name, stored in (("lora_in", COLUMN_PARALLEL), ("lora_out", ROW_PARALLEL))
            )
            y += (flat @ into) @ out
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)
