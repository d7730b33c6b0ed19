"""Instruments by name on a trained stage and held-out text, as `memjax measure` runs them.

Every instrument is also a function to import; this file prepares its inputs. Shapes: N text, T
token of a text.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from memjax.evaluation.instruments import tables
from memjax.files import check_seal, read_json, sealed, write_json

with epy.lazy_imports():  # `memjax measure --help` reads INSTRUMENTS and must not import JAX.
    import numpy as np

    from memjax.data import pipeline
    from memjax.evaluation.instruments import (
        capacity,
        compression,
        encoders,
        fact_probes,
        information,
        out_of_distribution,
        quantisation,
        recall_curves,
        retrieval,
        sensitivity,
    )
    from memjax.inference import codec, texts, trained_model
    from memjax.objectives import uncertainty

FILE = "instruments.json"
"""File of the results in a stage's folder."""
TRAINING_TEXTS = 8
"""Texts of training per measured text, for frequencies and mean memories."""
CAPACITY_TEXTS = 64
FACT_PROBE_TEXTS = 8
"""Texts to train readers of fact probes on, per text in their test."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model and the texts of a measurement."""

    model: trained_model.TrainedModel
    system: codec.MemoryCodec
    texts: np.ndarray
    """[N, T], held-out."""
    train_texts: np.ndarray
    other_texts: np.ndarray | None = None
    """[*, T], of another corpus, for `out_of_distribution`."""
    batch: int = 32
    reader: fact_probes.Training = dataclasses.field(
        default_factory=lambda: fact_probes.Training(steps=300)
    )
    """Training settings of the readers of `fact_probes`."""

    @functools.cached_property
    def encoder(self) -> encoders.VectorReader:
        """The stage's encoder alone, applied to single chunks."""
        return encoders.vector_reader(self.model)

    def chunks(self, split: str, limit: int, chunks: int) -> np.ndarray:
        """Return texts of several chunks, [*, C, L]."""
        length, tokenizer = self.encoder.length, self.model.required_tokenizer
        packing = self.model.config.data.packing
        rows = texts.held_out(self.model.data, chunks * length, limit, tokenizer, split, packing)
        return rows.reshape(-1, chunks, length)


def prepare_subject(
    model: trained_model.TrainedModel,
    recall_objective: str = "",
    limit: int = 256,
    data: str | Path = "",
    corpus: str = "",
    batch: int = 32,
) -> Subject:
    """Return held-out texts of a run's data, and texts of its training data.

    Args:
      model: encoder and decoder.
      recall_objective: the objective by which a memory model reconstructs; empty for its own.
      limit: held-out texts, at most.
      data: the data folder of a workdir; by default the model's own.
      corpus: another corpus, for `out_of_distribution`.
      batch: texts per batch.

    Raises:
      CheckpointError: no decoder reads the model's memories.
      CorpusError: the other corpus cannot be read.
      TokenizerError: neither the model nor the data has a tokenizer that can be read.
      RowsError, TextsError: there are none, they have another tokenizer, or are too short.
    """
    model = texts.with_data(model, data)
    tokenizer, system = model.required_tokenizer, model.codec(recall_objective)
    length, packing = system.length, model.config.data.packing
    held_out, train = (
        texts.held_out(model.data, length, count, tokenizer, split, packing)
        for split, count in (("validation", limit), ("train", TRAINING_TEXTS * limit))
    )
    other = texts.of_corpus(corpus, length, len(held_out), tokenizer) if corpus else None
    return Subject(model, system, held_out, train, other, batch)


def _information(one: Subject) -> Any:
    return information.information(
        one.system, one.model.params, one.texts, one.train_texts, one.batch
    )


def _recall(one: Subject) -> Any:
    return recall_curves.recall_curves(
        one.system, one.model.params, one.texts, one.train_texts, one.batch
    )


def _compression(one: Subject) -> Any:
    scores = information.token_scores(one.system, one.model.params, one.texts, one.batch)
    lengths = np.asarray(one.model.required_tokenizer.byte_lengths)
    nats, _, tokens = scores.of_texts()
    text_bytes = scores.sums(lengths[scores.labels])
    return compression.costs(nats, tokens, text_bytes, math.prod(one.system.shape))


def _quantisation(one: Subject) -> Any:
    return quantisation.quantisation(one.system, one.model.params, one.texts, batch=one.batch)


def _sensitivity(one: Subject) -> Any:
    measure = functools.partial(
        sensitivity.sensitivity, one.system, one.model.params, one.texts, one.batch
    )
    return {target: measure(target) for target in sensitivity.TARGETS}


