"""Channel mixing: the two-layer network applied at every position.

Shapes: B batch, T position, D width, F hidden width.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from memjax.config import Backbone
from memjax.layers.linear import COLUMNS, ROWS, Linear


class MLP(nn.Module):
    """SwiGLU (three matrices, no bias), or GELU (exact erf) or SiLU between two matrices with bias; D to F to D."""

    config: Backbone
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        width = self.config.width
        hidden = self.config.hidden_width
        if self.config.mlp in ("gelu", "silu"):
            h = Linear(hidden, use_bias=True, dtype=self.dtype, layout=COLUMNS, name="up")(x)
            h = nn.gelu(h, approximate=False) if self.config.mlp == "gelu" else nn.silu(h)
            return Linear(width, use_bias=True, dtype=self.dtype, layout=ROWS, name="down")(h)
        gate = Linear(hidden, dtype=self.dtype, layout=COLUMNS, name="gate")(x)
        up = Linear(hidden, dtype=self.dtype, layout=COLUMNS, name="up")(x)
        return Linear(width, dtype=self.dtype, layout=ROWS, name="down")(nn.silu(gate) * up)
