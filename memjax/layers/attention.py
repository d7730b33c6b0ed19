"""Self-attention, causal or not, with rotary positions, grouped-query heads and an optional output gate.

Shapes: B batch, T position, D width, H head, G key and value head, E head width.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone
from memjax.layers.attend import attend
from memjax.layers.linear import COLUMNS, ROWS, Linear
from memjax.layers.rotary import rotate
from memjax.sharding import constrain


class KeyValues(NamedTuple):
    """What later positions read of each one; a stack's has a leading layer axis."""

    key: Float[Array, "*N B T G E"]
    value: Float[Array, "*N B T G E"]


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

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        kv_width = (config.kv_heads or config.heads) * (config.width // config.heads)
        self.query = Linear(config.width, dtype=dtype, layout=COLUMNS)
        self.key = Linear(kv_width, dtype=dtype, layout=COLUMNS)
        self.value = Linear(kv_width, dtype=dtype, layout=COLUMNS)
        if config.output_gate:
            self.gate = Linear(config.width, dtype=dtype, layout=COLUMNS)
        self.out = Linear(config.width, dtype=dtype, layout=ROWS)

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        return self.read(x, positions, valid)[0]

    def read(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """`__call__`, and what positions after T would read."""
        query_BTHE, new = self._project(x, positions)
        mixed_BTHE = attend(query_BTHE, *new, valid, self.config.causal, self.attention)
        return self._finish(x, mixed_BTHE), new

    def cached_step(
        self,
        x: Float[Array, "B 1 D"],
        cache: KeyValues,
        positions: Int[Array, "B 1"],
        at: Int[Array, " B"],
        readable: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B 1 D"], KeyValues]:
        """One position of each row, from what is kept of those it reads.

        Args:
          x: input at the position.
          cache: of T positions.
          positions: rotary positions.
          at: where in the cache the position is kept; nowhere if at >= T.
          readable: kept positions that are read, its own among them.
        """
        query_BTHE, new = self._project(x, positions)
        rows = jnp.arange(x.shape[0])
        cache = KeyValues(*(old.at[rows, at].set(y[:, 0], mode="drop") for old, y in zip(cache, new, strict=True)))
        cache = KeyValues(*(constrain(y, "batch", None, "tensor") for y in cache))
        mixed_BTHE = jax.nn.dot_product_attention(query_BTHE, *cache, mask=readable[:, None, None, :])
        return self._finish(x, mixed_BTHE), cache

    def _project(self, x: jax.Array, positions: jax.Array) -> tuple[Float[Array, "B T H E"], KeyValues]:
        query, key, value = (self._heads(y) for y in (self.query(x), self.key(x), self.value(x)))
        return rotate(query, positions), KeyValues(rotate(key, positions), value)

    def _heads(self, y: jax.Array) -> Float[Array, "B T H E"]:
        head_width = self.config.width // self.config.heads
        return y.reshape(*y.shape[:2], y.shape[-1] // head_width, head_width)

    def _finish(self, x: jax.Array, mixed_BTHE: jax.Array) -> Float[Array, "B T D"]:
        mixed = mixed_BTHE.reshape(x.shape)
        if self.config.output_gate:
            mixed = mixed * self.gate(x)
        return self.out(mixed)
