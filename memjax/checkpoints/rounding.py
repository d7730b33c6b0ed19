"""Rounding of memories to the numbers that a store holds, and back.

The arithmetic is NumPy's or, within a compiled function, JAX's, by the namespace `xp`.

Shapes: E width of a vector, S numbers that are stored of it.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp  # For bfloat16 and float8, which NumPy alone has not.
import numpy as np
from jaxtyping import Float, Shaped

from memjax.checkpoints import int4

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(jnp.bfloat16),
    "float8_e4m3": np.dtype(jnp.float8_e4m3fn),
    "int8": np.dtype("i1"),
    "int4": np.dtype("u1"),
}
"""Dtypes of stored numbers by name. int4 has two numbers to a byte."""
SCALES: Mapping[str, np.dtype] = {"int8": np.dtype("<f4"), "int4": int4.SCALE}
"""Dtypes of the scales of vectors, where vectors have one."""
_LEVELS = 127


def stored_width(width: int, dtype: str) -> int:
    """Return how many stored numbers hold a vector of `width` numbers."""
    return (width + 1) // 2 if dtype == "int4" else width


def rounded(
    memories: Float[Any, "*any E"], dtype: str, xp: ModuleType = np
) -> tuple[Shaped[Any, "*any S"], Float[Any, "*any"] | None]:
    """Return memories as they are stored, and the scales of int8 and int4.

    Args:
      memories: finite float32; a vector is the last axis.
      dtype: a name of DTYPES. Numbers beyond bfloat16 or float8 become their largest.
      xp: `numpy` or `jax.numpy`.
    """
    if dtype == "int4":
        return int4.packed(memories, xp)
    if dtype == "int8":
        scales = xp.abs(memories).max(axis=-1, initial=0) / np.float32(_LEVELS)
        levels = xp.rint(memories / xp.where(scales > 0, scales, np.float32(1))[..., None])
        # Where a scale is so small that it is rounded itself, a level may be beyond the last.
        return xp.clip(levels, -_LEVELS, _LEVELS).astype(np.int8), scales.astype(SCALES["int8"])
    largest = float(jnp.finfo(DTYPES[dtype]).max)
    return xp.clip(memories, -largest, largest).astype(DTYPES[dtype]), None


def widened(
    stored: Shaped[Any, "*any S"],
    scales: Float[Any, "*any"] | None,
    width: int | None = None,
    xp: ModuleType = np,
) -> Float[Any, "*any E"]:
    """Return stored memories in float32.

    Args:
      stored: as `rounded` returns them; uint8 is int4.
      scales: one per vector, or None.
      width: E; int4 needs it if E is odd.
      xp: `numpy` or `jax.numpy`.
    """
    # A store from elsewhere may hold anything.
    with np.errstate(over="ignore", invalid="ignore"):
        if stored.dtype == DTYPES["int4"]:
            return int4.unpacked(stored, scales, width or 2 * stored.shape[-1], xp)
        wide = stored.astype(np.float32)
        return wide if scales is None else wide * scales[..., None]
