"""Information probe: a decoder trained from scratch reconstructs texts from frozen vectors.

All encoders are probed by one protocol (probe_decoders.py), so that their numbers are comparable
(the decoders of Badger 2026, information, differ). Controls give the numbers their meaning:

| control | vectors of a text | decoder |
|---|---|---|
| constant | zero for every text: only statistics of the training text | trained on zeros |
| untrained | from the same architecture before training | trained on those |
| shuffled | those of another text | the decoder of the real vectors |
| random_tokens | from texts of random tokens, which are the targets | the decoder of real vectors |

The first is the protocol's own zero: the gain over it comes from the vectors. `shuffled` is not a
zero: its decoder relies on wrong vectors, and loses more than a decoder that ignores them.

Shapes: T text, K vector of a text, E its width, L token, B texts of a batch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from memjax.data import evenly_spaced
from memjax.evaluation.instruments.encoders import VectorReader, vectors_of
from memjax.evaluation.instruments.information import Held, held
from memjax.evaluation.instruments.probe_decoders import (
    Decoder,
    Fitted,
    ProbeError,
    Protocol,
    fit,
    make_decoder,
    score_sums,
)
from memjax.evaluation.instruments.vectors import Vectors, VectorsError, check_alike
from memjax.inference import texts as text_sources
from memjax.inference.codec import TextSums
from memjax.objectives.uncertainty import Estimate, mean, ratio
from memjax.sharding import divide

CONTROLS = ("constant", "untrained", "shuffled", "random_tokens")
WITH_ENCODER = ("untrained", "random_tokens")
"""Controls that run the encoder; the others need its vectors only."""
_STATISTICS = 4096
"""Texts, at most, over which means and deviations are computed."""
_LEAST_DEVIATION = 1e-3
"""Least deviation, relative to the typical one; a smaller one is rounding and is not scaled up."""


@dataclasses.dataclass(frozen=True)
class Run(Held):
    """The decoder of one seed, on held-out texts."""

    seed: int
    steps: int
    """Updates of the decoder."""
    converged: bool
    """True if the loss converged within `Protocol.steps`; if not, more steps might improve it."""
    curve: tuple[tuple[int, float], ...]
    """(step, nats per token) on the texts set aside for stopping, at the constant rate."""


@dataclasses.dataclass(frozen=True)
class Reading(Held):
    """Scores of one kind of vectors.

    Estimates are over texts; a text's number is its mean over seeds.
    """

    runs: tuple[Run, ...]
    nats_spread: float
    """Largest minus smallest of the seeds' means."""
    accuracy_spread: float


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Result of one encoder's vectors under one protocol."""

    encoder: str
    protocol: Protocol
    vocabulary: int
    length: int
    """L."""
    shape: tuple[int, int]
    """(K, E)."""
    train_texts: int
    """Texts for training, with those set aside for stopping."""
    held_out_texts: int
    own: Reading
    controls: dict[str, Reading]
    gains: dict[str, Estimate]
    """Nats per token of a control above those of the real vectors, paired over texts."""
    information_over_constant: Estimate | None
    """1 - CE / CE of the constant: the share of the zero's nats that the vectors remove."""
    bits_a_dimension: Estimate | None
    """Bits gained over the constant per text, divided by the K * E numbers of its vectors."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A trained decoder, with the standardisation of its vectors."""

    decoder: Decoder
    fitted: Fitted
    take: Callable[[Vectors, np.ndarray | None, np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Function from (texts, the text [T] whose vectors each gets, indices) to its inputs."""


def probe(
    train: Vectors,
    held_out: Vectors,
    protocol: Protocol | None = None,
    seeds: Sequence[int] = (0, 1),
    controls: Sequence[str] = ("constant", "shuffled"),
    encoder: VectorReader | None = None,
) -> ProbeResult:
    """Train decoders on the vectors of some texts and report their scores on other texts.

    A tenth of the training texts is set aside to determine the stop; held-out texts determine
    nothing. Processes divide the decoders.

    Args:
      train: vectors and tokens to train on.
      held_out: vectors of other texts by the same encoder.
      protocol: settings of the decoder; by default `Protocol()`.
      seeds: one decoder per seed is trained for every kind of vectors.
      controls: names in CONTROLS.
      encoder: the encoder of the vectors, for the controls that run it (WITH_ENCODER).

    Raises:
      ProbeError: a control is unknown or needs the encoder, there are no seeds, or a loss is not
        finite.
      VectorsError: the two sets differ in kind, or texts are too few.
    """
    protocol = protocol or Protocol()
    for name in controls:
        ProbeError.require_one_of("controls", name, CONTROLS)
        if name in WITH_ENCODER and encoder is None:
            raise ProbeError(
                f"controls: {name!r} needs the encoder, expected a checkpoint and not vectors. Pass"
                " the checkpoint, or leave the control out"
            )
    controls = [name for name in CONTROLS if name in controls]
    ProbeError.require(seeds, "seeds: none, expected at least one")
    check_alike(train, held_out)
    if encoder is not None and (encoder.length, encoder.shape, encoder.model.vocab_size) != (
        train.length,
        train.shape,
        train.vocabulary,
    ):
        raise ProbeError(
            f"encoder: {encoder.name}, expected the encoder of the vectors of {train.name}. Pass"
            " that encoder, or vectors of this one"
        )
    VectorsError.require(
        len(held_out) >= 2,
        f"{held_out.name}: one held-out text, expected two or more, since a control exchanges"
        " their vectors",
    )
    vocabulary = max(train.vocabulary, held_out.vocabulary)
    trained: dict[str, tuple[Vectors, Vectors, bool]] = {"own": (train, held_out, False)}
    if "constant" in controls:
        trained["constant"] = train, held_out, True
    if encoder and "untrained" in controls:
        fresh = encoder.untrained(seeds[0])
        known, asked = (vectors_of(fresh, part.all_tokens()) for part in (train, held_out))
        trained["untrained"] = known, asked, False
    scored: dict[str, tuple[Vectors, np.ndarray | None]] = {}
    if "shuffled" in controls:
        scored["shuffled"] = held_out, others(len(held_out), seeds[0])
    if encoder and "random_tokens" in controls:
        tokens = text_sources.random(
            len(held_out), train.length, encoder.model.vocab_size, encoder.model.ids, seeds[0]
        )
        scored["random_tokens"] = vectors_of(encoder, tokens), None

    def trial(name: str, seed: int) -> dict[tuple[str, int], tuple[Fitted, TextSums]]:
        """Return one decoder, without its parameters, and its scores of each kind of vectors."""
        texts, asked, constant = trained[name]
        label = f"{name}, seed {seed}"
        reader = train_reader(texts, protocol, seed, constant, vocabulary, label)
        fitted = dataclasses.replace(reader.fitted, params={})
        found = {name: score_texts(reader, asked)}
        for other in scored if name == "own" else ():
            found[other] = score_texts(reader, *scored[other])
        return {(kind, seed): (fitted, sums) for kind, sums in found.items()}

    tasks = [functools.partial(trial, name, seed) for name in trained for seed in seeds]
    parts = {key: part for one in divide(tasks) for key, part in one.items()}
    kinds = {name: [parts[name, seed] for seed in seeds] for name in ("own", *controls)}
    sums = {name: [one for _, one in runs] for name, runs in kinds.items()}
    readings = {
        name: _reading(seeds, [fitted for fitted, _ in runs], sums[name], vocabulary)
        for name, runs in kinds.items()
    }
    return ProbeResult(
        encoder=train.info.encoder or train.name,
        protocol=protocol,
        vocabulary=vocabulary,
        length=train.length,
        shape=train.shape,
        train_texts=len(train),
        held_out_texts=len(held_out),
        own=readings.pop("own"),
        controls=readings,
        **_compared({name: _over_seeds(parts) for name, parts in sums.items()}, train.shape),
    )


def train_reader(
    train: Vectors,
    protocol: Protocol,
    seed: int = 0,
    constant: bool = False,
    vocabulary: int = 0,
    name: str = "decoder",
) -> Reader:
    """Train a decoder from scratch on all texts but the last, which determine the stop.

    Args:
      train: vectors and tokens.
      protocol: settings of the decoder.
      seed: seed of its parameters and of the order of texts.
      constant: True trains it on zeros in place of vectors.
      vocabulary: V; 0 is that of `train`.
      name: the label of the progress bar.

    Raises:
      ProbeError: the loss is not finite.
      VectorsError: texts are too few, or cannot be read.
    """
    aside = max(1, min(protocol.stop_texts, int(protocol.stop_share * len(train))))
    VectorsError.require(
        aside < len(train),
        f"{train.name}: {len(train)} texts to train on, expected two or more, since one is set"
        " aside to determine the stop",
    )
    border = len(train) - aside
    ids: Any = train.info.ids
    decoder = make_decoder(protocol, vocabulary or train.vocabulary, train.length, train.shape, ids)
    take = functools.partial(_take, *_moments(train, protocol), constant)
    read = functools.partial(take, train.part(0, border), None)
    stop = functools.partial(take, train.part(border, len(train)), None)
    return Reader(decoder, fit(decoder, read, border, stop, aside, seed, name), take)


def score_texts(
    reader: Reader, texts: Vectors, other: Int[np.ndarray, " T"] | None = None
) -> TextSums:
    """Return sums of a decoder's scores of each text, [T] each, in float64.

    Args:
      reader: the decoder.
      texts: their vectors and tokens.
      other: for each text, the index of the text whose vectors it gets; by default its own.

    Raises:
      VectorsError: they cannot be read.
    """
    take = functools.partial(reader.take, texts, other)
    return score_sums(reader.decoder, reader.fitted.params, take, len(texts))


def _take(
    average: np.ndarray,
    deviation: np.ndarray,
    constant: bool,
    texts: Vectors,
    other: np.ndarray | None,
    indices: Int[np.ndarray, " B"],
) -> tuple[Float[np.ndarray, "B K E"], Int[np.ndarray, "B L"]]:
    """Return standardised vectors, as a decoder reads them, and tokens."""
    vectors, tokens = texts.take(indices)
    if constant:
        return np.zeros_like(vectors), tokens
    if other is not None:
        vectors, _ = texts.take(other[indices])
    return (vectors - average) / deviation, tokens


def _moments(
    train: Vectors, protocol: Protocol
) -> tuple[Float[np.ndarray, "K E"], Float[np.ndarray, "K E"]]:
    """Return the mean and the divisor of every number."""
    if not protocol.standardise:
        return np.zeros(train.shape, np.float32), np.ones(train.shape, np.float32)
    some = np.array(evenly_spaced(len(train), _STATISTICS))
    vectors = train.take(some)[0].astype(np.float64)
    deviation = vectors.std(axis=0)
    typical = math.sqrt(float((deviation**2).mean()))
    deviation = (
        np.maximum(deviation, typical * _LEAST_DEVIATION) if typical else np.ones_like(deviation)
    )
    return vectors.mean(axis=0).astype(np.float32), deviation.astype(np.float32)


def others(count: int, seed: int = 0) -> Int[np.ndarray, " T"]:
    """Return another text for each of `count` texts: a random permutation of one cycle.

    Every text occurs once, and none is its own.
    """
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, np.int64)
    other[order] = np.roll(order, 1)
    return other


def _reading(
    seeds: Sequence[int], fits: Sequence[Fitted], sums: Sequence[TextSums], vocabulary: int
) -> Reading:
    runs = tuple(
        Run(
            **vars(held(one, vocabulary)),
            seed=seed,
            steps=fitted.steps,
            converged=fitted.converged,
            curve=fitted.curve,
        )
        for seed, fitted, one in zip(seeds, fits, sums, strict=True)
    )
    return Reading(
        **vars(held(_over_seeds(sums), vocabulary)),
        runs=runs,
        nats_spread=float(np.ptp([run.nats.value for run in runs])),
        accuracy_spread=float(np.ptp([run.accuracy.value for run in runs])),
    )


def _over_seeds(sums: Sequence[TextSums]) -> TextSums:
    """Return each text's means over seeds."""
    return TextSums(*np.mean(sums, axis=0))


def _compared(sums: dict[str, TextSums], shape: tuple[int, int]) -> dict:
    """Return the last fields of `ProbeResult`, paired over texts."""
    own, constant = sums["own"], sums.get("constant")
    same = {name: one for name, one in sums.items() if name not in ("own", "random_tokens")}
    # Random tokens are other texts, and cannot be paired.
    return {
        "gains": {name: ratio(one.nats - own.nats, own.tokens) for name, one in same.items()},
        "information_over_constant": ratio(constant.nats - own.nats, constant.nats)
        if constant
        else None,
        "bits_a_dimension": mean((constant.nats - own.nats) / (math.prod(shape) * math.log(2)))
        if constant
        else None,
    }
