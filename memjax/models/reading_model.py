"""A memory model that reads any number of memories, each by its place in the text.

The positions of its decoder are those of the text (`config.model.layout='text'`), so that no table
of slots or of chunks ends them. A trained decoder reads thousands of memories where it was trained
on tens, and its `recall` objective reads back any of them by its place.

Shapes: as in memory_model.py; P entry of a prefix.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from memjax.layers import Linear
from memjax.layers.attend import PrefixCache
from memjax.layers.attention import KeyValues
from memjax.layers.rotary import TextPositions
from memjax.layers.shared_prefix import SharedPrefix
from memjax.models.encoder import fold
from memjax.models.memory import VALID, VECTORS, Memories, state_at
from memjax.models.memory_model import MemoryModel
from memjax.models.request import EMPTY, PREDICT, RECALL, Joined, Prefix


class ReadingModel(MemoryModel):
    """Encoder and decoder; entry p of a text stands at token p * L and at place p.

    Memories are normalised between two widths, so that they enter the decoder at the scale of
    embeddings. Vector k of K stands floor(k * L / K) tokens behind the first.
    """

    TASKS = 3
    READS_FEWER: ClassVar[bool] = True
    """It reads memories of fewer vectors than it has, each where it stands among all of them, and
    of shorter chunks, whose positions are those of padded ones."""

    def setup(self) -> None:
        super().setup()
        width, dtype = self.config.decoder.width, jnp.dtype(self.config.dtype)
        if self.memory:
            if self.config.encoder.width == width:
                self.bridge = Linear(width, use_bias=True, dtype=dtype)
            self.entry_norm = nn.RMSNorm(use_scale=False, dtype=dtype)

    @property
    def budget(self) -> int:
        """Memories that are kept of a text."""
        return self.config.max_memories

    def encode(
        self, tokens: Int[Array, "B M l"], valid: Bool[Array, "B M l"] | None = None
    ) -> Float[Array, "B M K E"]:
        """See `MemoryModel.encode`; chunks of fewer than L tokens are padded, as in training."""
        room = ((0, 0), (0, 0), (0, self.config.chunk_length - tokens.shape[-1]))
        if room[-1][1] > 0:
            valid = jnp.pad(jnp.ones(tokens.shape, bool) if valid is None else valid, room)
            tokens = jnp.pad(tokens, room)
        return super().encode(tokens, valid)

    def _bridge(self, memories: Float[Array, "B M K E"]) -> Float[Array, "B M K D"]:
        return self.entry_norm(self.bridge(memories))

    def _shared_positions(
        self,
        joined: Joined,
        prefixes: tuple[Prefix, ...],
        reading: SharedPrefix,
        at: Int[Array, "B X L"],
    ) -> TextPositions:
        batch, length = len(at), self.config.chunk_length
        entries = [_by_row(prefix.at, batch)[:, : len(prefix.entries)] for prefix in prefixes]
        place = _by_row(joined.place, batch)[..., None]
        vectors = [n // max(1, x.shape[1]) for n, x in zip(reading.lengths, entries, strict=True)]
        tokens = [
            self._entry_tokens(places, n).reshape(batch, -1)
            for places, n in zip(entries, vectors, strict=True)
        ]
        places = [jnp.repeat(x, n, axis=1) for x, n in zip(entries, vectors, strict=True)]
        own = jnp.broadcast_to(place, at.shape).reshape(batch, -1)
        of_tokens = jnp.concatenate([*tokens, (place * length + at).reshape(batch, -1)], axis=1)
        vector = None
        if self.config.memory_vectors > 1:
            which = [
                jnp.tile(jnp.arange(n), x.shape) for n, x in zip(vectors, entries, strict=True)
            ]
            vector = jnp.concatenate([*which, jnp.zeros_like(own)], axis=1)
        return TextPositions(of_tokens, jnp.concatenate([*places, own], axis=1), vector)

    def _entry_tokens(self, places: Int[Array, "*B"], vectors: int) -> Int[Array, "*B k"]:
        """Return the positions in the text of the first vectors of chunks at these places."""
        length = self.config.chunk_length
        return places[..., None] * length + jnp.arange(vectors) * length // (
            self.config.memory_vectors
        )

    @nn.nowrap
    def _held(self, state: Memories, cache: KeyValues | None = None) -> int:
        """Return the vectors of every entry of a state, which may be in the cache alone."""
        if VECTORS in state.leaves:
            return state.leaves[VECTORS].shape[2]
        entries = state.leaves[VALID].shape[1] if VALID in state.leaves else 0
        if cache is None or not entries:
            return self.config.memory_vectors
        return (cache.key.shape[3] - self.config.chunk_length) // entries

    def slot_states(
        self,
        tokens: Int[Array, "B X L"],
        memories: Float[Array, "B M K E"] | None,
        slots: Int[Array | np.ndarray, "X S"],
        chunk: Int[Array | np.ndarray, "*B X"],
        task: Int[Array | np.ndarray, " X"] | int,
        memory_valid: Bool[Array, "B M"] | None,
        token_valid: Bool[Array, "B X L"] | None,
    ) -> Float[Array, "B X L D"]:
        """Return decoder states of chunks that share no prefix; see `MemoryModel.states`.

        The memory in slot s stands at place s.
        """
        batch, n, length = tokens.shape
        slots, place = jnp.asarray(slots), _by_row(chunk, batch)
        filled = jnp.broadcast_to(slots != EMPTY, (batch, *slots.shape))
        at = jnp.maximum(slots, 0)
        if memory_valid is not None:
            filled &= memory_valid[:, at]
        entry = np.arange(slots.shape[1])
        joined = Joined(
            inputs=fold(tokens)[:, None],
            labels=fold(tokens)[:, None],
            place=fold(place)[:, None],
            task=fold(_by_row(jnp.broadcast_to(jnp.asarray(task), n), batch))[:, None],
            prefixes=(Prefix(entry, entry, np.full(1, len(entry))),),
            order=(0,),
            counts=(1,),
        )
        shown = None if token_valid is None else fold(token_valid)[:, None]
        read = None if memories is None else fold(memories[:, at])
        states = self.joined_states(joined, read, fold(filled), shown)
        return states.reshape(batch, n, length, -1)

    # The contract of models/memory.py. Of a state the decoder reads the KV cache, whose first
    # positions are those of the chunk, and the others those of entries.

    def empty(self, batch: int) -> Memories:
        """See `Memory.empty`."""
        count = jnp.zeros(batch, jnp.int32)
        if not self.memory:
            return Memories({}, count, self.KIND)
        shape = batch, 0, self.config.memory_vectors, self.config.encoder.width
        return self.given(jnp.zeros(shape), count)

    def at(self, prefixes: Memories, count: Int[Array, " B"]) -> Memories:
        """See `Memory.at`; no entry is dropped."""
        return Memories(prefixes.leaves, count, self.KIND)

    def prefill(
        self, state: Memories, tokens: Int[Array, "B T"], length: Int[Array, " B"]
    ) -> tuple[Float[Array, "B D"], KeyValues]:
        """See `Memory.prefill`; entries and inputs in one call."""
        entries = np.arange(state.leaves[VECTORS].shape[1] if self.memory else 0)
        count = state.count[:, None]
        joined = Joined(
            inputs=tokens[:, None],
            labels=tokens[:, None],
            place=count,
            task=np.array([PREDICT]),
            prefixes=(Prefix(entries, entries, count),),
            order=(0,),
            counts=(1,),
        )
        memories = state.leaves[VECTORS] if len(entries) else None
        states, cache = self.backbone.read(
            *self._share(joined, memories, state.leaves.get(VALID), None)
        )
        start = len(entries) * self._held(state)
        room = self.config.chunk_length - tokens.shape[1]
        room = ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))
        cache = KeyValues(
            *(
                jnp.concatenate([jnp.pad(x[..., start:, :], room), x[..., :start, :]], axis=3)
                for x in cache
            )
        )
        return state_at(states, start + length - 1), cache

    def decode_step(
        self,
        state: Memories,
        cache: KeyValues,
        token: Int[Array, " B"],
        position: Int[Array, " B"],
        stepped: Bool[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B D"], KeyValues]:
        """See `Memory.decode_step`; other sequences than those `stepped` keep their cache."""
        x = self._embed_inputs(token[:, None], position[:, None], state.count, PREDICT)[:, 0]
        positions = TextPositions(
            state.count * self.config.chunk_length + position, jnp.asarray(state.count)
        )
        own = jnp.arange(self.config.chunk_length) < position[:, None]
        readable = jnp.concatenate([own, self._readable(state, self._held(state, cache))], axis=1)
        # A position behind the chunk would overwrite an entry.
        kept = position < self.config.chunk_length
        kept = kept if stepped is None else kept & stepped
        at = jnp.where(kept, position, cache.key.shape[3])
        return self.backbone.cached_read(x, cache, positions, at, readable)

    def read_entries(self, state: Memories) -> PrefixCache:
        """Return the keys and values of memories, for `recall_step`."""
        nothing = jnp.zeros((len(state.count), 0), jnp.int32)
        _, cache = self.prefill(state, nothing, jnp.zeros_like(state.count))
        key, value = (x[..., self.config.chunk_length :, :] for x in cache)
        return PrefixCache(key, value, self._readable(state, self._held(state)))

    def recall_step(
        self,
        prefix: PrefixCache,
        cache: KeyValues,
        token: Int[Array, "B X"],
        position: Int[Array, ""],
        place: Int[Array, "B X"],
    ) -> tuple[Float[Array, "B X D"], KeyValues]:
        """Read one more input of chunks that are recalled; each sequence has X of them.

        Args:
          prefix: from `read_entries` of B sequences; every chunk reads all of it.
          cache: keys and values of the chunks' own L positions [N, B * X, G, L, E].
          token: the inputs.
          position: where they stand in their chunks.
          place: where the chunks stand in their texts, in chunks.

        Returns:
          The states that score the next tokens, and the cache.
        """
        at, length = jnp.broadcast_to(position, token.size), self.config.chunk_length
        x = self._embed_inputs(fold(token)[:, None], at[:, None], fold(place), RECALL)[:, 0]
        positions = TextPositions(fold(place) * length + at, fold(place))
        own = jnp.arange(length) < at[:, None]
        hidden, cache = self.backbone.cached_read(x, cache, positions, at, own, prefix=prefix)
        return hidden.reshape(*token.shape, -1), cache

    def append(
        self,
        state: Memories,
        cache: KeyValues | None,
        tokens: Int[Array, "B L"],
        full: Bool[Array, " B"] | None = None,
    ) -> tuple[Memories, KeyValues | None]:
        """See `Memory.append`; written in place, where there is room for it.

        Args:
          state: the memory before the chunk.
          cache: of memory and chunk.
          tokens: the chunk.
          full: sequences whose chunk is written; None for all, with room for it.
        """
        if full is None:
            full = jnp.ones(len(tokens), bool)
            state, cache = self.grow(state, cache, 1)
        after = Memories(state.leaves, state.count + full, self.KIND)
        if not self.memory or cache is None:
            return after, cache
        length, vectors = self.config.chunk_length, self._held(state, cache)
        memories = self.encode(tokens[:, None])[:, :, :vectors]
        entries = self._enter(self._bridge(memories))[:, 0]
        new = {VECTORS: memories[:, 0], VALID: jnp.ones_like(full)}
        leaves = {
            name: _put(leaf, state.count, new[name], full) for name, leaf in state.leaves.items()
        }
        written = Memories(leaves, state.count, self.KIND)
        tokens_at, here = self._entry_tokens(state.count, vectors), jnp.asarray(state.count)
        for vector in range(vectors):
            before = self._readable(written, vectors, vector)
            before &= not self.config.decoder.blind_memories
            own = jnp.zeros((len(tokens), length), bool)
            at = length + state.count * vectors + vector
            _, cache = self.backbone.cached_read(
                entries[:, vector],
                cache,
                TextPositions(tokens_at[:, vector], here, jnp.full_like(here, vector)),
                jnp.where(full, at, cache.key.shape[3]),
                jnp.concatenate([own, before], axis=1),
                is_entry=True,
            )
        return Memories(leaves, after.count, self.KIND), cache

    @nn.nowrap
    def grow(
        self, state: Memories, cache: KeyValues | None, entries: int
    ) -> tuple[Memories, KeyValues | None]:
        """Return a state and its cache with room for so many more entries."""

        def longer(x: jax.Array, axis: int, more: int) -> jax.Array:
            return jnp.pad(x, [(0, more if at == axis else 0) for at in range(x.ndim)])

        leaves = {name: longer(leaf, 1, entries) for name, leaf in state.leaves.items()}
        if cache is not None and self.memory:
            vectors = entries * self._held(state, cache)
            cache = KeyValues(*(longer(x, 3, vectors) for x in cache))
        return Memories(leaves, state.count, self.KIND), cache

    def _readable(self, state: Memories, vectors: int, more: int = 0) -> Bool[Array, "B Pk"]:
        """Return the positions of entries in the cache that hold a memory.

        An entry has so many `vectors`; `more` vectors of the entry behind the last one count too.
        """
        if not self.memory:
            return jnp.zeros((len(state.count), 0), bool)
        valid = jnp.repeat(state.leaves[VALID], vectors, axis=1)
        end = state.count * vectors + more
        return valid & (jnp.arange(valid.shape[1]) < end[:, None])


def _by_row(x: np.ndarray | jax.Array, batch: int) -> Int[Array, "B X"]:
    return jnp.broadcast_to(jnp.asarray(x), (batch, x.shape[-1]))


def _put(
    leaf: Shaped[Array, "B P ..."],
    at: Int[Array, " B"],
    value: Shaped[Array, "B ..."],
    where: Bool[Array, " B"],
) -> Shaped[Array, "B P ..."]:
    """Write one value per sequence, where it is to be."""
    at = jnp.where(where, at, leaf.shape[1])
    return leaf.at[jnp.arange(len(leaf)), at].set(value.astype(leaf.dtype), mode="drop")
