"""Parquet files: one column is read, row group by row group."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from memjax.data.sources.base import CorpusError, Document
from memjax.data.sources.documents import text_of
from memjax.data.sources.parts import Part, Span
from memjax.data.sources.streams import missing, unreadable

_BUFFER = 1 << 20
"""Bytes of a column that are read from disk at once."""
_ROWS = 64
"""Rows that are unpacked at once."""


class _Groups(NamedTuple):
    """A file's row groups."""

    ends: np.ndarray
    """Rows up to the end of each [groups]."""
    sizes: np.ndarray
    """Bytes of the column in each, unpacked [groups]."""


class ParquetPart(Part):
    """A Parquet file; a row is a document, in the column `field`."""

    grown = 3

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._groups: _Groups | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": None}

    def __len__(self) -> int:
        ends = self.groups().ends
        return int(ends[-1]) if len(ends) else 0

    def groups(self) -> _Groups:
        """The row groups, from the end of the file; read once.

        Raises:
          CorpusError: the file is damaged, or has no such column with text.
        """
        if self._groups is None:
            with self._named():
                opened = self._open()
                self._check_column(opened.schema_arrow)
                metadata = opened.metadata
                column = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(self.field)
                groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
                sizes = [group.column(column).total_uncompressed_size for group in groups]
                ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
            self._groups = _Groups(ends, np.array(sizes, np.int64))
        return self._groups

    def get(self, number: int) -> Document:
        """Document `number`; the row group of the last one asked for is kept in memory."""
        ends = self.groups().ends
        group = int(np.searchsorted(ends, number, "right"))
        row = number - int(ends[group - 1] if group else 0)
        with self._named():
            value = _group(*self._key(), self.field, group)[row].as_py()
        return self.document((number, value))

    def whole(self) -> Span:
        """The whole file."""
        return Span(0, len(self), 0)

    def spans(self, size: int) -> list[Span]:
        """Row groups that start in the same `size` bytes of text."""
        ends, sizes = self.groups()
        begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        starts = np.concatenate([[0], ends[:-1]])
        first = np.flatnonzero(np.diff(begins // size, prepend=-1)) if len(ends) else []
        cuts = [int(starts[group]) for group in first]
        return [Span(start, stop, start) for start, stop in zip(cuts, [*cuts[1:], len(self)], strict=True)]

    def number_at(self, start: int) -> int:
        """`first` of the span that starts at this row."""
        return start

    def entries(self, span: Span) -> Iterator[tuple[int, bytes | None]]:
        """(row, value of the column) of the row groups of a span."""
        ends = self.groups().ends
        number = span.start
        if span.start == span.stop:
            return
        first, last = (int(np.searchsorted(ends, row, "right")) for row in (span.start, span.stop - 1))
        with self._named():
            for batch in self._open().iter_batches(_ROWS, list(range(first, last + 1)), [self.field], use_threads=False):
                for value in _as_bytes(batch.column(0)).to_pylist():
                    yield number, value
                    number += 1

    def document(self, entry: tuple[int, bytes | None]) -> Document:
        """The document of a row."""
        number, value = entry
        where = f"{self.file}#{number}"
        return Document(where, text_of(value, where, self.field))

    def _open(self) -> Any:
        return _open(*self._key())

    def _key(self) -> tuple[str, int, int, int]:
        try:
            state = os.stat(self.file)
        except OSError as error:
            raise unreadable(self.file, error) from error
        return str(self.file), state.st_size, state.st_mtime_ns, os.getpid()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turns what pyarrow raises into one error that names the file."""
        try:
            import pyarrow
        except ImportError as error:
            raise missing(str(self.file), "pyarrow", "data") from error
        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CorpusError(f"{self.file}: is no Parquet file, or damaged ({message}); copy or download it again") from error

    def _check_column(self, schema: Any) -> None:
        import pyarrow.types as kinds

        if self.field not in schema.names:
            raise CorpusError(
                f"{self.file}: has no column {self.field!r}, only {', '.join(schema.names)}; set config.data.text_field to one of them"
            )
        kind = schema.field(self.field).type
        inner = kind.value_type if kinds.is_dictionary(kind) else kind
        tests = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_binary, kinds.is_large_binary)
        if not any(test(inner) for test in tests):
            raise CorpusError(
                f"{self.file}: column {self.field!r} holds {kind}, not text; set config.data.text_field to a column with text"
            )


@functools.lru_cache(maxsize=4)
def _open(file: str, size: int, changed: int, process: int) -> Any:
    """An open file; a few are kept, by each process for itself."""
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(file, buffer_size=_BUFFER)


@functools.lru_cache(maxsize=1)
def _group(file: str, size: int, changed: int, process: int, field: str, group: int) -> Any:
    """One column of a row group, as bytes."""
    return _as_bytes(_open(file, size, changed, process).read_row_group(group, columns=[field], use_threads=False).column(0))


def _as_bytes(column: Any) -> Any:
    """A column of strings or bytes as bytes, unchecked: one text that is no UTF-8 must not spoil its neighbours."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pyarrow.large_binary())
