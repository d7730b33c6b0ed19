"""A memory model that reads on: the tokens of the current chunk, and memories of the chunks before it.

The decoder is shown a start token and the chunk so far. A chunk that is full is encoded, its memory takes the next free slot, and the
next chunk begins. A token costs the same wherever it stands: one decoder position, and once a chunk one call of the encoder and the
slots read anew. When all slots are filled the oldest memory leaves and the others move up by one, so that every chunk from then on is
read as the last one of a row.

Memories that are given, as those of a store, are in the slots what the encoder would have put there: they stand before the memories of
the prompt's own chunks and leave first.

A decoder of another kind than a transformer reads the slots and the whole chunk again for every token: a masked mixer keeps nothing of
earlier positions that would be less than their inputs, and a repeat mixer's sums would have to skip empty slots.

Shapes: B row, S slot, K vector, E encoder width, D decoder width, L token, M chunk before the current one, G memory
that is given, T = S*K + L positions.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.inference.reader import Given, Params, Prompt, Reader, at_place, in_window
from memjax.layers.attention import KeyValues
from memjax.models import PREDICT, MemoryModel


class Memories(NamedTuple):
    """What is kept of earlier chunks."""

    vectors: Float[Array, "B S K E"] | None
    """The oldest first; None in the control without memories."""
    count: Int[Array, " B"]
    """Earlier chunks, S at most; also the place of the current chunk in its row."""


@dataclasses.dataclass(frozen=True)
class MemoryReader(Reader[MemoryModel]):
    """Reads on with a memory model."""

    start: int
    """Id that a chunk begins with."""

    @property
    def window(self) -> int:
        """A chunk."""
        return self.model.chunk_length

    @property
    def limit(self) -> int:
        """A row as in training."""
        return self.module.chunks * self.window

    @property
    def turned(self) -> int:
        """A new chunk has no tokens."""
        return 0

    @property
    def budget(self) -> int:
        """Memories that are kept: those a row's last chunk reads. The published code has a slot more, which is never filled."""
        return self.module.chunks - 1

    def cut(self, prompt: np.ndarray) -> Prompt:
        """Its last whole chunks, as many as there are slots, and the rest."""
        border = len(prompt) - len(prompt) % self.window
        chunks = prompt[:border].reshape(-1, self.window)
        return Prompt(chunks[max(0, len(chunks) - self.budget) :], prompt[border:])

    def kept(self, chunks: int) -> int:
        """The slots that are left."""
        return max(0, self.budget - chunks)

    def hold(self, params: Params, chunks: jax.Array, count: jax.Array, given: Given | None = None) -> Memories:
        """All chunks of all rows through the encoder at once, behind the memories that are given."""
        if not self.module.memory:
            return Memories(None, count)
        model, batch = self.model, chunks.shape[0]
        slots = (batch, self.module.slots, model.vectors, model.encoder.width)
        parts = [] if given is None else [given.vectors.astype(jnp.dtype(model.dtype))]
        if chunks.shape[1]:
            parts.append(self.apply(params, chunks, method="encode"))
        if not parts:
            return Memories(jnp.zeros(slots, jnp.dtype(model.dtype)), count)
        vectors = jnp.concatenate(parts, axis=1)
        vectors = jnp.pad(vectors, ((0, 0), (0, max(0, slots[1] - vectors.shape[1])), (0, 0), (0, 0)))
        if given is None:
            return Memories(vectors, count)
        # Rows differ in how many they are given: the first chunk of each comes right behind them.
        slot, first_B1 = jnp.arange(slots[1]), given.count[:, None]
        source_BS = jnp.where(slot < first_B1, slot, given.vectors.shape[1] + slot - first_B1)
        vectors = jnp.take_along_axis(vectors, source_BS[..., None, None], axis=1, mode="clip")
        return Memories(vectors, jnp.asarray(given.count) + count)

    def open(
        self, params: Params, held: Memories, tokens: jax.Array, place: jax.Array, span: int
    ) -> tuple[jax.Array, KeyValues | None]:
        """The slots and the chunk so far, in one call of the decoder."""
        shown = min(span + 1, self.window) if self.cached else self.window
        start_B1 = jnp.full((tokens.shape[0], 1), self.start, tokens.dtype)
        inputs = jnp.concatenate([start_B1, tokens[:, : shown - 1]], axis=1)
        slots = self.module.slots * self.model.vectors

        def read(module: MemoryModel) -> tuple[jax.Array, Any]:
            in_slots, filled = _lay_out(module, held)
            x = _embed(module, inputs, jnp.arange(shown), held.count)
            sequence = jnp.concatenate([in_slots.astype(x.dtype), x], axis=1)
            valid = jnp.pad(filled, ((0, 0), (0, shown)), constant_values=True)
            positions = _positions(module, filled, jnp.broadcast_to(jnp.arange(shown), inputs.shape))
            if not self.cached:
                return module.backbone(sequence, positions, valid), None
            states, cache = module.backbone.read(sequence, positions, valid)
            return states, in_window(cache, slots + self.window)

        states, cache = self.apply(params, method=read)
        return at_place(states, slots + place), cache

    def extend(
        self, params: Params, held: Memories, cache: KeyValues, token: jax.Array, place: jax.Array
    ) -> tuple[jax.Array, KeyValues]:
        """One decoder position, which reads the slots and the chunk's positions before it."""
        slots = self.module.slots * self.model.vectors

        def step(module: MemoryModel) -> tuple[jax.Array, KeyValues]:
            filled = _filled(module, held)
            x = _embed(module, token[:, None], place[:, None], held.count)[:, 0]
            positions = _positions(module, filled, place[:, None])[:, -1]
            valid = jnp.pad(filled, ((0, 0), (0, self.window)), constant_values=True)
            return module.backbone.cached_step(x, cache, positions, slots + place, valid)

        return self.apply(params, method=step)

    def turn(
        self, params: Params, held: Memories, tokens: jax.Array, place: jax.Array
    ) -> tuple[Memories, jax.Array, jax.Array]:
        """Encodes the chunk; where no slot is free the oldest memory leaves."""
        place = jnp.zeros_like(place)
        count = jnp.minimum(held.count + 1, self.budget)
        if held.vectors is None or not self.budget:
            return Memories(held.vectors, count), tokens, place
        new_BKE = self.apply(params, tokens[:, None], method="encode")[:, 0]
        last = self.budget - 1
        moved = jnp.concatenate([held.vectors[:, 1 : last + 1], held.vectors[:, last:]], axis=1)
        vectors = jnp.where((held.count == self.budget)[:, None, None, None], moved, held.vectors)
        vectors = vectors.at[jnp.arange(len(place)), count - 1].set(new_BKE.astype(vectors.dtype))
        return Memories(vectors, count), tokens, place


