"""Token mixing: a learned matrix over positions in place of attention, lower-triangular where causal (Badger 2025, masked mixers).

Shapes: B batch, T position, D width, H head, E head width, P kernel tap.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memjax.config import Backbone
from memjax.layers.linear import COLUMNS, ROWS, Linear


def mix_tokens(
    x: Float[Array, "B T H E"],
    weight: Float[Array, "H P T T"],
    bias: Float[Array, "H T"],
    causal: bool = True,
    dense_gradient: bool = False,
) -> Float[Array, "B T H E"]:
    """y[t, e] = bias[t] + sum over taps p and positions s <= t of weight[p, t, s] * x[s, e + p - (P-1)//2].

    The kernel runs over channels, zero-padded, not over time, so causality needs only the triangle. The dead triangle is cut
    in the forward pass: its gradient is exactly zero, or with `dense_gradient` what it would be if nothing were cut.
    Without `causal` all positions s are summed and nothing is dead.
    """
    taps, length = weight.shape[1], weight.shape[-1]
    if causal:
        cut = jnp.where(jnp.tril(jnp.ones((length, length), bool)), weight, 0)
        weight = weight + jax.lax.stop_gradient(cut - weight) if dense_gradient else cut
    weight = weight.astype(x.dtype)
    if taps == 1:
        mixed = jnp.einsum("hts,bshe->bthe", weight[:, 0], x)
    else:
        width = x.shape[-1]
        left = (taps - 1) // 2
        padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (left, taps - 1 - left)))
        shifted_PBTHE = jnp.stack([padded[..., p : p + width] for p in range(taps)])
        mixed = jnp.einsum("hpts,pbshe->bthe", weight, shifted_PBTHE)
    return mixed + bias.T[:, :, None].astype(x.dtype)


class TokenMixer(nn.Module):
    """Flat mixing (`heads` 0) or heads between an input and an output projection; its length is fixed by its weights.

    Empty positions are zeroed on the way in, after the norm, so that they add nothing.

    Attributes:
      config: width, heads, kernel, gate and whether mixing is causal.
      length: T.
      dtype: what matrix products compute in.
      dense_gradient: see `mix_tokens`.
    """

    config: Backbone
    length: int
    dtype: jnp.dtype
    dense_gradient: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        width, heads, taps = self.config.width, self.config.heads, self.config.kernel
        batch, length = x.shape[:2]
        if length != self.length:
            raise ValueError(f"a mixer built for {self.length} positions was given {length}; its weights belong to positions")
        bound = 1 / math.sqrt(self.length * taps)

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        weight = self.param("mixing", uniform, (max(heads, 1), taps, self.length, self.length))
        bias = self.param("mixing_bias", uniform, (max(heads, 1), self.length))
        h = jnp.where(valid[..., None], x, 0)
        if heads:
            h = Linear(width, use_bias=True, dtype=self.dtype, layout=COLUMNS, name="in")(h)
            # The projection has a bias: zero again, so that an empty position adds nothing.
            h = jnp.where(valid[..., None], h, 0)
        h = h.reshape(batch, length, max(heads, 1), -1)
        h = mix_tokens(h, weight, bias, self.config.causal, self.dense_gradient).reshape(batch, length, width)
        if self.config.output_gate:
            h = h * Linear(width, dtype=self.dtype, layout=COLUMNS, name="gate")(x)
        return Linear(width, use_bias=True, dtype=self.dtype, layout=ROWS, name="out")(h) if heads else h
