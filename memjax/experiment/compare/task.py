"""The task of `memjax compare`: values recalled by their keys from chunks that were written.

A chunk holds pairs of a key and a value between other tokens. A query repeats keys of the chunks
that it reads, and each value is to be predicted behind its key. Keys differ within a
sequence, and values are drawn independently, so that nothing but memory helps. (Multi-query
associative recall, Arora et al. 2023, arXiv 2312.04927, with a border of chunks between.)

Batches are functions of (seed, step).

Shapes: B sequence, W written chunk, X query, L token, Q pair of a query.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from memjax.models.request import PREDICT, Request, SpecialIds
from memjax.objectives.requests import shift_right

FIRST = 16
"""The least id of the task; those below are reserved."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Sizes of the task."""

    vocab_size: int = 1024
    chunk_length: int = 16
    written: int = 8
    """W: chunks that are written in training."""
    pairs: int = 1
    """Pairs of a chunk."""
    values: int = 16
    """Number of different values; chance is 1 / values."""
    keys: int = 32
    """Number of different keys, at least the pairs of the longest sequence."""

    @property
    def asked(self) -> int:
        """Q: pairs of the last chunk."""
        return self.chunk_length // 2


class Rows(NamedTuple):
    """A batch of the task."""

    tokens: Int[np.ndarray, "B W L"]
    query: Int[np.ndarray, "B X L"]
    """Keys and values in turn, of chunks that read more and more of the sequence."""
    distance: Int[np.ndarray, "B X Q"]
    """Chunks from each pair to the end of the chunks that the query reads, at least 1."""


def draw_rows(task: Task, batch: int, written: int, *seed: int) -> Rows:
    """Draw sequences of `written` chunks.

    Args:
      task: the sizes.
      batch: B.
      written: W.
      seed: whole numbers that determine the draw.
    """
    rng = np.random.default_rng((written, *seed))
    first_value, first_other = FIRST + task.keys, FIRST + task.keys + task.values
    shape = batch, written, task.chunk_length
    tokens = rng.integers(first_other, task.vocab_size, shape)
    order = rng.random((batch, task.keys)).argsort(axis=1)[:, : written * task.pairs]
    keys = FIRST + order.reshape(batch, written, task.pairs)
    values = first_value + rng.integers(0, task.values, keys.shape)
    places = rng.random((batch, written, task.asked)).argsort(axis=2)[..., : task.pairs]
    np.put_along_axis(tokens, 2 * places, keys, axis=2)
    np.put_along_axis(tokens, 2 * places + 1, values, axis=2)
    query, distance = [], []
    for visible in prefixes(written):
        # Pairs without repeats, where there are enough.
        count = visible * task.pairs
        drawn = rng.random((batch, max(count, task.asked))).argsort(axis=1)[:, : task.asked] % count
        asked = [np.take_along_axis(x.reshape(batch, -1), drawn, axis=1) for x in (keys, values)]
        query.append(np.stack(asked, axis=2).reshape(batch, -1))
        distance.append(visible - drawn // task.pairs)
    return Rows(tokens.astype(np.int32), np.stack(query, 1).astype(np.int32), np.stack(distance, 1))


def prefixes(written: int) -> list[int]:
    """Return the chunks that each query reads: a quarter of them, and so on to all."""
    return sorted({max(1, written * part // 4) for part in (1, 2, 3, 4)})


def ask(rows: Rows, ids: SpecialIds) -> Request:
    """Return the request for the values of all queries, from the memory of what they read."""
    written = rows.tokens.shape[1]
    labels = jnp.asarray(rows.query)
    is_value = jnp.arange(labels.shape[-1]) % 2
    number, visible = np.arange(written), np.array(prefixes(written))
    return Request(
        shift_right(labels, ids.bos, ids.pad),
        labels,
        jnp.broadcast_to(is_value.astype(jnp.float32), labels.shape),
        written=number,
        visible=visible,
        written_at=number,
        place=visible,
        task=np.full(len(visible), PREDICT),
    )
