"""Token mixing by a learned matrix over positions in place of attention.

Source: Badger 2025, masked mixers.

Shapes: B batch, T position, D width, H head, E head width, P kernel tap.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone, ConfigError
from memjax.layers.linear import COLUMN_PARALLEL, ROW_PARALLEL, Linear
from memjax.layers.shared_prefix import Group, SharedPrefix, join_groups


def mix_tokens(
    x: Float[Array, "B T H E"],
    weight: Float[Array, "H P T T"],
    bias: Float[Array, "H T"],
    causal: bool = True,
    dense_gradient: bool = False,
) -> Float[Array, "B T H E"]:
    """Mix positions by a matrix, lower-triangular if `causal`.

    y[t, e] = bias[t] + sum over taps p and positions s <= t of weight[p, t, s] * x[s, e + p -
    (P-1)//2].

    The kernel runs over channels, zero-padded, not over time, so causality needs only the triangle.
    The upper triangle is masked in the forward pass: its gradient is exactly zero, or with
    `dense_gradient` the gradient without the mask. Without `causal` all positions s are summed.
    """
    taps, length = weight.shape[1], weight.shape[-1]
    if causal:
        masked = jnp.where(jnp.tril(jnp.ones((length, length), bool)), weight, 0)
        weight = weight + jax.lax.stop_gradient(masked - weight) if dense_gradient else masked
    weight = weight.astype(x.dtype)
    if taps == 1:
        mixed = jnp.einsum("hts,bshe->bthe", weight[:, 0], x)
    else:
        mixed = jnp.einsum("hpts,pbshe->bthe", weight, _shifted(x, taps))
    return mixed + bias.T[:, :, None].astype(x.dtype)


def mix_shared(
    x: Float[Array, "B T H E"],
    weight: Float[Array, "H P S S"],
    bias: Float[Array, "H S"],
    reading: SharedPrefix,
) -> Float[Array, "B T H E"]:
    """Mix every chunk as `mix_tokens` would, had it the prefix that it reads before it.

    The prefix is at the first of the matrix's S positions and a chunk at the last.
    """
    taps, own, found = weight.shape[1], slice(weight.shape[-1] - reading.chunk_length, None), []
    rows = weight[:, :, own].astype(x.dtype)
    for group, seen in zip(reading.groups(x), reading.seen(), strict=True):
        leading = slice(group.prefix.shape[1])
        prefix = mix_tokens(group.prefix, weight[:, :, leading, leading], bias[:, leading])
        read = jnp.where(seen[..., None, None], group.prefix[:, None], 0)
        chunks = jnp.einsum("hpts,pbxshe->bxthe", rows[..., leading], _shifted(read, taps))
        causal = jnp.tril(rows[..., own])
        chunks += jnp.einsum("hpts,pbxshe->bxthe", causal, _shifted(group.chunks, taps))
        found.append(Group(prefix, chunks + bias[:, own].T[:, :, None].astype(x.dtype)))
    return join_groups(found)


def _shifted(x: Float[Array, "*any E"], taps: int) -> Float[Array, "P *any E"]:
    """Return x once per tap of a kernel over its channels."""
    width, left = x.shape[-1], (taps - 1) // 2
    padded = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((left, taps - 1 - left),))
    return jnp.stack([padded[..., p : p + width] for p in range(taps)])


class ProjectedMixing(nn.Module):
    """Mixing over positions: flat (`heads` 0), or in heads between an input and an output map.

    Empty positions are zeroed after the norm, so that they contribute nothing.

    Attributes:
      config: width, heads and gate.
      length: T; the weights are per position and fix it.
      dtype: dtype of matrix products.
    """

    config: Backbone
    length: int
    dtype: jnp.dtype

    def setup(self) -> None:
        linear = functools.partial(Linear, self.config.width, dtype=self.dtype)
        if self.config.heads:
            self.project_in = linear(use_bias=True, layout=COLUMN_PARALLEL, name="in")
            self.project_out = linear(use_bias=True, layout=ROW_PARALLEL, name="out")
        if self.config.output_gate:
            self.gate = linear(layout=COLUMN_PARALLEL)

    def project(
        self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"] | SharedPrefix
    ) -> jax.Array:
        """Return the values to mix, 0 at empty positions."""
        positions = x.shape[1]
        if isinstance(valid, SharedPrefix):
            positions = max(self.length, *valid.lengths, max(valid.lengths) + valid.chunk_length)
            valid = valid.valid
        ConfigError.require(
            positions == self.length,
            f"a {self.config.kind} built for {self.length} positions got {positions}; its weights"
            " are per position, so use the length it was built for",
        )
        h = jnp.where(valid[..., None], x, 0)
        # The projection has a bias: zero empty positions again.
        return jnp.where(valid[..., None], self.project_in(h), 0) if self.config.heads else h

    def finish(self, x: Float[Array, "*any D"], mixed: jax.Array) -> Float[Array, "*any D"]:
        """Return the output from the mixed values of the input `x`."""
        if self.config.output_gate:
            mixed = mixed * self.gate(x)
        return self.project_out(mixed) if self.config.heads else mixed


class TokenMixer(ProjectedMixing):
    """Mixing by a matrix per head.

    Attributes:
      dense_gradient: see `mix_tokens`.
    """

    dense_gradient: bool = False

    def setup(self) -> None:
        super().setup()
        heads, taps = max(self.config.heads, 1), self.config.channel_kernel
        bound = 1 / math.sqrt(self.length * taps)

        def uniform(
            key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
        ) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        self.mixing = self.param("mixing", uniform, (heads, taps, self.length, self.length))
        self.mixing_bias = self.param("mixing_bias", uniform, (heads, self.length))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        valid: Bool[Array, "B T"] | SharedPrefix,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Mix all positions; the weights are per position, so that `positions` are not read."""
        h = self.project(x, valid)
        h_BTHE = h.reshape(*h.shape[:2], self.mixing.shape[0], -1)
        weights = h_BTHE, self.mixing, self.mixing_bias
        mixed = (
            mix_shared(*weights, valid)
            if isinstance(valid, SharedPrefix)
            else mix_tokens(*weights, self.config.causal, self.dense_gradient)
        )
        return self.finish(x, mixed.reshape(h.shape))
