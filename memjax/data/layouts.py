"""Documents become rows: joined and cut, or each in rows of its own (`config.data.rows`).

N: tokens in a row; R: rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from memjax.config import Data
from memjax.config.settings import ROWS

_SHORT, _LONG = np.dtype("<u2"), np.dtype("<u4")
SHORT_VOCABULARY = 65536
"""Ids of a vocabulary no larger than this are stored in 16 bits."""


class RowsError(ValueError):
    """Rows are absent, damaged, too few or of another tokenizer; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How documents become rows."""

    row_tokens: int
    """N."""
    mode: str = "packed"
    """`packed`, `per_document`, `first_n` or `full_length_only` (memjax/config/settings.py, ROWS)."""
    padding: str = "right"
    """The side on which a row that a document does not fill is padded."""

    @classmethod
    def of(cls, data: Data) -> Layout:
        """The one that the settings ask for."""
        return cls(data.row_tokens, *ROWS[data.rows])


def stored_dtype(vocabulary: int) -> np.dtype:
    """Little-endian uint16, or uint32 where the vocabulary needs it."""
    return _SHORT if vocabulary <= SHORT_VOCABULARY else _LONG


def read_records(records: Sequence[bytes], row_tokens: int) -> np.ndarray:
    """Stored rows as int32 [R, N]."""
    raw = b"".join(records)
    stored = _SHORT if len(raw) == len(records) * row_tokens * _SHORT.itemsize else _LONG
    return np.frombuffer(raw, stored).reshape(len(records), row_tokens).astype(np.int32)


class RowMaker:
    """Takes documents in order and gives the rows that they fill.

    Attributes:
      rows: given so far.
      documents: taken so far.
      tokens: in rows so far, padding apart.
      padding: padded places in rows so far.
      seen: tokens taken so far, separators among them.
    """

    def __init__(self, layout: Layout, eos_id: int, pad_id: int, vocabulary: int):
        self.layout, self.dtype = layout, stored_dtype(vocabulary)
        self.rows = self.documents = self.tokens = self.padding = self.seen = 0
        self._vocabulary, self._pad_id = vocabulary, pad_id
        self._separator = np.array([eos_id], np.int32)
        self._tail = np.empty(0, np.int32)

    @property
    def dropped(self) -> int:
        """Tokens taken that are in no row: a stream's unfilled end, or what a mode leaves out."""
        return self.seen - self.tokens

    def add(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The rows [R, N] that these documents [tokens] fill, as they are stored.

        Raises:
          RowsError: an id is not of the vocabulary.
        """
        ids = np.concatenate([self._separator[:0], *arrays])
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            raise RowsError(
                f"ids {ids.min()} to {ids.max()} are not all below the vocabulary of {self._vocabulary}; config.data.vocabulary must be"
                " that of the tokenizer"
            )
        self.seen += ids.size
        rows = self._packed(arrays) if self.layout.mode == "packed" else self._apart(arrays)
        self.documents += len(arrays)
        self.rows += len(rows)
        return rows

    def _packed(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        pieces = [self._tail]
        for number, array in enumerate(arrays, start=self.documents):
            pieces += [self._separator, array] if number else [array]
            self.seen += bool(number)
        stream = np.concatenate(pieces)
        N = self.layout.row_tokens
        whole = stream.size - stream.size % N
        self._tail = stream[whole:].copy()
        self.tokens += whole
        return stream[:whole].astype(self.dtype).reshape(-1, N)

    def _apart(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        N, mode = self.layout.row_tokens, self.layout.mode
        if mode == "per_document":
            parts = [array[start : start + N] for array in arrays for start in range(0, array.size, N)]
        else:
            least = N if mode == "full_length_only" else 1
            parts = [array[:N] for array in arrays if array.size >= least]
        rows = np.full((len(parts), N), self._pad_id, self.dtype)
        for row, part in zip(rows, parts, strict=True):
            row[: part.size] = part
            if self.layout.padding == "left" and part.size < N:
                row[:] = np.roll(row, N - part.size)
        tokens = sum(part.size for part in parts)
        self.tokens += tokens
        self.padding += rows.size - tokens
        return rows


def pack(
    token_arrays: Iterable[np.ndarray], row_tokens: int, eos_id: int, vocabulary: int = SHORT_VOCABULARY
) -> Iterator[np.ndarray]:
    """Joins documents [tokens], `eos_id` between them, and cuts the stream into rows [N]; an unfilled tail is dropped.

    Rows are uint16, or uint32 where `vocabulary` needs it.

    Raises:
      RowsError: an id is not of the vocabulary.
    """
    maker = RowMaker(Layout(row_tokens), eos_id, 0, vocabulary)
    for array in token_arrays:
        yield from maker.add([array])


def document_ids(tokens: Any, eos_id: int) -> Any:
    """Which document of its row each token is of, counted from 0: int32, of the shape of `tokens` [..., N].

    That is the number of separators before it, so a separator is of the document that it ends. Takes arrays of NumPy or of JAX. What
    attends, copies or is encoded across documents of a packed row may be told from it.
    """
    ends = tokens == eos_id
    return (ends.cumsum(-1) - ends).astype(np.int32)
