"""Rows of tokens on disk, in random access.

N: tokens of a row. A folder holds, per split, `{split}.json` and the files that it lists, such as
`{split}-00000-of-00001.arrayrecord`. A record is a row: N little-endian uint16, or uint32 where the
vocabulary has more than 65,536 entries. The rows of each part of a mixture have a folder of their
own, which `{split}.json` lists with its weight.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memjax.data.packing import Layout, RowMaker, RowsError, check_side, read_records
from memjax.data.records import RecordWriter, RowArrays, locate
from memjax.data.tokenizers.base import Tokenizer
from memjax.files import entries, read_manifest, require_inside, sealed

FORMAT = 2
_READABLE = (1, 2)
_REMEDY = "Delete the folder so that it is built again"
SUMS = ("rows", "documents", "tokens", "padding", "bytes", "dropped_tokens")
"""Counts of a split that are sums over its shards and parts."""

_SHAPE = {
    **dict.fromkeys(("rows", "row_tokens", "tokens", "padding?", "bytes"), int),
    "fingerprint": str,
    "files": {str: {"bytes": int, "sha256": str, "rows?": int}},
    "mode?": ("packed", "per_document", "first_n", "full_length_only"),
    "side?": ("left", "right"),
    "parts?": [{"folder": str, "weight": float}],
}
"""The shape of `{split}.json`."""


def shard_name(split: str, number: int, of: int) -> str:
    """Return the name of the file of a split's rows from one block."""
    return f"{split}-{number:05d}-of-{of:05d}.arrayrecord"


@dataclasses.dataclass(frozen=True)
class ShardFormat:
    """The names and the records of files of rows; picklable."""

    name: Callable[[str, int, int], str] = shard_name
    """Takes a split, the number of a block and the number of blocks."""
    record: Callable[[np.ndarray], bytes] = np.ndarray.tobytes
    """Takes a row [N] as it is stored: little-endian, uint16 or uint32."""
    empty: bool = False
    """True where a block without rows has a file all the same."""


ROWS = ShardFormat()
"""The files that `open_rows` reads."""


