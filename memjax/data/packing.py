"""Documents become rows: joined and split, or each in rows of its own (`config.data.packing`).

N: tokens of a row; R: rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

import numpy as np

from memjax.config import Data
from memjax.config.choices import PACKINGS
from memjax.errors import MemjaxError

Item = TypeVar("Item", bound=Sized)
_SHORT, _LONG = np.dtype("<u2"), np.dtype("<u4")
SHORT_VOCABULARY = 65536
"""Ids of a vocabulary up to this size are stored in 16 bits."""


class RowsError(MemjaxError):
    """Rows are absent, damaged, too few or of another tokenizer; the message names the file."""


def check_side(
    side: str, packing: str, where: str, remedy: str, error: type[MemjaxError] = RowsError
) -> None:
    """Raise an error if rows are padded on another side than those of a training.

    Args:
      side: the side of their padding; empty if they have none.
      packing: config.data.packing of the training; empty for any.
      where: the rows, which begin the message.
      remedy: the end of the message.
      error: its class.
    """
    expected = PACKINGS[packing][1] if packing else side
    error.require(
        side in ("", expected),
        f"{where}: rows padded on the {side}, expected the {expected}, as in training"
        f" (config.data.packing={packing!r}). {remedy}",
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rule by which documents become rows."""

    row_tokens: int
    """N."""
    mode: str = "packed"
    """`packed`, `per_document`, `first_n` or `full_length_only` (memjax/config/choices.py,
    PACKINGS).
    """
    padding: str = "right"
    """The side of the padding in a row that a document does not fill."""

    @classmethod
    def of(cls, data: Data) -> Layout:
        """Return the layout of these settings."""
        return cls(data.sequence_length, *PACKINGS[data.packing])


def read_records(records: Sequence[bytes], row_tokens: int) -> np.ndarray:
    """Return stored rows as int32 [R, N]."""
    raw = b"".join(records)
    stored = _SHORT if len(raw) == len(records) * row_tokens * _SHORT.itemsize else _LONG
    return np.frombuffer(raw, stored).reshape(len(records), row_tokens).astype(np.int32)


class RowMaker:
    """Takes documents in order and returns the rows that they fill.

    Attributes:
      rows: rows returned so far.
      documents: documents taken so far.
      tokens: tokens in rows so far, without padding.
      padding: positions of padding in rows so far.
      seen: tokens taken so far, with separators.
    """

    def __init__(self, layout: Layout, eos_id: int, pad_id: int, vocabulary: int):
        self.layout = layout
        self.dtype = _SHORT if vocabulary <= SHORT_VOCABULARY else _LONG
        self.rows = self.documents = self.tokens = self.padding = self.seen = 0
        self._vocabulary, self._pad_id = vocabulary, pad_id
        self._separator = np.array([eos_id], np.int32)
        self._tail = np.empty(0, np.int32)

    @property
    def dropped(self) -> int:
        """The number of tokens taken that are in no row."""
        return self.seen - self.tokens

    def add(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the rows [R, N] that these documents [tokens] fill, as they are stored.

        Raises:
          RowsError: an id is outside the vocabulary.
        """
        ids = np.concatenate([self._separator[:0], *arrays])
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            raise RowsError(
                f"ids {ids.min()} to {ids.max()} are not all below the vocabulary of"
                f" {self._vocabulary}. Set config.data.vocab_size to that of the tokenizer"
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
            parts = [
                array[start : start + N] for array in arrays for start in range(0, array.size, N)
            ]
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
    token_arrays: Iterable[np.ndarray],
    row_tokens: int,
    eos_id: int,
    vocabulary: int = SHORT_VOCABULARY,
) -> Iterator[np.ndarray]:
    """Join documents [tokens] with `eos_id` between them, and yield rows [N] of the stream.

    Rows are uint16, or uint32 where `vocabulary` needs it. An unfilled last row is dropped.

    Raises:
      RowsError: an id is outside the vocabulary.
    """
    maker = RowMaker(Layout(row_tokens), eos_id, 0, vocabulary)
    for array in token_arrays:
        yield from maker.add([array])


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield texts or arrays in batches of `size` characters or tokens or a little more."""
    batch: list[Item] = []
    taken = 0
    for item in items:
        batch.append(item)
        taken += len(item)
        if taken >= size:
            yield batch
            batch, taken = [], 0
    if batch:
        yield batch


def document_ids(tokens: Any, eos_id: int) -> Any:
    """Return the number of each token's document in its row, from 0: int32 [..., N].

    It is the number of separators before the token, so a separator belongs to the document that it
    ends. `tokens` [..., N] is an array of NumPy or of JAX.
    """
    ends = tokens == eos_id
    return (ends.cumsum(-1) - ends).astype(np.int32)
