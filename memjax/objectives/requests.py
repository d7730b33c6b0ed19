"""What each objective asks of a memory model: the chunks to decode, what they are shown and what they should say.

Every objective is one pure function of a row's chunks. A chunk is shown a start token and then its tokens but the last, so
that each of its L tokens is a target, the first one from memories alone. The start token is bos when reading on and the
delimiter when copying: it is inserted, no token is lost to it.

Shapes: B row, C chunk of the row, X chunk to decode, S slot, L token, H = C // 2 chunks that are copied.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.models import EMPTY, PREDICT, RETAIN, earlier_chunks


@flax.struct.dataclass
class SpecialIds:
    """Reserved ids of the tokenizer; none of them stands for text."""

    pad: int = flax.struct.field(pytree_node=False, default=0)
    bos: int = flax.struct.field(pytree_node=False, default=2)
    blank: int = flax.struct.field(pytree_node=False, default=4)
    delimiter: int = flax.struct.field(pytree_node=False, default=5)


@flax.struct.dataclass
class Request:
    """Chunks for the decoder. Slot tables, places and tasks are known when the step is traced."""

    inputs: Int[Array, "B X L"]
    labels: Int[Array, "B X L"]
    weight: Float[Array, "B X L"]
    slots: np.ndarray = flax.struct.field(pytree_node=False)
    """[X, S]: which memory stands in each slot."""
    chunk: np.ndarray = flax.struct.field(pytree_node=False)
    """[X]: the place in the row."""
    task: np.ndarray = flax.struct.field(pytree_node=False)
    """[X]: PREDICT or RETAIN."""


def shift_right(tokens_BXL: jax.Array, start_id: int) -> jax.Array:
    """[start, x_0, ..., x_{L-2}]: the input whose position t is followed by token t."""
    return jnp.pad(tokens_BXL[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=start_id)


def _weight(labels_BXL: jax.Array, ids: SpecialIds) -> jax.Array:
    return (labels_BXL != ids.pad).astype(jnp.float32)


def next_token(tokens: Int[Array, "B C L"], ids: SpecialIds) -> Request:
    """Read on: every chunk, from the memories of earlier ones."""
    chunks = tokens.shape[1]
    inputs, tasks = shift_right(tokens, ids.bos), np.full(chunks, PREDICT)
    return Request(inputs, tokens, _weight(tokens, ids), earlier_chunks(chunks), np.arange(chunks), tasks)


def copy(tokens: Int[Array, "B C L"], ids: SpecialIds) -> Request:
    """Say the first half of the row again in place of the second, shown the tokens copied so far.

    A copied chunk that is complete is read like any other: its memory is that of the chunk it repeats, which is not encoded
    twice.
    """
    half = tokens.shape[1] // 2
    labels = tokens[:, :half]
    chunk, slot = half + np.arange(half)[:, None], np.arange(tokens.shape[1] - 1)
    slots = np.where(slot < half, slot, np.where(slot < chunk, slot - half, EMPTY))
    return Request(shift_right(labels, ids.delimiter), labels, _weight(labels, ids), slots, chunk[:, 0], np.full(half, RETAIN))


def plain_copy(tokens: Int[Array, "B C L"], ids: SpecialIds) -> Request:
    """Copy without delimiter or mark: asked like reading on, so that nothing but the text says that it comes again.

    How a model that never trained to copy is asked fairly, and the reference's own form of the objective.
    """
    request = copy(tokens, ids)
    inputs, task = shift_right(request.labels, ids.bos), np.full_like(request.task, PREDICT)
    return dataclasses.replace(request, inputs=inputs, task=task)


def blank_copy(tokens: Int[Array, "B C L"], ids: SpecialIds) -> Request:
    """Copy with blanks in place of the tokens copied so far: everything must come from memories.

    Chunks of blanks hold nothing and fill no slot.
    """
    half, length = tokens.shape[1] // 2, tokens.shape[2]
    labels = tokens[:, :half]
    blanks = jnp.full(labels.shape, ids.blank, labels.dtype)
    slot = np.arange(tokens.shape[1] - 1)
    slots = np.where(slot < half, slot, EMPTY)[None].repeat(half, axis=0)
    inputs = shift_right(blanks, ids.delimiter) if length > 1 else blanks
    return Request(inputs, labels, _weight(labels, ids), slots, half + np.arange(half), np.full(half, RETAIN))


REQUESTS: Mapping[str, Callable[[Int[Array, "B C L"], SpecialIds], Request]] = {
    "next_token": next_token,
    "copy": copy,
    "plain_copy": plain_copy,
    "blank_copy": blank_copy,
}


def join(requests: Sequence[Request]) -> Request:
    """One request for all chunks of several, so that the decoder runs once."""
    return Request(
        inputs=jnp.concatenate([r.inputs for r in requests], axis=1),
        labels=jnp.concatenate([r.labels for r in requests], axis=1),
        weight=jnp.concatenate([r.weight for r in requests], axis=1),
        slots=np.concatenate([r.slots for r in requests]),
        chunk=np.concatenate([r.chunk for r in requests]),
        task=np.concatenate([r.task for r in requests]),
    )


def memories_needed(request: Request) -> int:
    """How many chunks must be encoded: those up to the last one some slot holds."""
    return int(request.slots.max(initial=EMPTY)) + 1
