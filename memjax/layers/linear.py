"""The linear map used throughout: one matrix product over all positions at once."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Linear(nn.Module):
    """y = x @ kernel (+ bias), float32 parameters, product in `dtype`.

    Leading axes are folded into one first. The weight's gradient is then a plain product of two matrices; contracting two
    axes at once makes XLA write transposed copies of the activations (about half the time of an MLP's backward pass on CPUs).
    """

    features: int
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*any I"]) -> Float[Array, "*any O"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(self.dtype)
        y = flat @ kernel.astype(self.dtype)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)
