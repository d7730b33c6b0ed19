"""The linear map used throughout: one matrix product over all positions at once."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from memjax.sharding import gathered

COLUMNS, ROWS = ("fsdp", "tensor"), ("tensor", "fsdp")
"""Layouts of the two matrices of a pair: over `tensor` the first has its outputs split, the second its inputs, and what lies between needs
no exchange."""


class Linear(nn.Module):
    """y = x @ kernel (+ bias), float32 parameters, product in `dtype`.

    Leading axes are folded into one first. The weight's gradient is then a plain product of two matrices; contracting two
    axes at once makes XLA write transposed copies of the activations (about half the time of an MLP's backward pass on CPUs).

    Where a product of two matrices stands beside the kernel (layers/lora.py), it is added: y += x @ lora_in @ lora_out.
    """

    features: int
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    layout: tuple[str | None, str | None] = ("fsdp", None)
    """Mesh axes its kernel is stored over (config.mesh.rules); where it is used, `fsdp` is gathered."""

    @nn.compact
    def __call__(self, x: Float[Array, "*any I"]) -> Float[Array, "*any O"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(self.dtype)
        used = tuple(None if axis == "fsdp" else axis for axis in self.layout)
        y = flat @ gathered(kernel.astype(self.dtype), self.layout, used)
        if self.has_variable("params", "lora_in"):
            into, out = (self.get_variable("params", name).astype(self.dtype) for name in ("lora_in", "lora_out"))
            y += (flat @ into) @ out
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)
