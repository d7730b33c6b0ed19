"""The information probe: how much of a text a decoder that is trained from scratch gets back from vectors of it that do not move.

All encoders are probed by one protocol (probe_decoders.py), so that their numbers compare with each other (those of Badger 2026,
information, come from decoders that differ). What a number means shows beside its controls:

| control | vectors a text is read from | decoder |
|---|---|---|
| constant | zero, whatever the text: all that is known of training text and nothing of this one | trained on zeros |
| untrained | of the same architecture before training | trained on those |
| shuffled | those of another text | that of the real vectors |
| random_tokens | of texts of random tokens, which are what is asked for | that of the real vectors |

The first is the protocol's own zero: what is gained over it is in the vectors. `shuffled` is no zero, as its decoder trusts what it
reads, and loses more than it would by ignoring it.

Shapes: T text, K vector of a text, E its width, L token, B texts taken together.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from memjax.instruments import texts as text_sources
from memjax.instruments.encoders import TextEncoder, vectors_of
from memjax.instruments.information import information_of
from memjax.instruments.probe_decoders import Decoder, Fitted, ProbeError, Protocol, fit, make_decoder, score_sums
from memjax.instruments.uncertainty import Estimate, mean, ratio
from memjax.instruments.vectors import Vectors, VectorsError, check_alike

CONTROLS = ("constant", "untrained", "shuffled", "random_tokens")
WITH_ENCODER = ("untrained", "random_tokens")
"""Controls that run the encoder; the others need its vectors alone."""
TRAINED = ("constant", "untrained")
"""Controls that train decoders of their own."""
_STATISTICS = 4096
"""Texts that means and deviations are taken over, at most."""
_LEAST_DEVIATION = 1e-3
"""Of the typical one: a number that varies by less is rounding, and is not blown up."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One seed's decoder."""

    seed: int
    steps: int
    """Updates that led to it."""
    converged: bool
    """Whether its loss stopped falling before `Protocol.steps` ran out: if not, more might have been got back."""
    nats: Estimate
    """A token, on held-out texts."""
    accuracy: Estimate
    information: Estimate
    """I_e (information.py)."""
    curve: tuple[tuple[int, float], ...]
    """(step, nats a token) on the texts set aside to say when to stop, while the rate stayed."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was got back from one kind of vectors. Estimates are over texts, each text's number being its mean over seeds."""

    runs: tuple[Run, ...]
    nats: Estimate
    nats_spread: float
    """Largest less smallest of the seeds' means."""
    accuracy: Estimate
    accuracy_spread: float
    information: Estimate


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """One encoder's vectors under one protocol."""

    encoder: str
    protocol: Protocol
    vocabulary: int
    length: int
    """L."""
    shape: tuple[int, int]
    """(K, E)."""
    train_texts: int
    """Those that say when to stop included."""
    held_out_texts: int
    own: Reading
    controls: dict[str, Reading]
    gains: dict[str, Estimate]
    """Nats a token by which a control on the same texts is worse, paired over texts."""
    information_over_constant: Estimate | None
    """1 - CE / CE of the constant: the share of the protocol's own zero that the vectors take away."""
    bits_a_dimension: Estimate | None
    """Gained over the constant in a whole text, for each of the K * E numbers."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A decoder that has been trained on vectors, and how vectors are laid before it."""

    decoder: Decoder
    fitted: Fitted
    mean: Float[np.ndarray, "K E"]
    deviation: Float[np.ndarray, "K E"]
    constant: bool
    """It reads zeros in place of vectors."""


@dataclasses.dataclass(frozen=True)
class Sums:
    """What one decoder read of each text, [T] each, in float64."""

    nats: np.ndarray
    """Of all tokens of the text."""
    correct: np.ndarray
    count: np.ndarray
    """Tokens scored."""


def trainings(seeds: Sequence[int], controls: Sequence[str]) -> int:
    """How many decoders `probe` trains."""
    return len(seeds) * (1 + len(set(TRAINED).intersection(controls)))


