"""Means over texts, with bootstrap intervals.

Tokens of one text depend on each other, so the bootstrap resamples whole texts (percentile
bootstrap of Efron 1979, by SciPy).

Shapes: T text.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from memjax.errors import MemjaxError

CONFIDENCE = 0.95
RESAMPLES = 1000
_BATCH_ELEMENTS = 2**22
"""Numbers per batch of resamples."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval."""

    value: float
    low: float | None
    """Lower end; None for a single text, which has no interval."""
    high: float | None
    texts: int
    """Number of texts."""

    def __str__(self) -> str:
        return (
            f"{self.value:.4g}"
            if self.low is None
            else f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
        )


def mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """Return the mean of [T] numbers, one per text.

    Raises:
      MemjaxError: there are none, or one is not finite.
    """
    values = np.asarray(values, np.float64)
    return ratio(values, np.ones_like(values), seed)


def ratio(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> Estimate:
    """Return the sum of [T] numerators over the sum of [T] denominators.

    This is a mean over tokens, of which a text may have any number.

    Raises:
      MemjaxError: there are none, one is not finite, or the denominators sum to zero.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    MemjaxError.require(
        above.ndim == 1 and above.shape == below.shape,
        f"got numerators {above.shape} and denominators {below.shape}, expected one number per"
        " text",
    )
    kept = below != 0
    above, below = above[kept], below[kept]
    MemjaxError.require(above.size, "got no token that counts in any text, expected at least one")
    MemjaxError.require(
        np.isfinite(above).all() and np.isfinite(below).all(),
        "got a number that is not finite, expected finite ones. Check vectors and weights for NaNs"
        " and infinities",
    )
    value = float(above.sum() / below.sum())
    if above.size == 1:
        return Estimate(value, None, None, 1)
    if np.ptp(above / below) == 0:  # All texts agree, and so do all resamples.
        return Estimate(value, value, value, above.size)
    import scipy.stats  # Takes half a second, which commands that draw no interval save.

    interval = scipy.stats.bootstrap(
        (above, below),
        lambda above, below, axis: above.sum(axis=axis) / below.sum(axis=axis),
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_ELEMENTS // above.size),
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), above.size)


def to_json(value: Any) -> Any:
    """Convert estimates, dataclasses, mappings, sequences and arrays to JSON values.

    Numbers that are not finite become None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(key): to_json(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(x) for x in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
