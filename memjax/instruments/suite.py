"""Instruments by name, on a trained stage and held-out text: what `memjax measure` runs.

Every instrument is also a function of its own, to import; here each is given what it reads. Shapes: N text, T token of a text.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memjax.data import RowsError, Tokenizer
from memjax.instruments import texts as sources
from memjax.instruments.access import Training, access
from memjax.instruments.capacity import capacity, default_lengths
from memjax.instruments.compression import costs
from memjax.instruments.encoders import TextEncoder, open_encoder
from memjax.instruments.generalisation import generalisation
from memjax.instruments.information import information, token_scores
from memjax.instruments.quantisation import quantisation
from memjax.instruments.recall_curves import recall_curves
from memjax.instruments.retrieval import POOLS, QUERIES, retrieval
from memjax.instruments.sensitivity import sensitivity
from memjax.instruments.system import Trained
from memjax.instruments.texts import TextsError
from memjax.instruments.uncertainty import to_json

FILE = "instruments.json"
"""Where a stage's folder keeps what was measured of it."""
TRAINING_TEXTS = 8
"""Times as many texts of training, for frequencies and mean memories, as are measured."""
CAPACITY_TEXTS = 64
ACCESS_TEXTS = 8
"""Times as many texts to train readers on as they are asked about."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured, and on what."""

    trained: Trained
    texts: np.ndarray
    """[N, T], held-out."""
    train_texts: np.ndarray
    data: Path
    corpus: str = ""
    """Another corpus, for `generalisation`."""
    batch: int = 32
    reader: Training = dataclasses.field(default_factory=lambda: Training(steps=300))
    """How `access` trains its readers."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the run."""
        return required_tokenizer(self.trained)

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """The stage's encoder alone, which reads chunk by chunk."""
        return open_encoder(self.trained.folder)

    def encode(self, tokens: np.ndarray) -> Any:
        """Memories of chunks."""
        encoder: Any = self.encoder
        return encoder.encode(encoder.params, tokens)

    def chunks(self, split: str, limit: int, chunks: int) -> np.ndarray:
        """Texts of several chunks, [*, C, L]."""
        length = self.encoder.length
        rows = sources.held_out(self.data, chunks * length, limit, self.tokenizer, split)
        return rows.reshape(-1, chunks, length)


def required_tokenizer(trained: Trained) -> Tokenizer:
    """The tokenizer of a stage.

    Raises:
      RowsError: of imported weights, whose tokenizer is not known.
    """
    if trained.tokenizer is None:
        raise RowsError(
            f"{trained.folder}: imported weights, whose tokenizer is not known: there is no text to measure them on"
        )
    return trained.tokenizer


def prepare_subject(trained: Trained, limit: int = 256, data: str | Path = "", corpus: str = "", batch: int = 32) -> Subject:
    """Held-out texts of a run's data, and texts it was trained on.

    Raises:
      RowsError, TextsError: there are none, or they are of another tokenizer or too short.
    """
    tokenizer, length = required_tokenizer(trained), trained.system.length
    folder = Path(data) if data else trained.data
    texts = sources.held_out(folder, length, limit, tokenizer)
    train_texts = sources.held_out(folder, length, TRAINING_TEXTS * limit, tokenizer, "train")
    return Subject(trained, texts, train_texts, folder, corpus, batch)


Advance = Callable[[], None]


def _information(subject: Subject, advance: Advance) -> Any:
    one = subject.trained
    return information(one.system, one.params, subject.texts, subject.train_texts, subject.batch, advance)


def _recall(subject: Subject, advance: Advance) -> Any:
    one = subject.trained
    return recall_curves(one.system, one.params, subject.texts, subject.train_texts, subject.batch, advance)


def _compression(subject: Subject, advance: Advance) -> Any:
    one = subject.trained
    scores = token_scores(one.system, one.params, subject.texts, subject.batch, advance)
    lengths = np.asarray(subject.tokenizer.byte_lengths)
    return costs(scores.sums(scores.nats), scores.counts, scores.sums(lengths[scores.labels]), math.prod(one.system.shape))


def _quantisation(subject: Subject, advance: Advance) -> Any:
    one = subject.trained
    return quantisation(one.system, one.params, subject.texts, batch=subject.batch, advance=advance)


def _sensitivity(subject: Subject, advance: Advance) -> Any:
    one = subject.trained
    return {
        target: sensitivity(one.system, one.params, subject.texts, subject.batch, advance, target)
        for target in ("output", "weight")
    }


