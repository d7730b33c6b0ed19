"""Repeat mixers: token mixing whose matrix is made of repeated vectors, so that it runs as a recurrence (Badger 2026, repeat mixers).

Like a causal token mixer's, the matrix M mixes y[t] = bias[t] + sum over s <= t of M[t, s] * x[s]; but it is no longer free. With
learned vectors `row`, `column` and `diagonal` over positions, for s <= t:

- row_repeat: M[t, s] = row[s], the weight of the position read;
- column_repeat: M[t, s] = column[t], the weight of the position written;
- combined_repeat: M[t, s] = row[s] + column[t];
- diagonal_repeat: M[t, s] = row[s] for s < t and M[t, t] = diagonal[t]; `row` has no entry for the last position;
- mixed_repeat: column_repeat in the first half of the heads, row_repeat in the second.

With `decay_length` > 0 the part of M that a vector makes is multiplied by gamma^((t - s) / decay_length), with one learned gamma for
each running sum of each head. All of these are running sums: a stack carries K vectors a layer from one position to the next.

Shapes: B batch, T position, D width, H head, E head width, K running sum (2 in combined_repeat, else 1).
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone
from memjax.layers.linear import COLUMNS, ROWS, Linear

LEAST_DECAY = 0.9
"""Lower bound of gamma; the upper one, where it starts, is 1."""


@jax.custom_vjp
def running_sum(x: Float[Array, "B T K H E"], factor: Float[Array, "K H"]) -> Float[Array, "B T K H E"]:
    """y[t] = sum over s <= t of factor^(t - s) * x[s], that is y[t] = factor * y[t - 1] + x[t]; factor in [0, 1].

    An associative scan: O(T) where a matrix over positions takes O(T^2), parallel over positions, and without a division by a power
    that may underflow. Its gradient is the same sum from the other end, so that nothing but y is kept for it.
    """
    return _scan(x, factor)


def _scan(x: jax.Array, factor: jax.Array, reverse: bool = False) -> jax.Array:
    def join(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return a[0] * b[0], b[0] * a[1] + b[1]

    factors = jnp.broadcast_to(factor[..., None], (1, x.shape[1], *factor.shape, 1))
    return jax.lax.associative_scan(join, (factors, x), reverse=reverse, axis=1)[1]


def _forward(x: jax.Array, factor: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _scan(x, factor)
    return y, (y, factor)


def _backward(saved: tuple[jax.Array, jax.Array], d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, factor = saved
    d_x = _scan(d_y, factor, reverse=True)
    return d_x, jnp.sum(d_x[:, 1:] * y[:, :-1], axis=(0, 1, 4))


running_sum.defvjp(_forward, _backward)


def initial_state(config: Backbone, batch: int) -> Float[Array, "B K H E"]:
    """What one layer carries before the first position."""
    heads = _heads(config)
    return jnp.zeros((batch, _sums(config), heads, config.width // heads))


def _heads(config: Backbone) -> int:
    """Parts of the width with weights of their own; without projections a mixed mixer has two."""
    return config.heads or (2 if config.kind == "mixed_repeat" else 1)


def _sums(config: Backbone) -> int:
    return 2 if config.kind == "combined_repeat" else 1


class _Weights(NamedTuple):
    """M[t, s] = sum over k of write[t, k] * decay_k^(t - s) * read[s, k], plus own[t] where s = t; first axis position."""

    read: Float[Array, "T K H 1"]
    write: Float[Array, "T K H 1"]
    own: Float[Array, "T H 1"] | None
    bias: Float[Array, "T H 1"]


class RepeatMixer(nn.Module):
    """Flat (`heads` 0) or heads between an input and an output projection, as TokenMixer; sums are float32.

    Vectors start as a rectifier's weights on [1, T] would (He et al. 2015): normal with standard deviation sqrt(2 / T). Biases start
    at 0 and gamma at 1. Flat mixing treats all channels alike, but for mixed_repeat, where a half of them is a head.

    Attributes:
      config: kind, width, heads, gate and decay.
      length: T.
      dtype: what matrix products compute in.
    """

    config: Backbone
    length: int
    dtype: jnp.dtype

    def setup(self) -> None:
        config, heads = self.config, _heads(self.config)
        _check(config, heads)
        # In mixed_repeat each vector belongs to a half of the heads.
        owners = heads // 2 if config.kind == "mixed_repeat" else heads
        init = nn.initializers.normal(math.sqrt(2 / self.length))
        if config.kind != "column_repeat":
            self.row = self.param("row", init, (owners, self.length - (config.kind == "diagonal_repeat")))
        if config.kind in ("column_repeat", "combined_repeat", "mixed_repeat"):
            self.column = self.param("column", init, (owners, self.length))
        if config.kind == "diagonal_repeat":
            self.diagonal = self.param("diagonal", init, (owners, self.length))
        self.mixing_bias = self.param("mixing_bias", nn.initializers.zeros, (heads, self.length))
        if config.decay_length:
            self.decay = self.param("decay", nn.initializers.ones, (_sums(config), heads))
        if config.heads:
            self.project_in = Linear(config.width, use_bias=True, dtype=self.dtype, layout=COLUMNS, name="in")
            self.project_out = Linear(config.width, use_bias=True, dtype=self.dtype, layout=ROWS, name="out")
        if config.output_gate:
            self.gate = Linear(config.width, dtype=self.dtype)

    def __call__(self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """All positions at once; where `valid` is False, x adds nothing."""
        if x.shape[1] != self.length:
            raise ValueError(
                f"a repeat mixer built for {self.length} positions was given {x.shape[1]}; its weights belong to positions"
            )
        h = jnp.where(valid[..., None], x, 0)
        if self.config.heads:
            # The projection has a bias: zero again, so that an empty position adds nothing.
            h = jnp.where(valid[..., None], self.project_in(h), 0)
        weights = self._weights()
        h = self._split(h)
        sums = running_sum(weights.read * h, self._factor())
        return self._write(x, h, sums, weights)

    def step(
        self, x: Float[Array, "B D"], state: Float[Array, "B K H E"], position: Int[Array, ""] | int
    ) -> tuple[Float[Array, "B D"], Float[Array, "B K H E"]]:
        """One position: its output and the state after it, from `initial_state` on. Past the last position the output is NaN."""
        weights = jax.tree.map(lambda w: w.at[position].get(mode="fill", fill_value=jnp.nan), self._weights())
        h = self._split(self.project_in(x) if self.config.heads else x)
        state = self._factor()[..., None] * state + weights.read * h
        return self._write(x, h, state, weights), state

    def _split(self, h: jax.Array) -> Float[Array, "*any 1 H E"]:
        return h.astype(jnp.float32).reshape(*h.shape[:-1], 1, _heads(self.config), -1)

    def _write(self, x: jax.Array, h: jax.Array, sums: Float[Array, "*any K H E"], weights: _Weights) -> jax.Array:
        mixed = jnp.sum(weights.write * sums, axis=-3) + weights.bias
        if weights.own is not None:
            mixed += weights.own * h[..., 0, :, :]
        mixed = mixed.reshape(x.shape).astype(self.dtype)
        if self.config.output_gate:
            mixed = mixed * self.gate(x)
        return self.project_out(mixed) if self.config.heads else mixed

    def _factor(self) -> Float[Array, "K H"]:
        """What a running sum keeps from one position to the next."""
        if not self.config.decay_length:
            return jnp.ones((_sums(self.config), _heads(self.config)))
        # Clipped in value alone: a gamma at its bound, where it starts, or past it still has a gradient and can come back.
        fixed = jax.lax.stop_gradient(self.decay)
        gamma = jnp.clip(fixed, LEAST_DECAY, 1) + (self.decay - fixed)
        return gamma ** (1 / self.config.decay_length)

    def _weights(self) -> _Weights:
        kind, ones = self.config.kind, jnp.ones_like(self.mixing_bias)
        own = None
        if kind == "row_repeat":
            read, write = [self.row], [ones]
        elif kind == "column_repeat":
            read, write = [ones], [self.column]
        elif kind == "combined_repeat":
            read, write = [self.row, ones], [ones, self.column]
        elif kind == "mixed_repeat":
            half = jnp.ones_like(self.row)
            read, write = [jnp.concatenate([half, self.row])], [jnp.concatenate([self.column, half])]
        else:
            row = jnp.pad(self.row, ((0, 0), (0, 1)))
            read, write, own = [row], [ones], self.diagonal - row

        def by_position(vectors: jax.Array | list[jax.Array]) -> jax.Array:
            return jnp.moveaxis(jnp.asarray(vectors), -1, 0)[..., None]

        own = None if own is None else by_position(own)
        return _Weights(by_position(read), by_position(write), own, by_position(self.mixing_bias))


def _check(config: Backbone, heads: int) -> None:
    if not config.causal:
        raise ValueError(f"causal=False: a {config.kind} carries a state forward and cannot read later positions")
    if config.kernel != 1:
        raise ValueError(f"kernel={config.kernel}: a {config.kind} has no kernel over channels; leave it 1")
    if config.width % heads:
        raise ValueError(f"heads={config.heads}: a {config.kind} of width {config.width} cannot be cut into {heads} parts")
    if config.kind == "mixed_repeat" and heads % 2:
        raise ValueError(
            f"heads={config.heads}: in a mixed_repeat half of the heads are columns and half are rows; use an even number"
        )
