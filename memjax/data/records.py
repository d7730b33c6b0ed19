"""Records of ArrayRecord files under one numbering."""

from __future__ import annotations

import bisect
import concurrent.futures
import itertools
import os
import threading
from collections.abc import Sequence

from array_record.python.array_record_module import ArrayRecordReader

_OPENERS = 32
"""Threads that open files when they are counted."""


class RecordsError(ValueError):
    """A record cannot be read; the message names the file and the record's number in it."""


class Records:
    """Random access; safe to use from many threads. A file is opened when the first of its records is read, and stays open.

    A file's index is read whole when it is opened, 11 bytes a record, of which 8 stay in memory. The records themselves are read when they
    are asked for.

    Args:
      files: in order.
      counts: records of each file; where they are not given, each file's index is read for it.

    Raises:
      RecordsError: a file has no readable index.
    """

    def __init__(self, files: Sequence[str | os.PathLike], counts: Sequence[int] | None = None):
        self._files = [os.fspath(file) for file in files]
        self._readers: list[ArrayRecordReader | None] = [None] * len(self._files)
        self._lock = threading.Lock()
        if counts is None:
            with concurrent.futures.ThreadPoolExecutor(_OPENERS) as openers:
                counts = list(openers.map(_count, self._files))
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The records of those numbers, in that order.

        Raises:
          RecordsError: one cannot be read.
          IndexError: there is no such record.
        """
        return [self._read(*self.find(index)) for index in indices]

    def find(self, index: int) -> tuple[int, int]:
        """The file that holds a record, and the record's number in it.

        Raises:
          IndexError: there is no such record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = bisect.bisect_right(self._ends, index)
        return file, int(index) - (self._ends[file - 1] if file else 0)

    def _read(self, file: int, number: int) -> bytes:
        try:
            # As a range: asked for by a list of numbers, a record of a long file takes hundreds of times as long (array_record 0.8).
            return self._reader(file).read(number, number + 1)[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise RecordsError(f"{self._files[file]}: record {number} cannot be read ({error})") from error

    def _reader(self, file: int) -> ArrayRecordReader:
        reader = self._readers[file]
        if reader is None:
            with self._lock:
                reader = self._readers[file] = self._readers[file] or _open(self._files[file])
        return reader


def _open(file: str) -> ArrayRecordReader:
    # Without reading ahead: the next record asked for lies elsewhere.
    return ArrayRecordReader(
        file, "readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:0", file_reader_buffer_size=32768
    )


def _count(file: str) -> int:
    try:
        reader = _open(file)
        count = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError) as error:
        raise RecordsError(f"{file}: is no whole ArrayRecord file ({error})") from error
    return count
