"""Memories of rows on disk: what a trained encoder makes of each chunk, written once and read in place of running it.

R: rows; C: chunks in a row; K: vectors of a chunk; E: their width. A folder holds, for each split, `{split}-00000-of-00001.arrayrecord`
(record i is row i's memories: C * K * E little-endian bfloat16 or float32) and `{split}.json`, which says of which rows they are and
whose encoder made them. It is written last: a folder that a killed process left has none and cannot be opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp  # For its bfloat16, which NumPy alone has not.
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from memjax.data.records import Records
from memjax.data.rows import Rows, RowsError

FORMAT = 1
_REMEDY = "write them again with `memjax encode-corpus`"


class MemoriesError(RowsError):
    """Memories are absent, damaged, or of other rows or another encoder than those in use; the message names the file."""


def write_memories(
    folder: Path, split: str, rows: Rows, memories: Iterable[np.ndarray], encoder: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes what an encoder makes of each of `rows`, and returns what `{split}.json` says.

    That is `of` (the rows: see `identity`), `shape` [C, K, E], `dtype`, `encoder`, `files` (name to `bytes` and `sha256`) and `format`.

    Args:
      folder: where; other splits may be there.
      split: name of the split.
      rows: the rows.
      memories: [C, K, E] of each row, in order, all of one shape and dtype.
      encoder: what made them, as JSON: `checkpoint` and `step` it was read from, `settings`, and `sha256` of its parameters.

    Raises:
      MemoriesError: this split is there already, or there is not one array for each row.
    """
    folder = Path(folder)
    about = folder / f"{split}.json"
    if about.exists():
        raise MemoriesError(f"{about}: there are {split} memories here already; delete them or write into another folder")
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / f"{split}-00000-of-00001.arrayrecord"
    kinds: set[tuple[tuple[int, ...], str]] = set()
    written = 0
    writer = ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
    try:
        for array in memories:
            kinds.add((array.shape, array.dtype.name))
            writer.write(array.tobytes())
            written += 1
    finally:
        writer.close()
    if written != len(rows) or len(kinds) != 1:
        raise MemoriesError(f"{shard}: {written} memories of shapes {sorted(kinds)} were given for {len(rows)} rows")
    shape, dtype = kinds.pop()
    info = {
        "format": FORMAT,
        "of": identity(rows),
        "shape": list(shape),
        "dtype": dtype,
        "encoder": dict(encoder),
        "files": {shard.name: {"bytes": shard.stat().st_size, "sha256": _sha256(shard)}},
    }
    temporary = about.with_name(f"{about.name}.tmp")
    temporary.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    temporary.replace(about)
    return info


def identity(rows: Rows) -> dict[str, Any]:
    """What tells rows from all others: how many they are, their length, and the digests of tokenizer and files."""
    return {
        "tokenizer": rows.info["fingerprint"],
        "row_tokens": rows.row_tokens,
        "rows": len(rows),
        "sha256": [file["sha256"] for file in rows.info["files"].values()],
    }


