"""Memories that a text goes on from: of a store, or arrays.

They stand where chunks of the text would stand, so that what they were made of need not be read again. A memory stands for a whole chunk,
as in training, where rows are packed: the last chunk of a document, if its tokens do not fill it, is left out of a store. Its tokens are the
prompt's to begin with.

Shapes: B row, N memory of a row, G memory that is given, K vector of a memory, E its width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from memjax.inference.errors import GenerationError
from memjax.inference.reader import Given, bucket
from memjax.models import Encoder, MemoryModel
from memjax.store.encoding import origin_of
from memjax.store.header import Origin
from memjax.store.store import MemoryStore

Memories = MemoryStore | Float[np.ndarray, "N K E"] | None
"""Of one row, the oldest first; None for none."""


class Mark(NamedTuple):
    """Which checkpoint a model is of."""

    family: str
    stage: str
    step: int
    tokenizer: str
    """Fingerprint."""


def require_memories(module: object) -> None:
    """Raises GenerationError unless a model reads memories that others wrote."""
    if not isinstance(module, MemoryModel):
        raise GenerationError(f"{type(module).__name__} reads no memories; a MemoryModel does: give one, or the text itself")
    if not module.memory:
        raise GenerationError("this model was built with memory=False: it reads no memories; give another stage")


def origin_of_model(module: MemoryModel, params: dict, mark: Mark) -> Origin:
    """Whose memories a memory model reads: its own encoder's."""
    encoder = Encoder(module.config, module.vocabulary)
    return origin_of(encoder, jax.tree.map(jnp.asarray, params["encoder"]), *mark)


def checked(memories: Sequence[Memories], rows: int, origin: Origin | None, shape: tuple[int, int]) -> list[Memories]:
    """One entry a row; arrays are NumPy's.

    Args:
      memories: as they were given.
      rows: B.
      origin: whose memories a store must hold; None where that is not known.
      shape: (K, E).

    Raises:
      GenerationError: there is not one entry a row, an array has another shape, or a store is given and it is not known whose are read.
      StoreError: a store is of another encoder or tokenizer.
    """
    if len(memories) != rows:
        raise GenerationError(f"memories are given for {len(memories)} rows, and there are {rows} prompts; give one entry each")
    found: list[Memories] = []
    for row, given in enumerate(memories):
        if isinstance(given, MemoryStore):
            if origin is None:
                raise GenerationError(
                    f"memories of row {row}: whose encoder this model has is not known, so that no store is taken; open it by"
                    " open_generator, or give the array store.memories"
                )
            given.origin.require_same(origin, f"memories of row {row}")
        elif given is not None:
            given = np.asarray(given)
            if given.ndim != 3 or given.shape[1:] != shape or not np.isdtype(given.dtype, "real floating"):
                raise GenerationError(
                    f"memories of row {row} are of shape {given.shape} and {given.dtype}; this model reads floats"
                    f" [memories, {shape[0]}, {shape[1]}]"
                )
        found.append(given)
    return found


def count(memories: Memories) -> int:
    """How many there are of whole chunks."""
    if isinstance(memories, MemoryStore):
        return len(memories.full_chunks)
    return 0 if memories is None else len(memories)


def stack(memories: Sequence[Memories], kept: Sequence[int], most: int, shape: tuple[int, int]) -> Given | None:
    """The last of each row's memories, in float32 and filled up behind; None if no row has any.

    Args:
      memories: of each row, `checked`.
      kept: how many of them there is room for.
      most: the greatest number that any row could have; G is a power of two or this.
      shape: (K, E).

    Raises:
      GenerationError: one that is kept is not finite.
    """
    counts = np.array([min(count(row), room) for row, room in zip(memories, kept, strict=True)], np.int32)
    if not counts.max():
        return None
    vectors = np.zeros((len(counts), bucket(int(counts.max()), most), *shape), np.float32)
    for row, (given, number) in enumerate(zip(memories, counts, strict=True)):
        if number:
            vectors[row, :number] = _last(given, number)
    wrong = ~np.isfinite(vectors).all(axis=(1, 2, 3))
    if wrong.any():
        raise GenerationError(f"memories of row {int(wrong.argmax())} hold NaN or infinity; compress the text again")
    return Given(vectors, counts)


def _last(memories: Memories, number: int) -> Float[np.ndarray, "n K E"]:
    if isinstance(memories, MemoryStore):
        return memories.read(memories.full_chunks[-number:])
    assert memories is not None
    return np.asarray(memories[-number:], np.float32)
