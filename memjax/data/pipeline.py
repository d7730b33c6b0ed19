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
      attributions: [rows, N], one of every token, if batches should hold them.

    Raises:
      RowsError: there are no rows, or the attributions are not of these rows.
    """

    def __init__(self, rows: Rows, batch_rows: int, seed: int, first_row: int = 0, attributions: np.ndarray | None = None):
        if not len(rows):
            raise RowsError("there are no rows to train on; give more text or shorter rows (config.data.row_tokens)")
        if attributions is not None:
            check_attributions(attributions, rows)
        source: Any = grain.MapDataset.source(_Examples(rows, attributions))
        self._batches = source.seed(seed).shuffle().repeat()[first_row:].batch(batch_rows)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`, counted from 0: `tokens` int32 [B, N] and, if there are any, `attribution` float32 [B, N]."""
        return self._batches[step]

    def from_step(self, step: int, threads: int = 4) -> Iterator[dict[str, np.ndarray]]:
        """`batch(step)`, `batch(step + 1)`, ... without end, read ahead on that many threads."""
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        return iter(self._batches[step:].to_iter_dataset(options))


class _Examples:
    """Rows, each with what belongs to it."""

    def __init__(self, rows: Rows, attributions: np.ndarray | None):
        self._rows, self._attributions = rows, attributions

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = {"tokens": self._rows[index]}
        if self._attributions is not None:
            example["attribution"] = np.asarray(self._attributions[index], np.float32)
        return example


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


def evaluation_batches(rows: Rows, batch_rows: int, limit: int, pad_id: int) -> Iterator[np.ndarray]:
    """Up to `limit` rows, spread evenly over all, as int32 [B, N]; the last batch is filled up with rows of `pad_id` alone."""
    indices = spread(len(rows), limit)
    for start in range(0, len(indices), batch_rows):
        batch = np.full((batch_rows, rows.row_tokens), pad_id, np.int32)
        for place, index in enumerate(indices[start : start + batch_rows]):
            batch[place] = rows[index]
        yield batch
