"""Memories of documents: append, select, read, save and open.

A store is one safetensors file, written to the side and renamed:

| tensor | contents |
|---|---|
| leaf.NAME | a leaf of the memories in the stored dtype, as `leaf.vectors` [N, K, E] |
| leaf.NAME.scale | scales of an int8 (float32) or int4 (bfloat16) leaf, one per vector [N, K] |
| spans | int64 [N, 5]: document, first token, number of tokens, first byte, byte after the last |
| documents | int64 [D, 3]: tokens, bytes, first byte in the source |
| names | uint8: names of the documents in UTF-8, one per line |

Its metadata are `memjax`, a JSON object of `format`, `dtype` and `encoder` (store_records.py), and
`sha256` of that text and all tensors. A store may come from anywhere: sizes and bounds are checked
before its contents are read, and no path in it is opened.

Shapes: N chunk, D document, K vector of a chunk, E its width, n chunk that is appended.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from memjax.checkpoints.rounding import rounded, widened
from memjax.checkpoints.store_records import (
    DOCUMENTS_LIMIT,
    FORMAT,
    INTEGER,
    SAFETENSORS,
    SCALE_SUFFIX,
    SPAN_FIELDS,
    EncoderProvenance,
    StoredDocument,
    StoreError,
    Tensors,
    check_documents,
    check_spans,
    digest,
    documents_of,
    leaf_rows,
    read_encoder,
    sizes_of,
    tensor_layout,
)
from memjax.files import atomic_file, local, parse_json
from memjax.models.memory import Memories

HEADER_LIMIT = 2**17
"""Bytes of the header, at most."""


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

    def __repr__(self) -> str:
        """Return its size and dtype."""
        documents = f"{len(self.documents)} documents"
        return f"MemoryStore({len(self)} chunks, {documents}, {self.dtype})"

    def __len__(self) -> int:
        """Return the number of chunks."""
        return sum(len(part.spans) for part in self._parts)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> "MemoryStore":
        """Return a store of some chunks, selected as NumPy selects rows.

        Raises:
          IndexError: a number is out of range.
        """
        index = index if isinstance(index, slice) else np.asarray(index, INTEGER).reshape(-1)
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
        numbers = np.arange(len(spans) if bank else len(self.documents))[index]
        count = len(numbers) if bank else int(np.isin(spans[:, 0], numbers).sum())
        rows = {name: leaf[index] for name, leaf in leaves.items()}
        wide = {
            name: widened(rows[name], rows.get(name + SCALE_SUFFIX), shape[-1])
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
            or the document is impossible; nothing is added.
        """
        new = isinstance(document, StoredDocument)
        number = len(self.documents) if new else self._number(document)
        self._check_new([document] if new else [])
        spans = np.asarray(spans)
        StoreError.require(
            spans.shape[1:] == (len(SPAN_FIELDS) - 1,) and spans.dtype.kind in "iu",
            f"append: spans {spans.dtype}{list(spans.shape)}, expected int [n, 4]",
        )
        numbered = np.insert(spans.astype(INTEGER), 0, number, axis=1)
        own = document if new else self.documents[number]
        check_spans(numbered - [number, 0, 0, 0, 0], [own], self.provenance.chunk_length)
        leaves = self._rounded(memories, len(spans), new)
        self.documents += [own] if new else []
        self._parts.append(_Part(leaves, numbered))
        return number

    def extend(self, other: "MemoryStore") -> None:
        """Add all documents and chunks of another store at the end, without rounding them again.

        Raises:
          StoreError: the other store has another encoder, tokenizer or dtype, or there are too many
            documents; nothing is added.
        """
        other.provenance.require_same(self.provenance, "extend")
        StoreError.require(
            other.dtype == self.dtype, f"extend: a store of {other.dtype}, expected {self.dtype}"
        )
        self._check_new(other.documents)
        spans = np.add(other.spans, [len(self.documents), 0, 0, 0, 0])
        self._parts.append(_Part({**other.stored}, spans))
        self.documents += other.documents

    def save(self, path: str | os.PathLike) -> None:
        """Write the store to a file; a store that is there stays whole until it is replaced.

        Raises:
          StoreError: `path` exists and is not a store, or the store cannot be written.
        """
        path = local(path)
        if path.exists():
            open_store(path, verify=False)
        leaves, spans = self._whole()
        tensors = {
            **{f"leaf.{name}": leaf for name, leaf in leaves.items()},
            "spans": spans,
            "documents": sizes_of(self.documents),
            "names": np.frombuffer("\n".join(x.name for x in self.documents).encode(), np.uint8),
        }
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        encoder = dataclasses.asdict(self.provenance)
        text = json.dumps({"format": FORMAT, "dtype": self.dtype, "encoder": encoder})
        with atomic_file(path, sync=True) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # Safetensors would let only the owner read the file.
            save_file(tensors, temporary, {"memjax": text, "sha256": digest(text, tensors)})
            temporary.chmod(mode)
            _order_metadata(temporary)
            open_store(temporary, verify=False)  # A store that could not be opened is not written.

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
            f"document {number}: expected a number from 0 to {len(self.documents) - 1}",
        )
        return int(number)

    def _check_new(self, documents: Sequence[StoredDocument]) -> None:
        check_documents(documents)
        StoreError.require(
            len(self.documents) + len(documents) <= DOCUMENTS_LIMIT,
            f"more documents than {DOCUMENTS_LIMIT}. Begin another store.",
        )


