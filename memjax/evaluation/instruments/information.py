"""Nats, accuracy and information of texts given their memories, beside scores without a memory.

Information is I = 1 - CE / zero, the share of a zero's nats that a memory removes. It depends on
the zero, so there are several. The published one, a predictor of random logits, is worse than a
unigram. A decoder with one constant memory has the statistics of its training text only.

Shapes: N text, B text of a batch, T token of a text, M vector of a text, E its width, V vocabulary,
P column of a curve, Z constant memory.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from memjax.inference.codec import MemoryCodec, Params, TextSums, scores_of, text_sums
from memjax.inference.texts import check_texts, over_batches
from memjax.objectives.terms import Scores
from memjax.objectives.uncertainty import CONFIDENCE, RESAMPLES, Estimate, mean, ratio

DECILES = 10
NOTHING = Estimate(math.nan, None, None, 0)
"""Estimate of a column without counted tokens."""


def zero_nats(vocabulary: int) -> float:
    """Return the nats per token of logits drawn uniformly from [0, 1): ln V + ln(e - 1) - 1/2.

    It is the zero of Badger 2026, information.
    """
    return math.log(vocabulary) + math.log(math.e - 1) - 0.5


def entropy_ratio(nats: float, vocabulary: int) -> float:
    """Return I_e = 1 - CE / CE_0 of `nats` per token, with `zero_nats` as CE_0.

    1 is a perfect prediction; below 0 is worse than random logits.
    """
    return 1 - nats / zero_nats(vocabulary)


def information_of(nats: Estimate, vocabulary: int) -> Estimate:
    """Return `entropy_ratio` of an estimate.

    It decreases with the nats, so the interval's ends change places.
    """
    low, high = (None if x is None else entropy_ratio(x, vocabulary) for x in (nats.high, nats.low))
    return Estimate(entropy_ratio(nats.value, vocabulary), low, high, nats.texts)


class TextScores(NamedTuple):
    """Scores of every token of some texts; all [N, T]."""

    nats: Any
    correct: Any
    """1 where the label is the argmax."""
    weight: Any
    """1 where the label is counted."""
    labels: Any

    def sums(self, values: Float[np.ndarray, "N T"]) -> Float[np.ndarray, " N"]:
        """Return the sum over the counted tokens of each text."""
        return (np.where(self.weight > 0, values, 0) * self.weight).sum(axis=1, dtype=np.float64)

    def of_texts(self) -> TextSums:
        """Return the sums of each text, [N] each."""
        tokens = self.weight.sum(axis=1, dtype=np.float64)
        return TextSums(self.sums(self.nats), self.sums(self.correct), tokens)


@dataclasses.dataclass(frozen=True)
class Held:
    """Estimates of texts given their memories."""

    nats: Estimate
    """Nats per token, given the text's own memory."""
    accuracy: Estimate
    """Share of all tokens that are the argmax, each token with the same weight."""
    information: Estimate
    """I_e, relative to random logits; below 0 is worse than these."""


def held(sums: TextSums, vocabulary: int) -> Held:
    """Return the estimates of texts from their sums, [N] each."""
    nats = ratio(sums.nats, sums.tokens)
    return Held(nats, ratio(sums.correct, sums.tokens), information_of(nats, vocabulary))


def token_scores(
    system: MemoryCodec,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    batch: int,
) -> TextScores:
    """Score texts given their own memories, one jitted call per batch.

    Args:
      system: encoder and decoder.
      params: its parameters.
      texts: texts of `system.length` tokens each.
      batch: texts per batch.

    Raises:
      TextsError: there are no texts, or they have another length.
    """
    check_texts(system, texts)
    return over_batches(functools.partial(_own, system, params), texts, batch, "scores")


@functools.partial(jax.jit, static_argnums=0)
def _own(system: MemoryCodec, params: Params, tokens: jax.Array) -> TextScores:
    return flat(scores_of(system, params, tokens))


def flat(scores: Scores) -> TextScores:
    """Return the scores of texts, [B, T] each."""
    parts = scores.nats, scores.is_argmax, scores.weight, scores.labels
    return TextScores(*(jnp.asarray(x)[:, 0] for x in parts))


