"""Self-attention, causal or not, with rotary positions, grouped-query heads and an optional output gate.

Shapes: B batch, T position, D width, H head, G key and value head, E head width.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone
from memjax.layers.attend import attend, attend_cached
from memjax.layers.linear import COLUMNS, ROWS, Linear
from memjax.layers.norm import make_norm
from memjax.layers.rotary import rotate


class KeyValues(NamedTuple):
    """What later positions read of each one; a stack's has a leading layer axis. Positions of a head lie together, as products want them."""

    key: Float[Array, "*N B G T E"]
    value: Float[Array, "*N B G T E"]


class Attention(nn.Module):
    """Scaled dot-product attention over valid positions, earlier ones only where `config.causal`; softmax in float32.

    Attributes:
      config: width, heads, gate, whether attention is causal, and what a pretrained one has beside.
      dtype: what matrix products compute in.
      attention: see `attend`; it does not change the function.
    """

    config: Backbone
    dtype: jnp.dtype
    attention: str = "auto"

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        kv_width = (config.kv_heads or config.heads) * config.head_width
        self.query = Linear(config.attended_width, dtype=dtype, layout=COLUMNS)
        self.key = Linear(kv_width, dtype=dtype, layout=COLUMNS)
        self.value = Linear(kv_width, dtype=dtype, layout=COLUMNS)
        if config.output_gate:
            self.gate = Linear(config.attended_width, dtype=dtype, layout=COLUMNS)
        if config.query_key_norm:
            self.query_norm = make_norm(config, dtype, "query_norm")
            self.key_norm = make_norm(config, dtype, "key_norm")
        self.out = Linear(config.width, dtype=dtype, layout=ROWS)

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        return self.read(x, positions, valid)[0]

    def read(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """`__call__`, and what positions after T would read."""
        query_BTHE, key_BTGE, value_BTGE = self._project(x, positions)
        mixed_BTHE = attend(query_BTHE, key_BTGE, value_BTGE, valid, self.config.causal, self.attention)
        return self._finish(x, mixed_BTHE), KeyValues(jnp.swapaxes(key_BTGE, 1, 2), jnp.swapaxes(value_BTGE, 1, 2))

    def cached_step(
        self,
        x: Float[Array, "B 1 D"],
        layer: Int[Array, ""],
        cache: KeyValues,
        positions: Int[Array, "B 1"],
        readable: Bool[Array, "B T"],
        end: Int[Array, ""],
    ) -> tuple[Float[Array, "B 1 D"], tuple[Float[Array, "B G E"], Float[Array, "B G E"]]]:
        """One position of each row, from what is kept of those it reads beside itself; and its own key and value.

        Args:
          x: input at the position.
          layer: which one of the stack this is.
          cache: of T positions of all layers.
          positions: rotary positions.
          readable: kept positions that are read.
          end: the places from here on are not looked at.
        """
        query_BTHE, key_BTGE, value_BTGE = self._project(x, positions)
        own = key_BTGE[:, 0], value_BTGE[:, 0]
        mixed_BHE = attend_cached(query_BTHE[:, 0], *own, *cache, layer, readable, end)
        return self._finish(x, mixed_BHE[:, None]), own

    def _project(
        self, x: jax.Array, positions: jax.Array
    ) -> tuple[Float[Array, "B T H E"], Float[Array, "B T G E"], Float[Array, "B T G E"]]:
        config = self.config
        query, key, value = (self._heads(y) for y in (self.query(x), self.key(x), self.value(x)))
        if config.query_key_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        turn = functools.partial(rotate, positions=positions, base=config.rotary_base, scaling=config.rotary_scaling)
        return turn(query), turn(key), value

    def _heads(self, y: jax.Array) -> Float[Array, "B T H E"]:
        return y.reshape(*y.shape[:2], -1, self.config.head_width)

    def _finish(self, x: jax.Array, mixed_BTHE: jax.Array) -> Float[Array, "B T D"]:
        mixed = mixed_BTHE.reshape(*x.shape[:2], self.config.attended_width)
        if self.config.output_gate:
            mixed = mixed * self.gate(x)
        return self.out(mixed)
