"""The claims, each as inequalities between measured numbers, fixed before any measurement.

A number is a mean over tokens, stored as sums over rows of held-out text. An inequality is a
weighted sum of such means that must be above zero; its interval is a bootstrap over rows, joint for
all models, over all seeds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from memjax.objectives.uncertainty import Estimate, ratio

Sums = Mapping[str, Sequence[float]]
"""A number as `sums` and `counts` per row, [rows] each."""
Numbers = Mapping[str, Sums]
"""Numbers of one seed, by name."""

HOLDS, OPEN, FAILS = "holds", "undecided", "does not hold"


@dataclasses.dataclass(frozen=True)
class Inequality:
    """An inequality: the sum of weight * mean over `terms` is above zero."""

    words: str
    terms: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper, the inequalities that would show it, and the numbers displayed."""

    name: str
    words: str
    tests: tuple[Inequality, ...]
    shown: tuple[str, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class Judged:
    """An inequality with its measured margin."""

    words: str
    margin: Estimate
    """Left-hand side of the inequality, which must be above zero."""
    by_seed: tuple[float, ...]
    verdict: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim with its verdict: that of its worst inequality."""

    claim: Claim
    tests: tuple[Judged, ...]
    verdict: str
    numbers: dict[str, tuple[Estimate, ...]]
    """Displayed numbers, one estimate per seed."""


def _gain(encoder: str, weight: float) -> dict[str, float]:
    """Return `weight` times the gain of an encoder.

    The gain is the probe's nats on a constant memory less its nats on the encoder's memories.
    """
    return {"probe_nats/constant": weight, f"probe_nats/{encoder}": -weight}


def _sum(*parts: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for key, weight in part.items():
            total[key] = total.get(key, 0.0) + weight
    return total


def _alike(first: str, second: str) -> tuple[Inequality, Inequality]:
    """Return the test that two encoders' gains differ by less than a tenth of the autoencoder's."""
    tenth = _gain("autoencoder", 0.1)
    words = "a tenth of the autoencoder's gain exceeds that of {} less that of {}"
    return (
        Inequality(words.format(first, second), _sum(tenth, _gain(first, -1), _gain(second, 1))),
        Inequality(words.format(second, first), _sum(tenth, _gain(first, 1), _gain(second, -1))),
    )


def _damage(model: str, kind: str, weight: float) -> dict[str, float]:
    """Return `weight` times the nats lost by a memory with fewer bits."""
    return {f"quantised_nats/{model}/{kind}": weight, f"quantised_nats/{model}/float32": -weight}


ENCODERS = ("autoencoder", "oracle", "causal", "retriever", "untrained")
EIGHT_BITS = ("float8_e4m3", "float8_e5m2", "int8_vector")

CLAIMS = (
    Claim(
        "information",
        "An autoencoder's memory holds far more than an oracle's, an oracle's more than a causal"
        " encoder's, and a causal encoder's no more"
        " than a retriever's or an untrained encoder's.",
        (
            Inequality(
                "the autoencoder's gain is over twice the oracle's",
                _sum(_gain("autoencoder", 1), _gain("oracle", -2)),
            ),
            Inequality(
                "the oracle's gain is over the causal encoder's",
                _sum(_gain("oracle", 1), _gain("causal", -1)),
            ),
            *_alike("causal", "retriever"),
            *_alike("causal", "untrained"),
        ),
        (
            "probe_nats/constant",
            *(f"{kind}/{name}" for name in ENCODERS for kind in ("probe_nats", "probe_accuracy")),
        ),
        "information probes, one protocol for all encoders",
    ),
    Claim(
        "mixers",
        "Masked mixers autoencode far better than transformers of equal size.",
        (
            Inequality(
                "the transformer has more than twice the mixer's error rate",
                {"reconstruction_error/transformer": 1, "reconstruction_error/mixer": -2},
            ),
        ),
        tuple(
            f"{kind}/{name}"
            for name in ("mixer", "transformer")
            for kind in ("reconstruction_error", "reconstruction_nats")
        ),
        "autoencoders",
    ),
    Claim(
        "reading",
        "Memories of earlier chunks help to predict, and at most as much as the chunks themselves.",
        (
            Inequality(
                "nats without memory are over those with",
                {"next_token_nats/no_memory": 1, "next_token_nats/next_token": -1},
            ),
            Inequality(
                "nats with memory are over those with full context",
                {"next_token_nats/next_token": 1, "next_token_nats/full_context": -1},
            ),
        ),
        tuple(f"next_token_nats/{name}" for name in ("no_memory", "next_token", "full_context")),
        "memory models, next-token training",
    ),
    Claim(
        "retention",
        "Memories trained on next tokens alone do not support copying; memories trained to predict"
        " and to retain do, at little cost.",
        (
            Inequality(
                "copy accuracy is over twice that after next-token training alone",
                {"copy_accuracy/autoencoder_combined": 1, "copy_accuracy/next_token": -2},
            ),
            Inequality(
                "next-token nats are less than a tenth above those of next-token training alone",
                {"next_token_nats/next_token": 1.1, "next_token_nats/autoencoder_combined": -1},
            ),
        ),
        tuple(
            f"{kind}/{name}"
            for kind in ("copy_accuracy", "blank_copy_accuracy", "next_token_nats")
            for name in ("next_token", "autoencoder_combined")
        ),
        "combined objective",
    ),
    Claim(
        "curriculum",
        "With the curriculum a decoder learns to read a frozen autoencoder's memories; it does not"
        " learn to read a frozen causal encoder's, and without the curriculum it reads the same"
        " memories less well.",
        (
            Inequality(
                "blank copy is more accurate than from a frozen causal encoder",
                {
                    "blank_copy_accuracy/autoencoder_combined": 1,
                    "blank_copy_accuracy/causal_combined": -1,
                },
            ),
            Inequality(
                "copy is more accurate than from a frozen causal encoder",
                {"copy_accuracy/autoencoder_combined": 1, "copy_accuracy/causal_combined": -1},
            ),
            Inequality(
                "copy is more accurate than without the curriculum",
                {"copy_accuracy/autoencoder_combined": 1, "copy_accuracy/at_once": -1},
            ),
        ),
        tuple(
            f"{kind}/{name}"
            for kind in ("copy_accuracy", "blank_copy_accuracy", "next_token_nats")
            for name in ("autoencoder_combined", "causal_combined", "at_once")
        ),
        "frozen encoders and curriculum",
    ),
    Claim(
        "noise",
        "Noise on the bottleneck during training makes memories survive 8 bits per number.",
        tuple(
            Inequality(
                f"{kind} costs the plain model over twice what it costs the noise-trained one",
                _sum(_damage("plain", kind, 1), _damage("noisy", kind, -2)),
            )
            for kind in EIGHT_BITS
        ),
        tuple(
            f"quantised_nats/{name}/{kind}"
            for name in ("plain", "noisy")
            for kind in ("float32", *EIGHT_BITS)
        ),
        "quantisation of the bottleneck",
    ),
    Claim(
        "parallel",
        "Memories made in parallel are at least as good as recurrent ones.",
        (
            Inequality(
                "nats of the recurrent memory are above 0.99 of those of the parallel one",
                {"next_token_nats/recurrent": 1, "next_token_nats/next_token": -0.99},
            ),
        ),
        tuple(f"next_token_nats/{name}" for name in ("next_token", "recurrent")),
        "parallel and recurrent memory",
    ),
)


def estimate(numbers: Numbers, name: str) -> Estimate:
    """Return one number of one seed."""
    return ratio(np.asarray(numbers[name]["sums"]), np.asarray(numbers[name]["counts"]))


def judge(claim: Claim, seeds: Sequence[Numbers]) -> Verdict:
    """Judge a claim by the numbers of all seeds.

    A test holds if the whole interval of its margin and the margins of all seeds are above zero. It
    fails if the whole interval is below zero, and is undecided otherwise.

    Raises:
      KeyError: a number was not measured.
    """
    tests = tuple(_judge(test, seeds) for test in claim.tests)
    verdicts = {test.verdict for test in tests}
    verdict = next(word for word in (FAILS, OPEN, HOLDS) if word in verdicts)
    return Verdict(
        claim,
        tests,
        verdict,
        {name: tuple(estimate(one, name) for one in seeds) for name in claim.shown},
    )


def _judge(test: Inequality, seeds: Sequence[Numbers]) -> Judged:
    margins = [_margins(test, numbers) for numbers in seeds]
    whole = np.concatenate(margins)
    margin = ratio(whole, np.ones_like(whole))
    by_seed = tuple(float(one.mean()) for one in margins)
    verdict = OPEN
    if margin.low is not None and margin.high is not None:
        if margin.low > 0 and min(by_seed) > 0:
            verdict = HOLDS
        elif margin.high < 0:
            verdict = FAILS
    return Judged(test.words, margin, by_seed, verdict)


def _margins(test: Inequality, numbers: Numbers) -> np.ndarray:
    """Return [rows] values whose mean is the inequality's weighted sum of means over tokens.

    They are each row's share of every mean, times the number of rows.
    """
    parts: list[Any] = []
    for name, weight in test.terms.items():
        sums, counts = (np.asarray(numbers[name][key], np.float64) for key in ("sums", "counts"))
        parts.append(weight * sums / counts.mean())
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"{test.words!r}: got numbers of {sorted(shapes)} rows, expected equal rows to compare"
            " them row by row"
        )
    return np.sum(parts, axis=0)