def curve(
    numerators: Float[np.ndarray, "N P"], denominators: Float[np.ndarray, "N P"], seed: int = 0
) -> tuple[Estimate, ...]:
    """Return `ratio` of every column, with the same resamples of texts for all columns.

    A column without denominator is `NOTHING`. A resample is the count of each text, so that all
    resamples of all columns are one product of matrices.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    texts, counted = len(above), (below != 0).sum(axis=0)
    drawn = (
        np.random.default_rng(seed)
        .multinomial(texts, np.full(texts, 1 / texts), RESAMPLES)
        .astype(np.float64)
    )
    totals = drawn @ below
    # A resample without a text that has tokens in a column is left out for that column.
    resampled = np.divide(drawn @ above, totals, out=np.full_like(totals, np.nan), where=totals > 0)
    outside = (1 - CONFIDENCE) / 2
    ends = [outside, 1 - outside]

    def estimate(column: int, count: int) -> Estimate:
        if not count:
            return NOTHING
        low, high = (
            np.nanquantile(resampled[:, column], ends).tolist() if count > 1 else (None, None)
        )
        value = above[:, column].sum() / below[:, column].sum()
        return Estimate(float(value), low, high, count)

    return tuple(estimate(column, count) for column, count in enumerate(counted.tolist()))


def frequency_deciles(
    labels: np.ndarray, weight: np.ndarray, vocabulary: int
) -> Int[np.ndarray, " V"]:
    """Return the decile of training text of every id: 0 has the most frequent ids.

    Each decile covers a tenth of all tokens. An id that covers more is in the decile of its middle,
    so that some deciles may be empty. Ids absent from training text are in the last.

    Args:
      labels: labels of training texts.
      weight: 1 where they are counted.
      vocabulary: V.
    """
    counts = np.bincount(labels[weight > 0], minlength=vocabulary).astype(np.float64)
    order = np.argsort(-counts, kind="stable")
    share = counts[order] / max(counts.sum(), 1)
    deciles = np.empty(vocabulary, np.int64)
    # Rounded, so that the last bit of a sum does not decide for a middle on a border.
    middle = np.round(np.cumsum(share) - share / 2, 12)
    deciles[order] = np.minimum((middle * DECILES).astype(np.int64), DECILES - 1)
    deciles[counts == 0] = DECILES - 1
    return deciles


def by_decile(
    values: Float[np.ndarray, "N T"], weight: np.ndarray, deciles: Int[np.ndarray, "N T"]
) -> tuple[Estimate, ...]:
    """Return the mean of `values` over the tokens of each decile, the most frequent first."""
    member = [(deciles == decile) * weight for decile in range(DECILES)]
    above = np.stack([(np.where(one > 0, values, 0) * one).sum(axis=1) for one in member], axis=1)
    return curve(above, np.stack([one.sum(axis=1) for one in member], axis=1))


def unigram_nats(
    train: Int[np.ndarray, "A T"],
    train_weight: np.ndarray,
    labels: Int[np.ndarray, "N T"],
    vocabulary: int,
    pad: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return nats [N, T] of labels under the unigram, and under the unigram of each position.

    The unigram adds one to the training count of every id except padding. A position's unigram adds
    as many tokens, V - 1, in the proportions of the unigram: adding one to each id would make it no
    better than chance where texts are few.
    """
    seen = train_weight > 0
    counts = np.bincount(train[seen], minlength=vocabulary).astype(np.float64) + 1
    counts[pad] -= 1
    probability = counts / counts.sum()
    # A table [T, V] may be large; only occurring pairs of position and id are kept.
    positions = np.arange(train.shape[1]) * np.int64(vocabulary)
    pairs, pair_counts = np.unique((train + positions)[seen], return_counts=True)
    wanted = labels + positions
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    here = np.where(pairs[at] == wanted, pair_counts[at], 0)
    at_position = (here + (vocabulary - 1) * probability[labels]) / (
        seen.sum(axis=0) + vocabulary - 1
    )
    with np.errstate(divide="ignore"):  # For padding, which has no weight.
        return -np.log(probability[labels]), -np.log(at_position)


@dataclasses.dataclass(frozen=True)
class Zero:
    """A score without any memory of the text, and the gain of the text's own memory over it."""

    nats: Estimate
    """Nats per token."""
    information: Estimate
    """1 - CE / `nats`, paired over texts."""


