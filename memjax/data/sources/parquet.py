"""Parquet files: one column is read, one row group after another."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from memjax.data.sources import streams
from memjax.data.sources.base import CorpusError, Document
from memjax.data.sources.documents import text_of
from memjax.data.sources.parts import Part, Span
from memjax.data.sources.streams import missing
from memjax.errors import few

_BUFFER = 1 << 20
"""Bytes of a column that are read from disk at once."""
_ROWS = 64
"""Rows that are decoded at once, at most."""
_PACKED = 100
"""Bytes that one byte on disk may stand for in a row group of more than LONGEST bytes."""

_PAGE = re.compile(rb"\x15[\x80-\xff]*[\x00-\x7f]\x15([\x80-\xff]*[\x00-\x7f])")
"""The beginning of a page in Thrift: its kind, and its size as zigzag groups of seven bits."""


class _Groups(NamedTuple):
    """The row groups of a file."""

    ends: np.ndarray
    """The number of rows up to the end of each group [groups]."""
    sizes: np.ndarray
    """Uncompressed bytes of the column in each group [groups]."""
    rows: int
    """Rows to decode at once: they have about LONGEST bytes at most, or are one."""


class ParquetPart(Part):
    """A Parquet file: each row is a document, in the column `field`."""

    text_per_byte = 3

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "groups"}

    @functools.cached_property
    def groups(self) -> _Groups:
        """Return the row groups; the end of the file, which lists them, is read once.

        Raises:
          CorpusError: the file is damaged, or has no such column of text.
        """
        with self._named():
            opened = self.opened(_open)
            self._check_column(opened.schema_arrow)
            metadata = opened.metadata
            paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
            column = paths.index(self.field)
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            chunks = [group.column(column) for group in groups]
            longest = max(map(self._longest, chunks, [g.num_rows for g in groups]), default=0)
            sizes = [chunk.total_uncompressed_size for chunk in chunks]
            ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        rows = min(_ROWS, max(1, streams.LONGEST // max(1, longest)))
        return _Groups(ends, np.array(sizes, np.int64), rows)

    def _longest(self, chunk: Any, rows: int) -> int:
        """Return the bytes that a row of a column in a row group has at most, or in the mean.

        Few bytes on disk can stand for gigabytes: a page is decoded whole, and every row may be
        that value of the dictionary which is as long as all of them.

        Raises:
          CorpusError: the rows are too long, or the file holds too little for what it declares.
        """
        declared, mean = chunk.total_uncompressed_size, chunk.total_uncompressed_size // (rows or 1)
        CorpusError.require(
            mean <= streams.LONGEST
            and declared <= max(streams.LONGEST, _PACKED * chunk.total_compressed_size),
            f"{self.file}: {declared:,} bytes of {rows:,} rows from {chunk.total_compressed_size:,}"
            f" on disk, expected at most {streams.LONGEST:,} bytes per row, and {_PACKED} per byte"
            " on disk. Write it with smaller row groups, or shorter rows",
        )
        if not chunk.has_dictionary_page:
            return mean
        with open(self.file, "rb") as stream:
            stream.seek(chunk.dictionary_page_offset)
            return max(mean, _page_size(stream.read(16)))

    def whole(self) -> Span:
        """Return the whole file as one span."""
        ends = self.groups.ends
        return Span(0, int(ends[-1]) if len(ends) else 0, 0)

    def spans(self, size: int) -> list[Span]:
        """Return spans of row groups that start in the same `size` bytes of text."""
        ends, sizes, _ = self.groups
        begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        starts = np.concatenate([[0], ends[:-1]])
        first = np.flatnonzero(np.diff(begins // size, prepend=-1)) if len(ends) else []
        cuts = [int(starts[group]) for group in first]
        return [
            Span(start, stop, start)
            for start, stop in zip(cuts, [*cuts[1:], self.whole().stop], strict=True)
        ]

    def entries(self, span: Span) -> Iterator[tuple[int, bytes | None]]:
        """Yield (row, value of the column) of the row groups of a span."""
        ends, number = self.groups.ends, span.start
        if span.start == span.stop:
            return
        first, last = (
            int(np.searchsorted(ends, row, "right")) for row in (span.start, span.stop - 1)
        )
        with self._named():
            for batch in self.opened(_open).iter_batches(
                self.groups.rows, list(range(first, last + 1)), [self.field], use_threads=False
            ):
                for value in _as_bytes(batch.column(0)).to_pylist():
                    streams.require_short(value or b"", f"{self.file}#{number}")
                    yield number, value
                    number += 1

    def document(self, entry: tuple[int, bytes | None]) -> Document:
        """Return the document of a row."""
        number, value = entry
        where = f"{self.file}#{number}"
        return Document(where, text_of(value, where, self.field))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Raise one error that names the file in place of those of pyarrow."""
        try:
            import pyarrow
        except ImportError as error:
            raise missing(str(self.file), "pyarrow") from error
        try:
            yield
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"{self.file}: a path that is not UTF-8, expected one of a Parquet file. Rename it"
            ) from error
        except (pyarrow.ArrowException, OSError) as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CorpusError(
                f"{self.file}: damaged or not a Parquet file ({message}). Copy or download it again"
            ) from error

    def _check_column(self, schema: Any) -> None:
        import pyarrow.types as kinds

        CorpusError.require(
            self.field in schema.names,
            f"{self.file}: no column {self.field!r}, only {few(schema.names)}. Set"
            " config.data.text_field to one of them",
        )
        CorpusError.require(
            schema.names.count(self.field) == 1,
            f"{self.file}: {schema.names.count(self.field)} columns {self.field!r}, expected one."
            " Rename the others",
        )
        kind = schema.field(self.field).type
        inner = kind.value_type if kinds.is_dictionary(kind) else kind
        tests = (
            kinds.is_null,
            kinds.is_string,
            kinds.is_large_string,
            kinds.is_string_view,
            kinds.is_binary,
            kinds.is_large_binary,
        )
        CorpusError.require(
            any(test(inner) for test in tests),
            f"{self.file}: column {self.field!r} holds {kind}, expected text. Set"
            " config.data.text_field to a column of text",
        )


def _open(file: str) -> Any:
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(file, buffer_size=_BUFFER)


def _page_size(header: bytes) -> int:
    """Return the uncompressed bytes of a page by the beginning of its header; 0 if damaged."""
    found = _PAGE.match(header)
    groups = enumerate(found[1]) if found else ()
    return sum((byte & 0x7F) << 7 * place for place, byte in groups) >> 1


def _as_bytes(column: Any) -> Any:
    """Return a column of strings or bytes as bytes.

    They stay undecoded, so that one text that is not UTF-8 leaves its neighbours readable.
    """
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pyarrow.large_binary())
