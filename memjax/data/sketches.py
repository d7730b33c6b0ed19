"""Near-duplicates: documents that share most of their runs of tokens, found by sketches of fixed size.

A document is the set of its runs of 8 tokens. Its sketch holds, for each of 16 equal ranges of a 64-bit hash, the least hash of a run in that
range (one-permutation min-wise hashing, Li, Owen and Zhang 2012); an empty range takes what the next one to the right holds, and its distance
(rotation densification, Shrivastava and Li 2014). Two sketches agree at a place with probability |A and B| / |A or B|, the Jaccard index.

D: documents; K: places of a sketch; T: tokens of all documents, one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

GRAM = 8
"""Tokens in a run; a shorter document is one run."""
PLACES = 16
"""K, a power of two."""
AGREEING = 12
"""Places at which the sketches of near-duplicates agree, or more: an estimated Jaccard index of 3/4."""
_BANDS = tuple(np.array_split(np.arange(PLACES), PLACES - AGREEING + 1))
"""Where AGREEING places agree, all those of one band do: fewer places than bands are left to differ."""
_NONE = np.uint64(2**64 - 1)
_FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Odd constants of splitmix64 (Steele, Lea and Flood 2014)."""
_DISTANCES = np.arange(PLACES, dtype=np.uint64) * _FACTORS[0]
"""What is added to a hash that stands so far from its place."""
_SHORTER = np.int64(2**40)
"""Fills up a document of fewer than GRAM tokens; no id is as large."""
_AT_ONCE = 16_384
"""Tokens worked on together: what they need stays in the processor's caches, which is five times as fast."""


def sketch(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """uint64 [D, K] of documents [tokens]; it depends on the ids alone."""
    parts: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    tokens = 0
    for array in arrays:
        waiting.append(array if array.size >= GRAM else np.append(array, np.full(GRAM - array.size, _SHORTER)))
        tokens += waiting[-1].size
        if tokens >= _AT_ONCE:
            parts.append(_sketch(waiting))
            waiting, tokens = [], 0
    if waiting:
        parts.append(_sketch(waiting))
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
    """A number for every GRAM tokens that follow each other, [T - GRAM + 1], doubling the length of what is joined."""
    joined, length = _mixed(ids_T + _FACTORS[0]), 1
    while length < GRAM:
        joined = joined[:-length] * _FACTORS[length.bit_length() % 3] + (joined[length:] ^ (joined[length:] >> np.uint64(29)))
        length *= 2
    return joined


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64's last steps: every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(30))) * _FACTORS[1]
    x = (x ^ (x >> np.uint64(27))) * _FACTORS[2]
    return x ^ (x >> np.uint64(31))


def _densified(least_DK: np.ndarray) -> np.ndarray:
    """Fills empty places from the next one to the right that is not, round the end."""
    filled_DK = least_DK.copy()
    for distance in range(1, PLACES):
        empty = filled_DK == _NONE
        if not empty.any():
            break
        given = np.roll(least_DK, -distance, axis=1)
        filled_DK = np.where(empty & (given != _NONE), given + _DISTANCES[distance], filled_DK)
    return filled_DK


def near_duplicates(ours_DK: np.ndarray, theirs: Iterable[np.ndarray]) -> np.ndarray:
    """Which of our documents have a near-duplicate among others: bool [D].

    Args:
      ours_DK: sketches, held in memory.
      theirs: sketches [D', K] of the others, in any number of arrays, of which one is in memory at a time.
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
            # One place further in the table at a time: long runs of equal keys are rare, and no pair is held twice.
            for step in range(int((high - low).max(initial=0))):
                met = met[low[met] + step < high[met]]
                candidate = order[low[met] + step]
                agree = (ours_DK[candidate] == others[met]).sum(1) >= AGREEING
                found[candidate[agree]] = True
    return found


def _mixed_rows(places: np.ndarray) -> np.ndarray:
    """One number for each row of sketches' places."""
    keys = np.zeros(len(places), np.uint64)
    for column in places.T:
        keys = _mixed(keys * _FACTORS[0] + column)
    return keys
