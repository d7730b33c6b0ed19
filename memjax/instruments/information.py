"""How much of a text its memory holds: nats, accuracy and information, each beside what is scored without any memory of the text.

Information is I = 1 - CE / zero, the share of a zero's nats that a memory takes away. What it says depends on the zero, so there are
several: the published one, a predictor of random logits, is beaten by a unigram already; a decoder that is given the same memory
whatever the text knows its training text and nothing of this one.

Shapes: N text, B text of a batch, T token of a text, M vector of a text, E its width, V vocabulary, P column of a curve, Z constant memory.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from memjax.instruments.system import Params, System, scores_of
from memjax.instruments.texts import TextsError, batches, trimmed
from memjax.instruments.uncertainty import CONFIDENCE, RESAMPLES, Estimate, mean, ratio
from memjax.objectives.terms import Scores

DECILES = 10
NOTHING = Estimate(math.nan, None, None, 0)
"""Of a column in which no token counts."""


def zero_nats(vocabulary: int) -> float:
    """Nats a token of logits drawn uniformly from [0, 1): ln V + ln(e - 1) - 1/2 (the zero of Badger 2026, information)."""
    return math.log(vocabulary) + math.log(math.e - 1) - 0.5


def entropy_ratio(nats: float, vocabulary: int) -> float:
    """I_e = 1 - CE / CE_0 of `nats` a token, with `zero_nats` as CE_0: 1 is all of a text; below 0 is worse than random logits."""
    return 1 - nats / zero_nats(vocabulary)


def information_of(nats: Estimate, vocabulary: int) -> Estimate:
    """`entropy_ratio` of an estimate; it falls where nats rise, so the interval's ends change places."""
    low, high = (None if x is None else entropy_ratio(x, vocabulary) for x in (nats.high, nats.low))
    return Estimate(entropy_ratio(nats.value, vocabulary), low, high, nats.texts)


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """Every token of some texts, on the host; all [N, T]."""

    nats: np.ndarray
    correct: np.ndarray
    """1 where the label was the most likely token."""
    weight: np.ndarray
    """1 where the label counts."""
    labels: np.ndarray

    @property
    def counts(self) -> Float[np.ndarray, " N"]:
        """Tokens of each text that count."""
        return self.weight.sum(axis=1, dtype=np.float64)

    def sums(self, values: Float[np.ndarray, "N T"]) -> Float[np.ndarray, " N"]:
        """Of each text, over the tokens that count."""
        return (np.where(self.weight > 0, values, 0) * self.weight).sum(axis=1, dtype=np.float64)

    def mean_nats(self) -> Estimate:
        """Nats a token."""
        return ratio(self.sums(self.nats), self.counts)

    def accuracy(self) -> Estimate:
        """Share of all tokens that were the most likely one; no text, batch or position weighs more than its tokens."""
        return ratio(self.sums(self.correct), self.counts)


def token_scores(
    system: System, params: Params, texts: Int[np.ndarray, "N T"], batch: int, advance: Callable[[], None] = lambda: None
) -> TokenScores:
    """Texts scored given their own memories; one call a batch.

    Args:
      system: what is measured.
      params: its parameters.
      texts: of `system.length` tokens each.
      batch: texts at a time.
      advance: called when a batch is done.

    Raises:
      TextsError: there are no texts, or they are of another length.
    """
    check_texts(system, texts)
    return TokenScores(*over_batches(functools.partial(_own, system, params), texts, batch, advance))


