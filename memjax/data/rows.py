"""Rows of tokens on disk, read in any order.

N: tokens in a row. A folder holds, for each split, `{split}.json`, which says what is in it and by which tokenizer, and the files it lists,
`{split}-00000-of-00001.arrayrecord` and so on (a record is a row: N little-endian uint16, or uint32 where the vocabulary has more than
65,536 entries). Of a mixture the parts lie in folders of their own, which `{split}.json` lists with their weights.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from memjax.data.layouts import Layout, RowMaker, RowsError, document_ids, pack, read_records
from memjax.data.records import Records
from memjax.data.tokenizer import Tokenizer

FORMAT = 2
_READABLE = (1, 2)
_REMEDY = "delete the folder so that it is built again"
SUMS = ("rows", "documents", "tokens", "padding", "bytes", "dropped_tokens")
"""Counts of a split that add up over its shards and parts."""


class Shard:
    """Rows of one split on their way into one file, which is not there before `finish` and has no rows to be there for if none came.

    `file` appears whole or not at all.
    """

    def __init__(self, file: Path, layout: Layout, tokenizer: Tokenizer):
        self._file, self._temporary = file, file.with_name(f".{file.name}.{os.getpid()}.tmp")
        self._maker = RowMaker(layout, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocabulary)
        self._byte_lengths, self._bytes = tokenizer.byte_lengths, 0
        self._writer: Any = None

    def add(self, arrays: Sequence[np.ndarray]) -> None:
        """Takes documents [tokens].

        Raises:
          RowsError: an id is not of the tokenizer's vocabulary.
          OSError: the disk refuses.
        """
        rows = self._maker.add(arrays)
        if not len(rows):
            return
        if self._writer is None:
            # One row a group: rows are read one by one, in shuffled order. They are too short to compress.
            self._writer = ArrayRecordWriter(str(self._temporary), "group_size:1,uncompressed")
        self._bytes += int(self._byte_lengths[rows].sum())
        try:
            for row in rows:
                self._writer.write(row.tobytes())
        except RuntimeError as error:
            raise OSError(f"{self._file}: cannot be written ({error})") from error

    def finish(self) -> dict[str, Any]:
        """Moves the file into place and returns SUMS and `files` (name to `bytes`, `sha256` and `rows`).

        Raises:
          OSError: the disk refuses.
        """
        maker, files = self._maker, {}
        if self._writer is not None:
            self._close()
            size, digest = self._temporary.stat().st_size, _sha256(self._temporary)
            self._temporary.replace(self._file)
            files[self._file.name] = {"bytes": size, "sha256": digest, "rows": maker.rows}
        counts = (maker.rows, maker.documents, maker.tokens, maker.padding, self._bytes, maker.dropped)
        return dict(zip(SUMS, counts, strict=True)) | {"files": files}

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        try:
            writer.close()
            reader = ArrayRecordReader(str(self._temporary))
            stored = reader.num_records()
            reader.close()
        except RuntimeError as error:
            raise OSError(f"{self._file}: cannot be written ({error})") from error
        if stored != self._maker.rows:
            raise OSError(f"{self._file}: {self._maker.rows} rows were written and {stored} are there; is the disk full?")

    def abandon(self) -> None:
        """Takes away what `finish` did not move."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except RuntimeError:
            pass  # What refused to be written is being removed.
        self._temporary.unlink(missing_ok=True)


def write_rows(
    folder: Path,
    split: str,
    token_arrays: Iterable[np.ndarray],
    row_tokens: int,
    tokenizer: Tokenizer,
    mode: str = "packed",
    padding: str = "right",
) -> dict[str, Any]:
    """Writes documents [tokens] as the rows of one split, in one file, and returns what `{split}.json` says of them.

    That is `rows`, `row_tokens`, `documents`, `tokens` (in rows), `padding` (places in rows without one), `bytes` (of UTF-8 text in rows),
    `dropped_tokens` (in no row), `mode`, `side` (of padding), `fingerprint` (of the tokenizer), `files` (name to `bytes`, `sha256` and
    `rows`) and `format`.

    Raises:
      RowsError: an id is not of the tokenizer's vocabulary.
      OSError: the disk refuses.
    """
    layout = Layout(row_tokens, mode, padding)
    shard = Shard(Path(folder) / shard_name(split, 0, 1), layout, tokenizer)
    try:
        for array in token_arrays:
            shard.add([array])
        counted = shard.finish()
    finally:
        shard.abandon()
    info = describe([counted], layout, tokenizer.fingerprint)
    (Path(folder) / f"{split}.json").write_text(json.dumps(info, indent=2) + "\n")
    return info


def shard_name(split: str, number: int, of: int) -> str:
    """Name of the file that holds the rows of a split from one block."""
    return f"{split}-{number:05d}-of-{of:05d}.arrayrecord"


def describe(shards: Sequence[dict[str, Any]], layout: Layout, fingerprint: str) -> dict[str, Any]:
    """What `{split}.json` says of the rows in these shards, which are in order."""
    files = {name: file for shard in shards for name, file in shard["files"].items()}
    about = {"format": FORMAT, "row_tokens": layout.row_tokens, "mode": layout.mode, "side": layout.padding}
    sums = {key: sum(shard[key] for shard in shards) for key in SUMS}
    return about | sums | {"fingerprint": fingerprint, "files": files}


