"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), the rotate-half layout of Llama.

Shapes: B batch, T position, H head, E head width, F = E / 2 frequency.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

BASE = 10_000.0


def rotate(
    x: Float[Array, "B T H E"],
    positions: Int[Array, "B T"],
    base: float = BASE,
    scaling: tuple[float, ...] = (),
) -> Float[Array, "B T H E"]:
    """Rotate each pair (i, i + E/2) of a head by positions * base^(-2i/E).

    Angles are float32; the result has x's dtype.

    Args:
      x: queries or keys.
      positions: any integers; only differences matter.
      base: RoPE base frequency (theta).
      scaling: arguments of `scaled_frequencies` after the first; empty for none.
    """
    half = x.shape[-1] // 2
    frequency_E = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling:
        frequency_E = scaled_frequencies(frequency_E, *scaling)
    angle_BTE = positions[..., None].astype(jnp.float32) * frequency_E
    return _turn(x, jnp.cos(angle_BTE)[:, :, None], jnp.sin(angle_BTE)[:, :, None])


def _turn(
    x: Float[Array, "B T H E"], cos: Float[Array, "B T #H F"], sin: Float[Array, "B T #H F"]
) -> Float[Array, "B T H E"]:
    half = x.shape[-1] // 2
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


def scaled_frequencies(
    frequency: Float[Array, " E"], factor: float, low: float, high: float, positions: float
) -> jax.Array:
    """Scale frequencies for sequences longer than in the first training, as in Llama 3.1.

    Args:
      frequency: radians per position.
      factor: divisor of frequencies with fewer than `low` turns.
      low: turns in `positions` from which kept and divided frequencies are interpolated.
      high: turns from which a frequency is unchanged.
      positions: sequence length of the first training.
    """
    turns = positions * frequency / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequency + (1 - kept) * frequency / factor


# Positions of a text of any length


class TextPositions(NamedTuple):
    """Where positions stand in a text.

    The angles of these positions come from whole-number phases, which are as exact at position
    10^6 as at 0: in float32 the product of position and frequency errs by 0.06 radian there.
    """

    token: Int[Array, "B T"]
    """In tokens."""
    place: Int[Array, "B T"]
    """In chunks: that of a memory, and of all tokens of a chunk."""
    vector: Int[Array, "B T"] | None = None
    """Number of an entry in its memory, not read of tokens; None where memories have one vector."""


def whole_phases(frequency: np.ndarray) -> UInt32[np.ndarray, "*any"]:
    """Return turns per position, in units of 2^-32 turns, from radians per position."""
    return np.round(np.asarray(frequency, np.float64) / (2 * np.pi) * 2**32).astype(np.uint32)


def turn_phases(
    x: Float[Array, "B T H E"],
    positions: Int[Array, "B T"],
    phases: UInt32[np.ndarray, "#H F"],
    back: bool = False,
) -> Float[Array, "B T H E"]:
    """Rotate each pair (i, i + E/2) of a head by positions * phases, or back by it.

    Args:
      x: queries, keys or values.
      positions: any integers.
      phases: from `whole_phases`, one row for all heads or one per head.
      back: rotate the other way.
    """
    # Products wrap around at 2^32, which is a whole turn.
    turned = positions.astype(jnp.uint32)[..., None, None] * jnp.asarray(phases)
    angle = jax.lax.bitcast_convert_type(turned, jnp.int32).astype(jnp.float32)
    angle *= np.float32((-1 if back else 1) * 2 * np.pi / 2**32)
    return _turn(x, jnp.cos(angle), jnp.sin(angle))


def text_phases(
    base: float, half: int, scaling: tuple[float, ...] = ()
) -> UInt32[np.ndarray, "1 F"]:
    """Return the phases of text positions: the frequencies of `rotate`."""
    frequency = base ** (-np.arange(half, dtype=np.float32) / half)
    if scaling:
        with jax.ensure_compile_time_eval():
            frequency = np.asarray(scaled_frequencies(jnp.asarray(frequency), *scaling))
    return whole_phases(frequency)[None]


def value_phases(half: int) -> UInt32[np.ndarray, "1 F"]:
    """Return the phases of rotary values: frequencies evenly over (0, pi)."""
    return whole_phases((np.arange(half) + 0.5) / half * np.pi)[None]


PLACE_RANGE = 16_384
"""Places over which the side lobes of place frequencies are low."""
_DRAWS = 2_048


def place_phases(heads: int, half: int) -> UInt32[np.ndarray, "H F"]:
    """Return the phases of places, per head.

    The score of a constant query with a constant key is the sum of cos(f * distance) over the
    frequencies f, highest at distance 0. Evenly spaced frequencies share a period and alias. These
    are drawn from (0, pi); of many draws those are kept whose highest other score is lowest.
    """
    return whole_phases(_draw_frequencies(half)[:heads])


@functools.lru_cache
def _draw_frequencies(half: int) -> Float[np.ndarray, "N F"]:
    """Return all draws for `place_phases`, best first."""
    drawn = np.random.default_rng(0).uniform(0, np.pi, (_DRAWS, half))
    block = math.isqrt(PLACE_RANGE)
    # 16 rows a product: one of more is split over threads, which takes several times as long.
    near, far = np.arange(block), np.arange(0, PLACE_RANGE, block).reshape(-1, 16)
    highest = np.empty(_DRAWS)
    for number, frequency in enumerate(drawn):
        # cos(f (a + b)) summed over f, as a product of matrices over a and b.
        a, b = far[..., None] * frequency, near[:, None] * frequency
        scores = np.cos(a) @ np.cos(b).T - np.sin(a) @ np.sin(b).T
        scores[0, 0, 0] = -np.inf
        highest[number] = scores.max()
    return drawn[np.argsort(highest, kind="stable")]