class Memories:
    """The memories of one split's rows, in random access; safe to read from many threads."""

    def __init__(self, folder: Path, split: str, info: dict[str, Any]):
        """`folder` and the contents of its `{split}.json`; use `open_memories`, which checks them."""
        self.folder, self.split, self.info = folder, split, info
        self.shape: tuple[int, ...] = tuple(info["shape"])
        self.dtype = np.dtype(jnp.dtype(info["dtype"]))
        self._source = Records([folder / name for name in info["files"]])

    def __len__(self) -> int:
        return self.info["of"]["rows"]

    def __getitem__(self, index: int) -> np.ndarray:
        """The memories [C, K, E] of row `index`, as they are stored; negative indices count from the end.

        Raises:
          IndexError: there is no such row.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.read([int(index) % len(self)])[0]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The memories [indices, C, K, E] of those rows, as they are stored.

        Raises:
          MemoriesError: some cannot be read; the message names the file and the record.
          IndexError: there is no such row.
        """
        try:
            records = self._source.read(indices)
            return np.frombuffer(b"".join(records), self.dtype).reshape(len(indices), *self.shape)
        except ValueError as error:
            which = f"row {indices[0]}" if len(indices) == 1 else f"{len(indices)} rows"
            raise MemoriesError(
                f"{self.folder}: the {self.split} memories of {which} cannot be read ({error}); {_REMEDY}"
            ) from error

    def check_rows(self, rows: Rows) -> None:
        """Raises MemoriesError if these are not the memories of `rows`."""
        theirs, ours = self.info["of"], identity(rows)
        for key, what in (("tokenizer", "tokenizer"), ("row_tokens", "row length"), ("rows", "number"), ("sha256", "sha256")):
            if theirs[key] != ours[key]:
                raise MemoriesError(
                    f"{self.folder}: the {self.split} memories are of other rows than those in {rows.folder}: {what} {theirs[key]}"
                    f" there, {ours[key]} here; {_REMEDY} from this data"
                )

    def check_encoder(self, settings: Mapping[str, Any], sha256: str, shape: tuple[int, int, int]) -> None:
        """Raises MemoriesError if another encoder made these.

        Args:
          settings: those that say, beside its parameters, which function it is.
          sha256: of its parameters.
          shape: [C, K, E] of what it makes of a row.
        """
        made_by = self.info["encoder"]
        for key, ours in settings.items():
            theirs = made_by["settings"].get(key)
            if theirs != ours:
                raise MemoriesError(
                    f"{self.folder}: made by an encoder with config.model.{key}={theirs}, this run has config.model.{key}={ours}; {_REMEDY}"
                )
        if self.shape != shape:
            raise MemoriesError(
                f"{self.folder}: a row's memories are of shape {self.shape} (chunks, vectors, width), this run's of {shape}; {_REMEDY}"
            )
        if made_by["sha256"] != sha256:
            raise MemoriesError(
                f"{self.folder}: made by the encoder of {made_by['checkpoint']}, step {made_by['step']} (sha256"
                f" {made_by['sha256'][:16]}), and this stage's encoder is another (sha256 {sha256[:16]}); {_REMEDY} from the"
                " checkpoint that init_from names"
            )

    def verify(self) -> None:
        """Reads every byte and compares checksums, which `open_memories` does not take the time for.

        Raises:
          MemoriesError: a file is not what was written.
        """
        for name, file in self.info["files"].items():
            if _sha256(self.folder / name) != file["sha256"]:
                raise MemoriesError(
                    f"{self.folder / name}: the contents are not those that were written (sha256 differs); {_REMEDY}"
                )


def open_memories(folder: str | os.PathLike, split: str) -> Memories:
    """Opens the memories of a split's rows.

    Raises:
      MemoriesError: a file is absent, cut short or unreadable.
    """
    folder = Path(folder)
    about = folder / f"{split}.json"
    try:
        info = json.loads(about.read_text(encoding="utf-8"))
        version = info["format"]
        sizes = {folder / name: file["bytes"] for name, file in info["files"].items()}
    except FileNotFoundError as error:
        raise MemoriesError(f"{about}: no such file, so there are no {split} memories here, or not all; {_REMEDY}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MemoriesError(f"{about}: does not describe memories ({type(error).__name__}: {error}); {_REMEDY}") from error
    if version != FORMAT:
        raise MemoriesError(f"{about}: memories of format {version}, while this memjax reads format {FORMAT}; {_REMEDY}")
    for file, size in sizes.items():
        found = file.stat().st_size if file.exists() else None
        if found != size:
            what = "no such file" if found is None else f"holds {found} bytes"
            raise MemoriesError(f"{file}: {what}, where {size} bytes were written; {_REMEDY}")
    try:
        memories = Memories(folder, split, info)
        stored, counted = len(memories._source), len(memories)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise MemoriesError(f"{folder}: the {split} memories are unreadable ({error}); {_REMEDY}") from error
    if stored != counted:
        raise MemoriesError(f"{folder}: {stored} {split} memories are stored, where {about.name} counts {counted}; {_REMEDY}")
    return memories


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
