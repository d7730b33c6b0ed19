"""Batches. Which rows a batch holds is arithmetic on (seed, step), so a run goes on where it stopped, on any number of hosts.

Nothing is listed and nothing is passed over: Grain works out which row stands at a place of the shuffled order, in constant time and
memory, whether there are ten rows or 2**32. What grows with the rows is the index of their files: 8 bytes a row once the files are open,
80 MB for 10 billion tokens in rows of 1,024. Batches are read ahead, and one or two of them placed on the devices ahead.

B: rows in a batch; N: tokens in a row; C: chunks in a row; K: vectors of a chunk; E: their width.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from memjax.data.memories import Memories
from memjax.data.rows import Rows, RowsError

_LOG = logging.getLogger(__name__)
_MOST_ROWS = 2**32
"""Of one part: Grain shuffles numbers of 32 bits."""
_DAMAGED_LOGGED = 10
"""Damaged rows that are named one by one; all are counted."""


class TrainBatches:
    """Rows in an order shuffled anew each epoch, without end; a batch may span two epochs.

    Of a mixture (`rows` has `parts` and `weights`) each part is shuffled and repeated by itself, with a seed of its own, and the parts take
    turns evenly; a part's share is its weight's to within 1 % of it, which is how finely Grain takes weights.

    Args:
      rows: what to read.
      batch_rows: B.
      seed: chooses the order.
      first_row: where in the endless order the first batch starts.
      attributions: [rows, N], one of every token, if batches should hold them.
      memories: of these rows, if batches should hold them.
      part: places in every batch whose rows are read, ascending; by default all. Batches then hold those alone.
      skip_damaged: reads, in place of a row that cannot be read, the first that can of those 1, 2, 4, 8, ... after it on disk, which does not
        depend on the host; `skipped` counts them.
      documents: makes document numbers int32 [B, N] of tokens [B, N], if batches should hold them.

    Raises:
      RowsError: there are no rows or too many, or the attributions or memories are not of these rows, or are of a mixture.
    """

    def __init__(
        self,
        rows: Rows,
        batch_rows: int,
        seed: int,
        first_row: int = 0,
        attributions: np.ndarray | None = None,
        memories: Memories | None = None,
        part: np.ndarray | None = None,
        *,
        skip_damaged: bool = False,
        documents: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        parts, weights = _parts(rows)
        rows = rows if len(parts) > 1 else parts[0]
        if not all(len(some) for some in parts):
            raise RowsError("there are no rows to train on; give more text or shorter rows (config.data.row_tokens)")
        if len(parts) > 1 and not (attributions is None and memories is None):
            what = "attributions" if attributions is not None else "memories"
            raise RowsError(
                f"config.data.{what} are of the rows of one corpus, and config.data.corpus mixes {len(parts)}; train on one"
            )
        if attributions is not None:
            check_attributions(attributions, rows)
        if memories is not None:
            memories.check_rows(rows)
        self._examples = _Examples(rows, [len(some) for some in parts], attributions, memories, skip_damaged, documents)
        order = _order([len(some) for some in parts], weights, seed)[first_row:]
        places = np.arange(batch_rows) if part is None else part
        self._batches: Any = grain.MapDataset.source(_Batches(order, batch_rows, places, self._examples))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, counted from 0.

        That is `tokens` int32 [B, N] and, if there are any, `attribution` float32 [B, N], `memories` [B, C, K, E] as stored, and `documents`.

        Raises:
          RowsError: a row cannot be read; the message names it.
        """
        return self._batches[step]

    def from_step(
        self, step: int, threads: int = 4, place: Callable[[dict[str, np.ndarray]], Any] | None = None
    ) -> grain.DatasetIterator:
        """`batch(step)`, `batch(step + 1)`, ... without end, read ahead on that many threads; `close()` ends those.

        With `place`, what it makes of each batch: it is called on a thread of its own and ahead too, so that what it copies to devices is
        there when it is asked for. One batch waits placed, and one more is placed meanwhile.
        """
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        batches = self._batches[step:].to_iter_dataset(options)
        if place is not None:
            batches = grain.experimental.ThreadPrefetchIterDataset(batches.map(place), prefetch_buffer_size=1)
        return iter(batches)

    @property
    def skipped(self) -> int:
        """Rows in whose place others were read, so far and in this process, batches that are read ahead included."""
        return self._examples.skipped


def _parts(rows: Any) -> tuple[Sequence[Any], Sequence[float]]:
    """The parts of a mixture and their weights, or all rows as one part."""
    parts = getattr(rows, "parts", (rows,))
    if len(parts) == 1:
        return parts, [1.0]
    weights = [float(weight) for weight in rows.weights]
    if len(weights) != len(parts) or not all(0 < weight < float("inf") for weight in weights):
        raise RowsError(f"a mixture of {len(parts)} corpora needs as many weights above 0; it has {weights}")
    return parts, weights


