"""Memories of rows on disk, written once and read in place of running the encoder.

R: rows; C: chunks per row; K: vectors per chunk; E: their width. A folder holds, per split,
`{split}-00000-of-00001.arrayrecord` (record i holds the memories of row i: C * K * E little-endian
bfloat16 or float32) and `{split}.json`, which identifies the rows and the encoder. It is written
last, so a folder that a killed process left has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - adds bfloat16 to the dtypes of NumPy
import numpy as np

from memjax.data.records import RowArrays, write_records
from memjax.data.rows import Rows, RowsError
from memjax.files import entries, local, read_manifest, sealed, write_json

FORMAT = 1
_REMEDY = "Write them again with `memjax compress`"

_SHAPE = {
    "of": {"tokenizer": str, "row_tokens": int, "rows": int, "sha256": [str]},
    "shape": [int],
    "dtype": ("bfloat16", "float32"),
    "encoder": {"checkpoint": str, "step": int, "settings": dict, "sha256": str},
}
"""The shape of a manifest."""


class MemoriesError(RowsError):
    """Memories are absent, damaged, or of other rows or another encoder than those in use.

    The message names the file.
    """


def write_memories(
    folder: Path, split: str, rows: Rows, memories: Iterable[np.ndarray], encoder: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the memories of each of `rows`.

    Args:
      folder: the folder; it may hold other splits.
      split: name of the split.
      rows: the rows.
      memories: [C, K, E] of each row, in order, all of one shape and dtype.
      encoder: the encoder that made them, as JSON: its `checkpoint` and `step`, `settings`, and
        `sha256` of its parameters.

    Returns:
      The contents of `{split}.json`: `of` (the rows: see `identity`), `shape` [C, K, E], `dtype`,
      `encoder`, `files` (from a name to `bytes` and `sha256`) and `format`.

    Raises:
      MemoriesError: the split exists, or there is not one array per row.
    """
    folder = local(folder)
    manifest = folder / f"{split}.json"
    MemoriesError.require(
        not manifest.exists(),
        f"{manifest}: {split} memories exist, expected none. Delete them or use another folder",
    )
    shard = folder / f"{split}-00000-of-00001.arrayrecord"
    kinds: set[tuple[tuple[int, ...], str]] = set()
    written = 0
    with write_records(shard) as writer:
        for array in memories:
            kinds.add((array.shape, array.dtype.name))
            writer.write(array.tobytes())
            written += 1
    MemoriesError.require(
        written == len(rows) and len(kinds) == 1,
        f"{shard}: {written} memories of shapes {sorted(kinds)} were given for {len(rows)} rows",
    )
    shape, dtype = kinds.pop()
    described = {
        "format": FORMAT,
        "of": identity(rows),
        "shape": list(shape),
        "dtype": dtype,
        "encoder": dict(encoder),
        "files": entries([shard]),
    }
    info = sealed(described)
    write_json(manifest, info)
    return info


def identity(rows: Rows) -> dict[str, Any]:
    """Return what distinguishes rows: their number, length, tokenizer and checksums."""
    return {
        "tokenizer": rows.info["fingerprint"],
        "row_tokens": rows.row_tokens,
        "rows": len(rows),
        "sha256": [file["sha256"] for file in rows.info["files"].values()],
    }


class RowMemories(RowArrays):
    """The memories of one split's rows: [C, K, E] each."""

    NAME, OF_ROW, ERROR, REMEDY = "memories", "memories of row", MemoriesError, _REMEDY

    def __init__(self, folder: Path, split: str, info: dict[str, Any]):
        """Use `open_memories`, which checks `folder` and the contents of its `{split}.json`."""
        super().__init__(folder, split, info)
        self.shape: tuple[int, ...] = tuple(info["shape"])
        self.dtype = np.dtype(info["dtype"])

    def __len__(self) -> int:
        return self.info["of"]["rows"]

    def decoded(self, records: Sequence[bytes]) -> np.ndarray:
        """Return stored memories [records, C, K, E]."""
        return np.frombuffer(b"".join(records), self.dtype).reshape(len(records), *self.shape)

    def check_rows(self, rows: Rows) -> None:
        """Raise MemoriesError if these are not the memories of `rows`."""
        theirs, ours = self.info["of"], identity(rows)
        for key, what in (
            ("tokenizer", "tokenizer"),
            ("row_tokens", "row length"),
            ("rows", "number"),
            ("sha256", "sha256"),
        ):
            MemoriesError.require(
                theirs[key] == ours[key],
                f"{self.folder}: the {self.split} memories are of other rows than those in"
                f" {rows.folder}: {what} {theirs[key]}"
                f" there, {ours[key]} here. {_REMEDY} from this data",
            )

    def check_encoder(
        self, settings: Mapping[str, Any], sha256: str, shape: tuple[int, int, int]
    ) -> None:
        """Raise MemoriesError if another encoder made these.

        Args:
          settings: the settings that, beside its parameters, fix the function of the encoder.
          sha256: of its parameters.
          shape: [C, K, E] of the memories of a row.
        """
        made_by = self.info["encoder"]
        for key, ours in settings.items():
            theirs = made_by["settings"].get(key)
            MemoriesError.require(
                theirs == ours,
                f"{self.folder}: made by an encoder with config.model.{key}={theirs}, this run"
                f" has config.model.{key}={ours}. {_REMEDY}",
            )
        MemoriesError.require(
            self.shape == shape,
            f"{self.folder}: a row's memories are of shape {self.shape} (chunks, vectors,"
            f" width), this run's of {shape}. {_REMEDY}",
        )
        MemoriesError.require(
            made_by["sha256"] == sha256,
            f"{self.folder}: made by the encoder of {made_by['checkpoint']}, step"
            f" {made_by['step']} (sha256"
            f" {made_by['sha256'][:16]}), and this stage's encoder is another (sha256"
            f" {sha256[:16]}). {_REMEDY} from the"
            " checkpoint that init_from names",
        )


def open_memories(folder: str | os.PathLike, split: str) -> RowMemories:
    """Open the memories of the rows of a split.

    Raises:
      MemoriesError: a file is absent, cut short or unreadable.
    """
    folder = Path(folder).expanduser()
    info = read_manifest(folder / f"{split}.json", (FORMAT,), _REMEDY, MemoriesError, _SHAPE)
    return RowMemories.opened(folder, split, info)
