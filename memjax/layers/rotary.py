"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), the rotate-half layout of Llama.

Shapes: B batch, T position, H head, E head width.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BASE = 10_000.0


def rotate(
    x: Float[Array, "B T H E"], positions: Int[Array, "B T"], base: float = BASE, scaling: tuple[float, ...] = ()
) -> Float[Array, "B T H E"]:
    """Turns each pair (i, i + E/2) of a head by positions * base^(-2i/E); angles in float32, result in x's dtype.

    Args:
      x: queries or keys.
      positions: may be any whole numbers; only differences count.
      base: of which frequencies are powers.
      scaling: as `slowed` takes it; empty for none.
    """
    half = x.shape[-1] // 2
    frequency_E = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling:
        frequency_E = slowed(frequency_E, *scaling)
    angle_BTE = positions[..., None].astype(jnp.float32) * frequency_E
    cos, sin = jnp.cos(angle_BTE)[:, :, None, :], jnp.sin(angle_BTE)[:, :, None, :]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def slowed(frequency: Float[Array, " E"], factor: float, low: float, high: float, positions: float) -> jax.Array:
    """Frequencies for rows longer than a model was first trained on, as Llama 3.1 has them.

    Args:
      frequency: radians a position.
      factor: what frequencies of fewer than `low` turns are divided by.
      low: turns in `positions`, from which on the two are mixed.
      high: turns from which on a frequency stays as it is.
      positions: length of the rows of the first training.
    """
    turns = positions * frequency / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequency + (1 - kept) * frequency / factor
