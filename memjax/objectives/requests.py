"""What each objective asks of a memory model: the chunks to decode, what they are shown and what they should say.

Every objective is one pure function of a row's chunks. A chunk is shown a start token and then its tokens but the last, so
that each of its L tokens is a target, the first one from memories alone. The start token is bos when reading on and the
delimiter when copying: it is inserted, no token is lost to it.

Shapes: B row, C chunk of the row, X chunk to decode, S slot, L token, H = C // 2 chunks that are copied.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.models import EMPTY, PREDICT, RETAIN, earlier_chunks

if TYPE_CHECKING:
    from memjax.data import Tokenizer


@flax.struct.dataclass
class SpecialIds:
    """Reserved ids of the tokenizer; none of them stands for text."""

    pad: int = flax.struct.field(pytree_node=False, default=0)
    bos: int = flax.struct.field(pytree_node=False, default=2)
    blank: int = flax.struct.field(pytree_node=False, default=4)
    delimiter: int = flax.struct.field(pytree_node=False, default=5)
    content: tuple[int, int] | None = flax.struct.field(pytree_node=False, default=None)
    """Least id that stands for text and the one above the greatest; None is all above the reserved ones."""

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "SpecialIds":
        """Those of a vocabulary."""
        ids = tokenizer
        return cls(ids.pad_id, ids.bos_id, ids.blank_id, ids.delimiter_id, ids.content)

    @property
    def first_content(self) -> int:
        """The least id that stands for text."""
        return self.content[0] if self.content else max(self.pad, self.bos, self.blank, self.delimiter) + 1

    def end_content(self, vocabulary: int) -> int:
        """One above the greatest id that stands for text."""
        return self.content[1] if self.content else vocabulary


@flax.struct.dataclass
class Request:
    """Chunks for the decoder. Slot tables, places and tasks are known when the step is traced."""

    inputs: Int[Array, "B X L"]
    labels: Int[Array, "B X L"]
    weight: Float[Array, "B X L"]
    slots: np.ndarray = flax.struct.field(pytree_node=False)
    """[X, S]: whose memory stands in each slot: chunk c of the row, extra chunk e as C + e, or none (`EMPTY`)."""
    chunk: np.ndarray = flax.struct.field(pytree_node=False)
    """[X]: the place in the row."""
    task: np.ndarray = flax.struct.field(pytree_node=False)
    """[X]: PREDICT or RETAIN."""
    extra: Int[Array, "B E L"] | None = None
    """Chunks that are encoded and are not the row's own."""


def shift_right(tokens_BXL: jax.Array, start_id: int, pad_id: int) -> jax.Array:
    """[start, x_0, ..., x_{L-2}]: the input whose position t is followed by token t.

    Where a chunk begins with padding, the start token stands right before its first token all the same.
    """
    before = ((0, 0), (0, 0), (1, 0))
    real = tokens_BXL != pad_id
    shifted = jnp.pad(tokens_BXL[..., :-1], before, constant_values=pad_id)
    first = real & ~jnp.pad(real[..., :-1], before, constant_values=False)
    empty = ~real.any(axis=-1, keepdims=True) & (jnp.arange(tokens_BXL.shape[-1]) == 0)
    return jnp.where(first | empty, start_id, shifted)


def _weight(labels_BXL: jax.Array, ids: SpecialIds) -> jax.Array:
    return (labels_BXL != ids.pad).astype(jnp.float32)


def next_token(tokens: Int[Array, "B C L"], ids: SpecialIds) -> Request:
    """Read on: every chunk, from the memories of earlier ones."""
    chunks = tokens.shape[1]
    inputs, tasks = shift_right(tokens, ids.bos, ids.pad), np.full(chunks, PREDICT)
    slots = earlier_chunks(chunks)
    return Request(inputs, tokens, _weight(tokens, ids), slots, np.arange(chunks), tasks)


def copy(tokens: Int[Array, "B C L"], ids: SpecialIds) -> Request:
    """Say the first half of the row again in place of the second, shown the tokens copied so far.

    A copied chunk that is complete is read like any other: its memory is that of the chunk it repeats, which is not encoded
    twice.
    """
    half = tokens.shape[1] // 2
    labels = tokens[:, :half]
    chunk, slot = half + np.arange(half)[:, None], np.arange(tokens.shape[1] - 1)
    slots = np.where(slot < half, slot, np.where(slot < chunk, slot - half, EMPTY))
    inputs, tasks = shift_right(labels, ids.delimiter, ids.pad), np.full(half, RETAIN)
    return Request(inputs, labels, _weight(labels, ids), slots, chunk[:, 0], tasks)


