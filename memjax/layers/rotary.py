"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), the rotate-half layout of Llama.

Shapes: B batch, T position, H head, E head width.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BASE = 10_000.0


def rotate(x: Float[Array, "B T H E"], positions: Int[Array, "B T"], base: float = BASE) -> Float[Array, "B T H E"]:
    """Turns each pair (i, i + E/2) of a head by positions * base^(-2i/E); angles in float32, result in x's dtype."""
    half = x.shape[-1] // 2
    frequency_E = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BTE = positions[..., None].astype(jnp.float32) * frequency_E
    cos, sin = jnp.cos(angle_BTE)[:, :, None, :], jnp.sin(angle_BTE)[:, :, None, :]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
