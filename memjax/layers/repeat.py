"""Repeat mixers: token mixing with repeated vectors, run as a recurrence.

Source: Badger 2026, repeat mixers. As in a causal token mixer, a matrix M mixes y[t] = bias[t] +
sum over s <= t of M[t, s] * x[s]. Here M is built from learned vectors `row`, `column` and
`diagonal` over positions; for s <= t:

- row_repeat: M[t, s] = row[s], the weight of the position read;
- column_repeat: M[t, s] = column[t], the weight of the position written;
- combined_repeat: M[t, s] = row[s] + column[t];
- diagonal_repeat: M[t, s] = row[s] for s < t and M[t, t] = diagonal[t]; `row` has no entry for the
  last position;
- mixed_repeat: column_repeat in the first half of the heads, row_repeat in the second.

With `decay_length` > 0 each vector's part of M is multiplied by gamma^((t - s) / decay_length),
with one learned gamma per running sum and head. All kinds are running sums: a stack carries K
vectors per layer from one position to the next.

Shapes: B batch, T position, D width, H head, E head width, K running sum (2 in combined_repeat,
else 1).
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone, ConfigError
from memjax.layers.mixer import ProjectedMixing
from memjax.layers.shared_prefix import Group, SharedPrefix, join_groups

LEAST_DECAY = 0.9
"""Lower bound of gamma; its upper bound and initial value is 1."""


@jax.custom_vjp
def running_sum(
    x: Float[Array, "B T K H E"], factor: Float[Array, "K H"]
) -> Float[Array, "B T K H E"]:
    """Compute y[t] = factor * y[t - 1] + x[t], the sum over s <= t of factor^(t - s) * x[s].

    `factor` is in [0, 1]. The associative scan takes O(T), where a matrix over positions takes
    O(T^2), runs in parallel over positions, and does not divide by powers, which may underflow. Its
    gradient is the same sum in reverse, so that only y is kept for it.
    """
    return _scan(x, factor)


def _scan(x: jax.Array, factor: jax.Array, reverse: bool = False) -> jax.Array:
    def join(
        a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
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


def initial_state(config: Backbone, batch: int) -> Float[Array, "N B K H E"]:
    """Return the state of a stack of N layers before the first position."""
    heads = _heads(config)
    return jnp.zeros((config.layers, batch, _sums(config), heads, config.width // heads))


def _heads(config: Backbone) -> int:
    """Return the number of parts of the width with their own weights."""
    # A flat mixed mixer has two.
    return config.heads or (2 if config.kind == "mixed_repeat" else 1)


def _sums(config: Backbone) -> int:
    return 2 if config.kind == "combined_repeat" else 1


class _Weights(NamedTuple):
    """Factors of M; the first axis is the position.

    M[t, s] = sum over k of write[t, k] * decay_k^(t - s) * read[s, k], plus own[t] where s = t.
    """

    read: Float[Array, "T K H 1"]
    write: Float[Array, "T K H 1"]
    own: Float[Array, "T H 1"] | None
    bias: Float[Array, "T H 1"]


class RepeatMixer(ProjectedMixing):
    """Mixing by vectors, run as a recurrence; sums are float32.

    Vectors are initialised as a rectifier's weights on [1, T] (He et al. 2015): normal with
    standard deviation sqrt(2 / T). Biases start at 0 and gamma at 1. Flat mixing treats all
    channels alike, except for mixed_repeat, where each half of them is a head.
    """

    def setup(self) -> None:
        super().setup()
        config, heads = self.config, _heads(self.config)
        _check(config, heads)
        # In mixed_repeat each vector belongs to one half of the heads.
        owners = heads // 2 if config.kind == "mixed_repeat" else heads
        init = nn.initializers.normal(math.sqrt(2 / self.length))
        if config.kind != "column_repeat":
            self.row = self.param(
                "row", init, (owners, self.length - (config.kind == "diagonal_repeat"))
            )
        if config.kind in ("column_repeat", "combined_repeat", "mixed_repeat"):
            self.column = self.param("column", init, (owners, self.length))
        if config.kind == "diagonal_repeat":
            self.diagonal = self.param("diagonal", init, (owners, self.length))
        self.mixing_bias = self.param("mixing_bias", nn.initializers.zeros, (heads, self.length))
        if config.decay_length:
            self.decay = self.param("decay", nn.initializers.ones, (_sums(config), heads))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        valid: Bool[Array, "B T"] | SharedPrefix,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Mix all positions; the weights are per position, so that `positions` are not read."""
        weights, h = self._weights(), self._split(self.project(x, valid))
        if isinstance(valid, SharedPrefix):
            weights = _laid_out(weights, valid)
            sums = self._shared_sums(weights.read * h, valid)
        else:
            sums = running_sum(weights.read * h, self._factor())
        return self._write(x, h, sums, weights)

    def _shared_sums(
        self, x: Float[Array, "B T K H E"], reading: SharedPrefix
    ) -> Float[Array, "B T K H E"]:
        """Return the running sums; that of a chunk starts from the state after what it reads.

        The state decays through the positions between the two.
        """
        factor, found, start = self._factor(), [], self.length - reading.chunk_length
        for group, visible in zip(reading.groups(x), reading.visible, strict=True):
            prefix = running_sum(group.prefix, factor)
            states = jnp.pad(prefix, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
            state = jax.vmap(lambda rows, at: rows[at])(states, visible)
            between = start - visible[..., None] + 1 + jnp.arange(reading.chunk_length)
            kept = factor ** between[..., None, None].astype(factor.dtype)
            own = running_sum(group.chunks.reshape(-1, *group.chunks.shape[2:]), factor)
            chunks = own.reshape(group.chunks.shape) + kept[..., None] * state[:, :, None]
            found.append(Group(prefix, chunks))
        return join_groups(found)

    def step(
        self, x: Float[Array, "B D"], state: Float[Array, "B K H E"], position: Int[Array, ""] | int
    ) -> tuple[Float[Array, "B D"], Float[Array, "B K H E"]]:
        """Compute the output and the state of one position, starting from `initial_state`.

        Past the last position the output is NaN.
        """
        weights = jax.tree.map(
            lambda w: w.at[position].get(mode="fill", fill_value=jnp.nan), self._weights()
        )
        h = self._split(self.project_in(x) if self.config.heads else x)
        state = self._factor()[..., None] * state + weights.read * h
        return self._write(x, h, state, weights), state

    def _split(self, h: jax.Array) -> Float[Array, "*any 1 H E"]:
        return h.astype(jnp.float32).reshape(*h.shape[:-1], 1, _heads(self.config), -1)

    def _write(
        self, x: jax.Array, h: jax.Array, sums: Float[Array, "*any K H E"], weights: _Weights
    ) -> jax.Array:
        mixed = jnp.sum(weights.write * sums, axis=-3) + weights.bias
        if weights.own is not None:
            mixed += weights.own * h[..., 0, :, :]
        return self.finish(x, mixed.reshape(x.shape).astype(self.dtype))

    def _factor(self) -> Float[Array, "K H"]:
        """Return the share of a running sum that is kept from one position to the next."""
        if not self.config.decay_length:
            return jnp.ones((_sums(self.config), _heads(self.config)))
        # Only the value is clipped: gamma at its bound, where it starts, still has a gradient.
        fixed = jax.lax.stop_gradient(self.decay)
        gamma = jnp.clip(fixed, LEAST_DECAY, 1) + (self.decay - fixed)
        return gamma ** (1 / self.config.decay_length)

    def _weights(self) -> _Weights:
        kind, ones, own = self.config.kind, jnp.ones_like(self.mixing_bias), None
        if kind == "row_repeat":
            read, write = [self.row], [ones]
        elif kind == "column_repeat":
            read, write = [ones], [self.column]
        elif kind == "combined_repeat":
            read, write = [self.row, ones], [ones, self.column]
        elif kind == "mixed_repeat":
            half = jnp.ones_like(self.row)
            read = [jnp.concatenate([half, self.row])]
            write = [jnp.concatenate([self.column, half])]
        else:
            row = jnp.pad(self.row, ((0, 0), (0, 1)))
            read, write, own = [row], [ones], self.diagonal - row
        vectors = _Weights(jnp.asarray(read), jnp.asarray(write), own, self.mixing_bias)
        return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0)[..., None], vectors)


