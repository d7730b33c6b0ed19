"""Self-attention with rotary positions, grouped-query heads and an optional output gate.

Shapes: B batch, T position, D width, H head, G key and value head, E head width.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from memjax.config import Backbone
from memjax.layers.attend import PrefixCache, attend, attend_cached
from memjax.layers.linear import COLUMN_PARALLEL, ROW_PARALLEL, Linear, last_init
from memjax.layers.norm import make_norm
from memjax.layers.rotary import (
    TextPositions,
    place_phases,
    rotate,
    text_phases,
    turn_phases,
    value_phases,
)
from memjax.layers.shared_prefix import SharedPrefix, attend_shared

Positions = Int[Array, "B T"] | TextPositions
ADDRESS = 2.2
"""First value of the biases of place heads: at a distance of 0 the score of a constant query with a
constant key is then far above all others."""
LEAN = 0.4
"""Reduction of a place head's first key biases, for all vectors of a memory but one."""
SHARPNESS = 0.24
"""First factor of `log_scale`, about 1 / log 64: among 64 keys scores begin as they were."""


class KeyValues(NamedTuple):
    """Keys and values of earlier positions; those of a stack have a leading layer axis N.

    The positions of a head are contiguous, the layout that products need.
    """

    key: Float[Array, "*N B G T E"]
    value: Float[Array, "*N B G T E"]