def describe_mixture(parts: dict[str, dict[str, Any]], weights: Sequence[float]) -> dict[str, Any]:
    """What `{split}.json` says of parts, each the name of a folder and what its own `{split}.json` says."""
    first = next(iter(parts.values()))
    about = {key: first[key] for key in ("format", "row_tokens", "mode", "side")}
    sums = {key: sum(info[key] for info in parts.values()) for key in SUMS}
    files = {f"{name}/{file}": what for name, info in parts.items() for file, what in info["files"].items()}
    listed = [{"folder": name, "weight": weight} for name, weight in zip(parts, weights, strict=True)]
    return about | sums | {"fingerprint": first["fingerprint"], "files": files, "parts": listed}


class Rows:
    """The rows of one split, in random access; safe to read from many threads."""

    def __init__(self, folder: Path, info: dict[str, Any]):
        """`folder` and the contents of its `{split}.json`; use `open_rows`, which checks them."""
        self.folder = folder
        self.info = info
        self.row_tokens: int = info["row_tokens"]
        self._source = Records([folder / name for name in info["files"]])

    def __len__(self) -> int:
        return self.info["rows"]

    def __getitem__(self, index: int) -> np.ndarray:
        """Row `index` as int32 [N]; negative indices count from the end.

        Raises:
          IndexError: there is no such row.
        """
        return self.read([_counted(index, len(self))])[0]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The rows of those numbers as int32 [indices, N], in one call.

        Raises:
          RowsError: some cannot be read; the message names the file and the record.
          IndexError: there is no such row.
        """
        try:
            return read_records(self._source.read(indices), self.row_tokens)
        except ValueError as error:
            which = f"row {indices[0]}" if len(indices) == 1 else f"{len(indices)} rows"
            raise RowsError(f"{self.folder}: {which} cannot be read ({error}); {_REMEDY}") from error

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


class MixedRows(Rows):
    """The rows of several parts, one part after another; `parts` and `weights` say which and how often each is to be read."""

    def __init__(self, folder: Path, info: dict[str, Any], parts: Sequence[Rows], weights: Sequence[float]):
        """`folder` and the contents of its `{split}.json`, and what is in it; use `open_rows`, which checks them."""
        self.folder, self.info, self.row_tokens = folder, info, info["row_tokens"]
        self.parts, self.weights = tuple(parts), tuple(weights)
        self._ends = list(itertools.accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> np.ndarray:
        """Row `index` as int32 [N]; negative indices count from the end.

        Raises:
          IndexError: there is no such row.
        """
        part, place = self._place(_counted(index, len(self)))
        return self.parts[part][place]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The rows of those numbers as int32 [indices, N], one call a part.

        Raises:
          RowsError: some cannot be read; the message names the file and the record.
          IndexError: there is no such row.
        """
        found = np.empty((len(indices), self.row_tokens), np.int32)
        places = np.array([self._place(index) for index in indices]).reshape(-1, 2)
        for part in np.unique(places[:, 0]):
            own = places[:, 0] == part
            found[own] = self.parts[part].read(places[own, 1].tolist())
        return found

    def _place(self, index: int) -> tuple[int, int]:
        """The part that holds a row, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = bisect.bisect_right(self._ends, index)
        return part, int(index) - (self._ends[part - 1] if part else 0)


def open_rows(folder: str | os.PathLike, split: str, fingerprint: str) -> Rows:
    """Opens the rows of `split` that the tokenizer of this fingerprint made; MixedRows where they are of a mixture.

    Raises:
      RowsError: a file is absent, cut short or unreadable, or another tokenizer made the rows.
    """
    folder = Path(folder)
    about = folder / f"{split}.json"
    try:
        info = json.loads(about.read_text())
        version, made_by, files = info["format"], info["fingerprint"], info["files"]
        sizes = {folder / name: file["bytes"] for name, file in files.items()}
        parts = [(folder / part["folder"], float(part["weight"])) for part in info.get("parts", ())]
    except FileNotFoundError as error:
        raise RowsError(f"{about}: no such file, so there are no {split} rows here; {_REMEDY}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RowsError(f"{about}: does not describe rows ({type(error).__name__}: {error}); {_REMEDY}") from error
    if version not in _READABLE:
        raise RowsError(f"{about}: rows of format {version}, while this memjax reads format {FORMAT}; {_REMEDY}")
    if made_by != fingerprint:
        raise RowsError(f"{about}: made by tokenizer {made_by}, while the one in use is {fingerprint}; {_REMEDY}")
    for file, size in sizes.items():
        found = file.stat().st_size if file.exists() else None
        if found != size:
            what = "no such file" if found is None else f"holds {found} bytes"
            raise RowsError(f"{file}: {what}, where {size} bytes were written; {_REMEDY}")
    if parts:
        opened = [open_rows(path, split, fingerprint) for path, _ in parts]
        return MixedRows(folder, info, opened, [weight for _, weight in parts])
    try:
        rows = Rows(folder, {"padding": 0, "mode": "packed", "side": "right"} | info)
        stored = len(rows._source)
    except (RuntimeError, ValueError, KeyError) as error:
        raise RowsError(f"{folder}: the {split} rows are unreadable ({error}); {_REMEDY}") from error
    if stored != len(rows):
        raise RowsError(f"{folder}: {stored} {split} rows are stored, where {about.name} counts {len(rows)}; {_REMEDY}")
    return rows


def _counted(index: int, rows: int) -> int:
    """The number of a row that may be counted from the end."""
    if not -rows <= index < rows:
        raise IndexError(f"row {index} of {rows}")
    return int(index) % rows


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


__all__ = ["FORMAT", "MixedRows", "Rows", "RowsError", "Shard", "document_ids", "open_rows", "pack", "shard_name", "write_rows"]