def plain_copy(tokens: Int[Array, "B C L"], ids: SpecialIds) -> Request:
    """Copy without delimiter or mark: asked like reading on, so that nothing but the text says that it comes again.

    How a model that never trained to copy is asked fairly, and the reference's own form of the objective.
    """
    request = copy(tokens, ids)
    inputs, task = shift_right(request.labels, ids.bos, ids.pad), np.full_like(request.task, PREDICT)
    return dataclasses.replace(request, inputs=inputs, task=task)


def blank_copy(tokens: Int[Array, "B C L"], ids: SpecialIds) -> Request:
    """Copy with blanks in place of the tokens copied so far: everything must come from memories.

    Chunks of blanks hold nothing and fill no slot.
    """
    half = tokens.shape[1] // 2
    labels = tokens[:, :half]
    blanks = jnp.full(labels.shape, ids.blank, labels.dtype)
    slot = np.arange(tokens.shape[1] - 1)
    slots = np.where(slot < half, slot, EMPTY)[None].repeat(half, axis=0)
    inputs, tasks = shift_right(blanks, ids.delimiter, ids.pad), np.full(half, RETAIN)
    return Request(inputs, labels, _weight(labels, ids), slots, half + np.arange(half), tasks)


REQUESTS: Mapping[str, Callable[[Int[Array, "B C L"], SpecialIds], Request]] = {
    "next_token": next_token,
    "copy": copy,
    "plain_copy": plain_copy,
    "blank_copy": blank_copy,
}


def make_request(name: str, tokens: Int[Array, "B C L"], ids: SpecialIds, compat: Sequence[str] = ()) -> Request:
    """What objective `name` asks, or what the published code asks where `compat` (STAGE_QUIRKS) says so."""
    if "unscored_first_tokens" in compat:
        return _as_published(name, tokens, ids, "overwritten_delimiter" in compat)
    return REQUESTS[name](tokens, ids)


def _as_published(name: str, tokens: jax.Array, ids: SpecialIds, delimited: bool) -> Request:
    """A chunk is shown all its tokens and position t says token t + 1: its first token is no target.

    A row that is copied is written out, copied half and all, and its chunks are encoded as they stand there.
    """
    chunks = tokens.shape[1]
    places, slots = np.arange(chunks), earlier_chunks(chunks)
    if name == "next_token":
        labels, weight = _next(tokens, _weight(tokens, ids))
        return Request(tokens, labels, weight, slots, places, np.full(chunks, PREDICT))
    half = chunks // 2
    first = jnp.asarray(tokens[:, :half])
    shown = jnp.full(first.shape, ids.blank, first.dtype) if name == "blank_copy" else first
    weight = _weight(first, ids)
    retain = name != "plain_copy"
    if delimited and retain:
        shown = shown.at[:, 0, :3].set(ids.delimiter)
        weight = weight.at[:, 0, :2].set(0.0)
    labels, weight = _next(first, weight)
    again = slice(half, 2 * half)
    slots = np.where(slots[again] < half, slots[again], slots[again] - half + chunks)
    tasks = np.full(half, RETAIN if retain else PREDICT)
    return Request(shown, labels, weight, slots, places[again], tasks, shown[:, :-1])


def _next(tokens: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Labels and weights of the tokens that follow within the chunk; the last position has none."""
    end = ((0, 0), (0, 0), (0, 1))
    return jnp.pad(tokens[..., 1:], end), jnp.pad(weight[..., 1:], end)


def join(requests: Sequence[Request], chunks: int) -> Request:
    """One request for all chunks of several rows' requests, so that encoder and decoder run once each."""
    slots, extras, shift = [], [], 0
    for request in requests:
        slots.append(np.where(request.slots < chunks, request.slots, request.slots + shift))
        if request.extra is not None:
            extras.append(request.extra)
            shift += request.extra.shape[1]
    return Request(
        inputs=jnp.concatenate([r.inputs for r in requests], axis=1),
        labels=jnp.concatenate([r.labels for r in requests], axis=1),
        weight=jnp.concatenate([r.weight for r in requests], axis=1),
        slots=np.concatenate(slots),
        chunk=np.concatenate([r.chunk for r in requests]),
        task=np.concatenate([r.task for r in requests]),
        extra=jnp.concatenate(extras, axis=1) if extras else None,
    )


def to_encode(request: Request, tokens: Int[Array, "B C L"]) -> tuple[Int[Array, "B M L"], np.ndarray]:
    """The chunks to encode and the slots [X, S] that say which of their memories stands where.

    The chunks are those of the row up to the last that some slot holds, and then the extra ones.
    """
    chunks = tokens.shape[1]
    own = int(np.where(request.slots < chunks, request.slots, EMPTY).max(initial=EMPTY)) + 1
    slots = np.where(request.slots < chunks, request.slots, request.slots - chunks + own)
    encoded = tokens[:, :own] if request.extra is None else jnp.concatenate([tokens[:, :own], request.extra], axis=1)
    return encoded, slots
