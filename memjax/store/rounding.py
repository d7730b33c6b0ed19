"""What a number of a stored memory becomes on disk, and back: the ways of `memjax.instruments.quantisation`, with the bytes kept.

Shapes: N chunk, K vector of a chunk, E its width.
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
"""What can be stored, by name. int8 has a float32 scale for every vector."""
KINDS: Mapping[str, str] = {"bfloat16": "bfloat16", "float8_e4m3": "float8_e4m3", "int8": "int8_vector"}
"""Names of the same roundings in `memjax.instruments.quantisation`; float32 is none."""
SCALE = np.dtype("<f4")
_LEVELS = 127


def rounded(
    memories: Float[np.ndarray, "N K E"], dtype: str
) -> tuple[Shaped[np.ndarray, "N K E"], Float[np.ndarray, "N K"] | None]:
    """Memories as they are stored, and the scales of int8.

    Args:
      memories: finite float32.
      dtype: of DTYPES. What bfloat16 or float8 cannot hold becomes their largest number.
    """
    if dtype == "int8":
        scales = np.abs(memories).max(axis=-1, initial=0) / np.float32(_LEVELS)
        levels = np.rint(memories / np.where(scales > 0, scales, np.float32(1))[..., None])
        # Where a scale is so small that it is rounded itself, a level may be beyond the last.
        return np.clip(levels, -_LEVELS, _LEVELS).astype(np.int8), scales.astype(SCALE)
    if dtype == "float32":
        return memories.astype(DTYPES[dtype]), None
    largest = float(jnp.finfo(DTYPES[dtype]).max)
    return np.clip(memories, -largest, largest).astype(DTYPES[dtype]), None


def widened(stored: Shaped[np.ndarray, "N K E"], scales: Float[np.ndarray, "N K"] | None) -> Float[np.ndarray, "N K E"]:
    """Stored memories in float32."""
    # A store from elsewhere may hold anything.
    with np.errstate(over="ignore", invalid="ignore"):
        wide = stored.astype(np.float32)
        return wide if scales is None else wide * scales[..., None]
