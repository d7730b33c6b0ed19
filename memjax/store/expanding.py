"""A store back to text by a stage's decoder: from memories alone, the most likely token at every position.

Shapes: B group of a batch, H chunk of a group, L token, N chunk, K vector, E its width, T = H * L.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from memjax.instruments.recall_curves import say
from memjax.instruments.system import System
from memjax.instruments.texts import batches
from memjax.instruments.uncertainty import Estimate, ratio
from memjax.models import Oracle
from memjax.store.encoding import Compressor, grouped, groups
from memjax.store.folder import StoredDocument
from memjax.store.header import StoreError
from memjax.store.sources import Chunks
from memjax.store.store import MemoryStore

SEPARATOR = "<|endoftext|>"
"""On a line of its own between texts that do not follow each other in one file, as corpora have it."""


def expand(
    compressor: Compressor, store: MemoryStore, batch: int = 32, advance: Callable[[], None] = lambda: None
) -> Int[np.ndarray, "N L"]:
    """The tokens that the decoder says of every chunk; padding beyond a chunk's own number.

    Args:
      compressor: the stage, with a decoder.
      store: of this stage's encoder.
      batch: groups of chunks at a time.
      advance: called when a batch is done.

    Raises:
      StoreError: the store is of another encoder, or the stage cannot say texts from memories alone.
    """
    store.origin.require_same(compressor.origin, "the store")
    system = require_decoder(compressor)
    length, ids = compressor.origin.chunk_length, system.ids
    said = np.full((len(store), length), ids.pad, np.int32)
    numbers = groups(store.spans[:, 0], system.held)
    counts = store.spans[:, 2]
    if not len(numbers):
        return said
    for start, picked in enumerate(batches(numbers, batch)):
        flat = picked.reshape(-1)
        memory = store.read(np.maximum(flat, 0)).reshape(len(picked), *system.shape)
        # The decoder is told how many tokens there are, and none of them.
        real = np.arange(length) < grouped(counts, picked, 0)[..., None]
        shown = np.where(real, ids.first_content, ids.pad).astype(np.int32).reshape(len(picked), system.length)
        found = np.asarray(_say(system, compressor.params, memory, shown)).reshape(real.shape)
        own = slice(0, len(numbers) - start * len(picked))
        there = picked[own] >= 0
        said[picked[own][there]] = np.where(real, found, ids.pad)[own][there]
        advance()
    return said


def require_decoder(compressor: Compressor) -> System:
    """The stage's encoder and decoder.

    Raises:
      StoreError: it cannot say texts from memories alone.
    """
    system, name = compressor.system, compressor.name
    if system is None:
        raise StoreError(
            f"{name}: cannot turn memories into text ({compressor.why}); give a stage with the same encoder that can"
        )
    if isinstance(system.module, Oracle) and "unscored_first_tokens" in system.compat:
        raise StoreError(
            f"{name}: trained under 'unscored_first_tokens' it never says the first token of a chunk; give another stage"
        )
    return system


@functools.partial(jax.jit, static_argnums=0)
def _say(system: System, params: Any, memory: jax.Array, shown: jax.Array) -> jax.Array:
    return say(system, params, memory, shown)


def text_of(compressor: Compressor, store: MemoryStore, said: Int[np.ndarray, "N L"]) -> str:
    """What `expand` said as text; texts that do not follow each other in one file are parted by a line `<|endoftext|>`."""
    if not len(store):
        return ""
    parts: list[str] = []
    before: StoredDocument | None = None
    numbers, documents = store.spans[:, 0], store.documents
    for tokens, number in zip(np.split(said, np.flatnonzero(np.diff(numbers)) + 1), _runs(numbers), strict=True):
        document = documents[number]
        if before is not None and not _follows(before, document):
            parts.append(f"\n{SEPARATOR}\n")
        parts.append(compressor.tokenizer.decode(tokens.reshape(-1)))
        before = document
    return "".join(parts)


def _runs(numbers: np.ndarray) -> Sequence[int]:
    changes = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1]).astype(int)
    return [int(x) for x in numbers[changes]]


def _follows(one: StoredDocument, other: StoredDocument) -> bool:
    same_file = "#" in one.name and one.name.rpartition("#")[0] == other.name.rpartition("#")[0]
    return same_file and one.start + one.bytes == other.start


def accuracy_against(store: MemoryStore, said: Int[np.ndarray, "N L"], source: Chunks, where: str) -> Estimate:
    """Share of tokens that `expand` said right, over the chunks whose document stands in `source`.

    Args:
      store: that was expanded.
      said: what came of it.
      source: the text it was compressed from, cut in the same way.
      where: the source's files, for messages.

    Raises:
      StoreError: none of the store's documents stands there.
    """
    places = {document: number for number, document in enumerate(source.documents)}
    true = {(int(d), int(t)): row for (d, t), row in zip(source.spans[:, :2], source.tokens, strict=True)}
    right, counts = [], []
    documents = store.documents
    for row, (number, first, tokens, *_) in zip(said, store.spans.tolist(), strict=True):
        own = true.get((places.get(documents[number], -1), first))
        if own is not None:
            right.append((own[:tokens] == row[:tokens]).sum())
            counts.append(tokens)
    if not counts:
        names = ", ".join(dict.fromkeys(documents[number].name for number in store.spans[:3, 0].tolist()))
        raise StoreError(f"{where}: holds none of the texts of the store ({names}, ...); give the file that was compressed")
    return ratio(np.array(right), np.array(counts))
