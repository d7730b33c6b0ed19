"""Numbers with their uncertainty: means over texts and bootstrap intervals over texts.

Tokens of one text depend on each other, so what is drawn anew is whole texts (the percentile bootstrap of Efron 1979, by SciPy).

Shapes: T text.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
RESAMPLES = 1000
_BATCH_ELEMENTS = 2**22
"""Numbers that a batch of resamples draws at a time."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and the interval that holds it with 95 % confidence."""

    value: float
    low: float | None
    """None where there is one text: nothing can be said."""
    high: float | None
    texts: int
    """Over which it was taken."""

    def to_json(self) -> dict[str, Any]:
        """The fields; None where a number is not finite."""
        return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in vars(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.4g}" if self.low is None else f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """Mean of [T] numbers, one a text.

    Raises:
      ValueError: there are none, or one is not finite.
    """
    values = np.asarray(values, np.float64)
    return ratio(values, np.ones_like(values), seed)


def ratio(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> Estimate:
    """Sum of [T] numerators over sum of [T] denominators: a mean over tokens, of which a text may have any number.

    Raises:
      ValueError: there are none, one is not finite, or the denominators add up to nothing.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if above.ndim != 1 or above.shape != below.shape:
        raise ValueError(f"numerators {above.shape} and denominators {below.shape} must be one number a text")
    kept = below != 0
    above, below = above[kept], below[kept]
    if not above.size:
        raise ValueError("there is nothing to take a mean of: no text has a token that counts")
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        raise ValueError("a text's number is not finite: there are NaNs or infinities in vectors or weights")
    value = float(above.sum() / below.sum())
    if above.size == 1:
        return Estimate(value, None, None, 1)
    if np.ptp(above / below) == 0:  # All texts agree: so does every resample.
        return Estimate(value, value, value, above.size)
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
    """Estimates, dataclasses, mappings, sequences and arrays as what the json module writes; numbers that are not finite become None."""
    if isinstance(value, Estimate):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(x) for x in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
