"""Batches as a function of (seed, step), on any number of hosts.

Grain computes the row at a place of the shuffled order in constant time and memory, for ten rows as
for 2**32. What grows is the index of the files: 8 bytes per row once the files are open, 80 MB for
10 billion tokens in rows of 1,024. Batches are read ahead, and one or two are placed on the devices
ahead.

B: rows per batch; N: tokens per row; C: chunks per row; K: vectors per chunk; E: their width.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from memjax.data.memories import RowMemories
from memjax.data.records import locate
from memjax.data.rows import Rows, RowsError

_LOG = logging.getLogger("memjax")
_MOST_ROWS = 2**32
"""The most rows of one part: Grain shuffles numbers of 32 bits."""
_DAMAGED_LOGGED = 10
"""Damaged rows that are logged one by one; all are counted."""


class TrainBatches:
    """Rows in an endless order that is shuffled again each epoch; a batch may span two epochs.

    Each part of a mixture (`rows` has `parts` and `weights`) is shuffled and repeated with a seed
    of its own. The parts take turns evenly, and the share of a part is its weight to within 1 %,
    the resolution of weights in Grain.

    Args:
      rows: the rows.
      batch_rows: B.
      seed: seed of the order.
      data_offset: the place in the endless order at which the first batch starts.
      attributions: [rows, N], one per token, if batches should hold them. Rows of a mixture are
        numbered part after part.
      memories: of these rows, if batches should hold them.
      part: places of every batch whose rows are read, ascending; by default all. Batches then hold
        those alone.
      skip_damaged: whether a readable row replaces an unreadable one: the first of those 1, 2, 4,
        8, ... after it on disk, which does not depend on the host. `skipped` counts them.
      documents: returns document numbers int32 [B, N] of tokens [B, N], if batches should hold
        them.

    Attributes:
      skipped: the number of rows in this process that others replaced, in batches read ahead too.

    Raises:
      RowsError: there are no rows or too many, or the attributions or memories are not of these
        rows.
    """

    def __init__(
        self,
        rows: Rows,
        batch_rows: int,
        seed: int,
        data_offset: int = 0,
        attributions: np.ndarray | None = None,
        memories: RowMemories | None = None,
        part: np.ndarray | None = None,
        *,
        skip_damaged: bool = False,
        documents: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        parts, weights = _parts(rows)
        self._rows = rows if len(parts) > 1 else parts[0]
        self._sizes = [len(some) for some in parts]
        RowsError.require(
            all(self._sizes),
            "no rows to train on. Give more text, or a lower config.data.sequence_length",
        )
        if attributions is not None:
            check_attributions(attributions, self._rows)
        if memories is not None:
            memories.check_rows(self._rows)
        self._attributions, self._memories, self._documents = attributions, memories, documents
        self._order = _order(self._sizes, weights, seed)[data_offset:]
        self._batch_rows = batch_rows
        self._places = [int(place) for place in (range(batch_rows) if part is None else part)]
        self._skip_damaged, self._lock = skip_damaged, threading.Lock()
        self.skipped = 0

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return batch number `step`, from 0.

        It has `tokens` int32 [B, N] and, if given, `attribution` float32 [B, N], `memories` [B, C,
        K, E] as stored, and `documents`.

        Raises:
          RowsError: a row is unreadable; the message names it.
        """
        first = step * self._batch_rows
        indices = [int(self._order[first + place]) for place in self._places]
        try:
            batch = self._read(indices)
        except RowsError:
            if not self._skip_damaged:
                raise
            batch = self._read([self._readable(index) for index in indices])
        if self._documents is not None:
            batch["documents"] = np.asarray(self._documents(batch["tokens"]), np.int32)
        return batch

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return `batch(index)`."""
        return self.batch(index)

    def __len__(self) -> int:
        return len(self._order) // self._batch_rows

    def from_step(
        self,
        step: int,
        threads: int = 4,
        place: Callable[[dict[str, np.ndarray]], Any] | None = None,
    ) -> grain.DatasetIterator:
        """Return an endless iterator from `batch(step)` on, which `threads` threads read ahead.

        `close()` of the iterator ends the threads. With `place`, the iterator returns `place` of
        each batch. A further thread calls it ahead, so that copies to devices are complete when
        they are needed: one batch waits placed, and one more is being placed.
        """
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        batches = grain.MapDataset.source(self)[step:].to_iter_dataset(options)
        if place is not None:
            batches = grain.experimental.ThreadPrefetchIterDataset(
                batches.map(place), prefetch_buffer_size=1
            )
        return iter(batches)

    def _read(self, indices: list[int]) -> dict[str, np.ndarray]:
        batch = {"tokens": self._rows.read(indices)}
        if self._attributions is not None:
            batch["attribution"] = np.asarray(self._attributions[indices], np.float32)
        if self._memories is not None:
            batch["memories"] = self._memories.read(indices)
        return batch

    def _readable(self, index: int) -> int:
        """Return the number of the row, or of the readable row that replaces it.

        That is the first of those 1, 2, 4, ... after it in its part, which soon lie in another
        file.
        """
        part, number = locate(list(itertools.accumulate(self._sizes)), index)
        start, size = index - number, self._sizes[part]
        first: RowsError | None = None
        for ahead in (0, *(2**power for power in range((size - 1).bit_length()))):
            found = start + (number + ahead) % size
            try:
                self._read([found])
            except RowsError as error:
                first = first or error
                continue
            if first is not None:
                self._count(first, found)
            return found
        raise RowsError(
            f"{first}. Rows after it are unreadable too: more than single records are damaged"
        )

    def _count(self, error: RowsError, found: int) -> None:
        with self._lock:
            self.skipped += 1
            number = self.skipped
        if number <= _DAMAGED_LOGGED:
            _LOG.warning("%s; row %d replaces it (config.data.skip_damaged)", error, found)


def _parts(rows: Any) -> tuple[Sequence[Any], Sequence[float]]:
    """Return the parts of a mixture and their weights, or all rows as one part."""
    parts = getattr(rows, "parts", (rows,))
    if len(parts) == 1:
        return parts, [1.0]
    weights = [float(weight) for weight in rows.weights]
    RowsError.require(
        len(weights) == len(parts) and all(0 < weight < math.inf for weight in weights),
        f"weights {weights}, expected {len(parts)} positive ones, one per corpus of the mixture",
    )
    return parts, weights


def _order(sizes: Sequence[int], weights: Sequence[float], seed: int) -> Any:
    """Return the numbers of rows in an endless shuffled order.

    The rows of the parts are numbered one part after the other. Any place is computed in constant
    time.
    """
    orders, start = [], 0
    for number, size in enumerate(sizes):
        RowsError.require(
            size < _MOST_ROWS,
            f"{size} rows in one corpus, expected at most {_MOST_ROWS - 1}. Use longer rows",
        )
        own = (
            seed
            if len(sizes) == 1
            else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        )
        orders.append(grain.MapDataset.range(start, start + size).seed(own).shuffle().repeat())
        start += size
    # A mixture of endless orders (of length 2**63 - 1) is endless.
    return orders[0] if len(orders) == 1 else grain.MapDataset.mix(orders, weights)


def open_attributions(path: str) -> np.ndarray:
    """Map the array [rows, N] of a .npy file.

    Raises:
      RowsError: the file is absent, not a .npy file, or of another shape.
    """
    try:
        array = np.load(Path(path).expanduser(), mmap_mode="r")
    except (OSError, ValueError) as error:
        raise RowsError(
            f"config.data.attributions={path!r} cannot be read ({error}). Give a .npy file of"
            " floats [rows, N]"
        ) from error
    RowsError.require(
        array.ndim == 2 and np.issubdtype(array.dtype, np.floating),
        f"config.data.attributions={path!r}: {array.dtype} {array.shape}, expected floats"
        " [rows, N]",
    )
    return array


def check_attributions(attributions: np.ndarray, rows: Rows) -> None:
    """Raise RowsError if the array is not of these rows."""
    RowsError.require(
        attributions.shape == (len(rows), rows.row_tokens),
        f"config.data.attributions: shape {attributions.shape}, expected"
        f" {(len(rows), rows.row_tokens)} as of the training rows",
    )


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Return up to `limit` of the numbers below `count`, evenly spaced, ascending."""
    used = min(limit, count)
    return [place * count // used for place in range(used)]


def evaluation_batches(
    rows: Rows, batch_rows: int, limit: int, pad_id: int, part: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield up to `limit` rows, evenly spaced over all, as int32 [B, N].

    The last batch is filled up with rows of `pad_id`. With `part`, only the rows at those places of
    every batch are read and returned.
    """
    indices = evenly_spaced(len(rows), limit)
    places = range(batch_rows) if part is None else part
    for start in range(0, len(indices), batch_rows):
        batch = np.full((len(places), rows.row_tokens), pad_id, np.int32)
        for row, place in enumerate(places):
            if start + place < len(indices):
                batch[row] = rows[indices[start + place]]
        yield batch
