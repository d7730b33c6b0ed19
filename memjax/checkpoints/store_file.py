"""The file of a store: what is in it, written and read.

It is one safetensors file, written to the side and renamed:

| tensor | contents |
|---|---|
| leaf.NAME | a leaf of the memories in the stored dtype, as `leaf.vectors` [N, K, E] |
| leaf.NAME.scale | scales of an int8 (float32) or int4 (bfloat16) leaf, one per vector [N, K] |
| spans | document, first token, tokens, first byte, byte after the last, of N chunks |
| documents | tokens, bytes, first byte in the source, of D documents |
| names | names of the documents in UTF-8, one per line |

An int4 leaf has two numbers to a byte (int4.py). The last three are bytes that zlib compressed, the
first two of them tables of steps (store_columns.py). The metadata are `memjax`, a JSON object of
`format`, `dtype`, `chunks`, `documents` and `encoder` (store_records.py), and `sha256` of that text
and all tensors. In format 1, which is still read, the tables are int64 [N, 5] and [D, 3], the names
are not compressed, and the metadata have no counts.

A store may come from anywhere: sizes and bounds are checked before its contents are read, and no
path in it is opened.

Shapes: N chunk, D document, K vector of a chunk, E its width.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError, safe_open

from memjax.checkpoints.store_columns import (
    packed_bytes,
    packed_table,
    size_steps,
    sizes_of_steps,
    span_steps,
    spans_of,
    unpacked_bytes,
    unpacked_table,
)
from memjax.checkpoints.store_records import (
    FORMAT,
    INTEGER,
    NAME_LIMIT,
    NAMES_LIMIT,
    SAFETENSORS,
    SCALE_SUFFIX,
    SPAN_FIELDS,
    EncoderProvenance,
    Metadata,
    StoredDocument,
    StoreError,
    Tensors,
    check_spans,
    digest,
    documents_of,
    leaf_rows,
    read_metadata,
    sizes_of,
    tensor_layout,
)
from memjax.files import atomic_file, parse_json
from memjax.files.tensors import read_header, save_tensors

HEADER_LIMIT = 2**17
"""Bytes of the header, at most."""


class Contents(NamedTuple):
    """All that a file holds."""

    provenance: EncoderProvenance
    dtype: str
    documents: list[StoredDocument]
    leaves: Tensors
    """As they are stored, with scales."""
    spans: Int[np.ndarray, "N 5"]


def write_store(path: Path, contents: Contents) -> None:
    """Write a store; one that is there stays whole until it is replaced.

    Raises:
      StoreError: `path` exists and is not a store, or the store could not be opened again.
    """
    if path.exists():
        read_store(path, verify=False)
    provenance, dtype, documents, leaves, spans = contents
    tensors = {
        **{f"leaf.{name}": leaf for name, leaf in leaves.items()},
        "spans": packed_table(span_steps(spans, provenance.chunk_length)),
        "documents": packed_table(size_steps(sizes_of(documents))),
        "names": packed_bytes("\n".join(x.name for x in documents).encode()),
    }
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    counts = {"chunks": len(spans), "documents": len(documents)}
    encoder = dataclasses.asdict(provenance)
    text = json.dumps({"format": FORMAT, "dtype": dtype, **counts, "encoder": encoder})
    with atomic_file(path, sync=True) as temporary:
        save_tensors(temporary, tensors, {"memjax": text, "sha256": digest(text, tensors)})
        with _refusing(path):
            _read(temporary, verify=False)  # A store that could not be opened is not written.


def read_store(path: Path, verify: bool) -> Contents:
    """Return the contents of a file; leaves stay on disk until they are read.

    Args:
      path: a file that `write_store` wrote, today or in format 1.
      verify: whether to read all of it and compare its checksum.

    Raises:
      StoreError: the file is absent, damaged or not a store.
    """
    with _refusing(path):
        return _read(path, verify)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Raise what fails in reading a store as a StoreError that names `path`."""
    try:
        yield
    except (OSError, RecursionError, SafetensorError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise StoreError(
            f"{path}: {reason}, expected a store of `memjax compress`. Compress the text again."
        ) from error


def _read(path: Path, verify: bool) -> Contents:
    # Opening a pipe would wait.
    StoreError.require(path.is_file() or not path.exists(), "not a file")
    header = read_header(path, HEADER_LIMIT)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        found = {name: (x.get_dtype(), tuple(x.get_shape())) for name, x in slices.items()}
    text = metadata.get("memjax", "")
    sizes = {name: shape[0] if shape else 0 for name, (_, shape) in found.items()}
    info = read_metadata(parse_json(text, "metadata", StoreError) if text else None, sizes)
    provenance, dtype = info.encoder, info.dtype
    layout = tensor_layout(info, sizes)
    for name in layout.keys() | found.keys():
        kind, shape = layout.get(name, (INTEGER, ()))
        StoreError.require(
            name in layout and found.get(name) == (SAFETENSORS[kind.name], shape),
            f"tensor {name[:60]!r} is {found.get(name, 'absent')}",
        )
    raw, place, tensors = np.memmap(path, np.uint8, "r"), len(header), {}
    for name in found:  # Safetensors lie without gaps, in this order.
        kind, shape = layout[name]
        end = place + kind.itemsize * int(np.prod(shape))
        tensors[name] = np.asarray(raw[place:end]).view(kind).reshape(shape)
        place = end
    StoreError.require(
        not verify or digest(text, tensors) == metadata.get("sha256"),
        "contents that are not those that were written (sha256 differs)",
    )
    documents, spans = _records(info, tensors)
    check_spans(spans, documents, provenance.chunk_length)
    leaves = {name: tensors[f"leaf.{name}"] for name in leaf_rows(provenance, dtype)}
    for name, leaf in leaves.items():
        StoreError.require(
            not name.endswith(SCALE_SUFFIX) or ((leaf >= 0) & (leaf < np.inf)).all(),
            "a scale that is negative or not finite",
        )
    return Contents(provenance, dtype, documents, leaves, spans)


def _records(
    info: Metadata, tensors: Mapping[str, np.ndarray]
) -> tuple[list[StoredDocument], Int[np.ndarray, "N 5"]]:
    """Return documents, checked, and spans, which are not."""
    if info.format == 1:
        return documents_of(tensors["documents"], bytes(tensors["names"])), tensors["spans"]
    columns = len(StoredDocument._fields) - 1
    sizes = unpacked_table(tensors["documents"], info.documents, columns, "documents")
    # A character of UTF-8 has 4 bytes at most, and a name is followed by the end of its line.
    limit = min(NAMES_LIMIT, info.documents * (4 * NAME_LIMIT + 1))
    names = unpacked_bytes(tensors["names"], limit, "names")
    documents = documents_of(sizes_of_steps(sizes), names)
    steps = unpacked_table(tensors["spans"], info.chunks, len(SPAN_FIELDS), "spans")
    return documents, spans_of(steps, info.encoder.chunk_length)
