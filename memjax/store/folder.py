"""A store on disk: a folder of a header and raw little-endian arrays, read without copying and replaced as a whole.

| file | holds |
|---|---|
| store.json | the header (header.py) |
| memories.bin | [N, K, E] of the stored dtype |
| scales.bin | float32 [N, K], of int8 only |
| spans.bin | int64 [N, 5]: document, first token and tokens of the chunk, first byte in the source and the one after the last |
| documents.bin | int64 [D, 4]: tokens, bytes, first byte in the source, end of the name |
| names.bin | names of the documents in UTF-8, one after another |

Shapes: N chunk, K vector of a chunk, E its width, D document.
"""

import dataclasses
import hashlib
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from memjax.store.header import (
    DOCUMENT_FIELDS,
    DOCUMENTS_LIMIT,
    HEADER,
    HEADER_LIMIT,
    LARGEST,
    NAME_LIMIT,
    NAMES_LIMIT,
    SPAN_FIELDS,
    File,
    Header,
    Origin,
    StoreError,
    parse_header,
)
from memjax.store.rounding import DTYPES, SCALE

FILES = (HEADER, "memories.bin", "scales.bin", "spans.bin", "documents.bin", "names.bin")
INTEGER = np.dtype("<i8")
_BLOCK = 2**16
"""Rows looked at together."""
_REMEDY = "compress the text again"


class StoredDocument(NamedTuple):
    """A text whose chunks a store holds, or held."""

    name: str
    """A label, never opened."""
    tokens: int
    bytes: int
    """Of UTF-8."""
    start: int = 0
    """Byte of the source where the text begins."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """All that a folder holds. Arrays may lie on disk."""

    origin: Origin
    dtype: str
    documents: list[StoredDocument]
    memories: Shaped[np.ndarray, "N K E"]
    scales: Float[np.ndarray, "N K"] | None
    spans: Int[np.ndarray, "N 5"]


def check_documents(documents: list[StoredDocument], where: str) -> None:
    """Raises StoreError, about the store `where`, if there are too many documents or one is impossible."""
    if len(documents) > DOCUMENTS_LIMIT:
        raise StoreError(f"{where}: {len(documents)} documents, where a store holds {DOCUMENTS_LIMIT} at most")
    for document in documents:
        check_document(document, where)


def check_document(document: StoredDocument, where: str) -> None:
    """Raises StoreError, about the store `where`, if a document's name or sizes are impossible."""
    if not 0 < len(document.name) <= NAME_LIMIT or not document.name.isprintable():
        raise StoreError(f"{where}: {document.name[:60]!r} is no name of a document: 1 to {NAME_LIMIT} printable characters")
    for size in document[1:]:
        if not 0 <= size <= LARGEST:
            raise StoreError(f"{where}: document {document.name} has a size of {size}; sizes are 0 to {LARGEST}")


def check_spans(spans: Int[np.ndarray, "N 5"], documents: list[StoredDocument], length: int, where: str) -> None:
    """Raises StoreError, about the store `where`, if a chunk is of no document or lies outside its own.

    Args:
      spans: as they are stored.
      documents: those there are.
      length: tokens of a chunk, at most.
      where: for the message.
    """
    sizes = np.array([document[1:] for document in documents], INTEGER).reshape(-1, 3)
    for begin in range(0, len(spans), _BLOCK):
        block = spans[begin : begin + _BLOCK]
        wrong = ((block < 0) | (block > LARGEST)).any(axis=1) | (block[:, 0] >= len(documents))
        if not wrong.any():
            document, token, tokens, first, last = block.T
            size, text_bytes, start = sizes[document].T
            wrong = (tokens < 1) | (tokens > length) | (token + tokens > size)
            wrong |= (first < start) | (last < first) | (last > start + text_bytes)
        if wrong.any():
            at = int(wrong.argmax())
            fields = ", ".join(f"{name} {int(x)}" for name, x in zip(SPAN_FIELDS, block[at], strict=True))
            raise StoreError(
                f"{where}: chunk {begin + at} lies outside its document or is longer than {length} tokens ({fields})"
            )


def read_folder(folder: str | os.PathLike, expected: Origin | None = None, verify: bool = True) -> Stored:
    """What a folder holds; arrays are mapped, not read.

    Args:
      folder: what `write_folder` wrote.
      expected: whose memories they must be, looked at before any of them is; None is anyone's.
      verify: read all and compare checksums.

    Raises:
      StoreError: it is absent, damaged, no store, or of another encoder or tokenizer.
    """
    folder = _real(folder)
    # A process that was killed between the two renames of `_put` left the old store under this name.
    folder = _aside(folder) if not folder.exists() and _aside(folder).is_dir() else folder
    header = parse_header(bytes(_mapped(folder / HEADER, HEADER_LIMIT, exactly=False)), str(folder / HEADER))
    if expected is not None:
        header.origin.require_same(expected, str(folder))
    data = {name: _mapped(folder / name, file.bytes) for name, file in header.files.items()}
    if verify:
        for name, file in header.files.items():
            if hashlib.sha256(data[name]).hexdigest() != file.sha256:
                raise StoreError(f"{folder / name}: the contents are not those that were written (sha256 differs); {_REMEDY}")
    documents = _documents(data["documents.bin"], bytes(data["names.bin"]), header.documents, folder)
    spans = np.frombuffer(data["spans.bin"], INTEGER).reshape(-1, len(SPAN_FIELDS))
    check_spans(spans, documents, header.origin.chunk_length, str(folder / "spans.bin"))
    shape = (header.chunks, *header.origin.shape)
    scales = np.frombuffer(data["scales.bin"], SCALE).reshape(shape[:2]) if "scales.bin" in data else None
    for begin in range(0, header.chunks if scales is not None else 0, _BLOCK):
        block = scales[begin : begin + _BLOCK]  # pyrefly: ignore
        if not (np.isfinite(block) & (block >= 0)).all():
            raise StoreError(f"{folder / 'scales.bin'}: a scale is negative or not finite; {_REMEDY}")
    memories = np.frombuffer(data["memories.bin"], DTYPES[header.dtype]).reshape(shape)
    return Stored(header.origin, header.dtype, documents, memories, scales, spans)