def _order(sizes: Sequence[int], weights: Sequence[float], seed: int) -> Any:
    """Numbers of rows, the parts' one after the other, in an endless shuffled order in which any place is found in constant time."""
    orders, start = [], 0
    for number, size in enumerate(sizes):
        if size >= _MOST_ROWS:
            raise RowsError(
                f"there are {size} rows in one corpus and at most {_MOST_ROWS - 1} can be shuffled; use longer rows"
            )
        own = seed if len(sizes) == 1 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        orders.append(grain.MapDataset.range(start, start + size).seed(own).shuffle().repeat())
        start += size
    # Of all that is endless, and of length 2**63 - 1, the mixture is so too.
    return orders[0] if len(orders) == 1 else grain.MapDataset.mix(orders, weights)


class _Batches:
    """An endless order of rows cut in batches, of which those at some places are read."""

    def __init__(self, order: Any, batch_rows: int, places: np.ndarray, examples: _Examples):
        self._order, self._batch_rows, self._examples = order, batch_rows, examples
        self._places = [int(place) for place in places]

    def __len__(self) -> int:
        return len(self._order) // self._batch_rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = index * self._batch_rows
        return self._examples.read([int(self._order[first + place]) for place in self._places])


class _Examples:
    """Rows, each with what belongs to it."""

    def __init__(
        self,
        rows: Any,
        sizes: Sequence[int],
        attributions: np.ndarray | None,
        memories: Memories | None,
        skip_damaged: bool,
        documents: Callable[[np.ndarray], np.ndarray] | None,
    ):
        self._rows, self._attributions, self._memories, self._documents = rows, attributions, memories, documents
        # Where each part of a mixture begins, and the end.
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._skip_damaged = skip_damaged
        self._lock = threading.Lock()
        self.skipped = 0

    def read(self, indices: list[int]) -> dict[str, np.ndarray]:
        """The rows of those numbers as a batch."""
        try:
            batch = self._read(indices)
        except RowsError:
            if not self._skip_damaged:
                raise
            batch = self._read([self._readable(index) for index in indices])
        if self._documents is not None:
            batch["documents"] = np.asarray(self._documents(batch["tokens"]), np.int32)
        return batch

    def _read(self, indices: list[int]) -> dict[str, np.ndarray]:
        batch = {"tokens": _read_many(self._rows, indices)}
        if self._attributions is not None:
            batch["attribution"] = np.asarray(self._attributions[indices], np.float32)
        if self._memories is not None:
            batch["memories"] = _read_many(self._memories, indices)
        return batch

    def _readable(self, index: int) -> int:
        """The row itself if it can be read, or the first that can of those 1, 2, 4, ... after it in its part; a lost file is soon left."""
        part = bisect.bisect_right(self._starts, index) - 1
        start, size = self._starts[part], self._starts[part + 1] - self._starts[part]
        first: RowsError | None = None
        for ahead in (0, *(2**power for power in range((size - 1).bit_length()))):
            found = start + (index - start + ahead) % size
            try:
                self._read([found])
            except RowsError as error:
                first = first or error
                continue
            if first is not None:
                self._count(first, found)
            return found
        raise RowsError(f"{first}; nor can those of the rows after it that were tried: more than single records are damaged")

    def _count(self, error: RowsError, found: int) -> None:
        with self._lock:
            self.skipped += 1
            number = self.skipped
        if number <= _DAMAGED_LOGGED:
            _LOG.warning("%s; row %d is read in its place (config.data.skip_damaged)", error, found)


def _read_many(rows: Any, indices: list[int]) -> np.ndarray:
    """[indices, ...] in one call where rows have `read`."""
    return rows.read(indices) if hasattr(rows, "read") else np.stack([rows[index] for index in indices])


def open_attributions(path: str) -> np.ndarray:
    """The array [rows, N] in a .npy file, left on disk.

    Raises:
      RowsError: it is absent, no such file, or of another shape.
    """
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise RowsError(
            f"config.data.attributions={path!r} cannot be read ({error}); give a .npy file of floats [rows, N]"
        ) from error
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise RowsError(f"config.data.attributions={path!r} holds {array.dtype} {array.shape}; it must hold floats [rows, N]")
    return array


def check_attributions(attributions: np.ndarray, rows: Rows) -> None:
    """Raises RowsError if the array is not of these rows."""
    if attributions.shape != (len(rows), rows.row_tokens):
        raise RowsError(
            f"config.data.attributions has shape {attributions.shape}, the training rows {(len(rows), rows.row_tokens)}"
        )


def spread(count: int, limit: int) -> list[int]:
    """Up to `limit` of the numbers below `count`, evenly spread, ascending."""
    used = min(limit, count)
    return [place * count // used for place in range(used)]


def evaluation_batches(
    rows: Rows, batch_rows: int, limit: int, pad_id: int, part: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Up to `limit` rows, spread evenly over all, as int32 [B, N]; the last batch is filled up with rows of `pad_id` alone.

    With `part`, only the rows at those places of every batch are read and given.
    """
    indices = spread(len(rows), limit)
    places = range(batch_rows) if part is None else part
    for start in range(0, len(indices), batch_rows):
        batch = np.full((len(places), rows.row_tokens), pad_id, np.int32)
        for row, place in enumerate(places):
            if start + place < len(indices):
                batch[row] = rows[indices[start + place]]
        yield batch
