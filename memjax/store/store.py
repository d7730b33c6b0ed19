"""Memories of documents, kept: append, slice, evict, save, load.

Shapes: N chunk, K vector of a chunk, E its width, n chunk that is appended.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from memjax.store.folder import (
    INTEGER,
    Stored,
    StoredDocument,
    check_document,
    check_spans,
    read_folder,
    write_folder,
)
from memjax.store.header import DOCUMENTS_LIMIT, SPAN_FIELDS, Origin, StoreError
from memjax.store.rounding import DTYPES, SCALE, rounded, widened


class _Part(NamedTuple):
    memories: Shaped[np.ndarray, "N K E"]
    scales: Float[np.ndarray, "N K"] | None
    spans: Int[np.ndarray, "N 5"]


class MemoryStore:
    """Memories [N, K, E] of the chunks of documents, rounded as they will be on disk, and where each chunk stands in its document.

    Documents keep their numbers as long as the store lives, whatever is evicted. Arrays are never written to: slices share them.
    """

    def __init__(self, origin: Origin, dtype: str, documents: Sequence[StoredDocument], parts: Sequence[_Part]):
        """Use `create` or `load`."""
        self.origin, self.dtype = origin, dtype
        self._documents, self._parts = list(documents), list(parts)

    @classmethod
    def create(cls, origin: Origin, dtype: str = "bfloat16") -> "MemoryStore":
        """One without a chunk.

        Args:
          origin: the encoder and the tokenizer (`open_compressor`).
          dtype: `float32`, `bfloat16`, `float8_e4m3` or `int8`, with a scale for every vector.

        Raises:
          StoreError: there is no such dtype.
        """
        if dtype not in DTYPES:
            raise StoreError(f"dtype={dtype!r}: memories are stored as {', '.join(DTYPES)}")
        return cls(origin, dtype, [], [])

    @classmethod
    def load(cls, folder: str | os.PathLike, expected: Origin | None = None, verify: bool = True) -> "MemoryStore":
        """What `save` wrote. Memories stay on disk until they are used.

        Args:
          folder: of the store.
          expected: the encoder and the tokenizer it must be of; None takes any.
          verify: compare checksums, which reads all of it.

        Raises:
          StoreError: it is absent, damaged, no store, or of another encoder or tokenizer.
        """
        stored = read_folder(folder, expected, verify)
        return cls(stored.origin, stored.dtype, stored.documents, [_Part(stored.memories, stored.scales, stored.spans)])

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the store, in place of one that may be there; until all is written, that one stays as it is.

        Raises:
          StoreError: there is something else than a store.
        """
        whole = self._whole()
        write_folder(folder, Stored(self.origin, self.dtype, self._documents, *whole))

    def __len__(self) -> int:
        """N."""
        return sum(len(part.spans) for part in self._parts)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> "MemoryStore":
        """A store of some chunks, as NumPy would pick them by a slice or by numbers; documents keep theirs.

        Raises:
          IndexError: there is no such chunk.
        """
        memories, scales, spans = self._whole()
        picked = index if isinstance(index, slice) else np.asarray(index, INTEGER).reshape(-1)
        part = _Part(memories[picked], None if scales is None else scales[picked], spans[picked])
        return MemoryStore(self.origin, self.dtype, self._documents, [part])

    @property
    def documents(self) -> tuple[StoredDocument, ...]:
        """All that were ever appended, by number."""
        return tuple(self._documents)

    @property
    def spans(self) -> Int[np.ndarray, "N 5"]:
        """Of every chunk (document, first token, tokens, first byte in the source, the byte after the last)."""
        return self._whole().spans

    @property
    def stored(self) -> Shaped[np.ndarray, "N K E"]:
        """Memories as they are stored, without their scales."""
        return self._whole().memories

    @property
    def scales(self) -> Float[np.ndarray, "N K"] | None:
        """Of int8; otherwise None."""
        return self._whole().scales

    @property
    def memories(self) -> Float[np.ndarray, "N K E"]:
        """Memories in float32, a copy: of a large store take a slice first."""
        return self.read(slice(None))

    def read(self, index: slice | np.ndarray) -> Float[np.ndarray, "n K E"]:
        """Memories of some chunks in float32.

        Raises:
          IndexError: there is no such chunk.
        """
        memories, scales, _ = self._whole()
        return widened(memories[index], None if scales is None else scales[index])

    @property
    def tokens(self) -> int:
        """Of the chunks that are there."""
        return int(self.spans[:, 2].sum())

    @property
    def text_bytes(self) -> int:
        """Of the chunks that are there."""
        return int((self.spans[:, 4] - self.spans[:, 3]).sum())

    @property
    def full_chunks(self) -> Int[np.ndarray, " n"]:
        """Numbers of the chunks that are filled with tokens: not the last one of a document whose tokens end before the chunk does."""
        return np.flatnonzero(self.spans[:, 2] == self.origin.chunk_length)

    def of_document(self, number: int) -> "MemoryStore":
        """The chunks of one document.

        Raises:
          StoreError: there is no such document.
        """
        self._require_document(number)
        return self[np.flatnonzero(self.spans[:, 0] == number)]

    def append(
        self, document: StoredDocument | int, memories: Float[np.ndarray, "n K E"], spans: Int[np.ndarray, "n 4"]
    ) -> int:
        """Adds chunks of a document at the end, and returns its number.

        Args:
          document: a new one, or the number of one that is there.
          memories: of the chunks, finite; they are rounded to the store's dtype here.
          spans: of each chunk first token, tokens, first byte in the source, the byte after the last.

        Raises:
          StoreError: shapes do not fit, a number is not finite, a chunk lies outside its document, or that is none; nothing is added.
        """
        memories, spans = np.asarray(memories, np.float32), np.asarray(spans)
        if memories.shape[1:] != self.origin.shape or spans.shape != (len(memories), len(SPAN_FIELDS) - 1):
            raise StoreError(
                f"memories {list(memories.shape)} and spans {list(spans.shape)}: this store takes [n, {self.origin.shape[0]},"
                f" {self.origin.shape[1]}] and [n, {len(SPAN_FIELDS) - 1}]"
            )
        if spans.dtype.kind not in "iu" and len(spans):
            raise StoreError(f"spans of {spans.dtype}: they are whole numbers")
        if not np.isfinite(memories).all():
            raise StoreError("memories hold NaN or infinity: something is wrong with the model or its text")
        documents = self._documents
        if isinstance(document, StoredDocument):
            check_document(document, "append")
            if len(documents) >= DOCUMENTS_LIMIT:
                raise StoreError(f"append: a store holds {DOCUMENTS_LIMIT} documents at most")
            number = len(documents)
        else:
            self._require_document(document)
            number = int(document)
        own = [document] if isinstance(document, StoredDocument) else documents[number : number + 1]
        numbered = np.concatenate([np.zeros((len(spans), 1), INTEGER), spans.astype(INTEGER)], axis=1)
        check_spans(numbered, own, self.origin.chunk_length, "append")
        numbered[:, 0] = number
        if number == len(documents):
            documents.extend(own)
        if len(spans):
            self._parts.append(_Part(*rounded(memories, self.dtype), numbered))
        return number

    def evict(self, before: int | None = None, indices: Sequence[int] | np.ndarray | None = None) -> int:
        """Drops chunks, and returns how many; the others keep their order, spans and documents.

        Args:
          before: all chunks below this number, the oldest.
          indices: these chunks.

        Raises:
          StoreError: both or neither are given, or there is no such chunk.
        """
        if (before is None) == (indices is None):
            raise StoreError("evict: give either before or indices")
        kept = np.ones(len(self), bool)
        try:
            if indices is None:
                if not 0 <= before <= len(self):  # pyrefly: ignore
                    raise IndexError
                kept[:before] = False
            else:
                kept[np.asarray(indices, INTEGER)] = False
        except IndexError:
            raise StoreError(f"evict: chunk {before if indices is None else indices} of {len(self)}: no such chunk") from None
        self._parts = list(self[np.flatnonzero(kept)]._parts)
        return int((~kept).sum())

    def _require_document(self, number: int) -> None:
        if not 0 <= number < len(self._documents):
            raise StoreError(f"there is no document {number}; there are {len(self._documents)}, counted from 0")

    def _whole(self) -> _Part:
        """All parts as one, which they then are."""
        if len(self._parts) != 1:
            scaled, shape = self.dtype == "int8", self.origin.shape
            empty = _Part(
                np.empty((0, *shape), DTYPES[self.dtype]),
                np.empty((0, shape[0]), SCALE) if scaled else None,
                np.empty((0, len(SPAN_FIELDS)), INTEGER),
            )
            parts = [empty, *self._parts]
            scales = np.concatenate([part.scales for part in parts if part.scales is not None]) if scaled else None
            memories = np.concatenate([part.memories for part in parts])
            self._parts = [_Part(memories, scales, np.concatenate([part.spans for part in parts]))]
        for array in self._parts[0]:
            if array is not None:
                array.setflags(write=False)
        return self._parts[0]
