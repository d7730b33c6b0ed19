"""The decoder of a memory model with slots: every chunk reads memories from slots of its own.

It is the per-chunk form. The quirks of the published code need it, and so do reading token by token
and any other table of slots than that of a request.

Shapes: B row, C chunk of the row, X chunk to decode, S slot, M memory, K vector, L token, E encoder
width, D decoder width, T = S*K + L decoder positions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.models.encoder import fold, read_positions, unfold
from memjax.models.memory import VALID, VECTORS, CachedMemory, Memories
from memjax.models.request import EMPTY, PREDICT

FILLS = {"slots_of_ones": 1.0, "slots_of_zeros": 0.0}


def earlier_chunks(chunks: int) -> np.ndarray:
    """Return the slot table [X, S] of next tokens.

    Chunk c has the memories of chunks 0..c-1 in slots 0..c-1; the other slots are empty.
    """
    chunk, slot = np.arange(chunks)[:, None], np.arange(chunks - 1)
    return np.where(slot < chunk, slot, EMPTY)


class SlotMemory(CachedMemory):
    """The methods of `MemoryModel` that read slots.

    `MemoryModel.setup` makes the parameters: `embed`, `bridge`, `backbone`, and the tables of
    positions and tasks.

    Attributes:
      memory: False builds the control, a decoder whose slots are always empty and that has no
        encoder.
    """

    memory: bool = True

    @property
    def slots(self) -> int:
        """S: one fewer than chunks, since the last is never read (published code: as many)."""
        return self.chunks - (self._fill_value is None)

    @property
    def budget(self) -> int:
        """Memories that are kept: those that the last chunk of a sequence reads.

        The published code has one slot more, which is never filled.
        """
        return self.chunks - 1

    @property
    def shares_prefixes(self) -> bool:
        """True where all chunks of a sequence read one prefix.

        Entries then depend on no chunk: not on empty slots that are read (`slots_of_ones`,
        `slots_of_zeros`), on no later position, and on no gradient of a whole matrix of slots
        (`dense_mixing_gradient`).
        """
        decoder, compat = self.config.decoder, self.config.compat
        dense = decoder.kind == "mixer" and "dense_mixing_gradient" in compat
        return decoder.causal and self._fill_value is None and not dense

    @property
    def _fill_value(self) -> float | None:
        """The constant of a slot without a memory in published code; None masks the slot."""
        return next((value for quirk, value in FILLS.items() if quirk in self.config.compat), None)

    def slot_states(
        self,
        tokens: Int[Array, "B X L"],
        memories: Float[Array, "B M K E"] | None,
        slots: Int[Array | np.ndarray, "X S"],
        chunk: Int[Array | np.ndarray, " X"],
        task: Int[Array | np.ndarray, " X"] | int,
        memory_valid: Bool[Array, "B M"] | None,
        token_valid: Bool[Array, "B X L"] | None,
    ) -> Float[Array, "B X L D"]:
        """Return `MemoryModel.states` of chunks with slots of their own; arguments as there."""
        if "attended_padding" in self.config.compat:
            memory_valid = None
        inputs = self._lay_out(tokens, memories, slots, chunk, task, memory_valid, token_valid)
        return unfold(self.backbone(*inputs)[:, -tokens.shape[2] :], len(tokens))

    def _embed_inputs(
        self,
        tokens: Int[Array, "*B T"],
        at: slice | Int[Array, "*B T"],
        chunk: Int[Array | np.ndarray, "*B"],
        task: Int[Array | np.ndarray, "*B"] | int,
    ) -> Float[Array, "*B T D"]:
        """Return the inputs of the backbone for tokens at positions `at` of their chunks."""
        config, x = self.config, self.embed(tokens)
        if config.token_positions:
            # Past a full chunk there is none: the last one stands in, and the result is not used.
            x += self.token_position.astype(x.dtype)[at]
        if config.chunk_positions:
            x += self.chunk_position.astype(x.dtype)[chunk][..., None, :]
        if config.task_embedding:
            x += self.task_mark.astype(x.dtype)[task][..., None, :]
        return x

    def _bridge(self, memories: Float[Array, "B M K E"]) -> Float[Array, "B M K D"]:
        """Return memories at the decoder's width."""
        if self.config.encoder.width == self.config.decoder.width:
            return memories
        return self.bridge(memories)

    def _used(self, state: Memories) -> Bool[Array, "B S"]:
        """Slots that hold a memory."""
        if not self.memory:
            return jnp.zeros((len(state.count), self.slots), bool)
        return state.leaves[VALID] & (jnp.arange(self.slots) < state.count[:, None])

    def _lay_out(
        self,
        tokens: jax.Array,
        memories: jax.Array | None,
        slots: jax.Array | np.ndarray,
        chunk: jax.Array | np.ndarray,
        task: jax.Array | np.ndarray | int,
        memory_valid: jax.Array | None,
        token_valid: jax.Array | None,
    ) -> tuple[Float[Array, "BX T D"], Int[Array, "BX T"], Bool[Array, "BX T"]]:
        """Return the arguments of the backbone; `chunk` may also be [B, X]."""
        batch, n, length = tokens.shape
        x = self._embed_inputs(tokens, slice(length), chunk, task)
        token_valid = read_positions(self.config, tokens, token_valid)
        in_slots, filled = self._fill(memories, slots, memory_valid, batch, n)
        sequence = jnp.concatenate([in_slots.astype(x.dtype), x], axis=2)
        valid = jnp.concatenate([filled, token_valid], axis=2)
        positions = self._positions(filled, jnp.cumsum(token_valid, axis=-1) - 1)
        return fold(sequence), fold(positions), fold(valid)

    def _fill(
        self,
        memories: jax.Array | None,
        slots: jax.Array | np.ndarray,
        memory_valid: jax.Array | None,
        batch: int,
        n: int,
    ) -> tuple[Float[Array, "B X SK D"], Bool[Array, "B X SK"]]:
        """Return the content of each slot position, and whether the decoder attends to it."""
        config, width = self.config, self.config.decoder.width
        count, constant = self.slots * config.memory_vectors, self._fill_value
        if memories is None or not self.memory:
            filled = jnp.full((batch, n, count), constant is not None)
            return jnp.full((batch, n, count, width), constant or 0.0), filled
        memories = self._bridge(memories)
        slots = jnp.asarray(slots)
        slots = jnp.pad(slots, ((0, 0), (0, self.slots - slots.shape[1])), constant_values=EMPTY)
        at = jnp.maximum(slots, 0)
        filled_BXS = jnp.broadcast_to(slots != EMPTY, (batch, *slots.shape))
        if memory_valid is not None:
            filled_BXS &= jnp.asarray(memory_valid)[:, at]
        x = memories[:, at]
        if config.chunk_positions:
            x += self.chunk_position.astype(x.dtype)[: self.slots, None]
        x = jnp.where(filled_BXS[..., None, None], x, constant or 0.0)
        filled = jnp.repeat(filled_BXS | (constant is not None), config.memory_vectors, axis=-1)
        return x.reshape(batch, n, count, width), filled

    def _positions(self, filled: jax.Array, at: jax.Array) -> Int[Array, "*B T"]:
        """Return rotary positions: all slots (fixed) or the filled ones (variable), then inputs.

        Args:
          filled: [*B, SK], whether a slot position is attended to.
          at: [*B, L], places of inputs in their chunk; -1 for padding on the left.
        """
        if self.config.layout == "variable":
            in_slots = jnp.cumsum(filled, axis=-1) - 1
            after = at + jnp.sum(filled, axis=-1, keepdims=True)
            return jnp.maximum(jnp.concatenate([in_slots, after], axis=-1), 0)
        in_slots = jnp.broadcast_to(jnp.arange(filled.shape[-1]), filled.shape)
        return jnp.concatenate([in_slots, jnp.maximum(at, 0) + filled.shape[-1]], axis=-1)

    def _chunk_inputs(
        self, state: Memories, tokens: Int[Array, "B L"]
    ) -> tuple[tuple[Float[Array, "B T D"], Int[Array, "B T"], Bool[Array, "B T"]], int]:
        slots, chunk = np.arange(self.slots)[None], state.count[:, None]
        vectors = state.leaves.get(VECTORS)
        inputs = self._lay_out(
            tokens[:, None], vectors, slots, chunk, PREDICT, self._used(state), None
        )
        return inputs, self.slots * self.config.memory_vectors

    def _step_inputs(
        self, state: Memories, token: Int[Array, " B"], position: Int[Array, " B"]
    ) -> tuple[Float[Array, "B D"], Int[Array, " B"], Int[Array, " B"], Bool[Array, "B T"]]:
        constant = self._fill_value is not None
        filled = jnp.repeat(self._used(state) | constant, self.config.memory_vectors, axis=-1)
        x = self._embed_inputs(token[:, None], position[:, None], state.count, PREDICT)[:, 0]
        positions = self._positions(filled, position[:, None])[:, -1]
        room = ((0, 0), (0, self.config.chunk_length))
        valid = jnp.pad(filled, room, constant_values=True)
        return x, positions, filled.shape[1] + position, valid