def _embed(module: MemoryModel, tokens: jax.Array, at: jax.Array, chunk_B: jax.Array) -> Float[Array, "B T D"]:
    """What `MemoryModel.hidden` gives its backbone for tokens at places `at` of their chunks, asked to predict."""
    config, x = module.config, module.embed(tokens)
    if config.token_positions:
        # Past a full chunk there is none: the last one stands in, and what comes of it is not used.
        x += module.token_position.astype(x.dtype).at[at].get(mode="clip")
    if config.chunk_positions:
        x += module.chunk_position.astype(x.dtype)[chunk_B][:, None]
    if config.task_mark:
        x += module.task_mark.astype(x.dtype)[PREDICT]
    return x


def _filled(module: MemoryModel, held: Memories) -> Bool[Array, "B SK"]:
    """Slot positions that the decoder attends to."""
    count = held.count if module.memory else jnp.zeros_like(held.count)
    filled_BS = (jnp.arange(module.slots) < count[:, None]) | (module._fill_value is not None)
    return jnp.repeat(filled_BS, module.config.vectors, axis=-1)


def _lay_out(module: MemoryModel, held: Memories) -> tuple[Float[Array, "B SK D"], Bool[Array, "B SK"]]:
    """What `MemoryModel.hidden` puts into the slots, and where it attends to them. Rows differ in how many are filled."""
    config, width, batch = module.config, module.config.decoder.width, held.count.shape[0]
    filled, constant = _filled(module, held), module._fill_value or 0.0
    if held.vectors is None:
        return jnp.full((*filled.shape, width), constant), filled
    x = held.vectors if config.encoder.width == width else module.bridge(held.vectors)
    if config.chunk_positions:
        x += module.chunk_position.astype(x.dtype)[: module.slots, None]
    memory_BS = jnp.arange(module.slots) < held.count[:, None]
    x = jnp.where(memory_BS[..., None, None], x, constant)
    return x.reshape(batch, -1, width), filled


def _positions(module: MemoryModel, filled: jax.Array, at: Int[Array, "B T"]) -> Int[Array, "B SKT"]:
    """Rotary positions of the slots and of tokens at places `at`, as `MemoryModel` has them."""
    slots = filled.shape[-1]
    if module.config.layout == "variable":
        in_slots = jnp.maximum(jnp.cumsum(filled, axis=-1) - 1, 0)
        return jnp.concatenate([in_slots, at + jnp.sum(filled, axis=-1, keepdims=True)], axis=-1)
    return jnp.concatenate([jnp.broadcast_to(jnp.arange(slots), filled.shape), at + slots], axis=-1)
