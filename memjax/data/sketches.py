"""Near-duplicates: documents that share most of their runs of tokens, found by fixed-size sketches.

A document is the set of its runs of 8 tokens. Its sketch holds, for each of 16 equal ranges of a
64-bit hash, the least hash of a run in that range (one-permutation min-wise hashing, Li, Owen and
Zhang 2012). An empty range takes the value of the next one to the right, plus its distance
(rotation densification, Shrivastava and Li 2014). Two sketches agree at a place with probability
|A and B| / |A or B|, the Jaccard index.

D: documents; K: places of a sketch; T: tokens of all documents, one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from memjax.data.packing import in_batches

GRAM = 8
"""Tokens of a run; a shorter document is one run."""
PLACES = 16
"""K, a power of two."""
AGREEING = 12
"""Places at which sketches of near-duplicates agree, or more: an estimated Jaccard index of 3/4."""
_BANDS = tuple(np.array_split(np.arange(PLACES), PLACES - AGREEING + 1))
"""Where AGREEING places agree, all places of one band do: fewer places than bands can differ."""
_NONE = np.uint64(2**64 - 1)
_FACTORS = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)
"""Odd constants of splitmix64 (Steele, Lea and Flood 2014)."""
_DISTANCES = np.arange(PLACES, dtype=np.uint64) * _FACTORS[0]
"""The value added to a hash that was taken over this distance."""
_SHORTER = np.int64(2**40)
"""Fills up a document of fewer than GRAM tokens; no id is as large."""
_AT_ONCE = 16_384
"""Tokens processed together, so that all arrays stay in processor caches: five times as fast."""


def sketch(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return uint64 [D, K] of documents [tokens], a function of the ids alone."""
    filled = (
        array if array.size >= GRAM else np.append(array, np.full(GRAM - array.size, _SHORTER))
        for array in arrays
    )
    parts = [_sketch(batch) for batch in in_batches(filled, _AT_ONCE)]
    return np.concatenate([np.empty((0, PLACES), np.uint64), *parts])


def _sketch(filled: Sequence[np.ndarray]) -> np.ndarray:
    ids_T = np.concatenate(filled).astype(np.uint64)
    lengths_D = np.array([a.size for a in filled])
    document_T = np.repeat(np.arange(len(filled)), lengths_D)
    hashes, document = _mixed(_runs(ids_T)), document_T[: ids_T.size - GRAM + 1]
    inside = document == document_T[GRAM - 1 :]
    hashes, document = hashes[inside], document[inside]
    least = np.full(len(filled) * PLACES, _NONE)
    shift = np.uint64(64 - PLACES.bit_length() + 1)
    np.minimum.at(least, document * PLACES + (hashes >> shift).astype(np.int64), hashes)
    return _densified(least.reshape(-1, PLACES))


def _runs(ids_T: np.ndarray) -> np.ndarray:
    """Return a number for every GRAM consecutive tokens, [T - GRAM + 1].

    Each step doubles the length of the runs.
    """
    joined, length = _mixed(ids_T + _FACTORS[0]), 1
    while length < GRAM:
        joined = joined[:-length] * _FACTORS[length.bit_length() % 3] + (
            joined[length:] ^ (joined[length:] >> np.uint64(29))
        )
        length *= 2
    return joined


def _mixed(x: np.ndarray) -> np.ndarray:
    """Return the last steps of splitmix64: every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(30))) * _FACTORS[1]
    x = (x ^ (x >> np.uint64(27))) * _FACTORS[2]
    return x ^ (x >> np.uint64(31))


def _densified(least_DK: np.ndarray) -> np.ndarray:
    """Fill empty places from the next full one to the right, round the end."""
    filled_DK = least_DK.copy()
    for distance in range(1, PLACES):
        empty = filled_DK == _NONE
        if not empty.any():
            break
        given = np.roll(least_DK, -distance, axis=1)
        filled_DK = np.where(empty & (given != _NONE), given + _DISTANCES[distance], filled_DK)
    return filled_DK


def near_duplicates(ours_DK: np.ndarray, theirs: Iterable[np.ndarray]) -> np.ndarray:
    """Return which of our documents have a near-duplicate among others: bool [D].

    Args:
      ours_DK: sketches, held in memory.
      theirs: sketches [D', K] of the others, in any number of arrays, of which one is in memory at
        a time.
    """
    found = np.zeros(len(ours_DK), bool)
    bands = [_mixed_rows(ours_DK[:, band]) for band in _BANDS]
    orders = [np.argsort(keys, kind="stable") for keys in bands]
    tables = [keys[order] for keys, order in zip(bands, orders, strict=True)]
    for others in theirs:
        for band, order, table in zip(_BANDS, orders, tables, strict=True):
            keys = _mixed_rows(others[:, band])
            low, high = np.searchsorted(table, keys, "left"), np.searchsorted(table, keys, "right")
            met = np.flatnonzero(high > low)
            # Move one entry further in the table at a time: long runs of equal keys are rare, and
            # no pair is compared twice.
            for step in range(int((high - low).max(initial=0))):
                met = met[low[met] + step < high[met]]
                candidate = order[low[met] + step]
                agree = (ours_DK[candidate] == others[met]).sum(1) >= AGREEING
                found[candidate[agree]] = True
    return found


def _mixed_rows(places: np.ndarray) -> np.ndarray:
    """Return one number for each row of places of sketches."""
    keys = np.zeros(len(places), np.uint64)
    for column in places.T:
        keys = _mixed(keys * _FACTORS[0] + column)
    return keys