@dataclasses.dataclass(frozen=True)
class Information(Held):
    """Scores of texts given their memories, beside zeros."""

    zeros: Mapping[str, Zero]
    """Zeros: `unigram`, `position_unigram`, `mean_memory` and `zero_memory`.

    The unigrams are counted on training texts. The same decoder reads the mean memory of training
    texts, or zeros. Its score with a constant memory is an upper bound of its nats without one: the
    best constant, or a decoder trained without memory, may have a lower score.
    """
    best: str
    """Zero of fewest nats on the measured texts.

    This selection can only reduce the gain over it.
    """
    gained: Estimate
    """Nats per token below the best zero."""
    bits_a_dimension: Estimate
    """Bits gained over the best zero per text, divided by the M * E numbers of its memory."""
    by_position: tuple[Estimate, ...]
    """Accuracy at each of the T positions."""
    by_frequency: tuple[Estimate, ...]
    """Accuracy of the tokens of each decile of training text, the most frequent ids first.

    See `frequency_deciles`.
    """


def information(
    system: MemoryCodec,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    train_texts: Int[np.ndarray, "A T"],
    batch: int,
) -> Information:
    """Measure texts, and compare them with zeros from training texts.

    Args:
      system: encoder and decoder.
      params: its parameters.
      texts: texts of `system.length` tokens each.
      train_texts: training texts of the same length, for unigrams, mean memory and frequencies.
      batch: texts per batch.

    Raises:
      TextsError: there are no texts of one kind, or they have another length.
    """
    check_texts(system, texts)
    check_texts(system, train_texts)
    mean_memory, labels, weight = _of_training(system, params, train_texts, batch)
    constants = jnp.stack([mean_memory, np.zeros_like(mean_memory)])
    of_batch = functools.partial(_own_and_constant, system, params, constants)
    scores, constant_nats = over_batches(of_batch, texts, batch, "information")
    sums = scores.of_texts()
    unigram, position_unigram = unigram_nats(
        labels, weight, scores.labels, system.vocabulary, system.ids.pad
    )
    without = {
        "unigram": scores.sums(unigram),
        "position_unigram": scores.sums(position_unigram),
        "mean_memory": constant_nats[:, 0].astype(np.float64),
        "zero_memory": constant_nats[:, 1].astype(np.float64),
    }
    best = min(without, key=lambda name: without[name].sum())
    gained = without[best] - sums.nats
    deciles = frequency_deciles(labels, weight, system.vocabulary)
    return Information(
        **vars(held(sums, system.vocabulary)),
        zeros={
            name: Zero(ratio(zero, sums.tokens), ratio(zero - sums.nats, zero))
            for name, zero in without.items()
        },
        best=best,
        gained=ratio(gained, sums.tokens),
        bits_a_dimension=mean(gained / (math.prod(system.shape) * math.log(2))),
        by_position=curve(scores.correct * scores.weight, scores.weight),
        by_frequency=by_decile(scores.correct, scores.weight, deciles[scores.labels]),
    )


def _of_training(
    system: MemoryCodec, params: Params, texts: np.ndarray, batch: int
) -> tuple[Float[np.ndarray, "M E"], np.ndarray, np.ndarray]:
    """Return the mean memory, and the labels and weights of training texts."""

    def of_batch(numbers: np.ndarray) -> tuple[jax.Array, ...]:
        # The last batch is filled up: those texts are not counted twice.
        kept = numbers == numbers[0] + np.arange(len(numbers))
        return _training_batch(system, params, texts[numbers], kept)

    sums, labels, weights = over_batches(of_batch, np.arange(len(texts)), batch, "training texts")
    mean_memory = sums.sum(axis=0, dtype=np.float64) / len(texts)
    return mean_memory.astype(np.float32), labels, weights


@functools.partial(jax.jit, static_argnums=0)
def _training_batch(
    system: MemoryCodec, params: Params, tokens: jax.Array, kept: jax.Array
) -> tuple[jax.Array, ...]:
    """Return the sum of the memories [1, M, E], and labels and weights, [B, T] each."""
    memory = system.encode(params, tokens).astype(jnp.float32)
    # The function returns labels and weights only; XLA never computes the scores.
    _, _, weight, labels = flat(system.score(params, memory, tokens))
    return jnp.sum(memory * kept[:, None, None], axis=0, keepdims=True), labels, weight


@functools.partial(jax.jit, static_argnums=0)
def _own_and_constant(
    system: MemoryCodec, params: Params, constants: Float[jax.Array, "Z M E"], tokens: jax.Array
) -> tuple[TextScores, jax.Array]:
    """Return scores given the text's own memory, and nats [B, Z] given each constant memory."""
    memory = system.encode(params, tokens)

    def given(constant: jax.Array) -> jax.Array:
        same = jnp.broadcast_to(constant.astype(memory.dtype), memory.shape)
        return text_sums(system.score(params, same, tokens)).nats

    return flat(system.score(params, memory, tokens)), jax.lax.map(given, constants).T