def write_folder(folder: str | os.PathLike, stored: Stored) -> None:
    """Writes a store in a hidden folder beside `folder` and renames it, in place of a store that may be there.

    A process that is killed leaves the old store whole, if there was one, and perhaps that hidden folder (`.NAME.*.tmp`).

    Raises:
      StoreError: there is something else than a store, or names take too much room.
    """
    folder = _real(folder)
    _require_ours(folder)
    _require_ours(_aside(folder), whole=False)
    names = [document.name.encode() for document in stored.documents]
    ends = np.cumsum([0, *map(len, names)])[1:]
    if len(names) and ends[-1] > NAMES_LIMIT:
        raise StoreError(f"{folder}: names of documents take {ends[-1]} bytes, where a store holds {NAMES_LIMIT} at most")
    table = np.array([document[1:] for document in stored.documents], INTEGER).reshape(-1, len(DOCUMENT_FIELDS) - 1)
    arrays: dict[str, np.ndarray] = {
        "memories.bin": stored.memories,
        "spans.bin": stored.spans.astype(INTEGER, copy=False),
        "documents.bin": np.concatenate([table, ends[:, None].astype(INTEGER)], axis=1),
        "names.bin": np.frombuffer(b"".join(names), np.uint8),
    }
    if stored.scales is not None:
        arrays["scales.bin"] = stored.scales.astype(SCALE, copy=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        files = {name: _write(temporary / name, array) for name, array in arrays.items()}
        header = Header(stored.origin, stored.dtype, len(stored.memories), len(names), files).to_bytes()
        parse_header(header, str(folder / HEADER))  # What could not be read again is not written.
        _write(temporary / HEADER, np.frombuffer(header, np.uint8))
        _put(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _require_ours(folder: Path, whole: bool = True) -> None:
    """Raises StoreError if there is something at `folder` that is neither a store (`whole`, or partly deleted) nor an empty folder."""
    if not folder.exists():
        return
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if not folder.is_dir() or found - set(FILES) or (whole and found and HEADER not in found):
        other = ", ".join(sorted(found - set(FILES) or found)[:3])
        raise StoreError(f"{folder}: is there and no store (it holds {other}); give a new folder or that of a store")


def _real(folder: str | os.PathLike) -> Path:
    return Path(folder).expanduser().resolve()


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _put(temporary: Path, folder: Path) -> None:
    """Renames `temporary` to `folder`; a folder that is there stands aside for that moment, where `read_folder` finds it."""
    aside = _aside(folder)
    replaced = folder.exists()
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        temporary.rename(folder)
    except BaseException:
        if replaced:
            aside.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, array: np.ndarray) -> File:
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    with open(path, "wb") as stream:
        stream.write(raw.data)
        stream.flush()
        os.fsync(stream.fileno())
    return File(raw.size, hashlib.sha256(raw.data).hexdigest())


def _sync(folder: Path) -> None:
    """Lets a rename outlive a loss of power, where the system knows how."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _mapped(path: Path, size: int, exactly: bool = True) -> mmap.mmap | bytes:
    """The contents of a file of exactly (or at most) `size` bytes, mapped and not read."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):  # A pipe would be waited for.
            raise StoreError(f"{path}: is no file; give the folder of a store")
        with open(path, "rb") as stream:
            found = os.fstat(stream.fileno()).st_size
            if found > size or (exactly and found < size):
                limit = "were written" if exactly else "are the most there can be"
                raise StoreError(f"{path}: holds {found} bytes, where {size} {limit}; {_REMEDY}")
            return mmap.mmap(stream.fileno(), found, access=mmap.ACCESS_READ) if found else b""
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file, so there is no store here, or not all of it") from None
    except (OSError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: cannot be read ({error})") from error


def _documents(raw: mmap.mmap | bytes, names: bytes, count: int, folder: Path) -> list[StoredDocument]:
    table = np.frombuffer(raw, INTEGER).reshape(count, len(DOCUMENT_FIELDS))
    ends = table[:, -1]
    ordered = not count or (ends[0] > 0 and (np.diff(ends) > 0).all() and ends[-1] == len(names))
    if not ordered or (names and not count) or not ((table >= 0) & (table <= LARGEST)).all():
        raise StoreError(f"{folder / 'documents.bin'}: sizes or names of documents are impossible; {_REMEDY}")
    try:
        words = list(_split(names, ends.tolist()))
    except UnicodeDecodeError as error:
        raise StoreError(f"{folder / 'names.bin'}: a document's name is no UTF-8; {_REMEDY}") from error
    documents = [StoredDocument(word, *row) for word, row in zip(words, table[:, :-1].tolist(), strict=True)]
    check_documents(documents, str(folder / "names.bin"))
    return documents


def _split(names: bytes, ends: list[int]) -> Iterator[str]:
    begin = 0
    for end in ends:
        yield names[begin:end].decode()
        begin = end
