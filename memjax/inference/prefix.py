"""Memories from a store or array as the prefix of a text.

They stand for chunks before the prompt, whose text need not be read again. Each covers one full
chunk, as in training on packed rows. A partial last chunk of a document is not stored, so pass its
tokens at the start of the prompt.

Shapes: B sequence, N memory of a sequence, G prefix memory, K vector of a memory, E its width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import EncoderProvenance
from memjax.inference.sampling import GenerationError
from memjax.inference.strategy import PrefixMemories, bucket
from memjax.models import can, families_that, find
from memjax.models.memory import VECTORS

Memories = MemoryStore | Float[np.ndarray, "N K E"] | None
"""The memories before one prompt, the oldest first, or None."""
Provenance = Callable[[], EncoderProvenance]
"""Returns the encoder and the tokenizer of readable memories: all parameters may be hashed."""


def require_memories(module: Any) -> None:
    """Raise GenerationError unless a model reads memories from elsewhere."""
    if not can(module, "reads_memories"):
        readers = ", ".join(families_that("reads_memories"))
        raise GenerationError(
            f"a model of family {find(module).name} reads no memories; models of family {readers}"
            " do: give one, or the text itself"
        )
    if not module.memory:
        raise GenerationError(
            "this model was built with memory=False: it reads no memories; give another stage"
        )


def last_memories(
    memories: Sequence[Memories],
    most: int,
    shape: tuple[int, int],
    provenance: Provenance | None,
    fewer: bool = False,
    length: int | None = None,
) -> list[Float[np.ndarray, "n K E"]]:
    """Read the last memories of each sequence, in float32.

    Args:
      memories: the arguments of the caller.
      most: memories of a sequence, at most.
      shape: (K, E).
      provenance: the required encoder of a store; None if it is unknown.
      fewer: whether all sequences may have memories of fewer vectors, as many as the first.
      length: tokens of a chunk of a store; None for any.

    Raises:
      GenerationError: an array has another shape, a store has chunks of another length, or a store
        is given and the required encoder is unknown.
      StoreError: a store belongs to another encoder or tokenizer.
    """
    found: list[np.ndarray] = []
    if fewer:
        held = [kept for given in memories if (kept := _vectors(given))]
        shape = (min(held[0], shape[0]) if held else shape[0]), shape[1]
    for row, given in enumerate(memories):
        if isinstance(given, MemoryStore):
            if provenance is None:
                raise GenerationError(
                    f"memories of row {row}: whose encoder this model has is not known, so that no"
                    " store is taken; take the generator of"
                    " memjax.load, or give the array store.memories.leaves['vectors']"
                )
            given.provenance.require_same(provenance(), f"memories of row {row}", fewer)
            cut = given.provenance.chunk_length
            GenerationError.require(
                length in (None, cut),
                f"memories of row {row}: of chunks of {cut} tokens, expected {length} in all rows."
                f" Use a generator with chunk_length={cut}",
            )
            full = given.full_chunks
            given = given.read(full[max(0, len(full) - most) :]).leaves[VECTORS]
        given = np.zeros((0, *shape), np.float32) if given is None else np.asarray(given)
        if (
            given.ndim != 3
            or given.shape[1:] != shape
            or not jnp.issubdtype(given.dtype, jnp.floating)
        ):
            raise GenerationError(
                f"memories of row {row} are of shape {given.shape} and {given.dtype}; this"
                " model reads floats"
                f" [memories, {shape[0]}, {shape[1]}]"
            )
        found.append(np.asarray(given[max(0, len(given) - most) :], np.float32))
    return found


def _vectors(memories: Memories) -> int:
    """Return the vectors of each memory; 0 for none."""
    if isinstance(memories, MemoryStore):
        return memories.provenance.leaves.get(VECTORS, (0,))[0]
    shape = () if memories is None else np.shape(memories)
    return shape[1] if len(shape) == 3 else 0


def count(memories: Memories) -> int:
    """Return the number of memories of whole chunks."""
    if isinstance(memories, MemoryStore):
        return len(memories.full_chunks)
    return 0 if memories is None else len(memories)


def stack(
    memories: Sequence[Float[np.ndarray, "n K E"]], kept: Sequence[int], most: int
) -> PrefixMemories | None:
    """Return the last memories before each prompt, filled up at the end; None if no prompt has any.

    Args:
      memories: of each sequence, from `last_memories`.
      kept: number of memories per sequence that fit.
      most: the largest possible number; G is a power of two or this.

    Raises:
      GenerationError: a used memory is not finite.
    """
    counts = np.minimum([len(row) for row in memories], kept).astype(np.int32)
    if not counts.max():
        return None
    shape = (len(counts), bucket(int(counts.max()), most), *memories[0].shape[1:])
    vectors = np.zeros(shape, np.float32)
    for row, (given, number) in enumerate(zip(memories, counts, strict=True)):
        vectors[row, :number] = given[len(given) - number :]
    wrong = ~np.isfinite(vectors).all(axis=(1, 2, 3))
    if wrong.any():
        raise GenerationError(
            f"memories of row {int(wrong.argmax())} hold NaN or infinity; compress the text again"
        )
    return PrefixMemories(vectors, counts)
