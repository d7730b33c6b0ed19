"""ArrayRecord files of text."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

from memjax.data.records import Records
from memjax.data.sources import streams
from memjax.data.sources.base import CorpusError, Document, DocumentError
from memjax.data.sources.documents import ranges, text_of_bytes, text_of_json
from memjax.data.sources.parts import Part, Span

_RECORDS = 64
"""Records that are read at once, at most."""
LARGEST_GROUP = 1 << 30
"""Bytes of a group of records: one is in memory as a whole."""
_BLOCK, _MARK, _HEADER = 1 << 16, 24, 40
"""Bytes of a block of an ArrayRecord file (by Riegeli), of its mark, and of the header of a
group."""


class ArrayRecordPart(Part):
    """An ArrayRecord file; each record is a document.

    The first record decides for all: JSON objects with the text in `field`, or the text itself in
    UTF-8. An empty `field` always means the text itself.
    """

    text_per_byte = 2

    def whole(self) -> Span:
        """Return the whole file as one span."""
        return Span(0, len(self._records), 0)

    def spans(self, size: int) -> list[Span]:
        """Return equal ranges of records, of about `size` bytes by the mean of all."""
        return [
            Span(start, stop, start)
            for start, stop in ranges(self.whole().stop, self.size * self.text_per_byte, size)
        ]

    def entries(self, span: Span) -> Iterator[tuple[int, bytes]]:
        """Yield (number, record)."""
        many = self.opened(_many)
        for start in range(span.start, span.stop, many):
            records = self._records.read(range(start, min(start + many, span.stop)))
            for number, record in enumerate(records, start):
                streams.require_short(record, f"{self.file}#{number}")
                yield number, record

    def document(self, entry: tuple[int, bytes]) -> Document:
        """Return the document of a record."""
        number, record = entry
        where = f"{self.file}#{number}"
        text = text_of_bytes(
            record,
            f"{where}:",
            ", expected a text or a JSON object. Use config.data.corpus=tfds:NAME for records of"
            " TensorFlow Datasets",
        )
        if self._holds_json:
            text = text_of_json(text, where, self.field, "record")
        return Document(where, text)

    @property
    def _records(self) -> Records:
        found = self.opened(_open)
        self.opened(_many)
        return found

    @functools.cached_property
    def _holds_json(self) -> bool:
        """Return whether the first record is a JSON object."""
        if not self.field:
            return False
        try:
            text_of_json(self._records.read([0])[0].decode(), "", self.field)
        except UnicodeDecodeError:
            return False
        except DocumentError as error:
            return error.reason not in ("not JSON", "not a JSON object")
        return True


def _open(file: str) -> Records:
    return Records([file], error=CorpusError)


def _many(file: str) -> int:
    """Return the number of records to read at once: of about LONGEST bytes at most, or one.

    Few bytes on disk can stand for gigabytes: a group is unpacked whole.

    Raises:
      CorpusError: a group declares more than LARGEST_GROUP bytes, or LONGEST per record.
    """
    place, longest, end = 0, 1, os.path.getsize(file)
    with open(file, "rb") as stream:
        while place < end:
            stream.seek(place)
            raw, mark = stream.read(_MARK + _HEADER), -place % _BLOCK
            header = raw[:mark] + raw[mark + _MARK :]
            packed, records, size = (
                int.from_bytes(header[first:stop], "little")
                for first, stop in ((8, 16), (25, 32), (32, 40))
            )
            if header[24:25] not in b"smprt" or packed > end:  # Damaged: reading raises.
                break
            CorpusError.require(
                size <= min(LARGEST_GROUP, records * streams.LONGEST),
                f"{file}: a group of {records:,} records of {size:,} bytes, expected at most"
                f" {streams.LONGEST:,} per record and {LARGEST_GROUP:,} in all. Write it with"
                " smaller groups (group_size:1), or shorter records",
            )
            longest = max(longest, size // max(records, 1))
            marks = (_HEADER + packed + (place - _MARK - 1) % _BLOCK) // (_BLOCK - _MARK)
            # An index finds the records of a group: it is not shorter than their number.
            place = max(place + _HEADER + packed + marks * _MARK, place + records)
            place += max(0, _MARK - place % _BLOCK) if place % _BLOCK else 0
    return min(_RECORDS, max(1, streams.LONGEST // longest))