class Shard:
    """Writes rows of one split into one file, which `finish` moves into place."""

    def __init__(self, file: Path, layout: Layout, tokenizer: Tokenizer, form: ShardFormat = ROWS):
        # Processes of two machines may have the same number.
        hidden = f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        self._file, self._temporary, self._form = file, file.with_name(hidden), form
        self._maker = RowMaker(layout, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocabulary)
        self._byte_lengths, self._bytes = tokenizer.byte_lengths, 0
        self._writer: RecordWriter | None = None

    def add(self, arrays: Sequence[np.ndarray]) -> None:
        """Write the rows that documents [tokens] fill.

        Raises:
          RowsError: an id is outside the vocabulary of the tokenizer.
          OSError: the disk refuses.
        """
        rows = self._maker.add(arrays)
        if not len(rows):
            return
        if self._writer is None:
            self._writer = RecordWriter(self._file, self._temporary)
        self._bytes += int(self._byte_lengths[rows].sum())
        self._writer.write(*map(self._form.record, rows))

    def finish(self) -> dict[str, Any]:
        """Move the file into place and return its description.

        Returns:
          SUMS, and `files` (from a name to `bytes`, `sha256` and `rows`).

        Raises:
          OSError: the disk refuses.
        """
        maker, files = self._maker, {}
        if self._form.empty and self._writer is None:
            self._writer = RecordWriter(self._file, self._temporary)
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
            entry = entries([self._temporary])[self._temporary.name]
            self._temporary.replace(self._file)
            files[self._file.name] = entry | {"rows": maker.rows}
        return {
            "rows": maker.rows,
            "documents": maker.documents,
            "tokens": maker.tokens,
            "padding": maker.padding,
            "bytes": self._bytes,
            "dropped_tokens": maker.dropped,
            "files": files,
        }

    def abandon(self) -> None:
        """Remove what `finish` did not move."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()
        self._temporary.unlink(missing_ok=True)


def describe(shards: Sequence[dict[str, Any]], layout: Layout, fingerprint: str) -> dict[str, Any]:
    """Return the contents of `{split}.json` for the rows of shards in order.

    Returns:
      `rows`, `row_tokens`, `documents`, `tokens` (in rows), `padding` (positions of padding in
      rows), `bytes` (of UTF-8 text in rows), `dropped_tokens` (in no row), `mode`, `side` (of
      padding), `fingerprint` (of the tokenizer), `files` (from a name to `bytes`, `sha256` and
      `rows`), `format` and the `sha256` of all this.
    """
    info = {
        "format": FORMAT,
        "row_tokens": layout.row_tokens,
        "mode": layout.mode,
        "side": layout.padding,
        **{key: sum(shard[key] for shard in shards) for key in SUMS},
        "fingerprint": fingerprint,
        "files": {name: file for shard in shards for name, file in shard["files"].items()},
    }
    return sealed(info)


def describe_mixture(parts: dict[str, dict[str, Any]], weights: Sequence[float]) -> dict[str, Any]:
    """Return the contents of `{split}.json` for a mixture.

    Args:
      parts: from the folder of each part to the contents of its own `{split}.json`.
      weights: the weight of each part.
    """
    first = next(iter(parts.values()))
    info = {
        **{key: first[key] for key in ("format", "row_tokens", "mode", "side")},
        **{key: sum(info[key] for info in parts.values()) for key in SUMS},
        "fingerprint": first["fingerprint"],
        "files": {
            f"{name}/{file}": entry
            for name, info in parts.items()
            for file, entry in info["files"].items()
        },
        "parts": [
            {"folder": name, "weight": weight} for name, weight in zip(parts, weights, strict=True)
        ],
    }
    return sealed(info)


class Rows(RowArrays):
    """The rows of one split: int32 [N] each."""

    NAME, OF_ROW, ERROR, REMEDY = "rows", "row", RowsError, _REMEDY

    def __init__(self, folder: Path, split: str, info: dict[str, Any]):
        """Use `open_rows`, which checks `folder` and the contents of its `{split}.json`."""
        super().__init__(folder, split, info)
        self.row_tokens: int = info["row_tokens"]

    def __len__(self) -> int:
        return self.info["rows"]

    @property
    def mean_tokens(self) -> float:
        """Tokens of a row in training on average, without padding."""
        return self.info["tokens"] / max(len(self), 1)

    def check_side(self, packing: str) -> None:
        """Raise RowsError if they are padded on another side than rows of this config.data.packing;
        empty allows any.
        """
        side = self.info["side"] if self.info["padding"] else ""
        check_side(side, packing, str(self.folder), "Give data of that packing")

    def decoded(self, records: Sequence[bytes]) -> np.ndarray:
        """Return stored rows as int32 [records, N]."""
        return read_records(records, self.row_tokens)


class MixedRows(Rows):
    """The rows of the parts of a mixture, one part after another.

    Attributes:
      parts: the rows of each part.
      weights: the share of each part in training.
    """

    def __init__(
        self, folder: Path, info: dict[str, Any], parts: Sequence[Rows], weights: Sequence[float]
    ):
        """Use `open_rows`, which checks `folder` and the contents of its `{split}.json`."""
        self.folder, self.info, self.row_tokens = folder, info, info["row_tokens"]
        self.parts, self.weights = tuple(parts), tuple(weights)
        self._ends = list(itertools.accumulate(len(part) for part in self.parts))

    @property
    def mean_tokens(self) -> float:
        """See `Rows.mean_tokens`; the parts have their weights."""
        return float(np.average([part.mean_tokens for part in self.parts], weights=self.weights))

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Return the rows of these numbers as int32 [indices, N], by one call per part.

        Raises:
          RowsError: a row is unreadable; the message names the file and the record.
          IndexError: there is no such row.
        """
        found = np.empty((len(indices), self.row_tokens), np.int32)
        places = np.array([locate(self._ends, index) for index in indices]).reshape(-1, 2)
        for part in np.unique(places[:, 0]):
            own = places[:, 0] == part
            found[own] = self.parts[part].read(places[own, 1].tolist())
        return found


def open_rows(folder: str | os.PathLike, split: str, fingerprint: str) -> Rows:
    """Open the rows of `split` that the tokenizer of this fingerprint made.

    Returns:
      `MixedRows` for a mixture, or else `Rows`.

    Raises:
      RowsError: a file is absent, cut short or unreadable, or another tokenizer made the rows.
    """
    folder = Path(folder)
    manifest = folder / f"{split}.json"
    usual = {"padding": 0, "mode": "packed", "side": "right"}
    info: dict[str, Any] = usual | read_manifest(manifest, _READABLE, _REMEDY, RowsError, _SHAPE)
    made_by, rows = info["fingerprint"], info["rows"]
    RowsError.require(
        made_by == fingerprint,
        f"{manifest}: tokenizer {made_by}, expected the one in use, {fingerprint}. {_REMEDY}",
    )
    for what, found, expected in (
        ("tokens and padding", info["tokens"] + info["padding"], rows * info["row_tokens"]),
        ("rows of its files", sum(file.get("rows", rows) for file in info["files"].values()), rows),
    ):
        RowsError.require(
            found == expected, f"{manifest}: {what} {found}, expected {expected}. {_REMEDY}"
        )
    if parts := info.get("parts"):
        for part in parts:
            require_inside(part["folder"], manifest, _REMEDY, RowsError)
        opened = [open_rows(folder / part["folder"], split, fingerprint) for part in parts]
        return MixedRows(folder, info, opened, [part["weight"] for part in parts])
    return Rows.opened(folder, split, info)
