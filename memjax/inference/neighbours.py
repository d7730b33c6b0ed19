"""The nearest memories of each memory of a store, by the cosine between them.

Shapes: N chunk, K vector of a memory, E its width, B chunk of a block, T nearest chunk.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from memjax.checkpoints.store import MemoryStore
from memjax.models.memory import VECTORS
from memjax.progress import track

_COSINES = 2**24
"""Cosines in memory at a time."""


class Neighbours(NamedTuple):
    """The nearest chunks of each chunk, the nearest first; never the chunk itself."""

    chunks: Int[np.ndarray, "N T"]
    cosines: Float[np.ndarray, "N T"]


def neighbours(store: MemoryStore, top: int) -> Neighbours:
    """Return the nearest memories of each memory, all of whose K vectors count as one.

    Time grows with the square of N: 35,000 memories of 128 numbers take seconds.

    Args:
      store: a bank of memories, one per chunk.
      top: T, at most; a store of fewer other chunks has as many as it has.
    """
    vectors = store.read(slice(None)).leaves[VECTORS].reshape(len(store), -1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(lengths > 0, lengths, 1)
    top = max(0, min(top, len(store) - 1))
    chunks = np.zeros((len(store), top), np.int32)
    cosines = np.zeros((len(store), top), np.float32)
    size = max(1, _COSINES // max(len(store), 1))
    for first in track(range(0, len(store), size), "nearest"):
        found = vectors[first : first + size] @ vectors.T
        rows = np.arange(len(found))
        found[rows, first + rows] = -np.inf
        for place in range(top):  # Several maxima are faster than a sort of so long a row.
            best = found.argmax(axis=1)
            chunks[first + rows, place], cosines[first + rows, place] = best, found[rows, best]
            found[rows, best] = -np.inf
    return Neighbours(chunks, np.clip(cosines, -1, 1))
