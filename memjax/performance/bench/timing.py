"""Alternated timing of steps, and ratios of two of them."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Speed ratio of two programs: the other's median time over one's own."""

    value: float
    low: float
    high: float
    """Ends of a 95 % bootstrap interval of the ratio of medians, over rounds: `low` and `high`."""


def take_turns(
    steps: Sequence[Callable[[], Any]],
    rounds: int,
    warmup: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Return the seconds of every step in each of `rounds`, one list per step.

    In a round every step runs once, in the given order, so that other load on the machine affects
    all alike. A step ends when its arrays are ready.

    Args:
      steps: each returns arrays, or a tree of them.
      rounds: number of timed rounds.
      warmup: number of untimed rounds before them.
      clock: returns the time in seconds.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(-warmup, rounds):
        for step, kept in zip(steps, seconds, strict=True):
            began = clock()
            jax.block_until_ready(step())
            if turn >= 0:
                kept.append(clock() - began)
    return seconds


def quartiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return minimum, quartiles and maximum by name."""
    values = np.percentile(seconds, (0, 25, 50, 75, 100))
    return dict(
        zip(
            ("least", "lower_quartile", "median", "upper_quartile", "greatest"),
            map(float, values),
            strict=True,
        )
    )


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return how many times as fast ours are as theirs, timed in the same rounds.

    The bootstrap resamples rounds with both their times, so that a slow moment of the machine
    affects both. With fewer than two rounds the interval is the ratio itself.
    """

    def of_medians(ours: np.ndarray, theirs: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.median(theirs, axis=axis) / np.median(ours, axis=axis)

    value = float(of_medians(np.asarray(ours), np.asarray(theirs)))
    if len(ours) < 2:
        return Ratio(value, value, value)
    found = stats.bootstrap(
        (ours, theirs), of_medians, paired=True, method="percentile", rng=np.random.default_rng(0)
    )
    return Ratio(value, float(found.confidence_interval.low), float(found.confidence_interval.high))
