"""Memories of documents: append, select, read, save and open.

The file is that of store_file.py.

Shapes: N chunk, n chunk that is appended.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from memjax.checkpoints.rounding import rounded, widened
from memjax.checkpoints.store_file import Contents, read_store, write_store
from memjax.checkpoints.store_records import (
    CHUNKS_LIMIT,
    DOCUMENTS_LIMIT,
    INTEGER,
    NAMES_LIMIT,
    SCALE_SUFFIX,
    SPAN_FIELDS,
    EncoderProvenance,
    StoredDocument,
    StoreError,
    Tensors,
    check_documents,
    check_spans,
    leaf_rows,
    name_bytes,
)
from memjax.files import local
from memjax.models.memory import Memories


class _Part(NamedTuple):
    leaves: Tensors
    """As they are stored, with scales."""
    spans: Int[np.ndarray, "N 5"]

    @classmethod
    def empty(cls, provenance: EncoderProvenance, dtype: str) -> "_Part":
        leaves = {
            name: np.empty((0, *shape), kind)
            for name, (kind, shape) in leaf_rows(provenance, dtype).items()
        }
        return cls(leaves, np.empty((0, len(SPAN_FIELDS)), INTEGER))


class MemoryStore:
    """Memories of the chunks of documents, rounded as they are on disk.

    Every chunk has its place in its document. Documents keep their numbers in a selection. Arrays
    are read-only: selections share them.

    Attributes:
      provenance: the encoder and the tokenizer that made the memories.
      dtype: how numbers are stored.
      documents: all documents, by number.
    """

    def __init__(
        self,
        provenance: EncoderProvenance,
        dtype: str = "bfloat16",
        documents: Sequence[StoredDocument] = (),
        part: _Part | None = None,
    ):
        """Make a store, by default an empty one.

        Args:
          provenance: the encoder and the tokenizer.
          dtype: `float32`, `bfloat16`, `float8_e4m3`, or `int8` or `int4` with a scale per vector.
          documents: all documents of `part`.
          part: leaves as they are stored, and spans.

        Raises:
          StoreError: the dtype is unknown.
        """
        self.provenance, self.dtype, self.documents = provenance, dtype, list(documents)
        self._parts = [part or _Part.empty(provenance, dtype)]
        self._chunks = len(self._parts[0].spans)
        self._counted = self._names = 0  # Documents, and bytes of their names.

    def __repr__(self) -> str:
        """Return its size and dtype."""
        documents = f"{len(self.documents)} documents"
        return f"MemoryStore({len(self)} chunks, {documents}, {self.dtype})"

    def __len__(self) -> int:
        """Return the number of chunks."""
        return self._chunks

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> "MemoryStore":
        """Return a store of some chunks, selected as NumPy selects rows.

        Raises:
          IndexError: a number is out of range.
        """
        index = _rows(index, len(self))
        leaves, spans = self._whole()
        if self.provenance.kind == "bank":
            leaves = {name: leaf[index] for name, leaf in leaves.items()}
        part = _Part(leaves, spans[index])
        return MemoryStore(self.provenance, self.dtype, self.documents, part)

    @property
    def spans(self) -> Int[np.ndarray, "N 5"]:
        """Document, first token, tokens, first byte and byte after the last, per chunk."""
        return self._whole().spans

    @property
    def stored(self) -> Mapping[str, np.ndarray]:
        """Leaves as they are stored; those of int8 and int4 have a second, `NAME.scale`."""
        return self._whole().leaves

    @property
    def nbytes(self) -> int:
        """Bytes of the stored leaves."""
        return sum(leaf.nbytes for leaf in self.stored.values())

    @property
    def memories(self) -> Memories:
        """All memories in float32, as a copy; of a large store `read` a part."""
        return self.read(slice(None))

    def read(self, index: slice | Sequence[int] | np.ndarray) -> Memories:
        """Return the memories of some chunks in float32; no others are read from disk.

        Args:
          index: numbers of chunks, or a slice of them. Of a chain or a fused memory, which has a
            row per document, numbers of documents.

        Raises:
          IndexError: a number is out of range.
        """
        leaves, spans = self._whole()
        bank = self.provenance.kind == "bank"
        rows = len(spans) if bank else len(self.documents)
        index = _rows(index, rows)
        numbers = np.arange(rows)[index]
        count = len(numbers) if bank else int(np.isin(spans[:, 0], numbers).sum())
        own = {name: leaf[index] for name, leaf in leaves.items()}
        wide = {
            name: widened(own[name], own.get(name + SCALE_SUFFIX), shape[-1])
            for name, shape in self.provenance.leaves.items()
        }
        return Memories(wide, count, self.provenance.kind)

    @property
    def tokens(self) -> int:
        """Tokens of all chunks."""
        return int(self.spans[:, 2].sum())

    @property
    def text_bytes(self) -> int:
        """Bytes of text of all chunks."""
        return int((self.spans[:, 4] - self.spans[:, 3]).sum())

    @property
    def full_chunks(self) -> Int[np.ndarray, " n"]:
        """Numbers of the chunks that are filled with tokens; the last of a document may not be."""
        return np.flatnonzero(self.spans[:, 2] == self.provenance.chunk_length)

    def of_document(self, number: int) -> "MemoryStore":
        """Return the chunks of one document.

        Raises:
          StoreError: there is no such document.
        """
        return self[np.flatnonzero(self.spans[:, 0] == self._number(number))]

    def append(
        self, document: StoredDocument | int, memories: Memories, spans: Int[np.ndarray, "n 4"]
    ) -> int:
        """Add chunks of a document at the end, and return the document's number.

        Args:
          document: a new document, or the number of one that is in the store.
          memories: finite memories; they are rounded to the store's dtype here.
          spans: first token, tokens, first byte and the byte after the last, per chunk.

        Raises:
          StoreError: shapes do not fit, a number is not finite, a chunk lies outside its document,
            the document is impossible, or there are too many chunks or documents; nothing is added.
        """
        new = isinstance(document, StoredDocument)
        number = len(self.documents) if new else self._number(document)
        spans = np.asarray(spans)
        StoreError.require(
            spans.shape[1:] == (len(SPAN_FIELDS) - 1,) and spans.dtype.kind in "iu",
            f"append: spans {spans.dtype}{list(spans.shape)}, expected int [n, 4]",
        )
        self._check_new([document] if new else [], len(spans))
        numbered = np.insert(spans.astype(INTEGER), 0, number, axis=1)
        own = document if new else self.documents[number]
        check_spans(numbered - [number, 0, 0, 0, 0], [own], self.provenance.chunk_length)
        leaves = self._rounded(memories, len(spans), new)
        self.documents += [own] if new else []
        self._parts.append(_Part(leaves, numbered))
        self._chunks += len(spans)
        return number

    def extend(self, other: "MemoryStore") -> None:
        """Add all documents and chunks of another store at the end, without rounding them again.

        Raises:
          StoreError: the other store has another encoder, tokenizer or dtype, or there are too many
            chunks or documents, or bytes of their names; nothing is added.
        """
        other.provenance.require_same(self.provenance, "extend")
        StoreError.require(
            other.dtype == self.dtype, f"extend: a store of {other.dtype}, expected {self.dtype}"
        )
        self._check_new(other.documents, len(other))
        spans = np.add(other.spans, [len(self.documents), 0, 0, 0, 0])
        self._parts.append(_Part({**other.stored}, spans))
        self.documents += other.documents
        self._chunks += len(spans)

    def save(self, path: str | os.PathLike) -> None:
        """Write the store to a file; a store that is there stays whole until it is replaced.

        Raises:
          StoreError: `path` exists and is not a store, or the store cannot be written.
        """
        leaves, spans = self._whole()
        contents = Contents(self.provenance, self.dtype, self.documents, leaves, spans)
        write_store(local(path), contents)

    def _whole(self) -> _Part:
        """Return all parts as one, which they then are."""
        if len(self._parts) > 1:
            self._parts = [jax.tree.map(lambda *arrays: np.concatenate(arrays), *self._parts)]
        for array in jax.tree.leaves(self._parts):
            array.setflags(write=False)
        return self._parts[0]

    def _rounded(self, memories: Memories, chunks: int, new: bool) -> Tensors:
        """Return memories as they are stored, checked against the encoder's."""
        kind, shapes = self.provenance.kind, self.provenance.leaves
        StoreError.require(
            kind == "bank" or new,
            f"append: a {kind} has a row per document. Append whole documents.",
        )
        rows = chunks if kind == "bank" else 1
        leaves = {name: np.asarray(leaf, np.float32) for name, leaf in memories.leaves.items()}
        found = {name: leaf.shape for name, leaf in leaves.items()}
        expected = {name: (rows, *shape) for name, shape in shapes.items()}
        StoreError.require(
            memories.kind == kind and found == expected,
            f"append: a {memories.kind} of {found}, expected a {kind} of {expected}",
        )
        StoreError.require(
            all(np.isfinite(leaf).all() for leaf in leaves.values()),
            "append: memories hold NaN or infinity. Check the model and its text.",
        )
        stored: Tensors = {}
        for name, leaf in leaves.items():
            stored[name], scale = rounded(leaf, self.dtype)
            stored |= {} if scale is None else {name + SCALE_SUFFIX: scale}
        return stored

    def _number(self, number: int) -> int:
        StoreError.require(
            0 <= number < len(self.documents),
            f"document {number}: expected "
            + (f"a number from 0 to {len(self.documents) - 1}" if self.documents else "none here"),
        )
        return int(number)

    def _check_new(self, documents: Sequence[StoredDocument], chunks: int) -> None:
        check_documents(documents)
        StoreError.require(
            self.provenance.kind == "bank" or len(self) + chunks <= CHUNKS_LIMIT,
            f"more chunks than {CHUNKS_LIMIT}. Begin another store.",
        )
        StoreError.require(
            len(self.documents) + len(documents) <= DOCUMENTS_LIMIT,
            f"more documents than {DOCUMENTS_LIMIT}. Begin another store.",
        )
        self._names += name_bytes(self.documents[self._counted :])
        self._counted = len(self.documents)
        StoreError.require(
            self._names + name_bytes(documents) <= NAMES_LIMIT,
            f"more than {NAMES_LIMIT} bytes of documents' names. Begin another store.",
        )


def _rows(index: slice | Sequence[int] | np.ndarray, count: int) -> slice | np.ndarray:
    """Return the numbers, from 0 to `count` - 1, that NumPy selects; a slice stays one."""
    if isinstance(index, slice):
        return index
    index = np.asarray(index)
    return np.arange(count)[index if index.size else []].reshape(-1)


def open_store(
    path: str | os.PathLike, expected: EncoderProvenance | None = None, verify: bool = True
) -> MemoryStore:
    """Open a store; its memories stay on disk until they are read.

    Args:
      path: a file that `save` wrote.
      expected: the encoder and the tokenizer that the store must be of; None accepts any. A store
        may have fewer vectors per chunk than the encoder, and shorter chunks.
      verify: whether to read all of it and compare its checksum.

    Raises:
      StoreError: the file is absent, damaged, not a store, or of another encoder or tokenizer.
    """
    path = Path(path).expanduser()
    provenance, dtype, documents, leaves, spans = read_store(path, verify)
    if expected is not None:
        provenance.require_same(expected, str(path), fewer=True)
    return MemoryStore(provenance, dtype, documents, _Part(leaves, spans))
