"""Vectors in four bits per number: rotated, rounded to sixteen levels, packed two to a byte.

A rotation by signs and a Hadamard matrix spreads a few large numbers over all of a vector, so that
its numbers are about normally distributed, and the levels are spaced for that. Each vector has one
scale in bfloat16: of a few, the one with the least squared error.

The arithmetic is NumPy's or, within a compiled function, JAX's, by the namespace `xp`.

Shapes: E width of a vector, B = ceil(E / 2) its bytes.
"""

from types import ModuleType
from typing import Any

import jax.numpy as jnp  # For bfloat16, which NumPy alone has not.
import numpy as np
from jaxtyping import Float, Shaped

SCALE = np.dtype(jnp.bfloat16)
_ABOVE = np.array([4, 12, 21, 30, 40, 52, 66, 87], np.float32)
LEVELS = np.concatenate([-_ABOVE[::-1], _ABOVE])
"""Nearly the levels with the least squared error for a normal distribution. Sums of whole numbers
are exact."""
_BETWEEN = (LEVELS[1:] + LEVELS[:-1]) / 2
_TRIED = np.linspace(0.6, 1.1, 11, dtype=np.float32)
"""The last level under the scales that are tried, as shares of the largest number of a vector."""


def packed(
    memories: Float[Any, "*any E"], xp: ModuleType = np
) -> tuple[Shaped[Any, "*any B"], Float[Any, "*any"]]:
    """Return numbers of levels, the even places in the low four bits, and scales.

    Args:
      memories: finite float32; a vector is the last axis.
      xp: `numpy` or `jax.numpy`.
    """
    largest = xp.abs(memories).max(axis=-1, keepdims=True, initial=0)
    whole = xp.where(largest > 0, largest, np.float32(1))
    signs = _signs(memories.shape[-1])
    turned = rotated(memories / whole * signs, xp)  # Within -E to E: no sum overflows.
    top = xp.abs(turned).max(axis=-1, keepdims=True, initial=0) / LEVELS[-1]
    levels, scales = xp.zeros(turned.shape, np.uint8), xp.zeros(top.shape, SCALE)
    least = (turned**2).sum(axis=-1, keepdims=True)
    for share in _TRIED:
        scale = (top * share / _block(turned.shape[-1]) * largest).astype(SCALE)
        step = scale.astype(np.float32) / whole * _block(turned.shape[-1])
        found = xp.searchsorted(_BETWEEN, turned / xp.where(step > 0, step, np.float32(1)))
        error = ((xp.asarray(LEVELS)[found] * step - turned) ** 2).sum(axis=-1, keepdims=True)
        levels = xp.where(error < least, found.astype(np.uint8), levels)
        scales = xp.where(error < least, scale, scales)
        least = xp.minimum(error, least)
    if levels.shape[-1] % 2:
        levels = xp.concatenate([levels, xp.zeros_like(levels[..., :1])], axis=-1)
    return levels[..., ::2] | levels[..., 1::2] << 4, scales[..., 0]


def unpacked(
    stored: Shaped[Any, "*any B"], scales: Float[Any, "*any"], width: int, xp: ModuleType = np
) -> Float[Any, "*any E"]:
    """Return packed vectors in float32; what would be infinite becomes the largest number.

    Args:
      stored: as `packed` returns them.
      scales: finite.
      width: E.
      xp: `numpy` or `jax.numpy`.
    """
    levels = xp.stack([stored & 15, stored >> 4], axis=-1)
    levels = levels.reshape(*stored.shape[:-1], 2 * stored.shape[-1])
    turned = rotated(xp.asarray(LEVELS)[levels[..., :width]], xp) * _signs(width)
    largest = np.finfo(np.float32).max
    return xp.clip(turned * scales.astype(np.float32)[..., None], -largest, largest)


def rotated(vectors: Float[Any, "*any E"], xp: ModuleType = np) -> Float[Any, "*any E"]:
    """Return products of vectors with a Hadamard matrix, whose square is its width.

    Blocks of the largest power of two that divides E are rotated, each by itself.

    Args:
      vectors: numbers whose sums over a block are finite.
      xp: `numpy` or `jax.numpy`.
    """
    shape, half = vectors.shape, 1
    while half < _block(shape[-1]):
        pairs = vectors.reshape(*shape[:-1], shape[-1] // (2 * half), 2, half)
        one, other = pairs[..., 0, :], pairs[..., 1, :]
        vectors = xp.stack([one + other, one - other], axis=-2).reshape(shape)
        half *= 2
    return vectors


def _block(width: int) -> int:
    return width & -width


def _signs(width: int) -> Float[np.ndarray, " E"]:
    """Return the signs of Rudin and Shapiro, by which equal numbers are spread as well."""
    places = range(_block(width))
    signs = [-1.0 if (place & place >> 1).bit_count() % 2 else 1.0 for place in places]
    return np.tile(np.array(signs, np.float32), width // len(signs))
