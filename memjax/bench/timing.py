"""Seconds of steps that take turns, and what can be said of two of them."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as fast one thing is as another: the other's median over its own."""

    value: float
    low: float
    high: float
    """A 95 % bootstrap interval of the ratio of medians, over rounds."""


def take_turns(
    steps: Sequence[Callable[[], Any]], rounds: int, warmup: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Seconds of every step in each of `rounds`, a list for each step.

    In a round every step runs once, in the order given, so that what else the machine does falls on all alike. A step has ended when
    its arrays are there.

    Args:
      steps: each returns arrays, or a tree of them.
      rounds: that are timed.
      warmup: rounds before those, which are not.
      clock: what tells the time.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(-warmup, rounds):
        for step, kept in zip(steps, seconds, strict=True):
            began = clock()
            jax.block_until_ready(step())
            if turn >= 0:
                kept.append(clock() - began)
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """The least, the quartiles and the greatest, by name."""
    values = np.percentile(seconds, (0, 25, 50, 75, 100))
    return dict(zip(("least", "lower_quartile", "median", "upper_quartile", "greatest"), map(float, values), strict=True))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """How many times as fast ours are as theirs, timed in the same rounds.

    Rounds are drawn again, each with both its times, so that a slow moment of the machine weighs on neither. With fewer than two rounds
    the interval is the ratio itself.
    """

    def of_medians(ours: np.ndarray, theirs: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.median(theirs, axis=axis) / np.median(ours, axis=axis)

    value = float(of_medians(np.asarray(ours), np.asarray(theirs)))
    if len(ours) < 2:
        return Ratio(value, value, value)
    found = stats.bootstrap((ours, theirs), of_medians, paired=True, method="percentile", rng=np.random.default_rng(0))
    return Ratio(value, float(found.confidence_interval.low), float(found.confidence_interval.high))
