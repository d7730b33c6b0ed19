"""Losses on vectors and the measure of models that have no likelihood (next_vector.py).

Their training needs vectors of a trained autoencoder, and no objective uses them.

Shapes: S sample, T target, N vector, E number.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

FREE = 0.5
"""Nats that each number of a latent may hold without a penalty."""
QUARTILES = 25, 50, 75


def energy_loss(
    samples: Float[Array, "S N E"], targets: Float[Array, "T N E"], exponent: float = 1.0
) -> Float[Array, " N"]:
    """Return the energy score of samples, which is least where they are drawn as the targets are.

    It is twice the mean distance of samples and targets, less the mean distance of different
    samples.

    Args:
      samples: predictions, two or more of each.
      targets: draws of what is predicted.
      exponent: of each distance, above 0 and below 2.
    """
    count = len(samples)
    across = _distance(samples[:, None], targets[None], exponent).mean(axis=(0, 1))
    among = _distance(samples[:, None], samples[None], exponent).sum(axis=(0, 1))
    return 2 * across - among / (count * (count - 1))


def _distance(one: jax.Array, other: jax.Array, exponent: float) -> jax.Array:
    square = jnp.sum((one - other) ** 2, axis=-1)
    # The gradient of a root is not finite at 0, where a distance has none.
    apart = square > 0
    return jnp.where(apart, jnp.where(apart, square, 1) ** (exponent / 2), 0)


def squared_loss(
    samples: Float[Array, "S N E"], targets: Float[Array, "N E"]
) -> Float[Array, " N"]:
    """Return the mean squared error of predictions, averaged over samples."""
    return jnp.mean((samples - targets) ** 2, axis=(0, 2))


def gaussian_penalty(
    mean: Float[Array, "*any E"], log_variance: Float[Array, "*any E"], free: float = FREE
) -> Float[Array, "*any"]:
    """Return the nats of latents beyond a standard Gaussian, at least `free` for each number."""
    nats = (mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
    return jnp.sum(jnp.maximum(nats, free), axis=-1)


def robust_scale(
    vectors: Float[Array, "N E"],
) -> tuple[Float[Array, " E"], Float[Array, " E"]]:
    """Return the median and the interquartile range of each number, or 1 where that is 0."""
    low, middle, high = jnp.percentile(vectors, jnp.array(QUARTILES), axis=0)
    return middle, jnp.where(high > low, high - low, 1)


def brier(
    first: Shaped[Array, "*any n"], second: Shaped[Array, "*any n"], label: Shaped[Array, "*any n"]
) -> Float[Array, "*any"]:
    """Return an unbiased estimate of a predictor's Brier score from two samples of n tokens.

    A predictor that is certain and right has 1.
    """

    def same(one: jax.Array, other: jax.Array) -> Bool[Array, "*any"]:
        return jnp.all(one == other, axis=-1)

    hits = same(first, label).astype(float) + same(second, label)
    return hits - same(first, second)