class Attention(nn.Module):
    """Scaled dot-product attention over valid positions; softmax in float32.

    Attributes:
      config: width, heads, head_dim, gate, causality, biases, qk_norm and RoPE, and the parts of a
        decoder that reads memories by their places.
      dtype: dtype of matrix products.
      attention: implementation (see `attend`); it does not change the function.
      vectors: K, vectors of every memory that is read. The keys of several at one place would be
        the same in place heads with `constant_addresses`: every vector has a bias of its own.
    """

    config: Backbone
    dtype: jnp.dtype
    attention: str = "auto"
    vectors: int = 1

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        kv_width = (config.kv_heads or config.heads) * config.attention_head_dim
        projection = functools.partial(
            Linear, use_bias=config.attention_bias, dtype=dtype, layout=COLUMN_PARALLEL
        )
        self.query = projection(config.attention_dim)
        self.key, self.value = projection(kv_width), projection(kv_width)
        if config.output_gate:
            self.gate = Linear(config.attention_dim, dtype=dtype, layout=COLUMN_PARALLEL)
        if config.qk_norm:
            self.query_norm = make_norm(config, dtype, "query_norm")
            self.key_norm = make_norm(config, dtype, "key_norm")
        last = last_init(config)
        self.out = Linear(config.width, dtype=dtype, layout=ROW_PARALLEL, kernel_init=last)
        if config.log_scale:
            self.sharpness = self.param(
                "sharpness", nn.initializers.constant(SHARPNESS), (config.heads,)
            )
        if config.place_heads:
            width, key_places = config.attention_head_dim, config.place_heads * self.key_heads
            self.query_address = self.param(
                "query_address", _begin_address(config.place_heads), (config.heads, width)
            )
            self.key_address = self.param(
                "key_address", _begin_address(key_places // config.heads), (self.key_heads, width)
            )
            if self.vectors > 1:
                self.vector_address = self.param(
                    "vector_address",
                    _lean(key_places // config.heads),
                    (self.vectors, self.key_heads, width),
                )

    @property
    def key_heads(self) -> int:
        """G."""
        return self.config.kv_heads or self.config.heads

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Positions,
        valid: Bool[Array, "B T"] | SharedPrefix,
    ) -> Float[Array, "B T D"]:
        return self.read(x, positions, valid)[0]

    def read(
        self,
        x: Float[Array, "B T D"],
        positions: Positions,
        valid: Bool[Array, "B T"] | Bool[Array, "#B T T"] | SharedPrefix,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Compute `__call__`, and return the keys and values for positions after T."""
        if not isinstance(valid, SharedPrefix) and valid.ndim == 3:
            return self.read_masked(x, positions, valid)
        unasked = 0
        if isinstance(valid, SharedPrefix):
            entries = sum(valid.lengths)
            is_entry, keys = jnp.arange(x.shape[1]) < entries, valid.keys_read()
            unasked = entries if valid.blind else 0
        else:
            is_entry = jnp.zeros(x.shape[1], bool)
            keys = jnp.cumsum(valid, axis=1) if self.config.causal else valid.sum(1, keepdims=True)
        scored = self._project(x, positions, is_entry, keys, unasked)
        mixed_BTHE = (
            attend_shared(*scored, valid, self.attention)
            if isinstance(valid, SharedPrefix)
            else attend(*scored, valid, self.config.causal, self.attention)
        )
        cache = KeyValues(*(jnp.swapaxes(x_BTGE, 1, 2) for x_BTGE in scored[1:]))
        return self._finish(x, mixed_BTHE, positions), cache

    def read_masked(
        self,
        x: Float[Array, "B R D"],
        positions: Positions,
        readable: Bool[Array, "#B T S"],
        before: KeyValues | None = None,
        rows: int = 0,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Compute positions that each read what a mask names, besides keys of other passes.

        Args:
          x: R positions, of which the last T are computed.
          positions: rotary positions of all of x.
          readable: which of the S keys each position reads: those of `before`, then those of x.
          before: keys, which are rotated already, and values.
          rows: R - T, leading positions that are read and not computed.

        Returns:
          The output, and the keys and values of x.
        """
        keys = jnp.broadcast_to(readable.sum(axis=-1), (len(x), x.shape[1] - rows))
        keys = jnp.pad(keys, ((0, 0), (rows, 0)))
        is_entry = jnp.zeros(x.shape[1], bool)
        query, key, value = self._project(x, positions, is_entry, keys, rows)
        own = KeyValues(*(jnp.swapaxes(y, 1, 2) for y in (key, value)))
        if before is not None:
            key, value = (
                jnp.concatenate([jnp.swapaxes(old, 1, 2).astype(new.dtype), new], axis=1)
                for old, new in zip(before, (key, value), strict=True)
            )
        mixed_BTHE = attend(query[:, rows:], key, value, readable, False)
        computed = jax.tree.map(lambda at: at[:, rows:], positions)
        return self._finish(x[:, rows:], mixed_BTHE, computed), own

    def cached_step(
        self,
        x: Float[Array, "B 1 D"],
        layer: Int[Array, ""],
        cache: KeyValues,
        positions: Positions,
        readable: Bool[Array, "B T"],
        end: Int[Array, ""],
        is_entry: Bool[Array, " 1"],
        prefix: PrefixCache | None,
    ) -> tuple[Float[Array, "B 1 D"], tuple[Float[Array, "B G E"], Float[Array, "B G E"]]]:
        """Compute one position per sequence from cached keys and values.

        Args:
          x: input at the position.
          layer: index of this layer in the stack.
          cache: keys and values of T positions of all layers.
          positions: rotary positions.
          readable: True at cached positions to attend to.
          end: cached positions from here on are skipped.
          is_entry: whether the position is an entry of a prefix.
          prefix: as in `attend_cached`.

        Returns:
          The output, and the position's own key and value.
        """
        keys = 1 + jnp.sum(readable, axis=1, keepdims=True)
        if prefix is not None:
            shared = jnp.sum(prefix.readable, axis=1, keepdims=True)
            keys += jnp.repeat(shared, len(x) // len(shared), axis=0)
        query_BTHE, key_BTGE, value_BTGE = self._project(x, positions, is_entry, keys)
        own = key_BTGE[:, 0], value_BTGE[:, 0]
        mixed_BHE = attend_cached(query_BTHE[:, 0], *own, *cache, layer, readable, end, prefix)
        return self._finish(x, mixed_BHE[:, None], positions), own

    def _project(
        self,
        x: jax.Array,
        positions: Positions,
        is_entry: Bool[Array, " T"],
        keys: Int[Array, "B T"],
        unasked: int = 0,
    ) -> tuple[Float[Array, "B T H E"], Float[Array, "B T G E"], Float[Array, "B T G E"]]:
        """Return queries, keys and values as they are scored and mixed.

        Args:
          x: the input.
          positions: where they stand.
          is_entry: whether they are entries of a prefix.
          keys: how many keys each position reads.
          unasked: leading positions whose queries nothing reads; they are not computed.
        """
        config, query = self.config, self.query(x[:, unasked:] if unasked else x)
        if unasked:
            query = jnp.pad(query, ((0, 0), (unasked, 0), (0, 0)))
        query, key, value = (
            y.reshape(*y.shape[:2], -1, config.attention_head_dim)
            for y in (query, self.key(x), self.value(x))
        )
        if config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if config.place_heads:
            # Added before it is chosen, so that a gradient is one sum over sequences and positions.
            entry_T11 = is_entry[:, None, None]
            asked, held = query, key
            if config.constant_addresses:
                in_place = jnp.arange(config.heads)[:, None] < config.place_heads
                asked = jnp.where(in_place, 0, query)
                held = jnp.where(in_place[:: config.heads // self.key_heads], 0, key)
            asked += self.query_address.astype(query.dtype)
            held += self.key_address.astype(key.dtype)
            if self.vectors > 1 and (vector := getattr(positions, "vector", None)) is not None:
                which_BTK = jax.nn.one_hot(vector, self.vectors, dtype=key.dtype)
                address_KGE = self.vector_address.astype(key.dtype)
                held += jnp.einsum("btk,kge->btge", which_BTK, address_KGE)
            query, key = jnp.where(entry_T11, query, asked), jnp.where(entry_T11, held, key)
        if config.log_scale:
            # Of a position that reads nothing too: its result is not used.
            factor = self.sharpness * jnp.log1p(jnp.maximum(keys, 1).astype(jnp.float32))[..., None]
            query = (query * factor[..., None]).astype(query.dtype)
        if config.rotary_values:
            value = turn_phases(value, _in_text(positions), self._value_phases)
        return self._rotate(query, positions), self._rotate(key, positions), value

    def _rotate(self, x: Float[Array, "B T H E"], positions: Positions) -> jax.Array:
        """Rotate queries or keys by their positions, the place heads by their places."""
        config, half = self.config, x.shape[-1] // 2
        if not isinstance(positions, TextPositions):
            return rotate(x, positions, config.rope_theta, config.rope_scaling)
        share = config.heads // self.key_heads
        phases = np.repeat(place_phases(config.place_heads // share, half), share, axis=0)
        if x.shape[2] != config.heads:
            phases = phases[::share]
        by_place, by_token = jnp.split(x, [len(phases)], axis=2)
        base = text_phases(config.rope_theta, half, config.rope_scaling)
        return jnp.concatenate(
            [
                turn_phases(by_place, positions.place, phases),
                turn_phases(by_token, positions.token, base),
            ],
            axis=2,
        )

    @property
    def _value_phases(self) -> UInt32[np.ndarray, "1 F"]:
        return value_phases(self.config.attention_head_dim // 2)

    def _finish(
        self, x: jax.Array, mixed_BTHE: jax.Array, positions: Positions
    ) -> Float[Array, "B T D"]:
        if self.config.rotary_values:
            mixed_BTHE = turn_phases(mixed_BTHE, _in_text(positions), self._value_phases, back=True)
        mixed = mixed_BTHE.reshape(*x.shape[:2], self.config.attention_dim)
        if self.config.output_gate:
            gate = self.gate(x)
            mixed = mixed * (2 * nn.sigmoid(gate) if self.config.sigmoid_gate else gate)
        return self.out(mixed)


def _in_text(positions: Positions) -> Int[Array, "B T"]:
    """Return positions in tokens."""
    return positions.token if isinstance(positions, TextPositions) else positions


def _begin_address(places: int) -> nn.initializers.Initializer:
    """Return an initialiser of [heads, E]: a constant in the first heads, and 0 in the others."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.where(jnp.arange(shape[0])[:, None] < places, ADDRESS, 0.0) * jnp.ones(
            shape, dtype
        )

    return init


def _lean(places: int) -> nn.initializers.Initializer:
    """Return an initialiser of [K, heads, E]: each of the first heads leans to one of K vectors.

    Which one is drawn, so that the layers of a stack differ.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        vectors, heads, _ = shape
        own = jax.random.permutation(key, jnp.arange(heads) % vectors)
        other = jnp.arange(vectors)[:, None] != own
        leaning = other & (jnp.arange(heads) < places)
        return jnp.where(leaning[..., None], -LEAN, 0.0) * jnp.ones(shape, dtype)

    return init
