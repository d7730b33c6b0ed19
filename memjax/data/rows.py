"""Rows of tokens on disk: documents joined and cut into equal lengths, read in any order.

N: tokens in a row. A folder holds, for each split, `{split}-00000-of-00001.arrayrecord` (a record is a row: N little-endian uint16, or
uint32 where the vocabulary has more than 65,536 entries) and `{split}.json`, which says what is in it and by which tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from memjax.data.tokenizer import Tokenizer

FORMAT = 1
_SHORT, _LONG = np.dtype("<u2"), np.dtype("<u4")
_REMEDY = "delete the folder so that it is built again"


class RowsError(ValueError):
    """Rows are absent, damaged, too few or of another tokenizer; the message names the file."""


def pack(token_arrays: Iterable[np.ndarray], row_tokens: int, eos_id: int, vocabulary: int = 65536) -> Iterator[np.ndarray]:
    """Joins documents [tokens], `eos_id` between them, and cuts the stream into rows [N]; an unfilled tail is dropped.

    Rows are uint16, or uint32 where `vocabulary` needs it.

    Raises:
      RowsError: an id is not of the vocabulary.
    """
    stored = _SHORT if vocabulary <= 65536 else _LONG
    separator = np.array([eos_id], stored)
    waiting: list[np.ndarray] = []
    tokens = 0
    for number, array in enumerate(token_arrays):
        if array.size and not 0 <= array.min() <= array.max() < vocabulary:
            raise RowsError(
                f"ids {array.min()} to {array.max()} are not all below the vocabulary of {vocabulary}; config.data.vocabulary must"
                " be that of the tokenizer"
            )
        waiting += [separator, array.astype(stored)] if number else [array.astype(stored)]
        tokens += array.size + bool(number)
        if tokens >= row_tokens:
            stream = np.concatenate(waiting)
            whole = tokens - tokens % row_tokens
            yield from stream[:whole].reshape(-1, row_tokens)
            waiting, tokens = [stream[whole:]], tokens - whole


def write_rows(
    folder: Path, split: str, token_arrays: Iterable[np.ndarray], row_tokens: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Packs documents [tokens] into the rows of one split and returns what `{split}.json` says of them.

    That is `rows`, `row_tokens`, `documents`, `tokens` (in rows), `bytes` (of UTF-8 text in rows), `dropped_tokens` (the tail),
    `fingerprint` (of the tokenizer), `files` (name to `bytes` and `sha256`) and `format`.

    Raises:
      RowsError: an id is not of the tokenizer's vocabulary.
    """
    documents = seen = rows = text_bytes = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal documents, seen
        for array in token_arrays:
            seen += array.size + bool(documents)
            documents += 1
            yield array

    shard = Path(folder) / f"{split}-00000-of-00001.arrayrecord"
    # One row a group: rows are read one by one, in shuffled order. They are too short to compress.
    writer = ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
    try:
        for row in pack(counted(), row_tokens, tokenizer.eos_id, tokenizer.vocabulary):
            writer.write(row.tobytes())
            rows += 1
            text_bytes += int(tokenizer.byte_lengths[row].sum())
    finally:
        writer.close()
    info = {
        "format": FORMAT,
        "row_tokens": row_tokens,
        "rows": rows,
        "documents": documents,
        "tokens": rows * row_tokens,
        "bytes": text_bytes,
        "dropped_tokens": seen - rows * row_tokens,
        "fingerprint": tokenizer.fingerprint,
        "files": {shard.name: {"bytes": shard.stat().st_size, "sha256": _sha256(shard)}},
    }
    (Path(folder) / f"{split}.json").write_text(json.dumps(info, indent=2) + "\n")
    return info


class Rows:
    """The rows of one split, in random access; safe to read from many threads."""

    def __init__(self, folder: Path, info: dict[str, Any]):
        """`folder` and the contents of its `{split}.json`; use `open_rows`, which checks them."""
        self.folder = folder
        self.info = info
        self.row_tokens: int = info["row_tokens"]
        self._source = grain.sources.ArrayRecordDataSource([str(folder / name) for name in info["files"]])

    def __len__(self) -> int:
        return self.info["rows"]

    def __getitem__(self, index: int) -> np.ndarray:
        """Row `index` as int32 [N]; negative indices count from the end.

        Raises:
          IndexError: there is no such row.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        try:
            record = self._source[int(index) % len(self)]
        except (RuntimeError, ValueError) as error:
            raise RowsError(f"{self.folder}: row {index} cannot be read ({error}); {_REMEDY}") from error
        stored = _SHORT if len(record) == self.row_tokens * _SHORT.itemsize else _LONG
        return np.frombuffer(record, stored).astype(np.int32)

    def verify(self) -> None:
        """Reads every byte and compares checksums, which `open_rows` does not take the time for.

        Raises:
          RowsError: a file is not what was written.
        """
        for name, file in self.info["files"].items():
            if _sha256(self.folder / name) != file["sha256"]:
                raise RowsError(
                    f"{self.folder / name}: the contents are not those that were written (sha256 differs); {_REMEDY}"
                )


def open_rows(folder: str | os.PathLike, split: str, fingerprint: str) -> Rows:
    """Opens the rows of `split` that the tokenizer of this fingerprint made.

    Raises:
      RowsError: a file is absent, cut short or unreadable, or another tokenizer made the rows.
    """
    folder = Path(folder)
    about = folder / f"{split}.json"
    try:
        info = json.loads(about.read_text())
        version, made_by, files = info["format"], info["fingerprint"], info["files"]
        sizes = {folder / name: file["bytes"] for name, file in files.items()}
    except FileNotFoundError as error:
        raise RowsError(f"{about}: no such file, so there are no {split} rows here; {_REMEDY}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RowsError(f"{about}: does not describe rows ({type(error).__name__}: {error}); {_REMEDY}") from error
    if version != FORMAT:
        raise RowsError(f"{about}: rows of format {version}, while this memjax reads format {FORMAT}; {_REMEDY}")
    if made_by != fingerprint:
        raise RowsError(f"{about}: made by tokenizer {made_by}, while the one in use is {fingerprint}; {_REMEDY}")
    for file, size in sizes.items():
        found = file.stat().st_size if file.exists() else None
        if found != size:
            what = "no such file" if found is None else f"holds {found} bytes"
            raise RowsError(f"{file}: {what}, where {size} bytes were written; {_REMEDY}")
    try:
        rows = Rows(folder, info)
        stored = len(rows._source)
    except (RuntimeError, ValueError, KeyError) as error:
        raise RowsError(f"{folder}: the {split} rows are unreadable ({error}); {_REMEDY}") from error
    if stored != len(rows):
        raise RowsError(f"{folder}: {stored} {split} rows are stored, where {about.name} counts {len(rows)}; {_REMEDY}")
    return rows


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
