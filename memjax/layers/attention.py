"""Self-attention, causal or not, with rotary positions, grouped-query heads and an optional output gate.

Shapes: B batch, T position, D width, H head, E head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone
from memjax.layers.attend import attend
from memjax.layers.linear import COLUMNS, ROWS, Linear
from memjax.layers.rotary import rotate


class Attention(nn.Module):
    """Scaled dot-product attention over valid positions, earlier ones only where `config.causal`; softmax in float32.

    Attributes:
      config: width, heads, gate and whether attention is causal.
      dtype: what matrix products compute in.
      attention: see `attend`; it does not change the function.
    """

    config: Backbone
    dtype: jnp.dtype
    attention: str = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        width, heads = self.config.width, self.config.heads
        kv_heads, head_width = self.config.kv_heads or heads, width // heads
        batch, length = x.shape[:2]

        def project(name: str, n: int) -> jax.Array:
            y = Linear(n * head_width, dtype=self.dtype, layout=COLUMNS, name=name)(x)
            return y.reshape(batch, length, n, head_width)

        query_BTHE = rotate(project("query", heads), positions)
        key_BTHE = rotate(project("key", kv_heads), positions)
        value_BTHE = project("value", kv_heads)
        mixed_BTHE = attend(query_BTHE, key_BTHE, value_BTHE, valid, self.config.causal, self.attention)
        mixed = mixed_BTHE.reshape(batch, length, width)
        if self.config.output_gate:
            mixed = mixed * Linear(width, dtype=self.dtype, layout=COLUMNS, name="gate")(x)
        return Linear(width, dtype=self.dtype, layout=ROWS, name="out")(mixed)
