"""Requests of the objectives that decode chunks: inputs, labels, and the memories they read.

Every request is a pure function of a sequence's chunks. The inputs of a chunk are a start token and
its tokens but the last, so that each of its L tokens is a label, the first one from memories alone.
The start token is bos for next tokens and the delimiter for copies. It is inserted; no token is
lost to it.

Shapes: B row, C chunk of the row, X chunk to decode, S slot, L token, H = C // 2 chunks that are
copied.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from memjax.models.request import PREDICT, RECALL, RETAIN, Asking, Request, SpecialIds


def shift_right(tokens_BXL: jax.Array, start_id: int, pad_id: int) -> jax.Array:
    """[start, x_0, ..., x_{L-2}]: the input whose position t is followed by token t.

    Where a chunk begins with padding, the start token stands right before its first token all the
    same.
    """
    before = ((0, 0), (0, 0), (1, 0))
    real = tokens_BXL != pad_id
    shifted = jnp.pad(tokens_BXL[..., :-1], before, constant_values=pad_id)
    first = real & ~jnp.pad(real[..., :-1], before, constant_values=False)
    empty = ~real.any(axis=-1, keepdims=True) & (jnp.arange(tokens_BXL.shape[-1]) == 0)
    return jnp.where(first | empty, start_id, shifted)


def token_weight(labels_BXL: jax.Array, ids: SpecialIds) -> jax.Array:
    """1 for a token, 0 for padding."""
    return (labels_BXL != ids.pad).astype(jnp.float32)


def make_request(
    name: str, tokens: Int[Array, "B C L"], ids: SpecialIds, compat: Sequence[str] = ()
) -> Request:
    """Build the request of an objective.

    - `next_token`: every chunk, from the memories of earlier ones.
    - `copy`: the first half of the sequence again in place of the second, given the tokens copied
      so far. A copied chunk that is complete is read like any other: its memory is that of the
      chunk it repeats, which is not encoded twice.
    - `blank_copy`: the same with blanks in place of the tokens copied so far: everything must come
      from memories. Chunks of blanks hold nothing and fill no slot.
    - `plain_copy`: a copy without delimiter or mark, prompted like next tokens. Nothing but the
      text shows that it is a copy. This is fair to a model that never trained to copy, and it is
      the reference's own form.

    In the published form (`unscored_first_tokens`) all tokens of a chunk are shown: position t
    scores token t + 1, and the first token is no label. A sequence that is copied is written out,
    copied half and all, and its chunks are encoded as they stand there.

    Args:
      name: the objective.
      tokens: the chunks of the sequences.
      ids: reserved ids.
      compat: quirks of the stage.
    """
    published, retain = "unscored_first_tokens" in compat, name in ("copy", "blank_copy")
    chunks, half = tokens.shape[1], tokens.shape[1] // 2
    if name == "next_token":
        labels, place, written = tokens, np.arange(chunks), np.arange(chunks - 1)
    else:
        labels, place = tokens[:, :half], half + np.arange(half)
        again = np.arange(half - 1) + (chunks if published else 0)
        written = np.concatenate([np.arange(half), again])
    blank = name == "blank_copy"
    shown = jnp.full(labels.shape, ids.blank, labels.dtype) if blank else jnp.asarray(labels)
    weight, extra = token_weight(labels, ids), None
    if published:
        if retain and "overwritten_delimiter" in compat:
            shown = shown.at[:, 0, :3].set(ids.delimiter)
            weight = jnp.asarray(weight).at[:, 0, :2].set(0.0)
        extra = None if name == "next_token" else shown[:, :-1]
        labels, weight = _next(labels), _next(weight)
    else:
        shown = shift_right(shown, ids.delimiter if retain else ids.bos, ids.pad)
    return Request(
        shown,
        labels,
        weight,
        extra,
        written=written,
        visible=np.full_like(place, half) if blank and not published else place,
        written_at=np.arange(len(written)),
        place=place,
        task=np.full_like(place, RETAIN if retain else PREDICT),
    )


def request_of(asking: Asking, name: str, chunks: Int[Array, "B C L"] | None = None) -> Request:
    """Return `make_request` for `chunks`, by default those of the batch, and then drawn."""
    whole = asking.chunks if chunks is None else chunks
    request = make_request(name, whole, asking.ids, asking.stage.compat)
    return draw_chunks(asking, name, request) if chunks is None else request


def draw_chunks(asking: Asking, name: str, request: Request) -> Request:
    """Return a request as it is trained on: at drawn places, and of drawn chunks.

    In evaluation the request of all chunks, at their places in the sequence, stays as it is.
    `scored_chunks` is a setting of the stage, `place_range` a dial of it; `name` is the objective.
    """
    if asking.key is None:
        return request
    batch, chunks, _ = request.inputs.shape
    count = min(asking.stage.scored_chunks.get(name, 0) or chunks, chunks)
    if count < chunks:
        # As many of all orders, without repeats.
        drawn = jax.random.uniform(asking.key_of(name, "chunks"), (batch, chunks))
        at = jnp.sort(jnp.argsort(drawn, axis=1)[:, :count], axis=1)
        request = _chosen(request, at)
    if not asking.stage.dials.get("place_range") or not len(request.written):
        return request
    entries_at = _draw_places(asking, batch, len(request.written))
    # A chunk of the sequence stands at its place; the one to predict right behind its last entry.
    place = jnp.broadcast_to(request.place, request.inputs.shape[:2])
    last = jnp.take_along_axis(entries_at, jnp.maximum(place - 1, 0), axis=1)
    own = jnp.take_along_axis(entries_at, place, axis=1, mode="clip")
    asks_entry = np.asarray(request.task) == RECALL
    moved = jnp.where(asks_entry, own, jnp.where(place > 0, last + 1, 0))
    return dataclasses.replace(request, written_at=entries_at, place=moved)


def _chosen(request: Request, at: Int[Array, "B X"]) -> Request:
    """Return the request of some of its chunks, per sequence."""

    def take(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)

    def by_row(x: jax.Array | np.ndarray) -> jax.Array:
        return take(jnp.broadcast_to(x, request.inputs.shape[:2]))

    return dataclasses.replace(
        request,
        inputs=take(request.inputs),
        labels=take(jnp.asarray(request.labels)),
        weight=take(jnp.asarray(request.weight)),
        visible=by_row(request.visible),
        place=by_row(request.place),
        task=request.task[: at.shape[1]],
    )


def _draw_places(asking: Asking, batch: int, entries: int) -> Int[Array, "B P"]:
    """Draw the places of entries: for half of the sequences with gaps, for a quarter shifted.

    All requests of a step have the same draws, so that they share a prefix.
    """
    span, order = asking.stage.dials["place_range"], jnp.arange(entries)
    kind = jax.random.uniform(asking.key_of("places"), (batch, 1))
    # Sorted draws without repeats: of a range shorter by the entries, and one more for each.
    gaps = jax.random.randint(
        asking.key_of("places", "gaps"), (batch, entries), 0, span - entries + 1
    )
    shift = jax.random.randint(asking.key_of("places", "shift"), (batch, 1), 0, span - entries + 1)
    gaps = jnp.sort(gaps, axis=1) + order
    return jnp.where(kind < 0.5, gaps, jnp.where(kind < 0.75, order + shift, order))


REQUESTS: Mapping[str, Callable[..., Request]] = {
    name: functools.partial(make_request, name)
    for name in ("next_token", "copy", "plain_copy", "blank_copy")
}
"""`make_request` of every objective."""


def _next(x: jax.Array) -> jax.Array:
    """Return the following positions of the chunk; nothing follows the last one."""
    return jnp.pad(x[..., 1:], ((0, 0), (0, 0), (0, 1)))
