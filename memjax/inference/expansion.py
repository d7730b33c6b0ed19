"""Reconstruction: a store to text by a stage's decoder, from memories alone, with the most likely
token at every position.

Shapes: B group of a batch, H chunk of a group, L token, N chunk, K vector, E its width, T = H * L.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import StoredDocument, StoreError
from memjax.data import Tokenizer
from memjax.data.sources.lines import SEPARATOR
from memjax.inference.chunking import Chunks
from memjax.inference.codec import MemoryCodec
from memjax.inference.compression import grouped, groups, padded
from memjax.inference.texts import over_batches
from memjax.models.memory import VECTORS
from memjax.objectives.uncertainty import Estimate, ratio


def expand(
    codec: MemoryCodec,
    params: Any,
    store: MemoryStore,
    batch: int = 32,
    side: str = "right",
) -> Int[np.ndarray, "N L"]:
    """Return the reconstructed tokens of every chunk, with padding on one side.

    Args:
      codec: the encoder and the decoder.
      params: parameters of the whole model.
      store: of that encoder.
      batch: groups of chunks per batch.
      side: the side of padding in a chunk.
    """
    length, ids = store.provenance.chunk_length, codec.ids
    generated = np.full((len(store), length), ids.pad, np.int32)
    numbers = groups(store.spans[:, 0], codec.held)
    if not len(numbers):
        return generated

    def filled(picked: Int[np.ndarray, "B H"]) -> Bool[np.ndarray, "B H L"]:
        real = np.arange(length) < grouped(store.spans[:, 2], picked, 0)[..., None]
        return real[..., ::-1] if side == "left" else real

    def reconstruct(picked: Int[np.ndarray, "B H"]) -> Int[Array, "B H L"]:
        vectors = store.read(np.maximum(picked.reshape(-1), 0)).leaves[VECTORS]
        memory = vectors.reshape(len(picked), -1, vectors.shape[-1])
        # The decoder gets the number of tokens, and none of them.
        asked = np.where(filled(picked), ids.first_content, ids.pad).astype(np.int32)
        asked = padded(asked, codec.length // codec.held, ids.pad)
        flat = asked.reshape(len(picked), codec.length)
        return _reconstruct(codec, params, memory, flat).reshape(asked.shape)[..., :length]

    found = np.where(filled(numbers), over_batches(reconstruct, numbers, batch, "expand"), ids.pad)
    generated[numbers[numbers >= 0]] = found[numbers >= 0]
    return generated


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(codec: MemoryCodec, params: Any, memory: jax.Array, shown: jax.Array) -> jax.Array:
    return codec.reconstruct(params, memory, shown)


def text_of(tokenizer: Tokenizer, store: MemoryStore, generated: Int[np.ndarray, "N L"]) -> str:
    """Return the tokens of `expand` as one text; a line `<|endoftext|>` separates documents that do
    not follow each other in one file.
    """
    found = document_texts(tokenizer, store, generated)
    parts = [text for _, text in found[:1]]
    for (before, _), (document, text) in itertools.pairwise(found):
        parts += [text] if _follows(before, document) else [f"\n{SEPARATOR}\n", text]
    return "".join(parts)


def document_texts(
    tokenizer: Tokenizer, store: MemoryStore, generated: Int[np.ndarray, "N L"]
) -> list[tuple[StoredDocument, str]]:
    """Return the tokens of `expand` as one text per document with chunks in the store."""
    numbers = store.spans[:, 0]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    first = store.spans[:, 1] == 0
    return [
        (store.documents[numbers[start]], tokenizer.decode(tokens.reshape(-1), bool(first[start])))
        for start, tokens in zip(starts, np.split(generated, starts)[1:], strict=True)
    ]


def _follows(one: StoredDocument, other: StoredDocument) -> bool:
    same_file = "#" in one.name and one.name.rpartition("#")[0] == other.name.rpartition("#")[0]
    return same_file and one.start + one.bytes == other.start


class Accuracy(NamedTuple):
    """Shares of a text that are given back as they were.

    Attributes:
      tokens: the share of tokens that are right.
      chunks: the share of chunks whose tokens are all right.
    """

    tokens: Estimate
    chunks: Estimate

    def __str__(self) -> str:
        return f"tokens right: {self.tokens}; whole chunks right: {self.chunks}"


def accuracy_against(
    store: MemoryStore,
    generated: Int[np.ndarray, "n L"],
    source: Chunks,
    where: str,
    chunks: Sequence[int] | None = None,
) -> Accuracy:
    """Return the share of right tokens and of right chunks, over the chunks whose document is in
    `source`.

    Args:
      store: the store whose memories were read.
      generated: the tokens from `expand` or of `recall_tokens`.
      source: the original text, split in the same way.
      where: the source's files, for messages.
      chunks: numbers in the store of the generated chunks; by default all.

    Raises:
      StoreError: none of the store's documents is in the source.
    """
    numbers = np.arange(len(store)) if chunks is None else np.asarray(chunks, int)
    rows = rows_of(store, source)[numbers]
    there, counts = rows >= 0, store.spans[numbers, 2]
    if not there.any():
        names = ", ".join(
            dict.fromkeys(
                store.documents[number].name for number in store.spans[numbers[:3], 0].tolist()
            )
        )
        raise StoreError(
            f"{where}: holds none of the texts of the store ({names}, ...); give the file that was"
            " compressed"
        )
    # Padding is equal in both.
    wrong = (source.tokens[rows[there]] != generated[there]).sum(axis=1)
    counts = counts[there]
    return Accuracy(ratio(counts - wrong, counts), ratio(wrong == 0, np.ones(len(wrong))))


def rows_of(store: MemoryStore, source: Chunks) -> Int[np.ndarray, " N"]:
    """Return the row in `source` of every chunk of a store; -1 where its document is not there.

    Args:
      store: the store.
      source: the original text, split in the same way.
    """
    places = source.spans[:, :2].tolist()
    rows = {(source.documents[number], first): row for row, (number, first) in enumerate(places)}
    found = (
        rows.get((store.documents[number], first), -1)
        for number, first in store.spans[:, :2].tolist()
    )
    return np.fromiter(found, np.int64, len(store))
