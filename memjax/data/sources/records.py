"""ArrayRecord files: records in any order."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from memjax.data.sources.base import CorpusError, Document
from memjax.data.sources.documents import DocumentError, ranges, text_of_json
from memjax.data.sources.parts import Part, Span
from memjax.data.sources.streams import unreadable

_RECORDS = 64
"""Records that are read at once."""
_IN_ANY_ORDER = "readahead_buffer_size:0,max_parallelism:0"


class ArrayRecordPart(Part):
    """An ArrayRecord file; a record is a document.

    The first record tells what all are: JSON objects with the text in `field`, or the text itself in UTF-8, which is also what
    an empty `field` says.
    """

    grown = 2

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._json: bool | None = None

    def __len__(self) -> int:
        return self._reader().num_records()

    def get(self, number: int) -> Document:
        """Document `number`."""
        return self.document((number, self._read(number, number + 1)[0]))

    def whole(self) -> Span:
        """The whole file."""
        return Span(0, len(self), 0)

    def spans(self, size: int) -> list[Span]:
        """Equal ranges of records, of about `size` bytes by the mean of all."""
        return [Span(start, stop, start) for start, stop in ranges(len(self), self.size * self.grown, size)]

    def number_at(self, start: int) -> int:
        """`first` of the span that starts at this record."""
        return start

    def entries(self, span: Span) -> Iterator[tuple[int, bytes]]:
        """(number, record)."""
        for start in range(span.start, span.stop, _RECORDS):
            yield from enumerate(self._read(start, min(start + _RECORDS, span.stop)), start)

    def document(self, entry: tuple[int, bytes]) -> Document:
        """The document of a record."""
        number, record = entry
        where = f"{self.file}#{number}"
        try:
            text = record.decode()
        except UnicodeDecodeError as error:
            raise DocumentError(
                f"{where}: the record is not UTF-8 at byte {error.start}; records are texts or JSON objects (what TensorFlow Datasets"
                " prepared is read with config.data.corpus=tfds:NAME)",
                "not UTF-8",
            ) from error
        if self._holds_json():
            text = text_of_json(text, where, self.field, "record")
        return Document(where, text)

    def _holds_json(self) -> bool:
        """Whether the first record is a JSON object."""
        if self._json is None:
            self._json = False
            if self.field:
                try:
                    text_of_json(self._read(0, 1)[0].decode(), "", self.field)
                    self._json = True
                except UnicodeDecodeError:
                    pass
                except DocumentError as error:
                    self._json = error.reason not in ("not JSON", "not a JSON object")
        return self._json

    def _reader(self) -> Any:
        try:
            state = os.stat(self.file)
        except OSError as error:
            raise unreadable(self.file, error) from error
        return _open(str(self.file), state.st_size, state.st_mtime_ns, os.getpid())

    def _read(self, start: int, stop: int) -> list[bytes]:
        try:
            return self._reader().read(start, stop)
        except RuntimeError as error:
            raise _damaged(str(self.file), f"records {start} to {stop - 1}: {error}") from error


@functools.lru_cache(maxsize=4)
def _open(file: str, size: int, changed: int, process: int) -> Any:
    """An open file; a few are kept, by each process for itself.

    Raises:
      CorpusError: it is no ArrayRecord file; the reader itself shows one without records.
    """
    reader = ArrayRecordReader(file, _IN_ANY_ORDER)
    if not reader.ok():
        raise _damaged(file, "it has no valid end")
    return reader


def _damaged(file: str, why: str) -> CorpusError:
    return CorpusError(f"{file}: is no ArrayRecord file, or truncated or damaged ({why}); copy or write it again")
