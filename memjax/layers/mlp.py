"""Channel mixing: the two-layer network applied at every position.

Shapes: B batch, T position, D width, F hidden width.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from memjax.config import Backbone
from memjax.layers.linear import COLUMN_PARALLEL, ROW_PARALLEL, Linear, last_init


class MLP(nn.Module):
    """SwiGLU (three matrices, no bias), or GELU or SiLU between two matrices with bias.

    Maps D to F to D; GELU is the exact one (erf).
    """

    config: Backbone
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        up = functools.partial(
            Linear, self.config.hidden_width, dtype=self.dtype, layout=COLUMN_PARALLEL
        )
        down = functools.partial(
            Linear,
            self.config.width,
            dtype=self.dtype,
            layout=ROW_PARALLEL,
            kernel_init=last_init(self.config),
        )
        if self.config.mlp in ("gelu", "silu"):
            h = up(use_bias=True, name="up")(x)
            h = nn.gelu(h, approximate=False) if self.config.mlp == "gelu" else nn.silu(h)
            return down(use_bias=True, name="down")(h)
        gate, hidden = up(name="gate")(x), up(name="up")(x)
        return down(name="down")(nn.silu(gate) * hidden)
