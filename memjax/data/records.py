"""Records of ArrayRecord files under one numbering."""

from __future__ import annotations

import abc
import bisect
import concurrent.futures
import contextlib
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from memjax.errors import MemjaxError
from memjax.files import atomic_file, writing

_OPENERS = 32
"""Threads that open files to count their records."""


class RecordsError(MemjaxError):
    """A record is unreadable; the message names the file and the number of the record in it."""


def locate(ends: Sequence[int], index: int) -> tuple[int, int]:
    """Return the number of the part that holds an item, and the item's number in that part.

    Args:
      ends: the number of items up to the end of each part.
      index: the number of the item.

    Raises:
      IndexError: there is no such item.
    """
    if not 0 <= index < (ends[-1] if ends else 0):
        raise IndexError(f"item {index} of {ends[-1] if ends else 0}")
    part = bisect.bisect_right(ends, index)
    return part, int(index) - (ends[part - 1] if part else 0)


class RecordWriter:
    """Writes records as groups of their own, uncompressed, to be read in any order.

    Args:
      file: the name of the file, for messages.
      temporary: where it is written.
    """

    def __init__(self, file: Path, temporary: Path):
        self._file, self._temporary, self._written = file, temporary, 0
        self._writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")

    def write(self, *records: bytes) -> None:
        """Write records.

        Raises:
          OSError: the disk refuses.
        """
        with self._refusing():
            for record in records:
                self._writer.write(record)
        self._written += len(records)

    def close(self) -> None:
        """End the file, and count its records: a disk may be full without an error.

        Raises:
          OSError: the disk refuses, or records are missing.
        """
        with self._refusing():
            self._writer.close()
            reader = _open(str(self._temporary))
            stored = reader.num_records()
            reader.close()
        if stored != self._written:
            raise OSError(
                f"{self._file}: {stored} records on disk, expected {self._written}. Check whether"
                " the disk is full"
            )

    def abandon(self) -> None:
        """End a file that is to be removed."""
        with contextlib.suppress(RuntimeError):
            self._writer.close()

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            with writing(self._file):
                yield
        except RuntimeError as error:
            raise OSError(f"{self._file}: write failed ({error})") from error


@contextlib.contextmanager
def write_records(path: Path) -> Iterator[RecordWriter]:
    """Yield a writer of a file that appears whole when the block ends well.

    Raises:
      OSError: the disk refuses.
    """
    with atomic_file(path) as temporary:
        writer = RecordWriter(path, temporary)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()


class Records:
    """Records in random access, safe to use from many threads.

    A file is opened at the first read of one of its records, and stays open. Opening reads its
    index: 11 bytes per record, of which 8 stay in memory.

    Args:
      files: in order.
      counts: the number of records of each file; by default the index of each file is read for it.
      error: the class of errors to raise.

    Raises:
      RecordsError: a file has no readable index.
    """

    def __init__(
        self,
        files: Sequence[str | os.PathLike],
        counts: Sequence[int] | None = None,
        error: type[MemjaxError] = RecordsError,
    ):
        self._error = error
        self._files = [os.fspath(file) for file in files]
        self._reader = functools.cache(lambda file: _open(self._files[file]))
        if counts is None:
            with concurrent.futures.ThreadPoolExecutor(_OPENERS) as openers:
                counts = list(openers.map(self._count, self._files))
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the records of these numbers, in this order.

        Raises:
          RecordsError: a record is unreadable.
          IndexError: there is no such record.
        """
        return [record for run in self._runs(indices) for record in self._read(*run)]

    def _runs(self, indices: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Yield (file, start, stop) of records that are read by one call.

        Even a single record is read as a range: a list of numbers takes hundreds of times as long
        in a long file (array_record 0.8).
        """
        located = [locate(self._ends, index) for index in indices]
        runs = itertools.groupby(
            range(len(located)), lambda place: (located[place][0], located[place][1] - place)
        )
        for (file, ahead), places in runs:
            first, *more = places
            yield file, first + ahead, first + ahead + 1 + len(more)

    def _read(self, file: int, start: int, stop: int) -> list[bytes]:
        try:
            return self._reader(file).read(start, stop)
        except (RuntimeError, ValueError, IndexError) as error:
            if stop - start > 1:  # One by one, to name the damaged one.
                return [record for n in range(start, stop) for record in self._read(file, n, n + 1)]
            message = f"{self._files[file]}: record {start} cannot be read ({error})"
            raise self._error(message) from error

    def _count(self, file: str) -> int:
        try:
            reader = _open(file)
            if not reader.ok():  # It would have no records.
                raise ValueError("no valid end")
            count = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError) as error:
            raise self._error(
                f"{file}: truncated, damaged or not an ArrayRecord file ({error}). Copy or write it"
                " again"
            ) from error
        return count


def _open(file: str) -> ArrayRecordReader:
    # The next record is elsewhere, so nothing is read ahead.
    return ArrayRecordReader(
        os.fsencode(file),  # A name need not be UTF-8.
        "readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:0",
        file_reader_buffer_size=32768,
    )


class RowArrays(abc.ABC):
    """One array per row of a split, in random access, safe to read from many threads.

    Opening compares sizes of files. Each record has a checksum of its own, compared as it is read.

    Attributes:
      folder: the folder of the split.
      split: its name.
      info: the contents of its manifest, `{split}.json`.
      source: the records, one per row.
    """

    NAME: ClassVar[str]
    """The arrays, for messages."""
    OF_ROW: ClassVar[str]
    """One of them, before the number of its row."""
    ERROR: ClassVar[type[MemjaxError]]
    REMEDY: ClassVar[str]

    def __init__(self, folder: Path, split: str, info: dict[str, Any]):
        """Open the files that `info` lists."""
        self.folder, self.split, self.info = folder, split, info
        self.source = Records([folder / name for name in info["files"]])

    @classmethod
    def opened(cls, folder: Path, split: str, info: dict[str, Any]) -> Self:
        """Return the arrays that a manifest describes.

        Raises:
          MemjaxError: the manifest is of something else, or has another number of rows.
        """
        try:
            arrays = cls(folder, split, info)
            stored, expected = len(arrays.source), len(arrays)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise cls.ERROR(
                f"{folder}: unreadable {split} {cls.NAME} ({error}). {cls.REMEDY}"
            ) from error
        cls.ERROR.require(
            stored == expected,
            f"{folder}: {stored} {split} {cls.NAME}, expected {expected} by {split}.json."
            f" {cls.REMEDY}",
        )
        return arrays

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abc.abstractmethod
    def decoded(self, records: Sequence[bytes]) -> np.ndarray:
        """Return the arrays of records [records, ...]."""

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the array of row `index`; negative indices count from the end.

        Raises:
          IndexError: there is no such row.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.read([int(index) % len(self)])[0]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Return the arrays of these rows [indices, ...].

        Raises:
          MemjaxError: a row is unreadable; the message names the file and the record.
          IndexError: there is no such row.
        """
        try:
            return self.decoded(self.source.read(indices))
        except ValueError as error:
            several = f"{len(indices)} {self.split} {self.NAME}"
            which = f"the {self.split} {self.OF_ROW} {indices[0]}" if len(indices) == 1 else several
            raise self.ERROR(
                f"{self.folder}: {which} cannot be read ({error}). {self.REMEDY}"
            ) from error