def _laid_out(weights: _Weights, reading: SharedPrefix) -> _Weights:
    """Weights of the positions of a sequence: prefixes at the first, chunks at the last."""
    chunks = sum(visible.shape[1] for visible in reading.visible)

    def lay_out(x: jax.Array) -> jax.Array:
        own = jnp.tile(x[-reading.chunk_length :], (chunks, *(1,) * (x.ndim - 1)))
        return jnp.concatenate([*(x[:length] for length in reading.lengths), own])

    return jax.tree.map(lay_out, weights)


def _check(config: Backbone, heads: int) -> None:
    ConfigError.require(
        config.causal,
        f"causal: got False, expected True: a {config.kind} cannot read later positions",
    )
    ConfigError.require(
        config.channel_kernel == 1,
        f"channel_kernel: got {config.channel_kernel}, expected 1: a {config.kind} has no kernel"
        " over channels",
    )
    ConfigError.require(
        config.width % heads == 0,
        f"heads: got {config.heads}, expected a divisor of the width {config.width} of"
        f" {config.kind} ({heads} parts)",
    )
    ConfigError.require(
        config.kind != "mixed_repeat" or heads % 2 == 0,
        f"heads: got {config.heads}, expected an even number: in mixed_repeat half of the heads"
        " are columns and half are rows",
    )
