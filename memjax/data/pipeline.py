"""Batches. Which rows a batch holds is arithmetic on (seed, step), so a run goes on where it stopped, on any number of hosts.

B: rows in a batch; N: tokens in a row; C: chunks in a row; K: vectors of a chunk; E: their width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from memjax.data.memories import Memories
from memjax.data.rows import Rows, RowsError


class TrainBatches:
    """Rows in an order shuffled anew each epoch, without end; a batch may span two epochs.

    Args:
      rows: what to read.
      batch_rows: B.
      seed: chooses the order.
      first_row: where in the endless order the first batch starts.
      attributions: [rows, N], one of every token, if batches should hold them.
      memories: of these rows, if batches should hold them.
      part: places in every batch whose rows are read, ascending; by default all. Batches then hold those alone.

    Raises:
      RowsError: there are no rows, or the attributions or memories are not of these rows.
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
    ):
        if not len(rows):
            raise RowsError("there are no rows to train on; give more text or shorter rows (config.data.row_tokens)")
        if attributions is not None:
            check_attributions(attributions, rows)
        if memories is not None:
            memories.check_rows(rows)
        source: Any = grain.MapDataset.source(_Examples(rows, attributions, memories))
        order: Any = source.seed(seed).shuffle().repeat()[first_row:]
        if part is None:
            self._batches: Any = order.batch(batch_rows)
        else:
            self._batches = grain.MapDataset.source(_Part(order, batch_rows, part)).batch(len(part))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, counted from 0.

        That is `tokens` int32 [B, N] and, if there are any, `attribution` float32 [B, N] and `memories` [B, C, K, E] as stored.
        """
        return self._batches[step]

    def from_step(self, step: int, threads: int = 4) -> Iterator[dict[str, np.ndarray]]:
        """`batch(step)`, `batch(step + 1)`, ... without end, read ahead on that many threads."""
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        return iter(self._batches[step:].to_iter_dataset(options))


class _Examples:
    """Rows, each with what belongs to it."""

    def __init__(self, rows: Rows, attributions: np.ndarray | None, memories: Memories | None):
        self._rows, self._attributions, self._memories = rows, attributions, memories

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = {"tokens": self._rows[index]}
        if self._attributions is not None:
            example["attribution"] = np.asarray(self._attributions[index], np.float32)
        if self._memories is not None:
            example["memories"] = self._memories[index]
        return example


class _Part:
    """Of an endless order of examples cut in batches, those at the same places of every batch."""

    def __init__(self, order: Any, batch_rows: int, part: np.ndarray):
        self._order, self._batch_rows, self._part = order, batch_rows, part

    def __len__(self) -> int:
        return len(self._order) // self._batch_rows * len(self._part)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch, place = divmod(index, len(self._part))
        return self._order[batch * self._batch_rows + int(self._part[place])]


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