def probe(
    train: Vectors,
    held_out: Vectors,
    protocol: Protocol | None = None,
    seeds: Sequence[int] = (0, 1),
    controls: Sequence[str] = ("constant", "shuffled"),
    encoder: TextEncoder | None = None,
    advance: Callable[[int, str], None] = lambda steps, text: None,
) -> ProbeResult:
    """Trains decoders on the vectors of some texts and reports how well they read those of others.

    A tenth of the texts to train on is set aside to say when to stop: nothing is decided on held-out texts.

    Args:
      train: vectors and tokens to train on.
      held_out: of the same encoder, other texts.
      protocol: how; by default `Protocol()`.
      seeds: one decoder is trained for each, of every kind that is.
      controls: some of CONTROLS.
      encoder: what made the vectors, for the controls that run it (WITH_ENCODER).
      advance: called with steps and what is known; in all with `protocol.steps` for each of `trainings`.

    Raises:
      ProbeError: a control is not known or needs the encoder, there are no seeds, or a loss is not finite.
      VectorsError: the two sets differ in kind, or texts are too few.
    """
    protocol = protocol or Protocol()
    controls = tuple(name for name in CONTROLS if name in _checked(controls, encoder))
    if not seeds:
        raise ProbeError("seeds are missing; give one at least")
    check_alike(train, held_out)
    if encoder is not None and (encoder.length, encoder.shape, encoder.vocabulary) != (
        train.length,
        train.shape,
        train.vocabulary,
    ):
        raise ProbeError(
            f"encoder: {encoder.name} did not make the vectors of {train.name}; give the one that did, or its vectors"
        )
    if len(held_out) < 2:
        raise VectorsError(f"{held_out.name}: one text held out; give two at least, so that one can be given another's vectors")
    vocabulary = max(train.vocabulary, held_out.vocabulary)
    sums: dict[str, list[Sums]] = {}
    readers: dict[str, list[Reader]] = {}
    readings: dict[str, Reading] = {}

    def read(name: str, readers: Sequence[Reader], texts: Vectors, other: np.ndarray | None = None) -> None:
        sums[name] = [score_texts(reader, texts, other) for reader in readers]
        readings[name] = _reading(seeds, readers, sums[name], vocabulary)

    def train_and_read(name: str, train: Vectors, held_out: Vectors, constant: bool = False) -> None:
        readers[name] = []
        for seed in seeds:
            tell = functools.partial(_tell, advance, f"{name}, seed {seed}")
            readers[name].append(train_reader(train, protocol, seed, constant, vocabulary, tell))
        read(name, readers[name], held_out)

    train_and_read("own", train, held_out)
    for name in controls:
        if name == "constant":
            train_and_read(name, train, held_out, constant=True)
        elif name == "shuffled":
            read(name, readers["own"], held_out, others(len(held_out), seeds[0]))
        elif encoder and name == "untrained":
            fresh = encoder.fresh(seeds[0])
            train_and_read(name, vectors_of(fresh, train.all_tokens()), vectors_of(fresh, held_out.all_tokens()))
        elif encoder:
            tokens = text_sources.random(len(held_out), train.length, encoder.vocabulary, encoder.ids, seeds[0])
            read(name, readers["own"], vectors_of(encoder, tokens))
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


def _tell(advance: Callable[[int, str], None], name: str, steps: int, text: str) -> None:
    advance(steps, f"{name}: {text}")


def _checked(controls: Sequence[str], encoder: TextEncoder | None) -> Sequence[str]:
    for name in controls:
        if name not in CONTROLS:
            raise ProbeError(f"controls: {name!r} is none; there are {', '.join(CONTROLS)}")
        if name in WITH_ENCODER and encoder is None:
            raise ProbeError(
                f"controls: {name!r} runs the encoder, and only its vectors are here; give the checkpoint, or leave it out"
            )
    return controls


def train_reader(
    train: Vectors,
    protocol: Protocol,
    seed: int = 0,
    constant: bool = False,
    vocabulary: int = 0,
    advance: Callable[[int, str], None] = lambda steps, text: None,
) -> Reader:
    """A decoder trained from scratch on all texts but the last, which say when to stop.

    Args:
      train: vectors and tokens.
      protocol: how.
      seed: of its parameters and of the order of texts.
      constant: it is given zeros in place of vectors.
      vocabulary: V; 0 is that of `train`.
      advance: called with steps and what is known; in all with `protocol.steps`.

    Raises:
      ProbeError: the loss is not finite.
      VectorsError: texts are too few, or cannot be read.
    """
    aside = max(1, min(protocol.stop_texts, int(protocol.stop_share * len(train))))
    if aside >= len(train):
        raise VectorsError(f"{train.name}: {len(train)} texts to train on; give two at least, as one says when to stop")
    border = len(train) - aside
    ids: Any = train.info.ids
    decoder = make_decoder(protocol, vocabulary or train.vocabulary, train.length, train.shape, ids)
    average, deviation = _moments(train, protocol)
    read, stop = (
        functools.partial(_take, part, average, deviation, constant, None)
        for part in (train.part(0, border), train.part(border, len(train)))
    )
    return Reader(decoder, fit(decoder, read, border, stop, aside, seed, advance), average, deviation, constant)