def _order_metadata(path: Path) -> None:
    """Sort the metadata of a file, which safetensors writes in random order."""
    with open(path, "r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        stream.seek(8)
        stream.write(json.dumps(header, separators=(",", ":")).encode().ljust(size))


def open_store(
    path: str | os.PathLike, expected: EncoderProvenance | None = None, verify: bool = True
) -> MemoryStore:
    """Open a store; its memories stay on disk until they are read.

    Args:
      path: a file that `save` wrote.
      expected: the encoder and the tokenizer that the store must be of; None accepts any.
      verify: whether to read all of it and compare its checksum.

    Raises:
      StoreError: the file is absent, damaged, not a store, or of another encoder or tokenizer.
    """
    path = Path(path).expanduser()
    try:
        store = _open(path, verify)
    except (OSError, RecursionError, SafetensorError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = "".join(c if c.isprintable() else "?" for c in reason[:300])
        raise StoreError(
            f"{path}: {reason}, expected a store of `memjax compress`. Compress the text again."
        ) from error
    if expected is not None:
        store.provenance.require_same(expected, str(path))
    return store


def _open(path: Path, verify: bool) -> MemoryStore:
    # Opening a pipe would wait.
    StoreError.require(path.is_file() or not path.exists(), "not a file")
    with open(path, "rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    StoreError.require(
        header <= HEADER_LIMIT, f"a header of {header} bytes, of which {HEADER_LIMIT} are read"
    )
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        found = {name: (x.get_dtype(), tuple(x.get_shape())) for name, x in slices.items()}
    text = metadata.get("memjax", "")
    provenance, dtype = read_encoder(parse_json(text, "metadata", StoreError) if text else None)
    sizes = {name: shape[0] if shape else 0 for name, (_, shape) in found.items()}
    counts = (sizes.get(name, 0) for name in ("spans", "documents", "names"))
    layout = tensor_layout(provenance, dtype, *counts)
    for name in layout.keys() | found.keys():
        kind, shape = layout.get(name, (INTEGER, ()))
        StoreError.require(
            name in layout and found.get(name) == (SAFETENSORS[kind.name], shape),
            f"tensor {name[:60]!r} is {found.get(name, 'absent')}",
        )
    raw, place, tensors = np.memmap(path, np.uint8, "r"), 8 + header, {}
    for name in found:  # Safetensors lie without gaps, in this order.
        kind, shape = layout[name]
        end = place + kind.itemsize * int(np.prod(shape))
        tensors[name] = np.asarray(raw[place:end]).view(kind).reshape(shape)
        place = end
    StoreError.require(
        not verify or digest(text, tensors) == metadata.get("sha256"),
        "contents that are not those that were written (sha256 differs)",
    )
    documents = documents_of(tensors["documents"], tensors["names"])
    check_spans(tensors["spans"], documents, provenance.chunk_length)
    leaves = {name: tensors[f"leaf.{name}"] for name in leaf_rows(provenance, dtype)}
    for name, leaf in leaves.items():
        StoreError.require(
            not name.endswith(SCALE_SUFFIX) or ((leaf >= 0) & (leaf < np.inf)).all(),
            "a scale that is negative or not finite",
        )
    return MemoryStore(provenance, dtype, documents, _Part(leaves, tensors["spans"]))
