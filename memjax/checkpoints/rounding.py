"""Rounding of memories to the numbers that a store holds, and back.

The numerics are those of `memjax.evaluation.instruments.quantisation`, with the bytes kept.
"""

from collections.abc import Mapping

import jax.numpy as jnp  # For bfloat16 and float8, which NumPy alone has not.
import numpy as np
from jaxtyping import Float, Shaped

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(jnp.bfloat16),
    "float8_e4m3": np.dtype(jnp.float8_e4m3fn),
    "int8": np.dtype("i1"),
}
"""Dtypes of stored numbers by name. int8 has a float32 scale per vector."""
SCALE = np.dtype("<f4")
_LEVELS = 127


def rounded(
    memories: Float[np.ndarray, "*any E"], dtype: str
) -> tuple[Shaped[np.ndarray, "*any E"], Float[np.ndarray, "*any"] | None]:
    """Return memories as they are stored, and the scales of int8.

    Args:
      memories: finite float32; a vector is the last axis.
      dtype: a name of DTYPES. Numbers beyond bfloat16 or float8 become their largest.
    """
    if dtype == "int8":
        scales = np.abs(memories).max(axis=-1, initial=0) / np.float32(_LEVELS)
        levels = np.rint(memories / np.where(scales > 0, scales, np.float32(1))[..., None])
        # Where a scale is so small that it is rounded itself, a level may be beyond the last.
        return np.clip(levels, -_LEVELS, _LEVELS).astype(np.int8), scales.astype(SCALE)
    largest = float(jnp.finfo(DTYPES[dtype]).max)
    return np.clip(memories, -largest, largest).astype(DTYPES[dtype]), None


def widened(
    stored: Shaped[np.ndarray, "*any E"], scales: Float[np.ndarray, "*any"] | None
) -> Float[np.ndarray, "*any E"]:
    """Return stored memories in float32."""
    # A store from elsewhere may hold anything.
    with np.errstate(over="ignore", invalid="ignore"):
        wide = stored.astype(np.float32)
        return wide if scales is None else wide * scales[..., None]