def score_texts(reader: Reader, texts: Vectors, other: Int[np.ndarray, " T"] | None = None) -> Sums:
    """What a decoder reads of texts.

    Args:
      reader: the decoder.
      texts: their vectors and tokens.
      other: whose vectors each text is given; by default its own.

    Raises:
      VectorsError: they cannot be read.
    """
    take = functools.partial(_take, texts, reader.mean, reader.deviation, reader.constant, other)
    return Sums(*score_sums(reader.decoder, reader.fitted.params, take, len(texts)))


def _take(
    texts: Vectors,
    average: np.ndarray,
    deviation: np.ndarray,
    constant: bool,
    other: np.ndarray | None,
    indices: Int[np.ndarray, " B"],
) -> tuple[Float[np.ndarray, "B K E"], Int[np.ndarray, "B L"]]:
    """Vectors as a decoder is given them, and tokens."""
    vectors, tokens = texts.take(indices)
    if constant:
        return np.zeros_like(vectors), tokens
    if other is not None:
        vectors, _ = texts.take(other[indices])
    return (vectors - average) / deviation, tokens


def _moments(train: Vectors, protocol: Protocol) -> tuple[Float[np.ndarray, "K E"], Float[np.ndarray, "K E"]]:
    """What is taken from every number, and what it is divided by."""
    if not protocol.standardise:
        return np.zeros(train.shape, np.float32), np.ones(train.shape, np.float32)
    vectors = train.some(_STATISTICS)[0].astype(np.float64)
    deviation = vectors.std(axis=0)
    typical = math.sqrt(float((deviation**2).mean()))
    deviation = np.maximum(deviation, typical * _LEAST_DEVIATION) if typical else np.ones_like(deviation)
    return vectors.mean(axis=0).astype(np.float32), deviation.astype(np.float32)


def others(count: int, seed: int = 0) -> Int[np.ndarray, " T"]:
    """For each of `count` texts another one, drawn at random, every text once and none its own: a permutation of one cycle."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, np.int64)
    other[order] = np.roll(order, 1)
    return other


def _reading(seeds: Sequence[int], readers: Sequence[Reader], sums: Sequence[Sums], vocabulary: int) -> Reading:
    runs = []
    for seed, reader, one in zip(seeds, readers, sums, strict=True):
        fitted = reader.fitted
        nats = ratio(one.nats, one.count)
        accuracy, information = ratio(one.correct, one.count), information_of(nats, vocabulary)
        runs.append(Run(seed, fitted.steps, fitted.converged, nats, accuracy, information, fitted.curve))
    whole = _over_seeds(sums)
    nats = ratio(whole.nats, whole.count)
    return Reading(
        runs=tuple(runs),
        nats=nats,
        nats_spread=float(np.ptp([run.nats.value for run in runs])),
        accuracy=ratio(whole.correct, whole.count),
        accuracy_spread=float(np.ptp([run.accuracy.value for run in runs])),
        information=information_of(nats, vocabulary),
    )


def _over_seeds(sums: Sequence[Sums]) -> Sums:
    """Each text's means over seeds."""
    return Sums(*(np.mean([getattr(one, field.name) for one in sums], axis=0) for field in dataclasses.fields(Sums)))


def _compared(sums: dict[str, Sums], shape: tuple[int, int]) -> dict:
    """The last fields of `ProbeResult`, paired over texts."""
    own, constant = sums["own"], sums.get("constant")
    same = {name: one for name, one in sums.items() if name not in ("own", "random_tokens")}
    # Of random tokens nothing is paired: they are other texts.
    return {
        "gains": {name: ratio(one.nats - own.nats, own.count) for name, one in same.items()},
        "information_over_constant": ratio(constant.nats - own.nats, constant.nats) if constant else None,
        "bits_a_dimension": mean((constant.nats - own.nats) / (math.prod(shape) * math.log(2))) if constant else None,
    }
