"""Memories of rows on disk, written once and read in place of running the encoder.

R: rows; C: chunks per row; K: vectors per chunk; E: their width. A folder holds, per split,
`{split}-00000-of-00002.arrayrecord` and further shards (record i of all of them holds the memories
of row i: C * K * E little-endian bfloat16 or float32) and `{split}.json`, which identifies the rows
and the encoder. It is written last. A folder that a killed process left has none, and
`{split}.unfinished.json` in its place, which states what was to be written.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - adds bfloat16 to the dtypes of NumPy
import numpy as np

from memjax.data.records import RowArrays, write_records
from memjax.data.rows import Rows, RowsError, shard_name
from memjax.files import (
    check_seal,
    entries,
    local,
    read_json,
    read_manifest,
    sealed,
    write_json,
)

FORMAT = 1
SHARD_TOKENS = 2**22
"""Tokens of the rows of a shard, about: seconds of work, so that processes end at about the same
time."""
MOST_SHARDS = 256
"""Shards, at most: each stays open while it is read. Of more rows, shards are larger."""
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


@dataclasses.dataclass(frozen=True)
class MemoryShards:
    """The memories of one split's rows, of which files are missing; made by `begin`.

    The files depend on the rows alone, so processes can divide them, and a killed one leaves those
    that it wrote.

    Attributes:
      folder: the folder; it may hold other splits.
      split: name of the split.
      plan: what the manifest will hold beside `format` and `files`, and `shards`, the number of
        files.
    """

    folder: Path
    split: str
    plan: Mapping[str, Any]

    @classmethod
    def begin(
        cls,
        folder: Path,
        split: str,
        rows: Rows,
        shape: Sequence[int],
        dtype: str,
        encoder: Mapping[str, Any],
    ) -> MemoryShards:
        """Begin, or resume, to write the memories of each of `rows`.

        Args:
          folder: as the attribute.
          split: as the attribute.
          rows: the rows.
          shape: [C, K, E] of the memories of a row.
          dtype: `bfloat16` or `float32`.
          encoder: the encoder that makes them, as JSON: its `checkpoint` and `step`, `settings`,
            and `sha256` of its parameters.

        Raises:
          MemoriesError: the split exists, or its memories of other rows, of another encoder or of
            another dtype are unfinished.
        """
        folder = local(folder)
        manifest, unfinished = folder / f"{split}.json", folder / f"{split}.unfinished.json"
        MemoriesError.require(
            not manifest.exists(),
            f"{manifest}: {split} memories exist, expected none. Delete them or use another folder",
        )
        shards = -(-len(rows) // _shard_rows(len(rows), rows.row_tokens))
        kinds = {"shape": list(shape), "dtype": dtype}
        plan = {"of": identity(rows), **kinds, "encoder": dict(encoder), "shards": shards}
        found = cls(folder, split, plan)
        if unfinished.exists():
            remedy = f"Run the command that began, or delete {unfinished.name}"
            there = read_json(unfinished, MemoriesError, _SHAPE | {"shards": int}, remedy)
            check_seal(there, unfinished, remedy, MemoriesError)
            other = [key for key, value in plan.items() if there[key] != value]
            MemoriesError.require(
                not other,
                f"{unfinished}: {split} memories with another {', '.join(other)} are being written,"
                f" expected those of this command. {remedy}",
            )
            return found
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(shards):  # Of a plan that was deleted.
            found.file(number).unlink(missing_ok=True)
        write_json(unfinished, sealed(plan))
        return found

    @property
    def count(self) -> int:
        """The number of shards."""
        return self.plan["shards"]

    def file(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.folder / shard_name(self.split, number, self.count)

    def rows(self, number: int) -> range:
        """Return the numbers of the rows of a shard."""
        count = self.plan["of"]["rows"]
        size = _shard_rows(count, self.plan["of"]["row_tokens"])
        return range(number * size, min((number + 1) * size, count))

    def todo(self) -> list[int]:
        """Return the numbers of the shards that are missing."""
        return [n for n in range(self.count) if not self.file(n).exists()]

    def write(self, number: int, memories: Iterable[np.ndarray]) -> None:
        """Write a shard.

        Args:
          number: its number.
          memories: [C, K, E] of each of its rows, in order.

        Raises:
          MemoriesError: there is not one array per row, or one is of another shape or dtype.
        """
        file, count = self.file(number), len(self.rows(number))
        wanted = (tuple(self.plan["shape"]), self.plan["dtype"])
        kinds: set[tuple[tuple[int, ...], str]] = set()
        with write_records(file) as writer:
            written = 0
            for array in memories:
                kinds.add((array.shape, array.dtype.name))
                writer.write(array.tobytes())
                written += 1
            MemoriesError.require(
                written == count and kinds == {wanted},
                f"{file}: {written} memories of shapes {sorted(kinds)} were given for {count} rows,"
                f" expected {count} of {wanted}",
            )

    def entry(self, number: int) -> dict[str, dict[str, Any]]:
        """Return what the manifest holds of a shard; reads all of it.

        Raises:
          OSError: it is missing.
        """
        return entries([self.file(number)])

    def finish(self, files: Mapping[str, Any]) -> None:
        """Write the manifest.

        Args:
          files: what `entry` returns for every shard, in order.
        """
        kept = {key: value for key, value in self.plan.items() if key != "shards"}
        info = {"format": FORMAT, **kept, "files": dict(files)}
        write_json(self.folder / f"{self.split}.json", sealed(info))
        (self.folder / f"{self.split}.unfinished.json").unlink(missing_ok=True)


def _shard_rows(rows: int, row_tokens: int) -> int:
    """Return the rows of a shard of `rows` in all; the last one may have fewer."""
    return max(-(-SHARD_TOKENS // row_tokens), -(-rows // MOST_SHARDS))


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