def _capacity(subject: Subject, advance: Advance) -> Any:
    one = subject.trained
    texts = subject.texts[:CAPACITY_TEXTS]
    found = capacity(one.system, one.params, texts, batch=subject.batch, advance=advance)
    kept = {"kept_by_encoder": found.kept_by_encoder, "kept_by_optimisation": found.kept_by_optimisation}
    return to_json(found) | kept


def _generalisation(subject: Subject, advance: Advance) -> Any:
    one, count = subject.trained, len(subject.texts)
    system = one.system
    kinds = {"held_out": subject.texts, "random_tokens": sources.random(count, system.length, system.vocabulary, system.ids)}
    if subject.corpus:
        kinds["other_corpus"] = sources.of_corpus(subject.corpus, system.length, count, subject.tokenizer)
    return generalisation(system, one.params, kinds, subject.batch, advance)


def _retrieval(subject: Subject, advance: Advance) -> Any:
    length = subject.encoder.length
    texts = subject.chunks("validation", max(POOLS), 1)[:, 0]
    count = min(7, length // 2)
    ids = subject.trained.system.ids
    return {query: retrieval(subject.encode, texts, query, count, ids.pad, advance=advance) for query in QUERIES}


def _access(subject: Subject, advance: Advance) -> Any:
    count = len(subject.texts)
    train = subject.chunks("train", ACCESS_TEXTS * count, _access_chunks(subject))
    held_out = subject.chunks("validation", count, _access_chunks(subject))
    vocabulary = subject.trained.system.vocabulary
    return access(subject.encode, train, held_out, vocabulary, training=subject.reader, advance=advance)


def _access_chunks(subject: Subject) -> int:
    """As many chunks as a row of the run has, and two at least."""
    return max(2, subject.trained.config.chunks)


INSTRUMENTS: Mapping[str, Callable[[Subject, Advance], Any]] = {
    "information": _information,
    "recall": _recall,
    "compression": _compression,
    "quantisation": _quantisation,
    "sensitivity": _sensitivity,
    "capacity": _capacity,
    "generalisation": _generalisation,
    "retrieval": _retrieval,
    "access": _access,
}
"""What can be asked for by name."""


def ticks(name: str, subject: Subject) -> int:
    """How often an instrument says that it has gone on."""
    batches = sources.batch_count(subject.texts, subject.batch)
    lengths = len(default_lengths(subject.trained.system.length))
    return {
        "information": batches + sources.batch_count(subject.train_texts, subject.batch),
        "sensitivity": 2 * batches,
        "capacity": lengths * sources.batch_count(subject.texts[:CAPACITY_TEXTS], subject.batch),
        "generalisation": (3 if subject.corpus else 2) * batches,
        "retrieval": len(QUERIES),
        "access": 4,
    }.get(name, batches)


def run_instruments(subject: Subject, names: Sequence[str], bar: Callable[[str, int], Any]) -> dict[str, Any]:
    """Runs instruments in the order given and returns JSON values, and what they are of.

    Args:
      subject: from `prepare_subject`.
      names: of INSTRUMENTS.
      bar: a context manager made of a name and a number of steps, whose `advance` is called.

    Raises:
      TextsError: there is no such instrument, or texts do not suffice.
    """
    for name in names:
        if name not in INSTRUMENTS:
            raise TextsError(f"instrument {name!r} is none; there are {', '.join(INSTRUMENTS)}")
    trained = subject.trained
    about = {
        "stage": trained.stage,
        "step": trained.step,
        "family": trained.config.stages[trained.stage].family,
        "ask": trained.system.ask,
        "texts": len(subject.texts),
        "tokens_a_text": trained.system.length,
        "memory_shape": list(trained.system.shape),
        "vocabulary": trained.system.vocabulary,
    }
    found: dict[str, Any] = {}
    for name in names:
        with bar(name, ticks(name, subject)) as progress:
            found[name] = to_json(INSTRUMENTS[name](subject, progress.advance))
    return about | {"instruments": found}


def write_found(path: str | Path, found: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all; of instruments that were run before on the same step, what is not replaced stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        same = all(before.get(key) == found[key] for key in ("stage", "step", "ask"))
        if same:
            found = {**found, "instruments": {**before["instruments"], **found["instruments"]}}
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
