"""Rows of stored leaves that lie in several parts: selections read no more than they return.

Shapes: N row of all parts, n row that is selected.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from memjax.checkpoints.store_records import Tensors


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Rows of leaves.

    Attributes:
      leaves: as they are stored, with scales.
      opened: whether they lie in a file, which `joined` does not copy.
    """

    leaves: Tensors
    opened: bool = False

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.leaves.values())))


def joined(parts: Sequence[Part]) -> list[Part]:
    """Return parts of which those in memory that follow each other are one; all are read-only."""
    found: list[Part] = []
    for opened, run in itertools.groupby(parts, lambda part: part.opened):
        own = list(run)
        if not opened and len(own) > 1:
            own = [Part(whole(own))]
        found += own
    for part in found:
        for leaf in part.leaves.values():
            leaf.setflags(write=False)
    return found


def whole(parts: Sequence[Part]) -> Tensors:
    """Return the leaves of one part, or copies of those of several, joined."""
    if len(parts) == 1:
        return parts[0].leaves
    return {name: np.concatenate([part.leaves[name] for part in parts]) for name in parts[0].leaves}


def selected(parts: Sequence[Part], rows: slice) -> list[Part]:
    """Return views of the rows of a slice whose step is positive; at least one part."""
    start, stop, step = rows.indices(sum(map(len, parts)))
    found, first = [], 0
    for part in parts:
        begin = max(start - first, (start - first) % step)
        own = slice(begin, max(stop - first, begin), step)
        found.append(Part({name: x[own] for name, x in part.leaves.items()}, part.opened))
        first += len(part)
    return [part for part in found if len(part)] or found[:1]


def taken(parts: Sequence[Part], rows: slice | Int[np.ndarray, " n"]) -> Tensors:
    """Return some rows, as NumPy selects them: copies, but of a slice of one part."""
    if len(parts) == 1:
        return {name: leaf[rows] for name, leaf in parts[0].leaves.items()}
    ends = np.cumsum([len(part) for part in parts])
    numbers = np.arange(ends[-1])[rows]
    place = np.searchsorted(ends, numbers, "right")
    found = {
        name: np.empty((len(numbers), *leaf.shape[1:]), leaf.dtype)
        for name, leaf in parts[0].leaves.items()
    }
    for number in np.unique(place).tolist():
        own, part = place == number, parts[number]
        for name, leaf in part.leaves.items():
            found[name][own] = leaf[numbers[own] - (ends[number] - len(part))]
    return found
