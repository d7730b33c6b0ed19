"""Memories of documents: append, select, read, save and open.

The file is that of store_file.py; a folder of such files is that of store_folder.py.

Shapes: N chunk, n chunk that is appended.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from memjax.checkpoints.rounding import rounded, widened
from memjax.checkpoints.store_file import Contents, read_store, write_store
from memjax.checkpoints.store_folder import append_part, read_folder
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
from memjax.checkpoints.store_rows import Part, joined, selected, taken, whole
from memjax.files import local
from memjax.models.memory import Memories


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
        parts: Sequence[Part] = (),
        spans: Int[np.ndarray, "N 5"] | None = None,
    ):
        """Make a store, by default an empty one.

        Args:
          provenance: the encoder and the tokenizer.
          dtype: `float32`, `bfloat16`, `float8_e4m3`, or `int8` or `int4` with a scale per vector.
          documents: all documents of `spans`.
          parts: leaves as they are stored.
          spans: as the property; required with `parts`.

        Raises:
          StoreError: the dtype is unknown.
        """
        self.provenance, self.dtype, self.documents = provenance, dtype, list(documents)
        self._parts = list(parts) or [_empty(provenance, dtype)]
        self._spans = [np.empty((0, len(SPAN_FIELDS)), INTEGER) if spans is None else spans]
        self._chunks = len(self._spans[0])
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

        Memories of a slice stay where they are; others are copied.

        Raises:
          IndexError: a number is out of range.
        """
        index, parts = _rows(index, len(self)), self.parts
        if self.provenance.kind == "bank":
            ascends = isinstance(index, slice) and (index.step or 1) > 0
            parts = selected(parts, index) if ascends else [Part(taken(parts, index))]
        return MemoryStore(self.provenance, self.dtype, self.documents, parts, self.spans[index])

    @property
    def spans(self) -> Int[np.ndarray, "N 5"]:
        """Document, first token, tokens, first byte and byte after the last, per chunk."""
        if len(self._spans) > 1:
            self._spans = [np.concatenate(self._spans)]
        self._spans[0].setflags(write=False)
        return self._spans[0]

    @property
    def stored(self) -> Mapping[str, np.ndarray]:
        """Leaves as they are stored; those of int8 and int4 have a second, `NAME.scale`.

        Of a store of several files this is a copy.
        """
        leaves = whole(self.parts)
        for leaf in leaves.values():
            leaf.setflags(write=False)
        return leaves

    @property
    def nbytes(self) -> int:
        """Bytes of the stored leaves."""
        return sum(leaf.nbytes for part in self._parts for leaf in part.leaves.values())

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
        bank = self.provenance.kind == "bank"
        rows = len(self) if bank else len(self.documents)
        index = _rows(index, rows)
        numbers = np.arange(rows)[index]
        count = len(numbers) if bank else int(np.isin(self.spans[:, 0], numbers).sum())
        own = taken(self.parts, index)
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
        self._parts.append(Part(leaves))
        self._spans.append(numbered)
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
        self._parts += other.parts
        self._spans.append(spans)
        self.documents += other.documents
        self._chunks += len(spans)

    def save(self, path: str | os.PathLike) -> None:
        """Write the store to one file; a store that is there stays whole until it is replaced.

        Raises:
          StoreError: `path` exists and is not a store, or the store cannot be written.
        """
        write_store(local(path), self.contents)

    def save_part(self, folder: str | os.PathLike) -> None:
        """Add the store to a store of several files, as its last part.

        Args:
          folder: a folder that `memjax compress` wrote; it stays as it is until the part is there.

        Raises:
          StoreError: it is none, is unfinished, or is of another encoder or dtype.
        """
        append_part(local(folder), self.contents)

    @property
    def contents(self) -> Contents:
        """All that a file of the store holds."""
        leaves = {**self.stored}
        return Contents(self.provenance, self.dtype, self.documents, leaves, self.spans)

    @property
    def parts(self) -> list[Part]:
        """Leaves as they are stored, by file; those in memory that follow each other are one."""
        self._parts = joined(self._parts)
        return list(self._parts)

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


def _empty(provenance: EncoderProvenance, dtype: str) -> Part:
    rows = leaf_rows(provenance, dtype)
    return Part({name: np.empty((0, *shape), kind) for name, (kind, shape) in rows.items()})


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
      path: a file that `save` wrote, or a folder of several that `memjax compress` wrote.
      expected: the encoder and the tokenizer that the store must be of; None accepts any. A store
        may have fewer vectors per chunk than the encoder, and shorter chunks.
      verify: whether to read all of it and compare its checksum.

    Raises:
      StoreError: the store is absent, damaged, incomplete, of several encoders, or of another
        encoder or tokenizer.
    """
    path = Path(path).expanduser()
    found = read_folder(path, verify) if path.is_dir() else [read_store(path, verify)]
    if expected is not None:
        found[0].provenance.require_same(expected, str(path), fewer=True)
    documents = [document for part in found for document in part.documents]
    before = np.cumsum([0] + [len(part.documents) for part in found])
    spans = [
        np.add(part.spans, [first, 0, 0, 0, 0]) if first else part.spans
        for part, first in zip(found, before.tolist(), strict=False)
    ]
    parts = [Part(part.leaves, opened=True) for part in found]
    whole_spans = spans[0] if len(spans) == 1 else np.concatenate(spans)
    return MemoryStore(found[0].provenance, found[0].dtype, documents, parts, whole_spans)