def over_batches(
    function: Callable[[np.ndarray], tuple[jax.Array, ...]], texts: np.ndarray, size: int, advance: Callable[[], None]
) -> tuple[np.ndarray, ...]:
    """What `function` of a batch returns, [B, ...] each, for all texts, [N, ...] each, on the host."""
    parts = []
    for batch in batches(texts, size):
        parts.append(jax.device_get(function(batch)))
        advance()
    return tuple(trimmed(part, len(texts)) for part in zip(*parts, strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _own(system: System, params: Params, tokens: jax.Array) -> tuple[jax.Array, ...]:
    return flat(scores_of(system, params, tokens))


def flat(scores: Scores) -> tuple[jax.Array, ...]:
    """Nats, correct, weight and labels, [B, T] each."""
    parts = scores.nats, scores.correct, scores.weight, scores.labels
    return tuple(jnp.asarray(x)[:, 0] for x in parts)


def check_texts(system: System, texts: np.ndarray) -> None:
    """Raises TextsError if there are no texts or a text is not what the system holds."""
    if not len(texts):
        raise TextsError("there are no texts to measure; give at least one")
    if texts.shape[1:] != (system.length,):
        raise TextsError(
            f"texts of shape {texts.shape}: this system holds texts of {system.length} tokens, [N, {system.length}]"
        )


def curve(numerators: Float[np.ndarray, "N P"], denominators: Float[np.ndarray, "N P"], seed: int = 0) -> tuple[Estimate, ...]:
    """`ratio` of every column, with the same texts drawn for all; `NOTHING` where a column has no denominator.

    A resample is how often each text is drawn, so that all resamples of all columns are one product of matrices.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    texts, counted = len(above), (below != 0).sum(axis=0)
    drawn = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), RESAMPLES).astype(np.float64)
    totals = drawn @ below
    # A resample may lack every text in which a column has tokens: it says nothing about that column.
    resampled = np.divide(drawn @ above, totals, out=np.full_like(totals, np.nan), where=totals > 0)
    outside = (1 - CONFIDENCE) / 2
    found = []
    for column, count in enumerate(counted.tolist()):
        if not count:
            found.append(NOTHING)
            continue
        low, high = np.nanquantile(resampled[:, column], [outside, 1 - outside]) if count > 1 else (None, None)
        value = above[:, column].sum() / below[:, column].sum()
        found.append(Estimate(float(value), low if low is None else float(low), high if high is None else float(high), count))
    return tuple(found)


def frequency_deciles(labels: np.ndarray, weight: np.ndarray, vocabulary: int) -> Int[np.ndarray, " V"]:
    """The tenth of training text that an id belongs to: 0 is the most frequent ids, which make up a tenth of all tokens, and so on.

    An id that makes up more than a tenth is in the tenth where its middle lies, so that some tenths may have none. Ids that training
    text lacks are in the last.

    Args:
      labels: of training texts.
      weight: 1 where they count.
      vocabulary: V.
    """
    counts = np.bincount(labels[weight > 0], minlength=vocabulary).astype(np.float64)
    order = np.argsort(-counts, kind="stable")
    share = counts[order] / max(counts.sum(), 1)
    deciles = np.empty(vocabulary, np.int64)
    # Rounded, so that a middle on a border does not fall by the last bit of a sum.
    middle = np.round(np.cumsum(share) - share / 2, 12)
    deciles[order] = np.minimum((middle * DECILES).astype(np.int64), DECILES - 1)
    deciles[counts == 0] = DECILES - 1
    return deciles


def by_decile(values: Float[np.ndarray, "N T"], weight: np.ndarray, deciles: Int[np.ndarray, "N T"]) -> tuple[Estimate, ...]:
    """Mean of `values` over the tokens of each decile, the most frequent first."""
    member = [(deciles == decile) * weight for decile in range(DECILES)]
    above = np.stack([(np.where(one > 0, values, 0) * one).sum(axis=1) for one in member], axis=1)
    return curve(above, np.stack([one.sum(axis=1) for one in member], axis=1))


def unigram_nats(
    train: Int[np.ndarray, "A T"], train_weight: np.ndarray, labels: Int[np.ndarray, "N T"], vocabulary: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nats [N, T] of labels under (the unigram, the unigram of each position) of training labels.

    The unigram counts every id once more than it was seen, padding apart. A position's adds to its own counts as many tokens, V - 1,
    shared out as the unigram says: adding one to each would make it no better than chance where texts are few.
    """
    seen = train_weight > 0
    counts = np.bincount(train[seen], minlength=vocabulary).astype(np.float64) + 1
    counts[pad] -= 1
    probability = counts / counts.sum()
    # A table [T, V] may be large; only pairs of position and id that were seen are kept.
    positions = np.arange(train.shape[1]) * np.int64(vocabulary)
    pairs, pair_counts = np.unique((train + positions)[seen], return_counts=True)
    wanted = labels + positions
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    here = np.where(pairs[at] == wanted, pair_counts[at], 0)
    at_position = (here + (vocabulary - 1) * probability[labels]) / (seen.sum(axis=0) + vocabulary - 1)
    with np.errstate(divide="ignore"):  # Of padding, which has no weight.
        return -np.log(probability[labels]), -np.log(at_position)


@dataclasses.dataclass(frozen=True)
class Zero:
    """What is scored without any memory of the text, and how far its own memory goes beyond that."""

    nats: Estimate
    """A token."""
    information: Estimate
    """1 - CE / `nats`, paired over texts."""


@dataclasses.dataclass(frozen=True)
class Information:
    """What the memories of some texts hold of them."""

    nats: Estimate
    """A token, given the text's own memory."""
    accuracy: Estimate
    """Share of all tokens that were the most likely one."""
    information: Estimate
    """I_e, against random logits."""
    zeros: Mapping[str, Zero]
    """`unigram` and `position_unigram`, counted on training texts; `mean_memory`, the mean over training texts, and `zero_memory`,
    all zeros, read by the same decoder. What the decoder makes of a constant memory is an upper bound of what it knows without one:
    the best constant, or a decoder trained without memory, may score lower."""
    best: str
    """The zero of fewest nats, chosen on the texts measured, which can only make what is gained over it look smaller."""
    gained: Estimate
    """Nats a token below the best zero."""
    bits_a_dimension: Estimate
    """Bits gained over the best zero in a whole text, for each of the M * E numbers of its memory."""
    by_position: tuple[Estimate, ...]
    """Accuracy at each of the T positions."""
    by_frequency: tuple[Estimate, ...]
    """Accuracy of the tokens of each tenth of training text, those of the most frequent ids first (`frequency_deciles`)."""


def information(
    system: System,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    train_texts: Int[np.ndarray, "A T"],
    batch: int,
    advance: Callable[[], None] = lambda: None,
) -> Information:
    """Measures texts against zeros taken from training texts.

    Args:
      system: what is measured.
      params: its parameters.
      texts: of `system.length` tokens each.
      train_texts: as long, for the unigrams, the mean memory and the frequencies.
      batch: texts at a time.
      advance: called after every batch of training texts and then of texts.

    Raises:
      TextsError: there are no texts of the one kind or the other, or they are of another length.
    """
    check_texts(system, texts)
    check_texts(system, train_texts)
    mean_memory, labels, weight = _of_training(system, params, train_texts, batch, advance)
    constants = jnp.stack([mean_memory, np.zeros_like(mean_memory)])
    found = over_batches(functools.partial(_own_and_constant, system, params, constants), texts, batch, advance)
    scores, constant_nats = TokenScores(*found[:4]), found[4]
    nats, counts = scores.sums(scores.nats), scores.counts
    unigram, position_unigram = unigram_nats(labels, weight, scores.labels, system.vocabulary, system.ids.pad)
    without = {
        "unigram": scores.sums(unigram),
        "position_unigram": scores.sums(position_unigram),
        "mean_memory": constant_nats[:, 0].astype(np.float64),
        "zero_memory": constant_nats[:, 1].astype(np.float64),
    }
    best = min(without, key=lambda name: without[name].sum())
    gained = without[best] - nats
    deciles = frequency_deciles(labels, weight, system.vocabulary)
    return Information(
        nats=scores.mean_nats(),
        accuracy=scores.accuracy(),
        information=information_of(scores.mean_nats(), system.vocabulary),
        zeros={name: Zero(ratio(zero, counts), ratio(zero - nats, zero)) for name, zero in without.items()},
        best=best,
        gained=ratio(gained, counts),
        bits_a_dimension=mean(gained / (math.prod(system.shape) * math.log(2))),
        by_position=curve(scores.correct * scores.weight, scores.weight),
        by_frequency=by_decile(scores.correct, scores.weight, deciles[scores.labels]),
    )


def _of_training(
    system: System, params: Params, texts: np.ndarray, batch: int, advance: Callable[[], None]
) -> tuple[Float[np.ndarray, "M E"], np.ndarray, np.ndarray]:
    """The mean memory, and the labels and weights as the system is asked for them."""
    total, labels, weights, left = np.zeros(system.shape), [], [], len(texts)
    for tokens in batches(texts, batch):
        kept = np.arange(len(tokens)) < left
        part, label, weight = jax.device_get(_training_batch(system, params, tokens, kept))
        total += part
        labels.append(label)
        weights.append(weight)
        left -= len(tokens)
        advance()
    mean_memory = (total / len(texts)).astype(np.float32)
    return mean_memory, trimmed(labels, len(texts)), trimmed(weights, len(texts))


@functools.partial(jax.jit, static_argnums=0)
def _training_batch(system: System, params: Params, tokens: jax.Array, kept: jax.Array) -> tuple[jax.Array, ...]:
    memory = system.encode(params, tokens).astype(jnp.float32)
    # Only labels and weights leave; the scores behind them are never computed.
    _, _, weight, labels = flat(system.score(params, memory, tokens))
    return jnp.sum(memory * kept[:, None, None], axis=0), labels, weight


@functools.partial(jax.jit, static_argnums=0)
def _own_and_constant(
    system: System, params: Params, constants: Float[jax.Array, "Z M E"], tokens: jax.Array
) -> tuple[jax.Array, ...]:
    """Scores given the text's own memory, and nats [B, Z] of whole texts given each constant one."""
    memory = system.encode(params, tokens)

    def given(constant: jax.Array) -> jax.Array:
        scores = system.score(params, jnp.broadcast_to(constant.astype(memory.dtype), memory.shape), tokens)
        return jnp.sum(scores.nats * scores.weight, axis=(1, 2))

    return *flat(system.score(params, memory, tokens)), jax.lax.map(given, constants).T
