"""Batches. Which rows a batch holds is arithmetic on (seed, step), so a run goes on where it stopped, on any number of hosts.

B: rows in a batch; N: tokens in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from memjax.data.rows import Rows, RowsError


class TrainBatches:
    """Rows in an order shuffled anew each epoch, without end; a batch may span two epochs.

    Args:
      rows: what to read.
      batch_rows: B.
      seed: chooses the order.
      first_row: where in the endless order the first batch starts.

    Raises:
      RowsError: there are no rows.
    """

    def __init__(self, rows: Rows, batch_rows: int, seed: int, first_row: int = 0):
        if not len(rows):
            raise RowsError("there are no rows to train on; give more text or shorter rows (config.data.row_tokens)")
        order: Any = grain.MapDataset.source(rows).seed(seed).shuffle().repeat()
        self._batches = order[first_row:].batch(batch_rows)

    def batch(self, step: int) -> np.ndarray:
        """Batch number `step`, counted from 0: int32 [B, N]."""
        return self._batches[step]

    def from_step(self, step: int, threads: int = 4) -> Iterator[np.ndarray]:
        """`batch(step)`, `batch(step + 1)`, ... without end, read ahead on that many threads."""
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        return iter(self._batches[step:].to_iter_dataset(options))


def spread(count: int, limit: int) -> list[int]:
    """Up to `limit` of the numbers below `count`, evenly spread, ascending."""
    used = min(limit, count)
    return [place * count // used for place in range(used)]


def evaluation_batches(rows: Rows, batch_rows: int, limit: int, pad_id: int) -> Iterator[np.ndarray]:
    """Up to `limit` rows, spread evenly over all, as int32 [B, N]; the last batch is filled up with rows of `pad_id` alone."""
    indices = spread(len(rows), limit)
    for start in range(0, len(indices), batch_rows):
        batch = np.full((batch_rows, rows.row_tokens), pad_id, np.int32)
        for place, index in enumerate(indices[start : start + batch_rows]):
            batch[place] = rows[index]
        yield batch