def _capacity(one: Subject) -> Any:
    few = one.texts[pipeline.evenly_spaced(len(one.texts), CAPACITY_TEXTS)]
    return capacity.capacity(one.system, one.model.params, few, batch=one.batch)


def _out_of_distribution(one: Subject) -> Any:
    count, length, system = len(one.texts), one.system.length, one.system
    kinds = {
        "held_out": one.texts,
        "random_tokens": texts.random(count, length, system.vocabulary, system.ids),
    }
    if one.other_texts is not None:
        kinds["other_corpus"] = one.other_texts
    return out_of_distribution.out_of_distribution(system, one.model.params, kinds, one.batch)


def _retrieval(one: Subject) -> Any:
    passages = one.chunks("validation", max(retrieval.POOLS), 1)[:, 0]
    count, pad = min(7, one.encoder.length // 2), one.system.ids.pad
    asked = {"ngram": passages, "nbag": passages}
    if one.model.config.chunks > 1:  # A sequence of one chunk has no neighbours.
        pairs = one.chunks("validation", max(retrieval.POOLS) // 2, 2)
        full = pairs[(pairs != pad).any(axis=2).all(axis=1)]
        asked["pair"] = full.reshape(-1, one.encoder.length)
    return {
        query: retrieval.retrieval(one.encoder, given, query, count, pad)
        for query, given in asked.items()
    }


def _fact_probes(one: Subject) -> Any:
    count, chunks = len(one.texts), max(2, one.model.config.chunks)
    found = (
        one.chunks(split, limit, chunks)
        for split, limit in (("train", FACT_PROBE_TEXTS * count), ("validation", count))
    )
    # Padding is no fact.
    full = [text[(text != one.system.ids.pad).all(axis=(1, 2))] for text in found]
    if not all(map(len, full)):
        return ()
    train, held_out = full
    return fact_probes.fact_probes(
        one.encoder, train, held_out, one.system.vocabulary, training=one.reader
    )


class Instrument(NamedTuple):
    """An instrument by name."""

    run: Callable[[Subject], Any]
    tables: Callable[[Any], Iterator[tables.Table]]
    """Tables of its result, as JSON values."""


INSTRUMENTS: Mapping[str, Instrument] = {
    "information": Instrument(_information, tables.information),
    "recall": Instrument(_recall, tables.recall),
    "compression": Instrument(_compression, tables.compression),
    "quantisation": Instrument(_quantisation, tables.quantisation),
    "sensitivity": Instrument(_sensitivity, tables.sensitivity),
    "capacity": Instrument(_capacity, tables.capacity),
    "out_of_distribution": Instrument(_out_of_distribution, tables.out_of_distribution),
    "retrieval": Instrument(_retrieval, tables.retrieval),
    "fact_probes": Instrument(_fact_probes, tables.fact_probes),
}
"""Instruments by the names that `memjax measure --instruments` accepts."""


def tables_of(found: Mapping[str, Any]) -> list[tables.Table]:
    """Return one or more tables per instrument, in the order in which they ran."""
    return [
        table
        for name, result in found["instruments"].items()
        if name in INSTRUMENTS
        for table in INSTRUMENTS[name].tables(result)
    ]


def run_instruments(subject: Subject, names: Sequence[str]) -> dict[str, Any]:
    """Run instruments in the given order and return their results as JSON values.

    The stage, its step and the objective are in the result too.

    Args:
      subject: from `prepare_subject`.
      names: names in INSTRUMENTS.

    Raises:
      TextsError: an instrument is unknown, or texts do not suffice.
    """
    for name in names:
        texts.TextsError.require_one_of("instruments", name, INSTRUMENTS)
    model, system = subject.model, subject.system
    about = {
        "stage": model.stage,
        "step": model.step,
        "family": model.family,
        "ask": system.recall_objective,
        "texts": len(subject.texts),
        "tokens_a_text": system.length,
        "memory_shape": list(system.shape),
        "vocabulary": system.vocabulary,
    }
    found = {name: uncertainty.to_json(INSTRUMENTS[name].run(subject)) for name in names}
    return about | {"instruments": found}


def write_found(path: str | Path, found: Mapping[str, Any]) -> None:
    """Write JSON completely or not at all.

    Earlier results of other instruments are kept if all else is equal: the step, the objective, the
    texts.
    """
    path = Path(path)
    if path.is_file() and not path.is_relative_to("/dev"):
        before = read_json(
            path, texts.TextsError, {"instruments": dict}, "Delete it or use another file"
        )
        check_seal(before, path, "Delete it or use another file", texts.TextsError)
        if all(before.get(key) == value for key, value in found.items() if key != "instruments"):
            found = {**found, "instruments": {**before["instruments"], **found["instruments"]}}
    write_json(path, sealed(found), indent=1)
